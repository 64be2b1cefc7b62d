"""Works off what connections have received in slices, so that no peer holds up the event loop.

A read brings up to 250 KB, and 250 KB may be 42,000 WebSocket pings or 5,800 requests. Each connection with more than a
slice of it unparsed stands in one queue; each turn of the event loop takes slices from its front until TURN_S has
passed, and everything else has its turn in between. (14)
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable

TURN_S = 0.002
"""So long slices are worked off in one turn. A reading that is stored takes some ten turns."""


class Slices:
    """The queue of one event loop.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._queue: deque[Callable[[], bool]] = deque()
        self._is_scheduled = False

    def add(self, work: Callable[[], bool]) -> None:
        """Queue ``work``, which does a slice and returns whether it wants another. It must not raise."""
        self._queue.append(work)
        if not self._is_scheduled:
            self._is_scheduled = True
            asyncio.get_running_loop().call_soon(self._run)

    def _run(self) -> None:
        queue, clock = self._queue, self._clock
        until = clock() + TURN_S
        while queue:
            work = queue.popleft()
            if work():
                queue.append(work)
            if clock() >= until:
                break
        if queue:
            asyncio.get_running_loop().call_soon(self._run)
        else:
            self._is_scheduled = False
