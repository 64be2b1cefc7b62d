"""The conversion of chunks to the columnstore of TimescaleDB Community, beside those who write into them.

The first conversion of a chunk keeps writers out while it lasts: a quarter of a second for half a million readings.
From then on TimescaleDB moves new rows of the chunk's rowstore into its columnstore while others are written. So a
chunk that fills up is converted while it is small, and then whenever enough has gathered again. What is left goes when
the chunk is over and nothing has been written to it for a while.

A batch of the columnstore has up to 1,000 rows of one sensor, and a row takes the less space the more there are in it.
TimescaleDB does not join the batches of one conversion with those of the next. So as many rows gather as fill the
batches, if the memory holds them. Where batches are far from full all the same, the chunk is written anew once, when it
is over and has been quiet for long.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass
from datetime import datetime, timedelta

import psycopg
from psycopg.errors import LockNotAvailable

from app.store.database import Connection
from app.store.locks import SHORT_WAIT
from app.store.tiers import TIERS

FIRST_ROWS = 500_000
"""A chunk whose rowstore has so many rows is converted for the first time. TimescaleDB 2.29.2 takes 0.2 s for it."""
READINGS = "readings"
READING_BYTES, AGGREGATE_BYTES = 137, 241
"""What a row takes in the rowstore, with its index."""
FEWEST_ROWS = 20
"""Rows of a sensor that gather also beyond the memory. With 10 a row takes as much in the columnstore as outside."""
QUIET = timedelta(minutes=10)
"""A chunk into which nothing was written for so long is quiet."""
REWRITE_AFTER = 6
"""To write a chunk anew keeps writers out, so it must have been quiet for so many times as long."""
REWRITE_ROWS = 64_000_000
"""Larger chunks are not written anew: writers would be kept out for too long."""
SAMPLE_BYTES = 8_388_608
"""So much of a columnstore is read to learn how full its batches are."""
WASTED_BYTES = 1_048_576
"""A rowstore that is empty and larger is cut short."""

COMPRESSED, UNORDERED, PARTIAL = 1, 2, 8
"""Bits of a chunk's status."""

CHUNKS = """
WITH tables AS (
    SELECT current_schema AS schema, 'readings' AS hypertable, 'readings' AS name
    UNION ALL
    SELECT materialization_hypertable_schema, materialization_hypertable_name, view_name
    FROM timescaledb_information.continuous_aggregates
    WHERE view_schema = current_schema AND view_name = ANY(%(tiers)s)
), chunks AS (
    SELECT t.name AS table_name, format('%%I.%%I', chunk_schema, chunk_name)::regclass AS chunk, range_end
    FROM timescaledb_information.chunks c
    JOIN tables t ON (t.schema, t.hypertable) = (c.hypertable_schema, c.hypertable_name)
)
SELECT table_name, chunk::text, range_end, _timescaledb_functions.chunk_status(chunk),
       pg_stat_get_live_tuples(chunk),
       pg_stat_get_tuples_inserted(chunk) + coalesce(pg_stat_get_tuples_inserted(s.compress_relid), 0),
       pg_total_relation_size(chunk), s.compress_relid::text,
       now(), pg_size_bytes(current_setting('shared_buffers')),
       coalesce(current_setting('timescaledb.compression_batch_size_limit', true)::integer, 1000)
FROM chunks
LEFT JOIN _timescaledb_catalog.compression_settings s ON s.relid = chunk
ORDER BY range_end
"""
SENSORS = "SELECT count(DISTINCT sensor_id) FROM {}"
SIZE = "SELECT pg_relation_size(%s::regclass)"
FILL = f"""
SELECT count(*), coalesce(sum(_ts_meta_count), 0)::bigint, ({SENSORS}) FROM {{}} TABLESAMPLE SYSTEM (%s)
"""
LOCK_AS_WRITER = "LOCK TABLE ONLY {} IN ROW EXCLUSIVE MODE"
CONVERT = "CALL convert_to_columnstore(%s::regclass, if_not_columnstore => true)"
REWRITE = "CALL convert_to_columnstore(%s::regclass, recompress => true)"
# Frees what the conversion has left behind, for the next rows, and lets PostgreSQL know how many rows there are.
VACUUM_PART = "VACUUM (TRUNCATE false) {}"
VACUUM = "VACUUM {}"
REINDEX = "REINDEX TABLE {}"


