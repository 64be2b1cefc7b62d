"""The bytes of binary COPY, packed or encoded, hold what was sent, by a slow and obvious reader."""

import struct
from collections.abc import Sequence

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.ingest.batch import Reading
from app.store.wire import HEADER, TRAILER, WIRE_SCHEMA, columns_of, encode_rows, in_order, pack_reading
from tests.support.samples import T0_US, batch_of, reading, readings

POSTGRES_EPOCH_US = 946_684_800 * 1_000_000
FORMATS = ("!q", "!i", "!q", "!i", "!d", "!d", "!d")

Row = tuple[object, ...]


def read_back(rows: bytes) -> list[Row]:
    """Decode rows of binary COPY without header and trailer, with times in microseconds since 1970."""
    found = []
    while rows:
        (fields,), rows = struct.unpack("!h", rows[:2]), rows[2:]
        assert fields == len(FORMATS)
        row: list[object] = []
        for format_ in FORMATS:
            (size,), rows = struct.unpack("!i", rows[:4]), rows[4:]
            assert size in (-1, struct.calcsize(format_))
            row += struct.unpack(format_, rows[:size]) if size > 0 else [None]
            rows = rows[max(size, 0) :]
        assert isinstance(row[0], int)
        found.append((row[0] + POSTGRES_EPOCH_US, *row[1:]))
    return found


def rows_of(batches: Sequence[pa.RecordBatch]) -> bytes:
    """Their rows, without the trailer that must be there."""
    encoded = b"".join(encode_rows(in_order(batches)))
    assert encoded.endswith(TRAILER)
    return encoded.removesuffix(TRAILER)


def columns(
    sent: Sequence[Reading], *, sensor_ids: Sequence[int], first_id: int = 1, source_id: int = 1
) -> pa.RecordBatch:
    return columns_of(batch_of(sent), pa.array(sensor_ids, pa.int32()), first_id, source_id)


@given(
    readings,
    st.integers(1, 2**31 - 1),
    st.integers(1, 2**62),
    st.integers(1, 2**31 - 1),
)
def test_a_packed_reading_and_columns_of_it_are_the_same_bytes_and_mean_it(
    sent: Reading, sensor_id: int, row_id: int, source_id: int
) -> None:
    packed = pack_reading(sent, sensor_id, row_id, source_id)
    assert repr(read_back(packed)) == repr([(sent.time_us, sensor_id, row_id, source_id, *sent[2:5])])
    batch = columns([sent], sensor_ids=[sensor_id], first_id=row_id, source_id=source_id)
    assert b"".join(encode_rows(in_order([batch]))) == packed + TRAILER


@given(st.lists(st.lists(readings, min_size=1, max_size=8), min_size=1, max_size=4))
def test_batches_are_put_together_by_sensor_and_from_the_latest_back(sent: list[list[Reading]]) -> None:
    """Batches are put together by sensor and from the latest back, with every row once and ids in the sent order."""
    few = {name: place % 3 for place, name in enumerate({each.sensor for batch in sent for each in batch})}
    parts, expected, first_id = [], [], 1
    for source_id, batch in enumerate(sent):
        names = list(dict.fromkeys(each.sensor for each in batch))
        ids = [few[name] for name in names]
        parts.append(columns(batch, sensor_ids=ids, first_id=first_id, source_id=source_id))
        expected += [
            (each.time_us, few[each.sensor], first_id + place, source_id, *each[2:5])
            for place, each in enumerate(batch)
        ]
        first_id += len(batch)
    rows = read_back(rows_of(parts))
    assert [row[1::-1] for row in rows] == sorted((row[1::-1] for row in expected), key=lambda key: (key[0], -key[1]))
    assert sorted(map(repr, rows)) == sorted(map(repr, expected))


@given(st.lists(readings, min_size=2, max_size=8), st.data())
def test_a_slice_of_a_batch_is_encoded_as_that_part_alone(sent: list[Reading], data: st.DataObject) -> None:
    names = list(dict.fromkeys(each.sensor for each in sent))
    batch = columns(sent, sensor_ids=range(1, len(names) + 1))
    start = data.draw(st.integers(0, len(sent) - 1))
    rows = data.draw(st.integers(1, len(sent) - start))
    part = read_back(rows_of([batch.slice(start, rows)]))
    assert {row[2] for row in part} == set(range(1 + start, 1 + start + rows))
    assert len(part) == rows


def test_columns_have_one_form_whatever_the_batch() -> None:
    batch = columns([reading("a"), reading("b"), reading("a", time_us=T0_US + 1)], sensor_ids=[7, 5], first_id=40)
    assert batch.schema.equals(WIRE_SCHEMA, check_metadata=True)
    assert batch["sensor_id"].to_pylist() == [7, 5, 7]
    assert batch["id"].to_pylist() == [40, 41, 42]
    batch.validate(full=True)


@pytest.mark.parametrize("place", [2, 3, 4])
def test_a_missing_measure_is_null_and_not_zero(place: int) -> None:
    values = list(reading())
    values[place] = None
    ((*_, temperature, humidity, pressure),) = read_back(pack_reading(Reading(*values), 1, 1, 1))  # type: ignore[arg-type]
    assert [place for place, value in enumerate((temperature, humidity, pressure), 2) if value is None] == [place]


def test_header_and_trailer_are_those_of_the_format() -> None:
    assert b"PGCOPY\n\xff\r\n\0" + struct.pack("!ii", 0, 0) == HEADER
    assert struct.pack("!h", -1) == TRAILER
