"""The conversion of chunks to the columnstore of TimescaleDB Community, beside those who write into them.

The first conversion of a chunk keeps writers out while it lasts: a quarter of a second for half a million readings.
From then on TimescaleDB moves new rows of the chunk's rowstore into its columnstore while others are written. So a
chunk that fills up is converted while it is small, and then whenever as much has gathered again. What is left goes when
the chunk is over and nothing has been written to it for a while.
"""

from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import psycopg
from psycopg.errors import LockNotAvailable

from app.store.database import Connection
from app.store.locks import SHORT_WAIT
from app.store.tiers import TIERS

PIECE_ROWS = 500_000
"""A chunk whose rowstore has so many rows is converted. TimescaleDB 2.29.2 takes 0.2 s for the first conversion, and
0.4 s for each of the following; 1 GB of rowstore would be 7,800,000 rows."""
QUIET = timedelta(minutes=10)
"""A chunk into which nothing was written for so long is quiet."""
ORDER_AFTER = timedelta(hours=1)
"""To order a chunk that was written straight into the columnstore keeps writers out, so it must be quiet longer."""
WASTED_INDEX_BYTES = 1_048_576
"""An index of a chunk whose rowstore is empty is made anew if it is larger."""
LOOK_BACK = timedelta(days=30)
"""Indexes of chunks that have ended longer ago are not looked at: they are small by then."""

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
       CASE WHEN range_end > now() - %(look_back)s THEN pg_indexes_size(chunk) ELSE 0 END, now()
FROM chunks
LEFT JOIN _timescaledb_catalog.compression_settings s ON s.relid = chunk
ORDER BY range_end
"""
CONVERT = "CALL convert_to_columnstore(%s::regclass, if_not_columnstore => true)"
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
        index_bytes: the size of the rowstore's indexes; 0 where it is not looked at.
    """

    table: str
    name: str
    range_end: datetime
    status: int
    rows: int
    written: int
    index_bytes: int


def needs_conversion(chunk: StoredChunk, *, now: datetime, quiet_since: datetime) -> bool:
    """Return whether a chunk should be converted now, or ordered. Pure.

    Args:
        chunk: as it is.
        now: the database's time.
        quiet_since: since when nothing has been written to it.
    """
    if chunk.rows >= PIECE_ROWS:
        return True
    waits = {tier.name: tier.columnstore_after for tier in TIERS}.get(chunk.table, QUIET)
    if now < chunk.range_end + waits:
        return False
    if chunk.status & PARTIAL or not chunk.status & COMPRESSED:
        return now - quiet_since >= QUIET
    return bool(chunk.status & UNORDERED) and now - max(quiet_since, chunk.range_end) >= ORDER_AFTER


def wastes_index(chunk: StoredChunk, *, now: datetime) -> bool:
    """Return whether a chunk is over, its rowstore is empty, and the indexes of that are not. Pure."""
    is_empty = chunk.status == COMPRESSED and not chunk.rows
    return is_empty and chunk.index_bytes > WASTED_INDEX_BYTES and now > chunk.range_end


class Columnstore:
    """The conversion of chunks, and what is remembered of them."""

    def __init__(self) -> None:
        self._quiet: dict[str, tuple[int, datetime]] = {}
        """By chunk: how many rows had been written, and since when it is so many."""

    async def convert(self, connection: Connection) -> AsyncIterator[None]:
        """Convert the chunks that need it, from the oldest on. One that can't be converted holds up no other.

        Raises:
            psycopg.Error: what the driver raises; after all others are converted, if it is of a chunk.
        """
        cursor = await connection.execute(CHUNKS, {"tiers": [tier.name for tier in TIERS], "look_back": LOOK_BACK})
        found = await cursor.fetchall()
        chunks = [StoredChunk(*row[:-1]) for row in found]
        now: datetime = found[0][-1] if found else datetime.min
        self._note(chunks, now)
        failure: psycopg.Error | None = None
        for chunk in chunks:
            try:
                if needs_conversion(chunk, now=now, quiet_since=self._quiet[chunk.name][1]):
                    await _execute_briefly(connection, CONVERT, [chunk.name])
                    yield
                    await connection.execute(VACUUM_PART.format(chunk.name))
                    yield
                elif wastes_index(chunk, now=now):
                    await connection.execute(VACUUM.format(chunk.name))
                    await _execute_briefly(connection, REINDEX.format(chunk.name))
                    yield
            except psycopg.Error as error:
                if connection.closed:
                    raise
                failure = error if failure is None or isinstance(failure, LockNotAvailable) else failure
                yield
        if failure is not None:
            raise failure

    def _note(self, chunks: Iterable[StoredChunk], now: datetime) -> None:
        before, self._quiet = self._quiet, {}
        for chunk in chunks:
            written, since = before.get(chunk.name, (-1, now))
            self._quiet[chunk.name] = (chunk.written, since if written == chunk.written else now)


async def _execute_briefly(connection: Connection, statement: str, arguments: Sequence[str] = ()) -> None:
    """Execute a statement that keeps writers out, and wait little for its locks."""
    async with connection.transaction():
        await connection.execute(SHORT_WAIT)
        await connection.execute(statement, arguments or None)
