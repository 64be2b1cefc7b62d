"""Sensors with every name and every value that can be set, as a client uses them."""

from collections.abc import Iterator
from urllib.parse import quote

import httpx
import psycopg
import pytest

from app.registry import MAX_INTERVAL_S
from tests.support.databases import new_database
from tests.support.server import API_KEY, running

NAMES = [
    *("twin", "twin\n", "twin\n\n", "twin\r", "twin\r\n", "\ntwin", "tw\nin", "twin ", " twin", "twin\t", "twin\x85"),
    *(
        "twin/",
        "/twin",
        "twin//",
        "twin/latest",
        "twin/latest\n",
        "twin\n/latest",
        "twin\ufffd",
        "twin\u2028",
        "twin%0A",
    ),
    *('"twin"', 'tw"in', 'twin"', "twin,", ",twin", "TWIN", "twin?", "twin#", "twin+", "twin;", "..", "."),
]
LATEST = """
INSERT INTO latest_readings SELECT sensor_id, time, id, temperature, humidity, pressure FROM readings
ON CONFLICT DO NOTHING
"""


@pytest.fixture(scope="module")
def twins(embedded_admin_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """Open a client of a server with sensors of similar names, each with a reading of its own."""
    with (
        new_database(embedded_admin_url) as url,
        running(tmp_path_factory.mktemp("sensors"), DATABASE_URL=url) as server,
        httpx.Client(base_url=server.url, headers={"X-API-Key": API_KEY}, timeout=30) as client,
    ):
        readings = [{"sensor_id": name, "temperature": number} for number, name in enumerate(NAMES)]
        assert client.post("/api/readings", json=readings).status_code == 201
        with psycopg.connect(url) as connection:
            connection.execute(LATEST)
        yield client


def path_of(name: str) -> str:
    """Return the path of a sensor. Dots are escaped, too, because a client would take them for folders."""
    return f"/api/sensors/{quote(name, safe='').replace('.', '%2E')}"


def quoted(name: str) -> str:
    """Quote a name for a list of names."""
    return '"' + name.replace('"', '""') + '"'


@pytest.mark.parametrize("name", NAMES)
def test_patch_changes_named_sensor_only(twins: httpx.Client, name: str) -> None:
    """A change reaches the sensor whose name is in the path, character by character, and no other."""

    def sensors() -> dict[str, dict[str, object]]:
        return {sensor["sensor_id"]: sensor for sensor in twins.get("/api/sensors").json()["sensors"]}

    before = sensors()
    answer = twins.patch(path_of(name), json={"label": f"label of {name!r}"})
    assert answer.status_code == 200, answer.text
    assert answer.json()["sensor_id"] == name
    assert sensors() == before | {name: before[name] | {"label": f"label of {name!r}"}}


@pytest.mark.parametrize("name", NAMES)
def test_reads_named_sensor_only(twins: httpx.Client, name: str) -> None:
    """A sensor, its latest reading and its history are those of the name that is asked for."""
    number = NAMES.index(name)
    assert twins.get(path_of(name)).json()["sensor_id"] == name
    latest = twins.get(f"{path_of(name)}/latest").json()
    assert (latest["sensor_id"], latest["temperature"]) == (name, number)
    for asked in {quoted(name), *([] if "," in name or name.startswith('"') else [name])}:
        rows = twins.get("/api/readings", params={"sensor_id": asked, "bucket": "raw"}).json()["readings"]
        assert [(row["sensor_id"], row["temperature"]) for row in rows] == [(name, number)]


def test_list_of_names(twins: httpx.Client) -> None:
    """One value of sensor_id names any number of sensors."""
    asked = ",".join(map(quoted, NAMES))
    rows = twins.get("/api/readings", params={"sensor_id": asked, "bucket": "raw"}).json()["readings"]
    assert {row["sensor_id"] for row in rows} == set(NAMES)


@pytest.mark.parametrize("asked", ['"twin', '"twin"x', '"twin" ,TWIN', '"twin"\n', 'TWIN,"'])
def test_stray_quotation_mark(twins: httpx.Client, asked: str) -> None:
    """A quotation mark that is not closed at the end of a name is an error that says where."""
    answer = twins.get("/api/readings", params={"sensor_id": asked})
    assert answer.status_code == 422
    assert "the quotation mark at character" in answer.json()["detail"]


@pytest.mark.parametrize("path", ["twin%FF", "twin%FF/latest", "twin%C3", "%ED%A0%80"])
def test_path_that_is_not_utf8(twins: httpx.Client, path: str) -> None:
    """A name that is not UTF-8 is an error, and not the name with replacement characters."""
    assert twins.get(f"/api/sensors/{path}").status_code == 422
    assert twins.patch(f"/api/sensors/{path.removesuffix('/latest')}", json={"label": "x"}).status_code == 422


@pytest.mark.parametrize(
    "path", ["/api/readings?sensor_id=twin%FF", "/api/sensors?cursor=twin%FF", "/api/latest?cursor=%C3"]
)
def test_query_that_is_not_utf8(twins: httpx.Client, path: str) -> None:
    """A name in a query that is not UTF-8 is an error too."""
    answer = twins.get(path)
    assert (answer.status_code, answer.json()) == (422, {"detail": "The query should be percent-encoded UTF-8."})


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/api/temperature_reading"),
        ("POST", "/api/readings"),
        ("GET", "/api/readings"),
        ("GET", "/api/sensors"),
        ("GET", "/api/latest"),
        ("GET", "/health"),
        ("GET", "/ready"),
        ("GET", "/metrics"),
        ("GET", "/openapi.json"),
        ("GET", "/docs"),
    ],
)
def test_line_feed_after_route(twins: httpx.Client, method: str, path: str) -> None:
    """A path with a line feed at its end is not the path without it."""
    assert twins.request(method, f"{path}%0A", json={"sensor_id": "twin", "temperature": 1}).status_code == 404


