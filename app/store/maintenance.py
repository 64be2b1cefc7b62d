"""The regular work on the database: ledger, idempotency records, senders and the log of violations pruned, its
state and its clock looked at.

Nothing here is all or nothing: what is pruned goes in pieces, each a transaction, and a piece that fails leaves those
before it gone.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from app.errors import DatabaseUnavailable
from app.store import idempotency, limits
from app.store.capacity import warn_of_locks
from app.store.database import Connection, Database
from app.store.locks import PRUNE_LOCK

logger = logging.getLogger(__name__)

INTERVAL_S = 15.0
QUERY_TIMEOUT_S = 10.0
LEDGER_WINDOW_MINUTES = 10
"""A ledger row is asked for as soon as the database is reached again, so within seconds of its being up."""
PRUNE_PAUSE_S = 60.0
"""After a start, or when the database was away, nothing is pruned for so long: some flusher may still ask about a flush
from before."""
PRUNE_PIECE_ROWS = 20_000
PRUNE_TURN_S = 5.0
"""How long a turn prunes at most; what is left is the next one's."""
PRUNE_SOURCES_EVERY_S = 86_400.0
CLOCK_LOOKS = 3
"""Looks at the clock, of which the one counts that was answered soonest."""
MAX_SKEW_S = 5.0
"""A clock that is further from the server's is told, and corrected for where sensors are found online or not."""

PRUNE_LEDGER = f"""
DELETE FROM flushes WHERE flush_id IN (
    SELECT flush_id FROM flushes
    WHERE committed_at < now() - interval '{LEDGER_WINDOW_MINUTES} minutes'
        AND (SELECT pg_try_advisory_xact_lock({PRUNE_LOCK}))
    LIMIT {PRUNE_PIECE_ROWS}
)
"""
# A sender that was last heard before the first stored reading came has none of them. When it came is not known: it may
# have been as much before its own time as readings may lie ahead. A day more, for that is how exactly its use is known,
# and another for clocks that differ.
OLDEST_OF_CHUNKS = """
SELECT coalesce(min(range_start), now()) FROM timescaledb_information.chunks
WHERE hypertable_schema = current_schema AND hypertable_name = 'readings'
"""
OLDEST_OF_SENSORS = """
SELECT coalesce(min(first.time), now()) FROM sensors
CROSS JOIN LATERAL (SELECT time FROM readings WHERE sensor_id = sensors.id ORDER BY time LIMIT 1) first
"""
UNHEARD = "SELECT EXISTS (SELECT FROM sources WHERE last_used_on < current_date - 2)"
THIS_PRUNES = "SELECT set_config('sensorflow.prunes', 'on', true)"
PRUNE_SOURCES = f"""
DELETE FROM sources WHERE id IN (
    SELECT id FROM sources
    WHERE last_used_on < (%s::timestamptz - make_interval(secs => 60 * %s))::date - 2
        AND (SELECT pg_try_advisory_xact_lock({PRUNE_LOCK}))
    LIMIT {PRUNE_PIECE_ROWS}
)
"""
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
       (SELECT coalesce(max(lag_s), 0) FROM aggregate_lag)
"""


@dataclass(frozen=True, slots=True)
class DatabaseStatistics:
    """The database at the last look."""

    size_bytes: int
    connections: int
    stale_ranges: int
    aggregate_lag_s: float
    """How long ago the aggregates were last brought up to date."""
    clock_skew_s: float
    """How far its clock is ahead of this process's."""


