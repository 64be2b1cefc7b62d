"""The HTTP protocol on a stand-in transport: requests that bypass ASGI, in order with those of uvicorn."""

import asyncio
import json
import logging
from functools import partial
from typing import Any

import pytest
import uvicorn
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from app.errors import BufferFull
from app.web.bodies import STALLED_AFTER_S
from app.web.connections import ConnectionLimit
from app.web.protocol import HEAD_TIMEOUT_S, MAX_HEAD_BYTES, SLICE_BYTES, BodyHandler, HttpProtocol
from app.web.slices import Slices
from app.web.transport import LINGER_BYTES, LINGER_S, MAX_PENDING_BYTES, CoalescingTransport
from tests.support.connections import MAX_BODY_BYTES, Desk, Wire, a_few_turns


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer 200 with the application's view of the request, without what it can't show."""
    body = b""
    while (message := await receive()).get("more_body"):
        body += message["body"]
    body += message.get("body", b"")
    shown = {name: repr(value) for name, value in scope.items() if name != "state"} | {"body": repr(body)}
    answer = json.dumps(shown).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(answer))]})
    await send({"type": "http.response.body", "body": answer})


async def answers_at_once(_: Scope, __: Receive, send: Send) -> None:
    """Answer 200 before it has seen any of the body."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})


class Connection:
    """One connection to a server: the protocol between a wire and a desk."""

    def __init__(
        self,
        *,
        plain: bool = False,
        proxies: str = "",
        peer: tuple[str, int] | None = ("192.0.2.7", 1),
        application: ASGIApp = application,
        limit: ConnectionLimit | None = None,
        state: ServerState | None = None,
    ) -> None:
        config = uvicorn.Config(
            application,
            ws="websockets-sansio",
            access_log=False,
            log_config=None,
            proxy_headers=bool(proxies),
            forwarded_allow_ips=proxies,
        )
        config.load()
        self.state = state or ServerState()
        self.state.default_headers = [(b"date", b"today")]
        self.desk = Desk()
        self.wire = Wire(peer)
        limit = limit or ConnectionLimit(1_000, clock=asyncio.get_running_loop().time)
        ours = partial(HttpProtocol, endpoint=self.desk, slices=Slices(), limit=limit)
        make: Any = HttpToolsProtocol if plain else ours
        self.protocol: HttpProtocol = make(config=config, server_state=self.state, app_state={})
        self.wire.protocol = self.protocol
        self.protocol.connection_made(self.wire)

    def feed(self, data: bytes) -> None:
        self.protocol.data_received(data)

    def lose(self, error: Exception | None = None) -> None:
        self.wire.ended = self.wire.ended or "lost"
        self.protocol.connection_lost(error)

    @property
    def sent(self) -> bytes:
        return b"".join(self.wire.writes)

    @property
    def statuses(self) -> list[int]:
        """Return the statuses of all answers so far, in their order. No body here has such a line in it."""
        return [int(part[:3]) for part in self.sent.split(b"HTTP/1.1 ")[1:]]


def post(
    body: bytes = b"abc",
    *headers: bytes,
    target: bytes = b"/reading",
    version: bytes = b"1.1",
    key: bytes = b"k",
    length: int | None = None,
) -> bytes:
    lines = [
        b"POST %b HTTP/%b" % (target, version),
        b"Host: x",
        b"X-Api-Key: %b" % key,
        b"Content-Length: %d" % (len(body) if length is None else length),
        *headers,
    ]
    return b"".join(line + b"\r\n" for line in lines) + b"\r\n" + body


CHUNKED = (
    b"POST /reading HTTP/1.1\r\nHost: x\r\nX-API-Key: k\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"2\r\nab\r\n1;ext=1\r\nc\r\n0\r\nX-Trailer: 1\r\n\r\n"
)
GET = b"GET /other?a=1 HTTP/1.1\r\nHost: x\r\n\r\n"
ANSWER = b"HTTP/1.1 201 Created\r\ndate: today\r\ncontent-type: application/json\r\ncontent-length: 1\r\n\r\n3"


async def test_a_request_is_answered_by_one_write_when_the_endpoint_says_so() -> None:
    connection = Connection()
    connection.feed(post())
    [(exchange, body)] = connection.desk.taken
    assert (body, exchange.client_ip, exchange.headers[b"host"]) == (b"abc", "192.0.2.7", b"x")
    assert connection.wire.writes == []
    await asyncio.sleep(2)
    connection.desk.answer()
    assert connection.wire.writes == [ANSWER]
    assert connection.desk.observed == [(201, 2)]
    assert connection.wire.ended == ""


@pytest.mark.parametrize("request_", [post(), CHUNKED, post(b"", b"Expect: none")], ids=["length", "chunked", "empty"])
async def test_a_request_may_come_in_any_pieces(request_: bytes) -> None:
    for middle in range(1, len(request_)):
        connection = Connection()
        connection.feed(request_[:middle])
        connection.feed(request_[middle:])
        assert [body for _, body in connection.desk.taken] in ([b"abc"], [b""])
        connection.desk.answer()
        assert connection.statuses == [201]
    connection = Connection()
    for place in range(len(request_)):
        connection.feed(request_[place : place + 1])
    connection.desk.answer()
    assert connection.statuses == [201]