def test_patch_creates_sensor(twins: httpx.Client) -> None:
    """A sensor can be described before its first reading, which then is its own."""
    limits = {"temperature": {"lower": 5.0, "upper": 35.0}}
    created = twins.patch(path_of("unmounted/1"), json={"label": "North", "limits": limits})
    assert (created.status_code, created.json()["limits"]) == (201, limits)
    assert (created.json()["latest"], created.json()["online"]) == (None, None)
    assert twins.patch(path_of("unmounted/1"), json={"location": "Hall 2"}).status_code == 200
    assert twins.post("/api/readings", json=[{"sensor_id": "unmounted/1", "temperature": 7}]).status_code == 201
    rows = twins.get("/api/readings", params={"sensor_id": "unmounted/1", "bucket": "raw"}).json()["readings"]
    assert [row["temperature"] for row in rows] == [7]
    sensor = twins.get(path_of("unmounted/1")).json()
    assert (sensor["label"], sensor["location"], sensor["limits"]) == ("North", "Hall 2", limits)


@pytest.mark.parametrize("name", [" ", "\n", "x" * 256])
def test_patch_of_name_no_reading_may_have(twins: httpx.Client, name: str) -> None:
    """No sensor is created under a name that a reading may not have."""
    answer = twins.patch(path_of(name), json={"label": "x"})
    assert answer.status_code == 422
    assert "The sensor's name can't be used: " in answer.json()["detail"]
    assert twins.get(path_of(name)).status_code == 404


def test_patch_that_can_not_be_creates_nothing(twins: httpx.Client) -> None:
    """A sensor is created with all fields of the PATCH, or not at all."""
    change = {"limits": {"radon": {"upper": 1}}}
    assert twins.patch(path_of("never"), json=change).status_code == 422
    assert twins.get(path_of("never")).status_code == 404


NUMBERS = [
    *("0", "-0.0", "5e-324", "1e-9", "1", "90", "180", "-180.0000001", "1e12", "1e300", "-1e308", "1e400", "NaN", "-1"),
    *("1.7976931348623157e308", "Infinity", "-Infinity", "true", "false", "null", '"60"', "[]", "9" * 400),
    *(str(MAX_INTERVAL_S), str(MAX_INTERVAL_S + 1), "315576000.00000006"),
]


@pytest.mark.parametrize(
    "change",
    [
        *(
            '{"latitude": %s}',
            '{"longitude": %s}',
            '{"expected_interval_s": %s}',
            '{"limits": {"humidity": {"upper": %s}}}',
        ),
    ],
)
@pytest.mark.parametrize("number", NUMBERS)
def test_patched_number_is_readable(twins: httpx.Client, change: str, number: str) -> None:
    """Lists stay readable with every number that a PATCH accepts. Others get 422."""
    content = change % number
    answer = twins.patch(path_of("TWIN"), content=content)
    assert answer.status_code in {200, 422}, answer.text
    assert answer.status_code == 422 or answer.json() == twins.get(path_of("TWIN")).json()
    for path in ("/api/sensors", "/api/sensors?online=true", "/api/latest", f"{path_of('TWIN')}/latest"):
        assert twins.get(path).status_code == 200
