"""The latest of many rows, without a database."""

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import DatabaseUnavailable
from app.store import latest
from app.store.latest import SCHEMA, LatestReadings, LatestRow, LatestRows

values = st.none() | st.floats(allow_nan=False)


def batch_of(rows: Sequence[LatestRow]) -> pa.RecordBatch:
    columns = zip(*((*row[:3], *row.values) for row in rows), strict=True)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)


@st.composite
def flushes(draw: st.DrawFn) -> list[list[LatestRow]]:
    """Draw flushes, each with the latest row of its sensors, by sensor. The same sensors come again."""
    some_sensors = st.lists(st.integers(1, 6), min_size=1, unique=True).map(sorted)
    sets = draw(st.lists(some_sensors, min_size=1, max_size=3))
    ids = iter(draw(st.permutations(range(1, 200))))
    return [
        [
            LatestRow(sensor, draw(st.integers(0, 5)), next(ids), draw(st.tuples(values, values, values)))
            for sensor in of
        ]
        for of in draw(st.lists(st.sampled_from(sets), min_size=1, max_size=12))
    ]


def rank(row: LatestRow, horizon_us: float) -> tuple[bool, int, int]:
    return row.time <= horizon_us, row.time, row.id


@pytest.mark.parametrize("compact_rows", [0, 5, 100_000])
@given(flushes=flushes(), horizon_us=st.sampled_from([math.inf, 2, 0, -1]))
def test_the_latest_of_each_sensor_is_kept_whatever_came_together(
    flushes: list[list[LatestRow]], compact_rows: int, horizon_us: float
) -> None:
    """The latest of each sensor is kept, by time and then by id. A reading beyond the horizon gives way to another."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latest, "COMPACT_ROWS", compact_rows)
        noted = LatestRows()
        for rows in flushes:
            noted.record(batch_of(rows), horizon_us)
    expected: dict[int, LatestRow] = {}
    for row in (row for rows in flushes for row in rows):
        known = expected.get(row.sensor_id)
        if known is None or rank(row, horizon_us) > rank(known, horizon_us):
            expected[row.sensor_id] = row
    found = noted.latest(horizon_us)
    times = found["time"].cast(pa.int64())
    columns = (column.to_pylist() for column in (found["sensor_id"], times, *found.columns[2:]))
    latest_rows = [LatestRow(row[0], row[1], row[2], row[3:]) for row in zip(*columns, strict=True)]
    assert latest_rows == [expected[sensor] for sensor in sorted(expected)]


async def test_a_process_that_ends_while_it_writes() -> None:
    """A process that ends while it writes also writes what arrived meanwhile."""

    class Recording:
        def __init__(self) -> None:
            self.executed: list[str] = []
            self.answering = asyncio.Event()

        @asynccontextmanager
        async def connection(self, **_: float) -> AsyncIterator["Recording"]:
            yield self

        async def execute(self, _: str, columns: dict[str, str]) -> None:
            await self.answering.wait()
            self.executed.append(columns["sensor_id"])

    database = Recording()
    readings = LatestReadings(cast("Any", database))
    readings.record([LatestRow(1, 0, 1, (1.5, None, None))], None)
    writing = asyncio.create_task(readings.write())
    await asyncio.sleep(0)
    readings.record([LatestRow(2, 0, 2, (1.5, None, None))], None)
    writing.cancel()
    await asyncio.gather(writing, return_exceptions=True)
    database.answering.set()
    await readings.leave()
    assert database.executed == ["{1,2}"]


def test_no_rows_are_nothing_noted() -> None:
    """All of a flush may have been refused."""
    noted = LatestRows()
    noted.record(batch_of([LatestRow(1, 0, 1, (1.5, None, None))]).slice(0, 0))
    assert not noted.batches()


def test_what_the_database_did_not_take_is_noted_with_what_came_meanwhile() -> None:
    """Rows that the database did not take stay with those that arrived meanwhile, each sensor once."""

    class Away:
        @asynccontextmanager
        async def connection(self, **_: float) -> AsyncIterator[None]:
            readings.record([], batch_of([LatestRow(sensor, 5, sensor, (2.5, None, None)) for sensor in range(10)]))
            raise DatabaseUnavailable("away")
            yield

    readings = LatestReadings(Away())  # type: ignore[arg-type]
    for time_us in (8, 9, 3):
        readings.record(
            [], batch_of([LatestRow(sensor, time_us + sensor, 1, (1.5, None, None)) for sensor in range(10)])
        )
        with pytest.raises(DatabaseUnavailable):
            asyncio.run(readings.write())  # it uses a thread, for which virtual time does not wait
    (batch,) = readings.unwritten.batches()
    assert batch["time"].cast(pa.int64()).to_pylist() == [9 + sensor for sensor in range(10)]


def test_the_same_sensors_again_are_no_more_rows() -> None:
    """The same sensors again take no more memory, however many flushes come before a write."""
    noted = LatestRows()
    for time_us in range(100):
        noted.record(batch_of([LatestRow(sensor, time_us, time_us, (1.5, None, None)) for sensor in range(10)]))
    assert [batch.num_rows for batch in noted.batches()] == [10]


class Table:
    """The table, its connection and cursor, which take some statements and are unavailable after that."""

    edition = None

    def __init__(self, takes: int) -> None:
        self.takes = takes
        self.written: list[list[int]] = []
        """The sensors of each statement."""

    @asynccontextmanager
    async def connection(self, **_: float) -> AsyncIterator["Table"]:
        if len(self.written) == self.takes:
            raise DatabaseUnavailable("away")
        yield self

    async def execute(self, _: str, columns: dict[str, str]) -> None:
        self.written.append([int(sensor) for sensor in columns["sensor_id"][1:-1].split(",")])


def test_what_is_written_is_not_written_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Written rows are not written again: a database that fails at times gets all rows, in smaller pieces."""
    monkeypatch.setattr(latest, "PIECE_ROWS", 400)
    table = Table(3)
    readings = LatestReadings(cast("Any", table))
    readings.record([LatestRow(sensor, 1, sensor, (1.5, None, None)) for sensor in range(700)], None)
    readings.record([], batch_of([LatestRow(sensor, 1, sensor, (1.5, None, None)) for sensor in range(1_000, 2_000)]))
    with pytest.raises(DatabaseUnavailable):
        asyncio.run(readings.write())
    assert [len(sensors) for sensors in table.written] == [400, 300, 400]
    assert readings.age_s > 0
    table.takes = 99
    asyncio.run(readings.write())
    assert [len(sensors) for sensors in table.written] == [400, 300, 400, 200, 200, 200]
    assert [sensor for sensors in table.written for sensor in sensors] == [*range(700), *range(1_000, 2_000)]
    assert readings.age_s == 0
    asyncio.run(readings.write())
    assert len(table.written) == 6


