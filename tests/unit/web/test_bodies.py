"""The deadlines of a body."""

import pytest

from app.web.bodies import MIN_BYTES_PER_S, STALLED_AFTER_S, due_at


@pytest.mark.parametrize(
    ("piece_at", "received_bytes", "due"),
    [
        (100, 0, 100 + STALLED_AFTER_S),
        (109, 3, 100 + 3 / MIN_BYTES_PER_S + STALLED_AFTER_S),
        (160, 60 * MIN_BYTES_PER_S, 160 + STALLED_AFTER_S),
        (101, 1_000_000, 101 + STALLED_AFTER_S),
    ],
    ids=["nothing yet", "drops", "as slow as it may be", "much, and then silence"],
)
def test_due_at(piece_at: float, received_bytes: int, due: float) -> None:
    """A body has ten seconds, a second more for each 500 bytes, and no pause longer than ten."""
    assert due_at(100, piece_at, received_bytes) == pytest.approx(due)
