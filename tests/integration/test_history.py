"""The history from real servers has the same rows as a slow and obvious computation."""

import math
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from itertools import product
from typing import Any, NamedTuple

import psycopg
import pytest

from app.errors import DatabaseUnavailable, NotFound
from app.history.query import DAY_US, HOUR_US, Bucket, Page, Position, Query
from app.schema import METRIC_NAMES
from app.store import history
from app.store.database import READERS_SHARE, Database
from app.store.history import History

T0 = datetime(2026, 3, 1, tzinfo=UTC)
T0_US = round(T0.timestamp()) * 1_000_000
SENSORS = ["b", "hall/1, «é»", "silent", "a"]
"""In the order of their ids."""
WIDTHS_US = {Bucket.MINUTE: 60_000_000, Bucket.HOUR: HOUR_US, Bucket.DAY: DAY_US}
INSERT = "INSERT INTO readings VALUES (%s, %s, %s, 1, %s, %s, %s)"


class Row(NamedTuple):
    """A row of the table."""

    time: datetime
    sensor_id: int
    id: int
    temperature: float | None
    humidity: float | None
    pressure: float | None

    @property
    def time_us(self) -> int:
        return (self.time - T0) // timedelta(microseconds=1) + T0_US


def some_rows() -> list[Row]:
    """Return three days of three sensors, with two rows of each time, and some values of each metric missing."""
    return [
        Row(
            T0 + timedelta(hours=7 * (place // 2), seconds=place // 2, microseconds=place % 4 // 2),
            sensor_id,
            1_000 - place,
            None if place % 5 == 0 else place / 3,
            None if sensor_id == 2 else -1e-7 * place,
            1e300 if place == 3 else 1_000.0,
        )
        for sensor_id, place in product((1, 2, 4), range(20))
    ]


@pytest.fixture
def filled(database: str, edition: str) -> str:
    """Store the rows. On Community the first days are in the columnstore, and the first two in the aggregates."""
    with psycopg.connect(database, autocommit=True) as connection:
        for name in SENSORS:
            connection.execute("INSERT INTO sensors (name) VALUES (%s)", [name])
        connection.cursor().executemany(INSERT, some_rows())
        if edition == "community":
            for tier in ("readings_1m", "readings_1h", "readings_1d"):
                connection.execute(f"CALL refresh_continuous_aggregate('{tier}', NULL, '{T0 + timedelta(days=2)}')")
            connection.execute(
                "SELECT compress_chunk(chunk) FROM show_chunks('readings', older_than => %s) chunk",
                [T0 + timedelta(days=2)],
            )
    return database


@asynccontextmanager
async def reading(url: str) -> AsyncIterator[History]:
    database = Database(url, timezone="UTC", offline_after_s=300)
    try:
        await database.prepare()
        yield History(database)
    finally:
        await database.close()


async def pages(there: History, query: Query, *, after: Position | None = None, limit: int | None = None) -> list[Page]:
    return [page async for page in there.pages(query, after=after, limit=limit)]


def rows_of(pages: Sequence[Page]) -> list[dict[str, Any]]:
    return [row for page in pages for row in page.rows.to_pylist()]


def query(bucket: Bucket, *, ids: Sequence[int] | None = None, metrics: Sequence[str] = METRIC_NAMES) -> Query:
    """Return a query of two days and a half."""
    return Query(ids, T0_US, T0_US + 5 * DAY_US // 2, bucket, metrics)


def expected(asked: Query) -> list[dict[str, Any]]:
    """Compute the answer row by row."""
    chosen = sorted(
        (row for row in some_rows() if asked.sensor_ids is None or row.sensor_id in asked.sensor_ids),
        key=lambda row: (row.sensor_id, row.time, row.id),
    )
    if asked.bucket is Bucket.RAW:
        return [
            {"time": row.time, "sensor_id": SENSORS[row.sensor_id - 1]}
            | {metric: getattr(row, metric) for metric in asked.metrics}
            for row in chosen
            if asked.from_us <= row.time_us < asked.to_us
        ]
    width_us = WIDTHS_US[asked.bucket]
    buckets: dict[tuple[int, int], list[Row]] = defaultdict(list)
    for row in chosen:
        if asked.from_us <= (start_us := row.time_us // width_us * width_us) < asked.to_us:
            buckets[row.sensor_id, start_us].append(row)
    return [bucket_of(start_us, rows, asked.metrics) for (_, start_us), rows in buckets.items()]


def bucket_of(start_us: int, rows: Sequence[Row], metrics: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "time": datetime.fromtimestamp(start_us / 1e6, UTC),
        "sensor_id": SENSORS[rows[0].sensor_id - 1],
        "count": len(rows),
    }
    for metric in metrics:
        values = [value for row in rows if (value := getattr(row, metric)) is not None]
        found[f"{metric}_count"] = len(values)
        found[f"{metric}_mean"] = sum(min(value, 1e290) for value in values) / len(values) if values else None
        found[f"{metric}_min"] = min(values, default=None)
        found[f"{metric}_max"] = max(values, default=None)
    return found


def same(rows: Sequence[dict[str, Any]], wanted: Sequence[dict[str, Any]]) -> bool:
    """Return whether the wanted columns are the same, means up to rounding."""
    return len(rows) == len(wanted) and all(
        math.isclose(row[name], value, rel_tol=1e-12) if name.endswith("_mean") and value else row[name] == value
        for row, want in zip(rows, wanted, strict=True)
        for name, value in want.items()
    )


async def test_pages_have_every_row_once_in_order_and_go_on_after_any(filled: str) -> None:
    async with reading(filled) as there:
        for bucket, ids, metrics in product(Bucket, (None, [4, 1], [3]), (METRIC_NAMES, ("humidity",))):
            asked = query(bucket, ids=ids, metrics=metrics)
            wanted = expected(asked)
            for page_rows, chunks in product((3, 7, 25, 1_000), (1, 16)):
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(history, "PAGE_ROWS", page_rows)
                    patch.setattr(history, "PAGE_CHUNKS", chunks)
                    found = await pages(there, asked)
                    assert same(rows_of(found), wanted)
                    assert all(0 < page.rows.num_rows <= page_rows for page in found)
                    assert all(page.rows.schema == there.schema(asked) for page in found)
            for chunks in (1, 16):
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(history, "PAGE_CHUNKS", chunks)
                    found = await pages(there, asked, limit=4)
                    if found:
                        rest = await pages(there, asked, after=found[-1].last, limit=5)
                        assert same(rows_of([*found, *rest]), wanted[:9])


async def test_locks_of_a_query_are_bounded(community_database: str) -> None:
    """A query takes a bounded number of locks, because all sessions share the room for them."""
    days = 100
    with psycopg.connect(community_database, autocommit=True) as connection:
        connection.execute("INSERT INTO sensors (name) SELECT i::text FROM generate_series(1, 5) i")
        connection.execute(
            "INSERT INTO readings SELECT %s::timestamptz + i * interval '4 h', s, i, 1, i, NULL, NULL"
            " FROM generate_series(0, %s) i, generate_series(1, 5) s WHERE i %% s = 0",
            [T0, days * 6 - 1],
        )
        connection.execute("SELECT compress_chunk(chunk) FROM show_chunks('readings') chunk")
        wanted = connection.execute(
            "SELECT sensor_id::text, (extract(epoch FROM time) * 1000000)::bigint FROM readings"
            " ORDER BY sensor_id, time"
        ).fetchall()
    async with reading(community_database) as there:
        asked = Query(None, 0, T0_US + 1_000 * DAY_US, Bucket.RAW, METRIC_NAMES)
        spans = await there._spans(asked)
        assert len(spans) >= days // history.PAGE_CHUNKS
        with psycopg.connect(community_database) as connection:
            for span in spans:
                connection.execute(history._statement(span, [1, 2, 3, 4, 5], None, 1_000))
                found = connection.execute("SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid()").fetchone()
                assert found is not None
                assert found[0] <= 4 * history.PAGE_CHUNKS + 30
                connection.rollback()
        for page_rows in (100, 700, 20_000):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(history, "PAGE_ROWS", page_rows)
                answer = await pages(there, asked)
            names = [name for page in answer for name in page.rows["sensor_id"].to_pylist()]
            times = [time for page in answer for time in page.rows["time"].cast("int64").to_pylist()]
            assert list(zip(names, times, strict=True)) == wanted


async def test_first_and_last_are_those_by_time(filled: str) -> None:
    async with reading(filled) as there:
        days = rows_of(await pages(there, query(Bucket.DAY, ids=[2])))
        for day in days:
            of_day = [row for row in some_rows() if row.sensor_id == 2 and row.time.date() == day["time"].date()]
            there_are = [row for row in of_day if row.temperature is not None]
            first, last = min(row.time for row in there_are), max(row.time for row in there_are)
            assert day["temperature_first"] in [row.temperature for row in there_are if row.time == first]
            assert day["temperature_last"] in [row.temperature for row in there_are if row.time == last]
            assert day["humidity_first"] is day["humidity_last"] is None


async def test_a_sensor_that_is_not_there_is_named(filled: str) -> None:
    async with reading(filled) as there:
        assert sorted(await there.find(["a", "b", "a"])) == [1, 4]
        with pytest.raises(NotFound, match="'c', 'd'"):
            await there.find(["a", "c", "d"])


async def test_readers_leave_connections_to_others(filled: str) -> None:
    database = Database(filled, timezone="UTC", offline_after_s=300)
    await database.prepare()
    try:
        async with database.read_connection(timeout_s=1), database.read_connection(timeout_s=1):
            assert READERS_SHARE == 2
            with pytest.raises(DatabaseUnavailable):
                async with database.read_connection(timeout_s=0.05):
                    pass
            async with database.connection(timeout_s=1) as connection:
                await connection.execute("SELECT 1")
    finally:
        await database.close()


async def test_a_page_from_the_columnstore_reads_its_own_rows_only(community_database: str) -> None:
    with psycopg.connect(community_database, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO readings SELECT %s::timestamptz + i * interval '1 s', s, i, 1, 20, 50, 1000"
            " FROM generate_series(0, 39999) i, generate_series(1, 3) s",
            [T0],
        )
        connection.execute("SELECT compress_chunk(chunk) FROM show_chunks('readings') chunk")
        connection.execute("VACUUM ANALYZE readings")
        after = Position(1, T0_US + 10_000_000_000, 10_000)
        for sensor_ids, place in (([1], after), ([1, 2, 3], None)):
            statement = history._statement(query(Bucket.RAW), sensor_ids, place, 1_000)
            text = statement.as_string(connection)
            plan = connection.execute(f"EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF) {text}").fetchall()
            lines = [line for (line,) in plan]
            decompressed = [line for line in lines if "ColumnarScan" in line or "DecompressChunk" in line]
            assert decompressed, lines
            assert all(_rows_in(line) <= 2_000 for line in decompressed), lines


def _rows_in(line: str) -> float:
    return float(line.partition("rows=")[2].split()[0]) if "never executed" not in line else 0
