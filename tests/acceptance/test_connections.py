"""The effects of connections on the server and on each other, with real sockets and clients of others."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import psycopg
import pytest

from tests.attacks.connections import ATTACKS, BROKEN_HANDSHAKES, cost_ms
from tests.attacks.stop import stop_under_attack
from tests.support.server import API_KEY, API_KEY_WS, Server, running

PATH = "/api/temperature_reading"
READING = {"temperature": 23.5, "humidity": 48.25, "pressure": 1013.25, "sensor_id": "greenhouse-1"}
BODY = json.dumps(READING).encode()


def connection_to(server: Server) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=30)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def request(method: str, path: str, body: bytes = b"", *headers: str) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: x", f"X-API-Key: {API_KEY}", "Content-Type: application/json"]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, *headers, "", ""]).encode() + body


def answers(connection: socket.socket) -> bytes:
    """Return everything that arrives until the server closes."""
    return b"".join(iter(lambda: connection.recv(65_536), b""))


def statuses(answer: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d+) ", answer)]


def stored(url: str) -> int:
    with psycopg.connect(url) as connection:
        row = connection.execute("SELECT count(*) FROM readings").fetchone()
    assert row
    return int(row[0])


@contextmanager
def paused(server: Server) -> Iterator[None]:
    """Let all that is sent meanwhile reach the server at once."""
    processes = [server.process.pid, *server.workers]
    for process in processes:
        os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        for process in processes:
            os.kill(process, signal.SIGCONT)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_half_closed_clients_are_answered(embedded_database_url: str, tmp_path: Path, workers: str) -> None:
    """A client that closes its side after the request gets its answer, on every route, and then the server's end."""
    post = request("POST", PATH, BODY)
    bulk = request("POST", "/api/readings", BODY)
    cases = [
        (post, [201]),
        (bulk, [201]),
        (post * 3 + bulk + post, [201] * 5),
        (request("GET", "/api/readings?bucket=raw&format=ndjson"), [200]),
        (request("GET", "/api/sensors"), [200]),
        (request("PATCH", "/api/sensors/greenhouse-1", b'{"label": "x"}'), [200]),
        (request("GET", "/health"), [200]),
        (post + request("GET", "/ready") + b"GET /hea", [201, 200]),
        (post + post[:-1], [201]),
        (post[:-1], [400]),
        (bulk[:-1], [400]),
        (b"GET /hea", []),
        (b"", []),
    ]
    with running(tmp_path, DATABASE_URL=embedded_database_url, WORKERS=workers) as server:
        with httpx.Client(base_url=server.url, headers={"X-API-Key": API_KEY}) as client:
            assert client.post(PATH, json=READING).status_code == 201
            while client.get("/api/sensors/greenhouse-1").status_code != 200:
                time.sleep(0.05)
        for sent, expected in cases:
            with connection_to(server) as connection:
                connection.sendall(sent)
                connection.shutdown(socket.SHUT_WR)
                assert statuses(answers(connection)) == expected, sent
        assert server.stop() == 0
    assert stored(embedded_database_url) == 1 + 1 + 1 + 5 + 1 + 1


CURL = ["curl", "-sS", "--http2", "-i", "-H", f"X-API-Key: {API_KEY}"]


def test_curl_that_offers_h2c(server: Server, embedded_database_url: str) -> None:
    """The option --http2 of curl offers h2c with each request, and its body is stored."""
    lines = "\n".join([json.dumps(READING)] * 3)
    for path, content_type, body in (
        (PATH, "application/json", json.dumps(READING)),
        ("/api/readings", "application/x-ndjson", lines),
    ):
        command = [*CURL, server.url + path, "-H", f"Content-Type: {content_type}", "--data-binary", body]
        output = subprocess.run([*command, "--next", *command[1:]], capture_output=True, text=True, check=True).stdout
        assert output.count("HTTP/1.1 201 Created") == 2, output
    assert '{"stored":3}' in output
    assert stored(embedded_database_url) == 2 + 2 * 3


JAVA = """
import java.net.URI;
import java.net.http.*;

public class Send {
    public static void main(String[] arguments) throws Exception {
        HttpClient client = HttpClient.newHttpClient();
        for (int number = 0; number < 2; number++) {
            HttpRequest request = HttpRequest.newBuilder(URI.create(arguments[0]))
                .header("X-API-Key", arguments[1]).header("Content-Type", arguments[2])
                .POST(HttpRequest.BodyPublishers.ofString(arguments[3])).build();
            HttpResponse<String> answer = client.send(request, HttpResponse.BodyHandlers.ofString());
            System.out.println(answer.statusCode() + " " + answer.body());
        }
    }
}
"""


def test_java_client_that_offers_h2c(server: Server, embedded_database_url: str, tmp_path: Path) -> None:
    """The JDK's HttpClient offers h2c by default, and its body is stored."""
    if shutil.which("java") is None or shutil.which("javac") is None:
        pytest.skip("there is no JDK")
    source = tmp_path / "Send.java"
    source.write_text(JAVA)
    lines = "\n".join([json.dumps(READING)] * 3)
    for path, content_type, body in (
        (PATH, "application/json", json.dumps(READING)),
        ("/api/readings", "application/x-ndjson", lines),
    ):
        command = ["java", str(source), server.url + path, API_KEY, content_type, body]
        output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
        assert [line[:4] for line in output.splitlines()] == ["201 ", "201 "], output
    assert stored(embedded_database_url) == 2 + 2 * 3


