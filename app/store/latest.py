"""``latest_readings``: the latest reading of each sensor by its own time, a few seconds behind the readings themselves.

To find it there is to ask every chunk; dashboards that show all sensors do it every few seconds. To write it in every
flush would cost more than the flush. So each process records what it has committed, and writes the latest now and
then, in pieces: one that fails leaves those before it done, and the next is smaller. What a process could not write
before it died is found by the next start, some sensors and some chunks at a time.

A reading from beyond the horizon, which is as far ahead as readings may lie, was stored while a clock was wrong. Any
other reading of its sensor takes its place.
"""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
from psycopg import sql

from app.errors import DatabaseUnavailable
from app.schema import METRIC_COLUMNS, METRIC_FIELDS, METRICS, qualified
from app.store.arrays import array_fingerprint
from app.store.database import Connection, Database
from app.store.locks import RECOVERY_LOCK
from app.store.tiers import moment
from app.store.wire import WIRE_SCHEMA, in_order, latest_of_each_sensor

logger = logging.getLogger(__name__)

INTERVAL_S = 5.0
PAUSE_PER_WORK = 10.0
"""10,000 sensors take 15 ms of this process and 60 of PostgreSQL, 100,000 ten times as much, and are seen later."""
LONGEST_PAUSE_S = 60.0
QUERY_TIMEOUT_S = 10.0
LEAVING_TIMEOUT_S = 2.0
BEHIND_S = 120.0
"""When what is recorded has waited for so long, the log says so. With a million sensors it is 75 s at most."""
PIECE_ROWS = 20_000
MIN_PIECE_ROWS = 100
SINGLES = 20_000
"""Readings that came alone are Python objects of some 400 bytes each; so many become columns, of 52."""
RECOVERY_SENSORS = 500
"""Sensors that are looked up at a time when a process begins."""
RECOVERY_CHUNKS = 8
"""Chunks in which they are looked up at a time: each takes up to four of the locks that all of PostgreSQL's sessions
share.
"""
RECOVERY_FAILURES = 3
"""So many in a row are told."""
COMPACT_ROWS = 100_000
"""So many recorded rows more than there are sensors are reduced to the latest of each, in some 5 ms."""

SCHEMA = pa.schema([*(WIRE_SCHEMA.field(name) for name in ("sensor_id", "time", "id")), *METRIC_FIELDS])
"""The columns of ``latest_readings``."""
_REPLACED = SCHEMA.names[1:]

INSERT_LATEST = f"INSERT INTO latest_readings AS l ({', '.join(SCHEMA.names)})"
REPLACE_LATEST = (
    f"ON CONFLICT (sensor_id) DO UPDATE SET ({', '.join(_REPLACED)}) = ({qualified('excluded', _REPLACED)})"
)
NEWER = f"""
{REPLACE_LATEST}
WHERE (excluded.time <= {{horizon}}, excluded.time, excluded.id) > (l.time <= {{horizon}}, l.time, l.id)
"""
# In the order of the sensors: two processes that write the same in two orders would deadlock.
WRITE = f"""
{INSERT_LATEST}
SELECT n.sensor_id, TIMESTAMPTZ 'epoch' + n.time_us * INTERVAL '1 microsecond', n.id, {qualified("n")}
FROM unnest(
    %(sensor_id)s::integer[], %(time)s::bigint[], %(id)s::bigint[],
    {", ".join(f"%({metric.name})s::{metric.sql_type}[]" for metric in METRICS.values())}
) AS n (sensor_id, time_us, id, {METRIC_COLUMNS})
JOIN sensors ON sensors.id = n.sensor_id
ORDER BY n.sensor_id
{NEWER.format(horizon="%(horizon)s::timestamptz")}
"""
CHUNK_STARTS = """
SELECT range_start FROM timescaledb_information.chunks
WHERE hypertable_schema = current_schema AND hypertable_name = 'readings' ORDER BY range_start DESC
"""
# It takes sensors whose latest reading may be older than the span. The span's bounds stand in the text:
# so PostgreSQL plans without the other chunks, and locks none of them.
RECOVER = sql.SQL(f"""
WITH turn AS MATERIALIZED (
    SELECT pg_try_advisory_xact_lock({RECOVERY_LOCK}) AS is_ours
), part AS (
    SELECT s.id, CASE WHEN known.time <= {{horizon}} THEN known.time ELSE '-infinity' END AS known
    FROM sensors s LEFT JOIN latest_readings known ON known.sensor_id = s.id
    WHERE s.id > {{after}} AND (known.time < {{end}} OR known.time > {{horizon}} OR known.time IS NULL)
        AND (SELECT is_ours FROM turn)
    ORDER BY s.id LIMIT {{sensors}}
), found AS (
    {INSERT_LATEST}
    SELECT part.id, {qualified("r", _REPLACED)}
    FROM part
    CROSS JOIN LATERAL (
        SELECT * FROM readings
        WHERE sensor_id = part.id
            AND time >= part.known AND time >= {{start}} AND time < {{end}} AND time <= {{horizon}}
        ORDER BY time DESC, id DESC LIMIT 1
    ) r
    ORDER BY part.id
    {NEWER}
)
SELECT (SELECT is_ours FROM turn), max(id) FROM part
""")


