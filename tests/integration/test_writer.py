"""The writer against real servers: what is committed, what is not, and what is known when a connection breaks."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise

import psycopg
import pytest

from app.errors import DatabaseAway, OutcomeUnknown, RejectedByDatabase
from app.ingest.batch import Batch, Reading, Source
from app.store.database import Database
from app.store.queries import latest_reading
from app.store.writer import ID_BLOCK_ROWS, Writer
from tests.proxy import Fault, faulty_proxy

DASHBOARD = Source("API_KEY", "192.0.2.7")
T0_US = 1_689_172_245_000_000  # 2023-07-12T14:30:45Z


def reading(place: int, *, sensor: str = "a", source: Source = DASHBOARD) -> Reading:
    return Reading(T0_US + place * 1_000_000, sensor, 20 + place / 3, -0.5, 1e-300, source)


@asynccontextmanager
async def writing(url: str, *, timezone: str = "UTC", flush_timeout_s: float = 10) -> AsyncIterator[Writer]:
    database = Database(url, timezone=timezone)
    writer = Writer(database, flush_timeout_s=flush_timeout_s)
    try:
        await database.prepare()
        yield writer
    finally:
        await writer.close()
        await database.close()


def rows(url: str, query: str) -> list[tuple[object, ...]]:
    with psycopg.connect(url) as connection:
        return connection.execute(query).fetchall()


def count(url: str, table: str) -> object:
    return rows(url, f"SELECT count(*) FROM {table}")[0][0]


async def test_a_batch_is_stored_to_the_last_bit(database: str) -> None:
    readings = [reading(place, sensor=f"sensor {place % 7} 'ü'") for place in range(5_000)]
    async with writing(database) as writer:
        first_id = await writer.reserve_ids(len(readings))
        await writer.write(Batch.of(readings), first_id=first_id)
    stored = rows(
        database,
        "SELECT (extract(epoch FROM time) * 1000000)::bigint, s.name, temperature, humidity, pressure, key_name,"
        " client_ip, r.id FROM readings r JOIN sensors s ON s.id = sensor_id JOIN sources o ON o.id = source_id"
        " ORDER BY r.id",
    )
    assert stored == [(*r[:5], *r.source, first_id + place) for place, r in enumerate(readings)]


async def test_the_view_has_the_columns_of_the_older_server(database: str) -> None:
    async with writing(database, timezone="America/New_York") as writer:
        await writer.write(Batch.of([reading(0)]), first_id=7)
    (row,) = rows(database, "SELECT * FROM data")
    assert [str(value) for value in row] == ["7", "20.0", "-0.5", "1e-300", "2023-07-12", "10:30:45", "a", "192.0.2.7"]


async def test_names_have_one_id_also_when_many_writers_add_them_at_once(database: str) -> None:
    async def write(place: int) -> None:
        async with writing(database) as writer:
            batch = [
                reading(place, sensor=f"s{number}") for number in (range(50) if place % 2 else reversed(range(50)))
            ]
            await writer.write(Batch.of(batch), first_id=await writer.reserve_ids(50))

    await asyncio.gather(*map(write, range(6)))
    assert count(database, "sensors") == 50
    assert rows(database, "SELECT DISTINCT count(*) FROM readings GROUP BY sensor_id") == [(6,)]
    assert count(database, "(SELECT DISTINCT id FROM readings) ids") == 300


async def test_ids_are_consecutive_and_never_given_twice(database: str) -> None:
    async with writing(database) as one, writing(database) as other:
        taken: list[int] = []
        for count_ in (1, 60_000, 50_000, ID_BLOCK_ROWS):
            for writer in (one, other):
                first_id = await writer.reserve_ids(count_)
                taken += (first_id, first_id + count_ - 1)
    assert len(set(taken)) == len(taken) - 2  # the two reservations of one id begin where they end
    spans = sorted(zip(taken[::2], taken[1::2], strict=True))
    assert all(end < start for (_, end), (start, _) in pairwise(spans))


async def test_what_postgresql_refuses_leaves_nothing_behind(database: str) -> None:
    with psycopg.connect(database) as connection:
        connection.execute("ALTER TABLE readings ADD CHECK (temperature < 25)")
    async with writing(database) as writer:
        with pytest.raises(RejectedByDatabase, match="check"):
            await writer.write(Batch.of([reading(place) for place in range(30)]), first_id=1)
        await writer.write(Batch.of([reading(0)]), first_id=1)
    assert count(database, "readings") == count(database, "flushes") == 1


async def test_rows_that_a_trigger_swallows_are_not_called_committed(embedded_database_url: str) -> None:
    async with writing(embedded_database_url) as writer:
        with psycopg.connect(embedded_database_url) as connection:
            connection.execute(
                "CREATE FUNCTION swallow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';"
                "CREATE TRIGGER swallow BEFORE INSERT ON readings FOR EACH ROW EXECUTE FUNCTION swallow()"
            )
        with pytest.raises(RejectedByDatabase, match="0 of 1 rows"):
            await writer.write(Batch.of([reading(0)]), first_id=1)
    assert count(embedded_database_url, "flushes") == 0


async def test_a_commit_whose_answer_is_lost_is_found_in_the_ledger(database: str) -> None:
    with faulty_proxy(database) as proxy:
        async with writing(proxy.url) as writer:
            proxy.fault, proxy.faults_left = Fault.LOSE_COMMIT_ANSWER, 1
            with pytest.raises(OutcomeUnknown):
                await writer.write(Batch.of([reading(0)]), first_id=5)
            assert await writer.was_committed(5)
    assert count(database, "readings") == 1


async def test_a_commit_that_never_arrived_is_not_in_the_ledger(database: str) -> None:
    with faulty_proxy(database) as proxy:
        async with writing(proxy.url) as writer:
            proxy.fault, proxy.faults_left = Fault.LOSE_COMMIT, 1
            with pytest.raises(OutcomeUnknown):
                await writer.write(Batch.of([reading(0)]), first_id=5)
            assert not await writer.was_committed(5)
            await writer.write(Batch.of([reading(0)]), first_id=6)
    assert count(database, "readings") == count(database, "flushes") == 1


async def test_the_ledger_waits_for_a_lost_transaction_to_end(database: str) -> None:
    async with writing(database) as writer:
        lost = await psycopg.AsyncConnection.connect(database)
        async with lost:
            await lost.execute("INSERT INTO flushes (flush_id, rows) VALUES (5, 1)")
            asking = asyncio.create_task(writer.was_committed(5))
            await asyncio.sleep(0.3)
            assert not asking.done()
            await lost.commit()
            assert await asking


async def test_a_silent_server_is_given_up(embedded_database_url: str) -> None:
    """After the timeout, psycopg spends some 5 s on an attempt to cancel."""
    with faulty_proxy(embedded_database_url) as proxy:
        async with writing(proxy.url, flush_timeout_s=0.5) as writer:
            proxy.fault, proxy.faults_left = Fault.STALL_AT_COMMIT, 1
            async with asyncio.timeout(15):
                with pytest.raises(OutcomeUnknown):
                    await writer.write(Batch.of([reading(0)]), first_id=5)
                assert not await writer.was_committed(5)


async def test_a_connection_killed_while_idle_costs_one_error(database: str) -> None:
    async with writing(database) as writer:
        await writer.write(Batch.of([reading(0)]), first_id=1)
        assert rows(
            database, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE '%flusher'"
        )
        with pytest.raises(DatabaseAway):
            await writer.write(Batch.of([reading(1)]), first_id=2)
        await writer.connect()
        await writer.write(Batch.of([reading(1)]), first_id=2)
    assert count(database, "readings") == 2


async def test_a_database_that_only_reads_is_away(database: str) -> None:
    async with writing(database) as writer:
        with psycopg.connect(database, autocommit=True) as connection:
            name = connection.info.dbname
            connection.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
        with pytest.raises(DatabaseAway, match="read-only"):
            await writer.connect()


async def test_the_latest_reading_is_the_latest_by_event_time(database: str) -> None:
    async with writing(database) as writer:
        await writer.write(Batch.of([reading(9, sensor="old"), reading(50), reading(20, sensor="b")]), first_id=1)
        await writer.write(Batch.of([reading(10), reading(50, sensor="b")]), first_id=11)
    async with await psycopg.AsyncConnection.connect(database) as connection:
        assert await latest_reading(connection) == (reading(50, sensor="b"), 12)


async def test_another_server_behind_a_new_connection_is_asked_for_its_own_ids(database: str) -> None:
    """As after a failover that lost sensors, or a restore."""
    async with writing(database) as writer:
        await writer.write(Batch.of([reading(0)]), first_id=await writer.reserve_ids(1))
        with psycopg.connect(database, autocommit=True) as connection:
            connection.execute("TRUNCATE sensors RESTART IDENTITY")
            connection.execute("INSERT INTO sensors (name) VALUES ('somebody else')")
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name ~ 'flusher'"
            )
        with pytest.raises(DatabaseAway):
            await writer.connect()
        first_id = await writer.reserve_ids(1)
        await writer.write(Batch.of([reading(1)]), first_id=first_id)
    assert rows(database, f"SELECT sensor_id FROM data WHERE id = {first_id}") == [("a",)]


async def test_an_id_that_the_ledger_has_is_the_servers_trouble_and_not_the_senders(database: str) -> None:
    async with writing(database) as writer:
        await writer.write(Batch.of([reading(0)]), first_id=5)
        with pytest.raises(DatabaseAway, match="flushes_pkey"):
            await writer.write(Batch.of([reading(1)]), first_id=5)
    assert count(database, "readings") == 1
