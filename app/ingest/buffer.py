"""The readings that wait for a flush, and those that one is carrying: a bounded queue with transactions.

Pure: no clock, no asyncio; "now" comes in as an argument, and answers go out through each submission's ``on_result``.

Promises:
    * Rows and bytes are bounded, those in flight and those still on their way in included, so that a submission put
      back always fits; and no key holds more than its share of the bytes. (1)
    * Every row that was added ends in exactly one of committed, rejected, given back; ``stats`` says how many rows
      went each way: accepted = committed + rejected + given back + held, at any moment. (2)
    * Order is kept: a submission put back stands where it stood, before everything that came later. One that is parked
      stands nowhere, and then at the end.

The transaction's form (``begin_flush``, then ``commit``, ``reject`` or ``requeue_in_flight``) follows Telegraf's
``models/buffer``. Two flushes may be in flight, the later one being prepared while the earlier is written; they end in
their order.

What can't be stored for now, while the rest can, is set aside: it stays held, and waits for flushes of its own.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from operator import attrgetter

from app.errors import BufferFull, KeyOverShare, NotStored, SensorFlowError
from app.ingest.request import WriteRequest
from app.ingest.result import WriteOutcome


@dataclass(slots=True, eq=False)
class Submission:
    """A request on its way, with the moment by which it must be answered.

    ``on_result`` is called at most once. A submission whose sender has been told "unknown" stays until its fate is
    known, and is then counted, but its sender is not told again.
    """

    request: WriteRequest
    rows: int
    size_bytes: int
    arrived_at: float
    """When it came, or came out of being parked, which is its place in the queue; seconds, on the clock that ``now`` is
    read from."""
    deadline: float
    """Infinite where no sender waits for the commit."""
    on_result: Callable[[WriteOutcome], None]
    answered: bool = False
    is_aside: bool = False
    """Whether it waits for flushes of its own."""

    def answer(self, answer: WriteOutcome) -> None:
        """Tell the sender, unless it has been told."""
        if not self.answered:
            self.answered = True
            self.on_result(answer)


@dataclass(slots=True)
class BufferStats:
    """Rows since the start, by how they ended."""

    accepted: int = 0
    committed: int = 0
    rejected: int = 0
    given_back: int = 0


@dataclass(slots=True)
class Buffer:
    """Submissions in order of arrival: those in flight, then those that wait. Beside them those that are parked."""

    max_rows: int
    max_bytes: int
    max_bytes_per_key: int
    rows: int = 0
    """Rows held, in flight included."""
    size_bytes: int = 0
    """Bytes held and reserved, in flight included."""
    waiting_rows: int = 0
    """Rows that the next flush may take: without those that are set aside or parked."""
    stats: BufferStats = field(default_factory=BufferStats)
    _waiting: deque[Submission] = field(default_factory=deque)
    _aside: list[Submission] = field(default_factory=list)
    """In order of arrival, too."""
    _parked: dict[Submission, None] = field(default_factory=dict)
    """What no flush may take yet, in order of arrival."""
    _flushes: deque[list[Submission]] = field(default_factory=deque)
    _bytes_of_key: Counter[str] = field(default_factory=Counter)

    def oldest_age_s(self, now: float) -> float:
        """Return for how long the oldest row has been held, seconds. 0 if there is none."""
        queues = (*self._flushes, self._waiting, self._aside, self._parked)
        return now - min((next(iter(submissions)).arrived_at for submissions in queues if submissions), default=now)

    def reserve(self, key_name: str, size_bytes: int, *, retry_after_s: Callable[[], int]) -> None:
        """Hold room for what a key is about to send. Negative gives room back. ``retry_after_s`` is asked for an error.

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

    def add(self, submission: Submission, *, retry_after_s: Callable[[], int], is_parked: bool = False) -> None:
        """Take a submission in: at the end of the queue, aside if the submission says so, or parked until ``unpark``.

        Raises:
            KeyOverShare, BufferFull: it would not fit, and has not been taken.
        """
        if self.rows + submission.rows > self.max_rows:
            raise _full(retry_after_s())
        self.reserve(submission.request.content.source.key_name, submission.size_bytes, retry_after_s=retry_after_s)
        self.rows += submission.rows
        self.stats.accepted += submission.rows
        if is_parked:
            self._parked[submission] = None
        else:
            self._append(submission)

    def unpark(self, submission: Submission, now: float, deadline: float) -> None:
        """Put a parked submission at the end of the queue, or aside if it says so, as if it arrived now.

        Its deadline is new. Nothing happens if it was given back.
        """
        if submission in self._parked:
            del self._parked[submission]
            submission.arrived_at, submission.deadline = now, deadline
            self._append(submission)

    @property
    def aside(self) -> Sequence[Submission]:
        """The submissions that are set aside, in the order of arrival."""
        return self._aside

    @property
    def in_flight(self) -> Iterator[Submission]:
        """The submissions of all flushes, the earliest first."""
        return chain.from_iterable(self._flushes)

    def begin_flush(self, max_rows: int) -> Sequence[Submission]:
        """Take submissions from the front into a flush, ``max_rows`` at most but always one. They stay held.

        A flush takes one submission per idempotency key: only the commit of one tells whether another repeats it.
        """
        flush, rows = _taken(self._waiting, max_rows)
        self.waiting_rows -= rows
        return self._send_off(flush)

    def begin_flush_aside(
        self, max_rows: int, is_eligible: Callable[[Submission], bool] = lambda _: True
    ) -> Sequence[Submission]:
        """Take eligible submissions that are set aside into a flush, as ``begin_flush`` does."""
        flush, _ = _taken(deque(filter(is_eligible, self._aside)), max_rows)
        taken = set(flush)
        self._aside = [submission for submission in self._aside if submission not in taken]
        return self._send_off(flush)

    def sort_out(self, is_blocked: Callable[[Submission], bool]) -> None:
        """Set blocked submissions aside and let the others wait, in the order of arrival. Flushes stay as they are."""
        for submission in chain(self._aside, self._waiting):
            submission.is_aside = is_blocked(submission)
        self._queue(chain(self._aside, self._waiting))

    def commit(self, refused_rows: int = 0) -> None:
        """Remove the earliest flush as committed, less ``refused_rows``. The caller gives its answers."""
        flush = self._flushes.popleft()
        rows = sum(submission.rows for submission in flush)
        self.stats.committed += rows - refused_rows
        self.stats.rejected += refused_rows
        for submission in flush:
            self._let_go(submission)

    def reject(self, submission: Submission, answer: WriteOutcome) -> None:
        """Take a submission out of the earliest flush: it is never to be stored, and its sender is told why."""
        self._flushes[0].remove(submission)
        self.stats.rejected += submission.rows
        self._let_go(submission)
        submission.answer(answer)

    def requeue_in_flight(self) -> None:
        """Put every flush back to the front of where it came from, to be tried again. Nothing of it is stored.

        A submission whose sender was told "unknown" is given back instead: the sender has been asked to send it again.
        """
        kept: list[Submission] = []
        for submission in self.in_flight:
            if submission.answered:
                self._give_back(submission)
            else:
                kept.append(submission)
        self._flushes.clear()
        self._queue(chain(kept, self._aside, self._waiting))

    def expire(
        self,
        now: float,
        error: Callable[[], NotStored],
        unknown: Callable[[], SensorFlowError],
        blocked: Callable[[], NotStored] | None = None,
    ) -> None:
        """Answer every submission whose deadline has come. Finite deadlines must be in the order of the queue.

        One that waits is given back with ``error``, one that is set aside with ``blocked`` if there is such. One in
        flight may be committed at this moment: its sender is told ``unknown``, and it stays until the flush ends.
        """
        if due := _due(self._waiting, now):
            late = set(due)  # each looked for in the queue, 20,000 behind as many without a waiting sender took 5 s
            self._waiting = deque(submission for submission in self._waiting if submission not in late)
            self.waiting_rows -= sum(submission.rows for submission in due)
        if due_aside := _due(self._aside, now):
            late = set(due_aside)
            self._aside = [submission for submission in self._aside if submission not in late]
        due_parked = _due(self._parked, now)
        for submission in due_parked:
            del self._parked[submission]
        for submission in (*due, *due_aside, *due_parked):
            self._give_back(submission)
            submission.answer((blocked if blocked and submission.is_aside else error)())
        for flush in self._flushes:
            for submission in _due(flush, now):
                submission.answer(unknown())

    def _hold(self, key_name: str, size_bytes: int) -> None:
        self.size_bytes += size_bytes
        self._bytes_of_key[key_name] += size_bytes

    def _append(self, submission: Submission) -> None:
        if submission.is_aside:
            self._aside.append(submission)
        else:
            self._waiting.append(submission)
            self.waiting_rows += submission.rows

    def _queue(self, submissions: Iterable[Submission]) -> None:
        """Replace the waiting submissions by these, in the order of arrival: in the queue or aside."""
        ordered = sorted(submissions, key=attrgetter("arrived_at"))
        self._aside = [submission for submission in ordered if submission.is_aside]
        self._waiting = deque(submission for submission in ordered if not submission.is_aside)
        self.waiting_rows = sum(submission.rows for submission in self._waiting)

    def _send_off(self, flush: list[Submission]) -> Sequence[Submission]:
        if flush:
            self._flushes.append(flush)
        return tuple(flush)  # and not the list, which submissions may leave while the caller goes through it

    def _give_back(self, submission: Submission) -> None:
        self.stats.given_back += submission.rows
        self._let_go(submission)

    def _let_go(self, submission: Submission) -> None:
        self.rows -= submission.rows
        self._hold(submission.request.content.source.key_name, -submission.size_bytes)


def _taken(queue: deque[Submission], max_rows: int) -> tuple[list[Submission], int]:
    """Return submissions from the front of a queue, and their rows."""
    rows = 0
    taken: list[Submission] = []
    names: set[tuple[str, str]] = set()
    while queue and (not taken or rows + queue[0].rows <= max_rows):
        if (record := queue[0].request.record) is not None:
            if record.name in names:
                break
            names.add(record.name)
        submission = queue.popleft()
        taken.append(submission)
        rows += submission.rows
    return taken, rows


def _due(submissions: Iterable[Submission], now: float) -> list[Submission]:
    """Those whose deadline has come, in their order. The rest of the queue is not looked at."""
    due = []
    for submission in submissions:
        if submission.deadline <= now:
            due.append(submission)
        elif submission.deadline != float("inf"):
            break
    return due


def _full(retry_after_s: int) -> BufferFull:
    return BufferFull(
        "The buffer is full: readings arrive faster than the database commits them.", retry_after_s=retry_after_s
    )
