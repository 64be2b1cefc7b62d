"""The maintenance of real databases: its election, its work, and what each process sees of it."""

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from app.store import columnstore, idempotency, maintenance, pruning, retention, sensors
from app.store.aggregates import Aggregates
from app.store.columnstore import Columnstore
from app.store.database import Connection, Database
from app.store.locks import Busy
from app.store.maintenance import Maintenance, Pieces, Work
from app.store.observer import DatabaseObserver
from app.store.pruning import Pruning
from app.store.retention import Retention
from tests.support.writing import opened, rows, sensors_of

MINUTE_US = 60_000_000


def real_us() -> int:
    return time.time_ns() // 1_000


async def do(database: Database, work: Pieces) -> int:
    """Do some work, and return how many pieces it had."""
    async with await database.connect("test") as connection, await database.connect("test") as guard:
        return len([piece async for piece in work(connection, guard)])


@asynccontextmanager
async def maintaining(database: Database, works: Sequence[Work], *, share: float) -> AsyncIterator[asyncio.Task[None]]:
    """Let a process stand for election, and work while elected, until the block ends."""
    task = asyncio.create_task(Maintenance(database, share=share).run(works))
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def execute(url: str, query: str, *arguments: object) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(query, arguments or None)


@pytest.mark.parametrize("minutes", [10, -10])
async def test_a_skewed_clock_is_told_and_makes_nobody_offline(
    database: str, caplog: pytest.LogCaptureFixture, minutes: int
) -> None:
    """Whether a sensor is online goes by the clock that its readings are held against."""
    servers_us = real_us() - minutes * MINUTE_US
    seen = datetime.fromtimestamp(servers_us / 1e6, UTC)
    online = "SELECT name, is_online, abs(age_s) < 30 FROM sensor_status ORDER BY name"
    execute(database, "INSERT INTO sensors (name) VALUES ('now'), ('old')")
    add = "INSERT INTO latest_readings (sensor_id, time, id) VALUES (%s, %s, 1)"
    execute(database, add, 1, seen)
    execute(database, add, 2, seen - timedelta(minutes=6))
    async with opened(database) as looked_at:
        skewed = DatabaseObserver(looked_at, now_us=lambda: real_us() - minutes * MINUTE_US)
        with caplog.at_level(logging.INFO):
            await skewed.look()
            await skewed.look()
        assert rows(database, online) == [("now", True, True), ("old", False, False)]
        assert skewed.statistics is not None
        assert abs(skewed.statistics.clock_skew_s - minutes * 60) < 5
        (told,) = [record for record in caplog.records if "clock" in record.message]
        assert told.levelname == "WARNING"
        assert ("ahead" if minutes > 0 else "behind") in told.message
        skewed._now_us = real_us
        with caplog.at_level(logging.INFO):
            await skewed.look()
        assert "agrees" in caplog.text
    assert rows(database, "SELECT value FROM server_settings WHERE name = 'clock_skew_s'") == [("0",)]