def test_many_that_came_alone_are_not_held_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many single readings are not held one by one, and are all written."""
    monkeypatch.setattr(latest, "SINGLES", 10)
    table = Table(99)
    readings = LatestReadings(cast("Any", table))
    for start in range(0, 100, 5):
        readings.record(
            [LatestRow(sensor, 1, sensor, (1.5, None, 2.5)) for sensor in range(start + 5, start, -1)], None
        )
    assert sum(batch.num_rows for batch in readings.unwritten.batches()) == 100
    asyncio.run(readings.write())
    assert table.written == [list(range(1, 101))]


def test_an_age_that_grows_is_told_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """An age that grows is logged once, and once more when it is caught up."""
    monkeypatch.setattr(latest, "INTERVAL_S", 0)
    table, now = Table(0), iter(range(0, 10_000, 50))
    readings = LatestReadings(cast("Any", table), clock=lambda: next(now))

    async def work() -> None:
        readings.record([LatestRow(1, 1, 1, (1.5, None, None))], None)
        writing = asyncio.create_task(readings.run())
        while "is" not in caplog.text:
            await asyncio.sleep(0)
        table.takes = 1
        while "caught up" not in caplog.text:
            await asyncio.sleep(0.001)
        writing.cancel()

    with caplog.at_level(logging.INFO):
        asyncio.run(work())
    told = [record for record in caplog.records if "behind" in record.message]
    assert [(record.levelname, "away" in record.message) for record in told] == [("WARNING", True)]
