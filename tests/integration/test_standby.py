"""The server does not trust rows that no standby has yet, so no reading answered 201 is lost by a failover."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from app.errors import DatabaseUnavailable, OutcomeUnknown
from app.ingest.idempotency import DuplicateRequest, StoredResult
from app.registry import SensorChange
from app.store.database import Database, migrate
from tests.support.databases import new_database
from tests.support.samples import record
from tests.support.server import API_KEY, eventually, running
from tests.support.standby import Pair, synchronous_pair
from tests.support.writing import FIRST_ANSWER, count, execute, reading, rows, sensors_of, writing

PATH = "/api/temperature_reading"
WAITING = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND application_name = %s"
FLUSHER = "sensorflow flusher"
CANCEL = "pg_cancel_backend(pid)"
TERMINATE = "pg_terminate_backend(pid, 5000)"


EDITIONS = ["embedded", "community"]


@pytest.fixture(scope="module", params=EDITIONS)
def shared_pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    """Run a primary and its standby, for tests that keep both running."""
    with synchronous_pair(request.param) as pair:
        yield pair


@pytest.fixture
def pair(shared_pair: Pair) -> Iterator[Pair]:
    """Return that pair with a new database that has the schema in it."""
    admin_url = shared_pair.url
    with new_database(admin_url) as url:
        migrate(url)
        shared_pair.url = url
        yield shared_pair
        shared_pair.url = admin_url
        shared_pair.join()


@pytest.fixture(params=EDITIONS)
def mortal_pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    """Run a primary with the schema in it and its standby, for one test."""
    with synchronous_pair(request.param) as pair:
        migrate(pair.url)
        yield pair


def end_wait(url: str, how: str, whose: str = FLUSHER) -> None:
    """End a commit's wait for the standby, as an operator may."""
    with psycopg.connect(url, autocommit=True) as connection:
        eventually(lambda: connection.execute(WAITING, [whose]).rowcount > 0)
        connection.execute(f"SELECT {how} FROM ({WAITING}) AS waiting", [whose])


def turn_warnings_off(url: str) -> None:
    """Limit messages of new sessions to errors, as an operator may."""
    execute(url, f"ALTER DATABASE {conninfo_to_dict(url)['dbname']} SET client_min_messages = error")


@asynccontextmanager
async def ended(url: str, how: str, whose: str = FLUSHER) -> AsyncIterator[None]:
    """End the wait that begins in the block."""
    ending = asyncio.create_task(asyncio.to_thread(end_wait, url, how, whose))
    yield
    await ending


@pytest.mark.parametrize("how", [CANCEL, TERMINATE, None], ids=["cancelled", "terminated", "timed out"])
async def test_flush(pair: Pair, how: str | None) -> None:
    """A flush that is visible and on no standby is unknown until the standby is back, and committed then."""
    async with writing(pair.url, flush_timeout_s=1) as writer:
        flush = await writer.prepare([reading(0)])
        pair.cut()
        if how is None:
            with pytest.raises(OutcomeUnknown):
                await writer.write(flush, dict)
        else:
            async with ended(pair.url, how):
                with pytest.raises(OutcomeUnknown):
                    await writer.write(flush, dict)
        eventually(lambda: count(pair.url, "readings") == 1)
        with pytest.raises(DatabaseUnavailable):
            await writer.was_committed(flush)
        pair.join()
        async with asyncio.timeout(10):
            while True:
                try:
                    assert await writer.was_committed(flush)
                except DatabaseUnavailable:
                    continue
                break


async def test_ledger_cancelled(pair: Pair) -> None:
    """A look into the ledger whose wait is cancelled decides nothing, even with warnings turned off."""
    turn_warnings_off(pair.url)
    async with writing(pair.url) as writer:
        flush = await writer.prepare([reading(0)])
        pair.cut()
        async with ended(pair.url, CANCEL):
            with pytest.raises(OutcomeUnknown, match="synchronous replication"):
                await writer.write(flush, dict)
        async with ended(pair.url, CANCEL):
            with pytest.raises(DatabaseUnavailable, match="confirm"):
                await writer.was_committed(flush)


async def test_ledger_without_the_flush(pair: Pair) -> None:
    """A flush that was never committed is known not to be there, without a standby."""
    async with writing(pair.url, flush_timeout_s=1) as writer:
        flush = await writer.prepare([reading(0)])
        pair.cut()
        assert not await writer.was_committed(flush)


@pytest.mark.parametrize("how", [CANCEL, None], ids=["cancelled", "timed out"])
async def test_record(pair: Pair, how: str | None) -> None:
    """A record that another process left, visible and on no standby, is no repetition before the standby is back."""
    async with writing(pair.url, flush_timeout_s=1) as other, writing(pair.url, flush_timeout_s=1) as writer:
        lost, flush = await other.prepare([reading(0)]), await writer.prepare([reading(0)])
        pair.cut()
        with pytest.raises(OutcomeUnknown):
            await other.write(lost, lambda: {record(): FIRST_ANSWER})
        eventually(lambda: count(pair.url, "idempotency_keys") == 1)
        ending = asyncio.create_task(asyncio.to_thread(end_wait, pair.url, how)) if how else None
        with pytest.raises(DatabaseUnavailable):
            await writer.write(flush, lambda: {record(): FIRST_ANSWER})
        if ending:
            await ending
        pair.join()
        await writer.connect()
        flush = await writer.prepare([reading(0)])
        with pytest.raises(DuplicateRequest) as repetition:
            await writer.write(flush, lambda: {record(): FIRST_ANSWER})
        assert repetition.value.results == {record().name: StoredResult(b"content", FIRST_ANSWER)}
    assert count(pair.url, "readings") == 1


