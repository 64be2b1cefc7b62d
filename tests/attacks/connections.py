"""One hostile connection of each kind, and how long another client's readings take meanwhile.

The attacker is a process of its own: it opens a connection, sends as fast as the server reads, and opens another one
when it is closed. The client sends one reading after the other on one connection.
"""

import http.client
import json
import os
import select
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from multiprocessing.synchronize import Event
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from tests.attacks.report import Finding
from tests.support.clusters import cluster
from tests.support.server import API_KEY, API_KEY_WS, Server, running

PATH = "/api/temperature_reading"
READING = json.dumps({"temperature": 23.5, "humidity": 48.25, "pressure": 1013.25, "sensor_id": "greenhouse-1"})
BOUND_MS = 250.0
CONTEXT = get_context("spawn")
WINDOWS = 5
WINDOW_S = 1.0
FLOOD_BYTES = 1_000_000

PING = b"\x89\x80\0\0\0\0"
TEXT = b"\x81\x81\0\0\0\0x"
FRAGMENT = b"\x01\x80\0\0\0\0"
POST = b"POST %s HTTP/1.1\r\nHost: x\r\n\r\n" % PATH.encode()
GET = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
CHUNKED = b"POST %s HTTP/1.1\r\nHost: x\r\nX-API-Key: %s\r\nTransfer-Encoding: chunked\r\n\r\n"
ENDLESS = b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000000\r\n\r\n" % PATH.encode()
CHUNK = b"1\r\n \r\n"
OFFER = b"GET /health HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n"
HEAD = b"GET /health HTTP/1.1\r\n%s\r\n"
SAME_HEADERS = b"a:b\r\n" * 250
OTHER_HEADERS = b"".join(b"%x:b\r\n" % number for number in range(250))


def handshake(key: str, *headers: bytes) -> bytes:
    """Return a WebSocket handshake."""
    lines = [
        b"GET /ws/sensor_updates?api-key=%s HTTP/1.1" % key.encode(),
        b"Host: x",
        b"Connection: Upgrade",
        b"Upgrade: websocket",
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        b"Sec-WebSocket-Version: 13",
        *headers,
    ]
    return b"\r\n".join([*lines, b"", b""])


BROKEN_HANDSHAKES = {
    "a header of 20 KB": handshake("x", b"X: %s" % (b"x" * 20_000)),
    "1,000 headers": handshake("x", *(b"X-%d: x" % number for number in range(1_000))),
    "5,000 subprotocols": handshake("x", b"Sec-WebSocket-Protocol: %s" % b", ".join(b"p%d" % n for n in range(5_000))),
}


@dataclass(frozen=True, slots=True)
class Attack:
    """Bytes that one connection sends: ``opening`` once, then ``flood`` repeatedly, in pieces of ``piece_bytes``; a
    short attack ends after the opening.
    """

    opening: bytes
    flood: bytes
    piece_bytes: int = FLOOD_BYTES
    is_short: bool = False


