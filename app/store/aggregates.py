"""The aggregates of readings, and how they stay right.

On TimescaleDB Community they are continuous aggregates. Elsewhere they are tables, behind views that make of the
readings what is above the last refreshed bucket (``app.store.aggregate_tables``).

Readings become aggregates in three ways:

* ``refresh`` goes forward with the clock. It first moves the frontier, a time in ``server_settings``. A flush that
  finds readings before the frontier records their minutes in ``stale_ranges``, in its own transaction. Flushes that
  began before the frontier moved are waited for. So each reading is either there when its minute is refreshed, or
  recorded. (15)
* ``refresh_late`` refreshes what flushes have recorded.
* ``refresh_changed`` and ``check_days`` are for readings that came by another way than a flush, or were changed: by
  SQL, or from a dump. TimescaleDB Community knows which times of the last days have changed, and refreshes only those.
  For older days it knows too little, so their hours are compared with the readings, and a day that differs is refreshed
  as if all of it had come late. Elsewhere nothing knows of such changes: ``recompute`` is for them.

No refresh reaches into the time that the next readings are of: that would hide them from queries, which take what is
above the last refreshed bucket from the readings themselves. And none reaches back to what retention has deleted: the
aggregates of it would go as well. How far that is, the database says and not the settings: a longer retention does not
bring back what a shorter one has deleted.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta

import psycopg
from psycopg.errors import LockNotAvailable

from app.errors import DatabaseUnavailable
from app.schema import METRICS, qualified
from app.store import aggregate_tables
from app.store.database import Connection, Database, first_line, translate_driver_errors
from app.store.latest import INSERT_LATEST, REPLACE_LATEST
from app.store.latest import SCHEMA as LATEST_SCHEMA
from app.store.locks import REFRESH_LOCK, Busy
from app.store.tiers import EARLIEST, EPOCH, TIERS, Span, Tier, merged, with_few_gaps

logger = logging.getLogger(__name__)

BEHIND_NOW = timedelta(minutes=1)
"""So long after its end a minute is materialized: up to one to two minutes behind now. What is younger, queries compute
from the readings."""
CHECK_BACK = timedelta(days=2)
"""TimescaleDB's own record of changes is enough for times that are no further back than so."""
FIRST_PIECE = timedelta(minutes=10)
LONGEST_PIECE = timedelta(days=64)
QUICK_S = 0.5
SLOW_S = 1.5
"""A refresh that was quicker is followed by one of twice the length, a slower one by one that should take so long."""
PIECE_ROWS = 500_000
"""A refresh reads no more rows than this, unless they are of one bucket: its length says little where thin times meet
dense ones. Tables take 1.5 s for so many, continuous aggregates a third of it."""
PIECE_PARTS = 4
"""A piece with more rows is tried again at this part of its length."""
CHANGED_SPANS = 20
"""Spans of changes that are refreshed one by one; more are refreshed together with the smallest gaps between them."""
FLUSH_WAIT_S = 10.0
"""How long flushes from before the frontier are waited for. If one takes longer, the next turn refreshes."""
FLUSH_POLL_S = 0.02

CHECK_S = 60.0
"""How much time a check takes to compare days with their readings at most; the others are the next one's."""
LATEST_SPAN = timedelta(days=30)
"""What is looked at at a time: a query locks every chunk that it may need."""
LATEST_SENSORS = 10_000
SHOWN_IDS = 10

