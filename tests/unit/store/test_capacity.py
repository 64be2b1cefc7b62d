"""The connections and locks that PostgreSQL has room for, computed."""

import pytest

from app.errors import ConfigurationError
from app.store.capacity import Room, lacking_locks, pool_size


@pytest.mark.parametrize(
    ("room", "workers", "size"),
    [
        (Room(100, 3, None, 0), 1, 4),
        (Room(100, 3, None, 60), 2, 4),
        (Room(30, 3, None, 0), 4, 4),
        (Room(30, 3, None, 0), 5, 3),
        (Room(30, 3, None, 0), 6, 2),
        (Room(30, 3, None, 20), 6, 2),
        (Room(100, 3, 10, 50), 2, 3),
    ],
)
def test_pool_fits_into_what_is_left(room: Room, workers: int, size: int) -> None:
    """A pool fits into the connections that are left, but not below the minimum of a worker."""
    assert pool_size(room, workers) == size


@pytest.mark.parametrize(
    ("room", "workers", "said"),
    [
        (
            Room(30, 3, None, 0),
            12,
            "WORKERS = 12 needs 48 .* allows 27 .*max_connections = 30.*Set WORKERS to 6 at most",
        ),
        (Room(100, 3, 8, 0), 3, "allows 8 .*account in DATABASE_URL may have 8.*Set WORKERS to 2"),
        (Room(5, 3, None, 0), 1, "Raise the limit"),
    ],
)
def test_too_many_workers_are_refused(room: Room, workers: int, said: str) -> None:
    """With what to do about it."""
    with pytest.raises(ConfigurationError, match=said):
        pool_size(room, workers)


def test_locks_for_all_chunks() -> None:
    """Two queries over all of them have room, or the setting that gives them room is named."""
    assert lacking_locks(800, 64, 100) is None
    assert lacking_locks(801, 64, 100) == 128
    assert lacking_locks(1_826, 64, 100) == 256
