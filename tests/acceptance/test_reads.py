"""Reading back over HTTP, as a client uses it."""

import csv
import io
import json
import socket
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import psycopg
import pyarrow as pa
import pytest

from app.history.formats import ARROW_END_OF_STREAM
from app.store.database import migrate
from app.web.query import MAX_LIMIT, MAX_READS
from app.web.sensors import MAX_CHANGE_BYTES
from tests.support.databases import new_database
from tests.support.proxy import Fault, FaultyProxy, faulty_proxy
from tests.support.server import API_KEY, API_KEY_WS, Server, eventually, running

PATH = "/api/readings"
BIG_ROWS = 300_000
HOUR = {"from": "2026-03-01T00:00:00Z", "to": "2026-03-01T01:00:00Z"}
BIG = {"sensor_id": "big", "bucket": "raw", "from": "2026-03-01", "to": "2026-04-01", "format": "ndjson"}
FILL = f"""
INSERT INTO sensors (name) VALUES ('tied'), ('hall/1, «é» "x"'), ('hall'), ('hall/latest'), ('big'), ('silent');
INSERT INTO readings
SELECT '2026-03-01Z'::timestamptz + i / 50 * interval '1 s', s, i, 1, nullif(i % 7, 0) / 3.0, -i, 1000
FROM generate_series(0, 999) i, generate_series(1, 4) s;
INSERT INTO readings
SELECT '2026-03-01Z'::timestamptz + i * interval '1 s', 5, i, 1, random(), random(), random()
FROM generate_series(1, {BIG_ROWS}) i;
INSERT INTO latest_readings
SELECT DISTINCT ON (sensor_id) sensor_id, time, id, temperature, humidity, pressure FROM readings
ORDER BY sensor_id, time DESC, id DESC;
"""


