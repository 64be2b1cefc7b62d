"""A connection of app.web without a socket, which records what is written, and a turn of the event loop."""

import asyncio
from collections.abc import Callable

from app.errors import Unauthorized
from app.web.protocol import BodyHandler, Exchange

MAX_BODY_BYTES = 100


class Wire(asyncio.Transport):
    """A transport whose peer is the test."""

    def __init__(self, peer: tuple[str, int] | None = ("192.0.2.7", 5_000)) -> None:
        super().__init__({"peername": peer, "sockname": ("192.0.2.1", 80)})
        self.writes: list[bytes] = []
        self.ended = ""
        self.is_read = True
        self.protocol: asyncio.BaseProtocol | None = None

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.ended
        self.writes.append(bytes(data))

    def close(self) -> None:
        self.ended = self.ended or "closed"

    def write_eof(self) -> None:
        self.close()

    def get_protocol(self) -> asyncio.BaseProtocol:
        assert self.protocol is not None
        return self.protocol

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol

    def abort(self) -> None:
        self.ended = "aborted"

    def is_closing(self) -> bool:
        return bool(self.ended)

    def pause_reading(self) -> None:
        self.is_read = False

    def resume_reading(self) -> None:
        self.is_read = True


class Desk:
    """An endpoint that leaves it to the test to answer."""

    path = b"/reading"
    max_body_bytes = MAX_BODY_BYTES

    def __init__(self) -> None:
        self.opened: list[Exchange] = []
        self.taken: list[tuple[Exchange, bytes]] = []
        self.observed: list[tuple[int, float]] = []
        self.observe: Callable[[int, float], None] = lambda *observed: self.observed.append(observed)
        self.clock: Callable[[], float] = asyncio.get_running_loop().time

    def knows(self, key: bytes | None) -> bool:
        return key == b"k"

    def open(self, exchange: Exchange) -> BodyHandler:
        self.opened.append(exchange)
        if exchange.headers.get(b"x-api-key") != b"k":
            raise Unauthorized("no key")
        return lambda body: self.taken.append((exchange, body))

    def answer(self) -> None:
        """Answer the last request with the length of its body."""
        exchange, body = self.taken[-1]
        exchange.answer(201, (), b"%d" % len(body))


async def a_few_turns() -> None:
    for _ in range(10):
        await asyncio.sleep(0)
