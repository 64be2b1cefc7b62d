"""The HTTP contract, as a client uses it."""

import json
import re
import socket
import subprocess
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import psycopg
import pytest

from app import __version__
from tests.support.clients import connection_to
from tests.support.proxy import Fault, faulty_proxy
from tests.support.server import API_KEY, API_KEY_WS, Server, eventually, running, starting

PATH = "/api/temperature_reading"
READING = {"temperature": 23.5, "humidity": 48.25, "pressure": 1013.25, "sensor_id": "greenhouse-1"}


def count(url: str) -> object:
    with psycopg.connect(url) as connection:
        row = connection.execute("SELECT count(*) FROM readings").fetchone()
    assert row
    return row[0]


def test_201_has_the_fields_of_the_older_server(client: httpx.Client, embedded_database_url: str) -> None:
    answer = client.post(PATH, json={**READING, "time": (datetime.now(UTC) - timedelta(days=1)).isoformat()})
    assert answer.status_code == 201
    stored = answer.json()
    assert list(stored) == [
        *("id", "temperature", "humidity", "pressure", "date_recorded", "time_recorded", "sensor_id", "client_ip")
    ]
    with psycopg.connect(embedded_database_url) as connection:
        row = connection.execute("SELECT * FROM data").fetchone()
    assert row
    assert [str(value) for value in row] == [
        str(stored[name])
        for name in ("id", "temperature", "humidity", "pressure", "date_recorded", "time_recorded", "sensor_id")
    ] + ["127.0.0.1"]


def test_a_reading_in_the_older_form_is_taken(client: httpx.Client) -> None:
    answer = client.post(PATH, json={**READING, "temperature": "23.5", "extra": 1})
    assert (answer.status_code, answer.json()["temperature"]) == (201, 23.5)


@pytest.mark.parametrize(
    ("key", "status"), [(None, 401), ("", 401), ("wrong", 401), (API_KEY[:-1], 401), (API_KEY_WS, 403)]
)
@pytest.mark.parametrize("path", [PATH, "/api/readings"])
def test_key_that_may_not_send(server: Server, path: str, key: str | None, status: int) -> None:
    answer = httpx.post(server.url + path, json=READING, headers={} if key is None else {"X-API-Key": key})
    assert answer.status_code == status
    assert "API key" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("body", "where", "kind"),
    [
        ({"humidity": None}, "humidity", "float_type"),
        ({"temperature": "warm"}, "temperature", "float_parsing"),
        ({"temperature": True}, "temperature", "value_error"),
        ({"sensor_id": ""}, "sensor_id", "string_too_short"),
        ({"sensor_id": "x" * 256}, "sensor_id", "string_too_long"),
        ({"sensor_id": "a\0b"}, "sensor_id", "value_error"),
        ({"time": "yesterday"}, "time", "value_error"),
        ({"time": "2013-01-01T00:00:00Z"}, "time", "time_outside_window"),
        ({"time": (datetime.now(UTC) + timedelta(hours=1)).timestamp()}, "time", "time_outside_window"),
    ],
)
def test_422_says_what_is_wrong_in_the_form_of_fastapi(
    client: httpx.Client, body: dict[str, object], where: str, kind: str
) -> None:
    answer = client.post(PATH, json={**READING, **body})
    assert answer.status_code == 422
    (fault,) = answer.json()["detail"]
    assert (fault["loc"], fault["type"]) == (["body", where], kind)
    assert fault["msg"]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"temperature": NaN}', b"\xff\xfe", b"[" * 50_000, b"9" * 60_000])
def test_a_body_that_is_no_reading_is_422(client: httpx.Client, body: bytes) -> None:
    answer = client.post(PATH, content=body)
    assert answer.status_code == 422
    assert answer.json()["detail"]