class LatestRow(NamedTuple):
    """A reading that came alone."""

    sensor_id: int
    time: int
    """Microseconds since 1970 UTC."""
    id: int
    values: tuple[float | None, ...]
    """In the order of METRICS."""


class LatestRows:
    """The latest of many rows, each sensor's, without much work for any: pure."""

    def __init__(self) -> None:
        self._batches: dict[bytes, pa.RecordBatch] = {}
        """By their sensors. The same ones again take 0.01 µs a row, and sorting them would take 0.05."""
        self._rows = 0
        self._compact_at = COMPACT_ROWS

    def record(self, rows: pa.RecordBatch, horizon_us: float = math.inf) -> None:
        """Take rows with the columns of SCHEMA, one per sensor, by sensor, or none."""
        if not rows.num_rows:
            return
        sensors = array_fingerprint(rows["sensor_id"])
        if (known := self._batches.get(sensors)) is not None:
            self._batches[sensors] = _later_of_each(known, rows, horizon_us)
            return
        self._batches[sensors] = rows
        self._rows += rows.num_rows
        if self._rows > self._compact_at:
            latest = self.latest(horizon_us)
            self._batches, self._rows = {array_fingerprint(latest["sensor_id"]): latest}, latest.num_rows
            self._compact_at = self._rows + COMPACT_ROWS

    def batches(self) -> Collection[pa.RecordBatch]:
        """Return the recorded rows that may be among the latest."""
        return self._batches.values()

    def latest(self, horizon_us: float = math.inf) -> pa.RecordBatch:
        """Return the latest row of each sensor, by sensor. There must be one: ``batches`` tells."""
        rows = in_order([*self._batches.values()])
        is_ahead = _is_beyond(rows, horizon_us)
        if is_ahead is None:
            return latest_of_each_sensor(rows)
        latest = latest_of_each_sensor(rows.filter(pc.invert(is_ahead)))
        ahead = latest_of_each_sensor(rows.filter(is_ahead))
        return in_order([latest, ahead.filter(pc.invert(pc.is_in(ahead["sensor_id"], latest["sensor_id"])))])


def _later_of_each(known: pa.RecordBatch, rows: pa.RecordBatch, horizon_us: float) -> pa.RecordBatch:
    """Return each sensor's later row of two batches of the same sensors. Its column of sensors is the very same one: of
    equal ones not all have the same key.
    """
    is_later = pc.or_(
        pc.greater(rows["time"], known["time"]),
        pc.and_(pc.equal(rows["time"], known["time"]), pc.greater(rows["id"], known["id"])),
    )
    known_ahead, rows_ahead = _is_beyond(known, horizon_us), _is_beyond(rows, horizon_us)
    if known_ahead is not None:
        is_later = pc.or_(is_later, known_ahead if rows_ahead is None else pc.and_not(known_ahead, rows_ahead))
    if rows_ahead is not None:
        not_ahead = pc.invert(rows_ahead)
        is_later = pc.and_(is_later, not_ahead if known_ahead is None else pc.or_(not_ahead, known_ahead))
    sensors, *others = zip(rows.columns, known.columns, strict=True)
    return pa.RecordBatch.from_arrays([sensors[1], *(pc.if_else(is_later, *both) for both in others)], schema=SCHEMA)


def _is_beyond(rows: pa.RecordBatch, horizon_us: float) -> pa.BooleanArray | None:
    """Return which rows have a time beyond the horizon. None: none has."""
    if horizon_us == math.inf:
        return None
    times = rows["time"].cast(pa.int64())
    return pc.greater(times, int(horizon_us)) if pc.greater(pc.max(times), int(horizon_us)).as_py() else None


