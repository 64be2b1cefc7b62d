"""The aggregates of readings on TimescaleDB Community, and how they stay right.

Four things refresh them. TimescaleDB's own policies do the daily work, in windows that move with the clock. Of
readings that come too late for those the flusher writes down the hours, in the transaction of their rows
(``stale_ranges``), and they are refreshed here within seconds. And since a policy that could not run for a while begins
again at now, and would leave a hole, everything since ``aggregates_refreshed_until`` is refreshed here every few
minutes: TimescaleDB knows what of it has changed, and looks at nothing else. At last, readings may come by another way
than the flusher, or be changed: by SQL, or from a dump. Of days that TimescaleDB says have changed, now and then the
hours are held against the readings, and where they differ the day is refreshed as if all of it had come late.

No refresh reaches into the time that the next readings are of: that would hide them from queries, which take what is
above the last refreshed bucket from the readings themselves. And none reaches back to what retention has deleted: the
aggregates of it would go as well. How far that is, the database says and not the settings: what is too old by new ones
becomes aggregates before it goes, and what has gone by old ones stays gone.

On other editions the aggregates are views, always right, and nothing here runs.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta

import psycopg
from psycopg.errors import LockNotAvailable

from app.errors import DatabaseUnavailable
from app.schema import METRICS, qualified
from app.store.database import Connection, Database, first_line, translate_driver_errors
from app.store.latest import INSERT_LATEST, REPLACE_LATEST
from app.store.latest import SCHEMA as LATEST_SCHEMA
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

LOOK_INTERVAL_S = 600.0
"""How often days are looked for whose aggregates are not those of their readings."""
CHECK_S = 60.0
"""How long a look holds days against their readings at most; the others are the next one's."""
LATEST_SPAN = timedelta(days=30)
"""What is looked at at a time: a query locks every chunk that it may need."""
LATEST_SENSORS = 10_000
SHOWN_IDS = 10

# Without the columnstore's policy of readings the schema has been made anew, or the policy was removed.
REFRESH_DUE_SQL = """
SELECT EXISTS (SELECT FROM stale_ranges)
    OR NOT coalesce((SELECT value::timestamptz FROM server_settings WHERE name = 'aggregates_refreshed_until')
                    BETWEEN now() - %s AND now(), false),
       NOT EXISTS (
           SELECT FROM timescaledb_information.jobs
           WHERE (hypertable_schema, hypertable_name, proc_name) = (current_schema, 'readings', 'policy_compression')
       )
"""
# To compile it takes 12 s where the refresh itself takes 0.2.
SESSION_SETTINGS_SQL = "SET jit = off"
LOCK = "SELECT pg_advisory_xact_lock(%s)"
TRY_LOCK = "SELECT pg_try_advisory_xact_lock(%s), now()"
STALE_SPANS = 1_000
STALE = f"""
SELECT starts_at, ends_at, array_agg(id) FROM stale_ranges
WHERE (starts_at, ends_at) > (%s::timestamptz, %s::timestamptz)
GROUP BY 1, 2 ORDER BY 1, 2 LIMIT {STALE_SPANS}
"""
FORGET = "DELETE FROM stale_ranges WHERE id = ANY(%s)"
# In one go: by default it goes in steps of ten buckets, which takes 12 s for a month of minutes instead of 0.1.
REFRESH = """
CALL refresh_continuous_aggregate(
    %s::regclass, %s::timestamptz, %s::timestamptz, force => %s, options => '{"buckets_per_batch": 0}'
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
NOW_AND_DELETED_UNTIL_SQL = f"SELECT now(), ({DELETED_UNTIL})"
SET_DELETED_UNTIL = f"""
INSERT INTO server_settings (name, value)
SELECT 'readings_deleted_until', until::text FROM ({DELETED_UNTIL}) AS deleted (until) WHERE until IS NOT NULL
ON CONFLICT (name) DO UPDATE SET value = excluded.value
"""
REFRESHED_UNTIL_SQL = "SELECT value::timestamptz FROM server_settings WHERE name = 'aggregates_refreshed_until'"
SET_REFRESHED_UNTIL_SQL = """
INSERT INTO server_settings (name, value) VALUES ('aggregates_refreshed_until', %s::timestamptz::text)
ON CONFLICT (name) DO UPDATE SET value = excluded.value
"""

# What TimescaleDB's own catalogue says of the days that have readings and are older than what a sweep refreshes: spans
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
        generate_series(c.range_start, c.range_end - interval '1 microsecond', interval '1 day') AS day
    WHERE c.hypertable_schema = current_schema AND c.hypertable_name = 'readings'
        AND day >= coalesce(%(start)s::timestamptz, '-infinity') AND day < %(end)s
)
SELECT day, md5(string_agg(first || ' ' || last, ',' ORDER BY first, last))
FROM days
JOIN changed ON _timescaledb_functions.to_timestamp(last) >= day
    AND _timescaledb_functions.to_timestamp(first) < day + interval '1 day'
GROUP BY day
ORDER BY day
"""
CHUNKS = """
SELECT range_start, range_end FROM timescaledb_information.chunks
WHERE hypertable_schema = current_schema AND hypertable_name = 'readings'
    AND range_end > %(start)s AND range_start < %(end)s
ORDER BY range_start
"""
MATERIALIZED = """
SELECT format('%%I.%%I', materialization_hypertable_schema, materialization_hypertable_name)
FROM unnest(%s::text[]) WITH ORDINALITY AS tiers (name, place)
JOIN timescaledb_information.continuous_aggregates ON view_schema = current_schema AND view_name = name
ORDER BY place
"""
# Against what is materialized: above that, and so everywhere before the first refresh, the views have the readings
# themselves, and would lack them as soon as something later is refreshed. Sums differ by the order of their summands.
_FIGURES = """count({0}) AS {0}_count, min({0}) AS {0}_min, max({0}) AS {0}_max,
           coalesce(sum(least(greatest({0}, -1e290), 1e290)), 0) AS {0}_sum"""
