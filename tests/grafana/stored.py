"""A database with readings, on which the dashboards' queries run as Grafana's role."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pandas as pd
import psycopg

from app.store import tiers
from app.store.aggregate_tables import recompute
from tests.grafana.data import LOGGED, SENSORS, Sensor

READER = "sensorflow_reader"
TIERS = {"readings_1m": "1 minute", "readings_1h": "1 hour", "readings_1d": "1 day"}
LATE_RANGES = 2
LEDGER = (600, 30.0), (1_200, 61.0)
"""Rows and ages in seconds of two flushes beside those of the import."""

REGISTER = """
INSERT INTO sensors (name, label, location, latitude, longitude, expected_interval_s) VALUES (%s, %s, %s, %s, %s, %s)
ON CONFLICT (name) DO UPDATE SET label = excluded.label, location = excluded.location, latitude = excluded.latitude,
    longitude = excluded.longitude, expected_interval_s = excluded.expected_interval_s
RETURNING id
"""
LATEST = """
INSERT INTO latest_readings
SELECT DISTINCT ON (sensor_id) sensor_id, time, id, temperature, humidity, pressure
FROM readings ORDER BY sensor_id, time DESC, id DESC
"""
LOG = """
INSERT INTO limit_violation_log (sensor_id, metric, is_above, readings, value, bound, arrived_at, time, first_time,
                                 last_time)
SELECT %s, %s, %s, %s, %s, %s, now() - make_interval(secs => %s), time, time - interval '10 minutes',
       time + interval '5 minutes'
FROM (VALUES (%s::timestamptz)) AS v (time)
"""
# Batches of ten buckets, and code compiled for every chunk, would make minutes of the second that this takes.
REFRESH = """
CALL refresh_continuous_aggregate(%s::regclass, %s::timestamptz, %s::timestamptz, options => '{"buckets_per_batch": 0}')
"""
FLUSH = "INSERT INTO flushes (flush_id, rows, committed_at) VALUES (%s, %s, now() - make_interval(secs => %s))"
MAINTENANCE = """
INSERT INTO maintenance (
    work, runs, failures, busy_s, every_s, can_wait, first_started_at, last_started_at, last_run_s, last_error
) VALUES
    ('retention', 3, 3, 1.5, 3600, false, now() - INTERVAL '9 hours', now(), 0.5, 'disk full'),
    ('refresh', 9, 0, 1.5, 30, false, now() - INTERVAL '9 minutes', now(), 0.5, NULL)
ON CONFLICT (work) DO NOTHING
"""
STALE = "INSERT INTO stale_ranges (starts_at, ends_at) VALUES (now() - INTERVAL '1 day', now())"
SWEPT = "UPDATE server_settings SET value = %s WHERE name = 'aggregates_refreshed_until'"
HYPERTABLES = """
SELECT '_hyper_' || h.id, coalesce(c.user_view_name, h.table_name)::text
FROM _timescaledb_catalog.hypertable h
LEFT JOIN _timescaledb_catalog.continuous_agg c ON c.mat_hypertable_id = h.id
"""


@dataclass(frozen=True, slots=True)
class Answer:
    """The rows of a query, with numbers as floats, and the database's ``now()`` in its transaction."""

    columns: list[str]
    rows: list[tuple[Any, ...]]
    now: pd.Timestamp


