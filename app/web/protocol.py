"""The HTTP protocol of the server: uvicorn's on httptools, with a way past ASGI for one route, and bounds it lacks.

A request for the ``Endpoint`` becomes an ``Exchange``: no task, no scope, no event, and its answer is one write. It
stands in line with the cycles that uvicorn makes of all other requests, and what belongs to the connection (the
parser, keep-alive, flow control, the queue of pipelined requests, stopping) is uvicorn's own for both.

httptools takes any number of headers, before any key is checked: 200 MB of them took 190 MB of memory. Here a
connection whose head, or trailer, is longer than MAX_HEAD_BYTES is cut off. uvicorn reads on after each answer, however
many requests wait in line: 66 MB of them, without a key, took 800 MB. Here nothing is read while any waits: 5 MB. And
uvicorn waits for a head for ever: here a peer that falls silent before its end is left.

This module knows nothing of readings.

Promises:
    * The answers of a connection come in the order of its requests.
    * The endpoint sees a request's head before its body is asked for, and no more of the body is held than may be.
    * An answer whose peer has gone is dropped, and giving one never raises.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Protocol
from urllib.parse import unquote_to_bytes

import httptools
from uvicorn.config import Config
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from app.errors import BodyTooLarge, SensorFlowError
from app.web import problems
from app.web.bodies import STALLED_AFTER_S, stalled
from app.web.refusals import is_refusal, log_refusal, reason_in

logger = logging.getLogger(__name__)

MAX_HEAD_BYTES = 65_536
"""Request line and headers together; four times what nginx allows by default."""
MAX_PENDING_BYTES = 65_536
"""So much is written at once, without waiting for the turn's end: the transport's flow control must see it."""

TakeBody = Callable[[bytes], None]


class Endpoint(Protocol):
    """What answers the POST requests for one path.

    Attributes:
        path: where they go, unquoted.
        max_body_bytes: a larger body is refused, and its connection closed.
        observe: is told status and duration in seconds of every answer, also if its peer has gone.
        clock: seconds, for ``observe``.
    """

    path: bytes
    max_body_bytes: int
    observe: Callable[[int, float], None]
    clock: Callable[[], float]

    def open(self, exchange: "Exchange") -> TakeBody:
        """Looks at a request's head, and returns what takes its body: called once, if the whole of it comes.

        From then on the endpoint owes the exchange an answer, at any later time. A SensorFlowError that is raised here
        or on taking the body is one.
        """


class Exchange:
    """A request for the endpoint, and its answer.

    Attributes:
        headers: by name in lower case; the last of those that come twice.
        client_ip: the peer's address, or that which a trusted proxy says; empty where there is none.
        keep_alive, response_complete: what uvicorn's protocol sets and reads in a cycle.
    """

    __slots__ = (
        "_answered",
        "_body_bytes",
        "_connection",
        "_endpoint",
        "_is_whole",
        "_pieces",
        "_started",
        "_take_body",
        "client_ip",
        "headers",
        "keep_alive",
        "response_complete",
    )

    def __init__(
        self,
        connection: "HttpProtocol",
        endpoint: Endpoint,
        headers: dict[bytes, bytes],
        client_ip: str,
        keep_alive: bool,
    ) -> None:
        self.headers = headers
        self.client_ip = client_ip
        self.keep_alive = keep_alive
        self.response_complete = False
        self._connection = connection
        self._endpoint = endpoint
        self._take_body: TakeBody | None = None
        self._pieces: list[bytes] = []
        self._body_bytes = 0
        self._is_whole = False
        self._answered = False

    @property
    def awaits_body(self) -> bool:
        """Whether its turn has come, and the rest of its body has not."""
        return self._take_body is not None and not self._is_whole

    def start(self) -> None:
        """Called when its turn has come: all requests before it have been answered."""
        endpoint, connection = self._endpoint, self._connection
        if connection.transport.is_closing():
            return
        self._started = endpoint.clock()
        try:
            self._take_body = endpoint.open(self)
            if max(int(self.headers.get(b"content-length", 0)), self._body_bytes) > endpoint.max_body_bytes:
                raise BodyTooLarge(endpoint.max_body_bytes)
        except Exception as error:
            self._fail(error)
            return
        if self._is_whole:
            self.end()
        elif b"expect" in self.headers and self.headers[b"expect"].lower() == b"100-continue":
            connection.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def receive(self, piece: bytes) -> None:
        """Called with each piece of the body, be it before its turn."""
        bound = self._endpoint.max_body_bytes
        if self._answered or self._body_bytes > bound:
            return
        self._pieces.append(piece)
        self._body_bytes += len(piece)
        if self._body_bytes > bound and self._take_body is not None:
            self.refuse(BodyTooLarge(bound))

    def end(self) -> None:
        """Called where the request ends, be it before its turn."""
        self._is_whole = True
        if self._take_body is None or self._answered:
            return
        body = b"".join(self._pieces)
        self._pieces.clear()  # nobody needs it until the answer
        try:
            self._take_body(body)
        except Exception as error:
            self._fail(error)

    def answer(self, status: int, headers: problems.Headers, body: bytes) -> None:
        """Answers with a JSON body. Only the first answer counts."""
        if self._answered:
            return
        self._answered = True
        self._take_body = None  # it holds this exchange: both are freed now, and not by the garbage collector
        self._endpoint.observe(status, self._endpoint.clock() - self._started)
        if is_refusal(status):
            log_refusal(f"POST {self._endpoint.path.decode()}", self.client_ip, status, reason_in(body))
        self._connection.send(self, status, headers, body)

    def refuse(self, error: SensorFlowError) -> None:
        """Answers with what an error becomes on the wire."""
        self.answer(*problems.answer(error))

    def fail_with(self, work: "asyncio.Future[None]") -> None:
        """Answers with the error, if there is one, of work that was to answer."""
        if not work.cancelled() and isinstance(error := work.exception(), Exception):
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        if isinstance(error, SensorFlowError):
            self.refuse(error)
        else:
            logger.error("a request failed in a way that nobody foresaw", exc_info=error)
            self.answer(*problems.UNFORESEEN)


class OneWriteATurn:
    """A transport that gathers what is written in one turn of the event loop; in all else the transport behind it.

    uvicorn writes an answer's head and its body one after the other, each a system call that wakes the peer: together,
    1.08 times the requests, measured in turns with 32 connections. WebSocket frames gain as well.
    """

    __slots__ = ("_loop", "_pending", "_pending_bytes", "_transport", "is_closing")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self.is_closing = transport.is_closing  # asked three times a request: 0.1 µs each, and 0.7 by __getattr__

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Gathers; the turn's end, or MAX_PENDING_BYTES, writes."""
        if not self._pending:
            self._loop.call_soon(self._flush)
        self._pending.append(data)
        self._pending_bytes += len(data)
        if self._pending_bytes > MAX_PENDING_BYTES:
            self._flush()

    def write_now(self, data: bytes) -> None:
        """Writes, with what was gathered before it."""
        if self._pending:
            self.write(data)
            self._flush()
        else:
            self._transport.write(data)

    def close(self) -> None:
        """Writes what was gathered, and closes."""
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._pending and not self._transport.is_closing():
            gathered = b"".join(self._pending)
            self._pending.clear()
            self._pending_bytes = 0
            self._transport.write(gathered)


