"""A new metric in a table of its own appears on every dashboard that shows metrics, and no dashboard changes."""

from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from app.store.database import migrate
from tests.grafana.dashboards import DASHBOARDS, Query, panel_queries, variable_queries
from tests.grafana.expansion import Request, Value, expand, interval_ms

VIEWS = {
    "points": "SELECT time, sensor_id, 'co2' AS metric, value FROM measurements",
    **{
        f"points_{tier}": f"""
            SELECT date_bin('{width}', time, TIMESTAMPTZ 'epoch'), sensor_id, 'co2', count(*), sum(value), min(value),
                   max(value), (array_agg(value ORDER BY time))[1], (array_agg(value ORDER BY time DESC))[1]
            FROM measurements GROUP BY 1, 2
        """
        for tier, width in {"1m": "1 minute", "1h": "1 hour", "1d": "1 day"}.items()
    },
    "latest_points": "(SELECT DISTINCT ON (sensor_id) sensor_id, 'co2', time, value FROM measurements"
    " ORDER BY sensor_id, time DESC)",
}
NOW = datetime.now(UTC)
FIRST, SECONDS, CO2, LIMIT = NOW - timedelta(minutes=50), range(0, 3_000, 10), 415.5, 400.0
LENGTHS = [timedelta(hours=1), timedelta(days=2), timedelta(days=30), timedelta(days=200)]
OF_METRICS: dict[str, Query] = {
    str(query): query
    for dashboard in DASHBOARDS.values()
    for query in panel_queries(dashboard)
    if dashboard["uid"] in {"sensorflow-sensor", "sensorflow-compare"}
    and "metric" in query.sql
    and "limit_violation_log" not in query.sql  # which has what flushes found
}


@pytest.fixture
def with_co2(embedded_database_url: str) -> str:
    """Make a database with a table of measurements, its branch in each view of points, and its row in ``metrics``."""
    migrate(embedded_database_url)
    with psycopg.connect(embedded_database_url) as connection:
        connection.execute(
            "CREATE TABLE measurements (time timestamptz, sensor_id integer REFERENCES sensors, value double precision)"
        )
        for view, branch in VIEWS.items():
            (definition,) = connection.execute("SELECT pg_get_viewdef(%s::regclass)", [view]).fetchone() or ("",)
            connection.execute(f"CREATE OR REPLACE VIEW {view} AS {definition.rstrip(';')} UNION ALL {branch}")
        connection.execute("INSERT INTO metrics VALUES ('co2', 'CO₂', 'ppm')")
        connection.execute("INSERT INTO sensors (name) VALUES ('greenhouse-1')")
        connection.execute("INSERT INTO sensor_limits SELECT id, 'co2', NULL, %s FROM sensors", [LIMIT])
        connection.execute(
            "INSERT INTO measurements SELECT %s + s * INTERVAL '1 second', id, %s FROM sensors, unnest(%s) AS s",
            [FIRST, CO2, list(SECONDS)],
        )
    return embedded_database_url


def ask(connection: psycopg.Connection, query: Query, length: timedelta, sensor: Value) -> list[dict[str, Any]]:
    """Return the rows of a query as Sensor detail or Compare sensors sends it for the new metric."""
    points = query.of_panel.get("maxDataPoints", 500)
    width_ms = interval_ms(length, points, query.of_panel.get("interval", "1s"))
    request = Request(NOW - length, NOW, width_ms, {"sensor": sensor, "metric": "co2"})
    cursor = connection.cursor(row_factory=psycopg.rows.dict_row)
    return cursor.execute(expand(query.sql, request).encode()).fetchall()


def shows(rows: list[dict[str, Any]]) -> bool:
    """Return whether the rows show the value or the limit, or that one is beyond the other."""
    values = [value for row in rows for value in row.values()]
    return bool({CO2, LIMIT, "out of limits"} & set(values)) or any(
        f"{LIMIT:g} ppm" in value for value in values if isinstance(value, str)
    )


def test_what_shows_a_metric_shows_the_new_one_at_every_zoom(with_co2: str) -> None:
    assert OF_METRICS
    with psycopg.connect(with_co2) as connection:
        connection.execute("SET ROLE sensorflow_reader")
        (sensor,) = connection.execute("SELECT id::text FROM sensors").fetchone() or ("",)
        for name, query in OF_METRICS.items():
            for length in LENGTHS:
                rows = ask(connection, query, length, sensor if query.dashboard == "sensorflow-sensor" else [sensor])
                if query.ref_id == "unit":
                    assert [(row["unit"], row.get("decimals")) for row in rows] == [("ppm", None)], name
                elif query.place == "$metric: mean of each hour" and length < timedelta(days=2):
                    assert rows == []
                else:
                    assert shows(rows), (name, length)


def test_it_can_be_chosen_and_its_limits_hold(with_co2: str) -> None:
    choices = [query for query in variable_queries(DASHBOARDS["sensor-detail.json"]) if "metrics" in query.sql]
    with psycopg.connect(with_co2) as connection:
        connection.execute("SET ROLE sensorflow_reader")
        (sensor,) = connection.execute("SELECT id::text FROM sensors").fetchone() or ("",)
        (chosen,) = (ask(connection, query, LENGTHS[0], sensor) for query in choices)
        assert chosen == [{"__text": "CO₂", "__value": "co2"}]
        violations = connection.execute("SELECT metric, value, upper FROM limit_violations").fetchall()
    assert violations == [("co2", CO2, LIMIT)]
