"""Clients of a running server: a bare connection, and a subscriber of its WebSocket."""

import asyncio
import json
import socket

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from tests.support.server import API_KEY_WS, Server


def connection_to(server: Server) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=30)


def listen(server: Server, key: str = API_KEY_WS) -> connect:
    return connect(f"{server.websocket_url}?api-key={key}")


async def receive(websocket: ClientConnection) -> dict[str, object]:
    return dict(json.loads(await asyncio.wait_for(websocket.recv(), 10)))


async def closing(websocket: ClientConnection) -> tuple[int, str]:
    """Return the code and the reason with which the server closes."""
    with pytest.raises(ConnectionClosed) as closed:
        await asyncio.wait_for(websocket.recv(), 10)
    frame = closed.value.rcvd
    assert frame is not None
    return frame.code, frame.reason
