"""Violations of limits agree with a plain check of each value."""

import struct
from array import array
from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from app.schema import METRIC_NAMES
from app.store.latest import LatestRow
from app.store.limits import NO_LIMITS, LimitSnapshot
from app.store.wire import HEADER, TRAILER, WIRE_SCHEMA, in_order

EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
T0_US = 1_689_172_245_000_000
TYPES = (
    ("q", int),
    ("text", str),
    ("?", bool),
    ("q", int),
    ("q", int),
    ("q", int),
    ("q", int),
    ("d", float),
    ("d", float),
)

Limits = dict[int, dict[str, tuple[float | None, float | None]]]


class Logged(NamedTuple):
    """A row of the log, with times in microseconds since 1970."""

    sensor_id: int
    metric: str
    is_above: bool
    readings: int
    first_us: int
    last_us: int
    time_us: int
    value: float
    bound: float


def snapshot(limits: Limits) -> LimitSnapshot:
    sensor_ids = sorted(limits)

    def bounds(metric: str, which: int, none: float) -> "array[float]":
        values = (limits[sensor_id].get(metric, (None, None))[which] for sensor_id in sensor_ids)
        return array("d", [none if value is None else value for value in values])

    lower = [bounds(metric, 0, -float("inf")) for metric in METRIC_NAMES]
    return LimitSnapshot(array("q", sensor_ids), lower, [bounds(metric, 1, float("inf")) for metric in METRIC_NAMES])


def batch_of(readings: Sequence[LatestRow]) -> pa.RecordBatch:
    columns: list[list[Any]] = [[reading.time for reading in readings], [reading.sensor_id for reading in readings]]
    columns += [[reading.id for reading in readings], [1] * len(readings)]
    columns += [[reading.values[place] for reading in readings] for place in range(len(METRIC_NAMES))]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, WIRE_SCHEMA, strict=True)]
    return in_order([pa.RecordBatch.from_arrays(arrays, schema=WIRE_SCHEMA)])


def decoded(pieces: Sequence[bytes]) -> list[Logged]:
    """Decode the rows of a binary COPY."""
    data = b"".join(pieces)
    assert data.startswith(HEADER)
    assert data.endswith(TRAILER)
    rows, at = [], len(HEADER)
    while data[at : at + 2] != TRAILER:
        assert struct.unpack_from("!h", data, at) == (len(TYPES),)
        at += 2
        values: list[Any] = []
        for code, _ in TYPES:
            (length,) = struct.unpack_from("!i", data, at)
            field = data[at + 4 : at + 4 + length]
            values.append(field.decode() if code == "text" else struct.unpack(f"!{code}", field)[0])
            at += 4 + length
        for place in (4, 5, 6):
            values[place] = round((EPOCH + timedelta(microseconds=values[place])).timestamp() * 1e6)
        rows.append(Logged(*values))
    return rows


def expected(limits: Limits, readings: Sequence[LatestRow]) -> set[Logged]:
    beyond: defaultdict[tuple[int, str, bool, float], list[tuple[float, int]]] = defaultdict(list)
    for reading in readings:
        for metric, value in zip(METRIC_NAMES, reading.values, strict=True):
            lower, upper = limits.get(reading.sensor_id, {}).get(metric, (None, None))
            if value is not None and lower is not None and value < lower:
                beyond[reading.sensor_id, metric, False, lower].append((value, reading.time))
            if value is not None and upper is not None and value > upper:
                beyond[reading.sensor_id, metric, True, upper].append((value, reading.time))
    found = set()
    for (sensor_id, metric, is_above, bound), values in beyond.items():
        furthest = (max if is_above else min)(value for value, _ in values)
        times = [time_us for _, time_us in values]
        time_us = max(time_us for value, time_us in values if value == furthest)
        found.add(Logged(sensor_id, metric, is_above, len(values), min(times), max(times), time_us, furthest, bound))
    return found


VALUES = st.none() | st.integers(-3, 3).map(float)
LOWER, UPPER = st.integers(-2, 0).map(float), st.integers(0, 2).map(float)
BOUNDS = st.tuples(LOWER, UPPER) | st.tuples(LOWER, st.none()) | st.tuples(st.none(), UPPER)
LIMITS = st.dictionaries(
    st.integers(1, 6), st.dictionaries(st.sampled_from(METRIC_NAMES), BOUNDS, min_size=1), max_size=5
)
READINGS = st.lists(
    st.tuples(st.integers(1, 6), st.integers(0, 9), st.tuples(VALUES, VALUES, VALUES)), min_size=1, max_size=40
).map(lambda rows: [LatestRow(row[0], T0_US + row[1] * 1_000_000, place, row[2]) for place, row in enumerate(rows)])


@given(limits=LIMITS, readings=READINGS)
def test_batch_violations(limits: Limits, readings: list[LatestRow]) -> None:
    """A batch has one row for each sensor, metric and side, which counts every reading beyond."""
    found = snapshot(limits).violations([], batch_of(readings))
    assert {*(decoded(found) if found else [])} == expected(limits, readings)


@given(limits=LIMITS, readings=READINGS)
def test_single_violations(limits: Limits, readings: list[LatestRow]) -> None:
    """Each single reading beyond a limit has a row of its own."""
    found = snapshot(limits).violations(readings, None)
    each = [row for reading in readings for row in expected(limits, [reading])]
    assert sorted(decoded(found) if found else []) == sorted(each)


def test_single_and_batch_violations() -> None:
    """Both kinds of a flush are in one COPY."""
    limits: Limits = {7: {"humidity": (None, 50.0)}}
    one, other = LatestRow(7, T0_US, 1, (20.0, 51.0, None)), LatestRow(7, T0_US, 2, (20.0, 52.0, None))
    found = decoded(snapshot(limits).violations([one], batch_of([other])))
    assert [(row.value, row.readings) for row in found] == [(51.0, 1), (52.0, 1)]


def test_no_limits() -> None:
    """Without limits nothing is looked at."""
    assert NO_LIMITS.violations([LatestRow(1, T0_US, 1, (1e9, None, None))], None) == []
