"""The pipeline against a database that does as it is told, in virtual time."""

import asyncio
import math
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.errors import BufferFull, DatabaseAway, NotStored, OutcomeUnknown, RejectedByDatabase, ShuttingDown
from app.ingest.batch import Batch, Reading
from app.ingest.buffer import Answer, Buffer
from app.ingest.pipeline import FIRST_BACKOFF_S, LONGEST_BACKOFF_S, LONGEST_RETRY_AFTER_S, SWEEP_INTERVAL_S, Pipeline
from app.ingest.receipt import Receipt
from tests.unit.samples import reading

COMMIT_TIMEOUT_S = 4.0
RECOVERY_S = 2 * LONGEST_BACKOFF_S
LONGEST_TEST_S = 600.0
ROUND_TRIP_S = 0.001
BAD = "bad"
"""PostgreSQL refuses sensors whose names begin like this."""

Answered = asyncio.Future[Answer]


class FakeStore:
    """A database that can be away, silent or picky, and lose its answer to COMMIT; it knows what it committed."""

    def __init__(self) -> None:
        self.away = False
        self.speaking = asyncio.Event()
        self.speaking.set()
        self.lost_answers: deque[bool] = deque()
        """Of the next commits that lose their answer: whether they commit."""
        self.ledger: dict[int, list[str]] = {}
        """The sensors of each committed flush, by its first id, in the order of commits."""
        self.attempts: list[list[str]] = []
        self._next_id = 1

    @property
    def stored(self) -> list[str]:
        return [sensor for sensors in self.ledger.values() for sensor in sensors]

    async def connect(self) -> None:
        await asyncio.sleep(ROUND_TRIP_S)
        if self.away:
            raise DatabaseAway("the plug is pulled")

    async def reserve_ids(self, count: int) -> int:
        await self.connect()
        self._next_id += count
        return self._next_id - count

    async def write(self, batch: Batch, *, first_id: int) -> None:
        sensors = [batch.sensors[place] for place in batch.columns["sensor"].to_pylist()]
        self.attempts.append(sensors)
        await self.speaking.wait()
        if any(sensor.startswith(BAD) for sensor in sensors):
            raise RejectedByDatabase("PostgreSQL would not take it")
        is_lost = bool(self.lost_answers)
        if not is_lost:
            await self.connect()
        if not is_lost or self.lost_answers.popleft():
            self.ledger[first_id] = sensors
        if is_lost:
            raise OutcomeUnknown("the connection died during COMMIT")

    async def was_committed(self, first_id: int) -> bool:
        await self.connect()
        return first_id in self.ledger


def receipt_of(reading: Reading, reading_id: int) -> Receipt:
    return Receipt(reading_id, reading.time_us, reading.sensor, b"{}")


