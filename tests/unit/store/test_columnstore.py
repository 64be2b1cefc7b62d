"""The choice of chunks that go to the columnstore."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from app.store.columnstore import (
    COMPRESSED,
    PARTIAL,
    PIECE_ROWS,
    QUIET,
    UNORDERED,
    WASTED_INDEX_BYTES,
    StoredChunk,
    needs_conversion,
    wastes_index,
)

END = datetime(2026, 11, 27, tzinfo=UTC)
CHUNK = StoredChunk("readings", "_timescaledb_internal.c", END, status=0, rows=10, written=10, index_bytes=0)
LONG_AGO = END - timedelta(days=1)
MINUTES = timedelta(minutes=1)


@pytest.mark.parametrize("status", [0, COMPRESSED, COMPRESSED | PARTIAL, COMPRESSED | PARTIAL | UNORDERED])
def test_a_chunk_that_fills_up_is_converted_at_once(status: int) -> None:
    full = replace(CHUNK, status=status, rows=PIECE_ROWS)
    assert needs_conversion(full, now=END - MINUTES, quiet_since=END - MINUTES)


@pytest.mark.parametrize("status", [0, COMPRESSED | PARTIAL])
def test_the_rest_goes_when_the_chunk_is_over_and_quiet(status: int) -> None:
    chunk = replace(CHUNK, status=status)
    assert not needs_conversion(chunk, now=END + QUIET - MINUTES, quiet_since=LONG_AGO)
    assert needs_conversion(chunk, now=END + QUIET, quiet_since=LONG_AGO)
    assert not needs_conversion(chunk, now=END + 9 * QUIET, quiet_since=END + 9 * QUIET - MINUTES)


def test_aggregates_wait_longer_for_late_readings() -> None:
    chunk = replace(CHUNK, table="readings_1m")
    assert not needs_conversion(chunk, now=END + timedelta(hours=23), quiet_since=LONG_AGO)
    assert needs_conversion(chunk, now=END + timedelta(hours=24), quiet_since=LONG_AGO)


def test_a_chunk_of_unordered_batches_is_ordered_later() -> None:
    chunk = replace(CHUNK, status=COMPRESSED | UNORDERED, rows=0)
    assert not needs_conversion(chunk, now=END + timedelta(minutes=59), quiet_since=LONG_AGO)
    assert needs_conversion(chunk, now=END + timedelta(minutes=60), quiet_since=LONG_AGO)
    assert not needs_conversion(chunk, now=END + timedelta(hours=9), quiet_since=END + timedelta(hours=8, minutes=1))


def test_a_chunk_that_is_in_the_columnstore_is_left_alone() -> None:
    assert not needs_conversion(replace(CHUNK, status=COMPRESSED, rows=0), now=END + 99 * QUIET, quiet_since=LONG_AGO)


def test_indexes_of_an_empty_rowstore_are_made_anew() -> None:
    chunk = replace(CHUNK, status=COMPRESSED, rows=0, index_bytes=WASTED_INDEX_BYTES + 1)
    assert wastes_index(chunk, now=END + MINUTES)
    assert not wastes_index(chunk, now=END - MINUTES)
    for other in ({"rows": 1}, {"status": COMPRESSED | PARTIAL}, {"index_bytes": WASTED_INDEX_BYTES}):
        assert not wastes_index(replace(chunk, **other), now=END + MINUTES)  # type: ignore[arg-type]
