"""The aggregates of readings on TimescaleDB Community, and how they stay right.

Three things refresh them. TimescaleDB's own policies do the daily work, in windows that move with the clock. Of
readings that come too late for those the flusher writes down the hours, in the transaction of their rows
(``stale_ranges``), and they are refreshed here within seconds. And since a policy that could not run for a while begins
again at now, and would leave a hole, everything since ``aggregates_refreshed_until`` is refreshed here every few
minutes: TimescaleDB knows what of it has changed, and looks at nothing else.

No refresh reaches into the time that the next readings are of: that would hide them from queries, which take what is
above the last refreshed bucket from the readings themselves. And none reaches back to what retention has deleted: the
aggregates of it would go as well. How far that is, the database says and not the settings: what is too old by new ones
becomes aggregates before it goes, and what has gone by old ones stays gone.

On other editions the aggregates are views, always right, and nothing here runs.
"""

import asyncio
import logging
from collections.abc import Iterator
from datetime import datetime, timedelta

import psycopg
from psycopg.errors import LockNotAvailable

from app.errors import DatabaseAway
from app.store.database import Connection, Database, first_line, own_errors
from app.store.locks import REFRESH_LOCK
from app.store.policies import DROP_MARGIN, Retention, apply_policies
from app.store.tiers import LATE_AFTER, TIERS, Span, merged

logger = logging.getLogger(__name__)

QUERY_TIMEOUT_S = 10.0
INTERVAL_S = 5.0
SWEEP_INTERVAL = timedelta(minutes=5)
SWEEP_BACK = LATE_AFTER + TIERS[-1].end_offset + TIERS[-1].width
"""What was not late at the last sweep, and not yet refreshed by it in the coarsest tier, is younger than this."""
PAUSE_PER_WORK = 2.0
"""A gateway that sends yesterday's readings all day long must not keep PostgreSQL busy with refreshing yesterday."""
FIRST_PIECE = timedelta(days=1)
LONGEST_PIECE = timedelta(days=64)
QUICK_S = 1.0
"""What took less may be followed by a piece twice as long: a year of hourly readings takes 7 and not 365."""

# Without the columnstore's policy of readings the schema has been made anew, or somebody removed it.
IS_DUE = """
SELECT EXISTS (SELECT FROM stale_ranges) OR NOT value::timestamptz BETWEEN now() - %s AND now(),
       NOT EXISTS (
           SELECT FROM timescaledb_information.jobs
           WHERE (hypertable_schema, hypertable_name, proc_name) = (current_schema, 'readings', 'policy_compression')
       )
FROM server_settings WHERE name = 'aggregates_refreshed_until'
"""
# To compile it takes 12 s where the refresh itself takes 0.2.
OF_THIS_SESSION = "SET jit = off"
TRY_LOCK = "SELECT pg_try_advisory_xact_lock(%s), now()"
STALE = "SELECT starts_at, ends_at, array_agg(id) FROM stale_ranges GROUP BY 1, 2 ORDER BY 1 LIMIT 1000"
FORGET = "DELETE FROM stale_ranges WHERE id = ANY(%s)"
# In one go: by default it goes in steps of ten buckets, which takes 12 s for a month of minutes instead of 0.1.
REFRESH = """
CALL refresh_continuous_aggregate(
    %s::regclass, %s::timestamptz, %s::timestamptz, options => '{"buckets_per_batch": 0}'
)
"""
DELETED_UNTIL = """
SELECT greatest(
    (SELECT value::timestamptz FROM server_settings WHERE name = 'readings_deleted_until'),
    (
        SELECT now() - (config->>'drop_after')::interval FROM timescaledb_information.jobs
        WHERE hypertable_schema = current_schema AND hypertable_name = 'readings' AND proc_name = 'policy_retention'
    )
)
"""
REACH = f"SELECT now(), ({DELETED_UNTIL})"
SET_DELETED_UNTIL = f"""
INSERT INTO server_settings (name, value)
SELECT 'readings_deleted_until', until::text FROM ({DELETED_UNTIL}) AS deleted (until) WHERE until IS NOT NULL
ON CONFLICT (name) DO UPDATE SET value = excluded.value
"""
SWEPT = "SELECT value::timestamptz FROM server_settings WHERE name = 'aggregates_refreshed_until'"
SET_SWEPT = "UPDATE server_settings SET value = %s::timestamptz::text WHERE name = 'aggregates_refreshed_until'"


