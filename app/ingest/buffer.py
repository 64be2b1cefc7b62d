"""The readings that wait for a flush, and those that one is carrying: a bounded queue with transactions.

Pure: no clock, no asyncio; "now" comes in as an argument, and answers go out through each parcel's ``settle``.

Promises:
    * Rows and bytes are bounded, those in flight included, so that a parcel put back always fits. (1)
    * Every parcel that was added ends in exactly one of committed, rejected, given back; the tally says how many rows
      went each way: accepted = committed + rejected + given back + held, at any moment. (2)
    * Order is kept: a parcel put back stands where it stood, before everything that came later.

The transaction's form (begin, then accept, reject or keep) follows Telegraf's ``models/buffer``.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from app.errors import BufferFull, NotStored, SensorFlowError
from app.ingest.batch import READING_SIZE_BYTES, Reading
from app.ingest.receipt import Receipt

Answer = Receipt | SensorFlowError
"""What a sender is told about a parcel: its receipt, or why there is none."""


@dataclass(slots=True, eq=False)
class Parcel:
    """One sender's reading on its way, with the moment by which it must be answered.

    ``settle`` is called at most once. A parcel whose sender has been told "unknown" stays until its fate is known, and
    is then counted, but its sender is not told again.
    """

    reading: Reading
    arrived_at: float
    """Seconds, on the clock that ``now`` is read from."""
    deadline: float
    settle: Callable[[Answer], None]
    answered: bool = False

    def answer(self, answer: Answer) -> None:
        """Tells the sender, unless it has been told."""
        if not self.answered:
            self.answered = True
            self.settle(answer)


@dataclass(slots=True)
class Tally:
    """Rows since the start, by how they ended."""

    accepted: int = 0
    committed: int = 0
    rejected: int = 0
    given_back: int = 0


@dataclass(slots=True)
class Buffer:
    """Parcels in order of arrival: first those in flight, then those that wait."""

    max_rows: int
    max_bytes: int
    tally: Tally = field(default_factory=Tally)
    _waiting: deque[Parcel] = field(default_factory=deque)
    _flying: deque[Parcel] = field(default_factory=deque)

    @property
    def rows(self) -> int:
        """Rows held, in flight included."""
        return len(self._waiting) + len(self._flying)

    @property
    def size_bytes(self) -> int:
        """Bytes held, in flight included."""
        return self.rows * READING_SIZE_BYTES

    @property
    def waiting_rows(self) -> int:
        """Rows that no flush has taken yet."""
        return len(self._waiting)

    def oldest_age_s(self, now: float) -> float:
        """How long the oldest row has been held, seconds; 0 when there is none."""
        parcels = self._flying or self._waiting
        return now - parcels[0].arrived_at if parcels else 0.0

    def add(self, parcel: Parcel, *, retry_after_s: int) -> None:
        """Takes a parcel in, at the end of the queue.

        Raises:
            BufferFull: it would not fit, and has not been taken; the error carries ``retry_after_s``.
        """
        if self.rows + 1 > self.max_rows or self.size_bytes + READING_SIZE_BYTES > self.max_bytes:
            raise BufferFull(
                "The buffer is full: readings arrive faster than the database commits them.",
                retry_after_s=retry_after_s,
            )
        self._waiting.append(parcel)
        self.tally.accepted += 1

    def begin(self, max_rows: int) -> Sequence[Parcel]:
        """Takes up to ``max_rows`` from the front into flight; they go on counting as held. One flight at a time."""
        if self._flying:
            raise RuntimeError("a flight has begun and not ended")
        waiting = self._waiting
        if len(waiting) <= max_rows:
            self._flying, self._waiting = waiting, deque()
        else:
            self._flying = deque(waiting.popleft() for _ in range(max_rows))
        return tuple(self._flying)

    def accept(self, count: int) -> None:
        """The first ``count`` parcels of the flight are committed. Their receipts are the caller's to give."""
        for _ in range(count):
            self._flying.popleft()
        self.tally.committed += count

    def reject(self, error: SensorFlowError) -> None:
        """The first parcel of the flight can't be stored, now or later: it leaves, and its sender is told why."""
        self._flying.popleft().answer(error)
        self.tally.rejected += 1

    def keep(self) -> None:
        """Nothing of the rest of the flight is stored: it goes back to the front, to be tried again.

        A parcel whose sender was told "unknown" is given back instead: the sender has been asked to send it again.
        """
        while self._flying:
            parcel = self._flying.pop()
            if parcel.answered:
                self.tally.given_back += 1
            else:
                self._waiting.appendleft(parcel)

    def expire(self, now: float, error: Callable[[], NotStored], unknown: Callable[[], SensorFlowError]) -> None:
        """Answers every parcel whose deadline has come; deadlines must be in the order of arrival.

        One that waits is given back with ``error``. One in flight may be committed at this moment: its sender is told
        ``unknown``, and it stays until the flight ends.
        """
        while self._waiting and self._waiting[0].deadline <= now:
            self._waiting.popleft().answer(error())
            self.tally.given_back += 1
        for parcel in self._flying:
            if parcel.deadline > now:
                break
            parcel.answer(unknown())
