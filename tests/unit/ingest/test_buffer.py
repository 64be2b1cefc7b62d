"""The buffer: its bounds, its order and its sums; and whatever is done to it, against a model of two lists."""

import itertools
import math
from collections import Counter, defaultdict

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from app.errors import BufferFull, DatabaseAway, OutcomeUnknown, RejectedByDatabase
from app.ingest.batch import READING_SIZE_BYTES as ROW
from app.ingest.buffer import Answer, Buffer, Parcel
from tests.unit.samples import reading, receipt

AWAY = DatabaseAway("away")
UNKNOWN = OutcomeUnknown("unknown")
BAD_ROW = RejectedByDatabase("bad row")
RECEIPT = receipt()
PATIENCE_S = 3.0


def filled(rows: int, *, max_rows: int = 10, answers: list[Answer] | None = None) -> tuple[Buffer, list[Parcel]]:
    """A buffer with parcels that arrived at 0 s, 1 s, …, each to be answered within PATIENCE_S."""
    buffer = Buffer(max_rows, max_bytes=10 * ROW)
    heard: list[Answer] = [] if answers is None else answers
    parcels = [Parcel(reading(), at, at + PATIENCE_S, heard.append) for at in range(rows)]
    for parcel in parcels:
        buffer.add(parcel, retry_after_s=1)
    return buffer, parcels


@pytest.mark.parametrize(
    ("max_rows", "max_bytes", "fit"),
    [
        (3, 100 * ROW, 3),
        (100, 3 * ROW, 3),
        (100, 3 * ROW - 1, 2),
        (100, 4 * ROW - 1, 3),
        (1, ROW, 1),
        (1, ROW - 1, 0),
    ],
)
@pytest.mark.parametrize("in_flight", [0, 1, 100])
def test_rows_and_bytes_are_bounded_those_in_flight_included(
    max_rows: int, max_bytes: int, fit: int, in_flight: int
) -> None:
    buffer = Buffer(max_rows, max_bytes)
    for _ in range(fit):
        buffer.add(Parcel(reading(), 0, 1, lambda _: None), retry_after_s=1)
    buffer.begin(in_flight)
    with pytest.raises(BufferFull) as refusal:
        buffer.add(Parcel(reading(), 0, 1, lambda _: None), retry_after_s=7)
    assert refusal.value.retry_after_s == 7
    assert (buffer.rows, buffer.size_bytes, buffer.tally.accepted) == (fit, fit * ROW, fit)


def test_a_kept_parcel_keeps_its_place_and_always_fits() -> None:
    buffer, parcels = filled(4, max_rows=4)
    buffer.begin(3)
    buffer.accept(1)
    late = Parcel(reading(), 9, 9 + PATIENCE_S, lambda _: None)
    buffer.add(late, retry_after_s=1)
    buffer.keep()
    assert buffer.rows == 4
    assert list(buffer.begin(10)) == [*parcels[1:], late]


def test_a_flight_takes_no_more_than_it_is_given_and_only_one_flies() -> None:
    buffer, parcels = filled(3)
    assert list(buffer.begin(2)) == parcels[:2]
    assert (buffer.rows, buffer.waiting_rows) == (3, 1)
    with pytest.raises(RuntimeError, match="not ended"):
        buffer.begin(1)


def test_a_rejected_parcel_is_told_why_and_leaves_its_neighbours() -> None:
    answers: list[Answer] = []
    buffer, parcels = filled(3, answers=answers)
    buffer.begin(3)
    buffer.accept(1)
    buffer.reject(BAD_ROW)
    buffer.keep()
    assert answers == [BAD_ROW]
    assert list(buffer.begin(3)) == parcels[2:]


def test_at_its_deadline_what_waits_is_given_back_and_what_flies_is_unknown() -> None:
    answers: list[Answer] = []
    buffer, parcels = filled(4, answers=answers)
    buffer.begin(1)
    buffer.expire(PATIENCE_S - 0.1, lambda: AWAY, lambda: UNKNOWN)
    assert answers == []
    buffer.expire(PATIENCE_S, lambda: AWAY, lambda: UNKNOWN)
    assert answers == [UNKNOWN]
    buffer.expire(PATIENCE_S + 1, lambda: AWAY, lambda: UNKNOWN)
    assert answers == [UNKNOWN, AWAY]
    assert (buffer.rows, buffer.waiting_rows, buffer.tally.given_back) == (3, 2, 1)
    buffer.keep()
    assert answers == [UNKNOWN, AWAY]
    assert list(buffer.begin(9)) == parcels[2:], "who was told to send again must not be stored by us as well"


def test_the_oldest_row_is_looked_for_in_flight_first() -> None:
    buffer, _ = filled(2)
    assert buffer.oldest_age_s(10) == 10
    buffer.begin(1)
    assert buffer.oldest_age_s(10) == 10
    buffer.accept(1)
    assert buffer.oldest_age_s(10) == 9
    buffer.expire(math.inf, lambda: AWAY, lambda: UNKNOWN)
    assert buffer.oldest_age_s(10) == 0


