"""The readings that are stored: a reading that came alone, or the readings of one request as Arrow columns.

Pure. In a batch, sensors stay as positions into the distinct names, so that the store turns each name into an id once a
batch and never once a row.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import repeat
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from app.schema import METRIC_FIELDS

MINUTE_US = 60_000_000
READING_SIZE_BYTES = 2_304
"""What one reading that waits alone is counted as, with its request and the longest name that a sensor may have: 2,178
bytes were measured."""
ROW_SIZE_BYTES = 192
"""What one row of a batch is counted as: its columns, their sorted copy, and the same on the wire."""
NAME_SIZE_BYTES = 128
"""What each of a batch's sensor names is counted as, beside its bytes: for a while it is a Python object."""


class Sender(NamedTuple):
    """The sender of a reading: the name of the API key, never the key, and the address it came from."""

    key_name: str
    client_ip: str


class Reading(NamedTuple):
    """One reading of one sensor, checked: finite values, a clean name, a time inside the window."""

    time_us: int
    """Microseconds since 1970-01-01 UTC."""
    sensor: str
    temperature: float | None
    """°C"""
    humidity: float | None
    """%"""
    pressure: float | None
    """hPa"""
    source: Sender

    @property
    def values(self) -> tuple[float | None, ...]:
        """Its values, in the order of METRICS."""
        return self[2:-1]

    @property
    def rows(self) -> int:
        """One."""
        return 1

    @property
    def size_bytes(self) -> int:
        """Bytes that it is counted as while it is held."""
        return READING_SIZE_BYTES

    def time_range_us(self) -> tuple[int, int]:
        """Its time, twice."""
        return self.time_us, self.time_us

    def is_any_between(self, first_us: int, last_us: int) -> bool:
        """Return whether it lies in a span of time, both ends included."""
        return first_us <= self.time_us <= last_us

    def minutes_before(self, time_us: int) -> set[int]:
        """Return its minute since 1970 UTC if it lies before a time."""
        return {self.time_us // MINUTE_US} if self.time_us < time_us else set()


BATCH_SCHEMA = pa.schema(
    [
        pa.field("time", pa.timestamp("us", "UTC"), nullable=False),
        pa.field("sensor", pa.int32(), nullable=False),
        *METRIC_FIELDS,
    ]
)


@dataclass(frozen=True, slots=True)
class Batch:
    """The readings of one request, checked as a Reading is. ``columns`` has BATCH_SCHEMA: its ``sensor`` is a position
    in ``sensors``, where every name occurs once.
    """

    sensors: pa.StringArray
    columns: pa.RecordBatch
    source: Sender
    is_atomic: bool = False
    """Whether all of it is stored or nothing."""

    @property
    def rows(self) -> int:
        """The number of readings."""
        return int(self.columns.num_rows)

    @property
    def size_bytes(self) -> int:
        """Bytes that it is counted as while it is held."""
        return self.rows * ROW_SIZE_BYTES + int(self.sensors.nbytes) + len(self.sensors) * NAME_SIZE_BYTES

    def time_range_us(self) -> tuple[int, int]:
        """Return the earliest and the latest time, in microseconds since 1970 UTC."""
        extremes = pc.min_max(self.columns["time"].cast(pa.int64()))
        return extremes["min"].as_py(), extremes["max"].as_py()

    def is_any_between(self, first_us: int, last_us: int) -> bool:
        """Return whether any reading lies in a span of time, both ends included."""
        earliest_us, latest_us = self.time_range_us()
        if latest_us < first_us or earliest_us > last_us:
            return False
        times = self.columns["time"].cast(pa.int64())
        return bool(pc.any(pc.and_(pc.greater_equal(times, first_us), pc.less_equal(times, last_us))).as_py())

    def minutes_before(self, time_us: int) -> set[int]:
        """Return the minutes since 1970 UTC that hold the readings before a time."""
        if self.time_range_us()[0] >= time_us:
            return set()
        times = self.columns["time"]
        minutes = pc.floor_temporal(times.filter(pc.less(times, pa.scalar(time_us, times.type))), unit="minute")
        return {time_us // MINUTE_US for time_us in pc.unique(minutes).cast(pa.int64()).to_pylist()}

    def readings(self, start: int, rows: int) -> Iterator[Reading]:
        """Yield ``rows`` readings, beginning at the row ``start``."""
        part = self.columns.slice(start, rows)
        times, sensors = part["time"].cast(pa.int64()), self.sensors.take(part["sensor"])
        columns = (column.to_pylist() for column in (times, sensors, *part.columns[2:]))
        yield from map(Reading._make, zip(*columns, repeat(self.source, len(part)), strict=True))

    def latest(self) -> int:
        """Return the position of the row with the latest time: the last of several."""
        times = self.columns["time"]
        return int(pc.indices_nonzero(pc.equal(times, pc.max(times)))[-1].as_py())


Content = Reading | Batch