class Site:
    """A server on a database whose connections can be broken, and a client of it."""

    def __init__(self, server: Server, proxy: FaultyProxy, client: httpx.Client, url: str) -> None:
        self.server = server
        self.proxy = proxy
        self.client = client
        self.database_url = url

    def get(self, path: str = PATH, /, **query: object) -> httpx.Response:
        """Return an answer of any status. ``from_`` is ``from``."""
        return self.client.get(path, params={name.rstrip("_"): str(value) for name, value in query.items()})

    def rss_mib(self) -> float:
        """Return the memory of the server's process, MiB."""
        status = Path(f"/proc/{self.server.process.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) / 1024


@pytest.fixture(scope="module")
def site(embedded_admin_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Start a server with readings in it."""
    with new_database(embedded_admin_url) as url, faulty_proxy(url) as proxy:
        migrate(url)
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(FILL)
        with (
            running(tmp_path_factory.mktemp("reads"), DATABASE_URL=proxy.url) as server,
            httpx.Client(base_url=server.url, headers={"X-API-Key": API_KEY}, timeout=30) as client,
        ):
            yield Site(server, proxy, client, url)


def rows(answer: httpx.Response, format_: str) -> list[dict[str, Any]]:
    """Return the rows of an answer, read by others' parsers, with times as datetimes and CSV's fields as numbers."""
    if format_ == "arrow":
        found: list[dict[str, Any]] = pa.ipc.open_stream(answer.content).read_all().to_pylist()
        return found
    if format_ == "csv":
        table = csv.DictReader(io.StringIO(answer.text, newline=""))
        return [{name: _value(name, text) for name, text in row.items()} for row in table]
    said = answer.json()["readings"] if format_ == "json" else map(json.loads, answer.text.splitlines())
    return [row | {"time": datetime.fromisoformat(row["time"])} for row in said]


def _value(name: str, text: str) -> object:
    if name == "time":
        return datetime.fromisoformat(text)
    return text if name == "sensor_id" else float(text) if text else None


def paged(site: Site, limit: int, **query: object) -> list[dict[str, Any]]:
    """Return the rows of all pages of a query."""
    found: list[dict[str, Any]] = []
    cursor: dict[str, object] = {}
    while True:
        answer = site.get(limit=limit, **query, **cursor)
        assert answer.status_code == 200, answer.text
        found += rows(answer, "json")
        cursor = {"cursor": answer.json()["next_cursor"]}
        assert answer.headers.get("X-Next-Cursor") == cursor["cursor"]
        if cursor["cursor"] is None:
            return found
        assert len(answer.json()["readings"]) == limit


@pytest.mark.parametrize("bucket", ["raw", "1m", "1h", "1d"])
def test_every_format_has_the_same_rows_streamed_or_with_a_limit(site: Site, bucket: str) -> None:
    query = {**HOUR, "sensor_id": 'tied,"hall/1, «é» ""x""",hall', "bucket": bucket}
    wanted = rows(site.get(**query), "json")
    assert {row["sensor_id"] for row in wanted} == {"tied", 'hall/1, «é» "x"', "hall"}
    assert len(wanted) == {"raw": 3_000, "1m": 3, "1h": 3, "1d": 3}[bucket]
    for format_ in ("ndjson", "csv", "arrow"):
        for limit in ({}, {"limit": MAX_LIMIT}, {"limit": 2}):
            answer = site.get(**query, **limit, format=format_)
            assert answer.headers["X-Bucket"] == bucket
            assert rows(answer, format_) == wanted[: limit.get("limit")]
            assert ("X-Next-Cursor" in answer.headers) == (limit == {"limit": 2})


@pytest.mark.parametrize("limit", [1, 7, 50, 333, 10_000])
def test_the_pages_are_the_stream_also_where_fifty_readings_have_one_time(site: Site, limit: int) -> None:
    span = {**HOUR, "bucket": "raw"} if limit > 1 else {"from": 1772323200, "to": 1772323202, "bucket": "raw"}
    query = {**span, "sensor_id": "hall,tied", "metrics": "humidity"}
    found = paged(site, limit, **query)
    assert found == rows(site.get(**query, format="ndjson"), "ndjson")
    assert [row["humidity"] for row in found if row["sensor_id"] == "tied"] == [-i for i in range(len(found) // 2)]


def test_a_cursor_keeps_what_its_query_had_taken_from_the_clock(site: Site) -> None:
    with psycopg.connect(site.database_url) as connection:
        connection.execute(
            "INSERT INTO readings SELECT now() - i * interval '1 hour', 6, i, 1, i, i, i FROM generate_series(1, 40) i"
        )
    try:
        first = site.get(sensor_id="silent", limit=2, bucket="raw")
        assert [row["temperature"] for row in first.json()["readings"]] == [23, 22]
        rest = site.get(sensor_id="silent", limit=30, bucket="raw", cursor=first.json()["next_cursor"])
        assert [row["temperature"] for row in rest.json()["readings"]] == list(range(21, 0, -1))
    finally:
        with psycopg.connect(site.database_url) as connection:
            connection.execute("DELETE FROM readings WHERE sensor_id = 6")


@pytest.mark.parametrize(
    ("span", "bucket"),
    [
        (("2026-03-01", "2026-03-01T03:00"), "raw"),
        (("2026-03-01", "2026-03-02"), "1m"),
        (("2026-01-01", "2026-03-02"), "1h"),
    ],
)
def test_auto_picks_the_bucket_by_the_span_and_says_which(site: Site, span: tuple[str, str], bucket: str) -> None:
    answer = site.get(from_=span[0], to=span[1], sensor_id="tied", limit=1)
    assert answer.json()["bucket"] == answer.headers["X-Bucket"] == bucket


def test_the_span_has_its_beginning_and_not_its_end(site: Site) -> None:
    found = rows(site.get(sensor_id="big", bucket="raw", from_="2026-03-01T00:00:10Z", to="1772323220000"), "json")
    assert [row["time"].second for row in found] == list(range(10, 20))


@pytest.mark.parametrize(
    ("query", "status", "said"),
    [
        ({"sensor_id": "tied,nobody"}, 404, "nobody"),
        ({"sensor_id": ""}, 404, "''"),
        ({"sensor_id": '"tied'}, 422, "sensor_id"),
        ({"sensor_id": "a\0"}, 422, "NUL"),
        ({"from": "yesterday"}, 422, "from: time should be ISO 8601"),
        ({"from": "2026-07-12T14:30:45 02:00"}, 422, "In a URL a + is written %2B"),
        ({"from": "2026-03-02", "to": "2026-03-02"}, 422, "from is '2026-03-02', to is '2026-03-02'"),
        ({"to": "1e30"}, 422, "to: "),
        ({"bucket": "5m"}, 422, "bucket"),
        ({"metrics": "temperature,radon"}, 422, "Unknown metric 'radon'. Known metrics: temperature"),
        ({"metrics": ""}, 422, "temperature, humidity, pressure"),
        ({"limit": "0"}, 422, "limit"),
        ({"limit": str(MAX_LIMIT + 1)}, 422, "limit"),
        ({"format": "xml"}, 422, "format"),
        ({"cursor": "xyz"}, 422, "cursor"),
        ({"sensor": "tied"}, 422, "sensor"),
    ],
)
def test_what_is_asked_wrongly_is_said(site: Site, query: Mapping[str, str], status: int, said: str) -> None:
    answer = site.client.get(PATH, params=query)
    assert answer.status_code == status
    assert said in json.dumps(answer.json()["detail"], ensure_ascii=False)


def test_a_cursor_is_for_its_own_query_only(site: Site) -> None:
    cursor = site.get(**HOUR, sensor_id="tied", limit=3).json()["next_cursor"]
    assert site.get(**HOUR, sensor_id="tied", limit=5, format="csv", cursor=cursor).status_code == 200
    for other in ({"sensor_id": "hall"}, {"sensor_id": "tied", "metrics": "pressure"}, {}):
        assert site.get(**HOUR, **other, cursor=cursor).status_code == 422


def test_no_sensors_and_no_readings_are_empty_answers(site: Site) -> None:
    silent = {**HOUR, "sensor_id": "silent", "bucket": "raw", "metrics": "humidity"}
    assert site.get(**silent).json() == {"bucket": "raw", "readings": [], "next_cursor": None}
    assert site.get(**silent, format="csv").text == "time,sensor_id,humidity\n"
    assert site.get(**silent, format="ndjson").content == b""
    table = pa.ipc.open_stream(site.get(**silent, format="arrow").content).read_all()
    assert table.schema.names == ["time", "sensor_id", "humidity"]


@pytest.mark.parametrize(("key", "status"), [(None, 401), ("wrong", 401), (API_KEY_WS, 403)])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", PATH),
        ("GET", f"{PATH}?format=xml"),
        ("GET", "/api/sensors"),
        ("GET", "/api/sensors/tied"),
        ("GET", "/api/sensors/nobody/latest"),
        ("GET", "/api/latest"),
        ("PATCH", "/api/sensors/tied"),
    ],
)
def test_key_that_may_not_read(site: Site, method: str, path: str, key: str | None, status: int) -> None:
    answer = httpx.request(method, site.server.url + path, headers={} if key is None else {"X-API-Key": key})
    assert answer.status_code == status
    assert "API key" in answer.json()["detail"]


def reader(site: Site, **query: str) -> socket.socket:
    """Open a connection that receives an answer and reads only as much as the test wants."""
    host, port = site.server.url.removeprefix("http://").split(":")
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
    connection.settimeout(30)
    connection.connect((host, int(port)))
    target = httpx.URL(PATH, params=query)
    connection.sendall(f"GET {target} HTTP/1.1\r\nHost: x\r\nX-API-Key: {API_KEY}\r\n\r\n".encode())
    return connection


def test_slow_readers_cost_a_page_of_memory_each_and_no_connection(site: Site) -> None:
    assert len(rows(site.get(**BIG), "ndjson")) == BIG_ROWS
    before_mib = site.rss_mib()
    readers = [reader(site, **BIG) for _ in range(6)]
    try:
        ends = time.monotonic() + 3
        while time.monotonic() < ends:
            for connection in readers:
                assert connection.recv(65_536)
            time.sleep(0.05)
        # Six whole answers would be 270 MiB.
        assert site.rss_mib() - before_mib < 100
        with psycopg.connect(site.database_url, autocommit=True) as database:
            busy = (
                "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'sensorflow reads' AND state <> 'idle'"
            )
            assert database.execute(busy).fetchone() == (0,)
        assert site.get(**HOUR, sensor_id="tied").status_code == 200
    finally:
        for connection in readers:
            connection.close()


def test_too_many_readers_are_told_to_come_again(site: Site) -> None:
    readers = [reader(site, **BIG) for _ in range(MAX_READS)]
    try:
        assert all(connection.recv(15) == b"HTTP/1.1 200 OK" for connection in readers)
        answer = site.get(**HOUR, sensor_id="tied")
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
    finally:
        for connection in readers:
            connection.close()
    eventually(lambda: site.get(**HOUR, sensor_id="tied").status_code == 200)


@pytest.mark.parametrize("format_", ["ndjson", "csv", "arrow"])
def test_an_answer_that_loses_its_database_does_not_look_complete(site: Site, format_: str) -> None:
    got = bytearray()

    def read_to_the_end(answer: httpx.Response) -> None:
        for part in answer.iter_raw():
            site.proxy.refuse()
            got.extend(part)

    try:
        with site.client.stream("GET", PATH, params={**BIG, "format": format_}) as answer:
            assert answer.status_code == 200
            with pytest.raises(httpx.RemoteProtocolError, match="incomplete"):
                read_to_the_end(answer)
        assert not got.endswith(ARROW_END_OF_STREAM)
        if format_ == "csv":  # of those that begin now, none does
            answer = site.get(**BIG)
            assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
    finally:
        site.proxy.fault = Fault.NONE
    eventually(lambda: site.get(**HOUR, sensor_id="tied").status_code == 200)


def sensor(site: Site, name: str) -> Any:
    answer = site.get(f"/api/sensors/{quote(name, safe='')}")
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_the_registry_tells_of_each_sensor_by_name_in_pages(site: Site) -> None:
    found: list[Any] = []
    cursor = ""
    while cursor is not None:
        page = site.get("/api/sensors", limit=2, cursor=cursor).json()
        assert len(page["sensors"]) <= 2
        found += page["sensors"]
        cursor = page["next_cursor"]
    names = [item["sensor_id"] for item in found]
    assert sorted(names) == sorted(["tied", 'hall/1, «é» "x"', "hall", "hall/latest", "big", "silent"])
    by_name = dict(zip(names, found, strict=True))
    assert by_name["hall"] == {
        **{"sensor_id": "hall", "label": None, "location": None, "latitude": None, "longitude": None},
        **{"expected_interval_s": None, "limits": {}, "last_seen_at": "2026-03-01T00:00:19Z", "online": False},
        "latest": {
            **{"sensor_id": "hall", "time": "2026-03-01T00:00:19Z"},
            **{"temperature": 5 / 3, "humidity": -999.0, "pressure": 1000.0},
        },
    }
    assert (by_name["silent"]["online"], by_name["silent"]["latest"]) == (None, None)
    assert site.get("/api/sensors", online=True).json() == {"sensors": [], "next_cursor": None}
    offline = site.get("/api/sensors", online=False).json()["sensors"]
    assert {item["sensor_id"] for item in offline} == set(names) - {"silent"}


def test_the_latest_reading_of_one_sensor_and_of_all(site: Site) -> None:
    all_of_them = site.get("/api/latest").json()["readings"]
    assert len(all_of_them) == 5
    for reading in all_of_them:
        path = f"/api/sensors/{quote(reading['sensor_id'], safe='')}"
        assert site.get(f"{path}/latest").json() == reading
        assert site.get(path).json()["latest"] == reading
    first = site.get("/api/latest", limit=3).json()
    rest = site.get("/api/latest", limit=3, cursor=first["next_cursor"]).json()
    assert first["readings"] + rest["readings"] == all_of_them
    nothing = site.get("/api/sensors/silent/latest")
    assert (nothing.status_code, nothing.json()) == (
        404,
        {"detail": "No reading from 'silent' yet. New readings appear here within a few seconds."},
    )


@pytest.mark.parametrize("name", ["nobody", "a/b", "tied/", "×", "hall/1"])
def test_a_sensor_that_nobody_knows_is_404(site: Site, name: str) -> None:
    for path in ("", "/latest"):
        answer = site.client.get(f"/api/sensors/{quote(name, safe='')}{path}")
        assert (answer.status_code, answer.json()) == (404, {"detail": f"No sensor is called {name!r}."})


def test_slashes_in_a_name_may_stand_as_they_are_but_for_the_last_of_a_name_that_ends_like_the_route(
    site: Site,
) -> None:
    assert site.get('/api/sensors/hall/1, «é» "x"').json()["sensor_id"] == 'hall/1, «é» "x"'
    assert site.get("/api/sensors/hall/latest").json()["humidity"] == -999
    assert site.get("/api/sensors/hall%2Flatest").json()["expected_interval_s"] is None
    assert site.get("/api/sensors/hall%2Flatest/latest").json()["sensor_id"] == "hall/latest"


def patch(site: Site, name: str, change: object) -> httpx.Response:
    return site.client.patch(f"/api/sensors/{quote(name, safe='')}", json=change)


def test_a_patch_changes_what_it_has_removes_what_is_null_and_leaves_the_rest(site: Site) -> None:
    name = 'hall/1, «é» "x"'
    before = sensor(site, name)
    place = {"label": "Hall", "location": "north", "latitude": 52.5, "longitude": -13.25, "expected_interval_s": 60.0}
    limits = {"temperature": {"lower": 5.5, "upper": 35}, "humidity": {"upper": 90}}
    answer = patch(site, name, {**place, "limits": limits})
    now = before | place | {"limits": {"temperature": limits["temperature"], "humidity": {"lower": None, "upper": 90}}}
    assert (answer.status_code, answer.json()) == (200, now)
    assert sensor(site, name) == now
    assert patch(site, name, {}).json() == now
    change = {"label": None, "limits": {"temperature": {"upper": 30}, "humidity": None, "pressure": {"lower": 900}}}
    now |= {
        "label": None,
        "limits": {"temperature": {"lower": 5.5, "upper": 30}, "pressure": {"lower": 900, "upper": None}},
    }
    assert patch(site, name, change).json() == now
    assert patch(site, name, {"limits": {"temperature": {"lower": None, "upper": None}}}).json()["limits"] == {
        "pressure": {"lower": 900, "upper": None}
    }
    assert patch(site, name, dict.fromkeys([*place, "limits"])).json() == before


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"latitude": 90.5}, "latitude"),
        ({"longitude": -181}, "longitude"),
        ({"longitude": "NaN"}, "longitude"),
        ({"longitude": False}, "valid number"),
        ({"latitude": "52.5"}, "valid number"),
        ({"limits": {"humidity": {"lower": True}}}, "valid number"),
        ({"expected_interval_s": 0}, "expected_interval_s"),
        ({"expected_interval_s": 1e12}, "less than or equal to 315576000"),
        ({"label": "a\0b"}, "label"),
        ({"name": "other"}, "name"),
        ({"limits": {"radon": {"upper": 1}}}, "humidity, pressure, temperature"),
        ({"limits": {"temperature": {"lower": 9}}}, "temperature"),
        ({"limits": {"humidity": {"lower": 2, "upper": 1}}}, "humidity"),
        ({"limits": {"humidity": {"low": 2}}}, "low"),
        ([], "should be an object"),
    ],
)
def test_a_patch_that_can_not_be_changes_nothing(site: Site, change: object, said: str) -> None:
    before = patch(site, "tied", {"label": "as it was", "limits": {"temperature": {"upper": 8}}}).json()
    answer = patch(site, "tied", change | {"location": "elsewhere"} if isinstance(change, dict) else change)
    assert answer.status_code == 422
    assert said in json.dumps(answer.json()["detail"])
    assert sensor(site, "tied") == before


