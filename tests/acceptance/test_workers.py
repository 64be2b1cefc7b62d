"""Several workers behind one port act as one server for senders, subscribers, operators and signals."""

import asyncio
import json
import os
import signal
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from itertools import count, pairwise
from pathlib import Path

import httpx
import psycopg
import pytest
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from tests.support.clients import closing, listen, receive
from tests.support.loads import Load, stored
from tests.support.prometheus import adds_up, samples
from tests.support.server import API_KEY, Server, eventually, running, starting

PATH = "/api/temperature_reading"
READING = {"temperature": 23.5, "humidity": 48.25, "pressure": 1013.25, "sensor_id": "greenhouse-1"}
IDS_OF_A_WORKER = 100_000
"""Each worker takes its ids in blocks of so many, so that an id tells who committed the reading."""


@pytest.fixture
def server(embedded_database_url: str, tmp_path: Path) -> Iterator[Server]:
    """Start a server of two workers on a new database."""
    with running(tmp_path, DATABASE_URL=embedded_database_url, WORKERS="2") as server:
        yield server


def is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def worker_of(reading: dict[str, object]) -> int:
    """Return the worker that has committed a reading."""
    return int(str(reading["id"])) // IDS_OF_A_WORKER


@asynccontextmanager
async def senders(server: Server, count: int) -> AsyncIterator[list[httpx.AsyncClient]]:
    """Return clients of one connection each, opened in turn and so spread over the workers in turn."""
    async with AsyncExitStack() as stack:
        clients = []
        for _ in range(count):
            client = httpx.AsyncClient(base_url=server.url, headers={"X-API-Key": API_KEY}, timeout=60)
            clients.append(await stack.enter_async_context(client))
            (await client.get("/health")).raise_for_status()
        yield clients


async def post(client: httpx.AsyncClient, **fields: object) -> dict[str, object]:
    answer = await client.post(PATH, json={**READING, **fields})
    assert answer.status_code == 201
    return dict(answer.json())


async def metrics(client: httpx.AsyncClient) -> dict[str, float]:
    """Return every sample without labels, by name."""
    return samples(await client.get("/metrics"))


async def hear(websocket: ClientConnection, heard: list[int]) -> None:
    async for message in websocket:
        heard.append(json.loads(message)["id"])


async def test_connections_are_spread_evenly_however_few_they_are(server: Server) -> None:
    async with senders(server, 8) as clients:
        took = Counter([worker_of(await post(client)) for client in clients])
        assert sorted(took.values()) == [4, 4]
        for client in clients:
            assert worker_of(await post(client)) in took