@dataclass(frozen=True, slots=True)
class StoredChunk:
    """A chunk of readings or of an aggregate.

    Attributes:
        table: the readings, or the aggregate.
        name: with its schema, quoted.
        range_end: when it ends.
        status: bits, see above.
        rows: about how many its rowstore has.
        written: how many rows, and batches of the columnstore, have been written to it, ever.
        rowstore_bytes: the size of its rowstore, with the indexes.
        columnstore: the table that has its batches, like ``name``; None: it has none.
    """

    table: str
    name: str
    range_end: datetime
    status: int
    rows: int
    written: int
    rowstore_bytes: int
    columnstore: str | None


@dataclass(frozen=True, slots=True)
class State:
    """The state of the database that holds for all chunks.

    Attributes:
        now: the database's time.
        memory_bytes: what rows that are not converted yet may take: shared_buffers, which PostgreSQL advises to be a
            quarter of the memory.
        batch_rows: the most rows of a batch.
    """

    now: datetime
    memory_bytes: int
    batch_rows: int


@dataclass(frozen=True, slots=True)
class Fill:
    """An estimate of how full the batches of a chunk are.

    Attributes:
        batches: how many there are.
        rows: how many rows are in them.
        sensors: how many sensors these are of.
    """

    batches: float
    rows: float
    sensors: int


