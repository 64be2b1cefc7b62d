"""The look of each process at the database: its size, its connections, its clock, its maintenance."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from app.errors import DatabaseUnavailable
from app.store.capacity import warn_of_locks
from app.store.database import Connection, Database

logger = logging.getLogger(__name__)

INTERVAL_S = 15.0
QUERY_TIMEOUT_S = 10.0
LOCKS_INTERVAL_S = 86_400.0
FIRST_LOCKS_S = 60.0
CLOCK_LOOKS = 3
"""Looks at the clock, of which the one counts that was answered soonest."""
MAX_SKEW_S = 5.0
"""A clock that is further from the server's is told, and corrected for where sensors are found online or not."""

CLOCK = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint"
SET_SKEW = """
INSERT INTO server_settings (name, value)
SELECT 'clock_skew_s', %(skew_s)s::text
WHERE NOT EXISTS (
    SELECT FROM server_settings
    WHERE name = 'clock_skew_s' AND abs(value::double precision - %(skew_s)s::text::double precision) <= 1
)
ON CONFLICT (name) DO UPDATE SET value = excluded.value
"""
STATISTICS = """
SELECT pg_database_size(current_database()),
       (SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()),
       (SELECT count(*) FROM stale_ranges),
       (SELECT coalesce(extract(epoch FROM now() - min(recorded_at)), 0)::double precision FROM stale_ranges),
       (SELECT coalesce(max(lag_s), 0) FROM aggregate_lag)
"""
WORKS = """
SELECT work, failures, busy_s, extract(epoch FROM last_succeeded_at)::double precision
FROM maintenance ORDER BY work
"""
LATE_WORKS = """
SELECT format('%s has not succeeded for %s minutes%s', work, (age_s / 60)::integer, ': ' || last_error)
FROM late_maintenance ORDER BY work
"""


@dataclass(frozen=True, slots=True)
class WorkStatistics:
    """A kind of the maintenance's work, by all processes that have done it."""

    name: str
    failures: int
    busy_s: float
    """How long all runs together have taken."""
    last_succeeded_at: float | None
    """Seconds since 1970 UTC, by the database's clock. None: never."""


@dataclass(frozen=True, slots=True)
class DatabaseStatistics:
    """The database at the last look."""

    size_bytes: int
    connections: int
    stale_ranges: int
    late_lag_s: float
    """How long the oldest of these has waited."""
    aggregate_lag_s: float
    """How far the aggregates are materialized behind now."""
    clock_skew_s: float
    """How far its clock is ahead of this process's."""
    works: Sequence[WorkStatistics]
    late_works: Sequence[str]
    """What has not been done for too long, in words."""


class DatabaseObserver:
    """Looks at the database now and then.

    Args:
        database: what is looked at.
        now_us: the time, microseconds since 1970 UTC.
    """

    def __init__(self, database: Database, *, now_us: Callable[[], int]) -> None:
        self._database = database
        self._now_us = now_us
        self._is_skewed = False
        self.statistics: DatabaseStatistics | None = None
        """None until the first look, and while the database is unavailable."""

    async def run(self) -> None:
        """Look until cancelled. Skip a turn if the database is unavailable."""
        clock = asyncio.get_running_loop().time
        locks_from = clock() + FIRST_LOCKS_S
        while True:
            try:
                await self.look()
                if clock() >= locks_from:
                    async with self._database.connection(timeout_s=QUERY_TIMEOUT_S) as connection:
                        await warn_of_locks(self._database, connection)
                    locks_from = clock() + LOCKS_INTERVAL_S
            except DatabaseUnavailable as error:
                self.statistics = None
                logger.debug("can't look at the database: %s", error)
            await asyncio.sleep(INTERVAL_S)

    async def look(self) -> None:
        """Look at the database and at its clock. Raises DatabaseUnavailable."""
        async with self._database.connection(timeout_s=QUERY_TIMEOUT_S) as connection:
            await self._database.restore_settings(connection)
            skew_s = await self._measure_skew(connection)
            row = await (await connection.execute(STATISTICS)).fetchone()
            works = await (await connection.execute(WORKS)).fetchall()
            late_works = await (await connection.execute(LATE_WORKS)).fetchall()
        assert row is not None  # a SELECT without FROM has one row
        size_bytes, connections, stale_ranges, late_lag_s, lag_s = row
        self.statistics = DatabaseStatistics(
            size_bytes,
            connections,
            stale_ranges,
            late_lag_s,
            lag_s,
            skew_s,
            works=[WorkStatistics(*work) for work in works],
            late_works=[message for (message,) in late_works],
        )

    async def _measure_skew(self, connection: Connection) -> float:
        """Return how far the database's clock is ahead of this process's, seconds. The views take it into account."""
        looks: list[tuple[float, float]] = []
        for _ in range(CLOCK_LOOKS):
            before = self._now_us()
            row = await (await connection.execute(CLOCK)).fetchone()
            after = self._now_us()
            assert row is not None  # a SELECT without FROM has one row
            looks.append(((after - before) / 2e6, (row[0] - (before + after) / 2) / 1e6))
        uncertainty_s, skew_s = min(looks)
        is_skewed = abs(skew_s) - uncertainty_s > MAX_SKEW_S
        if is_skewed and not self._is_skewed:
            logger.warning(
                "The database's clock is %.1f s %s this server's: synchronize both by NTP. Until then the online "
                "status and the age of readings follow this server's clock, aggregates and retention the database's.",
                abs(skew_s),
                "ahead of" if skew_s > 0 else "behind",
            )
        elif self._is_skewed and not is_skewed:
            logger.info("The database's clock agrees with this server's again.")
        self._is_skewed = is_skewed
        await connection.execute(SET_SKEW, {"skew_s": str(round(skew_s, 1) if is_skewed else 0)})
        return skew_s
