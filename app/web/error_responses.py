"""The only table from errors to HTTP statuses and WebSocket close codes. Every error body is ``{"detail": …}``.

What sending again can't cure is never 5xx. (10)
"""

from collections.abc import Sequence

import orjson
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from app.errors import (
    BodyStalled,
    BodyTooLarge,
    Forbidden,
    IdempotencyConflict,
    InvalidParameter,
    InvalidReading,
    InvalidSensor,
    KeyOverShare,
    LiveUnavailable,
    MalformedBody,
    NotFound,
    NotStored,
    OutcomeUnknown,
    RejectedByDatabase,
    SensorFlowError,
    TooManyRows,
    TooManySubscribers,
    Unauthorized,
    UnsupportedEncoding,
    UnsupportedFormat,
)

STATUSES: dict[type[SensorFlowError], int] = {
    Unauthorized: 401,
    Forbidden: 403,
    NotFound: 404,
    BodyStalled: 408,
    IdempotencyConflict: 409,
    BodyTooLarge: 413,
    TooManyRows: 413,
    UnsupportedEncoding: 415,
    UnsupportedFormat: 415,
    InvalidParameter: 422,
    InvalidReading: 422,
    InvalidSensor: 422,
    MalformedBody: 422,
    RejectedByDatabase: 422,
    KeyOverShare: 429,
    NotStored: 503,
    OutcomeUnknown: 504,
}

CLOSE_CODES: dict[type[SensorFlowError], int] = {
    Unauthorized: 1008,
    Forbidden: 1008,
    TooManySubscribers: 1008,
    LiveUnavailable: 1013,
}
TOO_SLOW_CLOSE_CODE = 1013
"""Try again later (IANA's registry of WebSocket close codes)."""
TOO_MUCH_CLOSE_CODE = 1008


class Problem(BaseModel):
    """The description of an error."""

    detail: str


Headers = Sequence[tuple[bytes, bytes]]
CLOSE = (b"connection", b"close")

UNFORESEEN: tuple[int, Headers, bytes] = (500, [CLOSE], b'{"detail":"Internal Server Error"}')
"""The answer where something failed that is no SensorFlowError."""


def answer(error: SensorFlowError) -> tuple[int, Headers, bytes]:
    """Status, extra headers and JSON body for an error."""
    headers: list[tuple[bytes, bytes]] = []
    detail: object = str(error)
    match error:
        case InvalidReading():
            detail = error.details
        case RejectedByDatabase():
            detail = [{"type": "rejected_by_database", "loc": ["body"], "msg": str(error)}]
        case NotStored():
            headers.append((b"retry-after", b"%d" % error.retry_after_s))
            if isinstance(error, BodyStalled):
                headers.append(CLOSE)
        case Unauthorized():
            headers.append((b"www-authenticate", b"APIKey"))
        case BodyTooLarge():
            headers.append(CLOSE)
    status = next(STATUSES[kind] for kind in type(error).__mro__ if kind in STATUSES)  # of the nearest class above
    return status, headers, orjson.dumps({"detail": detail})


async def respond(_: Request, error: Exception) -> Response:
    """Answer for FastAPI where a route raises a SensorFlowError."""
    assert isinstance(error, SensorFlowError)  # it is registered for those
    status, headers, body = answer(error)
    return Response(
        body, status, {name.decode(): value.decode() for name, value in headers}, media_type="application/json"
    )