class Plant:
    """A pipeline, its database, and all that comes out of it."""

    def __init__(
        self,
        *,
        max_rows: int = 1_000,
        flush_max_rows: int = 100,
        encode: Callable[[Reading, int], Receipt] = receipt_of,
        on_commit: Callable[[Sequence[Receipt]], None] | None = None,
        on_flush: Callable[[int, float], None] | None = None,
    ) -> None:
        self.store = FakeStore()
        self.published: list[Receipt] = []
        self.flushes: list[tuple[int, float]] = []
        self.pipeline = Pipeline(
            buffer=Buffer(max_rows, max_bytes=1 << 30),
            store=self.store,
            encode=encode,
            on_commit=on_commit or self.published.extend,
            on_flush=on_flush or (lambda *flush: self.flushes.append(flush)),
            clock=now,
            commit_timeout_s=COMMIT_TIMEOUT_S,
            flush_max_rows=flush_max_rows,
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Runs until the end of the block, where nothing may be left; the sums are right all the time."""
        async with asyncio.timeout(LONGEST_TEST_S), asyncio.TaskGroup() as tasks:
            work = tasks.create_task(self.pipeline.run())
            scraper = tasks.create_task(self._scrape_for_ever())
            await self.pipeline.opened.wait()
            yield
            assert self.pipeline.buffer.rows == 0
            scraper.cancel()
            work.cancel()

    async def _scrape_for_ever(self) -> None:
        tally = self.pipeline.buffer.tally
        while True:
            ended = tally.committed + tally.rejected + tally.given_back
            assert tally.accepted == ended + self.pipeline.buffer.rows
            await asyncio.sleep(SWEEP_INTERVAL_S / 10)

    def send(self, sensor: str) -> Answered:
        """Submits a reading; a second answer to it would raise in the pipeline."""
        answered: Answered = asyncio.get_running_loop().create_future()
        self.pipeline.submit(reading(sensor), answered.set_result)
        return answered

    async def send_into_silence(self, *sensors: str) -> list[Answered]:
        """Silences the database, and has one flush take these to it."""
        self.store.speaking.clear()
        answers = [self.send(sensor) for sensor in sensors]
        await asyncio.sleep(0.1)
        assert self.store.attempts[-1] == list(sensors)
        return answers


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
        assert plant.store.ledger == {1: ["a"]}
        assert plant.published == [answer.result()]


async def test_readings_sent_at_once_share_a_flush() -> None:
    plant = Plant()
    async with plant.running():
        await asyncio.gather(*map(plant.send, "abc"))
        assert plant.store.attempts == [["a", "b", "c"]]


async def test_readings_that_come_within_a_few_turns_of_the_loop_share_a_flush() -> None:
    async def send_late(turns: int) -> Answer:
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
        assert plant.pipeline.buffer.tally.rejected == len(bad)


async def test_a_short_absence_is_ridden_out() -> None:
    plant = Plant()
    async with plant.running():
        plant.store.away = True
        answers = [plant.send("a"), plant.send("b")]
        await asyncio.sleep(COMMIT_TIMEOUT_S / 4)
        plant.store.away = False
        assert [type(answer) for answer in await asyncio.gather(*answers)] == [Receipt, Receipt]
        assert plant.store.ledger.popitem()[1] == ["a", "b"]


async def test_a_connection_that_died_while_idle_is_nobodys_trouble() -> None:
    """The first failure is tried again at once: no backoff, and nobody is refused meanwhile."""
    plant = Plant()
    async with plant.running():
        plant.store.away = True
        sent_at = now()
        answer = plant.send("a")
        await asyncio.sleep(1.5 * ROUND_TRIP_S)
        plant.store.away = False
        assert isinstance(await answer, Receipt)
        assert 3 * ROUND_TRIP_S < now() - sent_at < FIRST_BACKOFF_S


async def test_a_database_that_answers_but_stores_nothing_is_not_hammered() -> None:
    """Such as one whose disk is full: it can be reached each time."""
    plant = Plant()
    async with plant.running():
        plant.store.lost_answers.extend(1_000 * [False])
        assert isinstance(await plant.send("a"), DatabaseAway)
        assert 3 <= len(plant.store.attempts) <= 10


async def test_while_the_database_is_away_readings_are_refused_and_then_taken_again() -> None:
    plant = Plant()
    async with plant.running():
        plant.store.away = True
        sent_at = now()
        answer = plant.send("waits in vain")
        await asyncio.sleep(COMMIT_TIMEOUT_S / 2)
        with pytest.raises(DatabaseAway, match="the database is away") as refusal:
            plant.send("refused")
        assert refusal.value.retry_after_s == LONGEST_BACKOFF_S
        assert plant.pipeline.trouble == "the plug is pulled"
        assert isinstance(await answer, DatabaseAway)
        assert COMMIT_TIMEOUT_S <= now() - sent_at <= COMMIT_TIMEOUT_S + SWEEP_INTERVAL_S
        plant.store.away = False
        await asyncio.sleep(RECOVERY_S)
        assert plant.pipeline.trouble is None
        assert isinstance(await plant.send("taken"), Receipt)
        assert plant.store.stored == ["taken"]


async def test_nothing_is_taken_before_the_database_has_been_reached() -> None:
    plant = Plant()
    plant.store.away = True
    with pytest.raises(DatabaseAway):
        plant.send("before the start")
    work = asyncio.create_task(plant.pipeline.run())
    await asyncio.sleep(60)
    with pytest.raises(DatabaseAway):
        plant.send("too early")
    assert not plant.pipeline.opened.is_set()
    plant.store.away = False
    await asyncio.sleep(RECOVERY_S)
    assert isinstance(await plant.send("in time"), Receipt)
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
    """Its sender will send it again; if it was committed after all, subscribers see it."""
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
        tally = plant.pipeline.buffer.tally
        assert (tally.committed, tally.given_back) == (len(stored), 1 - len(stored))


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
        assert isinstance(await late, Receipt)
        assert plant.store.attempts == [["first"], ["early", "late"], ["late"]]


@pytest.mark.parametrize("turns", range(12))
async def test_a_reading_that_expires_on_its_way_into_a_flush_does_not_stop_the_flusher(turns: int) -> None:
    """As after a pause of the whole process, in which its deadline passed."""
    plant = Plant()
    async with plant.running():
        answer = plant.send("a")
        for _ in range(turns):
            await asyncio.sleep(0)
        plant.pipeline.buffer.expire(math.inf, lambda: DatabaseAway("too late"), lambda: OutcomeUnknown("too late"))
        await asyncio.sleep(1)
        assert not isinstance(await answer, Receipt)
        assert isinstance(await plant.send("b"), Receipt)


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
        assert isinstance(await plant.send("welcome"), Receipt)


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
        assert [type(answer.result()) for answer in answers] == [Receipt, Receipt]
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
    """Also where the last reading was given back and not flushed."""
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
    assert isinstance(waits.result(), DatabaseAway)
    with pytest.raises(DatabaseAway, match="the database is away"):
        plant.send("too late")


@pytest.mark.parametrize("place", ["encode", "on_commit", "on_flush"])
async def test_a_bug_ends_the_flusher_and_leaves_nobody_waiting(place: str) -> None:
    def bug(*_: object) -> Receipt:
        raise ZeroDivisionError

    plant = Plant(**{place: bug})  # type: ignore[arg-type]
    work = asyncio.create_task(plant.pipeline.run())
    await plant.pipeline.opened.wait()
    [in_flight] = await plant.send_into_silence("in flight")
    waits = plant.send("waits")
    plant.store.speaking.set()
    with pytest.raises(ExceptionGroup):
        await asyncio.wait_for(work, LONGEST_TEST_S)
    assert isinstance(waits.result(), DatabaseAway)
    assert in_flight.done(), "it is committed, and its sender hears nothing"
    assert isinstance(in_flight.result(), Receipt | OutcomeUnknown)
    assert plant.pipeline.trouble == "the flusher has stopped"


SENDING = st.lists(st.sampled_from(["good", "good", "good", BAD]), min_size=1, max_size=6)
FATE = st.one_of(
    st.tuples(st.just("send"), SENDING),
    st.tuples(st.just("wait"), st.floats(0.001, 1.5 * COMMIT_TIMEOUT_S)),
    st.tuples(st.just("away"), st.booleans()),
    st.tuples(st.just("speaking"), st.booleans()),
    st.tuples(st.just("lose answer"), st.booleans()),
)


async def suffer(fate: tuple[str, object], plant: Plant, answered: dict[str, Answered]) -> None:
    match fate:
        case ("send", list(kinds)):
            for kind in kinds:
                sensor = f"{kind} {len(answered)}"
                with suppress(NotStored):
                    answered[sensor] = plant.send(sensor)
        case ("wait", float(seconds)):
            await asyncio.sleep(seconds)
        case ("away", bool(away)):
            plant.store.away = away
        case ("speaking", bool(speaking)):
            (plant.store.speaking.set if speaking else plant.store.speaking.clear)()
        case ("lose answer", bool(committed)):
            plant.store.lost_answers.append(committed)


@settings(max_examples=300)
@given(fates=st.lists(FATE, max_size=25))
async def test_whatever_the_database_does_every_answer_is_true(fates: list[tuple[str, object]]) -> None:
    plant = Plant(max_rows=12, flush_max_rows=5)
    answered: dict[str, Answered] = {}
    async with plant.running():
        for fate in fates:
            await suffer(fate, plant, answered)
        plant.store.away = False
        plant.store.speaking.set()
        async with asyncio.timeout(COMMIT_TIMEOUT_S + SWEEP_INTERVAL_S):
            await asyncio.gather(*answered.values())
        await asyncio.sleep(RECOVERY_S)

    ledger = plant.store.ledger.items()
    ids = {sensor: first_id + place for first_id, sensors in ledger for place, sensor in enumerate(sensors)}
    assert len(ids) == len(plant.store.stored), "nothing is stored twice"
    assert [(receipt.sensor, receipt.id) for receipt in plant.published] == list(ids.items())
    for sensor, future in answered.items():
        match future.result():
            case Receipt() as receipt:
                assert receipt.id == ids[sensor]
            case RejectedByDatabase():
                assert sensor.startswith(BAD)
                assert sensor not in ids
            case answer:
                assert isinstance(answer, OutcomeUnknown) or (isinstance(answer, NotStored) and sensor not in ids)
    tally = plant.pipeline.buffer.tally
    assert (tally.accepted, tally.committed) == (len(answered), len(ids))
