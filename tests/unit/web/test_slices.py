"""The bytes that connections have received are parsed in turns, and no connection waits for another."""

import asyncio
from collections.abc import Callable

from app.web.slices import TURN_S, Slices


class Clock:
    """Time that passes by work."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def work(clock: Clock, done: list[str], name: str, *, slices: int, cost_s: float) -> Callable[[], bool]:
    left = slices

    def do() -> bool:
        nonlocal left
        clock.now += cost_s
        done.append(name)
        left -= 1
        return left > 0

    return do


async def test_connections_take_turns() -> None:
    """Each connection's slice is followed by the next connection's."""
    clock, done = Clock(), list[str]()
    slices = Slices(clock=clock)
    for name in ("a", "b"):
        slices.add(work(clock, done, name, slices=3, cost_s=0))
    await asyncio.sleep(0)
    assert done == ["a", "b"] * 3


async def test_turn_is_bounded() -> None:
    """However many connections have work, a turn of the event loop does no more than TURN_S of it."""
    clock, done = Clock(), list[str]()
    slices = Slices(clock=clock)
    for number in range(50):
        slices.add(work(clock, done, str(number), slices=2, cost_s=TURN_S / 4))
    turns = 0
    while len(done) < 100:
        before = clock.now
        await asyncio.sleep(0)
        turns += 1
        assert clock.now - before <= 1.25 * TURN_S
    assert turns == 25


async def test_work_may_come_again() -> None:
    """When the queue has been empty, what is added later is worked off as well."""
    clock, done = Clock(), list[str]()
    slices = Slices(clock=clock)
    for _ in range(2):
        slices.add(work(clock, done, "a", slices=1, cost_s=0))
        await asyncio.sleep(0)
    assert done == ["a", "a"]
