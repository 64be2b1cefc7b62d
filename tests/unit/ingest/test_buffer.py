"""The buffer's bounds, order and sums, and all its operations against a model of plain lists."""

import itertools
import math
from collections import Counter, defaultdict
from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from app.errors import BufferFull, DatabaseLocked, DatabaseUnavailable, KeyOverShare, OutcomeUnknown, RejectedByDatabase
from app.ingest.batch import READING_SIZE_BYTES as ROW
from app.ingest.batch import Sender
from app.ingest.buffer import Buffer, Submission
from app.ingest.idempotency import IdempotencyRecord
from app.ingest.request import WriteRequest
from app.ingest.result import WriteOutcome
from tests.support.examples import examples
from tests.support.samples import SOURCE, reading, receipt, record

AWAY = DatabaseUnavailable("away")
BLOCKED = DatabaseLocked("locked")
UNKNOWN = OutcomeUnknown("unknown")
BAD_ROW = RejectedByDatabase("bad row")
RECEIPT = receipt()
PATIENCE_S = 3.0
PLENTY = 1 << 40


def submission(
    *,
    rows: int = 1,
    size_bytes: int = ROW,
    at: float = 0,
    patience_s: float = PATIENCE_S,
    key_name: str = SOURCE.key_name,
    record: IdempotencyRecord | None = None,
    answers: list[WriteOutcome] | None = None,
) -> Submission:
    """Return a submission with a size and a key only: the buffer looks at nothing else."""
    content = reading(source=Sender(key_name, "192.0.2.7"))
    heard: list[WriteOutcome] = [] if answers is None else answers
    return Submission(WriteRequest(content, record), rows, size_bytes, at, at + patience_s, heard.append)


def filled(*submissions: Submission, max_rows: int = PLENTY) -> Buffer:
    buffer = Buffer(max_rows, max_bytes=PLENTY, max_bytes_per_key=PLENTY)
    for each in submissions:
        buffer.add(each, retry_after_s=lambda: 1)
    return buffer


def expire(buffer: Buffer, now: float) -> None:
    buffer.expire(now, lambda: AWAY, lambda: UNKNOWN, lambda: BLOCKED)


@pytest.mark.parametrize(
    ("max_rows", "max_bytes", "fit"),
    [
        (6, 100 * ROW, 3),
        (7, 100 * ROW, 3),
        (100, 3 * ROW, 3),
        (100, 3 * ROW - 1, 2),
        (100, 4 * ROW - 1, 3),
        (2, ROW, 1),
        (2, ROW - 1, 0),
        (1, ROW, 0),
    ],
)
@pytest.mark.parametrize("in_flight", [0, 1, 100])
def test_rows_and_bytes_are_bounded_those_in_flush_included(
    max_rows: int, max_bytes: int, fit: int, in_flight: int
) -> None:
    buffer = Buffer(max_rows, max_bytes, max_bytes_per_key=PLENTY)
    for _ in range(fit):
        buffer.add(submission(rows=2), retry_after_s=lambda: 1)
    buffer.begin_flush(in_flight)
    with pytest.raises(BufferFull) as refusal:
        buffer.add(submission(rows=2), retry_after_s=lambda: 7)
    assert refusal.value.retry_after_s == 7
    assert (buffer.rows, buffer.size_bytes, buffer.stats.accepted) == (2 * fit, fit * ROW, 2 * fit)


def test_a_key_has_its_share_and_the_others_have_theirs() -> None:
    buffer = Buffer(PLENTY, max_bytes=10, max_bytes_per_key=6)
    buffer.add(submission(size_bytes=4, key_name="a"), retry_after_s=lambda: 1)
    buffer.begin_flush(1)
    with pytest.raises(KeyOverShare) as refusal:
        buffer.add(submission(size_bytes=3, key_name="a"), retry_after_s=lambda: 7)
    assert refusal.value.retry_after_s == 7
    buffer.add(submission(size_bytes=2, key_name="a"), retry_after_s=lambda: 1)
    buffer.add(submission(size_bytes=4, key_name="b"), retry_after_s=lambda: 1)
    with pytest.raises(BufferFull) as full:
        buffer.add(submission(size_bytes=1, key_name="b"), retry_after_s=lambda: 8)
    assert full.value.retry_after_s == 8
    assert (buffer.rows, buffer.size_bytes, buffer.stats.accepted) == (3, 10, 3)
    buffer.commit()
    buffer.add(submission(size_bytes=2, key_name="b"), retry_after_s=lambda: 1)
    with pytest.raises(KeyOverShare):
        buffer.add(submission(size_bytes=5, key_name="a"), retry_after_s=lambda: 1)


