"""Locks of other sessions keep out only the readings that they cover, and all others are stored."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from app.errors import DatabaseLocked
from app.ingest.batch import Content, Sender
from app.ingest.blocked import Blocked
from tests.support.databases import holding
from tests.support.samples import T0_US, record
from tests.support.server import API_KEY, running
from tests.support.writing import (
    DAY_S,
    FIRST_ANSWER,
    as_stored,
    batch,
    count,
    execute,
    reading,
    refuse_heat,
    rows,
    stored,
    until_somebody_waits_for_a_lock,
    write,
    writing,
)

DAY_US = DAY_S * 1_000_000
CHUNKS = "SELECT chunk::text FROM show_chunks('readings') AS chunk ORDER BY 1"
SLOW = "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(2); RETURN NULL; END'"
ENTIRE = [
    "LOCK TABLE readings IN SHARE MODE",
    "CREATE INDEX ON readings (time, temperature)",
    "ALTER TABLE readings ADD COLUMN note text",
    "LOCK TABLE flushes",
]


@asynccontextmanager
async def compression_that_waits(url: str, chunk: str) -> AsyncIterator[None]:
    """Let a compression wait for a long transaction that has read a chunk, so that the chunk can't be used."""
    with holding(url, f"SELECT FROM {chunk}"):
        compressing = asyncio.create_task(asyncio.to_thread(execute, url, f"SELECT compress_chunk('{chunk}')"))
        await until_somebody_waits_for_a_lock(url)
        yield
    await compressing


async def test_chunk(community_database: str) -> None:
    """A locked chunk is named by its day. The flush without it is stored, and the rest after it."""
    url = community_database
    late, live = batch(1, 2, 3), reading(DAY_S)
    day = 1_689_172_245_000_000 // DAY_US * DAY_US
    async with writing(url, lock_timeout_s=0.3) as writer:
        await write(writer, reading(0))
        [(chunk,)] = rows(url, CHUNKS)
        async with compression_that_waits(url, str(chunk)):
            began = time.monotonic()
            with pytest.raises(Blocked) as blocked:
                await write(writer, late, live, batch(4, DAY_S + 1))
            assert blocked.value.spans == [(day, day + DAY_US - 1)]
            assert "waits for AccessExclusiveLock on _timescaledb_internal._hyper" in blocked.value.holders
            await write(writer, live)
            assert time.monotonic() - began < 2
            flush = await writer.prepare([late])
            with pytest.raises(Blocked):
                await writer.write(flush, dict, was_blocked=True)
        await write(writer, late)
    assert count(url, "readings") == 5
    assert count(url, "flushes") == 3


@pytest.mark.parametrize("lock", ENTIRE)
async def test_entire_table(database: str, lock: str) -> None:
    """A lock that keeps out every reading counts as an unavailable database, unlike one that keeps out some."""
    async with writing(database, lock_timeout_s=0.2) as writer:
        await write(writer, reading(0))
        with holding(database, lock):
            began = time.monotonic()
            with pytest.raises(DatabaseLocked):
                await write(writer, reading(1), reading(DAY_S))
            with pytest.raises(DatabaseLocked, match=r"locked a table .* \(a session \(pid \d+\) holds"):
                await writer.connect()
            assert time.monotonic() - began < 2
        await writer.connect()
        await write(writer, reading(1))
    assert count(database, "readings") == 2


async def test_locked_records(database: str) -> None:
    """Readings without a record are stored while no record can be."""
    async with writing(database, lock_timeout_s=0.2) as writer:
        with holding(database, "LOCK TABLE idempotency_keys"):
            with pytest.raises(Blocked) as blocked:
                await write(writer, reading(0), reading(1), records={record(): FIRST_ANSWER})
            assert (blocked.value.spans, blocked.value.records) == ((), None)
            await write(writer, reading(0))
    assert count(database, "readings") == 1


async def test_record_of_another_transaction(database: str) -> None:
    """A record that an unended transaction has is named among many others."""
    records = {record(f"k{number}"): FIRST_ANSWER for number in range(20)}
    row = "VALUES ('API_KEY', 'k7', 'content', '', true)"
    statement = f"INSERT INTO idempotency_keys (key_name, key, content_hash, result, expires) {row}"
    async with writing(database, lock_timeout_s=0.2) as writer:
        with holding(database, statement):
            with pytest.raises(Blocked) as blocked:
                await write(writer, reading(0), records=records)
            assert blocked.value.records == [("API_KEY", "k7")]
        await write(writer, reading(0), records=records)
    assert count(database, "idempotency_keys") == 20


