"""Readings beyond their sensor's limits: found in each flush, and logged in its own transaction.

A sensor's latest reading says nothing of the 59 that came with it. So every committed row is held against the limits,
and counts once, as the ledger has it; a row that PostgreSQL refuses does not.

The limits of all sensors are columns in memory. They are loaded again when a trigger of the table says that it has
changed, which is asked every CHECK_INTERVAL_S, and at once by the process that changed one.

A lock on the log holds no reading up. What it keeps out is held in memory, and logged once the lock is gone.
"""

import asyncio
import logging
import struct
from array import array
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import TypeAlias

import pyarrow as pa
import pyarrow.compute as pc
from pgpq import ArrowToPostgresBinaryEncoder

from app.errors import DatabaseUnavailable
from app.schema import METRIC_NAMES
from app.store.copy import begin_copy, copy_rows
from app.store.database import Connection, Database
from app.store.latest import LatestRow
from app.store.wire import HEADER, POSTGRES_EPOCH_US, WIRE_SCHEMA, array_of, latest_of_each_sensor, words_of

logger = logging.getLogger(__name__)

CHECK_INTERVAL_S = 2.0
QUERY_TIMEOUT_S = 30.0
"""The limits of a million sensors take about a second."""

MAX_SINGLE_SENSORS = 100_000
Bounds: TypeAlias = tuple[int, float, float]
"""The position of a metric among METRIC_NAMES, and its lower and upper limit."""
VERSION = "SELECT value FROM server_settings WHERE name = 'limits_version'"
_BOUNDS = [
    f"coalesce(max({bound}) FILTER (WHERE metric = '{metric}'), '{none}') AS {metric}_{bound}"
    for metric in METRIC_NAMES
    for bound, none in (("lower", "-Infinity"), ("upper", "Infinity"))
]
_VALUES = [
    f"string_agg(float8send({metric}_{bound}), '' ORDER BY sensor_id)"
    for metric in METRIC_NAMES
    for bound in ("lower", "upper")
]
LOAD = f"""
SELECT string_agg(int8send(sensor_id), '' ORDER BY sensor_id), {", ".join(_VALUES)}
FROM (SELECT sensor_id, {", ".join(_BOUNDS)} FROM sensor_limits GROUP BY sensor_id) AS limits
"""

LOG_LOCK_TIMEOUT_S = 0.1
"""How long a flush waits for a lock on the log."""
LOG_VIOLATIONS = (
    f"SAVEPOINT log; SET LOCAL lock_timeout = {LOG_LOCK_TIMEOUT_S * 1_000:.0f}; "
    "COPY limit_violation_log (sensor_id, metric, is_above, readings, first_time, last_time, time, value, bound)"
    " FROM STDIN (FORMAT BINARY)"
)
ROLLBACK_LOG = "ROLLBACK TO log"
LEAVING_TIMEOUT_S = 2.0
MAX_HELD_BYTES = 16 << 20
"""Bytes of violations that could not be logged yet; some 150,000 rows."""
KEPT_DAYS = 90
MAX_ROWS = 1_000_000
"""Rows of the log; some 200 MB."""
PRUNED_ROWS = 20_000
PRUNE = f"""
DELETE FROM limit_violation_log WHERE id IN (
    SELECT id FROM limit_violation_log
    WHERE id <= greatest(
        (SELECT max(id) - {MAX_ROWS} FROM limit_violation_log),
        (
            SELECT id FROM limit_violation_log WHERE arrived_at < now() - interval '{KEPT_DAYS} days'
            ORDER BY arrived_at DESC, id DESC LIMIT 1
        )
    )
    ORDER BY id LIMIT {PRUNED_ROWS}
)
"""

SCHEMA = pa.schema(
    [
        ("sensor_id", pa.int64()),
        ("metric", pa.string()),
        ("is_above", pa.bool_()),
        ("readings", pa.int64()),
        ("first_time", WIRE_SCHEMA.field("time").type),
        ("last_time", WIRE_SCHEMA.field("time").type),
        ("time", WIRE_SCHEMA.field("time").type),
        ("value", pa.float64()),
        ("bound", pa.float64()),
    ]
)
"""A row for each sensor, metric and side of a flush: how many readings were beyond, and the furthest of them."""

_KEYS = struct.Struct("!hiqi")
_REST = struct.Struct("!i?iqiqiqiqidid")