async def test_pruning_goes_in_pieces(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pruning goes in pieces until nothing is left."""
    monkeypatch.setattr(pruning, "PRUNE_PIECE_ROWS", 10)
    monkeypatch.setattr(pruning, "PRUNE_LEDGER", pruning.PRUNE_LEDGER.replace("20000", "10"))
    monkeypatch.setattr(idempotency, "PRUNE_PIECE_ROWS", 10)
    monkeypatch.setattr(idempotency, "PRUNE", idempotency.PRUNE.replace("20000", "10"))
    execute(database, "INSERT INTO flushes SELECT i, 1, now() - i * interval '1 minute' FROM generate_series(1, 45) i")
    execute(
        database,
        "INSERT INTO idempotency_keys SELECT 'k', i::text, '', '', true, now() - i * interval '1 hour'"
        " FROM generate_series(1, 59) i",
    )
    async with opened(database) as pruned:
        work = Pruning(pruned, idempotency_window_hours=24, accept_future_minutes=10)
        pieces = await do(pruned, lambda connection, _: work.prune_rows(connection))
    assert rows(database, "SELECT max(flush_id) FROM flushes") == [(9,)]
    assert rows(database, "SELECT count(*) FROM idempotency_keys") == [(23,)]
    assert pieces == 3 + 1 + 3 + 1


async def test_senders_without_a_stored_reading_are_pruned(database: str) -> None:
    """Only senders that were long silent and can have no stored reading are deleted."""
    oldest = datetime.now(UTC) - timedelta(days=30)
    execute(
        database,
        "INSERT INTO sources (key_name, client_ip, last_used_on) SELECT 'k', name, current_date - days"
        " FROM (VALUES ('ancient', 40), ('older', 34), ('same', 30), ('young', 0)) s (name, days)",
    )
    execute(database, "INSERT INTO sensors (name) VALUES ('a')")
    execute(database, "INSERT INTO readings VALUES (%s, 1, 1, 3, 20, NULL, NULL)", oldest)
    left = "SELECT client_ip FROM sources ORDER BY id"
    async with opened(database) as pruned:

        async def prune(accept_future_minutes: float) -> None:
            work = Pruning(pruned, idempotency_window_hours=24, accept_future_minutes=accept_future_minutes)
            await do(pruned, lambda connection, _: work.prune_senders(connection))

        await prune(0)
        assert len(rows(database, left)) == 4
        before = rows(database, "SELECT value FROM server_settings WHERE name = 'names_changed_by'")
        await prune(10)
        assert rows(database, left) == [("same",), ("young",)]
        assert rows(database, "SELECT value FROM server_settings WHERE name = 'names_changed_by'") == before
        execute(database, "TRUNCATE readings")
        await prune(10)
        assert rows(database, left) == [("young",)]


async def test_chunks_are_dropped_few_at_a_time(database: str, edition: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Old chunks are dropped a few at a time until all are gone, because one statement would take the locks of all."""
    if edition not in {"community", "apache"}:
        pytest.skip("there are no chunks")
    monkeypatch.setattr(retention, "OLDEST_CHUNKS", retention.OLDEST_CHUNKS.replace("LIMIT 20", "LIMIT 3"))
    execute(
        database,
        "INSERT INTO readings SELECT now() - i * interval '1 day', 1, i, 1, 20, NULL, NULL"
        " FROM generate_series(0, 10) i",
    )
    async with opened(database) as kept:
        found = kept.edition
        assert found is not None
        await do(kept, Aggregates(kept).refresh)
        pieces = await do(kept, lambda connection, _: Retention(2.5, 0, 0, 0).delete_old(connection, found))
    assert pieces == 3
    assert rows(database, "SELECT max(id) IN (2, 3) FROM readings") == [(True,)]


async def test_aggregates_have_their_own_retention(community_database: str) -> None:
    """Chunks of aggregates go when they have reached their age, and no readings with them."""
    execute(
        community_database,
        "INSERT INTO readings SELECT now() - i * interval '10 days', 1, i, 1, 20, NULL, NULL"
        " FROM generate_series(0, 20) i",
    )
    for tier in ("readings_1m", "readings_1h"):
        execute(community_database, f"CALL refresh_continuous_aggregate('{tier}', NULL, now() - interval '2 hours')")
    async with opened(community_database) as kept:
        found = kept.edition
        assert found is not None
        await do(kept, lambda connection, _: Retention(0, 60, 0, 0).delete_old(connection, found))
    old = "SELECT min(bucket) < now() - interval '199 days', min(bucket) < now() - interval '75 days' FROM {}"
    assert rows(community_database, old.format("readings_1m")) == [(False, False)]
    assert rows(community_database, old.format("readings_1h")) == [(True, True)]
    assert rows(community_database, "SELECT count(*) FROM readings") == [(21,)]


async def test_one_process_is_elected_and_another_takes_over(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of several processes works, on the work of all kinds, and when it ends another does."""
    monkeypatch.setattr(maintenance, "ELECTION_INTERVAL_S", 0.05)
    async with opened(database) as first, opened(database) as second:
        done: list[int] = []

        def works(process: int) -> list[Work]:
            async def pieces(connection: Connection, _: Connection) -> AsyncIterator[None]:
                await connection.execute("SELECT")
                done.append(process)
                yield

            return [Work("a", 0.01, pieces), Work("b", 0.01, pieces, can_wait=True)]

        ones = [Maintenance(each, share=1) for each in (first, second)]
        tasks = [asyncio.create_task(one.run(works(process))) for process, one in enumerate(ones)]
        try:
            await until(lambda: len(done) > 20)
            (elected,) = set(done)
            tasks[elected].cancel()
            await until(lambda: done[-1] != elected)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    assert set(rows(database, "SELECT work, failures, last_error FROM maintenance")) == {("a", 0, None), ("b", 0, None)}


async def test_an_ended_connection_ends_the_term(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """When PostgreSQL ends the guard's session, or that of the work, the process stands for election again."""
    monkeypatch.setattr(maintenance, "ELECTION_INTERVAL_S", 0.05)
    monkeypatch.setattr(maintenance, "PING_INTERVAL_S", 0.05)
    began: list[float] = []

    async def pieces(connection: Connection, _: Connection) -> AsyncIterator[None]:
        began.append(time.monotonic())
        await connection.execute("SELECT pg_sleep(60)")
        yield

    async with (
        opened(database) as opened_database,
        maintaining(opened_database, [Work("long", 60, pieces)], share=1),
    ):
        for count, name in enumerate(("sensorflow maintenance lock", "sensorflow maintenance"), 1):
            await until(lambda count=count: len(began) == count)  # type: ignore[misc]
            execute(
                database,
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND application_name = %s",
                name,
            )
        await until(lambda: len(began) == 3)


async def test_failures_are_recorded_and_hold_up_no_other_work(
    database: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A failure is logged and recorded, and what is busy is tried again."""
    done: list[str] = []

    async def fails(connection: Connection, _: Connection) -> AsyncIterator[None]:
        yield
        await connection.execute("SELECT 1 / 0")

    async def is_busy(*_: Connection) -> AsyncIterator[None]:
        done.append("busy")
        raise Busy("another has it")
        yield

    async def works(*_: Connection) -> AsyncIterator[None]:
        done.append("works")
        yield

    kinds = [Work("fails", 1, fails, is_awaited=True), Work("busy", 1, is_busy), Work("works", 0.01, works)]
    async with opened(database) as opened_database:
        monkeypatch.setattr(maintenance, "RETRY_BUSY_S", 0.01)
        async with maintaining(opened_database, kinds, share=0.15):
            await until(lambda: done.count("works") > 2 and done.count("busy") > 2)
        found = {work: rest for work, *rest in rows(database, "SELECT work, failures, last_error FROM maintenance")}
        assert found == {"busy": [0, None], "fails": [1, "division by zero"], "works": [0, None]}
        assert [record.message for record in caplog.records if "maintenance's work" in record.message] == [
            "the maintenance's work 'fails' failed and is tried again: division by zero"
        ]
        observer = DatabaseObserver(opened_database, now_us=real_us)
        await observer.look()
        assert observer.statistics is not None
        assert observer.statistics.late_works == []
        execute(database, "UPDATE maintenance SET first_started_at = first_started_at - interval '90 minutes'")
        await observer.look()
        assert observer.statistics.late_works == [
            "busy has not succeeded for 90 minutes",
            "fails has not succeeded for 90 minutes: division by zero",
        ]
        assert [work.name for work in observer.statistics.works] == ["busy", "fails", "works"]


async def test_an_unforeseen_error_ends_neither_the_server_nor_other_work(database: str) -> None:
    """An unforeseen error is a failure of its work, and of nothing else."""
    done = 0

    async def fails(*_: Connection) -> AsyncIterator[None]:
        yield
        [].pop()

    async def quick(*_: Connection) -> AsyncIterator[None]:
        nonlocal done
        done += 1
        yield

    async with opened(database) as opened_database:
        works = [Work("fails", 60, fails, is_awaited=True), Work("quick", 0.1, quick)]
        async with maintaining(opened_database, works, share=1) as task:
            await until(lambda: done > 2 or task.done())
            assert not task.done()
    assert rows(database, "SELECT last_error FROM maintenance WHERE work = 'fails'") == [("pop from empty list",)]


async def test_work_goes_on_on_a_full_disk(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work that frees space is done although nothing can be recorded."""
    monkeypatch.setattr(maintenance, "ELECTION_INTERVAL_S", 0.05)
    done = 0

    async def first(*_: Connection) -> AsyncIterator[None]:
        yield

    async def frees(*_: Connection) -> AsyncIterator[None]:
        nonlocal done
        done += 1
        yield

    execute(
        database,
        "CREATE FUNCTION is_full() RETURNS trigger LANGUAGE plpgsql AS"
        " 'BEGIN RAISE EXCEPTION $$no space left$$ USING ERRCODE = $$disk_full$$; END';"
        "CREATE TRIGGER is_full BEFORE INSERT ON maintenance EXECUTE FUNCTION is_full()",
    )
    async with opened(database) as opened_database:
        works = [Work("first", 60, first, is_awaited=True), Work("frees", 0.1, frees)]
        async with maintaining(opened_database, works, share=1):
            await until(lambda: done > 2)


async def test_work_that_can_wait_takes_its_share(database: str) -> None:
    """Work that can wait takes its share of the time, and other work is done meanwhile."""
    busy_s = 0.0
    done = 0

    async def slow(connection: Connection, _: Connection) -> AsyncIterator[None]:
        nonlocal busy_s
        while True:
            began = time.monotonic()
            await connection.execute("SELECT pg_sleep(0.05)")
            busy_s += time.monotonic() - began
            yield

    async def quick(*_: Connection) -> AsyncIterator[None]:
        nonlocal done
        done += 1
        yield

    async with opened(database) as opened_database:
        works = [Work("slow", 0, slow, can_wait=True), Work("quick", 0.1, quick)]
        async with maintaining(opened_database, works, share=0.1):
            await until(lambda: busy_s > 0)
            began = time.monotonic()
            await asyncio.sleep(5)
            share = busy_s / (time.monotonic() - began)
    assert 0.02 < share < 0.15
    assert done > 10


async def test_a_load_that_is_not_counted_is_unknown(database: str) -> None:
    """Where PostgreSQL counts no time of statements, the database does not count as idle."""
    for setting, is_known in (("on", True), ("off", False)):
        execute(
            database,
            f"DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET track_activities = {setting}', current_database());"
            " END $$",
        )
        (active_s,) = rows(database, maintenance.ACTIVE_S)[0]
        assert isinstance(active_s, float)
        assert math.isnan(active_s) != is_known


def test_rest_is_bounded() -> None:
    """A run rests for so many times its duration, but not for hours after an hour's work."""

    async def pieces(*_: Connection) -> AsyncIterator[None]:
        yield

    work = Work("a", 15, pieces, rest=20)
    assert work.rest_s(0.5) == 10
    assert work.rest_s(3_600) == maintenance.LONGEST_REST_S


async def test_long_work_holds_up_no_other(database: str) -> None:
    """Work that is due has its turn after a piece of other work, however many pieces that has."""
    done = 0

    async def endless(*_: Connection) -> AsyncIterator[None]:
        while True:
            await asyncio.sleep(0.01)
            yield

    async def quick(*_: Connection) -> AsyncIterator[None]:
        nonlocal done
        done += 1
        yield

    async with opened(database) as opened_database:
        works = [Work("endless", 60, endless), Work("quick", 0.1, quick, first_after_s=0.1)]
        async with maintaining(opened_database, works, share=1):
            await until(lambda: done > 3)


async def test_chunks_go_to_the_columnstore_beside_writers(
    community_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chunk that fills up is converted, again and again, and writers wait for no conversion but the first."""
    monkeypatch.setattr(columnstore, "FIRST_ROWS", 1_000)
    insert = (
        "INSERT INTO readings"
        " SELECT date_trunc('day', now()) + i * interval '1 second', 1 + i %% 3, i, 1, i, NULL, NULL"
        " FROM generate_series(%s::int, %s::int) i"
    )
    status = "SELECT _timescaledb_functions.chunk_status(c) FROM show_chunks('readings') c"
    keeper = Columnstore()
    async with opened(community_database) as kept:

        async def convert() -> int:
            await asyncio.sleep(2.1)  # until PostgreSQL has reported how many rows were written
            return await do(kept, keeper.convert)

        execute(community_database, insert, 1, 900)
        assert await convert() == 0
        execute(community_database, insert, 901, 1_100)
        assert await convert() > 0
        assert await convert() == 0
        execute(community_database, insert, 1_101, 3_900)
        assert await convert() == 0
        with psycopg.connect(community_database) as writer:
            writer.execute(insert, [3_901, 4_200])
            execute(community_database, insert, 4_201, 4_400)
            assert await convert() > 0
            writer.execute(insert, [4_401, 4_500])
        assert (columnstore.COMPRESSED | columnstore.PARTIAL,) in rows(community_database, status)
        execute(community_database, insert, 4_501, 7_600)
        assert await convert() > 0
        # To mark it as converted, TimescaleDB would look for rows that are left, and keep writers out meanwhile.
        assert rows(community_database, status) == [(columnstore.COMPRESSED | columnstore.PARTIAL,)]
        (chunk,) = rows(community_database, "SELECT c::text FROM show_chunks('readings') c")
        assert rows(community_database, f"SELECT count(*) FROM ONLY {chunk[0]}") == [(0,)]
    assert rows(community_database, "SELECT count(*), count(DISTINCT id), sum(temperature) FROM readings") == [
        (7_600, 7_600, 7_600 * 7_601 / 2)
    ]


async def test_a_chunk_that_is_over_and_quiet_goes_whole(community_database: str) -> None:
    """A chunk that is over goes to the columnstore once nothing is written to it, and so do readings that come late."""
    insert = (
        "INSERT INTO readings SELECT now() - interval '2 days' - i * interval '1 second', 1, i, 1, i, NULL, NULL"
        " FROM generate_series(%s::int, %s::int) i"
    )
    status = "SELECT DISTINCT _timescaledb_functions.chunk_status(c) FROM show_chunks('readings') c"
    keeper = Columnstore()
    async with opened(community_database) as kept:

        async def convert() -> int:
            await asyncio.sleep(1.1)
            return await do(kept, keeper.convert)

        execute(community_database, insert, 1, 10)
        await convert()
        assert rows(community_database, status) == [(0,)]
        keeper = Columnstore(quiet=timedelta(0))
        assert await convert() > 0
        assert rows(community_database, status) == [(columnstore.COMPRESSED,)]
        execute(community_database, insert, 11, 20)
        assert await convert() > 0
        assert rows(community_database, status) == [(columnstore.COMPRESSED,)]
    assert rows(community_database, "SELECT sum(temperature) FROM readings") == [(210,)]


async def test_a_chunk_in_use_holds_up_neither_writers_nor_other_chunks(community_database: str) -> None:
    """While a session reads a chunk for long, no writer waits for its conversion, and other chunks are converted."""
    insert = (
        "INSERT INTO readings SELECT now() - {} * interval '1 day', 1, i, 1, i, NULL, NULL FROM generate_series(1, 9) i"
    )
    for days in (9, 7, 5):
        execute(community_database, insert.format(days))
    keeper = Columnstore(quiet=timedelta(0))
    chunks = "SELECT c::text, _timescaledb_functions.chunk_status(c) FROM show_chunks('readings') c ORDER BY c::text"
    (first, _), *_ = rows(community_database, chunks)
    async with opened(community_database) as kept:
        with psycopg.connect(community_database) as reader:
            reader.execute(f"SELECT count(*) FROM {first}")
            converting = asyncio.create_task(do(kept, keeper.convert))
            await asyncio.sleep(0.1)
            await asyncio.to_thread(execute, community_database, "SET lock_timeout = '2s';" + insert.format(9))
            with pytest.raises(psycopg.errors.LockNotAvailable):
                await converting
            assert [status for _, status in rows(community_database, chunks)] == [0, 1, 1]
        await do(kept, keeper.convert)
    assert [status for _, status in rows(community_database, chunks)] == [1, 1, 1]


async def test_small_batches_are_joined_once(community_database: str) -> None:
    """A quiet chunk of small batches is written anew as full ones, by one statement, and then left alone."""
    insert = (
        "INSERT INTO readings SELECT date_trunc('day', now()) - interval '2 days' + i * interval '1 second', 1, i, 1,"
        " i, NULL, NULL FROM generate_series({0} + 1, {0} + 50) i"
    )
    batches = (
        "SELECT compress_relid::text FROM _timescaledb_catalog.compression_settings"
        " WHERE relid IN (SELECT show_chunks('readings'))"
    )

    def sizes() -> list[object]:
        ((name,),) = rows(community_database, batches)
        counts = rows(community_database, f"SELECT _ts_meta_count FROM {name} ORDER BY 1")
        return [count for (count,) in counts]

    keeper = Columnstore(quiet=timedelta(0))
    async with opened(community_database) as kept:

        async def convert() -> int:
            await asyncio.sleep(1.1)
            return await do(kept, keeper.convert)

        for first in range(0, 200, 50):
            execute(community_database, insert.format(first))
            execute(community_database, "SELECT compress_chunk(c) FROM show_chunks('readings') c")
        assert sizes() == [50] * 4
        with psycopg.connect(community_database) as reader:
            reader.execute("SELECT count(*) FROM readings")
            with pytest.raises(psycopg.errors.LockNotAvailable):
                await convert()
        assert sizes() == [50] * 4
        assert await convert() > 0
        assert sizes() == [200]
        joined = rows(community_database, batches)
        while await convert():
            assert rows(community_database, batches) == joined
    assert rows(community_database, "SELECT count(*), sum(temperature) FROM readings") == [(200, 200 * 201 / 2)]


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not is_so():
            await asyncio.sleep(0.01)


async def test_few_of_many_sensors_are_found_stretch_by_stretch(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few of many sensors are found by statements of which none reads all sensors."""
    execute(database, "INSERT INTO sensors (name) SELECT lpad(i::text, 4, '0') FROM generate_series(0, 999) i")
    execute(
        database,
        "INSERT INTO latest_readings (sensor_id, time, id, temperature)"
        " SELECT id, now(), id, 20 FROM sensors WHERE name IN ('0007', '0500', '0999')",
    )
    monkeypatch.setattr(sensors, "LONGEST_STRETCH", 300)
    async with opened(database) as searched:
        registry = sensors_of(searched)
        online = await registry.page(after="", limit=2, online=True)
        assert [sensor.sensor_id for sensor in online] == ["0007", "0500"]
        online = await registry.page(after="0500", limit=2, online=True)
        assert [sensor.sensor_id for sensor in online] == ["0999"]
        assert [reading.sensor_id for reading in await registry.latest(after="0007", limit=9)] == ["0500", "0999"]
        assert len(await registry.page(after="0900", limit=500, online=None)) == 99
