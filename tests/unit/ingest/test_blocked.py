"""Known locks: the readings that they keep out, and when they are forgotten."""

from app.ingest.blocked import Blockage, Blocked
from app.ingest.request import WriteRequest
from tests.support.samples import T0_US, batch_of, reading, record

SPAN = (T0_US, T0_US + 9)


def blockage(*found: Blocked) -> Blockage:
    known = Blockage()
    for each in found:
        known.add(each)
    return known


def test_times() -> None:
    """Readings are blocked by their times, a batch by any of them, and both ends belong to a span."""
    known = blockage(Blocked([SPAN]))
    held = {
        time_us - T0_US: known.holds(WriteRequest(reading(time_us=time_us))) for time_us in range(T0_US - 1, T0_US + 11)
    }
    assert held == {-1: False, **dict.fromkeys(range(10), True), 10: False}
    before, after = reading(time_us=T0_US - 1), reading(time_us=T0_US + 10)
    assert not known.holds(WriteRequest(batch_of([before, after])))
    assert known.holds(WriteRequest(batch_of([before, reading(), after])))


def test_records() -> None:
    """Requests are blocked by their records: by some, or by every one."""
    known = blockage(Blocked((), [record("x").name]))
    assert known.holds(WriteRequest(reading(), record("x")))
    assert not known.holds(WriteRequest(reading(), record("y")))
    assert not known.holds(WriteRequest(reading()))
    known.add(Blocked((), None))
    assert known.holds(WriteRequest(reading(), record("y")))
    assert not known.holds(WriteRequest(reading()))


def test_new_names() -> None:
    """A lock on names only keeps out submissions with new names."""
    known = blockage(Blocked((), of_new_names=True))
    assert known.holds(WriteRequest(reading()), has_new_names=True)
    assert not known.holds(WriteRequest(reading(), record("x")))
    known.add(Blocked([SPAN]))
    assert known.of_new_names
    known.lift([WriteRequest(reading())])
    assert known.of_new_names


def test_lift() -> None:
    """Only contents that have been tried are forgotten."""
    other = (T0_US + 100, T0_US + 109)
    known = blockage(Blocked([SPAN, other]), Blocked((), [record("x").name, record("y").name]))
    known.lift([WriteRequest(reading(), record("x"))])
    assert known.spans == [other]
    assert known.records == {record("y").name}
    known.lift([WriteRequest(reading(time_us=other[1]), record("y"))])
    assert not known