@pytest.mark.parametrize("offer", ["h2c", "websocket", "TLS/1.0"])
@pytest.mark.parametrize("path", [PATH, "/api/readings"])
def test_offer_with_a_body_is_ignored(server: Server, offer: str, path: str) -> None:
    """A POST that offers another protocol is an ordinary POST, and so is the next on its connection."""
    upgrade = "Connection: Upgrade", f"Upgrade: {offer}", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
    offering = request("POST", path, BODY, *upgrade)
    with connection_to(server) as connection:
        connection.sendall(offering + offering[:-5])
        time.sleep(0.1)
        connection.sendall(offering[-5:] + request("GET", "/health", b"", "Connection: close"))
        answer = answers(connection)
    assert statuses(answer) == [201, 201, 200]
    assert b'{"stored":0}' not in answer


@pytest.mark.parametrize("broken", BROKEN_HANDSHAKES)
def test_broken_handshakes_are_answered_and_closed(server: Server, broken: str) -> None:
    """A handshake that can't be read gets its status and a reason, and the connection is closed."""
    with connection_to(server) as connection:
        connection.sendall(BROKEN_HANDSHAKES[broken])
        connection.settimeout(5)
        answer = answers(connection)
    assert statuses(answer) == [431]
    assert re.search("handshake|request's headers", json.loads(answer.partition(b"\r\n\r\n")[2])["detail"])


@pytest.mark.parametrize("workers", ["1", "2"])
def test_stop_under_attack(embedded_database_url: str, tmp_path: Path, workers: str) -> None:
    """A stop amid broken handshakes, slow bodies and half heads loses nothing that was answered 202."""
    with running(tmp_path, DATABASE_URL=embedded_database_url, WORKERS=workers) as server:
        stop = stop_under_attack(server, embedded_database_url, connections=20, requests=4, rows=20_000)
    assert (stop.status, stop.lost) == (0, 0)
    assert stop.seconds < 20
    assert "Traceback" not in server.log


@pytest.mark.parametrize(
    "attack",
    [
        "pings after a wrong key",
        "texts after a wrong key",
        "pipelined POSTs without a key",
        "pipelined GETs",
        "one-byte chunks with a key, bulk",
        "texts of a subscriber",
    ],
)
def test_one_hostile_connection_stops_nobody(server: Server, attack: str) -> None:
    """Another client's readings are stored while one connection floods the server."""
    assert cost_ms(server, ATTACKS[attack], windows=1) < 2_000
    assert server.process.poll() is None


def test_slow_bodies_lock_nobody_out(server: Server) -> None:
    """Bodies that come by drops hold no room for what they announced, and are 408 after some ten seconds."""
    with ExitStack() as stack:
        slow = [stack.enter_context(connection_to(server)) for _ in range(6)]
        for number, connection in enumerate(slow):
            head = request(
                "POST",
                (PATH, "/api/readings")[number % 2],
                b"",
                f"Content-Length: {60_000 + 16_700_000 * (number % 2)}",
            )
            connection.sendall(head + b"[")
        began = time.monotonic()
        for _ in range(4):
            time.sleep(2)
            for connection in slow:
                connection.sendall(b" ")
            answer = httpx.post(server.url + "/api/readings", json=[READING], headers={"X-API-Key": API_KEY})
            assert answer.status_code == 201, answer.text
        for connection in slow:
            assert statuses(answers(connection)) == [408]
        assert time.monotonic() - began < 20


def test_small_body_at_one_kilobyte_per_second(server: Server) -> None:
    """A device that sends 1 KB/s is served, however long its body takes."""
    body = json.dumps([{**READING, "sensor_id": "x" * 200}] * 50).encode()
    began = time.monotonic()
    with connection_to(server) as connection:
        connection.sendall(request("POST", "/api/readings", b"", f"Content-Length: {len(body)}", "Connection: close"))
        for place in range(0, len(body), 500):
            time.sleep(0.5)
            connection.sendall(body[place : place + 500])
        assert statuses(answers(connection)) == [201]
    assert time.monotonic() - began > 10


@pytest.mark.parametrize("workers", ["1", "2"])
def test_silent_connections_keep_nobody_out(embedded_database_url: str, tmp_path: Path, workers: str) -> None:
    """At the limit of open files a client with a key gets in, a subscriber stays, and the log says what happens."""
    if shutil.which("prlimit") is None:
        pytest.skip("there is no prlimit to start a process with")
    server = Server(tmp_path, open_files=256, DATABASE_URL=embedded_database_url, WORKERS=workers)
    try:
        server.wait_until_ready()
        with ExitStack() as stack:
            subscriber = stack.enter_context(connection_to(server))
            upgrade = "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13"
            key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
            subscriber.sendall(request("GET", f"/ws/sensor_updates?api-key={API_KEY_WS}", b"", *upgrade, key))
            assert subscriber.recv(1_024).startswith(b"HTTP/1.1 101")
            with paused(server):
                for number in range(600):
                    silent = stack.enter_context(connection_to(server))
                    silent.sendall(b"GET /hea"[: number % 8])
                first = stack.enter_context(connection_to(server))
                first.sendall(request("POST", PATH, BODY, "Connection: close"))
            assert statuses(answers(first)) == [201]
            for _ in range(5):
                answer = httpx.post(server.url + PATH, json=READING, headers={"X-API-Key": API_KEY}, timeout=15)
                assert answer.status_code == 201
            assert b"greenhouse-1" in subscriber.recv(4_096)
        assert any("connections are in use" in message for message in server.messages)
        assert sum("connections are in use" in message for message in server.messages) <= int(workers)
        assert not any("file descriptors" in message for message in server.messages)
    finally:
        server.stop()