def _rank(reading: LatestRow, horizon_us: float) -> tuple[bool, int, int]:
    """Return a key that is greater for the later of two readings."""
    return reading.time <= horizon_us, reading.time, reading.id


class LatestReadings:
    """Record the readings that this process has committed, and keep the table up to date.

    Args:
        database: where the table is.
        horizon_us: the latest time that a reading may have now, microseconds since 1970 UTC.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        database: Database,
        *,
        horizon_us: Callable[[], float] = lambda: math.inf,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._horizon_us = horizon_us
        self._clock = clock
        self._singles: dict[int, LatestRow] = {}
        self.unwritten = LatestRows()
        """Rows of the readings that did not come alone."""
        self._recorded_since: float | None = None
        self._writing_since: float | None = None
        self._piece_rows = PIECE_ROWS
        self._is_stuck = False
        self._is_behind = False
        self.recovered = asyncio.Event()
        """Set once the table has what processes before this one had committed."""

    @property
    def age_s(self) -> float:
        """The time that the oldest recorded reading has waited to be written, seconds. 0 if none does."""
        since = [moment for moment in (self._recorded_since, self._writing_since) if moment is not None]
        return self._clock() - min(since) if since else 0.0

    def record(self, readings: Iterable[LatestRow], rows: pa.RecordBatch | None) -> None:
        """Record committed readings: those that came alone, and each sensor's latest of the others, by sensor."""
        singles, horizon_us = self._singles, self._horizon_us()
        for reading in readings:
            known = singles.get(reading.sensor_id)
            if (
                known is None
                or known.time < reading.time <= horizon_us  # nearly always
                or _rank(reading, horizon_us) > _rank(known, horizon_us)
            ):
                singles[reading.sensor_id] = reading
        if len(singles) >= SINGLES:
            self.unwritten.record(_columns_of(singles.values()), horizon_us)
            self._singles = {}
        if rows is not None:
            self.unwritten.record(rows.select(SCHEMA.names), horizon_us)
        if self._recorded_since is None and (singles or self.unwritten.batches()):
            self._recorded_since = self._clock()

    async def run(self) -> None:
        """Write recorded rows until cancelled. While the database is unavailable they wait."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.recover())
            tasks.create_task(self._keep_writing())

    async def _keep_writing(self) -> None:
        pause_s = INTERVAL_S
        while True:
            await asyncio.sleep(pause_s)
            began = self._clock()
            reason = ""
            try:
                await self.write()
            except DatabaseUnavailable as error:
                reason = str(error)
                pause_s = INTERVAL_S
            else:
                pause_s = min(max(INTERVAL_S, PAUSE_PER_WORK * (self._clock() - began)), LONGEST_PAUSE_S)
            self._tell_whether_behind(reason)

    def _tell_whether_behind(self, reason: str) -> None:
        is_behind = self.age_s > BEHIND_S
        if is_behind and not self._is_behind:
            logger.warning(
                "latest_readings is %.0f s behind, and so are dashboards, alerts and the sensors' online status: %s",
                self.age_s,
                reason or "writes to it take too long",
            )
        elif self._is_behind and not is_behind:
            logger.info("latest_readings has caught up")
        self._is_behind = is_behind

    async def leave(self) -> None:
        """Write a stopping process's recorded rows, unless the database hangs. The next start finds them too."""
        if not self._is_stuck:
            with suppress(DatabaseUnavailable, TimeoutError):
                async with asyncio.timeout(LEAVING_TIMEOUT_S):
                    await self.write()

    async def write(self) -> None:
        """Write what has been recorded, in pieces. Raises DatabaseUnavailable; the rest is still recorded then."""
        unsorted, self._singles = self._singles, {}
        rows, self.unwritten = self.unwritten, LatestRows()
        if not unsorted and not rows.batches():
            return
        self._writing_since, self._recorded_since = self._recorded_since, None
        horizon_us = self._horizon_us()
        singles = sorted(unsorted.values())
        batch = None
        try:
            batch = await asyncio.to_thread(rows.latest, horizon_us) if rows.batches() else SCHEMA.empty_table()
            # Pieces go from the front, and what is left is recorded again.
            while singles:
                await self._write_piece(_arrays_of_singles(singles[: self._piece_rows]), horizon_us)
                del singles[: self._piece_rows]
            while batch.num_rows:
                piece = batch.slice(0, self._piece_rows)
                await self._write_piece(await asyncio.to_thread(_arrays_of_rows, piece), horizon_us)
                batch = batch.slice(piece.num_rows)
        except BaseException as error:
            self._piece_rows = max(self._piece_rows // 2, MIN_PIECE_ROWS)
            for unwritten in rows.batches() if batch is None else [batch]:
                self.unwritten.record(unwritten, horizon_us)
            self.record(singles, None)
            self._recorded_since = self._writing_since
            self._is_stuck = isinstance(error, Exception)  # a process that ends cancels it, and then leaves
            raise
        finally:
            self._writing_since = None
        self._piece_rows = min(2 * self._piece_rows, PIECE_ROWS)
        self._is_stuck = False

    async def _write_piece(self, columns: Sequence[str], horizon_us: float) -> None:
        arguments = {**dict(zip(SCHEMA.names, columns, strict=True)), "horizon": moment(horizon_us)}
        async with self._database.connection(timeout_s=QUERY_TIMEOUT_S) as connection:
            await connection.execute(WRITE, arguments)

    async def recover(self) -> None:
        """Look up what a process may have committed, and not written before it was killed: in the newest chunks first,
        and in older ones for the sensors of which nothing was found.
        """
        spans: list[tuple[str, str]] | None = None
        index, after, sensors, failures = 0, 0, RECOVERY_SENSORS, 0
        while spans is None or index < len(spans):
            began = self._clock()
            try:
                async with self._database.connection(timeout_s=QUERY_TIMEOUT_S) as connection:
                    if spans is None:
                        spans = await self.spans(connection)
                    statement = recovery_of(spans[index], after, sensors, self._horizon_us())
                    row = await (await connection.execute(statement, prepare=False)).fetchone()
            except DatabaseUnavailable as error:
                failures += 1
                sensors = max(sensors // 2, 1)
                log = logger.warning if failures == RECOVERY_FAILURES else logger.debug
                log("can't look up the latest readings from before the start yet: %s", error)
                await asyncio.sleep(INTERVAL_S)
                continue
            assert row is not None  # an aggregate has one row
            is_ours, last = row
            if not is_ours:  # another process is at it, and goes on to the end
                break
            index, after = (index, last) if last is not None else (index + 1, 0)
            sensors, failures = min(2 * sensors, RECOVERY_SENSORS), 0
            await asyncio.sleep(self._clock() - began)  # leave as much time to other users of the database
        self.recovered.set()

    async def spans(self, connection: Connection) -> list[tuple[str, str]]:
        """All times, in spans of RECOVERY_CHUNKS chunks, the newest first. Elsewhere there is one table to lock."""
        edition = self._database.edition
        if edition is None or edition.kind == "plain":
            return [("-infinity", "infinity")]
        starts = [str(start) for (start,) in await (await connection.execute(CHUNK_STARTS)).fetchall()]
        bounds = ["infinity", *starts[RECOVERY_CHUNKS - 1 :: RECOVERY_CHUNKS], "-infinity"]
        return list(zip(bounds[1:], bounds[:-1], strict=True))


def recovery_of(span: tuple[str, str], after: int, sensors: int, horizon_us: float) -> sql.Composed:
    """Return the statement that looks up the latest readings in a span of the next sensors after an id."""
    start, end = span
    return RECOVER.format(after=after, start=start, end=end, horizon=moment(horizon_us), sensors=sensors)


def _columns_of(singles: Collection[LatestRow]) -> pa.RecordBatch:
    """Return readings that came alone, as columns, by sensor."""
    arrays = [pa.array(column, field.type) for column, field in zip(_columns(sorted(singles)), SCHEMA, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)


def _columns(singles: Iterable[LatestRow]) -> list[tuple[Any, ...]]:
    """Return the columns of at least one row, those of SCHEMA."""
    *keys, values = zip(*singles, strict=True)
    return [*keys, *zip(*values, strict=True)]


def _arrays_of_singles(singles: Sequence[LatestRow]) -> list[str]:
    """Return a statement's columns as PostgreSQL writes arrays. Not by Arrow: to make columns of Python values it
    imports pandas, if installed, for 0.3 s.
    """
    return [_array(column) for column in _columns(singles)]


def _arrays_of_rows(rows: pa.RecordBatch) -> list[str]:
    """Do the same for rows with SCHEMA."""
    columns = (rows["sensor_id"], rows["time"].cast(pa.int64()), *rows.columns[2:])
    return [_array(column.to_pylist()) for column in columns]


def _array(values: Iterable[float | None]) -> str:
    return f"{{{','.join('NULL' if value is None else repr(value) for value in values)}}}"
