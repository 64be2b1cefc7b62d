"""What is known to be blocked: which readings it holds, and when it is forgotten."""

from app.ingest.blocked import Blockage, Blocked
from tests.unit.samples import T0_US, batch_of, claim, reading

SPAN = (T0_US, T0_US + 9)


def blockage(*found: Blocked) -> Blockage:
    known = Blockage()
    for each in found:
        known.add(each)
    return known


def test_times() -> None:
    """Readings are blocked by their times, a batch by any of them, and both ends belong to a span."""
    known = blockage(Blocked([SPAN]))
    held = {time_us - T0_US: known.holds(reading(time_us=time_us), None) for time_us in range(T0_US - 1, T0_US + 11)}
    assert held == {-1: False, **dict.fromkeys(range(10), True), 10: False}
    before, after = reading(time_us=T0_US - 1), reading(time_us=T0_US + 10)
    assert not known.holds(batch_of([before, after]), None)
    assert known.holds(batch_of([before, reading(), after]), None)


def test_claims() -> None:
    """Requests are blocked by their claims: by some, or by every one."""
    known = blockage(Blocked((), [claim("x").name]))
    assert known.holds(reading(), claim("x"))
    assert not known.holds(reading(), claim("y"))
    assert not known.holds(reading(), None)
    known.add(Blocked((), None))
    assert known.holds(reading(), claim("y"))
    assert not known.holds(reading(), None)


def test_new_names() -> None:
    """Of a lock on names it only matters whether there are new ones."""
    known = blockage(Blocked((), of_new_names=True))
    assert known.holds(reading(), None, has_new_names=True)
    assert not known.holds(reading(), claim("x"))
    known.add(Blocked([SPAN]))
    assert known.of_new_names
    known.lift([(reading(), None)])
    assert known.of_new_names


def test_lift() -> None:
    """Only contents that have been tried are forgotten."""
    other = (T0_US + 100, T0_US + 109)
    known = blockage(Blocked([SPAN, other]), Blocked((), [claim("x").name, claim("y").name]))
    known.lift([(reading(), claim("x"))])
    assert known.spans == [other]
    assert known.claims == {claim("y").name}
    known.lift([(reading(time_us=other[1]), claim("y"))])
    assert not known
