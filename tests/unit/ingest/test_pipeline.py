"""The pipeline with a database that the test controls, in virtual time."""

import asyncio
import math
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import (
    BufferFull,
    DatabaseLocked,
    DatabaseUnavailable,
    IdempotencyConflict,
    KeyOverShare,
    NotStored,
    OutcomeUnknown,
    RejectedByDatabase,
    ShuttingDown,
)
from app.ingest import pipeline
from app.ingest.batch import READING_SIZE_BYTES, Batch, Content, Reading
from app.ingest.blocked import Blocked, Span
from app.ingest.buffer import Buffer
from app.ingest.decode.columns import Decoded
from app.ingest.idempotency import (
    DuplicateRequest,
    IdempotencyRecord,
    Records,
    StoredResult,
    StoredResults,
)
from app.ingest.pipeline import (
    ENOUGH_ROWS,
    FIRST_BACKOFF_S,
    LONGEST_BACKOFF_S,
    LONGEST_RETRY_AFTER_S,
    LONGEST_WAIT_FOR_BATCHES_S,
    PREPARE_AHEAD_ROWS,
    PUBLISH_ROWS,
    RETRY_BLOCKED_S,
    SWEEP_INTERVAL_S,
    Pipeline,
)
from app.ingest.request import WriteRequest
from app.ingest.result import BatchResult, CommittedReading, WriteOutcome
from tests.support.examples import examples
from tests.support.samples import SOURCE, T0_US, batch_of, decoded_of, reading, record

COMMIT_TIMEOUT_S = 4.0
RECOVERY_S = 2 * LONGEST_BACKOFF_S
LONGEST_TEST_S = 600.0
ROUND_TRIP_S = 0.001
LOCK_TIMEOUT_S = 1.0
LATE_US = T0_US - 86_400_000_000
BAD = "bad"
"""PostgreSQL refuses sensors whose names begin like this."""

Answered = asyncio.Future[WriteOutcome]


def rows_of(contents: Sequence[Content]) -> list[Reading]:
    return [row for each in contents for row in ([each] if isinstance(each, Reading) else each.readings(0, each.rows))]


def sensors_of(contents: Sequence[Content]) -> list[str]:
    return [row.sensor for row in rows_of(contents)]


def refused_of(content: Content) -> dict[int, str]:
    """Return the rows of a content that the database refuses."""
    rows = rows_of([content])
    bad = [place for place, row in enumerate(rows) if row.sensor.startswith(BAD)]
    all_or_nothing = isinstance(content, Batch) and content.is_atomic
    return dict.fromkeys(range(len(rows)) if bad and all_or_nothing else bad, "PostgreSQL would not take it")


POISON = "яд"


@dataclass(slots=True)
class FakeFlush:
    """The submissions that the database was given to prepare."""

    first_id: int
    contents: Sequence[Content]
    connection: int
    refused: dict[int, str] = field(default_factory=dict)


class FakeStore:
    """A database that can be unavailable, hang, refuse rows, or lose its answer to COMMIT."""

    def __init__(self) -> None:
        self.away = False
        self.gains_by_large_flushes = False
        self.speaking = asyncio.Event()
        """Cleared, a write gets no answer."""
        self.speaking.set()
        self.preparing = asyncio.Event()
        """Cleared, no preparation comes to an end."""
        self.preparing.set()
        self.locked: list[Span] = []
        """Times that another session keeps locked."""
        self.locked_keys: set[str] = set()
        """Keys that a transaction has which does not end."""
        self.are_names_locked = False
        """Whether no name can be added, for another session has locked their tables."""
        self.names: set[str] = set()
        """Those that have an id: of a sensor, the last letter is enough."""
        self.lost_answers: deque[bool] = deque()
        """The next commits that lose their answer: whether each commits."""
        self.ledger: dict[int, FakeFlush] = {}
        """The committed flushes by their first ids, in the order of commits."""
        self.records: dict[tuple[str, str], StoredResult] = {}
        self.prepared: list[list[str]] = []
        self.attempts: list[list[str]] = []
        self.unprepared = 0
        """Preparations that were begun and given up."""
        self.known: set[str] = set()
        """Sensors that a batch may bring without being parked."""
        self.learned = 0
        """How often some were to be learnt."""
        self.learning = asyncio.Event()
        """Cleared, that comes to no end."""
        self.learning.set()
        self.memory_rows = math.inf
        """So many rows are prepared, or written, at once; more are a MemoryError."""
        self.chokes_in = ""
        """The steps, of learn_names, prepare and write, that fail over a sensor called as POISON is."""
        self._next_id = 1
        self._connection = 0

    @property
    def ids(self) -> list[tuple[str, int]]:
        """Return the sensor and the id of each stored row, in the order of commits, and in a flush by id."""
        return [
            (row.sensor, flush.first_id + place)
            for flush in self.ledger.values()
            for place, row in enumerate(rows_of(flush.contents))
            if place not in flush.refused
        ]

    @property
    def stored(self) -> list[str]:
        return [sensor for sensor, _ in self.ids]

    async def connect(self) -> None:
        await asyncio.sleep(ROUND_TRIP_S)
        if self.away:
            self._connection += 1
            raise DatabaseUnavailable("the plug is pulled")

    def new_names(self, batch: Batch) -> int:
        return len(set(batch.sensors.to_pylist()) - self.known)

    def has_new_names(self, content: Content) -> bool:
        return any(sensor[-1] not in self.names for sensor in sensors_of([content]))

    async def learn_names(self, batch: Batch) -> None:
        await self.learning.wait()
        self._choke("learn_names", [batch])
        self.learned += 1
        if self.away:
            raise DatabaseUnavailable("the plug is pulled")
        self.known |= set(batch.sensors.to_pylist())

    async def prepare(self, contents: Sequence[Content], *, was_blocked: bool) -> FakeFlush:
        connection = self._connection
        self.prepared.append(sensors_of(contents))
        self.unprepared += 1
        await self.preparing.wait()
        await asyncio.sleep(ROUND_TRIP_S)
        self.unprepared -= 1
        self._choke("prepare", contents)
        if self.away:
            raise DatabaseUnavailable("the plug is pulled")
        if self.are_names_locked and any(map(self.has_new_names, contents)):
            await asyncio.sleep(0 if was_blocked else LOCK_TIMEOUT_S)
            raise Blocked((), of_new_names=True)
        self.names |= {sensor[-1] for sensor in sensors_of(contents)}
        first_id = self._next_id
        self._next_id += sum(each.rows for each in contents)
        return FakeFlush(first_id, contents, connection)

    async def write(self, flush: FakeFlush, records: Callable[[], Records], *, was_blocked: bool) -> None:
        if flush.connection != self._connection:
            raise DatabaseUnavailable("prepared for another connection")
        self.attempts.append(sensors_of(flush.contents))
        await self.speaking.wait()
        self._choke("write", flush.contents)
        if not was_blocked and self._is_locked(flush):
            await asyncio.sleep(LOCK_TIMEOUT_S)
        if spans := [span for span in self.locked if any(each.is_any_between(*span) for each in flush.contents)]:
            raise Blocked(spans)
        place = 0
        for content in flush.contents:
            flush.refused |= {place + row: why for row, why in refused_of(content).items()}
            place += content.rows
        new = records()
        if names := [each.name for each in new if each.identity.key in self.locked_keys]:
            raise Blocked((), names)
        if stored := {each.name: self.records[each.name] for each in new if each.name in self.records}:
            raise DuplicateRequest(stored)
        is_lost = bool(self.lost_answers)
        if not is_lost:
            await self.connect()
        if not is_lost or self.lost_answers.popleft():
            self.ledger[flush.first_id] = flush
            self.records |= {
                each.name: StoredResult(each.identity.content_hash, result) for each, result in new.items()
            }
        if is_lost:
            self._connection += 1
            raise OutcomeUnknown("the connection died during COMMIT")

    def _is_locked(self, flush: FakeFlush) -> bool:
        return any(each.is_any_between(*span) for each in flush.contents for span in self.locked)

    def _choke(self, step: str, contents: Sequence[Content]) -> None:
        if len(sensors_of(contents)) > self.memory_rows:
            raise MemoryError
        if step in self.chokes_in and POISON in sensors_of(contents):
            POISON.encode("ascii")

    async def was_committed(self, flush: FakeFlush) -> bool:
        await self.connect()
        return flush.first_id in self.ledger


class FakeAudience:
    """A publisher that gets every receipt, or leaves the latest to another."""

    def __init__(self, on_commit: Callable[[Sequence[CommittedReading]], None] | None) -> None:
        self.is_listening = True
        self._on_commit = on_commit
        self.published: list[CommittedReading] = []
        self.turns: list[int] = []
        """How many receipts came at once."""
        self.remembered: list[CommittedReading] = []

    def publish(self, receipts: Sequence[CommittedReading]) -> None:
        assert receipts
        self.turns.append(len(receipts))
        self.published += receipts
        if self._on_commit is not None:
            self._on_commit(receipts)

    def remember(self, receipt: CommittedReading) -> None:
        self.remembered.append(receipt)


def receipt_of(reading: Reading, reading_id: int) -> CommittedReading:
    return CommittedReading(reading_id, reading.time_us, reading.sensor, b"id %d" % reading_id)


def batch(*sensors: str, is_atomic: bool = False) -> Batch:
    return batch_of([reading(sensor) for sensor in sensors], is_atomic=is_atomic)