def test_a_body_too_large_is_413_also_without_a_length(client: httpx.Client) -> None:
    assert client.post(PATH, content=b"x" * 70_000).status_code == 413
    assert client.post(PATH, content=(b"x" * 7_000 for _ in range(10))).status_code == 413


def test_many_requests_may_come_at_once_on_one_connection(server: Server) -> None:
    body = json.dumps(READING).encode()
    request = b"POST %s HTTP/1.1\r\nHost: x\r\nX-API-Key: %s\r\nContent-Length: %d\r\n\r\n%s"
    with connection_to(server) as connection:
        connection.sendall(request % (PATH.encode(), API_KEY.encode(), len(body), body) * 1_000)
        answers = b""
        while answers.count(b'"client_ip"') < 1_000:
            answers += connection.recv(1_048_576)
    assert answers.count(b"HTTP/1.1 201 ") == 1_000


def test_answers_come_in_the_order_of_the_requests_whoever_gives_them(server: Server) -> None:
    body = json.dumps(READING).encode()
    post = b"POST %s HTTP/1.1\r\nHost: x\r\nX-API-Key: %%s\r\nContent-Length: %d\r\n\r\n%s" % (
        *(PATH.encode(), len(body), body),
    )
    get = b"GET /health HTTP/1.1\r\nHost: x\r\n%s\r\n"
    with connection_to(server) as connection:
        connection.sendall(
            post % API_KEY.encode()
            + get % b""
            + post % b"wrong"
            + post % API_KEY.encode()
            + get % b"Connection: close\r\n"
        )
        answers = b"".join(iter(lambda: connection.recv(65_536), b""))
    assert re.findall(rb"HTTP/1.1 (\d+)", answers) == [b"201", b"200", b"401", b"201", b"200"]


def test_a_body_may_come_slowly_and_only_when_it_is_asked_for(server: Server) -> None:
    body = json.dumps(READING).encode()
    head = b"POST %s HTTP/1.1\r\nHost: x\r\nX-API-Key: %s\r\nContent-Length: %d\r\nExpect: 100-continue\r\n\r\n" % (
        *(PATH.encode(), API_KEY.encode(), len(body)),
    )
    with connection_to(server) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(head)
        assert connection.recv(1_024) == b"HTTP/1.1 100 Continue\r\n\r\n"
        for place in range(0, len(body), 10):
            connection.sendall(body[place : place + 10])
            time.sleep(0.005)
        assert connection.recv(1_024).startswith(b"HTTP/1.1 201 Created\r\n")


def test_behind_a_trusted_proxy_client_ip_is_the_senders(embedded_database_url: str, tmp_path: Path) -> None:
    with running(tmp_path, DATABASE_URL=embedded_database_url, FORWARDED_ALLOW_IPS="127.0.0.1") as server:
        headers = {"X-API-Key": API_KEY, "X-Forwarded-For": "198.51.100.1, 203.0.113.9"}
        answer = httpx.post(server.url + PATH, json=READING, headers=headers)
    assert (answer.status_code, answer.json()["client_ip"]) == (201, "203.0.113.9")


@pytest.mark.parametrize("before", [b"", b"Transfer-Encoding: chunked\r\n\r\n0\r\n"])
def test_endless_headers_and_trailers_are_cut_off(server: Server, before: bytes) -> None:
    with connection_to(server) as connection:
        connection.sendall(b"POST /api/nothing HTTP/1.1\r\nHost: x\r\n" + before)
        taken = 0
        with suppress(ConnectionError):
            while taken < 100 * 2**20:
                taken += connection.send(b"X-Header: %s\r\n" % (b"x" * 4_096))
        assert taken < 10 * 2**20


def test_other_methods_encodings_and_paths_are_refused(client: httpx.Client) -> None:
    assert client.get(PATH).status_code == 405
    assert client.post(PATH, json=READING, headers={"Content-Encoding": "gzip"}).status_code == 415
    assert client.post("/api/nothing", json=READING).status_code == 404