class Maintenance:
    """Background work beside the flusher, on pooled connections, never in its way.

    Args:
        database: what is maintained.
        idempotency_window_hours: how long idempotency records are kept.
        accept_future_minutes: how far ahead readings may lie; 0: any distance.
        now_us: the time, microseconds since 1970 UTC.
    """

    def __init__(
        self,
        database: Database,
        *,
        idempotency_window_hours: float,
        accept_future_minutes: float,
        now_us: Callable[[], int],
    ) -> None:
        self._database = database
        self._idempotency_window_hours = idempotency_window_hours
        self._accept_future_minutes = accept_future_minutes
        self._now_us = now_us
        self._is_skewed = False
        self.statistics: DatabaseStatistics | None = None
        """None until the first look, and while the database is unavailable."""

    async def run(self) -> None:
        """Work until cancelled. Skip a turn if the database is unavailable."""
        clock = asyncio.get_running_loop().time
        prune_from = prune_sources_from = clock() + PRUNE_PAUSE_S
        while True:
            try:
                await self.look()
            except DatabaseUnavailable as error:
                self.statistics = None
                prune_from = clock() + PRUNE_PAUSE_S
                logger.debug("maintenance waits: %s", error)
            if clock() >= prune_from:
                try:
                    await self.prune()
                    if clock() >= prune_sources_from:
                        await self.prune_sources()
                        async with self._database.connection(timeout_s=QUERY_TIMEOUT_S) as connection:
                            await warn_of_locks(self._database, connection)
                        prune_sources_from = clock() + PRUNE_SOURCES_EVERY_S
                except DatabaseUnavailable as error:
                    logger.warning("can't delete expired rows for now: %s", error)
            await asyncio.sleep(INTERVAL_S)

    async def look(self) -> None:
        """Look at the database and at its clock. Raises DatabaseUnavailable."""
        async with self._database.connection(timeout_s=QUERY_TIMEOUT_S) as connection:
            await self._database.restore_settings(connection)
            skew_s = await self._measure_skew(connection)
            row = await (await connection.execute(STATISTICS)).fetchone()
        assert row is not None  # a SELECT without FROM has one row
        size_bytes, connections, stale_ranges, lag_s = row
        self.statistics = DatabaseStatistics(size_bytes, connections, stale_ranges, lag_s, skew_s)

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

    async def prune(self) -> None:
        """Delete old rows of the ledger and of the log of violations, and old idempotency records.

        Raises:
            DatabaseUnavailable
        """

        async def ledger(connection: Connection) -> bool:
            return (await connection.execute(PRUNE_LEDGER)).rowcount == PRUNE_PIECE_ROWS

        async def old_records(connection: Connection) -> bool:
            return await idempotency.prune(connection, older_than_hours=self._idempotency_window_hours)

        await self._in_pieces(ledger)
        await self._in_pieces(old_records)
        await self._in_pieces(limits.prune)

    async def prune_sources(self) -> None:
        """Delete the senders of which no reading is stored, as far as that is certain. Raises DatabaseUnavailable."""
        if not self._accept_future_minutes:
            return
        edition = self._database.edition
        has_chunks = edition is not None and edition.kind != "plain"
        async with self._database.connection(timeout_s=10 * QUERY_TIMEOUT_S) as connection:
            if await (await connection.execute(UNHEARD)).fetchone() == (False,):
                return
            oldest = await (await connection.execute(OLDEST_OF_CHUNKS if has_chunks else OLDEST_OF_SENSORS)).fetchone()
        assert oldest is not None  # an aggregate has one row

        async def senders(connection: Connection) -> bool:
            async with connection.transaction():
                await connection.execute(THIS_PRUNES)
                cursor = await connection.execute(PRUNE_SOURCES, [oldest[0], self._accept_future_minutes])
                return cursor.rowcount == PRUNE_PIECE_ROWS

        await self._in_pieces(senders)

    async def _in_pieces(self, delete_piece: Callable[[Connection], Awaitable[bool]]) -> None:
        """Delete piece by piece, each on a connection for itself, until one was the last or the turn is over."""
        clock = asyncio.get_running_loop().time
        ends = clock() + PRUNE_TURN_S
        is_more = True
        while is_more and clock() < ends:
            async with self._database.connection(timeout_s=QUERY_TIMEOUT_S) as connection:
                is_more = await delete_piece(connection)
