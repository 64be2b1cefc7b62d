"""The commands that move to another database, and that refresh after readings were copied by hand."""

import time
from pathlib import Path

import httpx
import psycopg

from tests.support.aggregating import COUNTS
from tests.support.bulk import scalar, site
from tests.support.server import API_KEY, eventually, run_command, running

DAY = 86_400
EVERYTHING = """
SELECT name, time, r.id, key_name, temperature, humidity, pressure
FROM readings r JOIN sensors s ON s.id = sensor_id JOIN sources o ON o.id = source_id ORDER BY r.id
"""
COLUMNS = {"sensor_id": "greenhouse-1", "humidity": 1e-300, "pressure": 0.1 + 0.2}


def rows(url: str, query: str) -> list[tuple[object, ...]]:
    with psycopg.connect(url) as connection:
        return connection.execute(query).fetchall()


def fill(folder: Path) -> list[tuple[object, ...]]:
    """Fill an embedded database with readings, a sensor's limits and an idempotency record. Return the readings."""
    with running(folder, API_KEY=API_KEY) as server:
        headers = {"X-API-Key": API_KEY, "Idempotency-Key": "first"}
        now_s = time.time()
        with httpx.Client(base_url=server.url, headers=headers, timeout=30) as client:
            sent = [{**COLUMNS, "time": now_s - 3_600 * age, "temperature": age / 7} for age in range(24 * 90)]
            assert client.post("/api/readings?backfill=true", json=sent).status_code == 201
            limits = {"label": "Tomatoes", "limits": {"temperature": {"upper": 21}}}
            assert client.patch("/api/sensors/greenhouse-1", json=limits).status_code == 200
        url = f"postgresql://sensorflow@/postgres?host={folder / 'data' / 'socket'}"
        return rows(url, EVERYTHING)


def test_move_to_another_database(folder: Path, empty_database: str, edition: str) -> None:
    """A moved database has everything, ids included, and a server continues with it."""
    before = fill(folder)
    assert len(before) == 24 * 90
    status, output = run_command(folder, "move", DATABASE_URL=empty_database)
    assert status == 0, output
    assert rows(empty_database, EVERYTHING) == before
    with site(folder, empty_database) as to:
        eventually(lambda: bool(scalar(empty_database, COUNTS)), timeout_s=60)
        assert to.send({"sensor_id": "greenhouse-2", "temperature": 1}).json() == {"stored": 1}
        assert to.send({"sensor_id": "greenhouse-1", "temperature": 95}).json() == {"stored": 1}
        sensor = to.client.get("/api/sensors/greenhouse-1").json()
    assert sensor["label"] == "Tomatoes"
    assert sensor["limits"] == {"temperature": {"lower": None, "upper": 21}}
    assert rows(empty_database, "SELECT value FROM limit_violations") == [(95,)]
    assert rows(empty_database, "SELECT count(DISTINCT id)::int FROM readings") == [(24 * 90 + 2,)]
    assert rows(empty_database, "SELECT id FROM sensors ORDER BY id") == [(1,), (2,)]
    if edition == "community":
        assert rows(empty_database, "SELECT count(*)::int > 85 FROM show_chunks('readings')") == [(True,)]


def test_move_into_a_database_in_use(folder: Path, embedded_database_url: str) -> None:
    """A database in use, as target or source, is left as it is, and the message says what to do."""
    with running(folder, API_KEY=API_KEY):
        status, output = run_command(folder, "move", DATABASE_URL=embedded_database_url)
        assert status == 1
        assert "Another SensorFlow server uses" in output
    with site(folder, embedded_database_url) as to:
        assert to.send({"sensor_id": "a", "temperature": 1}).json() == {"stored": 1}
    status, output = run_command(folder, "move", DATABASE_URL=embedded_database_url)
    assert status == 1
    assert "has readings or sensors already" in output
    assert scalar(embedded_database_url, "SELECT count(*) FROM readings") == 1
    assert run_command(folder, "move")[0] == 1


def test_refresh_command(folder: Path, empty_database: str, edition: str) -> None:
    """The command reports its work, updates the latest readings except from ahead, and rejects what is no time."""
    status, output = run_command(folder, "refresh", "--from", "yesterday", DATABASE_URL=empty_database)
    assert status == 2
    assert "'yesterday' should be ISO 8601" in output
    assert run_command(folder, "migrate", DATABASE_URL=empty_database)[0] == 0
    with psycopg.connect(empty_database) as connection:
        connection.execute("INSERT INTO sensors (name) VALUES ('a')")
        connection.execute(
            "INSERT INTO readings (time, sensor_id, id, source_id, temperature)"
            " SELECT now() - number * interval '1 day', 1, number, 1, 20 FROM generate_series(1, 50) AS number"
            " UNION ALL SELECT now() + interval '1 year', 1, 99, 1, 20"
        )
    arguments = "--from", "2020-01-01", "--to", "2200-01-01"
    status, output = run_command(folder, "refresh", *arguments, DATABASE_URL=empty_database)
    assert status == 0, output
    assert (": refreshed" in output) == (edition == "community")  # elsewhere nothing is in a table yet
    assert rows(empty_database, "SELECT count(*) FROM latest_readings WHERE id = 1") == [(1,)]
    assert rows(empty_database, COUNTS) == [(True,)]
