"""An event loop on which waiting takes no time: when only timers are left, its clock jumps to the next one.

Tests on it sleep through minutes in microseconds and always see the same order of events. Where a real loop would wait
without end, this one raises.
"""

import asyncio
import selectors
from collections.abc import Callable

MOST_TURNS_AT_ONCE = 100_000


class _JumpingSelector(selectors.SelectSelector):
    def __init__(self, jump: Callable[[float | None], None]) -> None:
        super().__init__()
        self._jump = jump

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready:
            self._jump(timeout)
        return ready


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """A loop that starts at 0 s, and knows no other time than its timers'."""

    def __init__(self) -> None:
        self._now_s = 0.0
        self._turns_at_once = 0
        super().__init__(_JumpingSelector(self._jump))

    def time(self) -> float:
        return self._now_s

    def _jump(self, seconds: float | None) -> None:
        if seconds is None:
            raise RuntimeError("everybody waits, and nothing will ever happen")
        self._turns_at_once = 0 if seconds > 0 else self._turns_at_once + 1
        if self._turns_at_once > MOST_TURNS_AT_ONCE:
            raise RuntimeError("somebody runs in circles, and time can't pass")
        self._now_s += seconds
