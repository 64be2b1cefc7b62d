"""A database with readings whose aggregates are compared with them."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import psycopg

from app.ingest.batch import Reading, Sender
from app.store.aggregates import Aggregates
from app.store.database import Database
from app.store.latest import LatestReadings
from app.store.maintenance import Pieces
from app.store.retention import Retention
from app.store.tiers import TIERS
from app.store.writer import Writer
from tests.support.samples import batch_of

SOURCE = Sender("API_KEY", "192.0.2.7")


MINUTE, HOUR, DAY = 60, 3_600, 86_400


EXPECTED = """
SELECT date_bin(%(width)s, time, TIMESTAMPTZ 'epoch') AS bucket, sensor_id, count(*),
       count(temperature), sum(temperature), min(temperature), max(temperature),
       (array_agg(temperature ORDER BY time) FILTER (WHERE temperature IS NOT NULL))[1],
       (array_agg(temperature ORDER BY time DESC) FILTER (WHERE temperature IS NOT NULL))[1],
       count(pressure), sum(pressure)
FROM readings GROUP BY 1, 2 ORDER BY 1, 2
"""


FOUND = """
SELECT bucket, sensor_id, count, temperature_count, temperature_sum, temperature_min, temperature_max,
       temperature_first, temperature_last, pressure_count, pressure_sum
FROM {} ORDER BY 1, 2
"""


LATEST = """
SELECT DISTINCT ON (sensor_id) sensor_id, time, id, temperature, humidity, pressure
FROM readings ORDER BY sensor_id, time DESC, id DESC
"""


JOBS = "SELECT job_id FROM timescaledb_information.jobs WHERE proc_name = %s AND hypertable_name = %s"


class Rig(NamedTuple):
    """A database with the parts that write to it, and that keep its aggregates."""

    url: str
    database: Database
    writer: Writer
    latest: LatestReadings
    clock_s: list[float]
    """What the writer takes for the time, in its one place."""

    async def write(self, *readings: Reading) -> None:
        """Commit readings: one alone, several as one request."""
        content = readings[0] if len(readings) == 1 else batch_of(readings, source=SOURCE)
        await self.writer.write(await self.writer.prepare([content]), dict)

    async def refresh(self, aggregates: Aggregates | None = None) -> None:
        """Do once what keeps the aggregates right."""
        edition = self.database.edition
        assert edition is not None
        aggregates = aggregates or Aggregates(self.database)
        works: list[Pieces] = [aggregates.refresh, aggregates.refresh_late] if edition.has_aggregates else []
        if edition.continuous_aggregates:
            works = [aggregates.check_days, *works, aggregates.refresh_changed]
        for work in works:
            await self.do(work)

    async def delete_old(self, retention: Retention) -> None:
        """Delete once what has reached its age."""
        edition = self.database.edition
        assert edition is not None
        await self.do(lambda connection, _: retention.delete_old(connection, edition))

    async def do(self, work: Pieces) -> None:
        """Do all pieces of some work."""
        async with (
            await self.database.connect("test") as connection,
            await self.database.connect("test") as guard,
            guard.transaction(),
        ):
            async for _ in work(connection, guard):
                pass


@asynccontextmanager
async def rig(url: str) -> AsyncIterator[Rig]:
    """Background jobs run where a test runs them, and not when the scheduler would, in the middle of a comparison."""
    database = Database(url, timezone="UTC", offline_after_s=300)
    latest = LatestReadings(database)
    clock_s = [time.time()]
    writer = Writer(
        database,
        flush_timeout_s=20,
        lock_timeout_s=10,
        columnstore_rows_per_sensor=2,
        latest=latest,
        now_us=lambda: round(clock_s[0] * 1e6),
    )
    try:
        await database.prepare()
        if database.edition and database.edition.continuous_aggregates:
            execute(url, "SELECT _timescaledb_functions.stop_background_workers()")
        await writer.connect()
        yield Rig(url, database, writer, latest, clock_s)
    finally:
        await writer.close()
        await database.close()


def execute(url: str, *statements: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)


def rows(url: str, query: str, **arguments: object) -> list[Any]:
    with psycopg.connect(url) as connection:
        return connection.execute(query, arguments).fetchall()


def assert_right(url: str) -> None:
    """Assert that every tier has what a plain count over the readings has."""
    for tier in TIERS:
        assert rows(url, FOUND.format(tier.name)) == rows(url, EXPECTED, width=tier.width), tier.name


def reading(time_s: float, value: float | None = 20.0, sensor: str = "a") -> Reading:
    return Reading(round(time_s * 1e6), sensor, value, None if value is None else 1.5, 1000.0, SOURCE)


def run_job(url: str, procedure: str, table: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        row = connection.execute(JOBS, [procedure, table]).fetchone()
        assert row is not None
        connection.execute(f"CALL run_job({row[0]})")


COUNTS = """
SELECT (SELECT count(*) FROM readings) = ALL (ARRAY[
    (SELECT coalesce(sum(count), 0) FROM readings_1m), (SELECT coalesce(sum(count), 0) FROM readings_1h),
    (SELECT coalesce(sum(count), 0) FROM readings_1d)
]) AND NOT EXISTS (SELECT FROM stale_ranges)
"""
