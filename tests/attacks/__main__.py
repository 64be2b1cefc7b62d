"""Runs every attack on a server of its own, prints the cost of each, and fails if one is above its bound."""

import logging
import sys
from collections.abc import Iterator

from tests.attacks import bombs, connections, stop
from tests.attacks.report import Finding

ROW = "{:<58} {:>10} {:<8} {:>10}  {}"


def findings() -> Iterator[Finding]:
    """Yield all findings as they come."""
    yield from connections.findings()
    yield from stop.findings()
    yield from bombs.findings()


def main() -> int:
    """Print the table, and return the exit status."""
    logging.getLogger("app").setLevel(logging.ERROR)
    print(ROW.format("attack", "figure", "", "bound", ""), flush=True)
    broken = 0
    for finding in findings():
        verdict = "" if finding.is_met else "BROKEN"
        row = ROW.format(finding.attack, f"{finding.figure:,.1f}", finding.unit, f"{finding.bound:,.0f}", verdict)
        print(row.rstrip(), flush=True)
        broken += not finding.is_met
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
