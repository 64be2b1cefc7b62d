"""The choice of which repeated messages are logged."""

from app.repeats import INTERVAL_S, Repeats


def test_repeats() -> None:
    """A message is logged when it is new, and again after a while. Other numbers do not make it new."""
    repeats = Repeats()
    assert [now for now in range(200) if repeats.is_due(f"port {now} refused", now)] == [
        INTERVAL_S * times for times in range(4)
    ]
    assert repeats.is_due("no password", 200)
    assert repeats.is_due("port 1 refused", 201)
    assert not repeats.is_due("port 1 refused", 202)
    repeats.forget()
    assert repeats.is_due("port 1 refused", 203)