async def test_every_subscriber_hears_every_reading_of_either_worker_once_and_in_its_order(server: Server) -> None:
    async with senders(server, 4) as clients, AsyncExitStack() as stack:
        await asyncio.gather(*(post(client) for client in clients))
        heard: list[list[int]] = [[] for _ in range(4)]
        for ids in heard:
            websocket = await stack.enter_async_context(listen(server))
            await receive(websocket)
            hearing = asyncio.create_task(hear(websocket, ids))
            stack.callback(hearing.cancel)

        async def send(client: httpx.AsyncClient) -> list[dict[str, object]]:
            return [await post(client, sensor_id=f"s{number}") for number in range(100)]

        sent = [reading for readings in await asyncio.gather(*map(send, clients)) for reading in readings]
        assert len({worker_of(reading) for reading in sent}) == 2
        expected = sorted(int(str(reading["id"])) for reading in sent)
        async with asyncio.timeout(10):
            while min(map(len, heard)) < len(expected):
                await asyncio.sleep(0.02)
        for ids in heard:
            assert sorted(ids) == expected
            for worker in {id_ // IDS_OF_A_WORKER for id_ in ids}:
                of_worker = [id_ for id_ in ids if id_ // IDS_OF_A_WORKER == worker]
                assert of_worker == sorted(of_worker)


async def test_whoever_subscribes_under_load_misses_nothing_from_then_on_and_gets_nothing_twice(server: Server) -> None:
    """No subscriber stays in between, so the workers start to forward again each time."""
    async with senders(server, 4) as clients:

        async def send(client: httpx.AsyncClient) -> None:
            while True:
                await post(client)

        sending = [asyncio.create_task(send(client)) for client in clients]
        for _ in range(15):
            heard: list[int] = []
            async with listen(server) as websocket:
                first = int(str((await receive(websocket))["id"]))
                hearing = asyncio.create_task(hear(websocket, heard))
                async with asyncio.timeout(10):
                    while len({id_ // IDS_OF_A_WORKER for id_ in heard}) < 2 or len(heard) < 50:
                        await asyncio.sleep(0.01)
                hearing.cancel()
                await asyncio.gather(hearing, return_exceptions=True)
            assert first not in heard
            for worker in {id_ // IDS_OF_A_WORKER for id_ in heard}:
                of_worker = [id_ for id_ in [first, *heard] if id_ // IDS_OF_A_WORKER == worker]
                assert all(later - earlier == 1 for earlier, later in pairwise(of_worker))
        for sender in sending:
            sender.cancel()
        outcomes = await asyncio.gather(*sending, return_exceptions=True)
        assert all(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes)


async def test_the_latest_is_the_same_on_every_worker_though_nobody_has_listened(server: Server) -> None:
    async with senders(server, 2) as clients:
        for hours_ago, client in ((5, clients[0]), (3, clients[1]), (1, clients[0])):
            latest = await post(client, time=time.time() - hours_ago * 3_600)
            for other in clients:
                await post(other, time=time.time() - 6 * 3_600)
            for _ in range(2):
                async with listen(server) as websocket:
                    assert await receive(websocket) == latest
            async with listen(server) as one, listen(server) as two:
                assert await receive(one) == await receive(two) == latest


async def test_a_key_has_its_connections_over_all_workers(embedded_database_url: str, tmp_path: Path) -> None:
    settings = {"WORKERS": "2", "MAX_WS_CONNECTIONS_PER_KEY": "3"}
    with running(tmp_path, DATABASE_URL=embedded_database_url, **settings) as server:
        async with senders(server, 1) as (client,):
            stored_ = await post(client)
            for _ in range(3):
                async with listen(server) as one, listen(server) as two, listen(server) as three:
                    for websocket in (one, two, three):
                        assert await receive(websocket) == stored_
                    for _ in range(2):
                        async with listen(server) as fourth:
                            assert await closing(fourth) == (1008, "This key already has 3 connections.")
                    async with listen(server, API_KEY) as of_another_key:
                        assert await receive(of_another_key) == stored_


async def test_a_scrape_of_any_worker_shows_the_whole_server(server: Server) -> None:
    async with senders(server, 2) as clients, listen(server), listen(server):
        for client in clients:
            await asyncio.gather(*(post(client) for _ in range(3)))
        for client in clients:
            said = await metrics(client)
            assert said["sensorflow_readings_committed_total"] == 6
            assert said["sensorflow_websocket_connections"] == 2
            assert said["sensorflow_buffer_max_rows"] == 1_000_000
            assert said["sensorflow_flush_rows_sum"] == 6
            assert said["sensorflow_ready"] == said["sensorflow_database_up"] == 1
            assert (said["sensorflow_workers"], said["sensorflow_worker_restarts_total"]) == (2, 0)
            assert adds_up(said)
        async with Load().on(server):
            for _ in range(5):
                many = await asyncio.gather(*map(metrics, clients * 3))
                assert all(map(adds_up, many))


async def test_a_worker_that_is_killed_under_load_loses_nothing_and_is_replaced(
    embedded_database_url: str, tmp_path: Path
) -> None:
    settings = {"WORKERS": "2", "MAX_WS_CONNECTIONS_PER_KEY": "4"}
    load = Load()
    with running(tmp_path, DATABASE_URL=embedded_database_url, **settings) as server:
        async with AsyncExitStack() as stack:
            websockets = [await stack.enter_async_context(listen(server)) for _ in range(4)]
            heard: list[list[int]] = [[] for _ in websockets]
            async with load.on(server), senders(server, 1) as (client,):
                hearing = [asyncio.create_task(hear(*each)) for each in zip(websockets, heard, strict=True)]
                await asyncio.sleep(0.5)
                before = await metrics(client)
                victim = server.workers[0]
                os.kill(victim, signal.SIGKILL)
                await asyncio.sleep(0.5)
                # Those of the other worker go on.
                ended, others = await asyncio.wait(hearing, timeout=0)
                assert (len(ended), len(others)) == (2, 2)
                for lost in ended:
                    assert isinstance(lost.exception(), ConnectionClosed)
                for listener in others:
                    listener.cancel()
            survivors = [websocket for websocket, each in zip(websockets, hearing, strict=True) if each in others]
            again = [await stack.enter_async_context(listen(server)) for _ in range(2)]
            for websocket in again:
                await receive(websocket)
            async with listen(server) as fifth:
                assert (await closing(fifth))[0] == 1008
            await asyncio.to_thread(eventually, lambda: len(server.workers) == 3)
            await asyncio.to_thread(
                eventually, lambda: server.messages.count("database available; accepting readings") == 3
            )
            await asyncio.sleep(0.2)
            async with senders(server, 4) as clients:
                took = {worker_of(await post(client)) for client in clients}
                assert len(took) == 2
                for websocket in [*survivors, *again]:
                    async with asyncio.timeout(10):
                        seen: set[int] = set()
                        while len(seen) < 4:
                            message = json.loads(await websocket.recv())
                            seen |= {message["id"]} if message["temperature"] == READING["temperature"] else set()
                for client in clients:
                    after = await metrics(client)
                    assert after["sensorflow_worker_restarts_total"] == 1
                    assert after["sensorflow_workers"] == 2
                    assert adds_up(after)
                    assert all(after[name] >= before[name] for name in before if name.endswith("_total"))
        assert server.stop() == 0
        assert not any(map(is_alive, server.workers))
    assert any("killed by SIGKILL" in message for message in server.messages)
    there = stored(embedded_database_url)
    assert load.acknowledged
    assert load.acknowledged <= there.keys()
    assert max(there[number] for number in load.acknowledged) == 1


async def test_a_worker_that_stands_still_slows_no_other_and_its_subscribers_go_on_or_are_told(
    embedded_database_url: str, tmp_path: Path
) -> None:
    settings = {"WORKERS": "2", "LIVE_MAILBOX_MESSAGES": "100"}
    with running(tmp_path, DATABASE_URL=embedded_database_url, **settings) as server:
        async with senders(server, 8) as clients, listen(server) as one, listen(server) as two:
            first = await post(clients[0], sensor_id="all")
            assert await receive(one) == await receive(two) == first
            ends = [asyncio.create_task(until_the_end(websocket, 4 * 101)) for websocket in (one, two)]
            os.kill(server.workers[0], signal.SIGSTOP)
            try:
                posts = {asyncio.create_task(post(client, sensor_id="all")): client for client in clients}
                moving, stuck = await asyncio.wait(posts, timeout=3)
                assert (len(moving), len(stuck)) == (4, 4)

                async def send(client: httpx.AsyncClient) -> None:
                    for number in range(100):  # together more than the kernel holds for the one that stands still
                        await post(client, sensor_id=f"{clients.index(client)}-{number}-" + "🌡" * 240)

                async with asyncio.timeout(60):
                    await asyncio.gather(*(send(posts[each]) for each in moving))
            finally:
                os.kill(server.workers[0], signal.SIGCONT)
            # Some of these may find their connection closed: it has been idle for longer than it may, by its clock.
            await asyncio.gather(*stuck, return_exceptions=True)
            assert sorted(await asyncio.gather(*ends)) == ["all", "told"]
            async with listen(server) as again, listen(server) as other:
                assert await receive(again) == await receive(other)
        async with senders(server, 1) as (client,):
            said = await metrics(client)
            assert said["sensorflow_forwarded_lapses_total"] >= 1
            assert said["sensorflow_websocket_dropped_total"] == 1


async def until_the_end(websocket: ClientConnection, expected: int) -> str:
    """Return whether a subscriber has got a number of messages, or was told that some are missing."""
    for _ in range(expected):
        try:
            await asyncio.wait_for(websocket.recv(), 60)
        except ConnectionClosed as closed:
            return "told" if closed.rcvd and closed.rcvd.code == 1013 else str(closed)
    return "all"


async def test_sigterm_drains_every_worker_and_leaves_no_process(embedded_database_url: str, tmp_path: Path) -> None:
    load = Load()
    with running(tmp_path, DATABASE_URL=embedded_database_url, WORKERS="2") as server:
        async with load.on(server), listen(server) as websocket:
            await asyncio.sleep(0.5)
            began = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(server.wait) == 0
            assert time.monotonic() - began < 15
            await asyncio.sleep(0.2)
            with pytest.raises(ConnectionClosed, match="1012"):
                await hear(websocket, [])
        assert not any(map(is_alive, server.workers))
        assert "Traceback" not in server.log
    assert set(load.statuses) <= {201, 503, "ConnectError", "ReadError", "RemoteProtocolError"}
    there = stored(embedded_database_url)
    assert load.acknowledged == there.keys()
    assert max(there.values()) == 1


async def test_workers_outlive_a_killed_parent_only_to_drain(embedded_database_url: str, tmp_path: Path) -> None:
    load = Load()
    with running(tmp_path, DATABASE_URL=embedded_database_url, WORKERS="2") as server:
        async with load.on(server):
            await asyncio.sleep(0.5)
            server.process.kill()
            await asyncio.to_thread(eventually, lambda: not any(map(is_alive, server.workers)))
            assert "Traceback" not in server.log
    there = stored(embedded_database_url)
    assert load.acknowledged
    assert load.acknowledged <= there.keys()
    assert max(there.values()) == 1


@pytest.mark.parametrize("heard", ["listening on", "binding", "worker 1 is process", "worker 2 is process"])
def test_ctrl_c_reaches_every_process_and_leaves_no_traceback(
    embedded_database_url: str, tmp_path: Path, heard: str
) -> None:
    with starting(tmp_path, DATABASE_URL=embedded_database_url, WORKERS="2") as server:
        eventually(lambda: heard in server.log)
        for _ in range(20):  # wherever in its start the worker is
            for process in filter(is_alive, server.workers):
                os.kill(process, signal.SIGINT)
            time.sleep(0.03)
        assert server.stop(signal.SIGINT) == 130
        assert not any(map(is_alive, server.workers))
        assert "Traceback" not in server.log
        assert "has ended" not in server.log


def test_a_signal_to_all_processes_at_once_ends_them_as_well_as_one_to_the_parent(server: Server) -> None:
    for process in server.workers:
        os.kill(process, signal.SIGTERM)
    assert server.stop() == 0
    assert not any(map(is_alive, server.workers))
    assert "Traceback" not in server.log


@pytest.mark.parametrize("count", ["1", "2"])
def test_a_schema_of_another_version_ends_the_server_with_a_message(
    embedded_database_url: str, tmp_path: Path, count: str
) -> None:
    with psycopg.connect(embedded_database_url) as connection:
        connection.execute("CREATE TABLE alembic_version (version_num varchar(32) PRIMARY KEY)")
        connection.execute("INSERT INTO alembic_version VALUES ('from_the_future')")
    with starting(tmp_path, DATABASE_URL=embedded_database_url, WORKERS=count) as server:
        assert server.wait() == 1
        assert server.log.count("sensorflow: The database's schema has revision from_the_future") == 1
        assert "Traceback" not in server.log
        assert not any(map(is_alive, server.workers))


def test_it_says_once_that_it_listens_and_names_no_key(folder: Path) -> None:
    with running(folder, WORKERS="2", LOG_FORMAT="text", LOG_LEVEL="DEBUG") as server:
        eventually(lambda: "greenhouse" in server.log)
        key = (folder / "data" / "api_key").read_text().strip()
        answers = [httpx.post(server.url + PATH, json=READING, headers={"X-API-Key": key}) for _ in range(4)]
        assert {answer.status_code for answer in answers} == {201}
        assert server.stop() == 0
        assert server.log.count("listening on") == 1
        assert server.log.count("Send one:") == 1
        assert key not in server.log
        assert not (folder / "data" / "postgres" / "postmaster.pid").exists()


def most_on_their_way() -> int:
    """Return how many connections may be on their way to one worker."""
    here, there = socket.socketpair()
    here.setblocking(False)
    with here, there:
        for number in count():
            try:
                socket.send_fds(here, [b"\0"], [here.fileno()])
            except BlockingIOError:
                return number
    raise AssertionError


@pytest.mark.parametrize("beyond", [1, 300])
def test_connections_wait_while_every_worker_stands_still(server: Server, beyond: int) -> None:
    """More connections than can be on their way to the workers are served when these go on."""
    with ExitStack() as stack:
        host, port = server.url.removeprefix("http://").split(":")
        for process in server.workers:
            os.kill(process, signal.SIGSTOP)
        try:
            connections = [
                stack.enter_context(socket.create_connection((host, int(port)), timeout=30))
                for _ in range(2 * most_on_their_way() + beyond)
            ]
            for connection in connections:
                connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            time.sleep(1)  # the parent hands over all that it can
        finally:
            for process in server.workers:
                os.kill(process, signal.SIGCONT)
        for connection in connections:
            assert connection.recv(1_024).startswith(b"HTTP/1.1 200 ")
