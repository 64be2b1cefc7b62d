"""The bounds of a subscriber's messages, and the end of its connection, on a stand-in transport."""

import asyncio
from functools import partial
from typing import Any

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from app.web.connections import ConnectionLimit
from app.web.protocol import HttpProtocol
from app.web.slices import Slices
from app.web.websocket import FRAMES_AT_ONCE, FRAMES_PER_S, MAX_MESSAGE_BYTES, SLICE_BYTES, WebSocketProtocol
from tests.support.connections import Desk, Wire, a_few_turns

LINES = [
    b"GET /ws HTTP/1.1",
    b"Host: x",
    b"Connection: Upgrade",
    b"Upgrade: websocket",
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    b"Sec-WebSocket-Version: 13",
]
PING = b"\x89\x80\0\0\0\0"
CLOSE = b"\x88\x82\0\0\0\0\x03\xe8"


def handshake(*headers: bytes) -> bytes:
    return b"\r\n".join([*LINES, *headers, b"", b""])


def text(length: int) -> bytes:
    return b"\x81\xfe" + length.to_bytes(2, "big") + bytes(4) + b"x" * length


async def listens(_: Scope, receive: Receive, send: Send) -> None:
    """Accept, and read until the peer is gone."""
    await receive()
    await send({"type": "websocket.accept"})
    while (await receive())["type"] != "websocket.disconnect":
        pass


async def refuses(_: Scope, receive: Receive, send: Send) -> None:
    """Accept, and close."""
    await receive()
    await send({"type": "websocket.accept"})
    await send({"type": "websocket.close", "code": 1008, "reason": "no key"})


async def hesitates(_: Scope, receive: Receive, __: Send) -> None:
    """Neither accepts nor refuses."""
    await receive()
    await asyncio.sleep(1_000)


class Connection:
    """One connection: the protocols between a wire and an application."""

    def __init__(self, application: Any = listens) -> None:
        slices, loop = Slices(), asyncio.get_running_loop()
        config = uvicorn.Config(
            application,
            ws=partial(WebSocketProtocol, slices=slices),  # type: ignore[arg-type]
            ws_max_size=MAX_MESSAGE_BYTES,
            ws_per_message_deflate=False,
            ws_ping_interval=None,  # its random bytes may look like any frame
            log_config=None,
        )
        config.load()
        self.state = ServerState()
        self.wire = Wire()
        limit = ConnectionLimit(10, clock=loop.time)
        protocol = HttpProtocol(config, self.state, {}, endpoint=Desk(), slices=slices, limit=limit)
        self.wire.protocol = protocol
        protocol.connection_made(self.wire)

    @property
    def protocol(self) -> Any:
        return self.wire.protocol

    @property
    def alive(self) -> list[Any]:
        """Return the protocols that a stopping server would end."""
        return list(self.state.connections)

    def feed(self, data: bytes) -> None:
        self.protocol.data_received(data)

    @property
    def sent(self) -> bytes:
        return b"".join(self.wire.writes)

    @property
    def close_code(self) -> int | None:
        """Return the code of the server's close frame, if there is one. No other frame here has its first byte."""
        _, found, frame = self.sent.partition(b"\x88")
        return int.from_bytes(frame[1:3], "big") if found else None


async def test_subscriber_is_heard() -> None:
    """Pings are answered, also one that came right behind the handshake, and a close frame is echoed."""
    connection = Connection()
    connection.feed(handshake() + PING)
    await a_few_turns()
    assert connection.sent.startswith(b"HTTP/1.1 101 ")
    assert connection.sent.endswith(b"\r\n\r\n\x8a\x00")
    connection.feed(CLOSE)
    await a_few_turns()
    assert (connection.close_code, connection.wire.ended) == (1_000, "closed")


@pytest.mark.parametrize(
    "frame", [PING, text(1)[:1] + b"\x81\0\0\0\0x", b"\x01\x80\0\0\0\0"], ids=["ping", "text", "fragment"]
)
@pytest.mark.parametrize("in_one_read", [False, True])
async def test_subscriber_that_sends_too_much(frame: bytes, in_one_read: bool) -> None:
    """A subscriber that sends more than FRAMES_PER_S, or FRAMES_AT_ONCE in a burst, is soon closed with 1008."""
    if frame[0] == 1:
        frame += b"\x80\x80\0\0\0\0"  # its end
    connection = Connection()
    flood = frame * 40_000
    connection.feed(handshake() + flood if in_one_read else handshake())
    await a_few_turns()
    if not in_one_read:
        connection.feed(flood)
        await a_few_turns()
    assert (connection.close_code, connection.wire.ended) == (1_008, "closed")
    assert b"at most 10 frames a second" in connection.sent
    assert connection.sent.count(b"\x8a\x00") <= FRAMES_AT_ONCE + SLICE_BYTES // len(PING)


