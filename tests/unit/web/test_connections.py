"""The connections that are dropped when there are too many."""

import logging

import pytest

from app.repeats import INTERVAL_S
from app.web.connections import ConnectionLimit


class Peer:
    """A connection that the test sees dropped."""

    def __init__(self, *, is_owed: bool = False) -> None:
        self.is_owed = is_owed
        self.dropped = False

    def drop(self) -> None:
        self.dropped = True


def test_oldest_gives_way() -> None:
    """The oldest idle connection without a key makes room, but not one that waits for an answer or has a key."""
    limit = ConnectionLimit(4, clock=lambda: 0.0)
    keyed, owed, old, young = Peer(), Peer(is_owed=True), Peer(), Peer()
    for count, peer in enumerate((keyed, owed, old, young), 1):
        assert limit.admit(peer, count=count)
    limit.forget(keyed)
    assert limit.admit(Peer(), count=5)
    assert [peer.dropped for peer in (keyed, owed, old, young)] == [False, False, True, False]
    assert limit.admit(Peer(), count=5)
    assert young.dropped


def test_no_room() -> None:
    """A new connection is refused where none gives way."""
    limit = ConnectionLimit(1, clock=lambda: 0.0)
    first, second = Peer(), Peer()
    assert limit.admit(first, count=1)
    limit.forget(first)
    assert not limit.admit(second, count=2)
    assert not first.dropped


def test_warns_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    """The log says that connections are used up, and not for each of them."""
    now = 0.0
    limit = ConnectionLimit(1, clock=lambda: now)
    with caplog.at_level(logging.WARNING, "app.web.connections"):
        for _ in range(100):
            limit.admit(Peer(), count=2)
        assert len(caplog.records) == 1
        now = INTERVAL_S
        limit.admit(Peer(), count=2)
    assert len(caplog.records) == 2
    assert "MAX_CONNECTIONS" in caplog.text
