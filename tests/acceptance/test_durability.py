"""A reading that was answered 201 is stored once, whatever happens to the server."""

import asyncio
import random
import signal
import time
from functools import partial
from pathlib import Path

from tests.support.loads import SENDERS, Load, stored
from tests.support.server import API_KEY, eventually, running

KILLS = 20


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
