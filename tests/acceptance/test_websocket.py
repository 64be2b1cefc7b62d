"""The WebSocket contract, as a client uses it."""

import asyncio
import json
import socket
import time
from pathlib import Path

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.typing import Subprotocol

from tests.support.clients import closing, listen, receive
from tests.support.server import API_KEY, API_KEY_WS, Server, running

PATH = "/api/temperature_reading"
READING = {"temperature": 23.5, "humidity": 48.25, "pressure": 1013.25, "sensor_id": "greenhouse-1"}


async def post(server: Server, **fields: object) -> dict[str, object]:
    async with httpx.AsyncClient() as client:
        answer = await client.post(server.url + PATH, json={**READING, **fields}, headers={"X-API-Key": API_KEY})
    assert answer.status_code == 201
    return dict(answer.json())


async def test_a_subscriber_gets_the_latest_by_event_time_then_every_reading_as_the_201_has_it(server: Server) -> None:
    latest = await post(server)
    await post(server, sensor_id="late", time=_days_ago(3))
    async with listen(server) as websocket:
        assert await receive(websocket) == latest
        stored = [await post(server, sensor_id=f"s{number}") for number in range(5)]
        assert [await receive(websocket) for _ in stored] == stored


async def test_the_latest_reading_outlives_a_restart(embedded_database_url: str, tmp_path: Path) -> None:
    with running(tmp_path, DATABASE_URL=embedded_database_url) as server:
        stored = await post(server)
        await post(server, time=_days_ago(1))
    with running(tmp_path, DATABASE_URL=embedded_database_url) as server:
        async with listen(server) as websocket:
            assert await receive(websocket) == stored


async def test_the_key_may_come_in_the_query_the_header_or_a_subprotocol(server: Server) -> None:
    stored = await post(server)
    async with listen(server, API_KEY) as websocket:
        assert await receive(websocket) == stored
    async with connect(server.websocket_url, additional_headers={"X-API-Key": API_KEY_WS}) as websocket:
        assert await receive(websocket) == stored
    offered = [Subprotocol("sensorflow"), Subprotocol(f"sensorflow.key.{API_KEY_WS}")]
    async with connect(server.websocket_url, subprotocols=offered) as websocket:
        assert websocket.subprotocol == "sensorflow"
        assert await receive(websocket) == stored


@pytest.mark.parametrize("query", ["", "?api-key=", "?api-key=wrong", "?key=" + API_KEY_WS])
async def test_a_wrong_key_is_closed_with_1008_and_the_reason(server: Server, query: str) -> None:
    async with connect(server.websocket_url + query) as websocket:
        code, reason = await closing(websocket)
    assert code == 1008
    assert "API key" in reason


async def test_a_key_has_as_many_connections_as_the_setting_says(embedded_database_url: str, tmp_path: Path) -> None:
    with running(tmp_path, DATABASE_URL=embedded_database_url, MAX_WS_CONNECTIONS_PER_KEY="2") as server:
        stored = await post(server)
        async with listen(server) as one, listen(server):
            assert await receive(one) == stored
            async with listen(server) as third:
                assert await closing(third) == (1008, "This key already has 2 connections.")
            async with listen(server, API_KEY) as of_another_key:
                assert await receive(of_another_key) == stored
            await one.close()
            async with listen(server) as again:
                assert await receive(again) == stored


async def test_no_key_reaches_a_log_at_the_most_talkative_level(embedded_database_url: str, tmp_path: Path) -> None:
    with running(tmp_path, DATABASE_URL=embedded_database_url, LOG_LEVEL="DEBUG") as server:
        await post(server)
        async with listen(server) as websocket:
            await receive(websocket)
        async with connect(f"{server.websocket_url}?api-key=wrong-{API_KEY}") as websocket:
            await closing(websocket)
        async with httpx.AsyncClient() as client:
            await client.get(f"{server.url}/nothing?api-key={API_KEY}")
        assert server.stop() == 0
        assert "listening on" in server.log
        assert API_KEY not in server.log
        assert API_KEY_WS not in server.log


async def test_a_subscriber_that_does_not_read_slows_nobody_and_is_dropped(
    embedded_database_url: str, tmp_path: Path
) -> None:
    settings = {"LIVE_SEND_TIMEOUT_S": "1", "LIVE_MAILBOX_MESSAGES": "100"}
    with running(tmp_path, DATABASE_URL=embedded_database_url, **settings) as server:
        host, port = server.url.removeprefix("http://").split(":")
        with socket.socket() as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            deaf.connect((host, int(port)))
            deaf.sendall(
                f"GET /ws/sensor_updates?api-key={API_KEY_WS} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\n"
                "Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
                "Sec-WebSocket-Version: 13\r\n\r\n".encode()
            )
            async with listen(server) as websocket, httpx.AsyncClient(headers={"X-API-Key": API_KEY}) as client:
                heard: list[object] = []

                async def hear() -> None:
                    async for message in websocket:
                        heard.append(json.loads(message)["id"])

                hearing = asyncio.create_task(hear())
                sent: list[object] = []

                async def send(worker: int) -> None:
                    for number in range(250):
                        body = {**READING, "sensor_id": f"{worker}-{number}-" + "x" * 200}
                        answer = await client.post(server.url + PATH, json=body)
                        assert answer.status_code == 201
                        sent.append(answer.json()["id"])

                await asyncio.gather(*map(send, range(8)))
                async with asyncio.timeout(20):
                    while (
                        "sensorflow_websocket_connections 1.0" not in (await client.get(server.url + "/metrics")).text
                    ):
                        await asyncio.sleep(0.1)
                    while len(heard) < len(sent):
                        await asyncio.sleep(0.05)
                hearing.cancel()
                assert sorted(map(str, heard)) == sorted(map(str, sent))
        assert server.stop() == 0


def _days_ago(days: float) -> float:
    return time.time() - days * 86_400
