"""Readings that can't be stored now because another session has locked their part of the tables. Pure.

TimescaleDB keeps each day of readings in a table of its own, a chunk. A chunk that is being compressed, or waits for a
long reader to end, accepts nothing; the others do. And while sensors or sources are locked, new ones have to wait.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from app.errors import DatabaseLocked
from app.ingest.batch import Content, Reading
from app.ingest.claim import Claim

Span = tuple[int, int]
"""Times from the first to the last, both included, microseconds since 1970 UTC."""


class Blocked(DatabaseLocked):
    """Locks keep some contents of a flush from being stored. Nothing of the flush is stored; the rest can be.

    Args:
        spans: the times whose readings can't be stored.
        claims: the names of the claims that can't be; None if no claim can.
        of_new_names: whether readings of new sensors or senders can't be.
    """

    def __init__(
        self, spans: Sequence[Span], claims: Collection[tuple[str, str]] | None = (), *, of_new_names: bool = False
    ) -> None:
        super().__init__("another session has locked a part of the tables")
        self.spans = spans
        self.claims = claims
        self.of_new_names = of_new_names


@dataclass(slots=True)
class Blockage:
    """The readings and claims that are known to be blocked."""

    spans: Sequence[Span] = ()
    claims: frozenset[tuple[str, str]] = frozenset()
    is_every_claim: bool = False
    of_new_names: bool = False

    def __bool__(self) -> bool:
        return bool(self.spans or self.claims or self.is_every_claim or self.of_new_names)

    def holds(self, content: Content, claim: Claim | None, *, has_new_names: bool = False) -> bool:
        """Return whether readings are blocked; a batch is blocked by any of its readings."""
        if self.of_new_names and has_new_names:
            return True
        if claim is not None and (self.is_every_claim or claim.name in self.claims):
            return True
        return any(_reaches(content, span) for span in self.spans)

    def add(self, blocked: Blocked) -> None:
        """Add what a flush has found to be blocked."""
        self.spans = list(dict.fromkeys([*self.spans, *blocked.spans]))
        if blocked.claims is None:
            self.is_every_claim = True
        else:
            self.claims |= frozenset(blocked.claims)
        self.of_new_names |= blocked.of_new_names

    def lift(self, tried: Iterable[tuple[Content, Claim | None]]) -> None:
        """Forget what blocked these contents, which are about to be tried again or have been stored. Whether new names
        are still blocked, the caller knows.
        """
        for content, claim in tried:
            self.spans = [span for span in self.spans if not _reaches(content, span)]
            if claim is not None:
                self.claims -= {claim.name}
                self.is_every_claim = False


def _reaches(content: Content, span: Span) -> bool:
    """Return whether any of these readings lies in a span."""
    first, last = content.time_range_us()
    if last < span[0] or first > span[1]:
        return False
    if isinstance(content, Reading):
        return True
    times = content.columns["time"].cast(pa.int64())
    return bool(pc.any(pc.and_(pc.greater_equal(times, span[0]), pc.less_equal(times, span[1]))).as_py())