@dataclass(frozen=True, slots=True)
class LimitSnapshot:
    """The limits of all sensors that have any: pure."""

    sensor_ids: "array[int]"
    """Ascending."""
    lower: Sequence["array[float]"]
    """For each of METRIC_NAMES, in the order of the sensors; -inf where there is none."""
    upper: Sequence["array[float]"]
    """Upper limits; inf where there is none."""
    of_single_sensors: dict[int, Sequence[Bounds]] = field(default_factory=dict)
    """Limits of those whose readings have come alone: to look into the columns takes 2.2 µs a reading, and into this
    1.2.
    """

    def violations(self, readings: Iterable[LatestRow], rows: pa.RecordBatch | None) -> list[bytes]:
        """Return the rows of the log as a binary COPY in pieces. None if all readings are within their limits.

        Args:
            readings: those that came alone.
            rows: the others, with WIRE_SCHEMA and by sensor.
        """
        if not self.sensor_ids:
            return []
        packed = self._packed(readings)
        found = [] if rows is None else list(self._found(rows))
        if not packed and not found:
            return []
        encoder = ArrowToPostgresBinaryEncoder(SCHEMA)
        encoder.write_header()
        encoded = [encoder.write_batch(batch) for batch in found]
        return [HEADER, *packed, *encoded, encoder.finish()]

    def _packed(self, readings: Iterable[LatestRow]) -> list[bytes]:
        known = self.of_single_sensors
        packed = []
        for reading in readings:
            bounds = known.get(reading[0])
            if bounds is None:
                bounds = self._bounds_of(reading[0])
            for index, lower, upper in bounds:
                value = reading.values[index]
                if value is not None and not lower <= value <= upper:
                    packed.append(_row(reading, METRIC_NAMES[index], value, lower, upper))
        return packed

    def _bounds_of(self, sensor_id: int) -> Sequence[Bounds]:
        found: list[Bounds] = []
        index = bisect_left(self.sensor_ids, sensor_id)
        if index < len(self.sensor_ids) and self.sensor_ids[index] == sensor_id:
            columns = zip(self.lower, self.upper, strict=True)
            each = ((which, lower[index], upper[index]) for which, (lower, upper) in enumerate(columns))
            found += (bounds for bounds in each if bounds[1:] != (-inf, inf))
        if len(self.of_single_sensors) >= MAX_SINGLE_SENSORS:
            self.of_single_sensors.clear()
        self.of_single_sensors[sensor_id] = found
        return found

    def _found(self, rows: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        """Find violations, looking the limits up once for each run of a sensor's rows: 10,000 rows of 1,000 sensors
        take 0.25 ms.
        """
        runs = pc.run_end_encode(rows["sensor_id"])
        known, sensor_ids = array_of(self.sensor_ids, pa.int64()), runs.values.cast(pa.int64())
        positions = pc.search_sorted(known, sensor_ids)
        positions = pc.if_else(pc.less(positions, len(known)), positions, None)
        positions = pc.if_else(pc.equal(known.take(positions), sensor_ids), positions, None)
        if positions.null_count == len(positions):
            return
        for metric, lower, upper in zip(METRIC_NAMES, self.lower, self.upper, strict=True):
            for bounds, is_above in ((lower, False), (upper, True)):
                of_runs = array_of(bounds, pa.float64()).take(positions)
                bound = pc.run_end_decode(pa.RunEndEncodedArray.from_arrays(runs.run_ends, of_runs))
                is_beyond = (pc.greater if is_above else pc.less)(rows[metric], bound)
                if is_beyond.true_count:
                    columns = {"sensor_id": rows["sensor_id"].cast(pa.int64()), "time": rows["time"]}
                    columns |= {"value": rows[metric], "bound": bound}
                    beyond = pa.RecordBatch.from_pydict(columns).filter(is_beyond)
                    yield _summary(beyond, metric, is_above=is_above)


NO_LIMITS = LimitSnapshot(array("q"), [array("d")] * len(METRIC_NAMES), [array("d")] * len(METRIC_NAMES))


def _row(reading: LatestRow, metric: str, value: float, lower: float, upper: float) -> bytes:
    """Return a row of the log for a value of a reading that came alone."""
    name, is_above, time = metric.encode(), value > upper, reading.time - POSTGRES_EPOCH_US
    keys: bytes = _KEYS.pack(len(SCHEMA), 8, reading.sensor_id, len(name))
    bound = upper if is_above else lower
    return keys + name + _REST.pack(1, is_above, 8, 1, 8, time, 8, time, 8, time, 8, value, 8, bound)


def _summary(beyond: pa.RecordBatch, metric: str, *, is_above: bool) -> pa.RecordBatch:
    """Return a row with SCHEMA for each sensor, of rows by sensor."""
    furthest = "max" if is_above else "min"
    grouped = pa.table(beyond).group_by("sensor_id", use_threads=False)  # in the order of the sensors
    summed = grouped.aggregate(
        [("time", "count"), ("time", "min"), ("time", "max"), ("value", furthest), ("bound", "min")]
    ).combine_chunks()
    values = summed[f"value_{furthest}"].combine_chunks()
    runs = pc.run_end_encode(beyond["sensor_id"])
    of_rows = pc.run_end_decode(pa.RunEndEncodedArray.from_arrays(runs.run_ends, values))
    furthest_rows = latest_of_each_sensor(beyond.filter(pc.equal(beyond["value"], of_rows)))
    columns = [
        furthest_rows["sensor_id"],
        pa.repeat(metric, len(values)),
        pa.repeat(is_above, len(values)),
        *(summed[name].combine_chunks() for name in ("time_count", "time_min", "time_max")),
        furthest_rows["time"],
        values,
        summed["bound_min"].combine_chunks(),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)


class SensorLimits:
    """The limits in a database, as they were a moment ago."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._snapshot: LimitSnapshot | None = None
        self._version: str | None = None
        self._unwritten: deque[Sequence[bytes]] = deque()
        self._held_bytes = 0

    async def current(self) -> LimitSnapshot:
        """Return the limits that hold. Raises DatabaseUnavailable: they are not known yet, and the database can't be
        asked.
        """
        if self._snapshot is None:
            await self.check()
        assert self._snapshot is not None  # it has just been loaded
        return self._snapshot

    async def run(self) -> None:
        """Look for changes until cancelled. Skip a turn if the database is unavailable."""
        while True:
            await asyncio.sleep(CHECK_INTERVAL_S)
            try:
                await self.check()
                await self.log_held()
            except DatabaseUnavailable as error:
                logger.debug("can't look up the limits yet: %s", error)

    async def check(self) -> None:
        """Load the limits if they are not those that are known. Raises DatabaseUnavailable."""
        async with self._database.connection(timeout_s=QUERY_TIMEOUT_S) as connection:
            row = await (await connection.execute(VERSION)).fetchone()
            version = None if row is None else row[0]
            if self._snapshot is not None and version == self._version:
                return
            values = await (await connection.execute(LOAD, binary=True)).fetchone()
        assert values is not None  # an aggregate has one row
        self._snapshot = await asyncio.to_thread(_snapshot, values)
        self._version = version

    def hold(self, violations: Sequence[bytes]) -> None:
        """Hold the violations of a committed flush while the log is locked. If there are too many, drop them."""
        if not self._unwritten:
            logger.warning("limit_violation_log is locked: violations are held in memory until it is free")
        size_bytes = sum(map(len, violations))
        if self._held_bytes + size_bytes > MAX_HELD_BYTES:
            logger.error("limit_violation_log is still locked, and no more can be held: violations are not logged")
            return
        self._unwritten.append(violations)
        self._held_bytes += size_bytes

    async def log_held(self) -> None:
        """Log the violations that are held. Raises DatabaseUnavailable; those that are not known to be logged are still
        held then.
        """
        while self._unwritten:
            violations = self._unwritten[0]
            async with self._database.connection(timeout_s=QUERY_TIMEOUT_S) as connection, connection.transaction():
                await log_violations(connection, violations)
            self._unwritten.popleft()
            self._held_bytes -= sum(map(len, violations))

    async def leave(self) -> None:
        """Log what is held, or say that it is lost."""
        try:
            async with asyncio.timeout(LEAVING_TIMEOUT_S):
                await self.log_held()
        except (DatabaseUnavailable, TimeoutError) as error:
            logger.error("the violations of %d flushes are not logged: %s", len(self._unwritten), error)


async def log_violations(connection: Connection, violations: Sequence[bytes]) -> None:
    """Log violations as ``LimitSnapshot.violations`` gives them, under a savepoint of the caller's transaction.

    Raises:
        LockNotAvailable: the log is locked; the transaction stands as before once it is rolled back to the savepoint.
        psycopg.Error: what the driver raises.
    """
    await connection.wait(begin_copy(connection.pgconn, LOG_VIOLATIONS.encode()))
    await connection.wait(copy_rows(connection.pgconn, violations))


async def prune(connection: Connection) -> bool:
    """Delete some of the log's rows that are too old or too many. Return whether there may be more. Raises what the
    driver raises.
    """
    return (await connection.execute(PRUNE)).rowcount == PRUNED_ROWS


def _snapshot(values: Sequence[bytes | None]) -> LimitSnapshot:
    sensor_ids, *bounds = values
    if sensor_ids is None:
        return NO_LIMITS
    columns = [array("d", words_of(bound or b"").tobytes()) for bound in bounds]
    return LimitSnapshot(words_of(sensor_ids), columns[::2], columns[1::2])