def test_a_reservation_counts_like_what_is_held_until_it_is_given_back() -> None:
    buffer = Buffer(PLENTY, max_bytes=10, max_bytes_per_key=6)
    buffer.reserve("a", 5, retry_after_s=lambda: 1)
    with pytest.raises(KeyOverShare) as share:
        buffer.reserve("a", 2, retry_after_s=lambda: 7)
    with pytest.raises(BufferFull) as full:
        buffer.reserve("b", 6, retry_after_s=lambda: 8)
    assert (share.value.retry_after_s, full.value.retry_after_s) == (7, 8)
    assert (buffer.size_bytes, buffer.rows) == (5, 0)
    buffer.add(submission(size_bytes=1, key_name="a"), retry_after_s=lambda: 1)
    with pytest.raises(KeyOverShare):
        buffer.add(submission(size_bytes=1, key_name="a"), retry_after_s=lambda: 1)
    buffer.reserve("a", -5, retry_after_s=lambda: 1)
    buffer.add(submission(size_bytes=5, key_name="a"), retry_after_s=lambda: 1)
    assert (buffer.size_bytes, buffer.rows) == (6, 2)


def test_room_may_be_given_back_while_there_is_none() -> None:
    buffer = Buffer(PLENTY, max_bytes=10, max_bytes_per_key=10)
    buffer.reserve("a", 10, retry_after_s=lambda: 1)
    buffer.reserve("a", -3, retry_after_s=lambda: 1)
    buffer.reserve("a", 3, retry_after_s=lambda: 1)
    assert buffer.size_bytes == 10


def test_a_flush_stays_as_it_began_whatever_becomes_of_its_submissions() -> None:
    """A flush keeps its submissions as it began, so that a loop that rejects some skips no others."""
    submissions = [submission() for _ in range(5)]
    buffer = filled(*submissions)
    flush = buffer.begin_flush(5)
    for each in flush:
        buffer.reject(each, BAD_ROW)
    assert list(flush) == submissions
    assert (buffer.rows, buffer.stats.rejected) == (0, 5)


def test_kept_submissions_keep_their_places_and_always_fit() -> None:
    early = [submission(rows=rows) for rows in (3, 1, 2, 5)]
    late = submission(rows=3)
    buffer = filled(*early, max_rows=11)
    assert list(buffer.begin_flush(3)) == early[:1]
    assert list(buffer.begin_flush(3)) == early[1:3]
    buffer.commit()
    buffer.add(late, retry_after_s=lambda: 1)
    assert list(buffer.begin_flush(5)) == early[3:]
    buffer.requeue_in_flight()
    assert (buffer.rows, buffer.waiting_rows) == (11, 11)
    assert list(buffer.begin_flush(100)) == [*early[1:], late]


def test_a_flush_takes_no_more_rows_than_it_is_given_but_always_a_submission() -> None:
    submissions = [submission(rows=rows) for rows in (5, 2, 2, 1, 7)]
    buffer = filled(*submissions)
    assert list(buffer.begin_flush(4)) == submissions[:1]
    assert list(buffer.begin_flush(4)) == submissions[1:3]
    assert (buffer.rows, buffer.waiting_rows) == (17, 8)
    assert list(buffer.begin_flush(8)) == submissions[3:]
    assert list(buffer.begin_flush(8)) == []


