"""The HTTP protocol of the server: uvicorn's on httptools, with a way past ASGI for one route, and bounds it lacks.

A request for the ``Endpoint`` becomes an ``Exchange``: no task, no scope, no event, and its answer is one write. It
stands in line with the cycles that uvicorn makes of all other requests, and what belongs to the connection (the
parser, keep-alive, flow control, the queue of pipelined requests, stopping) is uvicorn's own for both.

What uvicorn lacks, and is here:

* httptools takes any number of headers, before any key is checked: 200 MB of them took 190 MB of memory. Here a head
  longer than MAX_HEAD_BYTES is 431, and a trailer is cut off.
* uvicorn reads on after each answer, however many requests wait in line: 66 MB of them, without a key, took 800 MB.
  Here nothing is read or parsed while any waits: 5 MB.
* uvicorn parses all that a read has brought in one turn of the event loop, and libuv reads up to 8 MB in one: a single
  connection stopped the process for 13 s. Here it is parsed in slices, in turns with those of other connections.
* uvicorn waits for a head without end, and sets a timer at each answer for what follows: here one timer a connection
  looks now and then, a head has HEAD_TIMEOUT_S, and a body has to keep coming.
* uvicorn closes at once when a peer has sent its last, though it may still read: here it is answered first.
* httptools takes what follows an ``Upgrade`` for another protocol, also a body. Here every offer but a WebSocket
  handshake is ignored, as RFC 9110 (7.8) allows.
* uvicorn takes a trailer for a header if it comes in one read with the head. Here it is dropped.
* Blanks and tabs after a header's value are not part of it, and one that comes twice is one value with a comma (RFC
  9110, 5.3 and 5.5), on all routes.

This module knows nothing of readings.

Promises:
    * The answers of a connection come in the order of its requests.
    * The endpoint sees a request's head before its body is asked for, and no more of the body is held than may be.
    * An answer whose peer has gone is dropped, and giving one never raises.
    * A request that came whole is answered, also if its sender has closed its side since.
    * The work of a turn is bounded, whatever arrives. (14)
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Protocol
from urllib.parse import unquote_to_bytes

import httptools
import orjson
from uvicorn.config import Config
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from app.errors import BodyTooLarge, OutcomeUnknown, SensorFlowError, ShuttingDown
from app.web import error_responses
from app.web.bodies import due_at, stalled
from app.web.connections import ConnectionLimit
from app.web.refusals import is_refusal, log_refusal, reason_in
from app.web.slices import Slices
from app.web.transport import CoalescingTransport, json_answer

logger = logging.getLogger(__name__)

MAX_HEAD_BYTES = 65_536
"""Request line and headers together; four times what nginx allows by default."""
HEADER_BYTES = 256
"""What a header counts beyond its text, so that there are some 250: 12,000 tiny ones took 70 ms in one turn. HTTP/2
counts 32 (RFC 9113, 6.5.2), and a library's default is 100 headers in Python, 128 in websockets.
"""
HEAD_TIMEOUT_S = 10.0
"""From the connection's beginning, or the last answer on it, to the end of the next head."""
SLICE_BYTES = 4_096
"""So much is parsed at a time, or a body of known length as far as it has come: at worst 93 requests, answered 401 in
some 5 ms."""
NOTHING = memoryview(b"")

BodyHandler = Callable[[bytes], None]