class Stored:
    """The database and what is in it.

    Args:
        connection: a superuser's, in autocommit.
        readings: all that is stored, with ``sensor`` as a name.
        until: when the newest of them was sent.
    """

    def __init__(self, connection: psycopg.Connection, readings: pd.DataFrame, until: datetime) -> None:
        self._connection = connection
        self._answers: dict[str, Answer] = {}
        self.readings = readings
        self.until = pd.Timestamp(until)
        connection.execute("SET timezone TO 'UTC'")
        self.ids = {sensor.name: self._register(sensor) for sensor in SENSORS}
        connection.execute("DELETE FROM latest_readings")
        connection.execute(LATEST)
        self.logged = [
            (violation, pd.Timestamp(violation.time or until - timedelta(seconds=violation.arrived_s_ago)))
            for violation in LOGGED
        ]
        """With the time of the furthest reading of each."""
        for violation, time in self.logged:
            figures = [violation.is_above, violation.readings, violation.value, violation.bound]
            figures += [violation.arrived_s_ago, time.to_pydatetime()]
            connection.execute(LOG, [self.ids[violation.sensor], violation.metric, *figures])
        connection.execute("DELETE FROM stale_ranges")
        for _ in range(LATE_RANGES):
            connection.execute(STALE)
        connection.execute(SWEPT, [until.isoformat()])
        connection.execute(MAINTENANCE)
        self.flushes = [
            (rows, pd.Timestamp(committed_at))
            for rows, committed_at in connection.execute("SELECT rows, committed_at FROM flushes").fetchall()
        ]
        extension = connection.execute("SELECT extversion FROM pg_extension WHERE extname = 'timescaledb'").fetchone()
        self._hypertables: dict[str, str] = dict(connection.execute(HYPERTABLES).fetchall()) if extension else {}
        self.is_community = bool(set(self._hypertables.values()) & TIERS.keys())
        hour, day = self.until.floor("1h"), self.until.floor("1D")
        times = (
            (hour - timedelta(hours=2), day, day - timedelta(days=1))
            if self.is_community
            else (
                self.until.floor("1min"),
                (self.until - timedelta(hours=1)).floor("1h"),
                (self.until - timedelta(days=1)).floor("1D"),
            )
        )
        self.materialized_until = dict(zip(TIERS, times, strict=True))
        """By tier: what is above is made of the finer tier by each query."""
        self._refresh(has_chunks=extension is not None)

    def _register(self, sensor: Sensor) -> str:
        columns = [sensor.name, sensor.label, sensor.location, sensor.latitude, sensor.longitude]
        row = self._connection.execute(REGISTER, [*columns, sensor.expected_interval_s]).fetchone()
        assert row is not None
        for limits in sensor.limits:
            self._connection.execute("INSERT INTO sensor_limits VALUES (%s, %s, %s, %s)", [row[0], *limits])
        return str(row[0])

    def _refresh(self, *, has_chunks: bool) -> None:
        """Refresh the year of weather, and the other readings that are older than hours or days."""
        self._connection.execute("SET jit = off")
        for tier in tiers.TIERS:
            until = self.materialized_until[tier.name].to_pydatetime()
            year = datetime(2012, 12, 1, tzinfo=UTC), datetime(2014, 2, 1, tzinfo=UTC)
            for span in (year, (until - timedelta(days=9), until)):
                if self.is_community:
                    self._connection.execute(REFRESH, [tier.name, *span])
                else:
                    self._connection.execute(*recompute(tier, span, has_chunks=has_chunks))
        self._connection.execute("RESET jit")

    @contextmanager
    def _as_reader(self) -> Iterator[pd.Timestamp]:
        """Open a transaction as the reader that is rolled back, with a ledger of known age. Yield its ``now()``."""
        with self._connection.transaction(force_rollback=True):
            for number, flush in enumerate(LEDGER, start=1):
                self._connection.execute(FLUSH, [-number, *flush])
            self._connection.execute(f"SET LOCAL ROLE {READER}")
            row = self._connection.execute("SELECT now()").fetchone()
            assert row is not None
            yield pd.Timestamp(row[0])

    def ask(self, sql: str) -> Answer:
        """Return what Grafana would get, from now or from an earlier run of the same query."""
        if sql in self._answers:
            return self._answers[sql]
        with self._as_reader() as now:
            cursor = self._connection.execute(sql.encode())
            rows = [tuple(float(v) if isinstance(v, Decimal | int) else v for v in row) for row in cursor.fetchall()]
            answer = Answer([column.name for column in cursor.description or ()], rows, now)
        self._answers[sql] = answer
        return answer

    def rows_taken(self, sql: str) -> Counter[str]:
        """Return how many rows a query reads from ``readings`` and each aggregate, if any."""
        with self._as_reader():
            row = self._connection.execute(f"EXPLAIN (ANALYZE, VERBOSE, FORMAT JSON) {sql}".encode()).fetchone()
        assert row is not None
        plan = row[0] if isinstance(row[0], list) else json.loads(row[0])
        rows: Counter[str] = Counter()
        for tier, read in self._tiers_of(plan[0]["Plan"]):
            rows[tier] += read
        return +rows

    def chunks_planned_in_vain(self, sql: str) -> int:
        """Return how many chunks are planned for a query and then skipped at its start."""
        with self._as_reader():
            row = self._connection.execute(f"EXPLAIN (FORMAT JSON) {sql}".encode()).fetchone()
        assert row is not None
        plan = row[0] if isinstance(row[0], list) else json.loads(row[0])
        return sum(self._left_out(plan[0]["Plan"]))

    def _left_out(self, node: dict[str, Any]) -> Iterator[int]:
        yield node.get("Chunks excluded during startup", 0)
        for child in node.get("Plans", []):
            yield from self._left_out(child)

    def _tiers_of(self, node: dict[str, Any]) -> Iterator[tuple[str, int]]:
        """Yield each scan of a tier with the rows that pass its conditions. Of nested scans, yield the innermost."""
        if within := [each for child in node.get("Plans", []) for each in self._tiers_of(child)]:
            yield from within
            return
        relation = node.get("Relation Name", "")
        name = self._hypertables.get(
            relation.rpartition("_chunk")[0].rpartition("_")[0], re.sub(r"_p?\d+$", "", relation)
        ).replace("aggregates", "readings")
        if name in {"readings", *TIERS}:
            yield name, round(node["Actual Loops"] * node["Actual Rows"])