def test_flushes_end_in_the_order_in_which_they_began() -> None:
    submissions = [submission(rows=2), submission(rows=3)]
    buffer = filled(*submissions)
    buffer.begin_flush(2)
    buffer.begin_flush(3)
    buffer.commit(refused_rows=1)
    assert (buffer.rows, buffer.stats.committed, buffer.stats.rejected) == (3, 1, 1)
    buffer.commit()
    assert (buffer.rows, buffer.stats.committed, buffer.stats.rejected) == (0, 4, 1)


def test_a_flush_that_took_nothing_is_none() -> None:
    buffer = filled()
    assert not buffer.begin_flush(10)
    buffer.add(submission(), retry_after_s=lambda: 1)
    buffer.begin_flush(10)
    buffer.commit()
    assert (buffer.rows, buffer.stats.committed) == (0, 1)


def test_flush_takes_one_submission_per_idempotency_key() -> None:
    records = [record("x"), None, record("y"), record("x"), record("y"), record("x", key_name="other")]
    submissions = [submission(record=each) for each in records]
    buffer = filled(*submissions)
    assert list(buffer.begin_flush(100)) == submissions[:3]
    assert list(buffer.begin_flush(100)) == submissions[3:], "the one before is in the air, and will be told of"


def test_a_rejected_submission_is_told_why_and_leaves_its_neighbours() -> None:
    answers: list[WriteOutcome] = []
    submissions = [submission(rows=rows, answers=answers) for rows in (1, 4, 2, 1)]
    buffer = filled(*submissions)
    flush = buffer.begin_flush(7)
    buffer.begin_flush(1)
    for each in flush:
        if each.rows < 4:
            buffer.reject(each, BAD_ROW)
    assert answers == [BAD_ROW, BAD_ROW]
    assert (buffer.rows, buffer.size_bytes, buffer.stats.rejected) == (5, 2 * ROW, 3)
    buffer.requeue_in_flight()
    assert list(buffer.begin_flush(100)) == [submissions[1], submissions[3]]


def test_at_its_deadline_what_waits_is_given_back_and_what_flies_is_unknown() -> None:
    answers: list[WriteOutcome] = []
    submissions = [submission(at=at, rows=10 + at, answers=answers) for at in range(5)]
    buffer = filled(*submissions)
    buffer.begin_flush(1)
    buffer.begin_flush(1)
    expire(buffer, PATIENCE_S - 0.1)
    assert answers == []
    expire(buffer, PATIENCE_S + 1)
    assert answers == [UNKNOWN, UNKNOWN]
    expire(buffer, PATIENCE_S + 2)
    assert answers == [UNKNOWN, UNKNOWN, AWAY]
    assert (buffer.rows, buffer.waiting_rows, buffer.stats.given_back) == (10 + 11 + 13 + 14, 13 + 14, 12)
    buffer.requeue_in_flight()
    assert answers == [UNKNOWN, UNKNOWN, AWAY]
    assert buffer.stats.given_back == 10 + 11 + 12
    assert list(buffer.begin_flush(100)) == submissions[3:], (
        "who was told to send again must not be stored by us as well"
    )


def test_what_nobody_waits_for_stays_while_its_neighbours_expire() -> None:
    answers: list[WriteOutcome] = []
    patience = [math.inf, PATIENCE_S, math.inf, math.inf, PATIENCE_S, PATIENCE_S, math.inf]
    submissions = [submission(at=at, patience_s=each, answers=answers) for at, each in enumerate(patience)]
    buffer = filled(*submissions)
    buffer.begin_flush(2)
    expire(buffer, 4 + PATIENCE_S)
    assert Counter(answers) == {UNKNOWN: 1, AWAY: 1}
    buffer.requeue_in_flight()
    assert list(buffer.begin_flush(100)) == [submissions[place] for place in (0, 2, 3, 5, 6)]
    buffer.requeue_in_flight()
    expire(buffer, math.inf)
    assert Counter(answers) == {UNKNOWN: 1, AWAY: 6}
    assert (buffer.rows, buffer.size_bytes, buffer.stats.given_back) == (0, 0, 7)


