"""The bytes that a reading takes on disk at rest, by each way in which readings come.

The server's own writer stores the readings as fast as it can, in flushes of the size that each way brings. Their times
are those of a fleet that sends steadily. They lie weeks back, so that the chunks are over. Meanwhile, as often as the
rows call for it, and at the end until nothing is left to do, the server's own work converts chunks and refreshes the
aggregates. At the end it need not wait until a chunk is quiet.
"""

import asyncio
import random
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pyarrow.compute as pc

from app.ingest.batch import BATCH_SCHEMA, Batch, Sender
from app.store.aggregates import Aggregates
from app.store.columnstore import FIRST_ROWS, Columnstore
from app.store.database import Connection, Database
from app.store.latest import LatestReadings
from app.store.maintenance import SETTINGS, Pieces
from app.store.writer import Writer
from benchmarks.load import WrongAnswer
from benchmarks.peers import Postgres
from benchmarks.readings import COLUMNS, INTERVAL_MS, SEED, make_readings, sensor_name
from benchmarks.report import Stored, Way
from tests.support.writing import opened

COLUMNSTORE_ROWS_PER_SENSOR = 7
"""The default of the setting."""
SENDER = Sender("benchmark", "")
MADE_ROWS = 1_000_000
"""Readings that are made. Their values come again and again, at later times."""
MAX_LATE_MS = 5 * 3_600_000
START_AGE = timedelta(days=28)
CONVERT_EVERY_ROWS = FIRST_ROWS // 2
REPORT_S = 1.1
"""A session tells PostgreSQL how many rows it has written once a second at most."""
TIMEOUT_S = 60.0

SMALL, SPARSE, DENSE, IMPORT = 500, 4, 10, 100_000
"""Rows in a flush of single readings; rows of a sensor in a flush of bulk requests; rows in a flush of an import."""
COLUMNSTORES = """
SELECT compress_relid::text FROM _timescaledb_catalog.compression_settings
WHERE compress_relid IS NOT NULL AND relid IN (SELECT show_chunks('readings'))
"""
TIER = """
SELECT hypertable_size(format('%I.%I', materialization_hypertable_schema, materialization_hypertable_name)::regclass)
FROM timescaledb_information.continuous_aggregates WHERE view_schema = current_schema AND view_name = 'readings_1m'
"""


def ways(sensors: int) -> list[Way]:
    """Return the ways in which the readings of so many sensors come."""
    bulk = [
        Way("single readings", sensors, SMALL),
        Way(f"bulk, {SPARSE} of a sensor", sensors, min(IMPORT, SPARSE * sensors)),
        Way("the same, 1 % late", sensors, min(IMPORT, SPARSE * sensors), late=0.01),
    ]
    if DENSE * sensors <= IMPORT:
        bulk.append(Way(f"bulk, {DENSE} of a sensor", sensors, DENSE * sensors))
    return [*bulk, Way("import", sensors, IMPORT), Way("single readings, once a minute", sensors, SMALL, interval_s=60)]


def store_all(store: Postgres, way: Way, *, rows: int) -> Stored:
    """Store readings in an empty database, maintain it, and measure what it takes.

    Raises:
        WrongAnswer: readings are missing.
    """
    print(f"storage: {way.sensors:,} sensors, {way.name}", file=sys.stderr)
    stored = asyncio.run(_store_all(store.url, way, rows=rows - rows % way.flush_rows))
    if store.count() != stored.rows:
        raise WrongAnswer(f"{store.count():,} readings are stored, and {stored.rows:,} were sent")
    return stored


async def _store_all(url: str, way: Way, *, rows: int) -> Stored:
    live, final = Columnstore(), Columnstore(quiet=timedelta(0))
    writing_s = converting_s = 0.0
    clock = time.perf_counter
    async with storing(url) as (database, writer, connection):

        async def convert(keeper: Columnstore) -> bool:
            nonlocal converting_s
            began = clock()
            pieces = await do(connection, database, keeper.convert)
            converting_s += clock() - began
            return pieces > 0

        await do(connection, database, Aggregates(database).refresh)
        since_conversion = 0
        for flush in flushes(way, rows=rows):
            if has_gathered := since_conversion >= CONVERT_EVERY_ROWS:
                await asyncio.sleep(REPORT_S)
            began = clock()
            await writer.write(await writer.prepare([flush]), dict)
            writing_s += clock() - began
            since_conversion += flush.rows
            if has_gathered:
                await convert(live)
                since_conversion = 0
        written_bytes = await size(connection)
        aggregates = Aggregates(database)
        await do(connection, database, aggregates.refresh_late)
        is_first = True
        while await convert(final) or is_first:
            is_first = False
            await asyncio.sleep(REPORT_S)
        batches = 0
        for (columnstore,) in await (await connection.execute(COLUMNSTORES)).fetchall():
            batches += (await one(connection, f"SELECT count(*) FROM {columnstore}"))[0]
        (minutes_bytes,) = await one(connection, TIER)
        (minutes,) = await one(connection, "SELECT count(*) FROM readings_1m")
        return Stored(
            rows=rows,
            writing_s=writing_s,
            converting_s=converting_s,
            written_bytes=written_bytes,
            rest_bytes=await size(connection),
            batches=batches,
            minutes=minutes,
            minutes_bytes=minutes_bytes,
        )