class BufferAgainstModel(RuleBasedStateMachine):
    """Two lists of numbers, a count for each end, and what each sender should have been told."""

    @initialize(max_rows=st.integers(1, 6), max_bytes=st.integers(0, 7 * ROW))
    def open(self, max_rows: int, max_bytes: int) -> None:
        self.buffer = Buffer(max_rows, max_bytes)
        self.room = min(max_rows, max_bytes // ROW)
        self.now = 0.0
        self.numbers = itertools.count()
        self.arrivals: dict[int, float] = {}
        self.waiting: list[int] = []
        self.flying: list[int] = []
        self.ends: Counter[str] = Counter()
        self.expected: dict[int, Answer] = {}
        self.told: defaultdict[int, list[Answer]] = defaultdict(list)

    def tell(self, number: int, answer: Answer) -> None:
        self.expected.setdefault(number, answer)

    def is_late(self, number: int) -> bool:
        return self.arrivals[number] + PATIENCE_S <= self.now

    @rule()
    def send(self) -> None:
        number = next(self.numbers)
        parcel = Parcel(reading(str(number)), self.now, self.now + PATIENCE_S, self.told[number].append)
        if len(self.waiting) + len(self.flying) < self.room:
            self.buffer.add(parcel, retry_after_s=1)
            self.arrivals[number] = self.now
            self.waiting.append(number)
        else:
            with pytest.raises(BufferFull):
                self.buffer.add(parcel, retry_after_s=1)

    @precondition(lambda self: not self.flying)
    @rule(max_rows=st.integers(1, 4))
    def begin(self, max_rows: int) -> None:
        self.parcels = self.buffer.begin(max_rows)
        self.flying, self.waiting = self.waiting[:max_rows], self.waiting[max_rows:]
        assert [int(parcel.reading.sensor) for parcel in self.parcels] == self.flying

    @precondition(lambda self: self.flying)
    @rule(data=st.data())
    def accept(self, data: st.DataObject) -> None:
        count = data.draw(st.integers(0, len(self.flying)))
        flown = len(self.parcels) - len(self.flying)
        self.buffer.accept(count)
        for parcel, number in zip(self.parcels[flown : flown + count], self.flying[:count], strict=True):
            parcel.answer(RECEIPT)
            self.tell(number, RECEIPT)
        del self.flying[:count]
        self.ends["committed"] += count

    @precondition(lambda self: self.flying)
    @rule()
    def reject(self) -> None:
        self.buffer.reject(BAD_ROW)
        self.tell(self.flying.pop(0), BAD_ROW)
        self.ends["rejected"] += 1

    @rule()
    def keep(self) -> None:
        self.buffer.keep()
        unanswered = [number for number in self.flying if number not in self.expected]
        self.ends["given_back"] += len(self.flying) - len(unanswered)
        self.waiting, self.flying = unanswered + self.waiting, []

    @rule(seconds=st.integers(0, 4))
    def time_passes(self, seconds: int) -> None:
        self.now += seconds
        self.buffer.expire(self.now, lambda: AWAY, lambda: UNKNOWN)
        for number in filter(self.is_late, self.waiting):
            self.tell(number, AWAY)
            self.ends["given_back"] += 1
        for number in filter(self.is_late, self.flying):
            self.tell(number, UNKNOWN)
        self.waiting = [number for number in self.waiting if not self.is_late(number)]

    @rule()
    def expire_all(self) -> None:
        self.buffer.expire(math.inf, lambda: AWAY, lambda: UNKNOWN)
        for number in self.flying:
            self.tell(number, UNKNOWN)
        for number in self.waiting:
            self.tell(number, AWAY)
        self.ends["given_back"] += len(self.waiting)
        self.waiting = []

    @invariant()
    def every_accepted_row_is_held_or_ended_in_one_way(self) -> None:
        tally = self.buffer.tally
        assert tally.accepted == tally.committed + tally.rejected + tally.given_back + self.buffer.rows
        assert tally.accepted == len(self.arrivals)
        ends = (self.ends["committed"], self.ends["rejected"], self.ends["given_back"])
        assert (tally.committed, tally.rejected, tally.given_back) == ends

    @invariant()
    def the_bounds_hold(self) -> None:
        assert self.buffer.rows == len(self.waiting) + len(self.flying) <= self.room
        assert self.buffer.waiting_rows == len(self.waiting)
        assert self.buffer.size_bytes == self.buffer.rows * ROW

    @invariant()
    def everybody_is_told_once_and_what_is_true(self) -> None:
        assert {number: answers for number, answers in self.told.items() if answers} == {
            number: [answer] for number, answer in self.expected.items()
        }

    @invariant()
    def the_oldest_is_the_first(self) -> None:
        held = self.flying + self.waiting
        assert self.buffer.oldest_age_s(self.now) == (self.now - self.arrivals[held[0]] if held else 0)


TestBufferAgainstModel = BufferAgainstModel.TestCase
TestBufferAgainstModel.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
