"""What is answered 201 is there, once, whatever happens to the server."""

import asyncio
import random
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import httpx
import psycopg

from tests.server import API_KEY, Server, eventually, running

PATH = "/api/temperature_reading"
SENDERS = 16
KILLS = 20


class Load:
    """Many connections, each sending one reading after the other, every one of them unlike any other."""

    def __init__(self) -> None:
        self.statuses: Counter[int | str] = Counter()
        self.acknowledged: set[float] = set()
        self._numbers = iter(range(1, 100_000_000))

    @asynccontextmanager
    async def on(self, server: Server) -> AsyncIterator[None]:
        """Sends to a server for as long as the block lasts; a broken connection ends its sender."""
        limits = httpx.Limits(max_connections=SENDERS)
        async with httpx.AsyncClient(headers={"X-API-Key": API_KEY}, limits=limits, timeout=30) as client:
            senders = [asyncio.create_task(self._send(client, server.url + PATH)) for _ in range(SENDERS)]
            try:
                yield
            finally:
                for sender in senders:
                    sender.cancel()
                await asyncio.gather(*senders, return_exceptions=True)

    def has_acknowledged(self, readings: int) -> bool:
        """Whether so many have been answered 201."""
        return len(self.acknowledged) >= readings

    async def _send(self, client: httpx.AsyncClient, url: str) -> None:
        while True:
            number = float(next(self._numbers))
            body = {"temperature": number, "humidity": 50, "pressure": 1000, "sensor_id": f"s{number % 50:g}"}
            try:
                answer = await client.post(url, json=body)
            except httpx.TransportError as error:
                self.statuses[type(error).__name__] += 1
                return
            self.statuses[answer.status_code] += 1
            if answer.status_code == 201:
                self.acknowledged.add(number)


def stored(url: str) -> Counter[float]:
    with psycopg.connect(url) as connection:
        return Counter(number for (number,) in connection.execute("SELECT temperature FROM readings"))


async def test_twenty_kills_under_load_lose_nothing_and_double_nothing(database: str, tmp_path: Path) -> None:
    load, chance = Load(), random.Random(20130101)
    for _ in range(KILLS):
        with running(tmp_path, DATABASE_URL=database) as server:
            enough = len(load.acknowledged) + SENDERS
            async with load.on(server):
                await asyncio.sleep(chance.uniform(0.2, 0.5))
                await asyncio.to_thread(eventually, partial(load.has_acknowledged, enough))
                server.stop(signal.SIGKILL)
    there = stored(database)
    assert len(load.acknowledged) >= KILLS * SENDERS
    assert load.acknowledged <= there.keys()
    assert max(there.values()) == 1


async def test_a_killed_server_leaves_its_embedded_database_to_the_next(folder: Path) -> None:
    load, keys = Load(), {"API_KEY": API_KEY}
    for _ in range(3):
        with running(folder, **keys) as server:
            async with load.on(server):
                await asyncio.sleep(0.3)
                server.stop(signal.SIGKILL)
    with running(folder, **keys) as server:
        there = stored(f"host={folder / 'data' / 'socket'} user=sensorflow dbname=postgres")
        assert server.stop() == 0
        assert not (folder / "data" / "postgres" / "postmaster.pid").exists()
    assert load.acknowledged
    assert load.acknowledged <= there.keys()
    assert max(there.values()) == 1


async def test_sigterm_under_load_drains_and_answers_everybody(database: str, tmp_path: Path) -> None:
    load = Load()
    with running(tmp_path, DATABASE_URL=database) as server:
        async with load.on(server):
            await asyncio.sleep(1)
            began = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(server.wait) == 0
            assert time.monotonic() - began < 15
            await asyncio.sleep(0.2)
    assert set(load.statuses) <= {201, 503, "ConnectError", "ReadError", "RemoteProtocolError"}
    there = stored(database)
    assert load.acknowledged == there.keys()
    assert max(there.values()) == 1
