"""Every query of every dashboard, as Grafana sends it and as the role it reads with, at the ranges that cost the most.

A query that looks at the interval runs at the longest range of each zoom, just before a coarser aggregate takes over,
and over a year; those of *Sensor detail* also over ranges that end in the middle of the history, in the columnstore.
First over a new connection, as for the first who looks, and then some more times.
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
"""What is read, and up to which interval; above, it is 1d."""
BOUNDS_MS = {rounded: bound for bound, rounded in ROUNDED_MS}
"""By the interval that Grafana rounds to, from where on it no longer does."""
UNITS = (("d", 86_400), ("h", 3_600), ("min", 60))


def ask_all(url: str, *, days: int) -> list[Asked]:
    """All of them, on a database that holds a history of so many days."""
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
    """The ranges in which a query is asked: what they are called, what is read there, and the request."""
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
    """How many rows came; how long that took the first time, and the median of the others, milliseconds."""
    durations_ms = []
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"SET SESSION AUTHORIZATION {READER}")
        connection.execute("SET jit = off")  # as that role's own setting is
        for _ in range(1 + AGAIN):
            began = time.perf_counter()
            rows = connection.execute(sql, prepare=False).rowcount
            durations_ms.append(1_000 * (time.perf_counter() - began))
    return rows, durations_ms[0], statistics.median(durations_ms[1:])


def written(length: timedelta) -> str:
    """A length as somebody would say it; a second is no matter."""
    seconds = length.total_seconds() + 1
    unit, width = next((unit, width) for unit, width in UNITS if seconds >= 3 * width)
    return f"{seconds / width:.3g} {unit}"
