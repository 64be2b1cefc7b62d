"""Readings and their aggregates, read back a page at a time.

A page is one short query on a borrowed connection, which is given back before the page is used: whoever reads slowly
holds neither a connection nor a snapshot. A row that is there from the first page to the last comes exactly once.

A page's columns come as one value each, which PostgreSQL puts together from the binary form of theirs: no message and
no Python object a row.
"""

import asyncio
import math
import sys
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from itertools import islice, pairwise
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
from psycopg import sql

from app.errors import NotFound
from app.history.query import Bucket, Page, Position, Query
from app.ingest.batch import Reading, Sender
from app.schema import METRIC_TYPES, qualified
from app.store import tiers
from app.store.chunks import WIDTHS
from app.store.database import Connection, Database
from app.store.tiers import moment
from app.store.wire import POSTGRES_EPOCH_US, array_of, words_of

PAGE_ROWS = 20_000
MAX_SENSORS_PER_PAGE = 200
"""Also a query over thousands of sensors that have no rows must come to its end in time."""
PAGE_TIMEOUT_S = 30.0
PAGE_CHUNKS = 16
"""Chunks of readings that one query may touch. In the columnstore each takes four of the locks of which a server has 64
for each connection that it allows, and five years of days would take 7,300."""
NARROWEST_US = WIDTHS[-1] // timedelta(microseconds=1)
"""The least time that a chunk of readings spans, but for few."""

TIERS = dict(zip((Bucket.MINUTE, Bucket.HOUR, Bucket.DAY), tiers.TIERS, strict=True))
KEYS = pa.schema([("time", pa.timestamp("us", "UTC")), ("sensor_id", pa.string())])
"""What every row begins with."""

CHUNK_ENDS = """
SELECT (extract(epoch FROM range_end) * 1000000)::bigint FROM timescaledb_information.chunks
WHERE hypertable_schema = current_schema AND hypertable_name = 'readings'
    AND range_end > %s::timestamptz AND range_start < %s::timestamptz
ORDER BY 1
"""
FIND_SENSORS = "SELECT name, id FROM sensors WHERE name = ANY(%s)"
SENSORS_FROM = """
SELECT id, name FROM sensors
WHERE id >= %(first_id)s AND (%(ids)s::integer[] IS NULL OR id = ANY(%(ids)s::integer[]))
ORDER BY id LIMIT %(at_most)s
"""

# Sensor after sensor, in the order of VALUES, and none once the page is full: a nested loop is the only way to join
# LATERAL with a LIMIT. Within a sensor the index and the columnstore are in the order of time alone. To ask for that
# order first, and in it for that of the ids, reads a page's rows; ORDER BY time, id at once would sort whole chunks.
PAGE = sql.SQL("""
SELECT {values}
FROM (
    SELECT s.ordinal, r.*
    FROM (VALUES {sensors}) AS s (ordinal, sensor_id)
    CROSS JOIN LATERAL (
        SELECT * FROM (
            SELECT * FROM {table}
            WHERE sensor_id = s.sensor_id AND {time} >= {start} AND {time} < {end} AND {is_after}
            ORDER BY {time}
        ) AS by_time
        ORDER BY {order} LIMIT {limit}
    ) AS r
    LIMIT {limit}
) AS page
""")

LATEST_KNOWN = """
SELECT sensor_id, time, id FROM latest_readings WHERE time <= %s::timestamptz ORDER BY time DESC, id DESC LIMIT 10
"""
# The time stands in the text, so that PostgreSQL plans with one chunk and locks one.
READING = sql.SQL(f"""
SELECT (extract(epoch FROM r.time) * 1000000)::bigint, s.name, {qualified("r")},
       o.key_name, o.client_ip, r.id
FROM readings r JOIN sensors s ON s.id = r.sensor_id JOIN sources o ON o.id = r.source_id
WHERE r.sensor_id = {{sensor_id}} AND r.time = {{time}} AND r.id = {{id}}
""")