@asynccontextmanager
async def storing(url: str) -> AsyncIterator[tuple[Database, Writer, Connection]]:
    """Open a database, and yield it with a writer and a connection for the maintenance."""
    async with opened(url) as database:
        writer = Writer(
            database,
            flush_timeout_s=TIMEOUT_S,
            lock_timeout_s=TIMEOUT_S,
            columnstore_rows_per_sensor=COLUMNSTORE_ROWS_PER_SENSOR,
            latest=LatestReadings(database),
            now_us=lambda: time.time_ns() // 1_000,
        )
        try:
            await writer.connect()
            async with await database.connect("benchmark") as connection:
                await connection.execute(SETTINGS)
                yield database, writer, connection
        finally:
            await writer.close()


async def do(connection: Connection, database: Database, work: Pieces) -> int:
    """Do all pieces of some work, and return how many there were."""
    async with await database.connect("benchmark") as guard, guard.transaction():
        return len([None async for _ in work(connection, guard)])


async def one(connection: Connection, query: str) -> tuple[int, ...]:
    """Return the row of a query that has one."""
    row: tuple[int, ...] | None = await (await connection.execute(query)).fetchone()
    assert row is not None
    return row


async def size(connection: Connection) -> int:
    """Return the bytes of the readings on disk."""
    (found,) = await one(connection, "SELECT hypertable_size('readings')")
    return found


def flushes(way: Way, *, rows: int) -> Iterator[Batch]:
    """Yield the readings of each flush. They begin at the same time of some day, however late some of them are."""
    start = datetime.now(UTC) - START_AGE
    start_ms = 1_000 * round(start.replace(hour=12, minute=0, second=0, microsecond=0).timestamp())
    made = make_readings(max(MADE_ROWS // way.sensors, 1) * way.sensors, sensors=way.sensors, start_ms=0)
    names = pa.array([sensor_name(sensor) for sensor in range(way.sensors)])
    chance = random.Random(SEED)
    for first in range(0, rows, way.flush_rows):
        yield _batch(names, _readings(made, first, way, start_ms=start_ms, chance=chance))


def _readings(made: pa.Table, first: int, way: Way, *, start_ms: int, chance: random.Random) -> pa.Table:
    """Return the readings of a flush, from the one with this number on."""
    turns, begin = divmod(first, made.num_rows)
    parts = [made.slice(begin, way.flush_rows)]
    missing = way.flush_rows - parts[0].num_rows
    turn_ms = made.num_rows // way.sensors * INTERVAL_MS
    offsets = [turns * turn_ms] * parts[0].num_rows + [(turns + 1) * turn_ms] * missing
    if missing:
        parts.append(made.slice(0, missing))
    readings = pa.concat_tables(parts).combine_chunks()
    delays = [0] * way.flush_rows
    for row in chance.sample(range(way.flush_rows), round(way.late * way.flush_rows)):
        delays[row] = chance.randint(1, MAX_LATE_MS)
    times = pc.multiply(pc.add(readings["time_ms"], pa.array(offsets, pa.int64())), way.interval_s)
    times = pc.add(pc.subtract(times, pa.array(delays, pa.int64())), start_ms)
    return readings.set_column(1, "time_ms", times)


def _batch(names: pa.StringArray, readings: pa.Table) -> Batch:
    columns = [
        readings["time_ms"].cast(pa.timestamp("ms", "UTC")).cast(pa.timestamp("us", "UTC")).combine_chunks(),
        *(readings[name].combine_chunks() for name in ("sensor", *COLUMNS)),
    ]
    return Batch(names, pa.RecordBatch.from_arrays(columns, schema=BATCH_SCHEMA), SENDER)