class Plant:
    """A pipeline, its database, and all that comes out of it."""

    def __init__(
        self,
        *,
        max_rows: int = 100_000,
        max_bytes: int = 1 << 30,
        max_bytes_per_key: int = 1 << 30,
        flush_max_rows: int = 100,
        encode: Callable[[Reading, int], CommittedReading] = receipt_of,
        on_commit: Callable[[Sequence[CommittedReading]], None] | None = None,
        on_flush: Callable[[int, float], None] | None = None,
    ) -> None:
        self.store = FakeStore()
        self.publisher = FakeAudience(on_commit)
        self.published = self.publisher.published
        self.flushes: list[tuple[int, float]] = []
        self.pipeline = Pipeline(
            buffer=Buffer(max_rows, max_bytes, max_bytes_per_key),
            store=self.store,
            encode=encode,
            publisher=self.publisher,
            on_flush=on_flush or (lambda *flush: self.flushes.append(flush)),
            clock=now,
            commit_timeout_s=COMMIT_TIMEOUT_S,
            flush_max_rows=flush_max_rows,
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run the pipeline until the block ends. The sums hold all the time, and nothing may be left."""
        async with asyncio.timeout(LONGEST_TEST_S), asyncio.TaskGroup() as tasks:
            work = tasks.create_task(self.pipeline.run())
            scraper = tasks.create_task(self._scrape_for_ever())
            await self.pipeline.opened.wait()
            yield
            assert self.pipeline.buffer.rows == self.pipeline.buffer.size_bytes == 0
            scraper.cancel()
            work.cancel()

    async def _scrape_for_ever(self) -> None:
        stats = self.pipeline.buffer.stats
        while True:
            ended = stats.committed + stats.rejected + stats.given_back
            assert stats.accepted == ended + self.pipeline.buffer.rows
            await asyncio.sleep(SWEEP_INTERVAL_S / 10)

    def send(
        self,
        what: str | Content,
        *,
        record: IdempotencyRecord | None = None,
        is_awaited: bool = True,
        decoded: Decoded | None = None,
    ) -> Answered:
        """Submit a reading of a sensor, or a given content. A second answer to it would raise in the pipeline."""
        answered: Answered = asyncio.get_running_loop().create_future()
        content = reading(what) if isinstance(what, str) else what
        self.pipeline.submit(WriteRequest(content, record, is_awaited, decoded), answered.set_result)
        return answered

    async def send_into_silence(self, *sensors: str) -> list[Answered]:
        """Let the database hang, and let one flush take these readings to it."""
        self.store.speaking.clear()
        answers = [self.send(sensor) for sensor in sensors]
        await asyncio.sleep(0.1)
        assert self.store.attempts[-1] == list(sensors)
        return answers


@contextmanager
def worth_preparing(rows: int) -> Iterator[None]:
    """While it lasts, so many waiting rows are prepared ahead."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "PREPARE_AHEAD_ROWS", rows)
        yield


def now() -> float:
    return asyncio.get_running_loop().time()


async def test_a_receipt_comes_only_after_the_commit() -> None:
    plant = Plant()
    async with plant.running():
        [answer] = await plant.send_into_silence("a")
        await asyncio.sleep(COMMIT_TIMEOUT_S / 2)
        assert not answer.done()
        assert plant.published == []
        plant.store.speaking.set()
        assert await answer == receipt_of(reading("a"), 1)
        assert plant.store.ids == [("a", 1)]
        assert plant.published == [answer.result()]


async def test_readings_sent_at_once_share_a_flush() -> None:
    plant = Plant()
    async with plant.running():
        await asyncio.gather(*map(plant.send, "abc"))
        assert plant.store.attempts == [["a", "b", "c"]]


async def test_readings_that_come_within_a_few_turns_of_the_loop_share_a_flush() -> None:
    async def send_late(turns: int) -> WriteOutcome:
        for _ in range(turns):
            await asyncio.sleep(0)
        return await plant.send(str(turns))

    plant = Plant()
    async with plant.running():
        await asyncio.gather(*map(send_late, range(6)))
        assert plant.store.attempts == [["0", "1", "2", "3", "4", "5"]]


async def test_all_that_comes_during_a_flush_goes_along_with_the_next() -> None:
    plant = Plant()
    async with plant.running():
        answers = await plant.send_into_silence("a")
        for sensor in "bcd":
            answers.append(plant.send(sensor))
            await asyncio.sleep(0.1)
        plant.store.speaking.set()
        await asyncio.gather(*answers)
        assert plant.store.attempts == [["a"], ["b", "c", "d"]]


async def test_a_flush_is_no_larger_than_its_bound() -> None:
    plant = Plant(flush_max_rows=2)
    async with plant.running():
        await asyncio.gather(*map(plant.send, "abcde"))
        assert plant.store.attempts == [["a", "b"], ["c", "d"], ["e"]]


async def test_a_flush_is_reported_with_its_rows_and_duration() -> None:
    plant = Plant()
    async with plant.running():
        answers = await plant.send_into_silence("a", "b")
        await asyncio.sleep(2)
        plant.store.speaking.set()
        await asyncio.gather(*answers)
        [(rows, duration_s)] = plant.flushes
        assert rows == 2
        assert duration_s == pytest.approx(2.1, abs=0.01)


async def test_receipts_are_published_in_the_order_of_commits() -> None:
    plant = Plant(flush_max_rows=3)
    async with plant.running():
        answers = await asyncio.gather(*map(plant.send, "abcdefgh"))
        assert plant.published == list(answers)
        assert [receipt.sensor for receipt in plant.published] == plant.store.stored == list("abcdefgh")


@given(bad=st.sets(st.integers(0, 19)))
async def test_a_bad_row_is_rejected_alone_and_its_neighbours_are_stored_once_in_order(bad: set[int]) -> None:
    plant = Plant()
    sensors = [f"{BAD if place in bad else 'good'} {place}" for place in range(20)]
    good = [sensor for sensor in sensors if not sensor.startswith(BAD)]
    async with plant.running():
        answers = await asyncio.gather(*map(plant.send, sensors))
        assert plant.store.stored == good
        assert [receipt.sensor for receipt in plant.published] == good
        assert [isinstance(answer, RejectedByDatabase) for answer in answers] == [place in bad for place in range(20)]
        assert plant.pipeline.buffer.stats.rejected == len(bad)


async def test_a_short_absence_is_ridden_out() -> None:
    plant = Plant()
    async with plant.running():
        plant.store.away = True
        answers = [plant.send("a"), plant.send("b")]
        await asyncio.sleep(COMMIT_TIMEOUT_S / 4)
        plant.store.away = False
        assert [type(answer) for answer in await asyncio.gather(*answers)] == [CommittedReading, CommittedReading]
        assert plant.store.stored == ["a", "b"]
        assert len(plant.store.ledger) == 1


async def test_a_connection_that_died_while_idle_is_nobodys_trouble() -> None:
    """After the first failure a flush is retried at once, without a pause, and no sender is refused meanwhile."""
    plant = Plant()
    async with plant.running():
        plant.store.away = True
        sent_at = now()
        answer = plant.send("a")
        await asyncio.sleep(1.5 * ROUND_TRIP_S)
        plant.store.away = False
        assert isinstance(await answer, CommittedReading)
        assert 3 * ROUND_TRIP_S < now() - sent_at < FIRST_BACKOFF_S


async def test_a_database_that_answers_but_stores_nothing_is_not_hammered() -> None:
    """A database that answers but stores nothing, such as with a full disk, is retried with pauses."""
    plant = Plant()
    async with plant.running():
        plant.store.lost_answers.extend(1_000 * [False])
        assert isinstance(await plant.send("a"), DatabaseUnavailable)
        assert 3 <= len(plant.store.attempts) <= 10


async def test_every_flush_that_does_not_commit_is_counted() -> None:
    plant = Plant()
    async with plant.running():
        plant.store.lost_answers.extend([False, False, True])
        assert isinstance(await plant.send("a"), CommittedReading)
        assert isinstance(await plant.send("b"), CommittedReading)
        assert plant.pipeline.failed_flushes == 2


async def test_while_the_database_is_away_readings_are_refused_and_then_taken_again() -> None:
    plant = Plant()
    async with plant.running():
        plant.store.away = True
        sent_at = now()
        answer = plant.send("waits in vain")
        await asyncio.sleep(COMMIT_TIMEOUT_S / 2)
        with pytest.raises(DatabaseUnavailable, match="the database is unavailable") as refusal:
            plant.send("refused")
        assert refusal.value.retry_after_s == LONGEST_BACKOFF_S
        assert plant.pipeline.rejection_reason == "the plug is pulled"
        assert isinstance(await answer, DatabaseUnavailable)
        assert COMMIT_TIMEOUT_S <= now() - sent_at <= COMMIT_TIMEOUT_S + SWEEP_INTERVAL_S
        plant.store.away = False
        await asyncio.sleep(RECOVERY_S)
        assert plant.pipeline.rejection_reason is None
        assert isinstance(await plant.send("taken"), CommittedReading)
        assert plant.store.stored == ["taken"]


async def test_nothing_is_taken_before_the_database_has_been_reached() -> None:
    plant = Plant()
    plant.store.away = True
    with pytest.raises(DatabaseUnavailable):
        plant.send("before the start")
    work = asyncio.create_task(plant.pipeline.run())
    await asyncio.sleep(60)
    with pytest.raises(DatabaseUnavailable):
        plant.send("too early")
    assert not plant.pipeline.opened.is_set()
    plant.store.away = False
    await asyncio.sleep(RECOVERY_S)
    assert isinstance(await plant.send("in time"), CommittedReading)
    work.cancel()


@pytest.mark.parametrize("committed", [True, False])
async def test_after_a_lost_commit_the_ledger_tells_whether_to_write_again(committed: bool) -> None:
    plant = Plant()
    async with plant.running():
        plant.store.lost_answers.append(committed)
        answers = await asyncio.gather(plant.send("a"), plant.send("b"))
        assert plant.store.stored == ["a", "b"]
        assert plant.store.attempts == [["a", "b"]] * (1 if committed else 2)
        assert plant.published == list(answers)
        assert [receipt.id for receipt in plant.published] == ([1, 2] if committed else [3, 4])


@pytest.mark.parametrize("committed", [True, False])
async def test_what_is_unknown_at_the_deadline_is_told_so_and_not_written_again(committed: bool) -> None:
    """A submission that is unknown at the deadline is not written again, but subscribers see it if it committed."""
    plant = Plant()
    async with plant.running():
        plant.store.lost_answers.append(committed)
        [answer] = await plant.send_into_silence("a")
        plant.store.away = True
        plant.store.speaking.set()
        assert isinstance(await answer, OutcomeUnknown)
        assert COMMIT_TIMEOUT_S <= now() <= COMMIT_TIMEOUT_S + 2 * SWEEP_INTERVAL_S
        plant.store.away = False
        await asyncio.sleep(RECOVERY_S)
        stored = ["a"] if committed else []
        assert plant.store.attempts == [["a"]]
        assert plant.store.stored == [receipt.sensor for receipt in plant.published] == stored
        stats = plant.pipeline.buffer.stats
        assert (stats.committed, stats.given_back) == (len(stored), 1 - len(stored))


async def test_only_those_who_can_still_be_answered_are_written_again() -> None:
    plant = Plant()
    async with plant.running():
        [first] = await plant.send_into_silence("first")
        early = plant.send("early")
        await asyncio.sleep(COMMIT_TIMEOUT_S - 1)
        late = plant.send("late")
        plant.store.speaking.set()
        await first
        plant.store.speaking.clear()
        assert isinstance(await early, OutcomeUnknown)
        plant.store.lost_answers.append(False)
        plant.store.speaking.set()
        assert isinstance(await late, CommittedReading)
        assert plant.store.attempts == [["first"], ["early", "late"], ["late"]]


@pytest.mark.parametrize("turns", range(12))
async def test_a_reading_that_expires_on_its_way_into_a_flush_does_not_stop_the_flusher(turns: int) -> None:
    """A reading that expires on its way into a flush, after a pause of the process, does not stop the flusher."""
    plant = Plant()
    async with plant.running():
        answer = plant.send("a")
        for _ in range(turns):
            await asyncio.sleep(0)
        plant.pipeline.buffer.expire(
            math.inf, lambda: DatabaseUnavailable("too late"), lambda: OutcomeUnknown("too late")
        )
        await asyncio.sleep(1)
        assert not isinstance(await answer, CommittedReading)
        assert isinstance(await plant.send("b"), CommittedReading)


@pytest.mark.parametrize(("flush_duration_s", "retry_after_s"), [(0, 1), (0.5, 51), (3, LONGEST_RETRY_AFTER_S)])
async def test_a_full_buffer_refuses_and_says_in_whole_seconds_when_to_come_back(
    flush_duration_s: float, retry_after_s: int
) -> None:
    plant = Plant(max_rows=20)
    async with plant.running():
        plant.store.speaking.clear()
        measured = plant.send("measured")
        await asyncio.sleep(flush_duration_s)
        plant.store.speaking.set()
        await measured
        plant.store.speaking.clear()
        answers = [plant.send(str(place)) for place in range(20)]
        with pytest.raises(BufferFull) as refusal:
            plant.send("one too many")
        assert isinstance(refusal.value.retry_after_s, int)
        assert refusal.value.retry_after_s == retry_after_s
        plant.store.speaking.set()
        await asyncio.gather(*answers)
        assert isinstance(await plant.send("welcome"), CommittedReading)


async def test_a_drain_flushes_what_is_held_and_takes_nothing_new() -> None:
    plant = Plant()
    async with plant.running():
        answers = [*await plant.send_into_silence("in flight"), plant.send("waits")]
        drain = asyncio.create_task(plant.pipeline.drain(timeout_s=60))
        await asyncio.sleep(1)
        with pytest.raises(ShuttingDown) as refusal:
            plant.send("too late")
        assert refusal.value.retry_after_s >= 1
        assert not drain.done()
        plant.store.speaking.set()
        await drain
        assert [type(answer.result()) for answer in answers] == [CommittedReading, CommittedReading]
        assert now() < 2


async def test_a_drain_that_runs_out_of_time_answers_everybody() -> None:
    plant = Plant()
    async with plant.running():
        [in_flight] = await plant.send_into_silence("in flight")
        waits = plant.send("waits")
        await plant.pipeline.drain(timeout_s=2)
        assert now() == pytest.approx(2.1, abs=0.01)
        assert isinstance(in_flight.result(), OutcomeUnknown)
        assert isinstance(waits.result(), ShuttingDown)
        plant.store.speaking.set()
        await asyncio.sleep(1)
        assert plant.store.stored == ["in flight"]


async def test_a_drain_ends_as_soon_as_nothing_is_held() -> None:
    """A drain ends as soon as nothing is held, even if the last reading was given back."""
    plant = Plant()
    async with plant.running():
        plant.store.away = True
        answer = plant.send("a")
        await plant.pipeline.drain(timeout_s=10 * COMMIT_TIMEOUT_S)
        assert isinstance(answer.result(), NotStored)
        assert now() < 2 * COMMIT_TIMEOUT_S


async def test_a_cancelled_flusher_leaves_nobody_waiting() -> None:
    plant = Plant()
    work = asyncio.create_task(plant.pipeline.run())
    await plant.pipeline.opened.wait()
    [in_flight] = await plant.send_into_silence("in flight")
    waits = plant.send("waits")
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert isinstance(in_flight.result(), OutcomeUnknown)
    assert isinstance(waits.result(), DatabaseUnavailable)
    with pytest.raises(DatabaseUnavailable, match="the database is unavailable"):
        plant.send("too late")


@pytest.mark.parametrize("place", ["encode", "on_commit", "on_flush"])
async def test_a_bug_ends_the_flusher_and_leaves_nobody_waiting(place: str) -> None:
    def bug(*_: object) -> CommittedReading:
        raise ZeroDivisionError

    plant = Plant(**{place: bug})  # type: ignore[arg-type]
    work = asyncio.create_task(plant.pipeline.run())
    await plant.pipeline.opened.wait()
    [in_flight] = await plant.send_into_silence("in flight")
    waits = plant.send("waits")
    plant.store.speaking.set()
    with pytest.raises(ExceptionGroup):
        await asyncio.wait_for(work, LONGEST_TEST_S)
    assert isinstance(waits.result(), DatabaseUnavailable)
    assert in_flight.done(), "it is committed, and its sender hears nothing"
    assert isinstance(in_flight.result(), CommittedReading | OutcomeUnknown)
    assert plant.pipeline.rejection_reason == "the flusher has stopped"


@pytest.mark.parametrize("step", ["prepare", "write"])
@pytest.mark.parametrize("ahead_rows", [2, 1_000])
async def test_poison(step: str, ahead_rows: int) -> None:
    """A request that makes the store fail in an unforeseen way is rejected, and its neighbours are stored in order."""
    plant = Plant()
    plant.store.chokes_in = step
    sensors = [*"abcde", POISON, *"fgh", POISON, *"ijk"]
    with worth_preparing(ahead_rows):
        async with plant.running():
            answers = await asyncio.gather(*(plant.send(sensor) for sensor in sensors))
            assert isinstance(await plant.send("later"), CommittedReading)
    for sensor, answer in zip(sensors, answers, strict=True):
        assert isinstance(answer, RejectedByDatabase if sensor == POISON else CommittedReading), sensor
    assert plant.store.stored == [*"abcdefghijk", "later"]
    assert plant.pipeline.buffer.stats.rejected == 2


async def test_too_little_memory() -> None:
    """If memory runs out, smaller flushes are tried, and a single request is given back, not rejected."""
    plant = Plant()
    plant.store.memory_rows = 2
    async with plant.running():
        answers = await asyncio.gather(*map(plant.send, "abcdefgh"), plant.send(batch(*"ijk")), return_exceptions=True)
    assert [type(answer) for answer in answers] == [CommittedReading] * 8 + [DatabaseUnavailable]
    assert plant.store.stored == [*"abcdefgh"]


async def test_a_batch_is_one_submission_with_as_many_ids_as_rows() -> None:
    plant = Plant()
    async with plant.running():
        answers = await asyncio.gather(plant.send("a"), plant.send(batch("b", "c", "b")), plant.send("d"))
        assert [*answers] == [receipt_of(reading("a"), 1), BatchResult(3), receipt_of(reading("d"), 5)]
        assert plant.store.ids == [("a", 1), ("b", 2), ("c", 3), ("b", 4), ("d", 5)]
        assert sorted((receipt.id, receipt.sensor) for receipt in plant.published) == [
            (id_, sensor) for sensor, id_ in plant.store.ids
        ]


async def test_a_batch_larger_than_a_flush_is_a_flush_of_its_own() -> None:
    plant = Plant(flush_max_rows=2)
    async with plant.running():
        await asyncio.gather(plant.send("a"), plant.send(batch(*"bcd")), plant.send("e"), plant.send("f"))
        assert plant.store.attempts == [["a"], ["b", "c", "d"], ["e", "f"]]


@given(
    bad=st.lists(st.lists(st.booleans(), min_size=1, max_size=4), min_size=1, max_size=6),
    whole=st.lists(st.sampled_from([None, False, True]), min_size=6, max_size=6),
)
async def test_each_batch_hears_of_its_own_bad_rows_and_of_no_other(
    bad: list[list[bool]], whole: list[bool | None]
) -> None:
    """Each batch learns only of its own bad rows, after any other batches or single readings in the flush."""
    plant = Plant()
    async with plant.running():
        contents: list[Content] = []
        for number, (rows, is_atomic) in enumerate(zip(bad, whole, strict=False)):
            sensors = [f"{BAD if is_bad else 'good'} {number}.{place}" for place, is_bad in enumerate(rows)]
            contents += [reading(sensors[0])] if is_atomic is None else [batch(*sensors, is_atomic=is_atomic)]
        answers = await asyncio.gather(*map(plant.send, contents))
        await asyncio.sleep(1)
        for content, answer in zip(contents, answers, strict=True):
            refused = refused_of(content)
            if isinstance(content, Batch):
                assert answer == BatchResult(content.rows - len(refused), refused=refused)
            else:
                assert isinstance(answer, RejectedByDatabase if refused else CommittedReading)
        assert sorted((receipt.sensor, receipt.id) for receipt in plant.published) == sorted(plant.store.ids)
        stats = plant.pipeline.buffer.stats
        assert stats.committed == len(plant.store.stored) == sum(rows for rows, _ in plant.flushes)
        assert stats.rejected == sum(len(refused_of(content)) for content in contents)


async def test_subscribers_see_a_large_batch_in_turns_and_others_run_meanwhile() -> None:
    plant = Plant()
    seen: set[int] = set()
    rows = 2 * PUBLISH_ROWS + 50
    async with plant.running():
        await plant.send(batch(*(f"s{place}" for place in range(rows))))
        while len(plant.published) < rows:
            seen.add(len(plant.published))
            await asyncio.sleep(0)
        assert {PUBLISH_ROWS, 2 * PUBLISH_ROWS} <= seen
        assert plant.publisher.turns == [PUBLISH_ROWS, PUBLISH_ROWS, 50]
        assert [(receipt.sensor, receipt.id) for receipt in plant.published] == plant.store.ids


async def test_where_nobody_listens_only_the_latest_of_a_batch_is_made_a_receipt() -> None:
    plant = Plant()
    plant.publisher.is_listening = False
    each = [reading(sensor, time_us=T0_US + second) for sensor, second in (("a", 5), ("b", 9), ("c", 9), ("d", 7))]
    async with plant.running():
        await asyncio.gather(plant.send("alone"), plant.send(batch_of(each)))
        assert plant.publisher.remembered == [receipt_of(each[2], 4)]
        assert plant.published == [receipt_of(reading("alone"), 1)]


@pytest.mark.parametrize("is_listening", [True, False])
async def test_refused_rows_are_neither_published_nor_remembered(is_listening: bool) -> None:
    plant = Plant()
    plant.publisher.is_listening = is_listening
    each = [reading(sensor, time_us=T0_US + second) for sensor, second in (("a", 5), (f"{BAD}", 9), ("c", 7))]
    async with plant.running():
        many_bad = batch(*[BAD] * PUBLISH_ROWS, "after them")
        await asyncio.gather(
            plant.send(batch_of(each)), plant.send(many_bad), plant.send(batch(BAD, "x", is_atomic=True))
        )
        await asyncio.sleep(1)
        assert [receipt.sensor for receipt in plant.published] == ["a", "c", "after them"]
        assert plant.publisher.remembered == []


async def test_what_nobody_waits_for_outlives_the_commit_timeout() -> None:
    plant = Plant()
    async with plant.running():
        plant.store.away = True
        answers = [plant.send("awaited"), plant.send("not awaited", is_awaited=False)]
        batch_answer = plant.send(batch(*"abc"), is_awaited=False)
        await asyncio.sleep(10 * COMMIT_TIMEOUT_S)
        assert isinstance(answers[0].result(), DatabaseUnavailable)
        assert not answers[1].done()
        assert plant.pipeline.buffer.rows == 4
        plant.store.away = False
        assert isinstance(await answers[1], CommittedReading)
        assert await batch_answer == BatchResult(3)
        assert plant.store.stored == ["not awaited", *"abc"]


async def test_what_nobody_waits_for_is_written_again_after_an_unknown_outcome() -> None:
    plant = Plant()
    async with plant.running():
        plant.store.lost_answers.append(False)
        plant.store.speaking.clear()
        answers = [plant.send("awaited"), plant.send("not awaited", is_awaited=False)]
        await asyncio.sleep(2 * COMMIT_TIMEOUT_S)
        assert isinstance(answers[0].result(), OutcomeUnknown)
        plant.store.speaking.set()
        assert isinstance(await answers[1], CommittedReading)
        assert plant.store.attempts == [["awaited", "not awaited"], ["not awaited"]]


async def test_a_drain_writes_what_nobody_waits_for_too() -> None:
    plant = Plant()
    async with plant.running():
        plant.store.speaking.clear()
        answers = [plant.send(batch("a", "b"), is_awaited=False), plant.send("c", is_awaited=False)]
        drain = asyncio.create_task(plant.pipeline.drain(timeout_s=10 * COMMIT_TIMEOUT_S))
        await asyncio.sleep(2 * COMMIT_TIMEOUT_S)
        assert not drain.done()
        plant.store.speaking.set()
        await drain
        assert [type(answer.result()) for answer in answers] == [BatchResult, CommittedReading]


async def test_a_drain_without_a_database_gives_back_what_nobody_waits_for() -> None:
    plant = Plant()
    async with plant.running():
        plant.store.away = True
        answers = [plant.send("a", is_awaited=False), plant.send("b", is_awaited=False)]
        await asyncio.sleep(1)
        await plant.pipeline.drain(timeout_s=10)
        assert [type(answer.result()) for answer in answers] == [ShuttingDown, ShuttingDown]
        assert plant.pipeline.buffer.stats.given_back == 2


async def test_a_key_over_its_share_is_told_so_and_others_are_taken() -> None:
    plant = Plant(max_bytes_per_key=3 * READING_SIZE_BYTES)
    async with plant.running():
        answers = await plant.send_into_silence("a", "b")
        plant.pipeline.reserve(SOURCE.key_name, READING_SIZE_BYTES)
        with pytest.raises(KeyOverShare):
            plant.send("c")
        with pytest.raises(KeyOverShare):
            plant.pipeline.reserve(SOURCE.key_name, 1)
        plant.pipeline.reserve("another key", 3 * READING_SIZE_BYTES)
        plant.pipeline.reserve("another key", -3 * READING_SIZE_BYTES)
        plant.pipeline.reserve(SOURCE.key_name, -READING_SIZE_BYTES)
        answers.append(plant.send("c"))
        plant.store.speaking.set()
        await asyncio.gather(*answers)


async def test_room_is_refused_while_the_database_is_away_but_taken_back() -> None:
    plant = Plant()
    async with plant.running():
        plant.pipeline.reserve("key", 10)
        plant.store.away = True
        answer = plant.send("a")
        await asyncio.sleep(1)
        with pytest.raises(DatabaseUnavailable):
            plant.pipeline.reserve("key", 1)
        plant.pipeline.reserve("key", -4)
        assert isinstance(await answer, DatabaseUnavailable)
        drain = asyncio.create_task(plant.pipeline.drain(timeout_s=1))
        await asyncio.sleep(0)
        with pytest.raises(ShuttingDown):
            plant.pipeline.reserve("key", 1)
        plant.pipeline.reserve("key", -6)
        await drain


async def test_record_with_result() -> None:
    plant = Plant()
    async with plant.running():
        answers = await asyncio.gather(
            plant.send("a", record=record("one")),
            plant.send(
                content := batch("b", BAD, "c"), record=record("two", content=b"batch"), decoded=decoded_of(content)
            ),
            plant.send(batch(BAD), record=record("three")),
            plant.send(BAD, record=record("refused")),
            plant.send("without a key"),
        )
        assert plant.store.records == {
            ("API_KEY", "one"): StoredResult(b"content", b"id 1"),
            ("API_KEY", "two"): StoredResult(
                b"batch",
                b'{"stored":2,"rejected":1,"rejected_rows":"2","errors":'
                b'[{"row":2,"column":null,"reason":"PostgreSQL would not take it","value":null}]}',
            ),
            ("API_KEY", "three"): StoredResult(b"content", b'{"stored":0}'),
        }
        assert isinstance(answers[3], RejectedByDatabase), "it may be sent again under the same key"


@pytest.mark.parametrize("later", [False, True])
async def test_a_repetition_is_answered_as_the_first_one_was_and_stores_nothing(later: bool) -> None:
    """In the same breath, where it waits for the flush after, or after its commit."""
    plant = Plant()
    async with plant.running():
        first = plant.send("a", record=record())
        if later:
            await first
        neighbours = [plant.send("b"), plant.send(batch("c"), record=record("another"))]
        again = [plant.send("a", record=record()), plant.send("a", record=record())]
        other = plant.send("b", record=record(content=b"other"))
        assert isinstance(await first, CommittedReading)
        assert await asyncio.gather(*again) == 2 * [StoredResult(b"content", b"id 1")]
        assert isinstance(await other, IdempotencyConflict)
        assert [type(answer) for answer in await asyncio.gather(*neighbours)] == [CommittedReading, BatchResult]
        assert sorted(plant.store.stored) == ["a", "b", "c"]
        assert (plant.pipeline.buffer.stats.committed, plant.pipeline.buffer.stats.rejected) == (3, 3)


async def test_what_another_process_committed_is_answered_as_it_was_there() -> None:
    plant = Plant()
    kept = {("API_KEY", key): StoredResult(b"content", key.encode()) for key in "abc"}
    plant.store.records |= kept
    async with plant.running():
        answers = await asyncio.gather(
            *(plant.send(key, record=record(key)) for key in "abc"),
            plant.send("d", record=record("d")),
            plant.send("b", record=record("b", content=b"other", key_name="API_KEY")),
            plant.send("a", record=record("a", key_name="API_KEY_WS")),
        )
        assert answers[:3] == [
            StoredResult(b"content", b"a"),
            StoredResult(b"content", b"b"),
            StoredResult(b"content", b"c"),
        ]
        assert isinstance(answers[4], IdempotencyConflict)
        assert plant.store.stored == ["d", "a"]
        assert plant.store.attempts == [["a", "b", "c", "d"], ["d", "b", "a"], ["d", "a"]], (
            "all of a flush are told at once"
        )


async def test_a_repetition_is_no_trouble_and_costs_no_time() -> None:
    plant = Plant()
    async with plant.running():
        await plant.send("a", record=record())
        sent_at = now()
        await asyncio.gather(*(plant.send("a", record=record()) for _ in range(3)), plant.send("b"))
        assert now() - sent_at < FIRST_BACKOFF_S
        assert plant.pipeline.rejection_reason is None


async def test_sent_again_after_unknown_outcome() -> None:
    plant = Plant()
    async with plant.running():
        plant.store.speaking.clear()
        first = plant.send("a", record=record())
        await asyncio.sleep(0.1)
        plant.store.lost_answers.append(True)
        assert isinstance(await first, OutcomeUnknown)
        again = plant.send("a", record=record())
        plant.store.speaking.set()
        assert await again == StoredResult(b"content", b"id 1")
        assert plant.store.stored == ["a"]


async def test_what_comes_during_a_flush_is_prepared_as_soon_as_it_is_much() -> None:
    plant = Plant(flush_max_rows=100_000)
    async with plant.running():
        answers = await plant.send_into_silence("a")
        answers.append(plant.send(batch(*["b"] * (PREPARE_AHEAD_ROWS - 1))))
        await asyncio.sleep(0.1)
        assert len(plant.store.prepared) == 1
        answers += [plant.send("c"), plant.send("d")]
        await asyncio.sleep(0.1)
        assert [len(sensors) for sensors in plant.store.prepared] == [1, PREPARE_AHEAD_ROWS]
        assert len(plant.store.attempts) == 1
        plant.store.speaking.set()
        await asyncio.gather(*answers)
        assert [len(sensors) for sensors in plant.store.attempts] == [1, PREPARE_AHEAD_ROWS, 1]
        assert [id_ for _, id_ in plant.store.ids] == list(range(1, PREPARE_AHEAD_ROWS + 3))


async def test_what_waits_when_a_flush_begins_is_prepared_at_once() -> None:
    plant = Plant(flush_max_rows=3)
    with worth_preparing(rows=3):
        async with plant.running():
            answers = [plant.send(sensor) for sensor in "abcdefgh"]
            plant.store.speaking.clear()
            await asyncio.sleep(0.1)
            assert plant.store.prepared == [["a", "b", "c"], ["d", "e", "f"]], "two are in the air, and no more"
            plant.store.speaking.set()
            assert [answer.id for answer in await asyncio.gather(*answers) if isinstance(answer, CommittedReading)] == [
                *range(1, 9)
            ]
            assert plant.store.attempts == [["a", "b", "c"], ["d", "e", "f"], ["g", "h"]]


async def test_no_third_flush_is_prepared_while_one_is_ready_and_one_is_written() -> None:
    plant = Plant()
    with worth_preparing(rows=2):
        async with plant.running():
            answers = await plant.send_into_silence("a")
            for sensor in "bcdef":
                answers.append(plant.send(sensor))
                await asyncio.sleep(0.1)
            assert plant.store.prepared == [["a"], ["b", "c"]]
            plant.store.speaking.set()
            assert [type(answer) for answer in await asyncio.gather(*answers)] == 6 * [CommittedReading]
            assert plant.store.attempts == [["a"], ["b", "c"], ["d", "e", "f"]]


async def test_a_preparation_that_is_not_ready_when_its_turn_comes_is_waited_for() -> None:
    plant = Plant()
    with worth_preparing(rows=2):
        async with plant.running():
            [first] = await plant.send_into_silence("a")
            plant.store.preparing.clear()
            answers = [plant.send("b"), plant.send("c")]
            plant.store.speaking.set()
            await first
            late = plant.send("d")
            await asyncio.sleep(1)
            assert plant.store.attempts == [["a"]]
            plant.store.preparing.set()
            await asyncio.gather(*answers, late)
            assert plant.store.attempts == [["a"], ["b", "c"], ["d"]]


async def test_where_large_flushes_gain_and_a_flush_may_have_one_row_all_are_stored() -> None:
    plant = Plant(flush_max_rows=1)
    plant.store.gains_by_large_flushes = True
    async with plant.running():
        answers = [plant.send(sensor) for sensor in "abc"]
        assert [type(answer) for answer in await asyncio.gather(*answers)] == 3 * [CommittedReading]
        assert plant.store.attempts == [["a"], ["b"], ["c"]]


async def test_a_flush_that_fails_again_and_again_is_tried_in_parts_and_then_whole_ones_come_again() -> None:
    plant = Plant(flush_max_rows=8)
    write = plant.store.write

    async def write_few(flush: FakeFlush, records: Callable[[], Records], *, was_blocked: bool) -> None:
        if len(sensors_of(flush.contents)) > 2:
            raise DatabaseUnavailable("out of locks")
        await write(flush, records, was_blocked=was_blocked)

    async with plant.running():
        plant.store.write = write_few  # type: ignore[method-assign]
        answers = [plant.send(sensor, is_awaited=False) for sensor in "abcdefgh"]
        assert [type(answer) for answer in await asyncio.gather(*answers)] == 8 * [CommittedReading]
        assert plant.store.stored == list("abcdefgh")
        plant.store.write = write  # type: ignore[method-assign]
        plant.store.attempts.clear()
        for size in (8, 8, 8):
            await asyncio.gather(*(plant.send(sensor) for sensor in "abcdefgh"[:size]))
        assert len(plant.store.attempts[-1]) == 8


@pytest.mark.parametrize(
    ("gains", "rows", "decoded_after_s", "flushes"),
    [
        (True, ENOUGH_ROWS, LONGEST_WAIT_FOR_BATCHES_S / 2, [ENOUGH_ROWS + 1]),
        (True, ENOUGH_ROWS, LONGEST_WAIT_FOR_BATCHES_S * 2, [ENOUGH_ROWS, 1]),
        (True, ENOUGH_ROWS - 1, LONGEST_WAIT_FOR_BATCHES_S / 2, [ENOUGH_ROWS - 1, 1]),
        (True, 2 * ENOUGH_ROWS, LONGEST_WAIT_FOR_BATCHES_S / 2, [2 * ENOUGH_ROWS, 1]),
        (False, ENOUGH_ROWS, LONGEST_WAIT_FOR_BATCHES_S / 2, [ENOUGH_ROWS, 1]),
    ],
    ids=["it waits", "not for long", "a small one does not", "a full one does not", "nor where nothing is gained"],
)
async def test_a_large_flush_waits_for_what_is_being_decoded(
    gains: bool, rows: int, decoded_after_s: float, flushes: list[int]
) -> None:
    plant = Plant(flush_max_rows=2 * ENOUGH_ROWS)
    plant.store.gains_by_large_flushes = gains
    async with plant.running():
        answers = [plant.send(batch(*["a"] * rows))]
        with plant.pipeline.batch_being_decoded():
            await asyncio.sleep(decoded_after_s)
        answers.append(plant.send("b"))
        await asyncio.gather(*answers)
        assert [len(sensors) for sensors in plant.store.attempts] == flushes


async def test_what_is_being_decoded_and_then_refused_is_waited_for_no_longer() -> None:
    plant = Plant(flush_max_rows=2 * ENOUGH_ROWS)
    plant.store.gains_by_large_flushes = True
    async with plant.running():
        answer = plant.send(batch(*["a"] * ENOUGH_ROWS))
        with suppress(ValueError), plant.pipeline.batch_being_decoded():
            await asyncio.sleep(LONGEST_WAIT_FOR_BATCHES_S / 4)
            raise ValueError("the body is malformed")
        await asyncio.sleep(LONGEST_WAIT_FOR_BATCHES_S / 4)
        assert answer.done()


async def test_when_a_write_fails_what_was_prepared_ahead_is_written_after_it_all_the_same() -> None:
    plant = Plant()
    with worth_preparing(rows=2):
        async with plant.running():
            answers = await plant.send_into_silence("a")
            answers += [plant.send("b"), plant.send("c")]
            await asyncio.sleep(0.1)
            assert plant.store.prepared == [["a"], ["b", "c"]]
            plant.store.away = True
            plant.store.speaking.set()
            await asyncio.sleep(0.1)
            plant.store.away = False
            assert [type(answer) for answer in await asyncio.gather(*answers)] == 3 * [CommittedReading]
            assert plant.store.stored == ["a", "b", "c"]
            assert plant.store.attempts == [["a"], ["a", "b", "c"]]


async def test_when_a_write_fails_a_preparation_under_way_is_given_up() -> None:
    plant = Plant()
    with worth_preparing(rows=2):
        async with plant.running():
            answers = await plant.send_into_silence("a")
            plant.store.preparing.clear()
            answers += [plant.send("b"), plant.send("c")]
            await asyncio.sleep(0.1)
            assert plant.store.unprepared == 1
            plant.store.lost_answers.append(False)
            plant.store.speaking.set()
            await asyncio.sleep(0.1)
            assert plant.store.prepared[2:] == [["a", "b", "c"]]
            plant.store.preparing.set()
            await asyncio.gather(*answers)
            assert plant.store.stored == ["a", "b", "c"]


@pytest.mark.parametrize("committed", [True, False])
async def test_after_an_unknown_outcome_what_was_prepared_before_it_is_prepared_anew(committed: bool) -> None:
    plant = Plant()
    with worth_preparing(rows=2):
        async with plant.running():
            answers = await plant.send_into_silence("a")
            answers += [plant.send("b"), plant.send("c")]
            await asyncio.sleep(0.1)
            plant.store.lost_answers.append(committed)
            plant.store.speaking.set()
            assert [type(answer) for answer in await asyncio.gather(*answers)] == 3 * [CommittedReading]
            assert plant.store.stored == ["a", "b", "c"]
            anew = [["b", "c"]] if committed else [["a", "b", "c"]]
            assert plant.store.prepared == [["a"], ["b", "c"], *anew]
            assert plant.pipeline.rejection_reason is None


async def test_when_a_repetition_is_found_what_was_prepared_ahead_keeps_its_place() -> None:
    plant = Plant()
    plant.store.records[record().name] = StoredResult(b"content", b"first")
    with worth_preparing(rows=2):
        async with plant.running():
            plant.store.speaking.clear()
            answers = [plant.send("a", record=record()), plant.send("b")]
            await asyncio.sleep(0.1)
            answers += [plant.send("c"), plant.send("d"), plant.send("a", record=record()), plant.send("e")]
            await asyncio.sleep(0.1)
            plant.store.speaking.set()
            said = await asyncio.gather(*answers)
            assert said[0] == said[4] == StoredResult(b"content", b"first")
            assert plant.store.stored == ["b", "c", "d", "e"]


async def test_a_repetition_prepared_ahead_of_the_first_ones_commit_is_recognised() -> None:
    plant = Plant()
    with worth_preparing(rows=2):
        async with plant.running():
            plant.store.speaking.clear()
            first = plant.send("a", record=record())
            await asyncio.sleep(0.1)
            again = [plant.send("a", record=record()), plant.send("b")]
            await asyncio.sleep(0.1)
            assert plant.store.prepared == [["a"], ["a", "b"]]
            plant.store.speaking.set()
            assert isinstance(await first, CommittedReading)
            assert await again[0] == StoredResult(b"content", b"id 1")
            assert isinstance(await again[1], CommittedReading)
            assert plant.store.stored == ["a", "b"]


async def test_a_preparation_that_fails_is_tried_again() -> None:
    plant = Plant()
    with worth_preparing(rows=2):
        async with plant.running():
            [first] = await plant.send_into_silence("a")
            plant.store.preparing.clear()
            answers = [plant.send("b"), plant.send("c")]
            plant.store.speaking.set()
            await first
            plant.store.away = True
            plant.store.preparing.set()
            await asyncio.sleep(1)
            plant.store.away = False
            assert [type(answer) for answer in await asyncio.gather(*answers)] == [CommittedReading, CommittedReading]
            assert plant.store.stored == ["a", "b", "c"]


async def test_what_is_prepared_ahead_is_answered_at_its_deadline_and_when_the_flusher_ends() -> None:
    plant = Plant()
    with worth_preparing(rows=2):
        work = asyncio.create_task(plant.pipeline.run())
        await plant.pipeline.opened.wait()
        answers = await plant.send_into_silence("a")
        answers += [plant.send("b"), plant.send("c")]
        await asyncio.sleep(COMMIT_TIMEOUT_S + SWEEP_INTERVAL_S)
        assert all(isinstance(answer.result(), OutcomeUnknown) for answer in answers)
        plant.store.preparing.clear()
        plant.store.speaking.set()
        await asyncio.sleep(1)
        assert plant.store.stored == ["a", "b", "c"]
        plant.store.preparing.set()
        [first] = await plant.send_into_silence("d")
        plant.store.preparing.clear()
        answers = [first, plant.send("e"), plant.send("f", is_awaited=False)]
        await asyncio.sleep(0.1)
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        assert all(isinstance(answer.result(), OutcomeUnknown) for answer in answers)
        others = asyncio.all_tasks() - {asyncio.current_task()}
        assert not others, "a preparation is left behind"


async def test_the_duration_of_a_flush_prepared_ahead_begins_when_the_one_before_has_ended() -> None:
    """The duration of a flush prepared ahead begins when the one before ends: Retry-After is not twice as long."""
    plant = Plant()
    with worth_preparing(rows=2):
        async with plant.running():
            answers = await plant.send_into_silence("a")
            plant.store.preparing.clear()
            answers += [plant.send("b"), plant.send("c")]
            await asyncio.sleep(2)
            plant.store.speaking.set()
            await asyncio.sleep(1)
            plant.store.preparing.set()
            await asyncio.gather(*answers)
            assert [duration_s for _, duration_s in plant.flushes] == pytest.approx([2.1, 1], abs=0.02)


def late(sensor: str) -> Reading:
    """Return a reading of the day that is locked in some tests."""
    return reading(sensor, time_us=LATE_US)


async def test_locked_day() -> None:
    """Readings of a locked day wait aside until their senders are told, and live readings go on."""
    plant = Plant()
    async with plant.running():
        plant.store.locked = [(LATE_US, LATE_US)]
        began = now()
        answers = [plant.send(late("a")), plant.send("b"), plant.send(batch_of([late("c"), reading("d")]))]
        assert isinstance(await answers[1], CommittedReading)
        assert now() - began < LOCK_TIMEOUT_S + 0.1
        for number in range(100):  # which, while a lock is tried, wait a moment
            began = now()
            assert isinstance(await plant.send(f"live {number}"), CommittedReading)
            assert now() - began < 0.1
        late_answer = plant.send(late("e"))
        for answer in (answers[0], answers[2], late_answer):
            assert isinstance(await answer, DatabaseLocked)
        assert plant.pipeline.unavailable_reason is None
        plant.store.locked = []
        assert await plant.send(late("f")) == receipt_of(late("f"), plant.store.ids[-1][1])
    assert plant.store.stored == ["b", *(f"live {number}" for number in range(100)), "f"]


async def test_lock_that_ends() -> None:
    """Readings that wait for a lock are stored soon after it ends, in their order of arrival."""
    plant = Plant()
    async with plant.running():
        plant.store.locked = [(LATE_US, LATE_US)]
        answers = [plant.send(late("a"))]
        await asyncio.sleep(LOCK_TIMEOUT_S + 0.1)
        answers += [plant.send(late("b")), plant.send("c")]
        await answers[2]
        plant.store.locked = []
        await asyncio.gather(*answers)
        assert plant.store.stored == ["c", "a", "b"]
        began = now()
        await plant.send(late("d"))
        assert now() - began < 0.1


async def test_lock_that_ends_on_a_busy_server() -> None:
    """Readings that wait for a lock get their turn even though another flush is always ready."""
    plant = Plant()
    with worth_preparing(rows=1):
        async with plant.running():
            plant.store.locked = [(LATE_US, LATE_US)]
            answer = plant.send(late("late"))
            await asyncio.sleep(LOCK_TIMEOUT_S + 0.1)
            plant.store.locked = []
            live: list[Answered] = []
            while not answer.done():
                live.append(plant.send(f"live {len(live)}"))
                await asyncio.sleep(ROUND_TRIP_S / 4)
            assert isinstance(answer.result(), CommittedReading)
            await asyncio.gather(*live)


async def test_two_locked_days() -> None:
    """The first of two locked days to be free does not wait for the other."""
    plant = Plant()
    other = LATE_US - 86_400_000_000
    async with plant.running():
        plant.store.locked = [(LATE_US, LATE_US), (other, other)]
        answers = [plant.send(late("a")), plant.send(reading("b", time_us=other))]
        await asyncio.sleep(LOCK_TIMEOUT_S + 0.1)
        plant.store.locked = [(other, other)]
        assert isinstance(await answers[0], CommittedReading)
        assert isinstance(await answers[1], DatabaseLocked)


async def test_locked_without_a_waiting_sender() -> None:
    """Readings without a waiting sender stay until the lock ends, and no more of them are accepted meanwhile."""
    plant = Plant()
    async with plant.running():
        plant.store.locked = [(LATE_US, LATE_US)]
        answer = plant.send(late("a"), is_awaited=False)
        await asyncio.sleep(10 * COMMIT_TIMEOUT_S)
        assert not answer.done()
        with pytest.raises(DatabaseLocked):
            plant.send(late("b"), is_awaited=False)
        assert isinstance(await plant.send("c", is_awaited=False), CommittedReading)
        plant.store.locked = []
        began = now()
        await answer
        assert now() - began < RETRY_BLOCKED_S + 0.1


async def test_lock_that_ends_unseen() -> None:
    """A lock that ended when nothing waited for it keeps out nothing, whoever is the first to send again."""
    plant = Plant()
    async with plant.running():
        plant.store.locked = [(LATE_US, LATE_US)]
        assert isinstance(await plant.send(late("a")), DatabaseLocked)
        plant.store.locked = []
        await asyncio.sleep(RETRY_BLOCKED_S)
        assert isinstance(await plant.send(late("b"), is_awaited=False), CommittedReading)
        answers = [plant.send(late("c"), is_awaited=False), plant.send(late("d"), is_awaited=False)]
        await asyncio.gather(*answers)
    assert plant.store.stored == ["b", "c", "d"]


async def test_locked_key() -> None:
    """A request whose key an unended transaction has holds up no other."""
    plant = Plant()
    async with plant.running():
        plant.store.locked_keys = {"x"}
        answers = [plant.send("a", record=record("x")), plant.send("b", record=record("y")), plant.send("c")]
        await asyncio.gather(*answers[1:])
        assert isinstance(await answers[0], DatabaseLocked)
        plant.store.locked_keys = set()
        assert isinstance(await plant.send("a", record=record("x")), CommittedReading)


async def test_locked_names() -> None:
    """While no new sensor can be added, readings of known ones are stored, and one flush waits for new ones."""
    plant = Plant()
    async with plant.running():
        await plant.send("a")
        plant.store.are_names_locked = True
        began = now()
        answers = [plant.send("b"), plant.send("a"), plant.send(batch_of([reading("a"), reading("b")]))]
        assert isinstance(await answers[1], CommittedReading)
        assert now() - began < LOCK_TIMEOUT_S + 0.1
        for name in ("c", "d"):
            answers.append(plant.send(name))
            began = now()
            assert isinstance(await plant.send("a"), CommittedReading)
            assert now() - began < 0.1
        for answer in (answers[0], *answers[2:]):
            assert isinstance(await answer, DatabaseLocked)
        assert plant.pipeline.unavailable_reason is None
        answer = plant.send("b")
        await asyncio.sleep(0.1)
        plant.store.are_names_locked = False
        assert isinstance(await answer, CommittedReading)
        began = now()
        assert isinstance(await plant.send("e"), CommittedReading)
        assert now() - began < 0.1


async def test_locked_names_ahead() -> None:
    """Locked names that are met while another flush is written keep out nothing of that flush, nor of what follows."""
    plant = Plant()
    with worth_preparing(rows=1):
        async with plant.running():
            await plant.send("a")
            plant.store.are_names_locked = True
            answers = await plant.send_into_silence("1a")
            answers += [plant.send(name) for name in ("b", "2a")]
            await asyncio.sleep(LOCK_TIMEOUT_S + 0.1)
            answers.append(plant.send("3a"))
            plant.store.speaking.set()
            for answer in (answers[0], *answers[2:]):
                assert isinstance(await answer, CommittedReading)
            plant.store.are_names_locked = False
            assert isinstance(await answers[1], CommittedReading)
    assert plant.store.stored == ["a", "1a", "2a", "3a", "b"]


async def test_locked_names_and_day() -> None:
    """Locked names and a locked day hold up other readings once, and neither waits for the other's end."""
    plant = Plant()
    async with plant.running():
        await plant.send("a")
        plant.store.are_names_locked = True
        plant.store.locked = [(LATE_US, LATE_US)]
        answers = [plant.send("b", is_awaited=False), plant.send(late("a"), is_awaited=False)]
        await asyncio.sleep(3 * LOCK_TIMEOUT_S)
        for _ in range(100):
            began = now()
            assert isinstance(await plant.send("a"), CommittedReading)
            assert now() - began < 0.1
            await asyncio.sleep(RETRY_BLOCKED_S / 20)
        plant.store.locked = []
        async with asyncio.timeout(2 * RETRY_BLOCKED_S):
            assert isinstance(await answers[1], CommittedReading)
        plant.store.locked = [(LATE_US, LATE_US)]
        answers[1] = plant.send(late("a"), is_awaited=False)
        await asyncio.sleep(3 * LOCK_TIMEOUT_S)
        plant.store.are_names_locked = False
        async with asyncio.timeout(2 * RETRY_BLOCKED_S):
            assert isinstance(await answers[0], CommittedReading)
        assert not answers[1].done()
        began = now()
        assert isinstance(await plant.send("c", is_awaited=False), CommittedReading)
        assert now() - began < 0.1
        plant.store.locked = []
        await answers[1]


async def test_names_that_stay_locked() -> None:
    """The end of a day's lock says nothing of the names."""
    plant = Plant()
    async with plant.running():
        await plant.send("a")
        plant.store.are_names_locked = True
        plant.store.locked = [(LATE_US, LATE_US)]
        late_answer = plant.send(late("a"), is_awaited=False)
        assert isinstance(await plant.send("b"), DatabaseLocked)
        await asyncio.sleep(RETRY_BLOCKED_S + LOCK_TIMEOUT_S)
        plant.store.locked = []
        await late_answer
        answer = plant.send("c")
        began = now()
        assert isinstance(await plant.send("a"), CommittedReading)
        assert now() - began < 0.1
        assert isinstance(await answer, DatabaseLocked)


async def test_drain_while_locked() -> None:
    """A drain gives back what is locked, and says that the server is shutting down."""
    plant = Plant()
    async with plant.running():
        plant.store.locked = [(LATE_US, LATE_US)]
        answers = [plant.send(late("a"), is_awaited=False), plant.send("b", is_awaited=False)]
        await plant.pipeline.drain(3)
        assert isinstance(await answers[0], ShuttingDown)
        assert isinstance(await answers[1], CommittedReading)


async def test_unavailable() -> None:
    """A flush that takes longer than its senders wait is a reason to stay away, until it ends."""
    plant = Plant()
    async with plant.running():
        assert plant.pipeline.unavailable_reason is None
        [answer] = await plant.send_into_silence("a")
        assert plant.pipeline.unavailable_reason is None
        assert isinstance(await answer, OutcomeUnknown)
        assert "for 4 s" in str(plant.pipeline.unavailable_reason)
        assert plant.pipeline.rejection_reason is None
        plant.store.speaking.set()
        await plant.send("b")
        assert plant.pipeline.unavailable_reason is None
        await asyncio.sleep(10 * COMMIT_TIMEOUT_S)
        assert plant.pipeline.unavailable_reason is None


SENDING = st.lists(
    st.tuples(
        st.lists(st.sampled_from(["good", "good", "good", BAD]), min_size=1, max_size=6),
        st.sampled_from(["alone", "alone", "batch", "whole batch"]),
        st.sampled_from([None, None, None, "x", "y"]),
        st.sampled_from([True, True, True, False]),
    ),
    min_size=1,
    max_size=4,
)
FATE = st.one_of(
    st.tuples(st.just("send"), SENDING),
    st.tuples(st.just("send again"), st.integers(0, 5)),
    st.tuples(st.just("wait"), st.just(0.01) | st.floats(0.001, 1.5 * COMMIT_TIMEOUT_S)),
    st.tuples(st.just("send into silence"), SENDING),
    st.tuples(st.just("away"), st.booleans()),
    st.tuples(st.just("speaking"), st.booleans()),
    st.tuples(st.just("preparing"), st.booleans()),
    st.tuples(st.just("lose answer"), st.booleans()),
    st.tuples(st.just("locked"), st.sets(st.sampled_from([len("good"), len(BAD), "x", "y", "names"]))),
    st.tuples(st.just("elsewhere"), st.sampled_from("xy")),
    st.tuples(st.just("listening"), st.booleans()),
)


@dataclass
class SentRequest:
    """A sent request and its results."""

    content: Content
    record: IdempotencyRecord | None
    is_awaited: bool
    answered: Answered


class Sender:
    """A sender of given contents, of which no two have a sensor in common."""

    def __init__(self, plant: Plant) -> None:
        self.plant = plant
        self.sent: list[SentRequest] = []
        self._contents = 0

    def send(self, kinds: list[str], form: str, key: str | None, is_awaited: bool) -> None:
        self._contents += 1
        number = self._contents
        each = [reading(f"{kind} {number}.{row}", time_us=T0_US + len(kind)) for row, kind in enumerate(kinds)]
        content = each[0] if form == "alone" else batch_of(each, is_atomic=form == "whole batch")
        self.submit(content, record(key, content=b"%d" % number) if key else None, is_awaited)

    def send_again(self, back: int) -> None:
        """Send again what was sent some time ago with a key: a new content and a new record that say the same."""
        if back < len(self.sent) and (old := self.sent[-1 - back]).record is not None:
            content = old.content
            copy = (
                Reading(*content)
                if isinstance(content, Reading)
                else batch_of(rows_of([content]), is_atomic=content.is_atomic)
            )
            _, key, content_hash = old.record.identity
            self.submit(copy, record(key, content=content_hash), old.is_awaited)

    def submit(self, content: Content, record: IdempotencyRecord | None, is_awaited: bool) -> None:
        with suppress(NotStored):
            answered = self.plant.send(content, record=record, is_awaited=is_awaited)
            self.sent.append(SentRequest(content, record, is_awaited, answered))


def lock(store: FakeStore, what: set[int | str]) -> None:
    """Lock the times of some kinds of readings, some keys, or the names, and nothing else."""
    store.locked = [(T0_US + place, T0_US + place) for place in what if isinstance(place, int)]
    store.locked_keys = {key for key in what if isinstance(key, str)}
    store.are_names_locked = "names" in what


async def suffer(fate: tuple[str, object], plant: Plant, sender: Sender) -> None:
    match fate:
        case ("locked", set(what)):
            lock(plant.store, what)
        case ("send", list(sendings)):
            for sending in sendings:
                sender.send(*sending)
        case ("send into silence", list(sendings)):
            plant.store.speaking.clear()
            for sending in sendings:
                sender.send(*sending)
                await asyncio.sleep(5 * ROUND_TRIP_S)
            plant.store.speaking.set()
        case ("send again", int(back)):
            sender.send_again(back)
        case ("wait", float(seconds)):
            await asyncio.sleep(seconds)
        case ("away", bool(away)):
            plant.store.away = away
        case ("speaking" | "preparing" as name, bool(goes_on)):
            event = plant.store.speaking if name == "speaking" else plant.store.preparing
            (event.set if goes_on else event.clear)()
        case ("lose answer", bool(committed)):
            plant.store.lost_answers.append(committed)
        case ("elsewhere", str(key)):
            plant.store.records.setdefault(record(key).name, StoredResult(b"elsewhere", b"elsewhere"))
        case ("listening", bool(is_listening)):
            plant.publisher.is_listening = is_listening


@examples(400)
@given(fates=st.lists(FATE, max_size=30), ahead_rows=st.integers(1, 8))
async def test_whatever_the_database_does_every_answer_is_true(
    fates: list[tuple[str, object]], ahead_rows: int
) -> None:
    plant = Plant(max_rows=25, flush_max_rows=8)
    sender = Sender(plant)
    with worth_preparing(rows=ahead_rows):
        async with plant.running():
            for fate in fates:
                await suffer(fate, plant, sender)
            plant.store.away = False
            lock(plant.store, set())
            plant.store.speaking.set()
            plant.store.preparing.set()
            async with asyncio.timeout(COMMIT_TIMEOUT_S + SWEEP_INTERVAL_S):
                await asyncio.gather(*(each.answered for each in sender.sent if each.is_awaited))
            await asyncio.gather(*(each.answered for each in sender.sent))
            await asyncio.sleep(RECOVERY_S)

    first_ids: dict[int, int] = {}
    for flush in plant.store.ledger.values():
        first_id = flush.first_id
        for content in flush.contents:
            assert id(content) not in first_ids, "nothing is stored twice"
            first_ids[id(content)] = first_id
            first_id += content.rows
    assert len(set(plant.store.stored)) == len(plant.store.stored), "nor under a key that it was repeated with"
    for each in sender.sent:
        assert_answer_is_true(each, first_ids.get(id(each.content)), plant.store.records)
    assert_audience_knows_what_is_stored(plant)
    stats = plant.pipeline.buffer.stats
    assert (stats.accepted, stats.committed) == (
        sum(each.content.rows for each in sender.sent),
        len(plant.store.stored),
    )


def assert_answer_is_true(sent: SentRequest, first_id: int | None, stored: StoredResults) -> None:
    refused = refused_of(sent.content)
    replay = None
    match sent.answered.result():
        case CommittedReading() as receipt:
            assert receipt == receipt_of(rows_of([sent.content])[0], receipt.id)
            assert receipt.id == first_id
            replay = receipt.payload
        case BatchResult() as result:
            assert first_id is not None
            assert result == BatchResult(sent.content.rows - len(refused), refused=refused)
            replay = result.to_json()
        case RejectedByDatabase():
            assert refused == {0: "PostgreSQL would not take it"}
            assert isinstance(sent.content, Reading)
        case StoredResult() as again:
            assert first_id is None
            replay = again.result
        case IdempotencyConflict():
            assert first_id is None
            assert sent.record is not None
            assert stored[sent.record.name].content_hash != sent.record.identity.content_hash
        case answer:
            assert sent.is_awaited, "who doesn't wait is not given up"
            assert isinstance(answer, OutcomeUnknown) or (isinstance(answer, NotStored) and first_id is None)
    if replay is not None and sent.record is not None:
        assert stored[sent.record.name] == StoredResult(sent.record.identity.content_hash, replay)


def assert_audience_knows_what_is_stored(plant: Plant) -> None:
    """Assert that subscribers got each committed row once, in order, and the latest of batches without listeners."""
    published = {receipt.id: receipt.sensor for receipt in plant.published}
    assert len(published) == len(plant.published)
    remembered = {receipt.id for receipt in plant.publisher.remembered}
    for flush in plant.store.ledger.values():
        first_id = flush.first_id
        for content in flush.contents:
            rows = rows_of([content])
            refused = refused_of(content)
            ids = {first_id + place: row.sensor for place, row in enumerate(rows) if place not in refused}
            if ids.keys() & remembered:
                times = [row.time_us for row in rows]
                assert ids.keys() & remembered == {first_id + max(range(len(rows)), key=lambda row: (times[row], row))}
                assert not refused
                assert not ids.keys() & published.keys()
            else:
                assert {id_: published.pop(id_, None) for id_ in ids} == ids
            first_id += content.rows
    assert not published, "what was never committed"
    flush_of = {
        id_: place
        for place, flush in enumerate(plant.store.ledger.values())
        for id_ in range(flush.first_id, flush.first_id + len(rows_of(flush.contents)))
    }
    flushes = [flush_of[receipt.id] for receipt in plant.published]
    assert flushes == sorted(flushes)


@contextmanager
def new_names_at_most(names: int) -> Iterator[None]:
    """While it lasts, a flush looks up so many sensors of batches."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "MAX_NEW_NAMES", names)
        yield


async def test_many_new_sensors_keep_nobody_waiting() -> None:
    """A batch with many new sensors is committed once they are known. Other batches are committed meanwhile."""
    plant = Plant()
    plant.store.learning.clear()
    async with plant.running():
        with new_names_at_most(3):
            many = plant.send(batch(*"abcd"))
            others = [plant.send(what) for what in ("x", batch("y", "z"), "a")]
            await asyncio.gather(*others)
            assert not many.done()
            plant.store.learning.set()
            await many
    assert plant.store.stored == ["x", "y", "z", "a", *"abcd"]
    assert plant.store.learned == 1


async def test_new_sensors_of_many_batches_are_counted_together() -> None:
    """New sensors of all batches are counted until a flush begins. Known ones don't count."""
    plant = Plant()
    plant.store.known |= set("abcdef")
    async with plant.running():
        with new_names_at_most(3):
            await asyncio.gather(*(plant.send(batch(*sensors)) for sensors in ("abcdef", "uv", "wx", "bcdefa", "yz")))
            assert plant.store.learned == 2
            await asyncio.gather(*(plant.send(batch(*sensors)) for sensors in ("kl",)))
    assert plant.store.learned == 2


async def test_what_waits_for_its_sensors_is_given_back_in_time() -> None:
    plant = Plant()
    plant.store.learning.clear()
    async with plant.running():
        with new_names_at_most(1):
            parked = plant.send(batch("a", "b"))
            unawaited = plant.send(batch("c", "d"), is_awaited=False)
            began = now()
            assert isinstance(await parked, DatabaseUnavailable)
            assert now() - began <= 2 * COMMIT_TIMEOUT_S + SWEEP_INTERVAL_S
            plant.store.learning.set()
            assert await unawaited == BatchResult(2)
    assert plant.store.stored == ["c", "d"]


async def test_sensors_that_cannot_be_learnt_are_left_to_the_flush() -> None:
    """New sensors that can't be added are left to the flush, which tries them again."""
    plant = Plant()
    async with plant.running():
        with new_names_at_most(1):
            plant.store.away = True
            parked = plant.send(batch("a", "b"))
            await asyncio.sleep(0.5)
            plant.store.away = False
            assert await parked == BatchResult(2)


async def test_poison_among_new_sensors() -> None:
    """A batch whose sensors make the store fail in an unforeseen way is left to its flush and rejected there."""
    plant = Plant()
    plant.store.chokes_in = "learn_names, prepare"
    async with plant.running():
        with new_names_at_most(1):
            poisoned = plant.send(batch("a", POISON))
            assert isinstance(await plant.send("b"), CommittedReading)
            assert isinstance(await poisoned, RejectedByDatabase)
            assert isinstance(await plant.send(batch("c", "d")), BatchResult)
    assert plant.store.stored == ["b", "c", "d"]


async def test_a_stop_waits_for_what_is_parked() -> None:
    plant = Plant()
    plant.store.learning.clear()
    async with plant.running():
        with new_names_at_most(1):
            parked = plant.send(batch("a", "b"), is_awaited=False)
        draining = asyncio.create_task(plant.pipeline.drain(2))
        await asyncio.sleep(0.5)
        plant.store.learning.set()
        await draining
        assert await parked == BatchResult(2)
