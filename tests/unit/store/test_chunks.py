"""The choice of chunks to make ahead and to merge. Nothing here talks to a database."""

from datetime import UTC, datetime, timedelta

import pytest

from app.store.chunks import (
    CHUNKS_AT_A_TIME,
    DAY,
    MERGED_BYTES,
    OldChunk,
    chunk_width,
    merge_width,
    mergeable,
    missing_chunks,
)
from app.store.columnstore import COMPRESSED, PARTIAL
from app.store.tiers import EPOCH

HOUR = timedelta(hours=1)
NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("rows_per_s", "width"),
    [(0, DAY), (500, DAY), (600, 6 * HOUR), (2_300, 6 * HOUR), (2_400, HOUR), (1e6, HOUR)],
)
def test_chunks_follow_the_rate(rows_per_s: float, width: timedelta) -> None:
    """Faster fleets get narrower chunks, within bounds."""
    assert chunk_width(rows_per_s) == width


def test_missing_chunks_leave_no_gap_and_do_not_overlap() -> None:
    """Chunks are made around those that there are, whatever their width."""
    existing = [(NOON - HOUR, NOON + HOUR / 4), (NOON + 2.5 * HOUR, NOON + 2.75 * HOUR), (NOON + DAY, NOON + 2 * DAY)]
    made = list(missing_chunks(existing, NOON, NOON + 4 * HOUR, HOUR))
    assert made == [
        (NOON + HOUR / 4, NOON + HOUR),
        (NOON + HOUR, NOON + 2 * HOUR),
        (NOON + 2 * HOUR, NOON + 2.5 * HOUR),
        (NOON + 2.75 * HOUR, NOON + 3 * HOUR),
        (NOON + 3 * HOUR, NOON + 4 * HOUR),
    ]


def test_nothing_is_missing_under_a_chunk_that_covers_all() -> None:
    """While a chunk of a whole day lasts, none is made."""
    assert not list(missing_chunks([(NOON - 12 * HOUR, NOON + 12 * HOUR)], NOON, NOON + 2 * HOUR, HOUR))


@pytest.mark.parametrize(("kept_days", "days"), [(0, 30), (1_000, 30), (300, 30), (99, 9), (20, 2), (19, 1), (0.5, 1)])
def test_merged_chunks_follow_retention(kept_days: float, days: int) -> None:
    """A merged chunk is no wider than a tenth of the time for which readings are kept, but for a day."""
    assert merge_width(kept_days) == days * DAY


def old(day: float, *, days: float = 1, status: int = COMPRESSED, size_bytes: int = 1, shape: str = "") -> OldChunk:
    start = EPOCH + day * DAY
    return OldChunk(f"{day}", start, start + days * DAY, status, size_bytes, shape)


def merged(chunks: list[OldChunk], *, days: int = 10, ended_by: float = 1_000) -> list[list[str]]:
    runs = mergeable(chunks, width=days * DAY, ended_by=EPOCH + ended_by * DAY)
    return [[chunk.name for chunk in run] for run in runs]


def test_chunks_of_one_span_are_merged() -> None:
    """Chunks are merged up to multiples of a width, whatever lies between them. One alone is left as it is."""
    assert merged([old(8), old(9), old(10), old(13), old(19), old(25)]) == [["8", "9"], ["10", "13", "19"]]


def test_a_span_is_merged_once_it_is_over() -> None:
    """A span that still gets chunks is left, so that none is copied with each new day."""
    chunks = [old(8), old(9), old(10), old(11)]
    assert merged(chunks, ended_by=19) == [["8", "9"]]
    assert merged(chunks, ended_by=20) == [["8", "9"], ["10", "11"]]


def test_unsettled_chunks_part_their_neighbours() -> None:
    """A chunk with rows outside the columnstore is not merged, and no others are across it."""
    assert merged([old(10), old(11), old(12, status=COMPRESSED | PARTIAL), old(13), old(14)]) == [
        ["10", "11"],
        ["13", "14"],
    ]
    assert merged([old(10), old(11, status=0), old(12)]) == []


def test_chunks_of_two_shapes_are_not_merged() -> None:
    """Only chunks with the same columns and settings become one."""
    assert merged([old(10), old(11), old(12, shape="other"), old(13, shape="other"), old(14)]) == [
        ["10", "11"],
        ["12", "13"],
    ]


def test_chunks_over_two_spans_are_left() -> None:
    """A chunk that lies in two spans is not merged with those of either."""
    assert merged([old(8), old(9, days=2), old(11), old(12)]) == [["11", "12"]]


def test_merged_chunks_are_bounded() -> None:
    """A merged chunk has a largest size, and is made of so many at most."""
    half = MERGED_BYTES // 2
    assert merged([old(10, size_bytes=half), old(11, size_bytes=half), old(12, size_bytes=half), old(13)]) == [
        ["10", "11"],
        ["12", "13"],
    ]
    assert merged([old(10), old(11, size_bytes=MERGED_BYTES), old(12), old(13)]) == [["12", "13"]]
    hours = [old(hour / 24, days=1 / 24) for hour in range(240)]
    assert [len(run) for run in merged(hours)] == [CHUNKS_AT_A_TIME] * 7 + [16]
