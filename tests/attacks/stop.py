"""A stop with open hostile connections, and with readings in the buffer that were answered 202."""

import http.client
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import psycopg

from tests.attacks.connections import BROKEN_HANDSHAKES
from tests.attacks.report import Finding
from tests.support.clusters import cluster
from tests.support.server import API_KEY, Server, running

CONNECTIONS = 50
REQUESTS = 10
ROWS = 50_000
BOUND_S = 10.0

SLOW_BODIES = [
    b"POST %s HTTP/1.1\r\nHost: x\r\nX-API-Key: %s\r\nContent-Type: %s\r\nContent-Length: 60000\r\n\r\n{"
    % (path, API_KEY.encode(), content_type)
    for path, content_type in (
        (b"/api/temperature_reading", b"application/json"),
        (b"/api/readings", b"application/x-ndjson"),
    )
]
HALF_HEAD = b"POST /api/readings HTTP/1.1\r\nHost: x\r\n"


class Stop(NamedTuple):
    """The result of a stop."""

    seconds: float
    status: int
    lost: int
    """Readings that were answered 202 and are not stored."""


@contextmanager
def hostile_connections(server: Server, count: int) -> Iterator[None]:
    """While so many broken handshakes, slow bodies and half heads are open."""
    host, port = server.url.removeprefix("http://").split(":")
    broken = list(BROKEN_HANDSHAKES.values())
    with ExitStack() as stack:
        for number in range(count):
            for opening in (broken[number % len(broken)], SLOW_BODIES[number % 2], HALF_HEAD):
                connection = stack.enter_context(socket.create_connection((host, int(port)), timeout=30))
                connection.sendall(opening)
        yield


def stop_under_attack(server: Server, url: str, *, connections: int, requests: int, rows: int) -> Stop:
    """Fill the buffer and stop the server."""
    host, port = server.url.removeprefix("http://").split(":")
    body = "sensor_id,temperature\n" + "".join(f"s{row % 1_000},21.5\n" for row in range(rows))
    headers = {"X-API-Key": API_KEY, "Content-Type": "text/csv", "Prefer": "respond-async"}
    with hostile_connections(server, connections):
        for _ in range(requests):
            client = http.client.HTTPConnection(host, int(port), timeout=60)  # each may go to another worker
            client.request("POST", "/api/readings", body, headers)
            answer = client.getresponse()
            assert (answer.status, answer.read()) == (202, b'{"accepted":%d}' % rows)
            client.close()
        began = time.monotonic()
        status = server.stop()
        seconds = time.monotonic() - began
    with psycopg.connect(url) as connection:
        stored = connection.execute("SELECT count(*) FROM readings").fetchone()
    assert stored
    return Stop(seconds, status, requests * rows - stored[0])


def findings() -> Iterator[Finding]:
    """Return the duration, the exit status and the losses of a stop, with one process and with two workers."""
    for workers in ("1", "2"):
        with (
            cluster("embedded") as url,
            TemporaryDirectory() as folder,
            running(Path(folder), DATABASE_URL=url, WORKERS=workers) as server,
        ):
            stop = stop_under_attack(server, url, connections=CONNECTIONS, requests=REQUESTS, rows=ROWS)
        how = f"SIGTERM to {workers} process{'es' if workers != '1' else ''}"
        yield Finding(f"{how}: its end", stop.seconds, "s", BOUND_S)
        yield Finding(f"{how}: exit status", stop.status, "", 0)
        yield Finding(f"{how}: readings answered 202 and lost", stop.lost, "", 0)