class HttpProtocol(HttpToolsProtocol):
    """One connection.

    Args:
        config, server_state, app_state, _loop: uvicorn's.
        endpoint: answers the POST requests for its path.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        endpoint: Endpoint,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._endpoint = endpoint
        self._proxies = self.app.trusted_hosts if isinstance(self.app, ProxyHeadersMiddleware) else None
        self._peer_ip = ""
        self._head_bytes = 0
        self._receiving: Exchange | None = None
        """Whose body is being parsed; None while it is a request for uvicorn."""
        self._patience: asyncio.TimerHandle | None = None
        self._held: tuple[Exchange, int, problems.Headers, bytes] | None = None
        """An answer that the peer has no room for."""
        self._default_headers: list[tuple[bytes, bytes]] = []
        self._default_lines = b""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Called by the event loop when a peer has connected."""
        self._transport = OneWriteATurn(transport, self.loop)
        super().connection_made(self._transport)  # type: ignore[arg-type]
        self._peer_ip = self.client[0] if self.client else ""
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the event loop when the peer has gone."""
        if self._patience is not None:
            self._patience.cancel()
        self._held = None
        if isinstance(self.cycle, Exchange):  # nobody waits in it to be told
            self.cycle = None
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Called by the event loop with what the peer has sent."""
        super().data_received(data)
        self._watch()

    def resume_writing(self) -> None:
        """Called by the event loop when the peer reads again."""
        super().resume_writing()
        if self._held is not None:
            held, self._held = self._held, None
            self.send(*held)

    def on_message_begin(self) -> None:
        """Called by httptools where a request begins."""
        self._unset_keepalive_if_required()  # which a refusal earlier in the same data may have set
        self.url = b""
        self.headers = []
        self._head_bytes = 0

    def on_url(self, url: bytes) -> None:
        """Called by httptools with the target of the request, or a part of it."""
        self.url += url
        self._head_bytes += len(url)
        if self._head_bytes > MAX_HEAD_BYTES:
            self._cut_off()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called by httptools with each header, and each trailer."""
        self.headers.append((name.lower(), value))
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > MAX_HEAD_BYTES:
            self._cut_off()

    def on_headers_complete(self) -> None:
        """Called by httptools at the end of the head."""
        parser, endpoint = self.parser, self._endpoint
        if (
            (self.url != endpoint.path and _path_of(self.url) != endpoint.path)
            or parser.get_method() != b"POST"
            or (parser.should_upgrade() and self._should_upgrade())
        ):
            self._receiving = None
            self._hand_to_uvicorn()
            return
        client_ip = self._peer_ip if self._proxies is None else self._forwarded_ip(self._proxies)
        keep_alive = parser.should_keep_alive() and parser.get_http_version() != "1.0"
        exchange = Exchange(self, endpoint, dict(self.headers), client_ip, keep_alive)
        before = self.cycle
        self.cycle = self._receiving = exchange  # type: ignore[assignment]  # all that is read of it, it has
        if before is None or before.response_complete:
            exchange.start()
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((exchange, self.app))  # type: ignore[arg-type]

    def on_body(self, body: bytes) -> None:
        """Called by httptools with each piece of a body."""
        if self._receiving is not None:
            self._receiving.receive(body)
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """Called by httptools where a request ends."""
        if self._receiving is not None:
            self._receiving.end()
        else:
            super().on_message_complete()

    def send(self, exchange: Exchange, status: int, headers: problems.Headers, body: bytes) -> None:
        """Writes the answer to the exchange whose turn it is, as soon as the peer has room for it."""
        if self._transport.is_closing():
            return
        if self.flow.write_paused:
            self._held = (exchange, status, headers, body)
            return
        if not exchange.keep_alive and problems.CLOSE not in headers:
            headers = [*headers, problems.CLOSE]
        try:
            self._transport.write_now(
                b"%b%bcontent-type: application/json\r\ncontent-length: %d\r\n%b\r\n%b"
                % (
                    STATUS_LINE[status],
                    self._lines_of_every_answer(),
                    len(body),
                    b"".join([b"%b: %b\r\n" % header for header in headers]),
                    body,
                )
            )
            exchange.response_complete = True
            if problems.CLOSE in headers:
                self._transport.close()
            self.on_response_complete()
        except Exception as error:
            logger.error("an answer could not be written", exc_info=error)
            self._transport.abort()

    def on_response_complete(self) -> None:
        """Called when a request has been answered: the next one in line begins."""
        super().on_response_complete()
        if self.pipeline:
            self.flow.pause_reading()

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        if isinstance(cycle, Exchange):
            self.loop.call_soon(self._begin, cycle)  # not here: each that is answered at once would begin the next
        else:
            super()._start_asgi_task(cycle, app)

    def _begin(self, exchange: Exchange) -> None:
        exchange.start()
        self._watch()

    def _watch(self) -> None:
        """Has the peer left if nothing more comes of it, and no answer is owed to it."""
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
        if self not in self.connections:  # it has gone, or is a WebSocket now
            return
        if self.cycle is None or self.cycle.response_complete or self._unfinished is not None:
            self._patience = self.loop.call_later(STALLED_AFTER_S, self._leave)

    @property
    def _unfinished(self) -> Exchange | None:
        """The exchange whose turn it is and the rest of whose body has to come, if there is one."""
        return self._receiving if self._receiving is not None and self._receiving.awaits_body else None

    def _leave(self) -> None:
        if (unfinished := self._unfinished) is not None:
            unfinished.refuse(stalled())
        else:
            self._transport.close()

    def _hand_to_uvicorn(self) -> None:
        """Has uvicorn see the head that has been gathered, as if it came only now."""
        url, headers = self.url, self.headers
        super().on_message_begin()
        super().on_url(url)
        for name, value in headers:
            super().on_header(name, value)
        super().on_headers_complete()

    def _forwarded_ip(self, proxies: Any) -> str:
        """The sender's address, by the rule of uvicorn's ProxyHeadersMiddleware, which sees ASGI only."""
        if self._peer_ip not in proxies:
            return self._peer_ip
        forwarded = b", ".join(value for name, value in self.headers if name == b"x-forwarded-for")
        address: str = proxies.get_trusted_client_address(forwarded.decode("latin1"))[0]
        return address or self._peer_ip

    def _lines_of_every_answer(self) -> bytes:
        headers = self.server_state.default_headers
        if headers is not self._default_headers:  # uvicorn makes a new list each second
            self._default_headers = headers
            self._default_lines = b"".join([b"%b: %b\r\n" % header for header in headers])
        return self._default_lines

    def _cut_off(self) -> None:
        self.transport.abort()
        raise ValueError("the head of the request is too long")  # ends the parsing of what has arrived


def _path_of(url: bytes) -> bytes:
    """The path of a request's target, unquoted; empty if it has none."""
    try:
        return unquote_to_bytes(httptools.parse_url(url).path or b"")
    except httptools.HttpParserInvalidURLError:
        return b""