async def test_subscriber_may_ping_each_second() -> None:
    """A subscriber that sends a frame now and then is left in peace."""
    connection = Connection()
    connection.feed(handshake())
    for _ in range(int(3 * FRAMES_AT_ONCE)):
        connection.feed(PING)
        await asyncio.sleep(1 / FRAMES_PER_S)
    assert (connection.close_code, connection.wire.ended) == (None, "")


async def test_message_too_long() -> None:
    """A message longer than MAX_MESSAGE_BYTES is closed with 1009."""
    connection = Connection()
    connection.feed(handshake())
    await a_few_turns()
    connection.feed(text(MAX_MESSAGE_BYTES))
    await a_few_turns()
    assert connection.wire.ended == ""
    connection.feed(text(MAX_MESSAGE_BYTES + 1))
    await a_few_turns()
    assert (connection.close_code, connection.wire.ended) == (1_009, "closed")


async def test_refused_connection_is_closed_at_once() -> None:
    """After the server's close frame the connection is closed, and nothing of the peer is parsed."""
    connection = Connection(refuses)
    connection.feed(handshake())
    await a_few_turns()
    assert (connection.close_code, connection.wire.ended) == (1_008, "closed")
    before = connection.sent
    connection.feed(PING * 40_000)
    await a_few_turns()
    assert connection.sent == before


async def test_long_handshake() -> None:
    """A handshake that is longer than a slice does not leave the connection unread."""
    connection = Connection()
    connection.feed(handshake(b"Cookie: %s" % (b"x" * 8_000)))
    await a_few_turns()
    assert connection.wire.is_read
    connection.feed(PING)
    await a_few_turns()
    assert connection.sent.endswith(b"\x8a\x00")


async def test_nothing_is_parsed_before_the_handshake_is_answered() -> None:
    """Frames that come before the 101 wait for it, and are not read on."""
    connection = Connection(hesitates)
    connection.feed(handshake() + PING * 40_000)
    await a_few_turns()
    assert connection.sent == b""
    assert not connection.wire.is_read


BROKEN = {
    "long header": (handshake(b"X: %s" % (b"x" * 20_000)), 431),
    "many headers": (handshake(*(b"X-%d: x" % number for number in range(1_000))), 431),
    "long target": (handshake().replace(b"/ws", b"/ws?%s" % (b"x" * 20_000)), 414),
    "subprotocols": (handshake(b"Sec-WebSocket-Protocol: %s" % b", ".join([b"p"] * 5_000)), 431),
    "two keys": (handshake(LINES[4]), 400),
    "no key": (handshake().replace(LINES[4], b"X: x"), 400),
}


@pytest.mark.parametrize(("request_", "status"), BROKEN.values(), ids=BROKEN)
async def test_broken_handshake(request_: bytes, status: int) -> None:
    """A handshake that can't be read is answered and closed, and a stop after it raises nothing."""
    connection = Connection()
    connection.feed(request_)
    await a_few_turns()
    assert connection.sent.startswith(b"HTTP/1.1 %d " % status)
    assert connection.wire.ended == "closed"
    for protocol in connection.alive:
        protocol.shutdown()


async def test_handshake_in_line() -> None:
    """A handshake behind a request that has not been answered is refused, in its turn."""
    connection = Connection(hesitates)
    connection.feed(b"PUT /other HTTP/1.1\r\nHost: x\r\n\r\n" + handshake())
    await a_few_turns()
    assert connection.sent == b""
    (task,) = connection.state.tasks
    task.cancel()
    await a_few_turns()
    assert connection.sent.count(b"HTTP/1.1 500") == 1


@pytest.mark.parametrize(
    ("before", "code"),
    [(b"", 1_012), (CLOSE, 1_000), (b"\xff\xff", 1_002), (text(MAX_MESSAGE_BYTES + 1), 1_009), (PING * 400, 1_008)],
    ids=["open", "closing", "not a frame", "too long", "too much"],
)
async def test_stop_in_every_state(before: bytes, code: int) -> None:
    """A stopping server ends a connection, whatever state it is in."""
    connection = Connection()
    connection.feed(handshake())
    await a_few_turns()
    if before:
        connection.feed(before)
        await a_few_turns()
    for protocol in connection.alive:
        protocol.shutdown()
    await a_few_turns()
    assert (connection.close_code, connection.wire.ended) == (code, "closed")
    for protocol in connection.alive:
        protocol.refuse_unfinished()
    assert connection.wire.ended == "aborted"


async def test_half_closed_subscriber() -> None:
    """A peer that ends without a close frame is closed, and the application is told."""
    connection = Connection()
    connection.feed(handshake())
    await a_few_turns()
    protocol = connection.protocol
    assert protocol.eof_received() is True
    assert connection.wire.ended == "closed"
    protocol.connection_lost(None)
    await a_few_turns()
    assert not connection.state.tasks