_DIFFERS = """r.{0}_count <> a.{0}_count OR r.{0}_min IS DISTINCT FROM a.{0}_min
            OR r.{0}_max IS DISTINCT FROM a.{0}_max
            OR abs(r.{0}_sum - coalesce(a.{0}_sum, 0))
                > 1e-9 * r.{0}_count * greatest(abs(r.{0}_min), abs(r.{0}_max))"""
IS_COMPLETE = f"""
SELECT NOT EXISTS (
    SELECT FROM (
        SELECT time_bucket('1 hour', time) AS bucket, sensor_id, count(*) AS count,
               {", ".join(_FIGURES.format(metric) for metric in METRICS)}
        FROM readings WHERE time >= %(start)s AND time < %(end)s GROUP BY 1, 2
    ) r
    FULL JOIN (SELECT * FROM {{hours}} WHERE bucket >= %(start)s AND bucket < %(end)s) a USING (bucket, sensor_id)
    WHERE r.count IS DISTINCT FROM a.count OR {" OR ".join(_DIFFERS.format(metric) for metric in METRICS)}
) AND (SELECT coalesce(sum(count), 0) FROM {{hours}} WHERE bucket >= %(start)s AND bucket < %(end)s)
    = (SELECT coalesce(sum(count), 0) FROM {{days}} WHERE bucket >= %(start)s AND bucket < %(end)s)
"""
# In the same statement, so that a late flush is seen with its readings or not at all.
CHECK_DAY = f"""
WITH checked AS (
    SELECT ({IS_COMPLETE}) AS is_complete
    WHERE NOT EXISTS (SELECT FROM stale_ranges WHERE starts_at < %(end)s AND ends_at > %(start)s)
), added AS (
    INSERT INTO stale_ranges (starts_at, ends_at)
    SELECT %(start)s, %(end)s FROM checked WHERE NOT is_complete
), kept AS (
    INSERT INTO checked_days (day, changes) SELECT %(start)s, %(changes)s FROM checked WHERE is_complete
    ON CONFLICT (day) DO UPDATE SET changes = excluded.changes
)
SELECT is_complete FROM checked
"""
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


