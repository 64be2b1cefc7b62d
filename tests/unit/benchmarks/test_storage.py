"""Readings for the measurement of storage have the times and the shape that their way promises."""

import pyarrow.compute as pc
import pytest

from benchmarks import storage
from benchmarks.report import Stored, Way, storage_table
from benchmarks.storage import MAX_LATE_MS, flushes, ways


@pytest.fixture(autouse=True)
def few_readings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make few readings, so that their values come again soon."""
    monkeypatch.setattr(storage, "MADE_ROWS", 1_000)


@pytest.mark.parametrize("interval_s", [1, 60])
def test_each_sensor_sends_steadily(interval_s: int) -> None:
    """Each sensor has a reading for each interval, also where the values begin anew, and where a flush ends."""
    sensors, rows = 300, 2_100
    found = list(flushes(Way("bulk", sensors, 350, interval_s), rows=rows))
    times = [time for flush in found for time in flush.columns["time"].cast("int64").to_pylist()]
    seen = [sensor for flush in found for sensor in flush.columns["sensor"].to_pylist()]
    assert seen == list(range(sensors)) * (rows // sensors)
    assert [time - times[0] for time in times] == [row // sensors * interval_s * 1_000_000 for row in range(rows)]


def test_some_readings_are_late() -> None:
    """The late readings are as many as promised, and not later than that."""
    way = Way("bulk", 10, 1_000, late=0.01)
    (on_time,), (late,) = (list(flushes(each, rows=1_000)) for each in (Way("bulk", 10, 1_000), way))
    delays = pc.subtract(*(flush.columns["time"].cast("int64") for flush in (on_time, late))).to_pylist()
    assert sum(delay > 0 for delay in delays) == 10
    assert max(delays) <= MAX_LATE_MS * 1_000
    assert min(delays) == 0


def test_a_flush_has_room_in_the_ledger() -> None:
    """No flush has more readings than the writer takes, and no way is there twice."""
    for sensors in (1_000, 10_000, 100_000):
        found = ways(sensors)
        assert len(set(found)) == len(found)
        assert max(way.flush_rows for way in found) <= storage.IMPORT


def test_the_table_has_bytes_a_reading() -> None:
    """A row has sizes over the readings, and a dash where there is nothing to divide by."""
    stored = Stored(
        rows=1_000,
        writing_s=0.5,
        converting_s=0.001,
        written_bytes=137_000,
        rest_bytes=21_000,
        batches=0,
        minutes=100,
        minutes_bytes=14_000,
    )
    row = storage_table({Way("import", 10, 100): stored}).splitlines()[-1]
    assert row == "| import | 10 | 1,000 | 100 | 2,000 | 1.00 | 137.0 | 21.0 | – | 14.0 | 140 |"
