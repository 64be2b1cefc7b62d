"""The readings that wait for a flush, and those that one is carrying: a bounded queue with transactions.

Pure: no clock, no asyncio; "now" comes in as an argument, and answers go out through each parcel's ``settle``.

Promises:
    * Rows and bytes are bounded, those in flight and those still on their way in included, so that a parcel put back
      always fits; and no key holds more than its share of the bytes. (1)
    * Every row that was added ends in exactly one of committed, rejected, given back; the tally says how many rows
      went each way: accepted = committed + rejected + given back + held, at any moment. (2)
    * Order is kept: a parcel put back stands where it stood, before everything that came later. One that is parked
      stands nowhere, and then at the end.

The transaction's form (begin, then accept, reject or keep) follows Telegraf's ``models/buffer``. Two flights may be in
the air, the later one being prepared while the earlier is written; they end in their order.

What can't be stored for now, while the rest can, is set aside: it stays held, and waits for flights of its own.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from operator import attrgetter

from app.errors import BufferFull, KeyOverShare, NotStored, SensorFlowError
from app.ingest.batch import Content
from app.ingest.claim import Claim, Replay
from app.ingest.receipt import Receipt, Stored

Answer = Receipt | Stored | Replay | SensorFlowError
"""What a sender is told about a parcel: its receipt, or why there is none."""


@dataclass(slots=True, eq=False)
class Parcel:
    """What one request sent, on its way, with the moment by which it must be answered.

    ``settle`` is called at most once. A parcel whose sender has been told "unknown" stays until its fate is known, and
    is then counted, but its sender is not told again.
    """

    content: Content
    rows: int
    size_bytes: int
    arrived_at: float
    """When it came, or came out of being parked, which is its place in the queue; seconds, on the clock that ``now`` is
    read from."""
    deadline: float
    """Infinite where nobody waits for the commit."""
    settle: Callable[[Answer], None]
    claim: Claim | None = None
    """What makes sending it again harmless, if its sender asked for that."""
    answered: bool = False
    is_aside: bool = False
    """Whether it waits for flights of its own."""

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
    """Parcels in order of arrival: first those in flight, then those that wait. Beside them those that are parked."""

    max_rows: int
    max_bytes: int
    max_bytes_per_key: int
    rows: int = 0
    """Rows held, in flight included."""
    size_bytes: int = 0
    """Bytes held and reserved, in flight included."""
    waiting_rows: int = 0
    """Rows that the next flight may take: without those that are set aside or parked."""
    tally: Tally = field(default_factory=Tally)
    _waiting: deque[Parcel] = field(default_factory=deque)
    _aside: list[Parcel] = field(default_factory=list)
    """In order of arrival, too."""
    _parked: dict[Parcel, None] = field(default_factory=dict)
    """What no flight may take yet, in order of arrival."""
    _flights: deque[list[Parcel]] = field(default_factory=deque)
    _bytes_of_key: Counter[str] = field(default_factory=Counter)

    def oldest_age_s(self, now: float) -> float:
        """How long the oldest row has been held, seconds; 0 when there is none."""
        queues = (*self._flights, self._waiting, self._aside, self._parked)
        return now - min((next(iter(parcels)).arrived_at for parcels in queues if parcels), default=now)

    def reserve(self, key_name: str, size_bytes: int, *, retry_after_s: Callable[[], int]) -> None:
        """Hold room for what a key is about to send; negative gives room back. ``retry_after_s`` is asked for an error.

        Raises:
            KeyOverShare, BufferFull: there is not so much room, for this key or at all; nothing has changed.
        """
        if size_bytes > 0:
            if self._bytes_of_key[key_name] + size_bytes > self.max_bytes_per_key:
                raise KeyOverShare(
                    "This key holds its share of the buffer: it sends faster than the database commits.",
                    retry_after_s=retry_after_s(),
                )
            if self.size_bytes + size_bytes > self.max_bytes:
                raise _full(retry_after_s())
        self._hold(key_name, size_bytes)

    def add(self, parcel: Parcel, *, retry_after_s: Callable[[], int], is_parked: bool = False) -> None:
        """Take a parcel in: at the end of the queue, aside if the parcel says so, or parked until ``unpark``.

        Raises:
            KeyOverShare, BufferFull: it would not fit, and has not been taken.
        """
        if self.rows + parcel.rows > self.max_rows:
            raise _full(retry_after_s())
        self.reserve(parcel.content.source.key_name, parcel.size_bytes, retry_after_s=retry_after_s)
        self.rows += parcel.rows
        self.tally.accepted += parcel.rows
        if is_parked:
            self._parked[parcel] = None
        else:
            self._append(parcel)

    def unpark(self, parcel: Parcel, now: float, deadline: float) -> None:
        """Put a parked parcel at the end of the queue, or aside if it says so, as if it arrived now and with a new
        deadline. Does nothing if it was given back.
        """
        if parcel in self._parked:
            del self._parked[parcel]
            parcel.arrived_at, parcel.deadline = now, deadline
            self._append(parcel)

    @property
    def aside(self) -> Sequence[Parcel]:
        """The parcels that are set aside, in the order of arrival."""
        return self._aside

    @property
    def in_flight(self) -> Iterator[Parcel]:
        """The parcels of all flights, the earliest first."""
        return chain.from_iterable(self._flights)

    def begin(self, max_rows: int) -> Sequence[Parcel]:
        """Takes parcels from the front into a flight, ``max_rows`` at most but always one; they stay held.

        Of parcels with the same claim a flight takes one: whether the other is a repetition, only the first one's
        commit will tell.
        """
        flight, rows = _taken(self._waiting, max_rows)
        self.waiting_rows -= rows
        return self._launch(flight)

    def begin_aside(self, max_rows: int, is_eligible: Callable[[Parcel], bool] = lambda _: True) -> Sequence[Parcel]:
        """Take eligible parcels that are set aside into a flight, as ``begin`` does."""
        flight, _ = _taken(deque(filter(is_eligible, self._aside)), max_rows)
        taken = set(flight)
        self._aside = [parcel for parcel in self._aside if parcel not in taken]
        return self._launch(flight)

    def sort_out(self, is_blocked: Callable[[Parcel], bool]) -> None:
        """Set blocked parcels aside and let the others wait, in the order of arrival. Flights stay as they are."""
        for parcel in chain(self._aside, self._waiting):
            parcel.is_aside = is_blocked(parcel)
        self._queue(chain(self._aside, self._waiting))

    def accept(self, refused_rows: int = 0) -> None:
        """The earliest flight is committed, less some rows that never can be. Its answers are the caller's to give."""
        flight = self._flights.popleft()
        rows = sum(parcel.rows for parcel in flight)
        self.tally.committed += rows - refused_rows
        self.tally.rejected += refused_rows
        for parcel in flight:
            self._let_go(parcel)

    def reject(self, parcel: Parcel, answer: Answer) -> None:
        """A parcel of the earliest flight is not to be stored, now or later: it leaves, and its sender is told why."""
        self._flights[0].remove(parcel)
        self.tally.rejected += parcel.rows
        self._let_go(parcel)
        parcel.answer(answer)

    def keep(self) -> None:
        """Put every flight back to the front of where it came from, to be tried again; nothing of it is stored.

        A parcel whose sender was told "unknown" is given back instead: the sender has been asked to send it again.
        """
        kept: list[Parcel] = []
        for parcel in self.in_flight:
            if parcel.answered:
                self._give_back(parcel)
            else:
                kept.append(parcel)
        self._flights.clear()
        self._queue(chain(kept, self._aside, self._waiting))

    def expire(
        self,
        now: float,
        error: Callable[[], NotStored],
        unknown: Callable[[], SensorFlowError],
        blocked: Callable[[], NotStored] | None = None,
    ) -> None:
        """Answer every parcel whose deadline has come; finite deadlines must be in the order of the queue.

        One that waits is given back with ``error``, one that is set aside with ``blocked`` if there is such. One in
        flight may be committed at this moment: its sender is told ``unknown``, and it stays until the flight ends.
        """
        if due := _due(self._waiting, now):
            late = set(due)  # each looked for in the queue, 20,000 behind as many that nobody waits for took 5 s
            self._waiting = deque(parcel for parcel in self._waiting if parcel not in late)
            self.waiting_rows -= sum(parcel.rows for parcel in due)
        if due_aside := _due(self._aside, now):
            late = set(due_aside)
            self._aside = [parcel for parcel in self._aside if parcel not in late]
        due_parked = _due(self._parked, now)
        for parcel in due_parked:
            del self._parked[parcel]
        for parcel in (*due, *due_aside, *due_parked):
            self._give_back(parcel)
            parcel.answer((blocked if blocked and parcel.is_aside else error)())
        for flight in self._flights:
            for parcel in _due(flight, now):
                parcel.answer(unknown())

    def _hold(self, key_name: str, size_bytes: int) -> None:
        self.size_bytes += size_bytes
        self._bytes_of_key[key_name] += size_bytes

    def _append(self, parcel: Parcel) -> None:
        if parcel.is_aside:
            self._aside.append(parcel)
        else:
            self._waiting.append(parcel)
            self.waiting_rows += parcel.rows

    def _queue(self, parcels: Iterable[Parcel]) -> None:
        """Replace the waiting parcels by these, in the order of arrival: in the queue or aside."""
        ordered = sorted(parcels, key=attrgetter("arrived_at"))
        self._aside = [parcel for parcel in ordered if parcel.is_aside]
        self._waiting = deque(parcel for parcel in ordered if not parcel.is_aside)
        self.waiting_rows = sum(parcel.rows for parcel in self._waiting)

    def _launch(self, flight: list[Parcel]) -> Sequence[Parcel]:
        if flight:
            self._flights.append(flight)
        return tuple(flight)  # and not the list, which parcels may leave while the caller goes through it

    def _give_back(self, parcel: Parcel) -> None:
        self.tally.given_back += parcel.rows
        self._let_go(parcel)

    def _let_go(self, parcel: Parcel) -> None:
        self.rows -= parcel.rows
        self._hold(parcel.content.source.key_name, -parcel.size_bytes)


def _taken(queue: deque[Parcel], max_rows: int) -> tuple[list[Parcel], int]:
    """Return parcels from the front of a queue, and their rows."""
    rows = 0
    taken: list[Parcel] = []
    claims: set[tuple[str, str]] = set()
    while queue and (not taken or rows + queue[0].rows <= max_rows):
        if (claim := queue[0].claim) is not None:
            if claim.name in claims:
                break
            claims.add(claim.name)
        parcel = queue.popleft()
        taken.append(parcel)
        rows += parcel.rows
    return taken, rows


def _due(parcels: Iterable[Parcel], now: float) -> list[Parcel]:
    """Those whose deadline has come, in their order; the rest of the queue is not looked at."""
    due = []
    for parcel in parcels:
        if parcel.deadline <= now:
            due.append(parcel)
        elif parcel.deadline != float("inf"):
            break
    return due


def _full(retry_after_s: int) -> BufferFull:
    return BufferFull(
        "The buffer is full: readings arrive faster than the database commits them.", retry_after_s=retry_after_s
    )
