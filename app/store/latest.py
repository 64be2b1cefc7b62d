"""``latest_readings``: the latest reading of each sensor by its own time, a few seconds behind the readings themselves.

To find it there is to ask every chunk; dashboards that show all sensors do it every few seconds. To write it in every
flush would cost more than the flush. So each process notes what it has committed, and writes the latest of it now and
then. What a process could not write before it died is found by the next start.
"""

import asyncio
import logging
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from app.errors import DatabaseAway
from app.store.arrays import key_of
from app.store.database import Database
from app.store.locks import RECOVERY_LOCK
from app.store.wire import WIRE_SCHEMA, in_order, latest_of_each_sensor

logger = logging.getLogger(__name__)

INTERVAL_S = 5.0
PAUSE_PER_WORK = 10.0
"""10,000 sensors take 15 ms of this process and 60 of PostgreSQL, 100,000 ten times as much, and are seen later."""
QUERY_TIMEOUT_S = 10.0
LEAVING_TIMEOUT_S = 2.0
RECOVERY_TIMEOUT_S = 300.0
RECOVERY_SENSORS = 500
"""Sensors that are looked up at a time when a process begins."""
COMPACT_ROWS = 100_000
"""So many noted rows more than there are sensors are reduced to the latest of each, in some 5 ms."""

NEWER = """
ON CONFLICT (sensor_id) DO UPDATE
SET (time, id, temperature, humidity, pressure)
    = (excluded.time, excluded.id, excluded.temperature, excluded.humidity, excluded.pressure)
WHERE (excluded.time, excluded.id) > (l.time, l.id)
"""
# In the order of the sensors: two processes that write the same in two orders would deadlock.
WRITE = f"""
INSERT INTO latest_readings AS l (sensor_id, time, id, temperature, humidity, pressure)
SELECT n.sensor_id, TIMESTAMPTZ 'epoch' + n.time_us * INTERVAL '1 microsecond', n.id, temperature, humidity, pressure
FROM unnest(%s::integer[], %s::bigint[], %s::bigint[], %s::float8[], %s::float8[], %s::float8[])
    AS n (sensor_id, time_us, id, temperature, humidity, pressure)
JOIN sensors ON sensors.id = n.sensor_id
ORDER BY n.sensor_id
{NEWER}
"""
RECOVER = f"""
WITH part AS (
    SELECT id FROM sensors WHERE id > %(after)s AND (SELECT pg_try_advisory_xact_lock({RECOVERY_LOCK}))
    ORDER BY id LIMIT {RECOVERY_SENSORS}
), found AS (
    INSERT INTO latest_readings AS l (sensor_id, time, id, temperature, humidity, pressure)
    SELECT part.id, r.time, r.id, r.temperature, r.humidity, r.pressure
    FROM part
    LEFT JOIN latest_readings known ON known.sensor_id = part.id
    CROSS JOIN LATERAL (
        SELECT * FROM readings
        WHERE sensor_id = part.id AND time >= coalesce(known.time, '-infinity')
        ORDER BY time DESC, id DESC LIMIT 1
    ) r
    ORDER BY part.id
    {NEWER}
)
SELECT max(id) FROM part
"""


class Noted(NamedTuple):
    """A reading that came alone."""

    sensor_id: int
    time: int
    """Microseconds since 1970 UTC."""
    id: int
    temperature: float | None
    humidity: float | None
    pressure: float | None


SCHEMA = pa.schema([WIRE_SCHEMA.field(name) for name in Noted._fields])


class LatestRows:
    """The latest of many rows, each sensor's, without much work for any: pure."""

    def __init__(self) -> None:
        self._batches: dict[bytes, pa.RecordBatch] = {}
        """By their sensors. The same ones again take 0.01 µs a row, and sorting them would take 0.05."""
        self._rows = 0
        self._compact_at = COMPACT_ROWS

    def note(self, rows: pa.RecordBatch) -> None:
        """Takes rows with the columns of SCHEMA, one of a sensor, by sensor; or none."""
        if not rows.num_rows:
            return
        sensors = key_of(rows["sensor_id"])
        if (known := self._batches.get(sensors)) is not None:
            self._batches[sensors] = _later_of_each(known, rows)
            return
        self._batches[sensors] = rows
        self._rows += rows.num_rows
        if self._rows > self._compact_at:
            latest = self.latest()
            self._batches, self._rows = {key_of(latest["sensor_id"]): latest}, latest.num_rows
            self._compact_at = self._rows + COMPACT_ROWS

    def batches(self) -> Collection[pa.RecordBatch]:
        """What has been noted, and may be among the latest."""
        return self._batches.values()

    def latest(self) -> pa.RecordBatch:
        """The latest row of each sensor, by sensor. There must be one: ``batches`` tells."""
        return latest_of_each_sensor(in_order([*self._batches.values()]))