async def test_stale_ranges(community_database: str) -> None:
    """Other readings are stored while late ones can't be noted as late."""
    late, fresh = reading(-DAY_S), reading(0)
    frontier = "UPDATE server_settings SET value = to_timestamp({})::text WHERE name = 'aggregates_frontier'"
    execute(community_database, frontier.format(T0_US // 1_000_000 - 60))
    async with writing(community_database, lock_timeout_s=0.2) as writer:
        with holding(community_database, "LOCK TABLE stale_ranges"):
            with pytest.raises(Blocked) as blocked:
                await write(writer, fresh, late)
            [(first, last)] = blocked.value.spans
            assert first <= late.time_us <= last < fresh.time_us
            await write(writer, fresh)
        await write(writer, late)
    assert count(community_database, "readings") == 2


NAMES = ["LOCK TABLE sensors IN SHARE MODE", "ALTER TABLE sensors ADD COLUMN note text", "LOCK TABLE sources"]


@pytest.mark.parametrize("lock", NAMES)
async def test_new_names(database: str, lock: str) -> None:
    """Readings of known sensors, from known senders, are stored while the tables of names are locked."""
    new = reading(1, source=Sender("API_KEY", "127.0.0.9")) if "sources" in lock else reading(1, sensor="new")
    async with writing(database, lock_timeout_s=0.3) as writer:
        await write(writer, reading(0), batch(0))
        with holding(database, lock):
            assert writer.has_new_names(new)
            began = time.monotonic()
            with pytest.raises(Blocked) as blocked:
                await writer.prepare([new, reading(2)])
            assert 0.3 <= time.monotonic() - began < 1
            assert blocked.value.of_new_names
            assert "on s" in blocked.value.holders
            with pytest.raises(Blocked):
                await writer.prepare([new], was_blocked=True)
            assert not writer.has_new_names(reading(2))
            await write(writer, reading(2), batch(3, 4))
        await write(writer, new)
        assert not writer.has_new_names(new)
    assert count(database, "readings") == 6


async def test_name_of_another_transaction(database: str) -> None:
    """A sensor that an unended transaction has added is waited for, and keeps no other out."""
    async with writing(database, lock_timeout_s=0.3) as writer:
        with holding(database, "INSERT INTO sensors (name) VALUES ('new')"):
            with pytest.raises(Blocked):
                await writer.prepare([reading(0, sensor="new")])
            await write(writer, reading(1, sensor="newer"))
        await write(writer, reading(0, sensor="new"))


async def test_touch_that_is_locked(database: str) -> None:
    """Known senders are looked up, though it can't be noted that they are in use."""
    async with writing(database, lock_timeout_s=0.1) as writer:
        await write(writer, reading(0))
        execute(database, "UPDATE sources SET last_used_on = '2020-01-01'")
        writer._sources.forget()
        with holding(database, "LOCK TABLE sources IN SHARE MODE"):
            await write(writer, reading(1))
    assert count(database, "readings") == 2


async def test_senders_asked_for_again(database: str) -> None:
    """A sender stays known if its table is locked when it is due to be asked for again."""
    async with writing(database, lock_timeout_s=0.1) as writer:
        await write(writer, reading(0))
        writer._sources._forget_at = 0
        with holding(database, "LOCK TABLE sources"):
            with pytest.raises(Blocked):
                await writer.prepare([reading(1)])
            assert not writer.has_new_names(reading(1))
            await write(writer, reading(1))
    assert count(database, "readings") == 2


async def test_bad_row(community_database: str) -> None:
    """A row that PostgreSQL refuses hides no lock, and a lock hides no bad row."""
    refuse_heat(community_database)
    async with writing(community_database, lock_timeout_s=0.2) as writer:
        await write(writer, reading(0))
        [(chunk,)] = rows(community_database, CHUNKS)
        with holding(community_database, f"LOCK TABLE {chunk}"):
            with pytest.raises(Blocked):
                await write(writer, reading(2), batch(DAY_S, DAY_S + 1))  # which are as hot as they are late
            flush = await writer.prepare([batch(DAY_S)])
            await writer.write(flush, dict, was_blocked=True)
            assert flush.refused.keys() == {0}


async def test_brief_flush(database: str) -> None:
    """A flush that is written day by day stores the same as one that is written at once."""
    contents: list[Content] = [
        reading(1),
        batch(2, DAY_S, 3, -DAY_S),
        reading(DAY_S + 1),
        batch(2 * DAY_S, is_atomic=True),
    ]
    async with writing(database) as writer:
        flush = await writer.prepare(contents)
        await writer.write(flush, lambda: {record(): FIRST_ANSWER}, was_blocked=True)
    assert stored(database) == as_stored(contents, flush.first_id)
    assert count(database, "flushes") == count(database, "idempotency_keys") == 1


class Client:
    """Sends readings of one sensor."""

    def __init__(self, client: httpx.AsyncClient, url: str) -> None:
        self._client = client
        self._url = url

    async def send(self, time_s: float, sensor: str = "s") -> int:
        """Send a reading of a time and return the status."""
        body = {"temperature": 20, "humidity": 50, "pressure": 1000, "sensor_id": sensor, "time": time_s}
        return (await self._client.post(self._url + "/api/temperature_reading", json=body)).status_code

    async def ready(self) -> tuple[int, str | None]:
        """Return whether readings are accepted, and if not, why."""
        answer = await self._client.get(self._url + "/ready")
        return answer.status_code, answer.json()["trouble"]


@asynccontextmanager
async def client_of(url: str) -> AsyncIterator[Client]:
    async with httpx.AsyncClient(headers={"X-API-Key": API_KEY}, timeout=30) as client:
        yield Client(client, url)


async def test_live_readings(community_database: str, tmp_path: Path) -> None:
    """Live readings go on while a late one waits for its chunk, is given back, and is stored once the lock is gone."""
    url, late_s = community_database, time.time() - 10 * DAY_S
    execute(url, "SELECT _timescaledb_functions.stop_background_workers()")  # or a policy compresses it first
    with running(tmp_path, DATABASE_URL=url) as server:
        async with client_of(server.url) as client:
            assert await client.send(late_s) == await client.send(time.time()) == 201
            chunk = rows(url, CHUNKS)[0][0]
            async with compression_that_waits(url, str(chunk)):
                late = [asyncio.create_task(client.send(late_s + second)) for second in range(3)]
                durations: list[float] = []
                while len(durations) < 50 or not all(each.done() for each in late):
                    began = time.monotonic()
                    assert await client.send(time.time()) == 201
                    durations.append(time.monotonic() - began)
                    assert (await client.ready())[0] == 200
                assert [await each for each in late] == [503] * 3
                assert max(durations) < 3
                late = [asyncio.create_task(client.send(late_s + second)) for second in range(3)]
                await asyncio.sleep(0.5)
            assert [await each for each in late] == [201] * 3
    assert count(url, "readings") == len(durations) + 5


async def test_live_readings_of_known_sensors(database: str, tmp_path: Path) -> None:
    """Known sensors go on while new ones wait for the table of sensors, however many they are."""
    with running(tmp_path, DATABASE_URL=database) as server:
        async with client_of(server.url) as client:
            assert await client.send(time.time()) == 201
            with holding(database, "LOCK TABLE sensors IN SHARE MODE"):
                new: list[asyncio.Task[int]] = []
                durations: list[float] = []
                while len(durations) < 100 or not new[0].done():
                    new.append(asyncio.create_task(client.send(time.time(), f"new {len(new)}")))
                    began = time.monotonic()
                    assert await client.send(time.time()) == 201
                    durations.append(time.monotonic() - began)
                    assert (await client.ready())[0] == 200
                    await asyncio.sleep(0.02)
                assert await new[0] == 503
                assert sorted(durations)[-2] < 1, "only the first lock is waited for"
            assert set(await asyncio.gather(*new)) <= {201, 503}
            assert await client.send(time.time(), "new 0") == 201


@pytest.mark.parametrize("lock", ENTIRE[1:])
async def test_ready(database: str, tmp_path: Path, lock: str) -> None:
    """A server that can't store readings is not ready, gives the reason, and accepts readings again once it can."""
    with running(tmp_path, DATABASE_URL=database) as server:
        async with client_of(server.url) as client:
            assert await client.send(time.time()) == 201
            with holding(database, lock):
                assert await client.send(time.time()) == 503
                status, trouble = await client.ready()
                assert status == 503
                assert "nother session has locked" in str(trouble)
            async with asyncio.timeout(10):
                while (await client.ready())[0] != 200:
                    await asyncio.sleep(0.05)
            assert await client.send(time.time()) == 201
    assert count(database, "readings") == 2


async def test_ready_silent(database: str, tmp_path: Path) -> None:
    """A server whose flush takes longer than senders wait is not ready, even before the reason is known."""
    with running(tmp_path, DATABASE_URL=database, COMMIT_TIMEOUT_S="1") as server:
        async with client_of(server.url) as client:
            assert await client.send(time.time()) == 201
            execute(database, SLOW, "CREATE TRIGGER slow BEFORE INSERT ON flushes EXECUTE FUNCTION slow()")
            assert await client.send(time.time()) == 504
            await asyncio.sleep(0.2)
            status, trouble = await client.ready()
            assert (status, "not committed" in str(trouble)) == (503, True)
            execute(database, "DROP TRIGGER slow ON flushes")
            async with asyncio.timeout(10):
                while (await client.ready())[0] != 200:
                    await asyncio.sleep(0.05)