class Endpoint(Protocol):
    """The side that answers the POST requests for one path.

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

    def knows(self, key: bytes | None) -> bool:
        """Return whether this is an API key, whatever it may be used for."""

    def open(self, exchange: "Exchange") -> BodyHandler:
        """Look at a request's head, and return what takes its body: called once, if the whole of it comes.

        From then on the endpoint owes the exchange an answer, at any later time. A SensorFlowError that is raised here
        or on taking the body is one.
        """


class Exchange:
    """A request for the endpoint, and its answer.

    Attributes:
        headers: by name in lower case; those that came twice as one, with a comma.
        body_bytes: how much of its body has come.
        body_since: when its turn came, on the event loop's clock; zero before.
        client_ip: the peer's address, or that which a trusted proxy says; empty where there is none.
        keep_alive, response_complete: what uvicorn's protocol sets and reads in a cycle.
    """

    __slots__ = (
        "_answered",
        "_connection",
        "_endpoint",
        "_is_whole",
        "_pieces",
        "_started",
        "_take_body",
        "body_bytes",
        "body_since",
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
        self.body_since = 0.0
        self._connection = connection
        self._endpoint = endpoint
        self._take_body: BodyHandler | None = None
        self._pieces: list[bytes] = []
        self.body_bytes = 0
        self._is_whole = False
        self._answered = False

    @property
    def awaits_body(self) -> bool:
        """Whether its turn has come, and the rest of its body has not."""
        return self._take_body is not None and not self._is_whole

    def start(self) -> None:
        """Begin its turn: all requests before it have been answered."""
        endpoint, connection = self._endpoint, self._connection
        if connection.transport.is_closing():
            return
        self._started = endpoint.clock()
        try:
            self._take_body = endpoint.open(self)
            if not connection.has_shown_key:
                connection.mark_key_shown()
            if max(int(self.headers.get(b"content-length", 0)), self.body_bytes) > endpoint.max_body_bytes:
                raise BodyTooLarge(endpoint.max_body_bytes)
        except Exception as error:
            self._fail(error)
            return
        if self._is_whole:
            self.end()
            return
        self.body_since = connection.loop.time()
        if b"expect" in self.headers and self.headers[b"expect"].lower() == b"100-continue":
            connection.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def receive(self, piece: bytes) -> None:
        """Take a piece of the body, be it before its turn."""
        bound = self._endpoint.max_body_bytes
        if self._answered or self.body_bytes > bound:
            return
        self._pieces.append(piece)
        self.body_bytes += len(piece)
        if self.body_bytes > bound and self._take_body is not None:
            self.refuse(BodyTooLarge(bound))

    def end(self) -> None:
        """End the request, be it before its turn."""
        self._is_whole = True
        if self._take_body is None or self._answered:
            return
        body = b"".join(self._pieces)
        self._pieces.clear()  # it is not needed until the answer
        try:
            self._take_body(body)
        except Exception as error:
            self._fail(error)

    def answer(self, status: int, headers: error_responses.Headers, body: bytes) -> None:
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
        self.answer(*error_responses.answer(error))

    def fail_with(self, work: "asyncio.Future[None]") -> None:
        """Answer with the error, if there is one, of work that was to answer. Unknown if it was cancelled."""
        if work.cancelled():
            self.refuse(OutcomeUnknown("The request was interrupted: the reading may be stored, or not."))
        elif isinstance(error := work.exception(), Exception):
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        if isinstance(error, SensorFlowError):
            self.refuse(error)
        else:
            logger.error("unhandled error in request", exc_info=error)
            self.answer(*error_responses.UNFORESEEN)


class _ReadFlow(FlowControl):
    """uvicorn's flow control, which reads on by way of what has been read and not yet parsed."""

    def __init__(self, transport: Any, read_on: Callable[[], None]) -> None:
        super().__init__(transport)
        self._read_on = read_on

    def resume_reading(self) -> None:
        """Read on."""
        if self.read_paused:
            self.read_paused = False
            self._read_on()


