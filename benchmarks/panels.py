"""Runs every query of every dashboard, as Grafana sends it and as Grafana's role, at the ranges that cost the most.

A query that uses the interval runs at the longest range of each zoom, just before a coarser aggregate takes over,
and over a year. Those of *Sensor detail* also run over ranges that end in the middle of the history, in the
columnstore. Each query runs first over a new connection, as for the first viewer, and then some more times.
"""

import statistics
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta

import psycopg

from app.store.database import READER
from benchmarks.readings import sensor_name
from benchmarks.report import Asked
from grafana.zoom import HOURS_MS, MINUTES_MS, RAW_MS
from tests.grafana.dashboards import DASHBOARDS, Query, alert_queries, panel_queries, variable_queries
from tests.grafana.expansion import ROUNDED_MS, Request, Value, expand, interval_ms

AGAIN = 5
YEAR = timedelta(days=365)
DETAIL, COMPARE = "sensorflow-sensor", "sensorflow-compare"
ZOOMS = {"readings": RAW_MS, "1m": MINUTES_MS, "1h": HOURS_MS}
"""What a query reads, by the interval below which it does; from the last one on, it reads 1d."""
BOUNDS_MS = {rounded: bound for bound, rounded in ROUNDED_MS}
"""Intervals that Grafana rounds to, with the length from which it takes the next."""
UNITS = (("d", 86_400), ("h", 3_600), ("min", 60))


def ask_all(url: str, *, days: int) -> list[Asked]:
    """Run every query on a database that holds a history of ``days``."""
    with psycopg.connect(url, autocommit=True) as connection:
        ids: dict[str, str] = dict(connection.execute("SELECT name, id::text FROM sensors ORDER BY id").fetchall())
    now = datetime.now(UTC)
    asked = []
    for dashboard in DASHBOARDS.values():
        variables: dict[str, Value] = {
            "sensor": list(ids.values()) if dashboard["uid"] == COMPARE else ids[sensor_name(0)],
            "metric": "temperature",
            "search": "",
            "location": [""],
            "state": [""],
        }
        for query in (*variable_queries(dashboard), *panel_queries(dashboard)):
            for range_, reads, request in requests(query, variables, now, days=days):
                answer = ask(url, expand(query.sql, request))
                asked.append(Asked(dashboard["title"], query.place, range_, reads, *answer))
    for query in alert_queries():
        request = Request(now - timedelta(minutes=10), now, 1_000, variables=None)
        asked.append(Asked("Alerts", query.place, "", "", *ask(url, expand(query.sql, request))))
    return asked


def requests(
    query: Query, variables: Mapping[str, Value], now: datetime, *, days: int
) -> Iterator[tuple[str, str, Request]]:
    """Yield the ranges for a query: the range's name, what the query reads there, and the request."""
    points = query.of_panel.get("maxDataPoints")
    if points is None or "$__interval" not in query.sql:
        yield "", "", Request(now - YEAR, now, interval_ms(YEAR, 1_000), variables)
        return
    for reads, longest_ms in ZOOMS.items():
        if f"$__interval_ms <= {longest_ms}" not in query.sql:
            continue
        length = timedelta(milliseconds=points * BOUNDS_MS[longest_ms]) - timedelta(seconds=1)
        ends = {"": now}
        if query.dashboard == DETAIL:
            ends[", long ago"] = now - timedelta(days=days / 2)
        for when, end in ends.items():
            request = Request(end - length, end, interval_ms(length, points, "1s"), variables)
            yield written(length) + when, reads, request
    yield written(YEAR), "1d", Request(now - YEAR, now, interval_ms(YEAR, points, "1s"), variables)


def ask(url: str, sql: str) -> tuple[int, float, float]:
    """Return the number of rows, the time of the first run, and the median of the others, milliseconds."""
    durations_ms = []
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"SET SESSION AUTHORIZATION {READER}")
        connection.execute("SET jit = off")  # the role's own setting
        for _ in range(1 + AGAIN):
            began = time.perf_counter()
            rows = connection.execute(sql, prepare=False).rowcount
            durations_ms.append(1_000 * (time.perf_counter() - began))
    return rows, durations_ms[0], statistics.median(durations_ms[1:])


def written(length: timedelta) -> str:
    """Write a length for people, where a second more or less does not matter."""
    seconds = length.total_seconds() + 1
    unit, width = next((unit, width) for unit, width in UNITS if seconds >= 3 * width)
    return f"{seconds / width:.3g} {unit}"