def test_many_that_expire_at_once_are_not_each_looked_for_among_those_that_do_not() -> None:
    compared = 0

    class Compared(Submission):
        __hash__ = object.__hash__

        def __eq__(self, other: object) -> bool:
            nonlocal compared
            compared += 1
            return self is other

    patient = [Compared(WriteRequest(reading()), 1, ROW, 0, math.inf, lambda _: None) for _ in range(500)]
    others = [Compared(WriteRequest(reading()), 1, ROW, 0, PATIENCE_S, lambda _: None) for _ in range(500)]
    buffer = filled(*patient, *others)
    expire(buffer, PATIENCE_S)
    assert compared <= 1_000
    assert list(buffer.begin_flush(PLENTY)) == patient


def test_the_oldest_row_is_looked_for_in_flush_first() -> None:
    buffer = filled(*(submission(at=at) for at in range(4)))
    assert buffer.oldest_age_s(10) == 10
    flush = buffer.begin_flush(1)
    buffer.begin_flush(1)
    assert buffer.oldest_age_s(10) == 10
    buffer.reject(flush[0], BAD_ROW)
    assert buffer.oldest_age_s(10) == 9
    buffer.commit()
    buffer.commit()
    assert buffer.oldest_age_s(10) == 8
    expire(buffer, math.inf)
    assert buffer.oldest_age_s(10) == 0


@dataclass
class ParsedColumns:
    """The model's view of a submission."""

    submission: Submission
    key_name: str
    idempotency_key: str | None