@pytest.mark.parametrize(
    ("path", "allow"),
    [
        (PATH, "POST, OPTIONS"),
        ("/api/readings", "GET, POST, OPTIONS"),
        ("/api/sensors", "GET, OPTIONS"),
        ("/api/sensors/greenhouse-1", "GET, PATCH, OPTIONS"),
        ("/health", "GET, OPTIONS"),
    ],
)
def test_allow(client: httpx.Client, path: str, allow: str) -> None:
    """OPTIONS is 204 and another method 405, both with every method of the path in Allow."""
    options, other = client.options(path), client.delete(path)
    assert (options.status_code, options.headers["Allow"], options.content) == (204, allow, b"")
    assert (other.status_code, other.headers["Allow"]) == (405, allow)
    assert allow in other.json()["detail"]
    assert client.options("/api/nothing").status_code == 404


ROUTES = [("POST", PATH), ("POST", "/api/readings"), ("GET", "/api/sensors"), ("GET", "/ws/sensor_updates")]


def status_for(server: Server, method: str, path: str, *key_lines: bytes) -> int:
    """Return the status of a request with these header lines for the key. For a WebSocket, 401 stands for a close with
    1008.
    """
    lines = [b"%s %s HTTP/1.1" % (method.encode(), path.encode()), b"Host: x", *key_lines]
    if path.startswith("/ws"):
        lines += [b"Connection: Upgrade", b"Upgrade: websocket", b"Sec-WebSocket-Version: 13"]
        lines += [b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="]
    elif method == "POST":
        body = json.dumps(READING).encode()
        lines += [b"Content-Type: application/json", b"Connection: close", b"Content-Length: %d" % len(body)]
    else:
        lines += [b"Connection: close"]
    with connection_to(server) as connection:
        connection.sendall(b"\r\n".join([*lines, b"", b"" if method == "GET" else body]))
        if not path.startswith("/ws"):
            return int(b"".join(iter(lambda: connection.recv(65_536), b"")).split()[1])
        connection.settimeout(1)
        answer = b""
        with suppress(TimeoutError):
            while piece := connection.recv(65_536):
                answer += piece
        return 401 if b"\x03\xf0" in answer.partition(b"\r\n\r\n")[2] else 200


def test_key_header_on_all_routes(server: Server) -> None:
    """Blanks around a key are ignored. A repeated key, or one with other bytes, is 401 on every route."""
    key = API_KEY.encode()
    for method, path in ROUTES:
        for line in (b"X-API-Key: %s ", b"X-API-Key:\t%s\t", b"x-api-key:%s \t "):
            assert status_for(server, method, path, line % key) in {200, 201}, (path, line)
        assert status_for(server, method, path, *[b"X-API-Key: %s" % key] * 2) == 401, path
        assert status_for(server, method, path, b"X-API-Key: %s" % key, b"X-API-Key: wrong") == 401, path
        for wrong in (b"\xe9" * 20, "é".encode() * 20, key + b"\xa0", b"\x85" + key):
            assert status_for(server, method, path, b"X-API-Key: %s" % wrong) == 401, (path, wrong)


def test_key_beyond_ascii(embedded_database_url: str, tmp_path: Path) -> None:
    """A key with letters beyond ASCII is its UTF-8, on every route."""
    key = "Schlüssel-für-alles-0123456789"
    with running(tmp_path, DATABASE_URL=embedded_database_url, API_KEY=key) as server:
        for method, path in ROUTES:
            assert status_for(server, method, path, b"X-API-Key: %s" % key.encode()) in {200, 201}, path
            assert status_for(server, method, path, b"X-API-Key: %s" % key.encode("latin-1")) == 401, path


@pytest.mark.parametrize("path", [PATH, "/api/readings", "/ws/sensor_updates"])
def test_large_head_is_431(server: Server, path: str) -> None:
    """A head of more than 64 KB is answered 431, with a reason in JSON."""
    with connection_to(server) as connection:
        connection.sendall(b"GET %s HTTP/1.1\r\nHost: x\r\n%s\r\n" % (path.encode(), b"X: xxxx\r\n" * 30_000))
        answer = b"".join(iter(lambda: connection.recv(65_536), b""))
    assert answer.startswith(b"HTTP/1.1 431 Request Header Fields Too Large\r\n")
    assert "65,536" in json.loads(answer.partition(b"\r\n\r\n")[2])["detail"]


def test_the_openapi_page_shows_the_whole_contract(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    operation = document["paths"][PATH]["post"]
    assert {"201", "401", "403", "413", "415", "422", "503", "504"} <= set(operation["responses"])
    (scheme,) = operation["security"][0]
    assert document["components"]["securitySchemes"][scheme] == {"type": "apiKey", "in": "header", "name": "X-API-Key"}
    assert set(document["components"]["schemas"]["ReadingBody"]["properties"]) == {*READING, "time"}
    assert {"/health", "/ready", "/metrics"} <= set(document["paths"])
    assert document["info"]["version"] == __version__
    assert client.get("/docs").status_code == 200


def test_docs_need_no_other_host(client: httpx.Client) -> None:
    """The page /docs and what it loads come from this server alone."""
    page = client.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert not re.search(r"(https?:)?//[\w.-]+\.\w", page.text)
    loaded = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(loaded) == 3
    types = {path.rpartition(".")[2]: client.get(path).headers["content-type"] for path in loaded}
    assert {name: type_.partition(";")[0] for name, type_ in types.items()} == {
        **{"js": "text/javascript", "css": "text/css", "png": "image/png"},
    }
    assert "SwaggerUIBundle" in client.get(next(path for path in loaded if path.endswith(".js"))).text
    assert "/openapi.json" in page.text


def test_what_postgresql_refuses_is_422_and_its_neighbours_are_stored(
    client: httpx.Client, embedded_database_url: str
) -> None:
    with psycopg.connect(embedded_database_url) as connection:
        connection.execute("ALTER TABLE readings ADD CONSTRAINT sane CHECK (temperature < 100)")
    assert client.post(PATH, json={**READING, "temperature": 1000}).status_code == 422
    assert client.post(PATH, json=READING).status_code == 201
    assert count(embedded_database_url) == 1


def test_labels_are_bounded(client: httpx.Client) -> None:
    """Paths and methods that are not the server's make no new series."""
    for number, method in enumerate(["PROPFIND", "REPORT", "INVENTED"]):
        client.get(f"/no/such/path/{number}")
        client.request(method, f"/api/sensors/{number}")
        client.get(f"/docs/{number}.js")
    labels = re.findall(r'request_duration_seconds_count{method="(\w+)",route="([^"]+)"', client.get("/metrics").text)
    assert not [label for label in labels if re.search(r"\d|\.js$", "".join(label))]
    assert ("GET", "unknown") in labels
    assert {method for method, _ in labels} <= {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "other"}
    assert "other" in {method for method, _ in labels}


def test_health_ready_and_metrics_tell_the_state(client: httpx.Client) -> None:
    client.post(PATH, json=READING)
    assert client.get("/health").json() == {"status": "ok", "version": __version__}
    ready = client.get("/ready").json()
    assert ready["ready"] is True
    assert ready["edition"].startswith("PostgreSQL 18")
    metrics = client.get("/metrics").text
    assert "sensorflow_readings_committed_total 1.0" in metrics
    assert 'sensorflow_http_request_duration_seconds_count{method="POST",route="/api/temperature_reading"' in metrics


def test_with_the_database_away_at_start_the_server_comes_up_refuses_and_recovers(
    embedded_database_url: str, tmp_path: Path
) -> None:
    with faulty_proxy(embedded_database_url) as proxy:
        proxy.refuse()
        with (
            starting(tmp_path, DATABASE_URL=proxy.url) as server,
            httpx.Client(base_url=server.url, headers={"X-API-Key": API_KEY}, timeout=15) as client,
        ):
            assert client.get("/health").status_code == 200
            ready = client.get("/ready")
            assert (ready.status_code, ready.json()["ready"]) == (503, False)
            answer = client.post(PATH, json=READING)
            assert answer.status_code == 503
            assert int(answer.headers["Retry-After"]) >= 1
            proxy.fault = Fault.NONE
            server.wait_until_ready()
            assert client.post(PATH, json=READING).status_code == 201
            assert client.get("/ready").status_code == 200
    assert count(embedded_database_url) == 1


def test_a_database_that_goes_away_means_503_until_it_is_back(embedded_database_url: str, tmp_path: Path) -> None:
    with (
        faulty_proxy(embedded_database_url) as proxy,
        running(tmp_path, DATABASE_URL=proxy.url, COMMIT_TIMEOUT_S="1") as server,
        httpx.Client(base_url=server.url, headers={"X-API-Key": API_KEY}, timeout=15) as client,
    ):
        assert client.post(PATH, json=READING).status_code == 201
        proxy.refuse()
        for _ in range(3):
            answer = client.post(PATH, json=READING)
            assert answer.status_code == 503
            assert int(answer.headers["Retry-After"]) >= 1
        assert client.get("/ready").status_code == 503
        proxy.fault = Fault.NONE
        eventually(lambda: client.get("/ready").status_code == 200)
        assert client.post(PATH, json=READING).status_code == 201
    assert count(embedded_database_url) == 2


def test_a_lost_answer_to_commit_is_201_and_stored_once(embedded_database_url: str, tmp_path: Path) -> None:
    with (
        faulty_proxy(embedded_database_url) as proxy,
        running(tmp_path, DATABASE_URL=proxy.url) as server,
        httpx.Client(base_url=server.url, headers={"X-API-Key": API_KEY}, timeout=15) as client,
    ):
        for fault in (Fault.LOSE_COMMIT_ANSWER, Fault.LOSE_COMMIT):
            proxy.fault, proxy.faults_left = fault, 1
            assert client.post(PATH, json=READING).status_code == 201
    assert count(embedded_database_url) == 2


def test_an_outcome_that_stays_unknown_is_504(embedded_database_url: str, tmp_path: Path) -> None:
    with (
        faulty_proxy(embedded_database_url) as proxy,
        running(tmp_path, DATABASE_URL=proxy.url, COMMIT_TIMEOUT_S="0.5", DRAIN_TIMEOUT_S="1") as server,
        httpx.Client(base_url=server.url, headers={"X-API-Key": API_KEY}, timeout=15) as client,
    ):
        proxy.fault, proxy.faults_left = Fault.STALL_AT_COMMIT, 1
        assert client.post(PATH, json=READING).status_code == 504


def test_a_full_buffer_means_503(embedded_database_url: str, tmp_path: Path) -> None:
    with (
        faulty_proxy(embedded_database_url) as proxy,
        running(
            tmp_path, DATABASE_URL=proxy.url, BUFFER_MAX_ROWS="1", COMMIT_TIMEOUT_S="2", DRAIN_TIMEOUT_S="3"
        ) as server,
        httpx.Client(base_url=server.url, headers={"X-API-Key": API_KEY}, timeout=15) as client,
    ):
        proxy.fault, proxy.faults_left = Fault.STALL_AT_COMMIT, 1
        with subprocess.Popen(
            ["curl", "-s", server.url + PATH, "-H", f"X-API-Key: {API_KEY}", "-d", json.dumps(READING)],
            stdout=subprocess.DEVNULL,
        ) as first:
            eventually(lambda: "sensorflow_buffer_rows 1.0" in client.get("/metrics").text)
            answer = client.post(PATH, json=READING)
            assert answer.status_code == 503
            assert "full" in answer.json()["detail"]
            assert int(answer.headers["Retry-After"]) >= 1
            first.wait(10)


def test_the_first_start_prints_a_curl_line_that_works_as_pasted(folder: Path) -> None:
    with running(folder, LOG_FORMAT="text") as server:
        eventually(lambda: "greenhouse" in server.log)
        line = re.search(r"curl -i .*?\}'", server.log, re.DOTALL)
        assert line
        pasted = subprocess.run(["bash", "-c", line[0]], capture_output=True, text=True, check=True)
        assert pasted.stdout.startswith("HTTP/1.1 201 Created")
        assert "PostgreSQL 18" in server.log
        keys = [folder / "data" / name for name in ("api_key", "api_key_ws")]
        assert [key.stat().st_mode & 0o777 for key in keys] == [0o600, 0o600]
        assert not any(key.read_text().strip() in server.log for key in keys)
        assert server.stop() == 0
    with running(folder) as server, httpx.Client(base_url=server.url) as client:
        answer = client.post(PATH, json=READING, headers={"X-API-Key": keys[0].read_text().strip()})
        assert answer.status_code == 201
        assert answer.json()["id"] > 1


@pytest.mark.parametrize(
    ("keys", "complaint"),
    [
        ({"API_KEY": ""}, "API_KEY is missing"),
        ({"API_KEY_WS": "short"}, "API_KEY_WS has fewer than 16 characters"),
        ({"API_KEY": "change-me-to-a-long-random-key"}, "API_KEY still has its placeholder value"),
    ],
)
def test_without_strong_keys_a_server_on_a_given_database_does_not_start(
    embedded_database_url: str, tmp_path: Path, keys: dict[str, str], complaint: str
) -> None:
    with starting(tmp_path, DATABASE_URL=embedded_database_url, **keys) as server:
        assert server.wait() == 1
        assert complaint in server.log


def test_refused_senders_are_in_the_log(embedded_database_url: str, tmp_path: Path) -> None:
    """Each status and reason leaves one line with the sender's address, and no more however often it comes."""
    with (
        running(tmp_path, DATABASE_URL=embedded_database_url, FORWARDED_ALLOW_IPS="127.0.0.1") as server,
        httpx.Client(base_url=server.url, headers={"X-API-Key": API_KEY}, timeout=15) as client,
    ):
        for number in range(50):
            client.post(PATH, json={**READING, "time": 1_500_000_000 + number})
            client.post("/api/readings", json=[{"sensor_id": "a", "temperature": "warm"}] * (number + 1))
            client.post(PATH, json=READING, headers={"X-API-Key": f"a-secret-{number}"})
            client.post(PATH, json=READING, headers={"X-API-Key": API_KEY_WS})
            client.get(f"/api/sensors/{number}?secret=a-secret", headers={"X-Forwarded-For": "203.0.113.9"})
            client.patch("/api/sensors/x", json={"latitude": "north"})
        assert server.stop() == 0
    lines = [line for line in server.messages if line.startswith("refused ")]
    wanted = [
        ("POST /api/temperature_reading from 127.0.0.1: 422, body.time: ", "days ago"),
        ("POST /api/readings from 127.0.0.1: 422, row 1: ", "should be a number"),
        ("POST /api/temperature_reading from 127.0.0.1: 401, ", "API key"),
        ("POST /api/temperature_reading from 127.0.0.1: 403, ", "may not write readings"),
        ("GET /api/sensors/0 from 203.0.113.9: 404, ", "'0'"),
        ("PATCH /api/sensors/x from 127.0.0.1: 422, body.latitude: ", "number"),
    ]
    for line, (begins, has) in zip(lines, wanted, strict=False):
        assert line.startswith(f"refused {begins}")
        assert has in line
    assert len(lines) == 2 * len(wanted)
    assert all(line.endswith("(49 such lines in the last minute)") for line in lines[len(wanted) :])
    assert "a-secret" not in server.log
