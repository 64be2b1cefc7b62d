"""A log line for each refused sender, so that an operator finds the sender behind an alert.

``app.logs`` bounds them to one a minute for each sender, status and reason, with the number left out. No line has a
query, a key or a value that was sent.
"""

import logging
import re

import orjson

logger = logging.getLogger(__name__)

MAX_SHOWN_LENGTH = 200
_PARTICULARS = re.compile(r" \(and [\d,]+ more\)|[+-]?\d[\d.,:TZ-]*|'[^']*'|\"[^\"]*\"")
"""What tells one reason from another of the same kind: numbers, times, names."""


def is_refusal(status: int) -> bool:
    """Return whether the sender must change something. Other failures have log lines of their own."""
    return 400 <= status < 500


def log_refusal(what: str, sender: str, status: int, reason: str) -> None:
    """Log that a request ``what`` (like a method and a path) of ``sender`` was refused, and why."""
    kind = (sender, status, _PARTICULARS.sub("", reason)[:MAX_SHOWN_LENGTH])
    logger.warning(
        "refused %s from %s: %d, %s",
        *(_for_log(what), _for_log(sender) or "an unknown address", status, _for_log(reason)),
        extra={"kind": kind},
    )


def reason_in(body: bytes) -> str:
    """Return the first reason that the JSON body of a refusal gives, and how many more it has."""
    try:
        said = orjson.loads(body)
        errors = said.get("errors") or said["detail"]
    except (orjson.JSONDecodeError, AttributeError, KeyError):
        return "no reason was given"
    if isinstance(errors, str):
        return errors
    first = errors[0]
    if "reason" in first:
        reason, count = f"row {first['row']}: {first['reason']}", said["rejected"]
    else:
        reason, count = f"{'.'.join(map(str, first['loc']))}: {first['msg']}", len(errors)
    return f"{reason} (and {count - 1:,} more)" if count > 1 else reason


def _for_log(text: str) -> str:
    """Return a text for a log line: cut short, without characters that a terminal would obey."""
    return repr(text[:MAX_SHOWN_LENGTH])[1:-1]