TRY_LOCK = f"SELECT pg_try_advisory_xact_lock({REFRESH_LOCK})"
LOCK = f"SELECT pg_advisory_xact_lock({REFRESH_LOCK})"
STATE_SQL = f"""
SELECT now(), (
           SELECT greatest(least(value::timestamptz, now()), '{EARLIEST}') FROM server_settings
           WHERE name = 'aggregates_refreshed_until'
       ),
       greatest(
           (SELECT value::timestamptz FROM server_settings WHERE name = 'readings_deleted_until'), {{by_policy}}
       ),
       (SELECT jsonb_object_agg(aggregate, extract(epoch FROM materialized_until)) FROM aggregate_lag)
"""
# Where aggregates are continuous, an operator's policy may delete readings as well.
BY_POLICY = """(
    SELECT date_trunc('hour', max(now() - (config->>'drop_after')::interval), 'UTC')
    FROM timescaledb_information.jobs
    WHERE (hypertable_schema, hypertable_name, proc_name) = (current_schema, 'readings', 'policy_retention')
)"""
# It may have been set back meanwhile: older readings were taken over, whose aggregates are still to be refreshed.
SET_REFRESHED_UNTIL = """
INSERT INTO server_settings AS s (name, value) VALUES ('aggregates_refreshed_until', %s::timestamptz::text)
ON CONFLICT (name) DO UPDATE SET value = excluded.value WHERE s.value::timestamptz = %s
"""
# A process whose term is over, and that does not know it yet, must not move it back.
MOVE_FRONTIER = """
INSERT INTO server_settings AS s (name, value) VALUES ('aggregates_frontier', %s::timestamptz::text)
ON CONFLICT (name) DO UPDATE SET value = excluded.value WHERE s.value::timestamptz < excluded.value::timestamptz
"""
# The database's clock was ahead for a while. Whatever came since then has been recorded as late.
COME_BACK = """
UPDATE server_settings SET value = now()::text
WHERE name IN ('aggregates_refreshed_until', 'aggregates_frontier') AND value::timestamptz > now()
"""
# A flush has this lock before it looks at the frontier.
FLUSHES = """
SELECT coalesce(array_agg(virtualtransaction), '{}') FROM pg_locks
WHERE locktype = 'relation' AND relation = 'flushes'::regclass AND mode = 'RowExclusiveLock' AND granted
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""
STALE_SPANS = 1_000
STALE = f"""
SELECT starts_at, ends_at, array_agg(range_id) FROM stale_ranges
WHERE (starts_at, ends_at) > (%s::timestamptz, %s::timestamptz) AND ends_at <= %s
GROUP BY 1, 2 ORDER BY 1, 2 LIMIT {STALE_SPANS}
"""
FORGET = "DELETE FROM stale_ranges WHERE range_id = ANY(%s)"
# In one go: by default it goes in steps of ten buckets, which takes 12 s for a month of minutes instead of 0.1.
REFRESH = """
CALL refresh_continuous_aggregate(
    %s::regclass, %s::timestamptz, %s::timestamptz, force => %s, options => '{"buckets_per_batch": 0}'
)
"""

# What TimescaleDB's own catalogue says of the days that have readings and are older than what a check refreshes: spans
# of changes that no refresh has been over. A flush or a COPY leaves one from its earliest to its latest reading, so
# that a span says where readings may have changed, and never misses where they have.
CHANGED_DAYS = """
WITH of_tiers AS (
    SELECT h.id FROM timescaledb_information.continuous_aggregates c
    JOIN _timescaledb_catalog.hypertable h
        ON h.schema_name = c.materialization_hypertable_schema AND h.table_name = c.materialization_hypertable_name
    WHERE c.view_schema = current_schema AND c.view_name = ANY(%(tiers)s)
), changed AS (
    SELECT lowest_modified_value AS first, greatest_modified_value AS last
    FROM _timescaledb_catalog.continuous_aggs_materialization_invalidation_log
    WHERE materialization_id IN (SELECT id FROM of_tiers)
    UNION ALL
    SELECT lowest_modified_value, greatest_modified_value
    FROM _timescaledb_catalog.continuous_aggs_hypertable_invalidation_log
    WHERE hypertable_id IN (SELECT id FROM of_tiers)
        OR hypertable_id = (
            SELECT id FROM _timescaledb_catalog.hypertable
            WHERE schema_name = current_schema AND table_name = 'readings'
        )
), days AS (
    SELECT DISTINCT time_bucket('1 day', day) AS day
    FROM timescaledb_information.chunks c,
        generate_series(
            time_bucket('1 day', c.range_start), c.range_end - interval '1 microsecond', interval '1 day'
        ) AS day
    WHERE c.hypertable_schema = current_schema AND c.hypertable_name = 'readings'
        AND day >= coalesce(%(start)s::timestamptz, '-infinity') AND day < %(end)s
)
SELECT day, md5(string_agg(first || ' ' || last, ',' ORDER BY first, last))
FROM days
JOIN changed ON last >= _timescaledb_functions.time_to_internal(day)
    AND first < _timescaledb_functions.time_to_internal(day + interval '1 day')
