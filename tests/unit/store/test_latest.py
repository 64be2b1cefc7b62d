"""The latest of many rows, without a database."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import DatabaseAway
from app.store import latest
from app.store.latest import SCHEMA, LatestReadings, LatestRows, Noted

values = st.none() | st.floats(allow_nan=False)


def batch_of(rows: Sequence[Noted]) -> pa.RecordBatch:
    columns = zip(*rows, strict=True)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)


@st.composite
def flushes(draw: st.DrawFn) -> list[list[Noted]]:
    """Of each flush the latest row of each of its sensors, by sensor; flushes of one set of sensors occur again."""
    some_sensors = st.lists(st.integers(1, 6), min_size=1, unique=True).map(sorted)
    sets = draw(st.lists(some_sensors, min_size=1, max_size=3))
    ids = iter(draw(st.permutations(range(1, 200))))
    return [
        [Noted(sensor, draw(st.integers(0, 3)), next(ids), *draw(st.tuples(values, values, values))) for sensor in of]
        for of in draw(st.lists(st.sampled_from(sets), min_size=1, max_size=12))
    ]


@pytest.mark.parametrize("compact_rows", [0, 5, 100_000])
@given(flushes=flushes())
def test_the_latest_of_each_sensor_is_kept_whatever_came_together(
    flushes: list[list[Noted]], compact_rows: int
) -> None:
    """Later by time, and of one time by id."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latest, "COMPACT_ROWS", compact_rows)
        noted = LatestRows()
        for rows in flushes:
            noted.note(batch_of(rows))
    expected: dict[int, Noted] = {}
    for row in (row for rows in flushes for row in rows):
        if row.sensor_id not in expected or (row.time, row.id) > expected[row.sensor_id][1:3]:
            expected[row.sensor_id] = row
    found = noted.latest()
    times = found["time"].cast(pa.int64())
    columns = (column.to_pylist() for column in (found["sensor_id"], times, *found.columns[2:]))
    assert list(map(Noted._make, zip(*columns, strict=True))) == [expected[sensor] for sensor in sorted(expected)]


def test_no_rows_are_nothing_noted() -> None:
    """All of a flush may have been refused."""
    noted = LatestRows()
    noted.note(batch_of([Noted(1, 0, 1, 1.5, None, None)]).slice(0, 0))
    assert not noted.batches()


def test_what_the_database_did_not_take_is_noted_with_what_came_meanwhile() -> None:
    """And the same sensors are held once."""

    class Away:
        @asynccontextmanager
        async def borrow(self, **_: float) -> AsyncIterator[None]:
            readings.note([], batch_of([Noted(sensor, 5, sensor, 2.5, None, None) for sensor in range(10)]))
            raise DatabaseAway("away")
            yield

    readings = LatestReadings(Away())  # type: ignore[arg-type]
    for time_us in (8, 9, 3):
        readings.note([], batch_of([Noted(sensor, time_us + sensor, 1, 1.5, None, None) for sensor in range(10)]))
        with pytest.raises(DatabaseAway):
            asyncio.run(readings.write())  # it uses a thread, for which virtual time does not wait
    (batch,) = readings.unwritten.batches()
    assert batch["time"].cast(pa.int64()).to_pylist() == [9 + sensor for sensor in range(10)]


def test_the_same_sensors_again_are_no_more_rows() -> None:
    """However many flushes come before the database takes what is noted."""
    noted = LatestRows()
    for time_us in range(100):
        noted.note(batch_of([Noted(sensor, time_us, time_us, 1.5, None, None) for sensor in range(10)]))
    assert [batch.num_rows for batch in noted.batches()] == [10]