class Aggregates:
    """Keep the aggregates right beside the flusher, on a connection of its own.

    Args:
        database: where they are.
        retention: how long readings and aggregates are kept.
    """

    def __init__(self, database: Database, *, retention: Retention) -> None:
        self._database = database
        self._retention = retention
        self._piece = FIRST_PIECE
        self._has_policies = False
        self._look_at: float | None = None
        """When days are looked for next; at the first turn."""

    async def run(self) -> None:
        """Work until cancelled. Skip a turn if the database is unavailable, or busy with the same."""
        clock = asyncio.get_running_loop().time
        while True:
            began = clock()
            try:
                await self.refresh()
            except DatabaseUnavailable as error:
                self._piece = FIRST_PIECE
                # A policy that is at the same refresh is no trouble.
                is_busy = isinstance(error.__cause__, LockNotAvailable)
                logger.log(logging.DEBUG if is_busy else logging.WARNING, "can't refresh the aggregates yet: %s", error)
            await asyncio.sleep(max(INTERVAL_S, PAUSE_PER_WORK * (clock() - began)))

    async def refresh(self) -> None:
        """Refresh the aggregates that are due, unless another process is refreshing. Raises DatabaseUnavailable."""
        async with self._database.connection(timeout_s=QUERY_TIMEOUT_S) as pooled:
            row = await (await pooled.execute(REFRESH_DUE_SQL, [SWEEP_INTERVAL])).fetchone()
        assert row is not None  # a SELECT without FROM has one row
        is_due, lacks_policies = row
        self._has_policies &= not lacks_policies
        is_look = self._look_at is None or asyncio.get_running_loop().time() >= self._look_at
        if not is_due and self._has_policies and not is_look:
            return
        # A refresh can't run in a transaction, but a lock should: a pooler gives the session to the next client.
        with translate_driver_errors():
            async with await self._database.connect("sensorflow aggregates lock") as guard, guard.transaction():
                row = await (await guard.execute(TRY_LOCK, [REFRESH_LOCK])).fetchone()
                assert row is not None  # a SELECT without FROM has one row
                has_lock, now = row
                if has_lock:
                    await self._refresh_all(now, is_look=is_look)

    async def _refresh_all(self, now: datetime, *, is_look: bool) -> None:
        """Refresh the aggregates that are due, under the lock. With ``is_look``, also find days that are not right."""
        async with await self._database.connect("sensorflow aggregates") as connection:
            if not self._database.is_pooled:
                await connection.execute(SESSION_SETTINGS_SQL)
            # Before there are policies, and from the oldest on: until the last of it is refreshed, queries take what is
            # missing from the readings.
            is_all = await self._refresh_stale(connection)
            found = await self._find_incomplete(connection, now) if is_look else None
            if found:
                is_all = await self._refresh_stale(connection)
            await self._sweep(connection, now)
            if found is not None:
                await self._find_latest(connection, found, now)
                self._look_at = asyncio.get_running_loop().time() + LOOK_INTERVAL_S
            if is_all and not self._has_policies:
                await connection.execute(SET_DELETED_UNTIL)
                await apply_policies(connection, self._retention)
                self._has_policies = True

    async def _refresh_stale(self, connection: Connection) -> bool:
        """Whether all of it is refreshed. A span that can't be holds up no other, and is tried again."""
        is_all = True
        last: tuple[object, object] = ("-infinity", "-infinity")
        rows: list[tuple[datetime, datetime, list[int]]] | None = None
        while rows is None or len(rows) == STALE_SPANS:
            rows = await (await connection.execute(STALE, last)).fetchall()
            for start, end in merged((starts_at, ends_at) for starts_at, ends_at, _ in rows):
                try:
                    for piece in self._pieces(start, end):
                        await self._refresh(connection, piece)
                except psycopg.Error as error:
                    if connection.closed or isinstance(error, LockNotAvailable):
                        raise
                    logger.warning("can't refresh the aggregates from %s to %s: %s", start, end, first_line(error))
                    is_all = False
                else:
                    of_span = (ids for starts_at, ends_at, ids in rows if start <= starts_at and ends_at <= end)
                    await connection.execute(FORGET, [[id_ for ids in of_span for id_ in ids]])
            last = rows[-1][:2] if rows else last
        return is_all

    async def _sweep(self, connection: Connection, now: datetime) -> None:
        """Refresh the spans of readings that came since the last sweep and were not late then."""
        for piece in self._pieces(await _refreshed_until(connection, now) - SWEEP_BACK, now):
            await self._refresh(connection, piece)
        await connection.execute(SET_REFRESHED_UNTIL_SQL, [now])

    async def _find_incomplete(self, connection: Connection, now: datetime) -> list[Span]:
        """Add the days whose aggregates differ from their readings to the stale ranges. Return these days."""
        # The sweep refreshes what is younger.
        end = TIERS[-1].ceil(await _refreshed_until(connection, now) - SWEEP_BACK)
        _, deleted_until = await _now_and_deleted_until(connection)
        start = None if deleted_until is None else deleted_until + DROP_MARGIN
        arguments = {"tiers": [tier.name for tier in TIERS], "start": start, "end": end}
        changed: dict[datetime, str] = dict(await (await connection.execute(CHANGED_DAYS, arguments)).fetchall())
        await connection.execute(FORGET_CHECKED, [list(changed)])
        checked: dict[datetime, str] = dict(await (await connection.execute(CHECKED)).fetchall())
        days = [day for day, changes in changed.items() if checked.get(day) != changes]
        names = await (await connection.execute(MATERIALIZED, [[tier.name for tier in TIERS[1:]]])).fetchall()
        check = CHECK_DAY.format(hours=names[0][0], days=names[1][0])
        has_aggregates = HAVE_AGGREGATES.format(days=names[1][0])
        known = {day for (day,) in await (await connection.execute(has_aggregates, [days])).fetchall()}
        found: list[Span] = []
        clock = asyncio.get_running_loop().time
        ends = clock() + CHECK_S
        # All days without any aggregates come first: a sweep's refresh of later ones would hide them from queries.
        for day in sorted(days, key=lambda day: (day in known, day in checked, day)):
            if day in known and clock() > ends:
                break
            span = day, day + TIERS[-1].width
            # Planned with these times, never with parameters: PostgreSQL would lock every chunk.
            times = {"start": span[0], "end": span[1]}
            cursor = await connection.execute(check, {**times, "changes": changed[day]}, prepare=False)
            if await cursor.fetchone() == (False,):
                found.append(span)
        found.sort()
        if found:
            logger.warning(
                "refreshing the aggregates of %d days from %s to %s: they differ from the readings, which another "
                "program has written or changed",
                len(found),
                f"{found[0][0]:%Y-%m-%d}",
                f"{found[-1][0]:%Y-%m-%d}",
            )
        return found

    async def _find_latest(self, connection: Connection, found: Sequence[Span], now: datetime) -> None:
        """Look for unknown latest readings among the days found, and in what a sweep refreshes."""
        hour = TIERS[1]
        recent = hour.floor(now - SWEEP_BACK), hour.floor(now - hour.end_offset)
        for start, end in merged([*found, recent]):
            await find_latest(connection, start, end)
        for start, end in merged(found):
            if ids := await nameless_sensors(connection, start, end):
                logger.warning(nameless_message(ids))

    async def recompute(self, start: datetime, end: datetime, *, on_piece: Callable[[Span], None]) -> None:
        """Refresh the days of a span that have readings, whatever TimescaleDB knows of their changes.

        One piece at a time: in between, a server that runs has its turn.

        Raises:
            DatabaseUnavailable: the rest is not refreshed.
        """
        with translate_driver_errors():
            async with (
                await self._database.connect("sensorflow refresh lock") as guard,
                await self._database.connect("sensorflow refresh") as connection,
            ):
                if not self._database.is_pooled:
                    await connection.execute(SESSION_SETTINGS_SQL)
                spans = await (await connection.execute(CHUNKS, {"start": start, "end": end})).fetchall()
                for first, last in merged(spans):
                    for piece in self._pieces(max(first, start), min(last, end)):
                        async with guard.transaction():
                            await guard.execute(LOCK, [REFRESH_LOCK])
                            await self._refresh(connection, piece, is_forced=True)
                        on_piece(piece)
                await find_latest(connection, start, end)

    def _pieces(self, start: datetime, end: datetime) -> Iterator[Span]:
        """Split a span into pieces that each take about the intended time to refresh."""
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

    async def _refresh(self, connection: Connection, span: Span, *, is_forced: bool = False) -> None:
        now, deleted_until = await _now_and_deleted_until(connection)
        start, end = span
        if deleted_until is not None:
            start = max(start, deleted_until + DROP_MARGIN)
        for tier in TIERS:
            first, last = tier.floor(start), min(tier.ceil(end), tier.floor(now - tier.end_offset))
            if first < last:
                await connection.execute(REFRESH, [tier.name, first, last, is_forced])


async def _now_and_deleted_until(connection: Connection) -> tuple[datetime, datetime | None]:
    """Return the time, and until when readings have been deleted."""
    row = await (await connection.execute(NOW_AND_DELETED_UNTIL_SQL)).fetchone()
    assert row is not None  # a SELECT without FROM has one row
    now, deleted_until = row
    return now, deleted_until


async def _refreshed_until(connection: Connection, now: datetime) -> datetime:
    """When the last sweep was. If that was deleted by hand: now; what is older is found as what SQL has changed is."""
    row = await (await connection.execute(REFRESHED_UNTIL_SQL)).fetchone()
    return now if row is None else min(row[0], now)


async def find_latest(connection: Connection, start: datetime, end: datetime) -> None:
    """Bring ``latest_readings`` up to the aggregates of these hours. Raises what the driver raises."""
    while start < end:
        span_start = max(start, end - LATEST_SPAN)
        after, count = 0, LATEST_SENSORS
        while count == LATEST_SENSORS:
            arguments = {"start": span_start, "end": end, "after": after, "limit": LATEST_SENSORS}
            row = await (await connection.execute(FIND_LATEST, arguments, prepare=False)).fetchone()
            assert row is not None  # an aggregate has one row
            after, count = row
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
