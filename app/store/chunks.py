"""The width of the chunks of readings on TimescaleDB Community.

The server makes narrow chunks ahead of a fast fleet, and merges old ones.

Each new chunk is a day wide, whatever its readings' age: the hypertable has one interval for all, and a request with a
hundred old days must not make thousands of chunks. But a day of 30,000 readings a second would be a chunk of 70 GB. So
where readings come fast, the chunks of the coming hours are made before the readings come. A flush that finds no such
chunk makes one of what is left of the day.

Chunks are never wider from the start: a fleet may grow a thousandfold within a month, and its chunk could not be made
narrower then. They become wider by being merged, once they are old. So there is a chunk for each WIDEST, or for each
half of MERGED_BYTES: five years of a small fleet have some 100 chunks, and not 1,826.
"""

from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import groupby, pairwise

import psycopg
from psycopg.errors import LockNotAvailable

from app.store.columnstore import COMPRESSED, CONVERT
from app.store.database import Connection
from app.store.locks import SHORT_WAIT
from app.store.tiers import EPOCH, Span, floor

DAY = timedelta(days=1)
WIDTHS = (DAY, timedelta(hours=6), timedelta(hours=1))
"""The widths of new chunks. With narrower ones, a request of 100 days could need more locks than PostgreSQL has by
default."""
CHUNK_ROWS = 50_000_000
"""About the most readings of a chunk, unless it is as narrow as can be. In the columnstore they take 1 to 1.5 GB."""
RATE_WINDOW = timedelta(minutes=5)
"""The rate is that of the flushes of so long. The ledger keeps them for longer."""

WIDEST = timedelta(days=30)
"""The widest chunk that others are merged into."""
SHARE_OF_RETENTION = 10
"""A chunk is deleted as a whole: as a tenth of the time for which readings are kept, it holds few that are too old."""
MERGE_AFTER = timedelta(days=7)
"""Chunks whose times are older than this are merged. Few late readings come for them."""
MERGED_BYTES = 64 * 1_048_576
"""The most that chunks are merged into. TimescaleDB 2.29.2 copies 250 MB a second, and all of ``readings`` is locked
meanwhile."""
CHUNKS_AT_A_TIME = 32
"""Each chunk takes ten locks while it is merged."""

RATE = """
SELECT now(), coalesce(sum(rows), 0)::float8 / extract(epoch FROM %(window)s::interval)::float8
FROM flushes WHERE committed_at > now() - %(window)s::interval
"""
COMING = """
SELECT range_start, range_end FROM timescaledb_information.chunks
WHERE hypertable_schema = current_schema AND hypertable_name = 'readings' AND range_end > %s
ORDER BY range_start
"""
# TimescaleDB's own way to restore a chunk. If there is one of just this span, it does nothing.
CREATE = """
SELECT format('%%I.%%I', schema_name, table_name)
FROM _timescaledb_functions.create_chunk('readings', jsonb_build_object('time', jsonb_build_array(
    _timescaledb_functions.time_to_internal(%s::timestamptz), _timescaledb_functions.time_to_internal(%s::timestamptz)
)))
"""
# Rows are copied column by column, by place and not by name: chunks from before and after a change of columns differ.
OLD = """
SELECT chunk::text, range_start, range_end, _timescaledb_functions.chunk_status(chunk),
       pg_total_relation_size(chunk) + coalesce(pg_total_relation_size(s.compress_relid), 0),
       md5(concat(to_jsonb(s) - '{relid,compress_relid}'::text[], (
           SELECT string_agg(concat_ws(' ', attnum, attname, atttypid), ',' ORDER BY attrelid = chunk, attnum)
           FROM pg_attribute WHERE attrelid IN (chunk, s.compress_relid) AND attnum > 0
       ))), now()
FROM (
    SELECT format('%%I.%%I', chunk_schema, chunk_name)::regclass AS chunk, range_start, range_end
    FROM timescaledb_information.chunks
    WHERE hypertable_schema = current_schema AND hypertable_name = 'readings' AND range_end <= now() - %s::interval
) AS old
LEFT JOIN _timescaledb_catalog.compression_settings s ON s.relid = chunk
ORDER BY range_start
"""
# A query that has found its chunks, and waits for one that is merged away, would go on without the readings in it. So
# queries wait here, before they look for chunks.
LOCK = "LOCK TABLE ONLY readings IN ACCESS EXCLUSIVE MODE"
MERGE = "CALL merge_chunks(%s::regclass[])"


@dataclass(frozen=True, slots=True)
class OldChunk:
    """A chunk whose readings are old.

    Attributes:
        name: with its schema, quoted.
        start: when it starts.
        end: when it ends.
        status: bits, see ``columnstore``.
        size_bytes: with its indexes.
        shape: the same for chunks with the same columns and settings, in the rowstore and in the columnstore.
    """

    name: str
    start: datetime
    end: datetime
    status: int
    size_bytes: int
    shape: str


def chunk_width(rows_per_s: float) -> timedelta:
    """Return how wide new chunks should be at a rate of readings a second. Pure."""
    fitting = (width for width in WIDTHS if rows_per_s * width.total_seconds() <= CHUNK_ROWS)
    return next(fitting, WIDTHS[-1])