class Aggregates:
    """Keeps the aggregates right beside the flusher, on a connection of its own.

    Args:
        database: where they are.
        retention: how long readings and aggregates are kept.
    """

    def __init__(self, database: Database, *, retention: Retention) -> None:
        self._database = database
        self._retention = retention
        self._piece = FIRST_PIECE
        self._has_policies = False

    async def run(self) -> None:
        """Works until cancelled; a database that is away, or busy with the same, is left for the next turn."""
        clock = asyncio.get_running_loop().time
        while True:
            began = clock()
            try:
                await self.refresh()
            except DatabaseAway as error:
                self._piece = FIRST_PIECE
                # A policy that is at the same refresh is no trouble.
                is_busy = isinstance(error.__cause__, LockNotAvailable)
                logger.log(logging.DEBUG if is_busy else logging.WARNING, "the aggregates wait for a turn: %s", error)
            await asyncio.sleep(max(INTERVAL_S, PAUSE_PER_WORK * (clock() - began)))

    async def refresh(self) -> None:
        """Refreshes what is due, if no other process is at it. Raises DatabaseAway."""
        async with self._database.borrow(timeout_s=QUERY_TIMEOUT_S) as pooled:
            row = await (await pooled.execute(IS_DUE, [SWEEP_INTERVAL])).fetchone()
        is_due, lacks_policies = row or (True, True)
        self._has_policies &= not lacks_policies
        if not is_due and self._has_policies:
            return
        # A refresh may be in no transaction, and a lock had better be in one: a pooler gives a session to the next.
        with own_errors():
            async with (
                await self._database.connect("sensorflow aggregates lock") as guard,
                guard.transaction(),
                await self._database.connect("sensorflow aggregates") as connection,
            ):
                row = await (await guard.execute(TRY_LOCK, [REFRESH_LOCK])).fetchone()
                assert row is not None  # a SELECT without FROM has one row
                has_lock, now = row
                if not has_lock:
                    return
                if not self._database.is_pooled:
                    await connection.execute(OF_THIS_SESSION)
                # Before there are policies, and from the oldest on: until the last of it is refreshed, queries take
                # what is missing from the readings.
                is_all = await self._refresh_stale(connection)
                await self._sweep(connection, now)
                if is_all and not self._has_policies:
                    await connection.execute(SET_DELETED_UNTIL)
                    await apply_policies(connection, self._retention)
                    self._has_policies = True

    async def _refresh_stale(self, connection: Connection) -> bool:
        """Whether all of it is refreshed. A span that can't be holds up no other, and is tried again."""
        rows = await (await connection.execute(STALE)).fetchall()
        is_all = True
        for start, end in merged((starts_at, ends_at) for starts_at, ends_at, _ in rows):
            try:
                for piece in self._pieces(start, end):
                    await self._refresh(connection, piece)
            except psycopg.Error as error:
                if connection.closed or isinstance(error, LockNotAvailable):
                    raise
                logger.warning("the aggregates from %s to %s can't be refreshed: %s", start, end, first_line(error))
                is_all = False
            else:
                done = [id_ for starts_at, ends_at, ids in rows if start <= starts_at and ends_at <= end for id_ in ids]
                await connection.execute(FORGET, [done])
        return is_all

    async def _sweep(self, connection: Connection, now: datetime) -> None:
        """Refreshes what has come since the last sweep, and was not late then."""
        row = await (await connection.execute(SWEPT)).fetchone()
        assert row is not None  # the migration has written it
        for piece in self._pieces(row[0] - SWEEP_BACK, now):
            await self._refresh(connection, piece)
        await connection.execute(SET_SWEPT, [now])

    def _pieces(self, start: datetime, end: datetime) -> Iterator[Span]:
        """A span in parts that each take about as long as is fitting."""
        clock = asyncio.get_running_loop().time
        while start < end:
            piece_end = min(TIERS[-1].floor(start) + self._piece, end)
            began = clock()
            yield start, piece_end
            if clock() - began < QUICK_S:
                self._piece = min(self._piece * 2, LONGEST_PIECE)
            else:
                self._piece = max(self._piece / 2, FIRST_PIECE)
            start = piece_end

    async def _refresh(self, connection: Connection, span: Span) -> None:
        row = await (await connection.execute(REACH)).fetchone()
        assert row is not None  # a SELECT without FROM has one row
        now, deleted_until = row
        start, end = span
        if deleted_until is not None:
            start = max(start, deleted_until + DROP_MARGIN)
        for tier in TIERS:
            first, last = tier.floor(start), min(tier.ceil(end), tier.floor(now - tier.end_offset))
            if first < last:
                await connection.execute(REFRESH, [tier.name, first, last])
