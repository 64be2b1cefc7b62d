"""Bodies on their way from the socket to a route: read as far as they may go, while they keep coming.

A body has STALLED_AFTER_S from its beginning, and a second more for each MIN_BYTES_PER_S that have come; and no pause
in it may be longer than STALLED_AFTER_S. A device on 2G that sends 1 KB/s is well within that, whatever it sends; one
byte every four seconds is not.

POST /api/temperature_reading has its own way past ASGI (``app.web.protocol``), with the same patience.
"""

import asyncio
from collections.abc import AsyncIterator

from fastapi import Request
from starlette.requests import ClientDisconnect

from app.errors import BodyStalled, BodyTooLarge, MalformedBody, ShuttingDown

STALLED_AFTER_S = 10.0
"""A request of which nothing comes for so long is given up, with the room that it holds."""
MIN_BYTES_PER_S = 500
"""What Apache's mod_reqtimeout asks for by default."""


def due_at(since: float, piece_at: float, received_bytes: int) -> float:
    """Return when more of a body has to be there, seconds on the clock of the arguments.

    Args:
        since: when the body was first waited for.
        piece_at: when the last piece of it came; ``since`` if none has.
        received_bytes: how much of it has come.
    """
    return min(piece_at, since + received_bytes / MIN_BYTES_PER_S) + STALLED_AFTER_S


def stalled() -> BodyStalled:
    """Return the error for a body that is not there in time."""
    return BodyStalled(
        f"The body came too slowly. After its first {STALLED_AFTER_S:g} seconds it should average {MIN_BYTES_PER_S} "
        f"bytes/s, without a pause of {STALLED_AFTER_S:g} seconds."
    )


def announced_bytes(request: Request, *, limit_bytes: int) -> int:
    """Return the length that a request gives its body. 0 if it gives none. Raises BodyTooLarge."""
    announced = request.headers.get("content-length", "0")
    size = int(announced) if announced.isdigit() else 0
    if size > limit_bytes:
        raise BodyTooLarge(limit_bytes)
    return size


async def parts_of(request: Request, *, limit_bytes: int) -> AsyncIterator[bytes]:
    """Yield the body, in the parts in which it comes.

    Raises:
        BodyTooLarge: with the part that goes over the limit.
        BodyStalled, MalformedBody: it came too slowly, or its sender has gone.
        ShuttingDown: the stopping server's patience has ended before it.
    """
    stream = request.stream()
    size = 0
    clock = asyncio.get_running_loop().time
    since = piece_at = clock()
    try:
        while True:
            async with asyncio.timeout_at(due_at(since, piece_at, size)):
                part = await anext(stream, None)
            if part is None:
                return
            piece_at = clock()
            size += len(part)
            if size > limit_bytes:
                raise BodyTooLarge(limit_bytes)
            yield part
    except TimeoutError:
        raise stalled() from None
    except ClientDisconnect:
        raise MalformedBody("The body is incomplete. Send the whole request again.") from None
    except asyncio.CancelledError:
        raise ShuttingDown("Nothing is stored: the server is shutting down.", retry_after_s=5) from None