def test_a_change_may_be_called_anything_and_is_bounded(site: Site) -> None:
    def change(content: bytes, **headers: str) -> httpx.Response:
        return site.client.patch("/api/sensors/tied", content=content, headers=headers)

    for called in ("application/x-www-form-urlencoded", "application/merge-patch+json", ""):
        assert change(b'{"label": "by %b"}' % called.encode(), **{"Content-Type": called}).status_code == 200
        assert sensor(site, "tied")["label"] == f"by {called}"
    broken = change(b'{"label": ')
    assert (broken.status_code, broken.json()["detail"][0]["loc"]) == (422, ["body"])
    for unseen in (b'{"label": "\xff"}', b'{"latitude": NaN}', b'{"limits": {"humidity": {"lower": -1e999}}}'):
        assert change(unseen).status_code == 422
    assert change(b" " * MAX_CHANGE_BYTES + b"{}").status_code == 413


def test_without_a_key_a_change_is_refused_before_its_body_is_read(site: Site) -> None:
    with socket.create_connection((site.client.base_url.host, site.client.base_url.port or 80), timeout=5) as peer:
        peer.sendall(b"PATCH /api/sensors/tied HTTP/1.1\r\nHost: x\r\nX-API-Key: no\r\nContent-Length: 9\r\n\r\n")
        assert peer.recv(100).startswith(b"HTTP/1.1 401 ")