async def test_connect(pair: Pair) -> None:
    """A database that writes and does not confirm is unavailable."""
    async with writing(pair.url, flush_timeout_s=1) as writer:
        pair.cut()
        with pytest.raises(DatabaseUnavailable):
            await writer.connect()
        async with ended(pair.url, CANCEL):
            with pytest.raises(DatabaseUnavailable, match="confirm"):
                await writer.connect()


async def test_sensor_change(pair: Pair) -> None:
    """A change of a sensor whose wait is cancelled is not reported as done, even with warnings turned off."""
    execute(pair.url, "INSERT INTO sensors (name) VALUES ('a')")
    turn_warnings_off(pair.url)
    database = Database(pair.url, timezone="UTC", offline_after_s=300)
    try:
        await database.prepare()
        pair.cut()
        async with ended(pair.url, CANCEL, "sensorflow reads"):
            sensors = sensors_of(database)
            with pytest.raises(DatabaseUnavailable):
                await sensors.change("a", SensorChange.model_validate({"label": "A"}))
    finally:
        await database.close()


class Client:
    """Sends readings, each under an Idempotency-Key of its own, and knows which were answered 201."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.statuses: dict[int, list[int]] = {}

    async def send(self, number: int) -> int:
        """Send a reading, perhaps again, and return the status."""
        body = {"temperature": number, "humidity": 50, "pressure": 1000, "sensor_id": "s"}
        headers = {"X-API-Key": API_KEY, "Idempotency-Key": str(number)}
        async with httpx.AsyncClient(timeout=60) as client:
            status = (await client.post(self.url + PATH, json=body, headers=headers)).status_code
        self.statuses.setdefault(number, []).append(status)
        return status

    @property
    def acknowledged(self) -> set[int]:
        return {number for number, statuses in self.statuses.items() if 201 in statuses}


@pytest.mark.parametrize("how", [CANCEL, TERMINATE, None], ids=["cancelled", "terminated", "timed out"])
async def test_failover(mortal_pair: Pair, tmp_path: Path, how: str | None) -> None:
    """No reading that was answered 201, at first or when sent again, is lost by a failover."""
    pair = mortal_pair
    settings = {"DATABASE_URL": pair.url, "COMMIT_TIMEOUT_S": "2", "FLUSH_TIMEOUT_S": "3"}
    with running(tmp_path, **settings) as server, running(tmp_path, **settings) as other_server:
        client, other = Client(server.url), Client(other_server.url)
        assert [await client.send(number) for number in range(3)] == [201] * 3
        assert await other.send(2) == 201
        pair.cut()
        sending = [asyncio.create_task(client.send(number)) for number in range(3, 6)]
        if how is not None:
            await asyncio.to_thread(end_wait, pair.url, how)
        assert {await each for each in sending} <= {503, 504}
        await asyncio.to_thread(eventually, lambda: count(pair.url, "readings") != 3)
        for sender in (client, other):  # what can be seen by now, and what was sure before
            assert set(await asyncio.gather(*map(sender.send, range(6)))) <= {503, 504}
        async with httpx.AsyncClient() as asking:
            assert (await asking.get(server.url + "/ready")).status_code == 503
        url = await asyncio.to_thread(pair.fail_over)
    there = {number for (number,) in rows(url, "SELECT temperature::integer FROM readings")}
    assert client.acknowledged | other.acknowledged == {0, 1, 2} == there
    assert count(url, "readings") == 3


async def test_standby_returns(pair: Pair, tmp_path: Path) -> None:
    """Once the standby is back, what was unknown is found and answered 201, and stored once."""
    settings = {"DATABASE_URL": pair.url, "COMMIT_TIMEOUT_S": "2", "FLUSH_TIMEOUT_S": "3"}
    with running(tmp_path, **settings) as server:
        client = Client(server.url)
        assert await client.send(1) == 201
        pair.cut()
        sending = asyncio.create_task(client.send(0))
        await asyncio.to_thread(end_wait, pair.url, TERMINATE)
        assert await sending == 504
        assert await client.send(0) in (503, 504)
        await asyncio.to_thread(pair.join)
        async with asyncio.timeout(20):
            while await client.send(0) != 201:
                await asyncio.sleep(0.2)
    assert count(pair.url, "readings") == 2


async def test_stop_without_standby(pair: Pair, tmp_path: Path) -> None:
    """A server that is stopped while nothing is confirmed says that it does not know, and never 201."""
    settings = {"DATABASE_URL": pair.url, "COMMIT_TIMEOUT_S": "2", "DRAIN_TIMEOUT_S": "3"}
    with running(tmp_path, **settings) as server:
        client = Client(server.url)
        assert await client.send(1) == 201
        pair.cut()
        sending = asyncio.create_task(client.send(0))
        await asyncio.to_thread(end_wait, pair.url, TERMINATE)
        await asyncio.to_thread(server.stop)
        assert await sending == 504