class BufferAgainstModel(RuleBasedStateMachine):
    """Lists of numbers, a count of rows for each end, and what each sender should have been told."""

    @initialize(max_rows=st.integers(1, 20), max_bytes=st.integers(0, 60), share=st.integers(0, 60))
    def open(self, max_rows: int, max_bytes: int, share: int) -> None:
        self.buffer = Buffer(max_rows, max_bytes, share)
        self.max_rows, self.max_bytes, self.share = max_rows, max_bytes, share
        self.now = 0.0
        self.numbers = itertools.count()
        self.sent: dict[int, ParsedColumns] = {}
        self.reserved: Counter[str] = Counter()
        self.waiting: list[int] = []
        self.aside: list[int] = []
        self.blocked: set[int] = set()
        self.parked: list[int] = []
        self.flushes: list[list[int]] = []
        self.ends: Counter[str] = Counter()
        self.expected: dict[int, WriteOutcome] = {}
        self.told: defaultdict[int, list[WriteOutcome]] = defaultdict(list)

    @property
    def held(self) -> list[int]:
        return [*itertools.chain(*self.flushes), *self.waiting, *self.aside, *self.parked]

    def rows_of(self, numbers: list[int]) -> int:
        return sum(self.sent[number].submission.rows for number in numbers)

    def bytes_of_key(self, key_name: str) -> int:
        held = (self.sent[number] for number in self.held)
        return self.reserved[key_name] + sum(each.submission.size_bytes for each in held if each.key_name == key_name)

    def refusal(self, key_name: str, size_bytes: int) -> type[Exception] | None:
        if self.bytes_of_key(key_name) + size_bytes > self.share:
            return KeyOverShare
        if sum(map(self.bytes_of_key, "ab")) + size_bytes > self.max_bytes:
            return BufferFull
        return None

    def tell(self, number: int, answer: WriteOutcome) -> None:
        self.expected.setdefault(number, answer)

    def is_late(self, number: int) -> bool:
        return self.sent[number].submission.deadline <= self.now

    @rule(
        rows=st.integers(1, 6),
        size_bytes=st.integers(1, 12),
        key_name=st.sampled_from("ab"),
        idempotency_key=st.none() | st.sampled_from("xy"),
        is_awaited=st.booleans(),
        is_parked=st.sampled_from([False, False, True]),
    )
    def send(
        self,
        rows: int,
        size_bytes: int,
        key_name: str,
        idempotency_key: str | None,
        *,
        is_awaited: bool,
        is_parked: bool,
    ) -> None:
        number = next(self.numbers)
        sent = submission(
            rows=rows,
            size_bytes=size_bytes,
            at=self.now,
            patience_s=PATIENCE_S if is_awaited else math.inf,
            key_name=key_name,
            record=record(idempotency_key, key_name=key_name) if idempotency_key else None,
            answers=self.told[number],
        )
        full = BufferFull if self.rows_of(self.held) + rows > self.max_rows else None
        if refusal := full or self.refusal(key_name, size_bytes):
            with pytest.raises(refusal):
                self.buffer.add(sent, retry_after_s=lambda: 1, is_parked=is_parked)
        else:
            self.buffer.add(sent, retry_after_s=lambda: 1, is_parked=is_parked)
            self.sent[number] = ParsedColumns(sent, key_name, idempotency_key)
            (self.parked if is_parked else self.waiting).append(number)

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def unpark(self, data: st.DataObject) -> None:
        """Unpark a submission, even one that is not parked."""
        number = data.draw(st.sampled_from([*self.sent]))
        is_awaited = self.sent[number].submission.deadline < math.inf
        deadline = self.now + PATIENCE_S if is_awaited else math.inf
        self.buffer.unpark(self.sent[number].submission, self.now, deadline)
        if number in self.parked:
            self.parked.remove(number)
            self.waiting.append(number)

    def arrived_at(self, number: int) -> float:
        return self.sent[number].submission.arrived_at

    @rule(key_name=st.sampled_from("ab"), size_bytes=st.integers(1, 12))
    def reserve(self, key_name: str, size_bytes: int) -> None:
        if refusal := self.refusal(key_name, size_bytes):
            with pytest.raises(refusal):
                self.buffer.reserve(key_name, size_bytes, retry_after_s=lambda: 1)
        else:
            self.buffer.reserve(key_name, size_bytes, retry_after_s=lambda: 1)
            self.reserved[key_name] += size_bytes

    @rule(key_name=st.sampled_from("ab"), data=st.data())
    def give_room_back(self, key_name: str, data: st.DataObject) -> None:
        size_bytes = data.draw(st.integers(0, self.reserved[key_name]))
        self.buffer.reserve(key_name, -size_bytes, retry_after_s=lambda: 1)
        self.reserved[key_name] -= size_bytes

    @precondition(lambda self: len(self.flushes) < 2)
    @rule(max_rows=st.integers(1, 10))
    def begin_flush(self, max_rows: int) -> None:
        flush = self.front(self.waiting, max_rows)
        assert list(self.buffer.begin_flush(max_rows)) == [self.sent[number].submission for number in flush]
        del self.waiting[: len(flush)]
        if flush:
            self.flushes.append(flush)

    @precondition(lambda self: len(self.flushes) < 2)
    @rule(max_rows=st.integers(1, 10), least_rows=st.sampled_from([1, 1, 3]))
    def begin_flush_aside(self, max_rows: int, least_rows: int) -> None:
        eligible = [number for number in self.aside if self.sent[number].submission.rows >= least_rows]
        flush = self.front(eligible, max_rows)
        taken = self.buffer.begin_flush_aside(max_rows, lambda submission: submission.rows >= least_rows)
        assert list(taken) == [self.sent[number].submission for number in flush]
        self.aside = [number for number in self.aside if number not in flush]
        assert list(self.buffer.aside) == [self.sent[number].submission for number in self.aside]
        if flush:
            self.flushes.append(flush)

    def front(self, numbers: list[int], max_rows: int) -> list[int]:
        flush: list[int] = []
        keys = set()
        for number in numbers:
            sent = self.sent[number]
            if flush and self.rows_of([*flush, number]) > max_rows:
                break
            if sent.idempotency_key is not None and (sent.key_name, sent.idempotency_key) in keys:
                break
            keys.add((sent.key_name, sent.idempotency_key))
            flush.append(number)
        return flush

    @precondition(lambda self: self.flushes)
    @rule(data=st.data())
    def commit(self, data: st.DataObject) -> None:
        flush = self.flushes.pop(0)
        refused = data.draw(st.integers(0, self.rows_of(flush)))
        self.buffer.commit(refused)
        for number in flush:
            self.sent[number].submission.answer(RECEIPT)
            self.tell(number, RECEIPT)
        self.ends["committed"] += self.rows_of(flush) - refused
        self.ends["rejected"] += refused

    @precondition(lambda self: self.flushes and self.flushes[0])
    @rule(data=st.data())
    def reject(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(self.flushes[0]))
        self.buffer.reject(self.sent[number].submission, BAD_ROW)
        self.tell(number, BAD_ROW)
        self.flushes[0].remove(number)
        self.ends["rejected"] += self.rows_of([number])

    @rule()
    def requeue_in_flight(self) -> None:
        self.buffer.requeue_in_flight()
        flown = [*itertools.chain(*self.flushes)]
        unanswered = [number for number in flown if number not in self.expected]
        self.ends["given_back"] += self.rows_of(flown) - self.rows_of(unanswered)
        self.flushes = []
        self.queue([*unanswered, *self.aside, *self.waiting])

    @rule(key_names=st.sets(st.sampled_from("ab")))
    def sort_out(self, key_names: set[str]) -> None:
        self.buffer.sort_out(lambda submission: submission.request.content.source.key_name in key_names)
        held = [*self.aside, *self.waiting]
        self.blocked -= set(held)
        self.blocked |= {number for number in held if self.sent[number].key_name in key_names}
        self.queue(held)

    def queue(self, numbers: list[int]) -> None:
        numbers = sorted(numbers, key=lambda number: self.sent[number].submission.arrived_at)
        self.aside = [number for number in numbers if number in self.blocked]
        self.waiting = [number for number in numbers if number not in self.blocked]

    @rule(seconds=st.integers(0, 4))
    def time_passes(self, seconds: int) -> None:
        self.now += seconds
        self.expire_those([number for number in self.held if self.is_late(number)], self.now)

    @rule()
    def expire_all(self) -> None:
        self.expire_those(self.held, math.inf)

    def expire_those(self, late: list[int], now: float) -> None:
        expire(self.buffer, now)
        for number in late:
            is_away = number in [*self.waiting, *self.parked]
            self.tell(number, AWAY if is_away else BLOCKED if number in self.aside else UNKNOWN)
        queues = (self.waiting, self.aside, self.parked)
        self.ends["given_back"] += self.rows_of([n for n in late if any(n in queue for queue in queues)])
        for queue in queues:
            queue[:] = [number for number in queue if number not in late]

    @invariant()
    def every_accepted_row_is_held_or_ended_in_one_way(self) -> None:
        stats = self.buffer.stats
        assert stats.accepted == stats.committed + stats.rejected + stats.given_back + self.buffer.rows
        assert stats.accepted == self.rows_of([*self.sent])
        ends = (self.ends["committed"], self.ends["rejected"], self.ends["given_back"])
        assert (stats.committed, stats.rejected, stats.given_back) == ends

    @invariant()
    def the_bounds_hold(self) -> None:
        assert self.buffer.rows == self.rows_of(self.held) <= self.max_rows
        assert self.buffer.waiting_rows == self.rows_of(self.waiting)
        assert self.buffer.size_bytes == sum(map(self.bytes_of_key, "ab")) <= self.max_bytes
        assert max(map(self.bytes_of_key, "ab")) <= self.share

    @invariant()
    def everybody_is_told_once_and_what_is_true(self) -> None:
        assert {number: answers for number, answers in self.told.items() if answers} == {
            number: [answer] for number, answer in self.expected.items()
        }

    @invariant()
    def the_oldest_is_the_first(self) -> None:
        first = min(map(self.arrived_at, self.held), default=self.now)
        assert self.buffer.oldest_age_s(self.now) == self.now - first


TestBufferAgainstModel = BufferAgainstModel.TestCase
TestBufferAgainstModel.settings = settings(examples(200), stateful_step_count=40)
