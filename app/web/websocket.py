"""The WebSocket protocol of the server: uvicorn's on websockets, with bounds that it lacks.

Subscribers listen. Pings, pongs and the close frame are all that is of use here, and a frame costs some 15 µs. So what
arrives is parsed in slices, in turns with other connections. A client that sends more than FRAMES_PER_S is closed
(1008), as is one that sends a message longer than MAX_MESSAGE_BYTES (1009). Before, pings on one connection with a
wrong key stopped the process for 18 s.

Promises:
    * A handshake that can't be read is answered with 400, 414 or 431, and closed.
    * After the server's close frame nothing of the peer is parsed; the connection is closed.
    * Ending a connection never raises, whatever state it is in.
"""

import asyncio
import logging
from http import HTTPStatus
from typing import Any

import orjson
from uvicorn.config import Config
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState
from websockets.exceptions import HeaderLineTooLong, RequestLineTooLong, TooManyHeaders

from app.web import error_responses
from app.web.slices import Slices
from app.web.transport import json_answer

logger = logging.getLogger(__name__)

MAX_MESSAGE_BYTES = 4_096
FRAMES_PER_S = 10.0
FRAMES_AT_ONCE = 100
SLICE_BYTES = 1_024
"""So much is parsed at a time: 170 pings, in some 3 ms."""
NOTHING = memoryview(b"")


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """One WebSocket connection.

    Args:
        config, server_state, app_state, _loop: uvicorn's.
        slices: where what has arrived waits for its turn.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        slices: Slices,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._slices = slices
        self._unparsed = NOTHING
        self._is_queued = False
        self._may_send = float(FRAMES_AT_ONCE)
        self._counted_at = self.loop.time()

    def data_received(self, data: bytes) -> None:
        """Receive what the peer has sent. The head of its handshake comes first."""
        if not self.handshake_initiated:
            super().data_received(data)
            if not self.handshake_initiated:
                self._refuse_handshake()
            return
        self._unparsed = memoryview(b"".join((self._unparsed, data)))
        self._parse_on()

    def eof_received(self) -> bool:  # type: ignore[override]  # asyncio's has a result
        """Close: the peer has sent its last."""
        self.transport.close_at_once()  # type: ignore[attr-defined]  # it is a CoalescingTransport
        return True  # closing is ours: what has been gathered is written first

    def handle_events(self) -> None:
        """Handle what has been parsed, unless it is more than a subscriber may send."""
        now = self.loop.time()
        self._may_send = min(FRAMES_AT_ONCE, self._may_send + (now - self._counted_at) * FRAMES_PER_S)
        self._counted_at = now
        self._may_send -= len(self.conn.events)
        if self._may_send >= 0:
            super().handle_events()
        elif not self.close_sent:
            self.conn.fail(error_responses.TOO_MUCH_CLOSE_CODE, f"Send at most {FRAMES_PER_S:g} frames a second.")
            self.handle_parser_exception()

    async def send(self, message: Any) -> None:
        """Send what the application says. A close frame is the last."""
        await super().send(message)
        if message["type"] == "websocket.accept":
            self._parse_on()
        elif message["type"] == "websocket.close" and self.close_sent:
            if self.close_timer is not None:
                self.close_timer.cancel()
                self.close_timer = None
            self.transport.close()

    def shutdown(self) -> None:
        """End the connection: the server is stopping."""
        if self.transport.is_closing():  # uvicorn would answer with another close frame, and raise InvalidState
            return
        try:
            super().shutdown()
        except Exception as error:  # the library asserts that it is in one of the states it expects
            logger.debug("closing a WebSocket without a close frame", exc_info=error)
            self.transport.abort()

    def refuse_unfinished(self) -> None:
        """End a connection that outlived the close frame: the server is stopping."""
        self.transport.abort()

    def _refuse_handshake(self) -> None:
        error = self.conn.handshake_exc
        status = HTTPStatus.BAD_REQUEST
        if isinstance(error, RequestLineTooLong):
            status = HTTPStatus.REQUEST_URI_TOO_LONG
        elif isinstance(error, HeaderLineTooLong | TooManyHeaders):
            status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
        self.conn.data_to_send()  # the library's own words, if it has any
        self.handshake_initiated = self.handshake_complete = self.close_sent = True
        body = orjson.dumps({"detail": f"The WebSocket handshake can't be read: {error}."})
        self.transport.write(json_answer(status, [error_responses.CLOSE], body))
        self.transport.close()

    def _parse_on(self) -> None:
        if not self._unparsed or self._is_queued:
            return
        self.transport.pause_reading()
        if self.handshake_complete:  # a pong must not go out before the 101
            self._is_queued = True
            self._slices.add(self._work)

    def _work(self) -> bool:
        """Parse a slice. Return whether there is more."""
        if self.close_sent or self.transport.is_closing():
            self._unparsed = NOTHING
        else:
            slice_, self._unparsed = self._unparsed[:SLICE_BYTES], self._unparsed[SLICE_BYTES:]
            try:
                super().data_received(slice_.tobytes())
            except Exception as error:
                logger.error("unexpected error while parsing a subscriber's frames", exc_info=error)
                self.transport.abort()
                self._unparsed = NOTHING
        if self._unparsed:
            return True
        self._is_queued = False
        if not self.read_paused and not self.transport.is_closing():
            self.transport.resume_reading()
        return False