GROUP BY day
ORDER BY day
"""
# The same of the last days: what a refresh would change of a tier, in internal time. Elsewhere it does nothing.
CHANGES = """
WITH tier AS (
    SELECT made.id AS made_id, source.id AS source_id,
           _timescaledb_functions.time_to_internal(%(start)s::timestamptz) AS start,
           _timescaledb_functions.time_to_internal(%(end)s::timestamptz) AS stop
    FROM timescaledb_information.continuous_aggregates c
    JOIN _timescaledb_catalog.hypertable made
        ON (made.schema_name, made.table_name)
            = (c.materialization_hypertable_schema, c.materialization_hypertable_name)
    JOIN _timescaledb_catalog.hypertable source
        ON (source.schema_name, source.table_name) = (c.hypertable_schema, c.hypertable_name)
    WHERE c.view_schema = current_schema AND c.view_name = %(tier)s
), changed AS (
    SELECT lowest_modified_value AS first, greatest_modified_value AS last
    FROM tier JOIN _timescaledb_catalog.continuous_aggs_materialization_invalidation_log ON materialization_id = made_id
    UNION ALL
    SELECT lowest_modified_value, greatest_modified_value
    FROM tier JOIN _timescaledb_catalog.continuous_aggs_hypertable_invalidation_log ON hypertable_id = source_id
), spans AS (
    SELECT unnest(range_agg(int8range(greatest(first, start), least(last, stop - 1), '[]'))) AS span
    FROM tier, changed WHERE first < stop AND last >= start
)
SELECT _timescaledb_functions.to_timestamp(lower(span)), _timescaledb_functions.to_timestamp(upper(span))
FROM spans ORDER BY 1
"""
OLDEST_CHUNK = """
SELECT min(range_start) FROM timescaledb_information.chunks
WHERE hypertable_schema = current_schema AND hypertable_name = 'readings'
"""
OLDEST_BUCKET = "SELECT min(bucket) FROM aggregates_1d"
COUNT = """
SELECT count(*) FROM (
    SELECT FROM {source} WHERE {time} >= %(start)s AND {time} < %(end)s LIMIT %(limit)s
) AS found
"""
CHUNKS = """
SELECT range_start, range_end FROM timescaledb_information.chunks
WHERE hypertable_schema = current_schema AND hypertable_name = 'readings'
    AND range_end > %(start)s AND range_start < %(end)s
