"""The choice of chunks that go to the columnstore, and of those that are written anew there."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from app.store.columnstore import (
    COMPRESSED,
    FIRST_ROWS,
    PARTIAL,
    QUIET,
    REWRITE_ROWS,
    UNORDERED,
    WASTED_BYTES,
    Fill,
    StoredChunk,
    is_over,
    needs_rewrite,
    piece_rows,
    wastes_rowstore,
)

END = datetime(2026, 11, 27, tzinfo=UTC)
CHUNK = StoredChunk(
    "readings", "_timescaledb_internal.c", END, status=COMPRESSED, rows=0, written=10, rowstore_bytes=0, columnstore="s"
)
LONG_AGO = END - timedelta(days=1)
MINUTES = timedelta(minutes=1)
GIB = 1 << 30


@pytest.mark.parametrize(
    ("sensors", "memory_bytes", "rows"),
    [
        (1, 2 * GIB, FIRST_ROWS),
        (1_000, 2 * GIB, 1_000_000),
        (10_000, 2 * GIB, 10_000_000),
        (10_000, GIB // 8, GIB // 8 // 137),
        (1_000_000, GIB // 8, 20_000_000),
    ],
)
def test_rows_gather_until_they_fill_batches(sensors: int, memory_bytes: int, rows: int) -> None:
    """As many rows gather as fill the batches of all sensors, but no more than the memory holds."""
    assert piece_rows("readings", sensors, memory_bytes=memory_bytes, batch_rows=1_000) == rows


@pytest.mark.parametrize("sensors", [1, 10_000])
def test_rows_of_aggregates_gather_as_memory_holds_them(sensors: int) -> None:
    """Rows of an aggregate stay outside the columnstore while the memory holds them: late readings change them."""
    assert piece_rows("readings_1m", sensors, memory_bytes=GIB, batch_rows=1_000) == GIB // 241


def test_a_chunk_is_over_when_it_has_ended_and_is_quiet() -> None:
    """A chunk is over some time after its end, and after the last row that was written to it."""
    assert not is_over(CHUNK, now=END + QUIET - MINUTES, quiet_since=LONG_AGO, quiet=QUIET)
    assert is_over(CHUNK, now=END + QUIET, quiet_since=LONG_AGO, quiet=QUIET)
    assert not is_over(CHUNK, now=END + 9 * QUIET, quiet_since=END + 9 * QUIET - MINUTES, quiet=QUIET)


def test_aggregates_wait_longer_for_late_readings() -> None:
    """A chunk of minutes is over an hour after its end."""
    chunk = replace(CHUNK, table="readings_1m")
    assert not is_over(chunk, now=END + 59 * MINUTES, quiet_since=LONG_AGO, quiet=QUIET)
    assert is_over(chunk, now=END + 60 * MINUTES, quiet_since=LONG_AGO, quiet=QUIET)


@pytest.mark.parametrize("batch_rows", [1_000, 100])
def test_a_chunk_of_small_batches_is_written_anew_once(batch_rows: int) -> None:
    """A chunk gains by being written anew if it has twice the batches that it needs, and nothing by a second time."""
    small = Fill(batches=20 * 10_000, rows=20 * 50 * 10_000, sensors=10_000)
    anew = replace(small, batches=10_000 * -(-20 * 50 // batch_rows))
    assert needs_rewrite(CHUNK, small, batch_rows=1_000)
    assert not needs_rewrite(CHUNK, anew, batch_rows=batch_rows)


def test_few_rows_of_many_sensors_are_left_as_they_are() -> None:
    """Batches that are small because their sensors have few rows gain nothing."""
    assert not needs_rewrite(CHUNK, Fill(batches=10_000, rows=100_000, sensors=10_000), batch_rows=1_000)


def test_an_unordered_chunk_is_written_anew() -> None:
    """A chunk of unordered batches is put in order, however full they are."""
    unordered = replace(CHUNK, status=COMPRESSED | UNORDERED)
    full = Fill(batches=1_000, rows=1_000_000, sensors=1_000)
    assert needs_rewrite(unordered, full, batch_rows=1_000)
    assert not needs_rewrite(CHUNK, full, batch_rows=1_000)


@pytest.mark.parametrize("status", [COMPRESSED, COMPRESSED | UNORDERED])
def test_a_large_chunk_keeps_no_writer_out(status: int) -> None:
    """A chunk that would keep writers out for long is not written anew."""
    large = Fill(batches=REWRITE_ROWS, rows=REWRITE_ROWS + 1, sensors=1)
    assert not needs_rewrite(replace(CHUNK, status=status), large, batch_rows=1_000)


def test_an_empty_rowstore_is_cut_short() -> None:
    """A rowstore that is empty gives its space back once the chunk has ended, however long ago that was."""
    chunk = replace(CHUNK, rowstore_bytes=WASTED_BYTES + 1)
    assert wastes_rowstore(chunk, now=END + MINUTES)
    assert wastes_rowstore(replace(chunk, status=COMPRESSED | UNORDERED), now=END + timedelta(days=99))
    assert not wastes_rowstore(chunk, now=END - MINUTES)
    for other in ({"rows": 1}, {"status": COMPRESSED | PARTIAL}, {"rowstore_bytes": WASTED_BYTES}):
        assert not wastes_rowstore(replace(chunk, **other), now=END + MINUTES)  # type: ignore[arg-type]