def missing_chunks(existing: Sequence[Span], start: datetime, end: datetime, width: timedelta) -> Iterator[Span]:
    """Yield chunks that together with the existing ones cover the time from ``start`` to ``end``. Pure.

    Args:
        existing: the chunks that there are, in their order. They need not be as wide.
        start: the first moment that is to be covered.
        end: the first one that is not.
        width: each chunk ends at a multiple of it, counted from 1970 UTC, or where an existing one starts.
    """
    for existing_start, existing_end in [*existing, (end, end)]:
        while start < min(existing_start, end):
            stop = min(floor(start, width) + width, existing_start)
            yield start, stop
            start = stop
        start = max(start, existing_end)


def merge_width(kept_days: float) -> timedelta:
    """Return how wide merged chunks may be where readings are kept for some days. 0: without end. Pure."""
    return min(WIDEST, max(DAY, kept_days / SHARE_OF_RETENTION // 1 * DAY)) if kept_days else WIDEST


def mergeable(chunks: Sequence[OldChunk], *, width: timedelta, ended_by: datetime) -> Iterator[Sequence[OldChunk]]:
    """Yield runs of chunks, each of which may become one. Pure.

    Args:
        chunks: all old ones, in their order.
        width: a merged chunk lies between two multiples of it, counted from 1970 UTC.
        ended_by: the second of them has passed by then, so that a chunk is not merged again with each day.
    """

    def place(chunk: OldChunk) -> tuple[datetime, str, bool]:
        start = floor(chunk.start, width)
        return start, chunk.shape, chunk.status == COMPRESSED and chunk.end <= start + width <= ended_by

    for (_, _, may_be_merged), neighbours in groupby(chunks, place):
        if may_be_merged:
            yield from _runs(neighbours)


def _runs(chunks: Iterable[OldChunk]) -> Iterator[Sequence[OldChunk]]:
    """Yield runs of two or more chunks that together are small enough. Pure."""
    run: list[OldChunk] = []
    for chunk in chunks:
        if len(run) == CHUNKS_AT_A_TIME or sum(each.size_bytes for each in [*run, chunk]) > MERGED_BYTES:
            if len(run) > 1:
                yield run
            run = []
        run.append(chunk)
    if len(run) > 1:
        yield run


@dataclass(frozen=True, slots=True)
class Chunks:
    """The work on the chunks of readings.

    Attributes:
        kept_days: for how many days readings are kept; 0: without end.
        accept_future_minutes: how far ahead readings may lie; 0: any distance.
    """

    kept_days: float
    accept_future_minutes: float

    async def make_ahead(self, connection: Connection) -> AsyncIterator[None]:
        """Make the narrow chunks of the coming hours, if readings come fast. Raises what the driver raises."""
        row = await (await connection.execute(RATE, {"window": RATE_WINDOW})).fetchone()
        assert row is not None  # an aggregate has one row
        now, rows_per_s = row
        width = chunk_width(rows_per_s)
        if width == DAY:
            return
        existing = await (await connection.execute(COMING, [now])).fetchall()
        ahead = max(width, min(DAY, timedelta(minutes=self.accept_future_minutes) or DAY))
        for span in missing_chunks(existing, floor(now, width), floor(now + ahead, width) + width, width):
            async with connection.transaction():
                await connection.execute(SHORT_WAIT)
                chunk = await _create(connection, span)
                await connection.execute(CONVERT, [chunk])  # empty: once it fills up, that would keep writers out
            yield

    async def merge(self, connection: Connection) -> AsyncIterator[None]:
        """Merge old chunks, with the gaps between them. Those in use are left for the next time, and so are all while
        ``readings`` is in use for long.

        Raises:
            psycopg.Error: what the driver raises; after all others are merged, if it is of some chunks.
        """
        found = await (await connection.execute(OLD, [MERGE_AFTER])).fetchall()
        chunks = [OldChunk(*row[:-1]) for row in found]
        ended_by = found[0][-1] - MERGE_AFTER if found else EPOCH
        failure: psycopg.Error | None = None
        for run in mergeable(chunks, width=merge_width(self.kept_days), ended_by=ended_by):
            try:
                async with connection.transaction():
                    await connection.execute(SHORT_WAIT)
                    try:
                        await connection.execute(LOCK)
                    except LockNotAvailable:
                        return  # each try would hold up all flushes
                    await self._merge(connection, run)
            except LockNotAvailable:
                pass
            except psycopg.Error as error:
                if connection.closed:
                    raise
                failure = error
            yield
        if failure is not None:
            raise failure

    async def _merge(self, connection: Connection, run: Sequence[OldChunk]) -> None:
        names = [chunk.name for chunk in run]
        for before, after in pairwise(run):
            if before.end < after.start:  # only neighbours can be merged
                names.append(await _create(connection, (before.end, after.start)))
        await connection.execute(MERGE, [names])


async def _create(connection: Connection, span: Span) -> str:
    """Make a chunk, and return its name."""
    row = await (await connection.execute(CREATE, span)).fetchone()
    assert row is not None  # the function returns the chunk
    name: str = row[0]
    return name
