"""A batch: its rows one by one, its size, and its latest row."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.ingest.batch import NAME_SIZE_BYTES, READING_SIZE_BYTES, ROW_SIZE_BYTES, Reading
from tests.support.samples import SOURCE, T0_US, batch_of, reading, readings


@given(st.lists(readings, max_size=20), st.data())
def test_its_rows_are_the_readings_in_their_order_from_anywhere_to_anywhere(
    sent: list[Reading], data: st.DataObject
) -> None:
    sent = [each._replace(source=SOURCE) for each in sent]
    batch = batch_of(sent)
    start = data.draw(st.integers(0, len(sent)))
    rows = data.draw(st.integers(0, len(sent) + 1))
    assert batch.rows == len(sent)
    part = list(batch.readings(start, rows))
    assert list(map(repr, part)) == list(map(repr, sent[start : start + rows])), "repr tells -0.0 from 0.0"


def test_a_reading_is_counted_as_one_row_of_the_largest_size() -> None:
    assert (reading().rows, reading().size_bytes) == (1, READING_SIZE_BYTES)


def test_a_batch_is_counted_by_its_rows_and_each_name_once() -> None:
    batch = batch_of([reading("ab"), reading("cde"), reading("ab")])
    assert batch.size_bytes == 3 * ROW_SIZE_BYTES + 2 * NAME_SIZE_BYTES + batch.sensors.nbytes
    assert batch.sensors.nbytes == len("abcde") + 2 * 4  # an offset each


@pytest.mark.parametrize(
    ("seconds", "latest"), [([0], 0), ([3, 1, 2], 0), ([1, 3, 2], 1), ([1, 2, 2, 0, 2, 1], 4), ([-5, -7], 0)]
)
def test_the_latest_is_the_last_of_those_with_the_latest_time(seconds: list[int], latest: int) -> None:
    assert batch_of([reading(time_us=T0_US + second) for second in seconds]).latest() == latest