ORDER BY range_start
"""
MATERIALIZED = """
SELECT format('%%I.%%I', materialization_hypertable_schema, materialization_hypertable_name)
FROM timescaledb_information.continuous_aggregates WHERE view_schema = current_schema AND view_name = %s
"""
# Against what is materialized: above that, and so everywhere before the first refresh, the views have the readings
# themselves, and would lack them as soon as something later is refreshed. Sums differ by the order of their summands.
_FIGURES = """count({0}) AS {0}_count, min({0}) AS {0}_min, max({0}) AS {0}_max,
           coalesce(sum(least(greatest({0}, -1e290), 1e290)), 0) AS {0}_sum"""
_DIFFERS = """r.{0}_count <> a.{0}_count OR r.{0}_min IS DISTINCT FROM a.{0}_min
            OR r.{0}_max IS DISTINCT FROM a.{0}_max
            OR abs(r.{0}_sum - coalesce(a.{0}_sum, 0))
                > 1e-9 * r.{0}_count * greatest(abs(r.{0}_min), abs(r.{0}_max))"""
HOURS_ARE_COMPLETE = f"""NOT EXISTS (
        SELECT FROM (
            SELECT time_bucket('1 hour', time) AS bucket, sensor_id, count(*) AS count,
                   {", ".join(_FIGURES.format(metric) for metric in METRICS)}
            FROM readings WHERE time >= %(start)s AND time < %(end)s GROUP BY 1, 2
        ) r
        FULL JOIN (SELECT * FROM {{hours}} WHERE bucket >= %(start)s AND bucket < %(end)s) a USING (bucket, sensor_id)
        WHERE r.count IS DISTINCT FROM a.count OR {" OR ".join(_DIFFERS.format(metric) for metric in METRICS)}
    )"""
DAY_IS_COMPLETE = """(SELECT coalesce(sum(count), 0) FROM {hours} WHERE bucket >= %(day)s AND bucket < %(day_end)s)
        = (SELECT coalesce(sum(count), 0) FROM {days} WHERE bucket = %(day)s)"""
# In the same statement, so that a late flush is seen with its readings or not at all.
_CHECK = """
WITH checked AS (
    SELECT {is_complete} AS is_complete
    WHERE NOT EXISTS (SELECT FROM stale_ranges WHERE starts_at < %(day_end)s AND ends_at > %(day)s)
), added AS (
    INSERT INTO stale_ranges (starts_at, ends_at)
    SELECT %(day)s, %(day_end)s FROM checked WHERE NOT is_complete
){kept}
SELECT is_complete FROM checked
"""
CHECK_HOURS = _CHECK.format(is_complete=HOURS_ARE_COMPLETE, kept="")
# The last one, once all hours of the day are complete.
CHECK_DAY = _CHECK.format(
    is_complete=DAY_IS_COMPLETE,
    kept=""", kept AS (
    INSERT INTO checked_days (day, changes) SELECT %(day)s, %(changes)s FROM checked WHERE is_complete
    ON CONFLICT (day) DO UPDATE SET changes = excluded.changes
)""",
)
CHECKED = "SELECT day, changes FROM checked_days"
FORGET_CHECKED = "DELETE FROM checked_days WHERE day <> ALL(%s)"
HAVE_AGGREGATES = "SELECT DISTINCT bucket FROM {days} WHERE bucket = ANY(%s)"
# From the hours in which the aggregates have readings of each sensor, to the latest of them by the index.
FIND_LATEST = f"""
WITH hours AS (
    SELECT sensor_id, max(bucket) AS hour FROM readings_1h
    WHERE bucket >= %(start)s AND bucket < %(end)s AND sensor_id > %(after)s
    GROUP BY sensor_id ORDER BY sensor_id LIMIT %(limit)s
), found AS (
    {INSERT_LATEST}
    SELECT {qualified("r", LATEST_SCHEMA.names)}
    FROM hours
    JOIN sensors s ON s.id = hours.sensor_id
    LEFT JOIN latest_readings known ON known.sensor_id = hours.sensor_id
    CROSS JOIN LATERAL (
        SELECT * FROM readings
        WHERE sensor_id = hours.sensor_id AND time >= hours.hour AND time < hours.hour + interval '1 hour'
            AND time >= %(start)s AND time < %(end)s
        ORDER BY time DESC, id DESC LIMIT 1
    ) r
    WHERE known.time IS NULL OR known.time < hours.hour + interval '1 hour'
    ORDER BY r.sensor_id
    {REPLACE_LATEST}
    WHERE (excluded.time, excluded.id) > (l.time, l.id)
)
SELECT max(sensor_id), count(*) FROM hours
"""
NAMELESS = """
SELECT DISTINCT sensor_id FROM readings_1d
WHERE bucket >= %s AND bucket < %s AND NOT EXISTS (SELECT FROM sensors WHERE id = sensor_id)
ORDER BY sensor_id LIMIT %s
"""


@dataclass(frozen=True, slots=True)
class AggregateState:
    """The times up to which the aggregates and retention have come."""

    now: datetime
    refreshed_until: datetime
    """All readings before it are in the finest tier, but for those that flushes have recorded as late. EARLIEST: where
    the aggregates are tables, there is nothing in them.
    """
    deleted_until: datetime | None
    """Readings before it are deleted."""
    materialized_s: Mapping[str, float | None]
    """By tier: the end of its last materialized bucket, seconds since 1970 UTC. None: there is none."""

    @property
    def next_due(self) -> datetime:
        """When the first minute that is not refreshed may be."""
        return TIERS[0].floor(self.refreshed_until) + TIERS[0].width + BEHIND_NOW

    def end_of(self, tier: Tier, until: datetime) -> datetime:
        """Return how far a tier is materialized if the finest one is refreshed ``until`` then.

        It may be further if another program has refreshed it.
        """
        materialized_s = self.materialized_s.get(tier.name)
        known = tier.materialized_until(until)
        return known if materialized_s is None else max(known, EPOCH + timedelta(seconds=materialized_s))


async def state(connection: Connection, *, has_policies: bool = True) -> AggregateState:
    """Return how far the aggregates are. ``has_policies``: whether TimescaleDB may have some. Raises what the driver
    raises.
    """
    query = STATE_SQL.format(by_policy=BY_POLICY if has_policies else "NULL")
    row = await (await connection.execute(query)).fetchone()
    assert row is not None  # a SELECT without FROM has one row
    now, refreshed_until, deleted_until, materialized_s = row
    return AggregateState(now, refreshed_until or now, deleted_until, materialized_s or {})


@asynccontextmanager
async def refresh_lock(guard: Connection, *, wait: bool) -> AsyncIterator[None]:
    """Hold the lock of refreshes. A rollback, also to a savepoint, releases it.

    Raises:
        Busy: another process has it, and it is not to be waited for.
    """
    async with guard.transaction(force_rollback=True):
        await take_refresh_lock(guard, wait=wait)
        yield


async def take_refresh_lock(connection: Connection, *, wait: bool) -> None:
    """Take the lock until the transaction ends. Raises Busy if another has it, and it is not to be waited for."""
    if await (await connection.execute(LOCK if wait else TRY_LOCK)).fetchone() == (False,):
        raise Busy("another process refreshes the aggregates")


class Aggregates:
    """The work that keeps the aggregates right. Each generator yields after each piece of work.

    Args:
        database: where they are.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lengths = dict.fromkeys(TIERS, FIRST_PIECE)

    async def refresh(self, connection: Connection, guard: Connection) -> AsyncIterator[float | None]:
        """Refresh what has arrived since the last time, once the next minute is due. Raises Busy, and what the driver
        raises.
        """
        await connection.execute(COME_BACK)
        found = await self._state(connection)
        if (wait := found.next_due - found.now) > timedelta(0):
            yield wait.total_seconds()
            found = await self._state(connection)
        start, end = found.refreshed_until, TIERS[0].floor(found.now - BEHIND_NOW)
        await connection.execute(MOVE_FRONTIER, [end])
        async for pause_s in _until_flushes_have_ended(connection):
            yield pause_s
        if start == EARLIEST:
            start = min(await self._oldest(connection) or end, end)
            await connection.execute(SET_REFRESHED_UNTIL, [start, "-infinity"])
        async for _, piece_end in self._pieces(connection, guard, TIERS[0], (start, end), end):
            yield None
            for tier in TIERS[1:]:
                span = tier.materialized_until(start), tier.materialized_until(piece_end)
                async for _ in self._pieces(connection, guard, tier, span, piece_end):
                    yield None
            await _set_refreshed_until(connection, piece_end, start)
            start = piece_end
        if start < end:  # retention has deleted the rest
            await _set_refreshed_until(connection, end, start)

    async def refresh_late(self, connection: Connection, guard: Connection) -> AsyncIterator[None]:
        """Refresh the times of late readings. A span that can't be refreshed holds up no other.

        Raises:
            Busy: another process refreshes.
            DatabaseUnavailable: some spans can't be refreshed; they are tried again the next time.
            psycopg.Error: what the driver raises.
        """
        until = (await self._state(connection)).refreshed_until
        last: tuple[object, object] = ("-infinity", "-infinity")
        rows: list[tuple[datetime, datetime, list[int]]] | None = None
        failure: DatabaseUnavailable | None = None
        while rows is None or len(rows) == STALE_SPANS:
            rows = await (await connection.execute(STALE, [*last, until])).fetchall()
            for start, end in merged((starts_at, ends_at) for starts_at, ends_at, _ in rows):
                try:
                    for tier in TIERS:
                        async for _ in self._pieces(connection, guard, tier, (start, end), until):
                            yield
                except psycopg.Error as error:
                    if connection.closed or guard.closed or isinstance(error, LockNotAvailable):
                        raise
                    failure = DatabaseUnavailable(f"from {start} to {end}: {first_line(error)}")
                    logger.warning("can't refresh the aggregates %s", failure)
                else:
                    of_span = (ids for starts_at, ends_at, ids in rows if start <= starts_at and ends_at <= end)
                    await connection.execute(FORGET, [[id_ for ids in of_span for id_ in ids]])
            last = rows[-1][:2] if rows else last
        if failure is not None:
            raise failure

    async def refresh_changed(self, connection: Connection, guard: Connection) -> AsyncIterator[None]:
        """Refresh what TimescaleDB knows to have changed of the last days. Raises Busy, and what the driver raises."""
        until = (await self._state(connection)).refreshed_until
        for tier in TIERS:
            arguments = {"tier": tier.name, "start": _checked_until(until), "end": until}
            changes: list[Span] = await (await connection.execute(CHANGES, arguments)).fetchall()
            buckets = merged((tier.floor(first), tier.ceil(last)) for first, last in changes)
            for span in with_few_gaps(buckets, CHANGED_SPANS):
                async for _ in self._pieces(connection, guard, tier, span, until):
                    yield
        async for _ in find_latest(connection, _checked_until(until), TIERS[1].materialized_until(until)):
            yield

    async def check_days(self, connection: Connection, guard: Connection) -> AsyncIterator[None]:
        """Refresh the older days whose aggregates differ from their readings, and look for unknown latest readings.

        Raises:
            Busy: another process refreshes.
            psycopg.Error: what the driver raises.
        """
        found: list[Span] = []
        async for day in self._incomplete_days(connection):
            if day is not None:
                found.append(day)
            yield
        found.sort()
        if found:
            logger.warning(
                "refreshing the aggregates of %d days from %s to %s: they differ from the readings, which another "
                "program has written or changed",
                len(found),
                f"{found[0][0]:%Y-%m-%d}",
                f"{found[-1][0]:%Y-%m-%d}",
            )
        until = (await self._state(connection)).refreshed_until
        for start, end in merged(found):
            for tier in TIERS:
                async for _ in self._pieces(connection, guard, tier, (start, end), until):
                    yield
            async for _ in find_latest(connection, start, end):
                yield
            if ids := await nameless_sensors(connection, start, end):
                logger.warning(nameless_message(ids))

    async def _incomplete_days(self, connection: Connection) -> AsyncIterator[Span | None]:
        """Add the days whose aggregates differ from their readings to the stale ranges, and yield them.

        Yields None after each other piece of the comparison.
        """
        known_state = await self._state(connection)
        arguments = {
            "tiers": [tier.name for tier in TIERS],
            "start": known_state.deleted_until,
            "end": _checked_until(known_state.refreshed_until),
        }
        changed: dict[datetime, str] = dict(await (await connection.execute(CHANGED_DAYS, arguments)).fetchall())
        await connection.execute(FORGET_CHECKED, [list(changed)])
        checked: dict[datetime, str] = dict(await (await connection.execute(CHECKED)).fetchall())
        days = [day for day, changes in changed.items() if checked.get(day) != changes]
        hours, of_days = [await _materialized(connection, tier) for tier in TIERS[1:]]
        has_aggregates = HAVE_AGGREGATES.format(days=of_days)
        known = {day for (day,) in await (await connection.execute(has_aggregates, [days])).fetchall()}
        clock = asyncio.get_running_loop().time
        left_s = CHECK_S
        # All days without any aggregates come first: a refresh of later ones would hide them from queries.
        for day in sorted(days, key=lambda day: (day in known, day in checked, day)):
            if day in known and left_s <= 0:
                break
            span = day, day + TIERS[-1].width
            comparison = self._compare(connection, span, changed[day], hours=hours, days=of_days)
            began = clock()
            async for is_complete in comparison:
                left_s -= clock() - began
                yield None if is_complete else span
                began = clock()

    async def _compare(
        self, connection: Connection, day: Span, changes: str, *, hours: str, days: str
    ) -> AsyncIterator[bool]:
        """Compare a day with its readings, and yield for each piece whether they agree. End at the first difference,
        and where late readings of the day are still to be refreshed.
        """
        width = TIERS[1].width
        start, day_end = day
        length = day_end - start
        of_day = {"day": start, "day_end": day_end, "changes": changes}
        while start < day_end:
            longest = min(start + length, day_end)
            piece_end, _ = await self._fitting(connection, None, width, (start, longest))
            length = 2 * (piece_end - start)
            # Planned with these times, never with parameters: PostgreSQL would lock every chunk.
            arguments = {**of_day, "start": start, "end": piece_end}
            row = await (await connection.execute(CHECK_HOURS.format(hours=hours), arguments, prepare=False)).fetchone()
            if row is None:
                return
            yield row[0]
            if not row[0]:
                return
            start = piece_end
        check = CHECK_DAY.format(hours=hours, days=days)
        row = await (await connection.execute(check, of_day, prepare=False)).fetchone()
        if row is not None:
            yield row[0]

    async def recompute(self, start: datetime, end: datetime, *, on_piece: Callable[[Span], None]) -> None:
        """Refresh the days of a span that have readings, whatever is known of their changes.

        One piece at a time: in between, a server that runs has its turn.

        Raises:
            DatabaseUnavailable: the rest is not refreshed.
        """
        with translate_driver_errors():
            async with (
                await self._database.connect("sensorflow refresh lock") as guard,
                await self._database.connect("sensorflow refresh") as connection,
            ):
                until = (await self._state(connection)).refreshed_until
                for first, last in merged(await self._stored_spans(connection, start, end)):
                    piece_start, piece_end = max(first, start), min(last, end)
                    for tier in TIERS:
                        span = piece_start, piece_end
                        async for piece in self._pieces(connection, guard, tier, span, until, is_forced=True):
                            if tier is TIERS[0]:
                                on_piece(piece)
                async for _ in find_latest(connection, start, end):
                    pass

    async def _stored_spans(self, connection: Connection, start: datetime, end: datetime) -> Sequence[Span]:
        """Return where a span may have readings or, in tables, buckets of readings that were deleted."""
        if not self._has_tables:
            return await (await connection.execute(CHUNKS, {"start": start, "end": end})).fetchall()
        buckets: list[tuple[datetime | None]] = await (await connection.execute(OLDEST_BUCKET)).fetchall()
        oldest = min(filter(None, (await self._oldest(connection), *buckets[0])), default=end)
        return [(oldest, end)] if oldest < end else []

    async def _oldest(self, connection: Connection) -> datetime | None:
        """Return a time that no reading is from before. None: there is no reading."""
        query = OLDEST_CHUNK if self._has_chunks else aggregate_tables.OLDEST_READING
        row = await (await connection.execute(query)).fetchone()
        assert row is not None  # an aggregate has one row
        oldest: datetime | None = row[0]
        return oldest

    async def _pieces(
        self,
        connection: Connection,
        guard: Connection,
        tier: Tier,
        span: Span,
        until: datetime,
        *,
        is_forced: bool = False,
    ) -> AsyncIterator[Span]:
        """Refresh the buckets of a span that are materialized if the finest tier is refreshed ``until`` then.

        Each piece has PIECE_ROWS at most or is one bucket, should take about a second, and is yielded. A forced refresh
        waits for another process that refreshes.
        """
        clock = asyncio.get_running_loop().time
        start, end = tier.floor(span[0]), tier.ceil(span[1])
        if start < end:
            end = min(end, (await self._state(connection)).end_of(tier, until))
        while start < end:
            async with self._refreshing(connection, guard, wait=is_forced):
                began = clock()
                # Retention may have deleted more since the last piece. While the lock is held, it deletes nothing.
                deleted_until = (await self._state(connection)).deleted_until
                start = start if deleted_until is None else max(start, tier.floor(deleted_until))
                if start >= end:
                    return
                longest = min(tier.floor(start + max(self._lengths[tier], tier.width)), end)
                piece_end, rows = await self._fitting(connection, _finer(tier), tier.width, (start, longest))
                if self._has_tables:
                    await self._recompute_table(connection, tier, (start, piece_end))
                else:
                    await connection.execute(REFRESH, [tier.name, start, piece_end, is_forced])
            took_s, length = clock() - began, piece_end - start
            if took_s > SLOW_S:
                self._lengths[tier] = max(length * (SLOW_S / took_s), tier.width)
            elif piece_end < longest:
                self._lengths[tier] = length
            elif took_s < QUICK_S and 2 * rows <= PIECE_ROWS:
                self._lengths[tier] = min(max(self._lengths[tier], 2 * length), LONGEST_PIECE)
            yield start, piece_end
            start = piece_end

    async def _fitting(
        self, connection: Connection, source: Tier | None, width: timedelta, span: Span
    ) -> tuple[datetime, int]:
        """Return where a piece ends that begins with a span and has PIECE_ROWS at most, or is one bucket wide.

        Args:
            connection: where to ask.
            source: the tier whose rows are counted. None: the readings.
            width: of the buckets.
            span: whole buckets.

        Returns:
            The end, and how many rows were counted last: 0 if none were, because the span is one bucket.
        """
        start, end = span
        rows = 0
        while end - start > width:
            rows = await self._count(connection, source, (start, end))
            if rows <= PIECE_ROWS:
                break
            end = start + max((end - start) // PIECE_PARTS // width, 1) * width
        return end, rows

    async def _count(self, connection: Connection, source: Tier | None, span: Span) -> int:
        """Return how many rows of a tier or, if None, of the readings lie in a span: PIECE_ROWS + 1 if it has more."""
        times = {"start": span[0], "end": span[1]}
        if source is not None:
            table = (
                aggregate_tables.table_of(source.name) if self._has_tables else await _materialized(connection, source)
            )
            statement = COUNT.format(source=table, time="bucket")
        elif self._has_tables:
            statement, times = aggregate_tables.count_readings(span, has_chunks=self._has_chunks)
        else:
            statement = COUNT.format(source="readings", time="time")
        arguments = {**times, "limit": PIECE_ROWS + 1}
        # Planned with these times, as a refresh is.
        row = await (await connection.execute(statement, arguments, prepare=False)).fetchone()
        assert row is not None  # an aggregate has one row
        count: int = row[0]
        return count

    @asynccontextmanager
    async def _refreshing(self, connection: Connection, guard: Connection, *, wait: bool) -> AsyncIterator[None]:
        """Hold the lock of refreshes. Raises Busy.

        The transaction that writes to a table has the lock itself. Of two that recompute the same buckets, one could
        otherwise undo what only the other has seen. A continuous aggregate is refreshed outside of a transaction.
        """
        if not self._has_tables:
            async with refresh_lock(guard, wait=wait):
                yield
            return
        async with connection.transaction():
            await take_refresh_lock(connection, wait=wait)
            yield

    async def _recompute_table(self, connection: Connection, tier: Tier, span: Span) -> None:
        statement, arguments = aggregate_tables.recompute(tier, span, has_chunks=self._has_chunks)
        await connection.execute("SET LOCAL jit = off")
        # Planned with these times: for unknown ones PostgreSQL would scan all readings.
        await connection.execute(statement, arguments, prepare=False)

    async def _state(self, connection: Connection) -> AggregateState:
        return await state(connection, has_policies=not self._has_tables)

    @property
    def _has_tables(self) -> bool:
        return self._database.edition is not None and self._database.edition.aggregate_tables

    @property
    def _has_chunks(self) -> bool:
        return self._database.edition is not None and self._database.edition.kind != "plain"


def _checked_until(refreshed_until: datetime) -> datetime:
    """Return the start of the days of which TimescaleDB's own record of changes is enough."""
    return TIERS[-1].floor(refreshed_until - CHECK_BACK)


async def _until_flushes_have_ended(connection: Connection) -> AsyncIterator[float]:
    """Yield pauses in seconds until the flushes that are under way now have ended.

    Raises Busy if one takes too long.
    """
    waited_for = await _flushes(connection)
    clock = asyncio.get_running_loop().time
    ends = clock() + FLUSH_WAIT_S
    while waited_for:
        if clock() > ends:
            raise Busy(f"a flush has not ended for {FLUSH_WAIT_S:g} s")
        yield FLUSH_POLL_S
        waited_for &= await _flushes(connection)


async def _flushes(connection: Connection) -> set[str]:
    """Return the transactions of the flushes that are under way."""
    row = await (await connection.execute(FLUSHES)).fetchone()
    assert row is not None  # an aggregate has one row
    return set(row[0])


async def _set_refreshed_until(connection: Connection, end: datetime, start: datetime) -> None:
    """Record that the aggregates are refreshed up to an end, where they were up to a start. Raises Busy."""
    if not (await connection.execute(SET_REFRESHED_UNTIL, [end, start])).rowcount:
        raise Busy("older readings than these are to be refreshed first")


def _finer(tier: Tier) -> Tier | None:
    """Return the tier that a tier is made of. None: it is made of the readings."""
    place = TIERS.index(tier)
    return TIERS[place - 1] if place else None


async def _materialized(connection: Connection, tier: Tier) -> str:
    """Return the hypertable of a continuous aggregate, quoted. Raises what the driver raises."""
    row = await (await connection.execute(MATERIALIZED, [tier.name])).fetchone()
    assert row is not None  # the edition has continuous aggregates
    name: str = row[0]
    return name


async def find_latest(connection: Connection, start: datetime, end: datetime) -> AsyncIterator[None]:
    """Bring ``latest_readings`` up to the aggregates of these hours, and yield after each piece of it.

    Raises what the driver raises.
    """
    while start < end:
        span_start = max(start, end - LATEST_SPAN)
        after, count = 0, LATEST_SENSORS
        while count == LATEST_SENSORS:
            arguments = {"start": span_start, "end": end, "after": after, "limit": LATEST_SENSORS}
            row = await (await connection.execute(FIND_LATEST, arguments, prepare=False)).fetchone()
            assert row is not None  # an aggregate has one row
            after, count = row
            yield
        end = span_start


async def nameless_sensors(connection: Connection, start: datetime, end: datetime) -> list[int]:
    """Return the first ids of sensors that have readings in these days and no name. Raises what the driver raises."""
    cursor = await connection.execute(NAMELESS, [start, end, SHOWN_IDS])
    return [sensor_id for (sensor_id,) in await cursor.fetchall()]


def nameless_message(ids: Sequence[int]) -> str:
    """Tell an operator what to do about readings of these sensors."""
    shown = ", ".join(map(str, ids)) + (" and others" if len(ids) == SHOWN_IDS else "")
    return (
        f"Readings of sensors without a name (sensor_id {shown}) are in no query by name. "
        "Give each a row: INSERT INTO sensors (id, name) OVERRIDING SYSTEM VALUE VALUES (id, 'name')."
    )