def _later_of_each(known: pa.RecordBatch, rows: pa.RecordBatch) -> pa.RecordBatch:
    """Of two batches of the same sensors, each sensor's later row. Its column of sensors is the very same one: of equal
    ones not all have the same key.
    """
    is_later = pc.or_(
        pc.greater(rows["time"], known["time"]),
        pc.and_(pc.equal(rows["time"], known["time"]), pc.greater(rows["id"], known["id"])),
    )
    sensors, *others = zip(rows.columns, known.columns, strict=True)
    return pa.RecordBatch.from_arrays([sensors[1], *(pc.if_else(is_later, *both) for both in others)], schema=SCHEMA)


class LatestReadings:
    """Notes what this process has committed, and keeps the table up to it."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._noted: dict[int, Noted] = {}
        self.unwritten = LatestRows()
        """Of the readings that did not come alone."""
        self._is_stuck = False

    def note(self, readings: Iterable[Noted], rows: pa.RecordBatch | None) -> None:
        """Takes note of committed readings: such as came alone, and of others each sensor's latest, by sensor."""
        noted = self._noted
        for reading in readings:
            known = noted.get(reading.sensor_id)
            if known is None or reading[1:3] > known[1:3]:
                noted[reading.sensor_id] = reading
        if rows is not None:
            self.unwritten.note(rows.select(SCHEMA.names))

    async def run(self) -> None:
        """Works until cancelled; while the database is away what is noted waits."""
        await self.recover()
        clock = asyncio.get_running_loop().time
        pause_s = INTERVAL_S
        while True:
            await asyncio.sleep(pause_s)
            began = clock()
            try:
                await self.write()
            except DatabaseAway as error:
                logger.debug("the latest readings wait to be written: %s", error)
                pause_s = INTERVAL_S
            else:
                pause_s = max(INTERVAL_S, PAUSE_PER_WORK * (clock() - began))

    async def leave(self) -> None:
        """Writes what a process that ends has noted, unless the database hangs: the next start finds it too."""
        if not self._is_stuck:
            with suppress(DatabaseAway):
                await self.write(timeout_s=LEAVING_TIMEOUT_S)

    async def write(self, *, timeout_s: float = QUERY_TIMEOUT_S) -> None:
        """Writes what has been noted. Raises DatabaseAway; it is still noted then."""
        noted, self._noted = self._noted, {}
        rows, self.unwritten = self.unwritten, LatestRows()
        if not noted and not rows.batches():
            return
        try:
            writes = await asyncio.to_thread(lambda: list(_writes(noted.values(), rows)))
            async with self._database.borrow(timeout_s=timeout_s) as connection:
                for columns in writes:
                    await connection.execute(WRITE, columns)
        except BaseException:
            for batch in rows.batches():
                self.unwritten.note(batch)
            self.note(noted.values(), None)
            self._is_stuck = True
            raise
        self._is_stuck = False

    async def recover(self) -> None:
        """Looks up what a process may have committed, and not written before it was killed."""
        after: int | None = 0
        while after is not None:
            try:
                async with self._database.borrow(timeout_s=RECOVERY_TIMEOUT_S) as connection:
                    row = await (await connection.execute(RECOVER, {"after": after})).fetchone()
                assert row is not None  # an aggregate has one row
                (after,) = row
            except DatabaseAway as error:
                logger.debug("the latest readings wait to be looked up: %s", error)
                await asyncio.sleep(INTERVAL_S)


def _writes(noted: Collection[Noted], rows: LatestRows) -> Iterator[list[str]]:
    """The columns of each statement, as PostgreSQL writes arrays: of readings that came alone, and of the latest rows.

    The former don't become Arrow: to make columns of Python's values it imports pandas, if there is one, for 0.3 s.
    """
    if noted:
        yield [_array(column) for column in zip(*noted, strict=True)]
    if rows.batches():
        latest = rows.latest()
        columns = (latest["sensor_id"], latest["time"].cast(pa.int64()), *latest.columns[2:])
        yield [_array(column.to_pylist()) for column in columns]


def _array(values: Iterable[float | None]) -> str:
    return f"{{{','.join('NULL' if value is None else repr(value) for value in values)}}}"