def _flood(unit: bytes) -> bytes:
    return unit * (FLOOD_BYTES // len(unit) + 1)


ATTACKS: Mapping[str, Attack] = {
    "pings after a wrong key": Attack(handshake("wrong"), _flood(PING)),
    "texts after a wrong key": Attack(handshake("wrong"), _flood(TEXT)),
    "fragments after a wrong key": Attack(handshake("wrong"), _flood(FRAGMENT)),
    "pings in the same breath as a handshake": Attack(handshake("wrong") + _flood(PING), _flood(PING)),
    "broken handshakes": Attack(BROKEN_HANDSHAKES["a header of 20 KB"], b""),
    "pipelined POSTs without a key": Attack(b"", _flood(POST)),
    "pipelined GETs": Attack(b"", _flood(GET)),
    "pipelined offers of h2c": Attack(b"", _flood(OFFER)),
    "heads of 12,000 headers": Attack(b"", HEAD % (b"a:b\r\n" * 12_000) * 16),
    "heads of 250 headers of one name": Attack(b"", HEAD % SAME_HEADERS * 400),
    "heads of 250 headers": Attack(b"", HEAD % OTHER_HEADERS * 400),
    "one-byte chunks without a key, one reading": Attack(CHUNKED % (PATH.encode(), b"wrong"), _flood(CHUNK)),
    "one-byte chunks without a key, bulk": Attack(CHUNKED % (b"/api/readings", b"wrong"), _flood(CHUNK)),
    "an endless body without a key": Attack(ENDLESS, _flood(b" ")),
    "connections that are dropped again": Attack(b"", b"", is_short=True),
    "blank lines": Attack(b"", _flood(b"\r\n")),
    "a head byte by byte": Attack(b"", b"GET /health HTTP/1.1\r\nX: " + b"x" * 50_000 + b"\r\n\r\n", 1),
    "one-byte chunks with a key, one reading": Attack(CHUNKED % (PATH.encode(), API_KEY.encode()), _flood(CHUNK)),
    "one-byte chunks with a key, bulk": Attack(CHUNKED % (b"/api/readings", API_KEY.encode()), _flood(CHUNK)),
    "pings of a subscriber": Attack(handshake(API_KEY_WS), _flood(PING)),
    "texts of a subscriber": Attack(handshake(API_KEY_WS), _flood(TEXT)),
}


def attack(address: tuple[str, int], attack: Attack, go: Event) -> None:
    """Attack with one connection at a time until told to stop, on a processor that the server does not use."""
    os.nice(10)
    while go.wait():
        with suppress(OSError), socket.create_connection(address, timeout=5) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.sendall(attack.opening)
            if attack.is_short:
                continue
            connection.setblocking(False)
            pieces = _pieces(attack)
            unsent = next(pieces, memoryview(b""))
            while go.is_set():
                readable, writable, _ = select.select([connection], [connection] if unsent else [], [], 0.1)
                if readable and not connection.recv(1_048_576):
                    break
                if writable:
                    unsent = unsent[connection.send(unsent) :] or next(pieces, memoryview(b""))


def _pieces(attack: Attack) -> Iterator[memoryview]:
    flood = memoryview(attack.flood)
    while flood:
        for place in range(0, len(flood), attack.piece_bytes):
            yield flood[place : place + attack.piece_bytes]


def worst_ms(address: tuple[str, int], seconds: float) -> float:
    """Send readings one after the other for some seconds, and return the longest time that one took."""
    worst = 0.0
    until = time.perf_counter() + seconds
    client = http.client.HTTPConnection(*address, timeout=60)
    while (began := time.perf_counter()) < until:
        client.request("POST", PATH, READING, {"X-API-Key": API_KEY})
        answer = client.getresponse()
        answer.read()
        assert answer.status == 201
        worst = max(worst, time.perf_counter() - began)
    client.close()
    return worst * 1_000


@contextmanager
def under_attack(run: Callable[[], None]) -> Iterator[None]:
    """While another process runs this."""
    process = CONTEXT.Process(target=run)
    process.start()
    try:
        yield
    finally:
        process.kill()
        process.join()


def cost_ms(server: Server, kind: Attack, *, windows: int) -> float:
    """Return what an attack adds to another client's worst latency: the difference of medians over windows of a second,
    with and without it in turns, since other work on the machine has bad moments of its own.
    """
    host, port = server.url.removeprefix("http://").split(":")
    address = host, int(port)
    idle, attacked = [], []
    go = CONTEXT.Event()
    with under_attack(partial(attack, address, kind, go)):
        time.sleep(1)  # a new process takes as long to begin
        for _ in range(windows):
            idle.append(worst_ms(address, WINDOW_S))
            go.set()
            attacked.append(worst_ms(address, WINDOW_S))
            go.clear()
    return median(attacked) - median(idle)


def findings() -> Iterator[Finding]:
    """Yield one finding for each attack."""
    with (
        cluster("embedded") as url,
        TemporaryDirectory() as folder,
        running(Path(folder), DATABASE_URL=url) as server,
    ):
        for name, kind in ATTACKS.items():
            yield Finding(name, cost_ms(server, kind, windows=WINDOWS), "ms more", BOUND_MS)
