"""Readings that can't be stored now because another session has locked their part of the tables. Pure.

TimescaleDB keeps the readings of a day, or of less or more, in a table of their own, a chunk. A chunk that is being
compressed, or waits for a long reader to end, accepts nothing; the others do. And while sensors or sources are locked,
new ones have to wait.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from app.errors import DatabaseLocked
from app.ingest.request import WriteRequest

Span = tuple[int, int]
"""Times from the first to the last, both included, microseconds since 1970 UTC."""


class Blocked(DatabaseLocked):
    """Locks keep some contents of a flush from being stored. Nothing of the flush is stored; the rest can be.

    Args:
        spans: the times whose readings can't be stored.
        records: the names of the idempotency records that can't be; None if none can.
        of_new_names: whether readings of new sensors or senders can't be.
    """

    def __init__(
        self, spans: Sequence[Span], records: Collection[tuple[str, str]] | None = (), *, of_new_names: bool = False
    ) -> None:
        super().__init__("another session has locked a part of the tables")
        self.spans = spans
        self.records = records
        self.of_new_names = of_new_names


@dataclass(slots=True)
class Blockage:
    """The readings and idempotency records that are known to be blocked."""

    spans: Sequence[Span] = ()
    records: frozenset[tuple[str, str]] = frozenset()
    is_every_record: bool = False
    of_new_names: bool = False

    def __bool__(self) -> bool:
        return bool(self.spans or self.records or self.is_every_record or self.of_new_names)

    def holds(self, request: WriteRequest, *, has_new_names: bool = False) -> bool:
        """Return whether a request is blocked. A batch is blocked by any of its readings."""
        if self.of_new_names and has_new_names:
            return True
        record = request.record
        if record is not None and (self.is_every_record or record.name in self.records):
            return True
        return any(request.content.is_any_between(*span) for span in self.spans)

    def add(self, blocked: Blocked) -> None:
        """Add what a flush has found to be blocked."""
        self.spans = list(dict.fromkeys([*self.spans, *blocked.spans]))
        if blocked.records is None:
            self.is_every_record = True
        else:
            self.records |= frozenset(blocked.records)
        self.of_new_names |= blocked.of_new_names

    def lift(self, tried: Iterable[WriteRequest]) -> None:
        """Forget what blocked these requests, which are about to be tried again or have been stored. Whether new names
        are still blocked, the caller knows.
        """
        for request in tried:
            self.spans = [span for span in self.spans if not request.content.is_any_between(*span)]
            if request.record is not None:
                self.records -= {request.record.name}
                self.is_every_record = False