@pytest.mark.parametrize(
    "target",
    [
        b"/reading",
        b"/reading?",
        b"/reading?key=1&a=/",
        b"/re%61ding",
        b"http://host/reading",
        b"http://host:8000/reading?a",
    ],
)
async def test_the_path_counts_however_it_is_written(target: bytes) -> None:
    connection = Connection()
    connection.feed(post(target=target))
    connection.desk.answer()
    assert connection.statuses == [201]


@pytest.mark.parametrize(
    "request_",
    [
        GET,
        b"GET /reading HTTP/1.1\r\nHost: x\r\n\r\n",
        b"HEAD /reading HTTP/1.0\r\n\r\n",
        post(target=b"/reading/"),
        post(target=b"/readin%"),
        post(b"x" * 1_000, target=b"/other"),
        CHUNKED.replace(b"/reading", b"/").replace(b"X-Trailer: 1\r\n", b""),
        b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
)
async def test_every_other_request_goes_to_asgi_as_uvicorn_hands_it_over(request_: bytes) -> None:
    ours, uvicorns = Connection(), Connection(plain=True)
    for connection in (ours, uvicorns):
        connection.feed(request_)
        await a_few_turns()
    assert ours.desk.opened == []
    assert ours.sent == uvicorns.sent
    assert ours.wire.ended == uvicorns.wire.ended


@pytest.mark.parametrize(
    "request_",
    [
        post(target=b"/r\xc3\xa9ading"),
        b"CONNECT host:80 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"nonsense\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
        CHUNKED.replace(b"2\r\nab", b"x\r\nab"),
    ],
)
async def test_what_is_not_http(request_: bytes) -> None:
    """Bytes that are not HTTP are answered 400 once, after the answers that are owed, and the connection is closed."""
    connection = Connection()
    connection.feed(request_)
    assert (connection.statuses, connection.wire.ended) == ([400], "closed")
    assert b'{"detail":"Invalid HTTP request' in connection.sent
    behind = Connection()
    behind.feed(post() + request_)
    behind.feed(post())
    assert behind.statuses == []
    behind.desk.answer()
    await a_few_turns()
    assert (behind.statuses, behind.wire.ended) == ([201, 400], "closed")


OFFERS = [
    (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAEAAQAAAAIAAAABAAMAAABk"),
    (b"Connection: upgrade", b"Upgrade: websocket", b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="),
    (b"Connection: keep-alive", b"Connection: upgrade", b"Upgrade: TLS/1.0, h2c"),
]


@pytest.mark.parametrize("offer", OFFERS)
@pytest.mark.parametrize("target", [b"/reading", b"/other"])
@pytest.mark.parametrize("chunked", [False, True])
async def test_offers_of_other_protocols(offer: tuple[bytes, ...], target: bytes, chunked: bool) -> None:
    """An offer of another protocol is ignored: the body and what follows it are read as if it were not there."""
    plain = CHUNKED.replace(b"/reading", target) if chunked else post(target=target)
    head, _, body = plain.partition(b"\r\n\r\n")
    request = b"\r\n".join([head, *offer, b"", body])
    whole, behind = Connection(), Connection()
    whole.feed(request + post())
    await a_few_turns()
    if target == b"/reading":
        whole.desk.answer()
    await a_few_turns()
    whole.desk.answer()
    assert [body for _, body in whole.desk.taken] == [b"abc"] * (2 if target == b"/reading" else 1)
    assert whole.statuses == [201 if target == b"/reading" else 200, 201]
    assert (b"b'abc'" in whole.sent) is (target == b"/other")
    assert whole.wire.ended == ""
    for place in range(len(request)):
        behind.feed(request[place : place + 1])
        await a_few_turns()
    if target == b"/reading":
        behind.desk.answer()
    await a_few_turns()
    assert len(behind.statuses) == 1
    assert whole.sent.startswith(behind.sent)


async def test_an_offer_without_a_body() -> None:
    """A GET that offers another protocol is an ordinary GET, and so is a handshake of HTTP/1.0."""
    for version, offer in ((b"1.1", b"h2c"), (b"1.0", b"websocket")):
        connection = Connection()
        connection.feed(b"GET /other HTTP/%b\r\nConnection: upgrade\r\nUpgrade: %b\r\n\r\n" % (version, offer))
        await a_few_turns()
        assert connection.statuses == [200]
        assert b"upgrade" not in connection.sent


async def test_cancelled_work_is_answered() -> None:
    """If work that should answer is cancelled, the sender gets an answer: the outcome is unknown."""
    connection = Connection()
    connection.feed(post())
    [(exchange, _)] = connection.desk.taken
    work: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    work.cancel()
    exchange.fail_with(work)
    assert connection.statuses == [504]


async def test_answers_come_in_the_order_of_the_requests() -> None:
    connection = Connection()
    connection.feed(post(b"a") + GET + post(b"bb") + post(b"ccc") + post(key=b"wrong") + GET)
    for length in (1, 2, 3):
        await a_few_turns()
        assert [len(body) for _, body in connection.desk.taken] == [*range(1, length + 1)]
        connection.desk.answer()
    await a_few_turns()
    assert connection.statuses == [201, 200, 201, 201, 401, 200]


async def test_while_requests_wait_in_line_no_more_are_read() -> None:
    connection = Connection()
    connection.feed(post() * 3)
    for waiting in (2, 1):
        assert not connection.wire.is_read, waiting
        connection.desk.answer()
        await a_few_turns()
    assert connection.wire.is_read
    connection.desk.answer()
    assert connection.statuses == [201] * 3


async def test_a_body_that_is_not_whole_is_read_on_when_its_turn_has_come() -> None:
    connection = Connection()
    connection.feed(post() + post()[:-1])
    connection.desk.answer()
    await a_few_turns()
    assert connection.wire.is_read
    connection.feed(b"c")
    connection.desk.answer()
    assert connection.statuses == [201, 201]


async def test_a_thousand_requests_in_line_may_all_be_refused() -> None:
    connection = Connection()
    connection.feed(post() + post(key=b"wrong") * 1_000)
    connection.desk.answer()
    for _ in range(1_001):
        await asyncio.sleep(0)
    assert connection.statuses == [201] + [401] * 1_000


@pytest.mark.parametrize(
    ("request_", "stays"),
    [
        (post(), True),
        (post(b"abc", b"Connection: keep-alive"), True),
        (post(b"abc", b"Connection: close"), False),
        (post(version=b"1.0"), False),
        (post(b"abc", b"Connection: keep-alive", version=b"1.0"), False),
    ],
)
async def test_a_connection_stays_open_as_http_has_it(request_: bytes, stays: bool) -> None:
    connection = Connection()
    connection.feed(request_)
    connection.desk.answer()
    assert connection.sent.endswith(b"\r\n\r\n3")
    assert (b"connection: close" not in connection.sent) is stays
    assert (not connection.wire.ended) is stays


async def test_what_comes_after_a_request_to_close_is_not_answered() -> None:
    connection = Connection()
    connection.feed(post(b"abc", b"Connection: close", key=b"wrong") + post())
    assert connection.statuses == [401]
    assert connection.desk.taken == []


async def test_an_idle_connection_is_closed() -> None:
    """One that waits for its answer is not idle, and after each answer the next request has as long as the first."""
    connection = Connection()
    connection.feed(post())
    await asyncio.sleep(2 * HEAD_TIMEOUT_S)
    connection.desk.answer()
    await asyncio.sleep(HEAD_TIMEOUT_S - 1)
    connection.feed(post())
    connection.desk.answer()
    await asyncio.sleep(HEAD_TIMEOUT_S - 1)
    assert connection.wire.ended == ""
    await asyncio.sleep(2)
    assert connection.wire.ended == "closed"


@pytest.mark.parametrize("begun", [b"", b"\r\n", b"POST /reading HTTP/1.1\r\nHost: x\r\n", b"GET /oth"])
async def test_a_head_has_ten_seconds(begun: bytes) -> None:
    """A connection whose head is late is closed, with a 408 if it has begun. Single bytes don't extend the time."""
    connection = Connection()
    connection.feed(begun)
    for _ in range(9):
        await asyncio.sleep((HEAD_TIMEOUT_S - 1) / 9)
        connection.feed(b"x" if begun.strip() else b"\r\n")
    assert connection.wire.ended == ""
    await asyncio.sleep(2)
    assert connection.wire.ended == "closed"
    assert connection.statuses == ([408] if begun.strip() else [])


@pytest.mark.parametrize("request_", [post(), CHUNKED])
async def test_a_body_that_stops_coming_is_refused_and_one_that_comes_slowly_is_taken(request_: bytes) -> None:
    slow = Connection()
    for piece in (request_[:-2], request_[-2:-1], request_[-1:]):
        slow.feed(piece)
        await asyncio.sleep(STALLED_AFTER_S / 3)
    slow.desk.answer()
    assert slow.statuses == [201]
    stopped = Connection()
    stopped.feed(request_[:-1])
    await asyncio.sleep(STALLED_AFTER_S + 1)
    assert (stopped.statuses, stopped.wire.ended) == ([408], "closed")
    assert b"connection: close" in stopped.sent
    assert stopped.desk.taken == []


async def test_a_body_in_line_is_waited_for_from_its_turn_on() -> None:
    connection = Connection()
    connection.feed(post() + post()[:-1])
    await asyncio.sleep(3 * STALLED_AFTER_S)
    assert (connection.statuses, connection.wire.ended) == ([], "")
    connection.desk.answer()
    await asyncio.sleep(STALLED_AFTER_S - 1)
    assert connection.statuses == [201]
    await asyncio.sleep(2)
    assert (connection.statuses, connection.wire.ended) == ([201, 408], "closed")


@pytest.mark.parametrize(
    ("request_", "more"),
    [
        (post(key=b"wrong"), b"\r\n"),
        (GET, b"\r\n"),
        (GET.replace(b"\r\n\r\n", b"\r\nContent-Length: 9\r\n\r\n"), b"x"),
        (GET, b"GET /oth"),
    ],
)
async def test_what_comes_after_an_answer_keeps_no_connection_open(request_: bytes, more: bytes) -> None:
    connection = Connection(application=answers_at_once)
    connection.feed(request_)
    await a_few_turns()
    assert len(connection.statuses) == 1
    connection.feed(more)
    await asyncio.sleep(STALLED_AFTER_S - 1)
    assert connection.wire.ended == ""
    await asyncio.sleep(2)
    assert (connection.wire.ended, connection.statuses[1:]) == ("closed", [408] if more.startswith(b"GET") else [])


@pytest.mark.parametrize(("then", "statuses"), [(post(), [401]), (post()[:-1], [401, 408])])
async def test_a_refusal_does_not_shorten_the_patience_with_what_came_with_it(then: bytes, statuses: list[int]) -> None:
    connection = Connection()
    connection.feed(post(key=b"wrong") + then)
    await asyncio.sleep(STALLED_AFTER_S - 1)
    assert connection.wire.ended == ""
    await asyncio.sleep(2)
    assert connection.statuses == statuses
    assert bool(connection.wire.ended) is (408 in statuses)


async def test_who_is_owed_an_answer_is_not_left() -> None:
    connection = Connection()
    connection.feed(post() + b"POST /rea")
    await asyncio.sleep(3 * STALLED_AFTER_S)
    connection.desk.answer()
    assert connection.statuses == [201]


async def test_a_refused_body_that_comes_by_drops_does_not_keep_a_connection_open() -> None:
    connection = Connection()
    connection.feed(post(key=b"wrong")[:-3])
    await asyncio.sleep(STALLED_AFTER_S / 2)
    connection.feed(b"x")
    await asyncio.sleep(STALLED_AFTER_S / 2 - 1)
    assert connection.wire.ended == ""
    await asyncio.sleep(2)
    assert (connection.statuses, connection.wire.ended) == ([401], "closed")


async def test_an_answer_and_what_goes_to_asgi_may_take_their_time() -> None:
    endpoint, asgi = Connection(), Connection()
    endpoint.feed(post())
    asgi.feed(GET.replace(b"GET", b"PUT").replace(b"\r\n\r\n", b"\r\nContent-Length: 3\r\n\r\n"))
    await asyncio.sleep(3 * STALLED_AFTER_S)
    endpoint.desk.answer()
    asgi.feed(b"abc")
    await a_few_turns()
    assert (endpoint.statuses, asgi.statuses) == ([201], [200])
    endpoint.lose()
    asgi.lose()
    await asyncio.sleep(3 * STALLED_AFTER_S)


async def test_without_a_key_the_answer_does_not_wait_for_the_body_and_the_next_request_is_heard() -> None:
    connection = Connection()
    request = post(key=b"wrong")
    connection.feed(request[:-3])
    assert connection.statuses == [401]
    connection.feed(request[-3:] + post())
    connection.desk.answer()
    assert connection.statuses == [401, 201]


async def test_a_length_over_the_bound_is_refused_before_any_of_the_body() -> None:
    connection = Connection()
    connection.feed(post(b"", b"Expect: 100-continue", length=MAX_BODY_BYTES + 1))
    assert connection.statuses == [413]
    assert connection.wire.ended == "closed"
    assert connection.sent.count(b"connection: close") == 1


@pytest.mark.parametrize("behind", [b"", post()])
async def test_a_chunked_body_over_the_bound_is_refused_once(behind: bytes) -> None:
    connection = Connection()
    head, _, _ = CHUNKED.partition(b"2\r\n")
    connection.feed(behind + head + b"64\r\n%b\r\n" % (b"x" * 100))
    if behind:
        connection.feed(b"64\r\n%b\r\n" % (b"x" * 100) * 50)
        connection.desk.answer()
        await a_few_turns()
    else:
        assert connection.statuses == []
        connection.feed(b"1\r\nx\r\n1\r\nx\r\n0\r\n\r\n")
    assert connection.statuses[-1] == 413
    assert connection.statuses.count(413) == 1
    assert connection.wire.ended == "closed"


async def test_a_body_as_long_as_the_bound_is_taken() -> None:
    connection = Connection()
    connection.feed(post(b"x" * MAX_BODY_BYTES))
    assert [body for _, body in connection.desk.taken] == [b"x" * MAX_BODY_BYTES]


@pytest.mark.parametrize(
    ("begin", "more"),
    [
        (b"POST /reading", b"x" * 4_096),
        (b"POST /reading HTTP/1.1\r\n", b"X: %b\r\n" % (b"x" * 4_096)),
        (post() + GET[:-2], b"X: %b\r\n" % (b"x" * 4_096)),
        (CHUNKED[:-2], b"X: %b\r\n" % (b"x" * 4_096)),
    ],
    ids=["target", "headers", "in line", "trailers"],
)
async def test_an_endless_head_is_cut_off(begin: bytes, more: bytes) -> None:
    """A head that is too large is 431, after the earlier answers. A trailer that is too large ends the connection."""
    connection = Connection()
    connection.feed(begin)
    for _ in range(MAX_HEAD_BYTES // 4_096 - 2):
        connection.feed(more)
        await a_few_turns()
        assert connection.wire.ended == ""
    connection.feed(more * 3)
    await a_few_turns()
    if b"X-Trailer" in begin:
        assert connection.wire.ended == "aborted"
        return
    if begin.startswith(post()):
        assert connection.statuses == []
        connection.desk.answer()
    assert (connection.statuses[-1], connection.wire.ended) == (431, "closed")
    assert b'{"detail":"The request\'s headers are larger than 65,536 bytes' in connection.sent


async def test_many_headers() -> None:
    """Headers count beyond their text, so that thousands of tiny ones are 431."""
    few, many = Connection(), Connection()
    few.feed(b"GET /other HTTP/1.1\r\n%b\r\n" % (b"a:b\r\n" * 250))
    many.feed(b"GET /other HTTP/1.1\r\n%b\r\n" % (b"a:b\r\n" * 260))
    await a_few_turns()
    assert (few.statuses, many.statuses) == ([200], [431])


async def test_who_expects_100_continue_gets_it_once_and_only_if_the_body_is_wanted() -> None:
    request = post(b"abc", b"Expect: 100-Continue")
    connection = Connection()
    connection.feed(request[:-3])
    await a_few_turns()
    assert connection.statuses == [100]
    connection.feed(request[-3:])
    connection.desk.answer()
    assert connection.statuses == [100, 201]
    refused = Connection()
    refused.feed(request.replace(b"Key: k", b"Key: x")[:-3])
    assert refused.statuses == [401]


async def test_for_a_peer_that_does_not_read_one_answer_waits_and_no_more_is_read() -> None:
    connection = Connection()
    connection.feed(post())
    connection.protocol.pause_writing()
    connection.desk.answer()
    connection.feed(post(b"second"))
    assert connection.statuses == []
    assert not connection.wire.is_read
    connection.protocol.resume_writing()
    await a_few_turns()
    assert connection.statuses == [201]
    assert connection.wire.is_read
    connection.desk.answer()
    assert connection.statuses == [201, 201]


@pytest.mark.parametrize("error", [None, ConnectionResetError()])
async def test_of_a_peer_that_has_gone_the_reading_is_kept_and_the_answer_dropped(error: Exception | None) -> None:
    connection = Connection()
    connection.feed(post() * 2)
    connection.lose(error)
    connection.desk.answer()
    await a_few_turns()
    assert len(connection.desk.taken) == 1
    assert connection.wire.writes == []
    assert connection.desk.observed == [(201, 0)]
    assert not connection.state.connections


async def test_a_body_that_is_cut_short_is_not_taken() -> None:
    connection = Connection()
    connection.feed(post()[:-1])
    connection.lose()
    await a_few_turns()
    assert connection.desk.taken == []
    assert connection.wire.writes == []


async def test_a_peer_may_go_while_an_answer_is_held_back() -> None:
    connection = Connection()
    connection.feed(post())
    connection.protocol.pause_writing()
    connection.desk.answer()
    connection.lose(ConnectionResetError())
    assert connection.wire.writes == []


async def test_a_stopping_server_closes_idle_connections_and_answers_the_others_first() -> None:
    idle, fresh, busy = Connection(), Connection(), Connection()
    idle.feed(post())
    idle.desk.answer()
    busy.feed(post() * 2)
    for connection in (idle, fresh, busy):
        connection.protocol.shutdown()
    assert [connection.wire.ended for connection in (idle, fresh, busy)] == ["closed", "closed", ""]
    assert busy.state.connections
    busy.desk.answer()
    await a_few_turns()
    assert busy.wire.ended == ""
    busy.desk.answer()
    assert busy.statuses == [201, 201]
    assert busy.sent.count(b"connection: close") == 1
    assert busy.wire.ended == "closed"


@pytest.mark.parametrize("when", ["open", "take"])
async def test_an_error_is_the_answer_also_one_that_nobody_foresaw(
    when: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(error: Exception) -> BodyHandler:
        def take(_: bytes) -> None:
            raise error

        if when == "open":
            raise error
        return take

    connection = Connection()
    monkeypatch.setattr(connection.desk, "open", lambda _: fail(BufferFull("full", retry_after_s=7)))
    connection.feed(post())
    assert connection.statuses == [503]
    assert b"\r\nretry-after: 7\r\n" in connection.sent
    assert connection.wire.ended == ""
    monkeypatch.setattr(connection.desk, "open", lambda _: fail(LookupError("what?")))
    with caplog.at_level(logging.ERROR, "app.web.protocol"):
        connection.feed(post())
    assert connection.statuses == [503, 500]
    assert connection.sent.endswith(b'\r\n\r\n{"detail":"Internal Server Error"}')
    assert connection.wire.ended == "closed"
    assert "what?" in caplog.text


async def test_only_the_first_answer_counts() -> None:
    connection = Connection()
    connection.feed(post())
    connection.desk.answer()
    connection.desk.answer()
    assert connection.statuses == [201]
    assert connection.desk.observed == [(201, 0)]


async def test_answering_never_raises(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def write(_: bytes) -> None:
        raise OSError("no such wire")

    connection = Connection()
    connection.feed(post())
    monkeypatch.setattr(connection.wire, "write", write)
    connection.desk.answer()
    assert connection.wire.ended == "aborted"
    assert "no such wire" in caplog.text


addresses = st.sampled_from(["10.0.0.1", "10.0.0.2:80", "192.0.2.9", "[2001:db8::1]:443", "::1", "unix", "", "é"])


@given(st.sampled_from(["10.0.0.1", "10.9.9.9", "::1"]), st.lists(st.lists(addresses).map(", ".join), max_size=3))
def test_behind_a_trusted_proxy_the_sender_is_whom_uvicorn_takes_it_for(peer: str, forwarded: list[str]) -> None:
    headers = [(b"x-forwarded-for", value.encode("latin1")) for value in forwarded]
    scope: dict[str, Any] = {"type": "http", "client": (peer, 1), "headers": headers}

    async def check() -> str:
        async def nothing(*_: object) -> None: ...

        proxies = "10.0.0.0/29, ::1"
        await ProxyHeadersMiddleware(nothing, proxies)(scope, None, None)  # type: ignore[arg-type]
        connection = Connection(proxies=proxies, peer=(peer, 1))
        connection.feed(post(b"", *(b"X-Forwarded-For: " + value for _, value in headers)))
        return connection.desk.opened[0].client_ip

    assert asyncio.run(check()) == scope["client"][0]


async def test_without_trusted_proxies_a_sender_can_claim_no_address() -> None:
    for connection in (Connection(), Connection(proxies="192.0.2.8")):
        connection.feed(post(b"", b"X-Forwarded-For: 203.0.113.9"))
        assert connection.desk.opened[0].client_ip == "192.0.2.7"
    nobody = Connection(peer=None)
    nobody.feed(post())
    assert nobody.desk.opened[0].client_ip == ""


async def test_what_is_written_in_one_turn_goes_out_at_once_and_before_what_cannot_wait() -> None:
    wire = Wire()
    transport = CoalescingTransport(wire, asyncio.get_running_loop())
    transport.write(b"a")
    transport.write(b"b")
    assert wire.writes == []
    await a_few_turns()
    assert wire.writes == [b"ab"]
    transport.write(b"c")
    transport.write_now(b"d")
    assert wire.writes == [b"ab", b"cd"]
    transport.write_now(b"e")
    transport.write(b"x" * MAX_PENDING_BYTES)
    transport.write(b"f")
    assert wire.writes[2:] == [b"e", b"x" * MAX_PENDING_BYTES + b"f"]
    transport.write(b"g")
    transport.close()
    assert wire.writes[4:] == [b"g"]
    assert wire.ended == "closed"
    await a_few_turns()
    assert len(wire.writes) == 5


@pytest.mark.parametrize("error_in_line", [b"", b"GET /oth", post()[:-1]])
async def test_half_closed_peer_is_answered(error_in_line: bytes) -> None:
    """After the peer has closed its side, its complete requests are answered, and the connection is closed."""
    connection = Connection()
    connection.feed(post() + GET + post() + error_in_line)
    assert connection.protocol.eof_received() is True
    assert connection.wire.ended == ""
    connection.desk.answer()
    await a_few_turns()
    assert (connection.statuses, connection.wire.ended) == ([201, 200], "")
    connection.desk.answer()
    await a_few_turns()
    assert (connection.statuses, connection.wire.ended) == ([201, 200, 201], "closed")


async def test_half_closed_peer_of_asgi_is_answered() -> None:
    """An ASGI route answers a peer that has closed its side, and is not told that it has gone."""
    connection = Connection()
    connection.feed(GET)
    assert connection.protocol.eof_received() is True
    await a_few_turns()
    assert (connection.statuses, connection.wire.ended) == ([200], "closed")


@pytest.mark.parametrize("request_", [post(), CHUNKED, post(target=b"/other"), CHUNKED.replace(b"/reading", b"/")])
async def test_body_cut_short(request_: bytes) -> None:
    """A request whose peer ends in the middle of its body is 400, and nothing of it is taken."""
    connection = Connection()
    connection.feed(request_[:-1])
    await a_few_turns()
    connection.protocol.eof_received()
    await a_few_turns()
    assert (connection.statuses, connection.wire.ended) == ([400], "closed")
    assert b"incomplete" in connection.sent
    assert connection.desk.taken == []


@pytest.mark.parametrize("begun", [b"", b"GET /oth", post(key=b"wrong")[:-1]])
async def test_nothing_is_owed_at_the_end(begun: bytes) -> None:
    """A peer that ends while no answer is owed to it is closed, without another word."""
    connection = Connection()
    connection.feed(begun)
    before = connection.sent
    connection.protocol.eof_received()
    await a_few_turns()
    assert (connection.sent, connection.wire.ended) == (before, "closed")


async def test_answer_of_the_same_turn_goes_out() -> None:
    """An answer that has been gathered for the turn's end is written although the peer's end comes in that turn."""
    connection = Connection(application=answers_at_once)
    connection.feed(GET)
    await asyncio.sleep(0)
    connection.protocol.eof_received()
    await a_few_turns()
    assert (connection.statuses, connection.wire.ended) == ([200], "closed")


async def test_much_at_once_is_parsed_in_slices() -> None:
    """If one read has many requests, each turn answers few, reading pauses meanwhile, and none is forgotten."""
    connection = Connection()
    request = post(b"", key=b"wrong")
    connection.feed(request * 2_000)
    assert len(connection.statuses) <= SLICE_BYTES // len(request) + 1
    assert not connection.wire.is_read
    seen = 0
    while not connection.wire.is_read:
        assert len(connection.statuses) - seen < 500
        seen = len(connection.statuses)
        await asyncio.sleep(0)
    assert connection.statuses == [401] * 2_000


async def test_nothing_is_parsed_while_requests_wait() -> None:
    """If one read has many requests, only those of one slice wait in the queue."""
    connection = Connection()
    connection.feed(post() * 2_000)
    for _ in range(100):
        await asyncio.sleep(0)
    assert len(connection.protocol.pipeline) < 100
    for _ in range(2_000):
        connection.desk.answer()
        await a_few_turns()
    assert connection.statuses == [201] * 2_000


@pytest.mark.parametrize("target", [b"/reading", b"/other"])
async def test_long_body_is_parsed_whole(target: bytes) -> None:
    """The received part of a body of known length is one slice."""
    connection = Connection()
    connection.desk.max_body_bytes = 1_000_000
    connection.feed(post(b"x" * 200_000, target=target))
    assert not connection.wire.is_read  # the rest of the turn is others'
    await a_few_turns()
    assert connection.wire.is_read
    if target == b"/reading":
        connection.desk.answer()
    assert connection.statuses == [201 if target == b"/reading" else 200]


async def test_long_chunked_body_in_one_read() -> None:
    """A chunked body of many slices comes to the application in order, while it keeps reading."""
    connection = Connection()
    chunks = b"".join(b"4\r\n%04d\r\n" % number for number in range(10_000))
    connection.feed(CHUNKED.replace(b"/reading", b"/other").partition(b"2\r\n")[0] + chunks + b"0\r\n\r\n")
    for _ in range(1_000):
        await asyncio.sleep(0)
    assert connection.statuses == [200]
    assert b"".join(b"%04d" % number for number in range(10_000)) in connection.sent


@pytest.mark.parametrize("space", [b" ", b"\t", b" \t  "])
async def test_blanks_around_a_value(space: bytes) -> None:
    """Blanks and tabs around a header's value are not part of it, on any route."""
    connection = Connection()
    connection.feed(post(key=b"k" + space))
    connection.desk.answer()
    connection.feed(post(key=space + b"k" + space, target=b"/other"))
    await a_few_turns()
    assert connection.statuses == [201, 200]
    assert b"(b'x-api-key', b'k')" in connection.sent


@pytest.mark.parametrize("target", [b"/reading", b"/other"])
async def test_header_that_comes_twice(target: bytes) -> None:
    """A header that comes twice is one value with a comma, on every route."""
    connection = Connection()
    connection.feed(post(b"abc", b"X-API-KEY: k", target=target))
    await a_few_turns()
    if target == b"/reading":
        assert connection.statuses == [401]
        assert connection.desk.opened[0].headers[b"x-api-key"] == b"k, k"
    else:
        assert b"(b'x-api-key', b'k, k')" in connection.sent


async def test_trailer_is_no_header() -> None:
    """A trailer after a body is no header of the request, even if it arrives before the request is handled."""
    connection = Connection(proxies="192.0.2.7")
    body = b"3\r\nabc\r\n0\r\nX-API-Key: k\r\nX-Forwarded-For: 192.0.2.9\r\n\r\n"
    connection.feed(b"POST /other HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + body)
    await a_few_turns()
    assert connection.statuses == [200]
    assert b"x-api-key" not in connection.sent
    assert b"192.0.2.9" not in connection.sent


async def test_dripping_body_is_cut() -> None:
    """A body that comes by drops is 408 after ten seconds, and one of 1 KB/s is taken however long it takes."""
    dripping, slow = Connection(), Connection()
    slow.desk.max_body_bytes = dripping.desk.max_body_bytes = 1_000_000
    dripping.feed(post(b"", length=100))
    slow.feed(post(b"", length=60_000))
    for second in range(60):
        if second % 4 == 0 and not dripping.wire.ended:
            dripping.feed(b"x")
        slow.feed(b"x" * 1_000)
        await asyncio.sleep(1)
        assert (dripping.statuses == [408]) is (second >= 10)
    slow.desk.answer()
    assert slow.statuses == [201]


async def test_closing_lets_the_answer_be_read() -> None:
    """If the peer still sends, bytes after the last answer are read and dropped for a while, and not parsed."""
    connection = Connection()
    connection.feed(post(b"", length=MAX_BODY_BYTES + 1))
    assert (connection.statuses, connection.wire.ended) == ([413], "closed")
    farewell: Any = connection.wire.protocol
    assert farewell is not connection.protocol
    assert connection.wire.is_read
    connection.wire.ended = ""
    farewell.data_received(b"x" * LINGER_BYTES)
    assert connection.wire.ended == ""
    farewell.data_received(b"x")
    assert connection.wire.ended == "closed"
    connection.wire.ended = ""
    await asyncio.sleep(LINGER_S + 0.1)
    assert connection.wire.ended == "closed"
    farewell.connection_lost(None)
    assert not connection.state.connections


async def test_stopping_server_refuses_what_still_comes() -> None:
    """When the server stops, an incomplete body gets 503 on both routes, and a complete one its answer."""
    exchange, asgi, whole = Connection(), Connection(application=until_cancelled), Connection()
    exchange.feed(post()[:-1])
    asgi.feed(post(target=b"/other")[:-1])
    whole.feed(post())
    await a_few_turns()
    for connection in (exchange, asgi, whole):
        connection.protocol.shutdown()
        connection.protocol.refuse_unfinished()
    await a_few_turns()
    assert [connection.statuses for connection in (exchange, asgi, whole)] == [[503], [503], []]
    assert exchange.wire.ended == asgi.wire.ended == "closed"


async def until_cancelled(_: Scope, receive: Receive, send: Send) -> None:
    """Read the body, and answer 503 where that is cancelled, as our routes do."""
    try:
        while (await receive())["more_body"]:
            pass
    except asyncio.CancelledError:
        await send({"type": "http.response.start", "status": 503, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})


async def test_connections_are_bounded() -> None:
    """One connection too many takes the place of the oldest that has shown no key, or is 503 if there is none."""
    limit = ConnectionLimit(2, clock=asyncio.get_running_loop().time)
    state = ServerState()
    keyed, keyless = Connection(limit=limit, state=state), Connection(limit=limit, state=state)
    keyed.feed(post())
    keyed.desk.answer()
    third = Connection(limit=limit, state=state)
    assert [connection.wire.ended for connection in (keyed, keyless, third)] == ["", "aborted", ""]
    keyless.lose()
    third.feed(post(target=b"/other"))
    await a_few_turns()
    fourth = Connection(limit=limit, state=state)
    assert (fourth.statuses, fourth.wire.ended) == ([503], "closed")
    assert third.wire.ended == ""


REQUESTS = st.sampled_from(
    [
        (post(), 201),
        (post(b"x" * MAX_BODY_BYTES), 201),
        (CHUNKED, 201),
        (post(key=b"wrong"), 401),
        (GET, 200),
        (post(b"x" * 9_000, target=b"/other"), 200),
        (post(b"abc", b"Connection: upgrade", b"Upgrade: h2c"), 201),
        (CHUNKED.replace(b"/reading", b"/other").replace(b"Host: x", b"Connection: upgrade\r\nUpgrade: h2c"), 200),
    ]
)


@given(st.lists(REQUESTS, max_size=40), st.lists(st.integers(1, 20_000), max_size=20), st.booleans())
def test_any_requests_in_any_pieces(requests: list[tuple[bytes, int]], sizes: list[int], half_closed: bool) -> None:
    """However requests arrive, each is answered once and in order, also if the peer closes its side behind them."""

    async def answers() -> tuple[list[int], str]:
        connection = Connection()
        unsent, pieces, has_ended, answered = b"".join(request for request, _ in requests), iter(sizes), False, 0
        for _ in range(10_000):
            if connection.wire.is_read and unsent:
                size = next(pieces, 250_000)
                connection.feed(unsent[:size])
                unsent = unsent[size:]
            elif connection.wire.is_read and half_closed and not has_ended:
                has_ended = connection.protocol.eof_received()
            await asyncio.sleep(0)
            if len(connection.desk.taken) > answered:
                answered += 1
                connection.desk.answer()
            if not unsent and has_ended is half_closed and len(connection.statuses) == len(requests):
                break
        await a_few_turns()
        return connection.statuses, connection.wire.ended

    assert asyncio.run(answers()) == ([status for _, status in requests], "closed" if half_closed else "")
