"""Both sides of a connection at once: what is sent, and the peer that may hang up."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any


async def until_first_ends(*sides: Coroutine[Any, Any, None], at_end: Callable[[], None] = lambda: None) -> None:
    """Run the sides of a connection. When the first of them ends, cancel the others, and raise what it raised.

    ``at_end`` is called as soon as the first has ended, before the others have.
    """
    tasks = [asyncio.create_task(side) for side in sides]
    try:
        ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in ended:
            task.result()
    finally:
        at_end()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
