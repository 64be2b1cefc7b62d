"""The deletion of readings and aggregates that have reached their age.

Days (UTC) of readings go as a whole, so that no bucket of an aggregate is ever made of a part. Before they go, the
aggregates have them: of readings before ``readings_deleted_until`` nothing is refreshed any more.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from app.store.aggregate_tables import table_of
from app.store.aggregates import take_refresh_lock
from app.store.database import Connection, Edition
from app.store.locks import SHORT_WAIT
from app.store.tiers import EARLIEST, TIERS

MARGIN = timedelta(hours=2)
"""A reading is taken until it has the age of retention. It must be committed before its day goes."""
ROWS_AT_A_TIME = 20_000
CHUNKS_AT_A_TIME = 20
"""Few at a time: a transaction holds locks on all that it drops, and all sessions share a fixed number."""

# By the clock that is further back, because deleted rows are gone for good.
FIRST_KEPT = "SELECT date_trunc('day', least(now(), %s::timestamptz) - %s::interval, 'UTC')"
# Late readings whose aggregates are still to be refreshed, and what the aggregates have not reached.
NOT_REFRESHED = f"""
SELECT greatest(date_trunc('day', least(
    (SELECT min(starts_at) FROM stale_ranges),
    (SELECT value::timestamptz FROM server_settings WHERE name = 'aggregates_refreshed_until') - interval '1 day'
), 'UTC'), '{EARLIEST}')
"""
SET_DELETED_UNTIL = """
INSERT INTO server_settings AS s (name, value) VALUES ('readings_deleted_until', %s::timestamptz::text)
ON CONFLICT (name) DO UPDATE SET value = excluded.value WHERE s.value::timestamptz < excluded.value::timestamptz
"""
OLDEST_CHUNKS = f"""
SELECT max(range_end) FROM (
    SELECT range_end FROM timescaledb_information.chunks
    WHERE (hypertable_schema, hypertable_name) IN (
        SELECT current_schema::text, %(table)s::text
        UNION ALL
        SELECT materialization_hypertable_schema::text, materialization_hypertable_name::text
        FROM timescaledb_information.continuous_aggregates
        WHERE view_schema = current_schema AND view_name = %(table)s::text
    ) AND range_end <= %(until)s
    ORDER BY range_end LIMIT {CHUNKS_AT_A_TIME}
) AS oldest
"""
DROP_CHUNKS = "SELECT drop_chunks(%s::regclass, %s::timestamptz)"
# By the index, which begins with the sensor: there is none by time alone.
DELETE_SOME = f"""
DELETE FROM readings WHERE ctid = ANY (ARRAY(
    SELECT old.ctid
    FROM sensors CROSS JOIN LATERAL (
        SELECT ctid FROM readings WHERE sensor_id = sensors.id AND time < %s LIMIT {ROWS_AT_A_TIME}
    ) old
    LIMIT {ROWS_AT_A_TIME}
))
"""
# By the index of the buckets.
DELETE_BUCKETS = f"""
DELETE FROM {{table}} WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM {{table}} WHERE bucket < %s LIMIT {ROWS_AT_A_TIME}
))
"""


@dataclass(frozen=True, slots=True)
class Retention:
    """The days for which readings and each tier of aggregates are kept. 0: without end."""

    raw_days: float
    minute_days: float
    hour_days: float
    day_days: float

    async def delete_old(self, connection: Connection, edition: Edition) -> AsyncIterator[None]:
        """Delete what has reached its age, in steps. Raises Busy, and what the driver raises."""
        kept_from: datetime | None = None
        if self.raw_days:
            until = await self._first_kept(connection, self.raw_days)
            if edition.has_aggregates:
                row = await (await connection.execute(NOT_REFRESHED)).fetchone()
                assert row is not None  # a SELECT without FROM has one row
                until = until if row[0] is None else min(until, row[0])
                # A refresh under way, which does not know of it yet, would delete the aggregates of what is deleted.
                async with connection.transaction():
                    await take_refresh_lock(connection, wait=False)
                    await connection.execute(SET_DELETED_UNTIL, [until])
            kept_from = until
            if edition.kind == "plain":
                while (await connection.execute(DELETE_SOME, [until])).rowcount == ROWS_AT_A_TIME:
                    yield
            else:
                async for _ in _drop_chunks(connection, "readings", until):
                    yield
        if not edition.has_aggregates:
            return
        for tier, days in zip(TIERS, (self.minute_days, self.hour_days, self.day_days), strict=True):
            if not days:
                continue
            until = await self._first_kept(connection, days)
            # Late readings may keep readings for longer. Each tier is made again of the whole finer one.
            until = until if kept_from is None else min(until, kept_from)
            delete = _drop_chunks if edition.continuous_aggregates else _delete_buckets
            async for _ in delete(connection, tier.name, until):
                yield

    async def _first_kept(self, connection: Connection, days: float) -> datetime:
        """Return the start of the first day that is kept."""
        arguments = [datetime.now(UTC), timedelta(days=days) + MARGIN]
        row = await (await connection.execute(FIRST_KEPT, arguments)).fetchone()
        assert row is not None  # a SELECT without FROM has one row
        first_kept: datetime = row[0]
        return first_kept


async def _drop_chunks(connection: Connection, table: str, until: datetime) -> AsyncIterator[None]:
    """Drop the chunks of a table, or of an aggregate, that end at or before a time, from the oldest on."""
    while True:
        row = await (await connection.execute(OLDEST_CHUNKS, {"table": table, "until": until})).fetchone()
        if row is None or row[0] is None:
            return
        async with connection.transaction():
            await connection.execute(SHORT_WAIT)
            await connection.execute(DROP_CHUNKS, [table, row[0]])
        yield


async def _delete_buckets(connection: Connection, tier: str, until: datetime) -> AsyncIterator[None]:
    """Delete the buckets of a table of aggregates that begin before a time."""
    delete = DELETE_BUCKETS.format(table=table_of(tier))
    while (await connection.execute(delete, [until])).rowcount == ROWS_AT_A_TIME:
        yield