def piece_rows(table: str, sensors: int, *, memory_bytes: int, batch_rows: int) -> int:
    """Return how many rows of so many sensors gather in a chunk's rowstore before they are converted. Pure.

    Those of an aggregate gather as long as the memory holds them. A refresh for late readings moves every batch of its
    time back to the rowstore: that of a minute took 0.03 s in the rowstore, and 2.5 s for 1,000 batches of 1,000 rows.

    Args:
        table: the readings, or the aggregate.
        sensors: how many sensors the chunk has.
        memory_bytes: what the rowstore may take.
        batch_rows: the most rows of a batch.
    """
    affordable = max(memory_bytes // (READING_BYTES if table == READINGS else AGGREGATE_BYTES), FEWEST_ROWS * sensors)
    return max(FIRST_ROWS, min(batch_rows * sensors, affordable) if table == READINGS else affordable)


def is_over(chunk: StoredChunk, *, now: datetime, quiet_since: datetime, quiet: timedelta) -> bool:
    """Return whether a chunk has ended, and nothing has been written to it for a while. Pure.

    Args:
        chunk: as it is.
        now: the database's time.
        quiet_since: since when nothing has been written to it.
        quiet: for how long nothing must have been written.
    """
    waits = {tier.name: tier.columnstore_after for tier in TIERS}.get(chunk.table, quiet)
    return now - chunk.range_end >= max(waits, quiet) and now - quiet_since >= quiet


def needs_rewrite(chunk: StoredChunk, fill: Fill, *, batch_rows: int) -> bool:
    """Return whether a quiet chunk gains by being written anew: it is unordered, or has twice the batches it needs.

    Pure. A chunk that has just been written anew gains nothing by it.
    """
    needed = fill.sensors + fill.rows / batch_rows
    return fill.rows <= REWRITE_ROWS and (bool(chunk.status & UNORDERED) or fill.batches >= 2 * needed)


def wastes_rowstore(chunk: StoredChunk, *, now: datetime) -> bool:
    """Return whether a chunk has ended, and its rowstore takes space although it is empty. Pure."""
    is_empty = not chunk.status & PARTIAL and bool(chunk.status & COMPRESSED) and not chunk.rows
    return is_empty and chunk.rowstore_bytes > WASTED_BYTES and now > chunk.range_end


class Columnstore:
    """The conversion of chunks, and what is remembered of them.

    Args:
        quiet: a chunk into which nothing was written for so long is quiet.
    """

    def __init__(self, *, quiet: timedelta = QUIET) -> None:
        self._quiet = quiet
        self._written: dict[str, tuple[int, datetime]] = {}
        """By chunk: how many rows had been written, and since when it is so many."""
        self._pieces: dict[str, int] = {}
        """By chunk: how many rows gather until its next conversion."""
        self._full: dict[str, int] = {}
        """By chunk that need not be written anew: how many rows had been written."""

    async def convert(self, connection: Connection, guard: Connection) -> AsyncIterator[None]:
        """Convert the chunks that need it, from the oldest on. One that can't be converted holds up no other.

        Args:
            connection: what it is done on.
            guard: another one, for the locks that keep others from being kept out.

        Raises:
            psycopg.Error: what the driver raises; after all others are converted, if it is of a chunk.
        """
        cursor = await connection.execute(CHUNKS, {"tiers": [tier.name for tier in TIERS]})
        found = await cursor.fetchall()
        if not found:
            return
        chunks = [StoredChunk(*row[:-3]) for row in found]
        state = State(*found[0][-3:])
        self._note(chunks, state.now)
        failure: psycopg.Error | None = None
        for chunk in chunks:
            try:
                async for _ in self._work_on(connection, guard, chunk, state):
                    yield
            except psycopg.Error as error:
                if connection.closed:
                    raise
                failure = error if failure is None or isinstance(failure, LockNotAvailable) else failure
                yield
        if failure is not None:
            raise failure

    async def _work_on(
        self, connection: Connection, guard: Connection, chunk: StoredChunk, state: State
    ) -> AsyncIterator[None]:
        """Do for a chunk what is due."""
        written, quiet_since = self._written[chunk.name]
        if chunk.status & PARTIAL or not chunk.status & COMPRESSED:
            is_quiet = is_over(chunk, now=state.now, quiet_since=quiet_since, quiet=self._quiet)
            if is_quiet or await self._has_piece(connection, chunk, state):
                is_beside_writers = bool(chunk.status & COMPRESSED) and not is_quiet
                async with _as_writer(guard, chunk) if is_beside_writers else nullcontext():
                    await _execute_briefly(connection, CONVERT, [chunk.name])
                self._pieces.pop(chunk.name, None)
                yield
                await connection.execute(VACUUM_PART.format(chunk.name))
                yield
        elif wastes_rowstore(chunk, now=state.now):
            await connection.execute(VACUUM.format(chunk.name))
            await _execute_briefly(connection, REINDEX.format(chunk.name))
            yield
        elif self._full.get(chunk.name) != written and is_over(
            chunk, now=state.now, quiet_since=quiet_since, quiet=REWRITE_AFTER * self._quiet
        ):
            fill = await _fill(connection, chunk.columnstore or "")
            if needs_rewrite(chunk, fill, batch_rows=state.batch_rows):
                await _execute_briefly(connection, REWRITE, [chunk.name])
            else:
                self._full[chunk.name] = written
            yield

    async def _has_piece(self, connection: Connection, chunk: StoredChunk, state: State) -> bool:
        """Return whether enough rows have gathered in a chunk."""
        if chunk.rows < FIRST_ROWS or chunk.columnstore is None:
            return chunk.rows >= FIRST_ROWS
        if chunk.name not in self._pieces:
            (sensors,) = await _one(connection, SENSORS.format(chunk.columnstore))
            self._pieces[chunk.name] = piece_rows(
                chunk.table, sensors, memory_bytes=state.memory_bytes, batch_rows=state.batch_rows
            )
        return chunk.rows >= self._pieces[chunk.name]

    def _note(self, chunks: Sequence[StoredChunk], now: datetime) -> None:
        """Note how many rows have been written to each chunk, and forget those that are gone."""
        before, names = self._written, {chunk.name for chunk in chunks}
        self._written = {}
        for chunk in chunks:
            written, since = before.get(chunk.name, (-1, now))
            self._written[chunk.name] = (chunk.written, since if written == chunk.written else now)
        for remembered in (self._pieces, self._full):
            for name in remembered.keys() - names:
                del remembered[name]


async def _fill(connection: Connection, columnstore: str) -> Fill:
    """Estimate how full the batches of a chunk are, by some pages of its columnstore."""
    (size_bytes,) = await _one(connection, SIZE, [columnstore])
    part = min(1.0, SAMPLE_BYTES / max(1, size_bytes))
    batches, rows, sensors = await _one(connection, FILL.format(columnstore, columnstore), [100 * part])
    return Fill(batches / part, rows / part, sensors)


async def _one(connection: Connection, query: str, arguments: Sequence[object] = ()) -> tuple[int, ...]:
    """Return the row of a query that has one."""
    row: tuple[int, ...] | None = await (await connection.execute(query, arguments or None)).fetchone()
    assert row is not None
    return row


@asynccontextmanager
async def _as_writer(guard: Connection, chunk: StoredChunk) -> AsyncIterator[None]:
    """Hold the lock of a writer into a chunk.

    At its end, a conversion beside writers looks whether there are other rows left. If no writer is there at that
    moment, it keeps them out meanwhile: for seconds, where it has to pass over millions of rows that it has moved.
    """
    async with guard.transaction(force_rollback=True):
        await guard.execute(SHORT_WAIT)
        await guard.execute(LOCK_AS_WRITER.format(chunk.name))
        yield


async def _execute_briefly(connection: Connection, statement: str, arguments: Sequence[str] = ()) -> None:
    """Execute a statement that keeps writers out, and wait little for its locks."""
    async with connection.transaction():
        await connection.execute(SHORT_WAIT)
        await connection.execute(statement, arguments or None)
