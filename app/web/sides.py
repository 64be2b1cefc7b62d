"""Both sides of a connection at once: what is sent, and the peer that may hang up."""

import asyncio
from collections.abc import Coroutine
from typing import Any


async def until_first_ends(*sides: Coroutine[Any, Any, None]) -> None:
    """Run the sides of a connection. When the first of them ends, cancel the others, and raise what it raised."""
    tasks = [asyncio.create_task(side) for side in sides]
    try:
        ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in ended:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
