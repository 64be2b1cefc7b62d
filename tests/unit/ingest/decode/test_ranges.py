"""Rows as ranges, and back."""

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.ingest.decode.ranges import as_ranges, rows_of_ranges


@pytest.mark.parametrize(
    ("rows", "ranges"),
    [([], ""), ([3], "3"), ([3, 4], "3-4"), ([3, *range(17, 403)], "3,17-402"), ([1, 3, 5], "1,3,5")],
)
def test_ranges(rows: list[int], ranges: str) -> None:
    """Rows that follow each other are one range."""
    assert as_ranges(pa.array(rows, pa.int64())) == ranges


@given(st.sets(st.integers(1, 200)))
def test_ranges_are_read_as_they_were_written(rows: set[int]) -> None:
    """Every row comes back, once, in order."""
    assert rows_of_ranges(as_ranges(pa.array(sorted(rows), pa.int64()))).to_pylist() == sorted(rows)