class HttpProtocol(HttpToolsProtocol):
    """One connection.

    Args:
        config, server_state, app_state, _loop: uvicorn's.
        endpoint: answers the POST requests for its path.
        slices: where what can't be parsed at once waits for its turn.
        limit: how many connections there may be.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        endpoint: Endpoint,
        slices: Slices,
        limit: ConnectionLimit,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._endpoint = endpoint
        self._slices = slices
        self._limit = limit
        self._proxies = self.app.trusted_hosts if isinstance(self.app, ProxyHeadersMiddleware) else None
        self._peer_ip = ""
        self.has_shown_key = False
        self._head_bytes = 0
        self._body_bytes = 0
        self._in_message = False
        """Whether a request has begun to come, and not ended."""
        self._in_body = False
        """Whether its head has ended, and it is what ``cycle`` has."""
        self._is_replayed = False
        """Whether its head offers an upgrade and is parsed again without."""
        self._receiving: Exchange | None = None
        """Whose body is being parsed; None while it is a request for uvicorn."""
        self._running: Any = None
        """The Exchange, or uvicorn's cycle, whose turn it is, or was last."""
        self._task: asyncio.Task[None] | None = None
        """What answers uvicorn's cycle."""
        self._unparsed: memoryview = NOTHING
        self._is_queued = False
        self._has_ended = False
        """Whether the peer has closed its side."""
        self._is_upgraded = False
        self._last_answer: tuple[int, error_responses.Headers, bytes] | None = None
        """What is sent after the answers that are owed, before the connection is closed."""
        self._head_due = 0.0
        self._piece_at = 0.0
        self._idle_timer: asyncio.TimerHandle | None = None
        self._unsent: tuple[Exchange, int, error_responses.Headers, bytes] | None = None
        """An answer that the peer has no room for."""
        self._default_headers: list[tuple[bytes, bytes]] = []
        self._default_lines = b""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin a connection. The event loop calls this when a peer has connected."""
        self._transport = CoalescingTransport(transport, self.loop, expects_more=self._expects_more)
        super().connection_made(self._transport)  # type: ignore[arg-type]
        self.flow = _ReadFlow(self._transport, self._read_on)
        self._peer_ip = self.client[0] if self.client else ""
        self._head_due = self.loop.time() + HEAD_TIMEOUT_S
        self._idle_timer = self.loop.call_at(self._head_due, self._on_idle)
        if not self._limit.admit(self, count=len(self.connections)):
            self._end(
                503, "All connections are in use. Nothing is stored: send the request again.", (b"retry-after", b"5")
            )

    def connection_lost(self, exc: Exception | None) -> None:
        """End the connection. The event loop calls this when the peer has gone."""
        self._stop_watching()
        self._unsent = None
        running = self._running
        if isinstance(self.cycle, Exchange):  # no task waits in it to be told
            self.cycle = None
        super().connection_lost(exc)
        if running is not None and running is not self.cycle and not isinstance(running, Exchange):
            _disconnect(running)  # uvicorn tells only the last one in line

    def data_received(self, data: bytes) -> None:
        """Take what the peer has sent. The event loop calls this."""
        if self._last_answer is not None:
            return
        if self._unparsed:  # a transport may deliver what it had read when it was paused
            self._unparsed = memoryview(self._unparsed.tobytes() + data)
        elif len(data) <= SLICE_BYTES:
            self._parse(data)
        else:
            self._unparsed = memoryview(data)
            self._parse_slice()
            if 0 < len(self._unparsed) <= self._rest_of_body:
                self._parse_slice()
        if self._is_upgraded:
            return
        if len(data) > SLICE_BYTES or self._unparsed:  # the loop would read on, up to 32 times in this turn
            self._transport.pause_reading()
            self._queue()

    def eof_received(self) -> bool:  # type: ignore[override]  # asyncio's has a result
        """Answer what is owed before closing: the peer has sent its last, and may still read."""
        self._has_ended = True
        if self._in_body and self._running is self.cycle and self.is_owed:
            self._end(400, "The body is incomplete. Send the whole request again.")
        self._drop_unfinished()
        if not self.is_owed and not self.pipeline:
            self._transport.close()
        return True  # closing is ours: what has been gathered is written first

    def resume_writing(self) -> None:
        """Go on writing. The event loop calls this when the peer reads again."""
        super().resume_writing()
        if self._unsent is not None:
            unsent, self._unsent = self._unsent, None
            self.send(*unsent)

    def on_message_begin(self) -> None:
        """Begin a request. httptools calls this."""
        self.url = b""
        self.headers = []
        self._head_bytes = 0
        self._body_bytes = 0
        self._in_message = True

    def on_url(self, url: bytes) -> None:
        """Take the target of the request, or a part of it. httptools calls this."""
        self.url += url
        self._head_bytes += len(url)
        if self._head_bytes > MAX_HEAD_BYTES:
            self._refuse_long_head()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header, or a trailer. httptools calls this for each."""
        if not self._in_body:  # a trailer would be a header that no proxy has seen (RFC 9110, 6.5.1)
            self.headers.append((name.lower(), value.rstrip(b" \t")))
        self._head_bytes += len(name) + len(value) + HEADER_BYTES
        if self._head_bytes > MAX_HEAD_BYTES:
            self._refuse_long_head()

    def on_headers_complete(self) -> None:
        """End the head. httptools calls this."""
        parser, endpoint = self.parser, self._endpoint
        headers = dict(self.headers)
        if len(headers) != len(self.headers):
            headers = _combined(self.headers)
            self.headers = list(headers.items())
        if parser.should_upgrade() and parser.get_method() != b"CONNECT":
            self._is_replayed = True
            return
        if (self.url != endpoint.path and _path_of(self.url) != endpoint.path) or parser.get_method() != b"POST":
            self._receiving = None
            if not self.has_shown_key and endpoint.knows(headers.get(b"x-api-key")):
                self.mark_key_shown()
            self._hand_to_uvicorn()
            self._in_body = True
            return
        client_ip = self._peer_ip if self._proxies is None else self._forwarded_ip(self._proxies)
        keep_alive = parser.should_keep_alive() and parser.get_http_version() != "1.0"
        exchange = Exchange(self, endpoint, headers, client_ip, keep_alive)
        before = self.cycle
        self.cycle = self._receiving = exchange  # type: ignore[assignment]  # all that is read of it, it has
        self._in_body = True
        if before is None or before.response_complete:
            self._running = exchange
            exchange.start()
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((exchange, self.app))  # type: ignore[arg-type]

    def on_body(self, body: bytes) -> None:
        """Take a piece of a body. httptools calls this for each."""
        self._body_bytes += len(body)
        if self._receiving is not None:
            self._receiving.receive(body)
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """End a request. httptools calls this."""
        self._in_message = self._in_body = False
        if self._is_replayed:
            return
        if self._receiving is not None:
            self._receiving.end()
        else:
            super().on_message_complete()

    def send(self, exchange: Exchange, status: int, headers: error_responses.Headers, body: bytes) -> None:
        """Write the answer to the exchange whose turn it is, as soon as the peer has room for it."""
        if self._transport.is_closing():
            return
        if self.flow.write_paused:
            self._unsent = (exchange, status, headers, body)
            return
        if not exchange.keep_alive and error_responses.CLOSE not in headers:
            headers = [*headers, error_responses.CLOSE]
        try:
            self._transport.write_now(json_answer(status, headers, body, common_lines=self._lines_of_every_answer()))
            exchange.response_complete = True
            if error_responses.CLOSE in headers:
                self._transport.close()
            self.on_response_complete()
        except Exception as error:
            logger.error("failed to write a response", exc_info=error)
            self._transport.abort()

    def on_response_complete(self) -> None:
        """Begin the next request in line, after one has been answered."""
        self._head_due = self.loop.time() + HEAD_TIMEOUT_S
        self.server_state.total_requests += 1
        if not self._transport.is_closing():
            self.flow.resume_reading()
            if self.pipeline:
                self._start_asgi_task(*self.pipeline.pop())
        if self.pipeline:
            self.flow.pause_reading()
        if (self._last_answer is not None or self._has_ended) and not self.is_owed:
            if self._last_answer is not None:
                self._write_last(*self._last_answer)
            self._transport.close()

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP."""
        self._end(400, msg)

    def handle_websocket_upgrade(self, rest: memoryview = NOTHING) -> None:
        """Hand the connection over to the WebSocket protocol, with its handshake and what came behind."""
        self._stop_watching()
        self._is_upgraded = True
        self.connections.discard(self)
        make: Any = self.ws_protocol_class
        protocol = make(config=self.config, server_state=self.server_state, app_state=self.app_state)
        protocol.connection_made(self._transport)
        self._transport.set_protocol(protocol)
        self._transport.resume_reading()  # which may be paused for the sake of this handshake
        protocol.data_received(self._head_again())
        if rest and not self._transport.is_closing():
            protocol.data_received(rest.tobytes())

    def refuse_unfinished(self) -> None:
        """Refuse the request whose turn it is if its body is incomplete: the server is stopping."""
        if self._in_body and self._receiving is not None and self._receiving.awaits_body:
            self._receiving.refuse(ShuttingDown("Nothing is stored: the server is shutting down.", retry_after_s=5))
        elif self._in_body and self._receiving is None and self._task is not None and self._running is self.cycle:
            self._task.cancel()  # reading a body becomes a 503 then

    def drop(self) -> None:
        """End the connection at once, without an answer."""
        self._transport.abort()

    def mark_key_shown(self) -> None:
        """Note that this peer has a key."""
        self.has_shown_key = True
        self._limit.forget(self)

    @property
    def is_owed(self) -> bool:
        """Whether a request is being answered."""
        return self._running is not None and not self._running.response_complete

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        self._running = cycle
        if isinstance(cycle, Exchange):
            self.loop.call_soon(cycle.start)  # not here: each that is answered at once would begin the next
            return
        self._task = task = self.loop.create_task(cycle.run_asgi(app))
        task.add_done_callback(self.tasks.discard)
        self.tasks.add(task)

    def _read_on(self) -> None:
        if self._unparsed:
            self._queue()
        elif not self._has_ended and not self._is_upgraded and not self._transport.is_closing():
            self._transport.resume_reading()

    def _queue(self) -> None:
        if not self._is_queued:
            self._is_queued = True
            self._slices.add(self._work)

    def _work(self) -> bool:
        """Parse a slice. Return whether there is more that may be parsed now."""
        if self._transport.is_closing() or self._last_answer is not None:
            self._unparsed = NOTHING
        elif self._unparsed and self._may_parse:
            try:
                self._parse_slice()
            except Exception as error:
                logger.error("unexpected error while parsing a request", exc_info=error)
                self._transport.abort()
                self._unparsed = NOTHING
        if self._unparsed and self._may_parse:
            return True
        self._is_queued = False
        if not self._unparsed and not self.flow.read_paused:
            self._read_on()
        return False

    @property
    def _may_parse(self) -> bool:
        return not self.pipeline and not self.flow.read_paused

    def _parse_slice(self) -> None:
        size = max(SLICE_BYTES, self._rest_of_body)
        slice_, self._unparsed = self._unparsed[:size], self._unparsed[size:]
        self._parse(slice_)

    def _parse(self, data: bytes | memoryview) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._ignore_or_accept(memoryview(data)[upgrade.args[0] :])
        except httptools.HttpParserError:
            self.send_400_response("Invalid HTTP request received.")
        if self._in_body:
            self._piece_at = self.loop.time()

    def _ignore_or_accept(self, rest: memoryview) -> None:
        """Continue after a head that offers another protocol."""
        if not self._is_replayed:  # CONNECT, which has been refused
            self._unparsed = _joined(rest, self._unparsed)
            return
        self._is_replayed = False
        if self._should_upgrade():
            if self.is_owed or self.pipeline:
                self._end(400, "A WebSocket handshake should wait for the answer to the request before it.")
            else:
                unparsed, self._unparsed = self._unparsed, NOTHING
                self.handle_websocket_upgrade(_joined(rest, unparsed))
            return
        head = self._head_again(without_offer=True)
        self._unparsed = _joined(rest, self._unparsed)
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self._parse(head)

    def _should_upgrade(self) -> bool:
        """Return whether the head is a WebSocket handshake: only a GET begins one, and no body may follow it."""
        headers = dict(self.headers)
        return (
            self.ws_protocol_class is not None
            and self.parser.get_method() == b"GET"
            and self.parser.get_http_version() == "1.1"
            and headers.get(b"upgrade", b"").lower() == b"websocket"
            and headers.get(b"content-length", b"0").strip(b"0") == b""
            and b"transfer-encoding" not in headers
        )

    def _head_again(self, *, without_offer: bool = False) -> bytes:
        """Return the head as it came, or without what offers another protocol."""
        lines = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())]
        for name, value in self.headers:
            if without_offer and name == b"upgrade":
                continue
            if without_offer and name == b"connection":
                options = [option.strip() for option in value.split(b",")]
                value = b", ".join(option for option in options if option.lower() != b"upgrade")  # noqa: PLW2901
            lines.append(b"%b: %b" % (name, value))
        return b"\r\n".join([*lines, b"", b""])

    @property
    def _rest_of_body(self) -> int:
        """Return how much is missing of a body whose length was announced."""
        if not self._in_body:
            return 0
        length = next((value for name, value in self.headers if name == b"content-length"), b"0")
        return int(length) - self._body_bytes

    def _expects_more(self) -> bool:
        return not self._has_ended and (self._in_message or self._is_upgraded or bool(self._unparsed))

    def _drop_unfinished(self) -> None:
        """Forget an incomplete request that stands in line."""
        if self._in_body and self.pipeline and self.pipeline[0][0] is self.cycle:
            self.pipeline.popleft()
            self._in_body = False
            self.cycle = self.pipeline[0][0] if self.pipeline else self._running

    def _end(self, status: int, detail: str, *headers: tuple[bytes, bytes]) -> None:
        """Answer, after the answers that are owed, and close: nothing can follow this answer."""
        if self._transport.is_closing() or self._last_answer is not None:
            return
        self._unparsed = NOTHING
        answer = status, [*headers, error_responses.CLOSE], orjson.dumps({"detail": detail})
        self._drop_unfinished()
        running = self._running
        if self._in_body and running is self.cycle:  # it is the one that did not come whole
            if not self.is_owed:  # and has been refused
                self._transport.close()
                return
            if isinstance(running, Exchange):
                running.answer(*answer)
                return
            _disconnect(running)
            if running.response_started:
                self._transport.abort()
                return
            running.response_started = running.response_complete = True
        elif self.is_owed:
            self._last_answer = answer
            return
        self._write_last(*answer)
        self._transport.close()

    def _write_last(self, status: int, headers: error_responses.Headers, body: bytes) -> None:
        self._transport.write(json_answer(status, headers, body, common_lines=self._lines_of_every_answer()))

    def _on_idle(self) -> None:
        """Close the connection if the peer is late with what is due, and no answer is owed to it."""
        now = self.loop.time()
        due = self._due(now)
        if due > now:
            self._idle_timer = self.loop.call_at(due, self._on_idle)
            return
        self._idle_timer = None
        if (unfinished := self._unfinished) is not None:
            unfinished.refuse(stalled())
        elif self._in_message and not self._in_body:
            self._end(408, f"The request's headers did not arrive within {HEAD_TIMEOUT_S:g} seconds.")
        else:
            self._transport.close()

    def _due(self, now: float) -> float:
        """Return when the peer must have sent what is expected of it. It is never earlier than before."""
        if (unfinished := self._unfinished) is not None:
            since = unfinished.body_since
            return due_at(since, max(since, self._piece_at), unfinished.body_bytes)
        if self.is_owed or self.pipeline:
            return now + HEAD_TIMEOUT_S
        return self._head_due

    @property
    def _unfinished(self) -> Exchange | None:
        """Return the exchange whose turn it is and whose body is incomplete, if there is one."""
        return self._receiving if self._receiving is not None and self._receiving.awaits_body else None

    def _stop_watching(self) -> None:
        self._limit.forget(self)
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None

    def _hand_to_uvicorn(self) -> None:
        """Let uvicorn see the head that has been gathered, as if it came only now.

        It calls the ASGI application that ``app.main`` makes.
        """
        url, headers = self.url, self.headers
        super().on_message_begin()
        super().on_url(url)
        for name, value in headers:
            super().on_header(name, value)
        super().on_headers_complete()

    def _forwarded_ip(self, proxies: Any) -> str:
        """Return the sender's address, by the rule of uvicorn's ProxyHeadersMiddleware, which sees ASGI only."""
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

    def _refuse_long_head(self) -> None:
        if self._in_body:
            self._transport.abort()
        else:
            self._end(
                431,
                f"The request's headers are larger than {MAX_HEAD_BYTES:,} bytes. Each header counts {HEADER_BYTES} "
                "bytes more than its text: send fewer or shorter ones.",
            )
        raise ValueError("the head of the request is too long")  # ends the parsing of what has arrived


def _disconnect(cycle: Any) -> None:
    """Tell the code that answers a request, bypassing uvicorn, that its peer has gone."""
    if not cycle.response_complete:
        cycle.disconnected = True
    cycle.message_event.set()


def _combined(headers: list[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """Return headers by name, the values of those that came more than once joined by commas."""
    combined: dict[bytes, list[bytes]] = {}
    for name, value in headers:
        combined.setdefault(name, []).append(value)
    return {name: b", ".join(values) for name, values in combined.items()}


def _joined(first: memoryview, second: memoryview) -> memoryview:
    return memoryview(b"".join((first, second))) if first and second else first or second


def _path_of(url: bytes) -> bytes:
    """Return the path of a request's target, unquoted. Empty if it has none."""
    try:
        return unquote_to_bytes(httptools.parse_url(url).path or b"")
    except httptools.HttpParserInvalidURLError:
        return b""
