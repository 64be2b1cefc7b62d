"""Bodies on their way from the socket to a route: read as far as they may go, while they keep coming.

POST /api/temperature_reading has its own way past ASGI (``app.web.protocol``), with the same patience.
"""

import asyncio
from collections.abc import AsyncIterator

from fastapi import Request
from starlette.requests import ClientDisconnect

from app.errors import BodyStalled, BodyTooLarge, MalformedBody, ShuttingDown

STALLED_AFTER_S = 10.0
"""A request of which nothing comes for so long is given up, with the room that it holds."""


def stalled() -> BodyStalled:
    """What is said then."""
    return BodyStalled(f"Nothing of the body came for {STALLED_AFTER_S:g} seconds.")


def announced_bytes(request: Request, *, limit_bytes: int) -> int:
    """The length that a request gives its body; 0 if it gives none. Raises BodyTooLarge."""
    announced = request.headers.get("content-length", "0")
    size = int(announced) if announced.isdigit() else 0
    if size > limit_bytes:
        raise BodyTooLarge(limit_bytes)
    return size


async def parts_of(request: Request, *, limit_bytes: int) -> AsyncIterator[bytes]:
    """The body, in the parts in which it comes.

    Raises:
        BodyTooLarge: with the part that goes over the limit.
        BodyStalled, MalformedBody: it stopped coming, or its sender has gone.
        ShuttingDown: the stopping server's patience has ended before it.
    """
    stream = request.stream()
    size = 0
    try:
        while True:
            async with asyncio.timeout(STALLED_AFTER_S):
                part = await anext(stream, None)
            if part is None:
                return
            size += len(part)
            if size > limit_bytes:
                raise BodyTooLarge(limit_bytes)
            yield part
    except TimeoutError:
        raise stalled() from None
    except ClientDisconnect:
        raise MalformedBody("The body was cut short.") from None
    except asyncio.CancelledError:
        raise ShuttingDown("Nothing is stored: the server is shutting down.", retry_after_s=5) from None
