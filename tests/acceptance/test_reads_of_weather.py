"""A year of real weather, imported and read back over HTTP: every number is what pandas computes from the file."""

from collections.abc import Iterator
from shutil import copy

import httpx
import pandas as pd
import pyarrow as pa
import pytest

from tests.grafana.data import METRICS, REAL, weather
from tests.support.bulk import scalar
from tests.support.databases import new_database
from tests.support.server import API_KEY, eventually, run_command, running
from tests.support.weather import COMMAND, weather_file

YEAR = {"from": "2013-01-01", "to": "2014-01-02"}
WIDTHS = {"1m": "1min", "1h": "1h", "1d": "1D"}
KEYS = ["sensor_id", "time"]


@pytest.fixture(scope="module")
def client(edition_and_admin_url: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """Open a client of a server on each edition, once the aggregates of the weather are refreshed."""
    folder = tmp_path_factory.mktemp("weather")
    copy(weather_file(), folder)
    with new_database(edition_and_admin_url[1]) as url:
        run_command(folder, *COMMAND.replace("recent.csv ", "").split(), DATABASE_URL=url)
        with (
            running(folder, DATABASE_URL=url) as server,
            httpx.Client(base_url=server.url, headers={"X-API-Key": API_KEY}, timeout=60) as client,
        ):
            eventually(lambda: scalar(url, "SELECT NOT EXISTS (SELECT FROM stale_ranges)"), timeout_s=60)
            yield client


def answer(client: httpx.Client, **query: str) -> pd.DataFrame:
    """Return the rows of a year, ordered by sensor and time."""
    response = client.get("/api/readings", params={**YEAR, "format": "arrow", **query})
    assert response.status_code == 200, response.text
    rows = pa.ipc.open_stream(response.content).read_all().to_pandas()
    return rows.sort_values(KEYS, kind="stable", ignore_index=True)


def assert_same(found: pd.DataFrame, expected: pd.DataFrame) -> None:
    """Assert that numbers agree to nine digits, and all else exactly."""
    expected = expected[list(found.columns)].astype(
        {"time": found["time"].dtype, "sensor_id": found["sensor_id"].dtype}
    )
    pd.testing.assert_frame_equal(found, expected, check_dtype=False, rtol=1e-9)


def readings() -> pd.DataFrame:
    """Return the file's readings in the same order."""
    return weather().rename(columns={"sensor": "sensor_id"}).sort_values(KEYS, kind="stable", ignore_index=True)


def test_every_reading_is_the_files(client: httpx.Client) -> None:
    assert_same(answer(client, bucket="raw"), readings())


@pytest.mark.parametrize("bucket", WIDTHS)
def test_every_aggregate_is_what_pandas_computes_from_the_file(client: httpx.Client, bucket: str) -> None:
    rows = readings()
    by = rows.assign(time=rows["time"].dt.floor(WIDTHS[bucket])).groupby(KEYS)
    expected = pd.DataFrame({"count": by.size()})
    for metric in METRICS:
        for name, how in {"mean": "mean", "min": "min", "max": "max", "first": "first", "last": "last"}.items():
            expected[f"{metric}_{name}"] = by[metric].agg(how)
        expected[f"{metric}_count"] = by[metric].count()
    assert_same(answer(client, bucket=bucket), expected.reset_index())


def test_the_latest_readings_are_the_files_last(client: httpx.Client) -> None:
    last = readings().groupby("sensor_id").tail(1).set_index("sensor_id")
    found = {each["sensor_id"]: each for each in client.get("/api/latest").json()["readings"]}
    assert sorted(found) == REAL
    registered = client.get("/api/sensors").json()["sensors"]
    assert [each["sensor_id"] for each in registered] == REAL
    for sensor in registered:
        expected = last.loc[sensor["sensor_id"]]
        assert pd.Timestamp(sensor["last_seen_at"]) == expected["time"]
        assert sensor["online"] is False
        latest = found[sensor["sensor_id"]]
        for metric in METRICS:
            if pd.isna(expected[metric]):
                assert latest[metric] is None
            else:
                assert latest[metric] == pytest.approx(expected[metric], rel=1e-9)