def test_a_reading_just_committed_is_in_the_history(site: Site) -> None:
    sent = {"sensor_id": "fresh", "temperature": 1.25, "humidity": 2, "pressure": 3}
    assert site.client.post("/api/temperature_reading", json=sent).status_code == 201
    (row,) = rows(site.get(sensor_id="fresh", bucket="raw", to=time.time() + 1), "json")
    assert row | {"time": None} == sent | {"time": None}
    assert abs(row["time"] - datetime.now(UTC)).total_seconds() < 60
    (bucket,) = rows(site.get(sensor_id="fresh", bucket="1h", to=time.time() + 1), "json")
    assert (bucket["count"], bucket["temperature_mean"]) == (1, 1.25)


def test_the_openapi_document_tells_of_it_all(site: Site) -> None:
    paths = site.get("/openapi.json").json()["paths"]
    assert set(paths[PATH]) == {"get", "post"}
    read = paths[PATH]["get"]
    assert {parameter["name"] for parameter in read["parameters"]} == {
        *("sensor_id", "from", "to", "bucket", "metrics", "limit", "cursor", "format")
    }
    assert {"200", "401", "403", "404", "422", "503"} == set(read["responses"])
    assert read["security"] == [{"APIKeyHeader": []}]
    assert set(paths["/api/sensors/{name}"]) == {"get", "patch"}