class ResultColumn(NamedTuple):
    """A column of an answer beside its keys, and how a row of the table gives it."""

    name: str
    type: pa.DataType
    value: str
    """SQL of a bigint or, if the type is floating, a double precision."""
    is_there: str = "true"
    """SQL of whether it is no null."""


class History:
    """The readings and their aggregates in a database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def find(self, names: Sequence[str]) -> list[int]:
        """Find the ids of the sensors that have these names.

        Raises:
            NotFound: some are no sensor's; the message has them.
            DatabaseUnavailable: the database can't be asked.
        """
        async with self._database.read_connection(timeout_s=PAGE_TIMEOUT_S) as connection:
            found = dict(await (await connection.execute(FIND_SENSORS, [list(names)])).fetchall())
        if missing := [name for name in dict.fromkeys(names) if name not in found]:
            raise NotFound(f"No sensor is called {', '.join(map(repr, missing[:10]))}.")
        return list(found.values())

    @staticmethod
    def schema(query: Query) -> pa.Schema:
        """Return the columns of a query's rows."""
        return pa.schema([*KEYS, *((column.name, column.type) for column in _columns(query))])

    async def pages(self, query: Query, *, after: Position | None, limit: int | None) -> AsyncGenerator[Page, None]:
        """Yield the rows of a query, or those after one of its rows, at most ``limit``. No page is empty.

        Raises:
            DatabaseUnavailable: the rest of them can't be had.
        """
        spans = await self._spans(query)
        first_id = 0 if after is None else after.sensor_id
        rows_left = sys.maxsize if limit is None else limit
        most_sensors = _sensors_per_page(query)
        while rows_left:
            max_rows = min(PAGE_ROWS, rows_left)
            async with self._database.read_connection(timeout_s=PAGE_TIMEOUT_S) as connection:
                asked = await _sensors_from(connection, first_id, query, 1 if after is not None else most_sensors)
            if not asked:
                return
            sensors, page, is_full = await self._page(spans, asked, after, max_rows)
            if after is None and len(spans) > 1:  # a page with room for few sensors is followed by one that tries more
                most_sensors = min(2 * len(sensors), _sensors_per_page(query))
            first_id, after = max(sensors) + 1, None
            if page is not None:
                rows_left -= page.rows.num_rows
                if is_full:
                    first_id, after = page.last.sensor_id, page.last
                yield page

    async def _spans(self, query: Query) -> list[Query]:
        """Return the query in parts of few chunks each: readings by PAGE_CHUNKS, since PostgreSQL locks each chunk with
        its indexes, and all its sessions share the room for locks.
        """
        edition = self._database.edition
        has_chunks = edition is not None and edition.kind != "plain"
        if not has_chunks or query.bucket is not Bucket.RAW or query.to_us - query.from_us < PAGE_CHUNKS * NARROWEST_US:
            return [query]
        async with self._database.read_connection(timeout_s=PAGE_TIMEOUT_S) as connection:
            bounds = [query.from_us, query.to_us]
            cursor = await connection.execute(CHUNK_ENDS, [moment(time_us) for time_us in bounds])
            ends_us = [end_us for (end_us,) in await cursor.fetchall() if query.from_us < end_us < query.to_us]
        inner = ends_us[PAGE_CHUNKS - 1 :: PAGE_CHUNKS]
        return [replace(query, from_us=start, to_us=end) for start, end in pairwise([bounds[0], *inner, bounds[1]])]

    async def _page(
        self, spans: Sequence[Query], sensors: Mapping[int, str], after: Position | None, max_rows: int
    ) -> tuple[Mapping[int, str], Page | None, bool]:
        """Return the rows of so many of the sensors, the first of them, as a page has room for in all spans.

        Returns:
            Those sensors, their rows if there are any, and whether the page is full: then it ends within its last
            sensor.
        """
        parts: list[_Rows] = []
        rows = 0
        for position, span in enumerate(spans, 1):
            if after is not None and span.to_us <= after.time_us:
                continue
            is_after = after if after is not None and span.from_us <= after.time_us else None
            async with self._database.read_connection(timeout_s=PAGE_TIMEOUT_S) as connection:
                statement = _statement(span, list(sensors), is_after, max_rows - rows)
                result = (await connection.execute(statement, binary=True)).pgresult
            assert result is not None  # that of a SELECT
            values = [result.get_value(0, column) or b"" for column in range(result.nfields)]
            del result
            if not values[0]:
                continue
            part = await asyncio.to_thread(_rows_of, span, sensors, values)
            del values
            parts.append(part)
            rows += part.rows.num_rows
            if rows < max_rows:
                continue
            # The last sensor that has rows here may have more of them, and those after it have had no turn.
            last = part.positions[-1].as_py()
            if last == 0 or len(spans) == 1:
                kept = last + 1
                return _first(sensors, kept), _page_of(sensors, [each.of_first(kept) for each in parts]), True
            kept = max(1, min(last, len(sensors) * position // len(spans)))
            sensors = _first(sensors, kept)
            parts = [each.of_first(kept) for each in parts]
            rows = sum(each.rows.num_rows for each in parts)
        return sensors, _page_of(sensors, parts) if rows else None, False


async def latest_reading(connection: Connection, *, horizon_us: float = math.inf) -> tuple[Reading, int] | None:
    """Return the latest reading by event time in ``latest_readings`` that is not beyond the horizon, and its id. None
    if there is none. Raises what the driver raises.
    """
    known = await (await connection.execute(LATEST_KNOWN, [moment(horizon_us)])).fetchall()
    for sensor_id, time, id_ in known:  # the first of them, unless it has been deleted since
        statement = READING.format(sensor_id=sensor_id, time=time, id=id_)
        row = await (await connection.execute(statement, prepare=False)).fetchone()
        if row is not None:
            *reading, key_name, client_ip, reading_id = row
            return Reading._make((*reading, Sender(key_name, client_ip))), reading_id
    return None


def _columns(query: Query) -> list[ResultColumn]:
    """Return the columns of a query's rows beside their keys."""
    if query.bucket is Bucket.RAW:
        return [ResultColumn(name, METRIC_TYPES[name], name, f"{name} IS NOT NULL") for name in query.metrics]
    columns = [ResultColumn("count", pa.int64(), "count")]
    for metric in query.metrics:
        count = f"{metric}_count"
        values = {"mean": f"{metric}_sum / nullif({count}, 0)"}
        values |= {which: f"{metric}_{which}" for which in ("min", "max", "first", "last")}
        columns.append(ResultColumn(count, pa.int64(), count))
        columns += [
            ResultColumn(f"{metric}_{which}", pa.float64(), value, f"{count} > 0") for which, value in values.items()
        ]
    return columns


def _conditions(columns: Sequence[ResultColumn]) -> list[str]:
    return list(dict.fromkeys(column.is_there for column in columns))


def _sensors_per_page(query: Query) -> int:
    """So many sensors that no bucket is made of readings and then left out of the page. A reading that is left out is
    not even read.
    """
    if query.bucket is Bucket.RAW:
        return MAX_SENSORS_PER_PAGE
    buckets = timedelta(microseconds=query.to_us - query.from_us) // TIERS[query.bucket].width + 1
    return max(1, min(PAGE_ROWS // buckets, MAX_SENSORS_PER_PAGE))


async def _sensors_from(connection: Connection, first_id: int, query: Query, at_most: int) -> dict[int, str]:
    """Return the next of the queried sensors: names by id, in the order of the ids."""
    ids = None if query.sensor_ids is None else list(query.sensor_ids)
    cursor = await connection.execute(SENSORS_FROM, {"first_id": first_id, "ids": ids, "at_most": at_most})
    return dict(await cursor.fetchall())


def _statement(query: Query, sensor_ids: Sequence[int], after: Position | None, limit: int) -> sql.Composed:
    """Build the query of a page. Its row has the position of the sensor, the time and the id of each row, then the
    conditions and the columns: each as what the send functions make of it, one after the other, or null where
    there are no rows.
    """
    is_raw = query.bucket is Bucket.RAW
    time, id_, order = ("time", "id", "time, id") if is_raw else ("bucket", "0", "bucket")
    start: sql.Literal = _moment(query.from_us)
    is_after: sql.Composable = sql.SQL("true")
    if after is not None:
        start = _moment(after.time_us)
        is_after = sql.SQL("({time} > {start} OR {id} > {last_id})").format(
            time=sql.SQL(time), start=start, id=sql.SQL(id_), last_id=sql.Literal(after.id)
        )
    columns = _columns(query)
    values = ["int8send(ordinal)", f"timestamptz_send({time})", f"int8send({id_})"]
    values += [f"boolsend({condition})" for condition in _conditions(columns)]
    for column in columns:
        send = "float8send" if pa.types.is_floating(column.type) else "int8send"
        values.append(f"{send}(coalesce({column.value}, 0))")
    positions = (sql.SQL("({}, {})").format(position, id_) for position, id_ in enumerate(sensor_ids))
    return PAGE.format(
        values=sql.SQL(", ").join(sql.SQL(f"string_agg({value}, '')") for value in values),
        sensors=sql.SQL(", ").join(positions),
        table=sql.Identifier("readings" if is_raw else TIERS[query.bucket].name),
        time=sql.SQL(time),
        start=start,
        end=_moment(query.to_us),
        is_after=is_after,
        order=sql.SQL(order),
        limit=limit,
    )


def _moment(time_us: int) -> sql.Literal:
    return sql.Literal(tiers.EPOCH + timedelta(microseconds=time_us))


class _Rows(NamedTuple):
    """Rows of a query, by the position of their sensor, then by time and id."""

    positions: pa.Int64Array
    ids: pa.Int64Array
    rows: pa.RecordBatch

    def of_first(self, sensors: int) -> "_Rows":
        """Those of so many sensors."""
        count = pc.sum(pc.less(self.positions, sensors)).as_py() or 0
        return _Rows(*(column.slice(0, count) for column in self))


def _first(sensors: Mapping[int, str], count: int) -> Mapping[int, str]:
    return dict(islice(sensors.items(), count))


def _page_of(sensors: Mapping[int, str], parts: Sequence[_Rows]) -> Page:
    """Return the rows of parts that follow each other in time, sensor by sensor."""
    positions, ids, rows = parts[0]
    if len(parts) > 1:
        positions = pa.concat_arrays([part.positions for part in parts])
        order = pc.sort_indices(positions)  # those of one position stay in their order
        table = pa.Table.from_batches([part.rows for part in parts])
        (rows,) = table.take(order).combine_chunks().to_batches()
        positions, ids = positions.take(order), pa.concat_arrays([part.ids for part in parts]).take(order)
    return Page(rows, Position(list(sensors)[positions[-1].as_py()], rows["time"][-1].value, ids[-1].as_py()))


def _rows_of(query: Query, sensors: Mapping[int, str], values: Sequence[bytes]) -> _Rows:
    """Return the rows in the answer to ``_statement``."""
    columns = _columns(query)
    conditions = _conditions(columns)
    positions, times, ids = (array_of(words_of(value), pa.int64()) for value in values[:3])
    end_of_conditions = 3 + len(conditions)
    bitmaps = {
        condition: pa.UInt8Array.from_buffers(pa.uint8(), len(flags), [None, pa.py_buffer(flags)])
        .cast(pa.bool_())
        .buffers()[1]
        for condition, flags in zip(conditions, values[3:end_of_conditions], strict=True)
    }
    arrays = [
        pc.add(times, POSTGRES_EPOCH_US).cast(KEYS.field("time").type),
        pa.array(sensors.values(), pa.string()).take(positions),
    ]
    for column, value in zip(columns, values[end_of_conditions:], strict=True):
        arrays.append(array_of(words_of(value), column.type, bitmaps[column.is_there]))
    return _Rows(positions, ids, pa.RecordBatch.from_arrays(arrays, schema=History.schema(query)))
