"""POST /api/temperature_reading: one reading, answered once it is committed.

What stands behind the documented route is called by ``app.web.protocol``, past ASGI and FastAPI, since this path is
walked once a reading: it costs no task, no dependency and no log line.

Promises:
    * 201 is sent only with the receipt of a committed reading. (3)
    * A key is checked before the body is read, and no more of the body is read than may be.
"""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

from fastapi import Security
from fastapi.routing import APIRoute
from pydantic import BaseModel

from app.errors import SensorFlowError, UnsupportedEncoding
from app.ingest.batch import Reading, Sender
from app.ingest.decode.reading import ReadingBody, decode_reading
from app.ingest.decode.timestamps import TimeWindow
from app.ingest.idempotency import IdempotencyRecord, RequestIdentity
from app.ingest.request import WriteRequest
from app.ingest.result import WriteOutcome, WriteResult
from app.ingest.service import WriteService
from app.web import auth
from app.web.access import KEY_HEADER, refusals
from app.web.error_responses import Problem
from app.web.idempotency import IDEMPOTENCY_KEY, fingerprint, require_usable
from app.web.measure import Observe
from app.web.protocol import BodyHandler, Exchange

PATH = "/api/temperature_reading"
MAX_ADDRESS_LENGTH = 45
"""An IPv6 address has no more; what a trusted proxy forwards may be anything."""


class StoredReading(BaseModel):
    """A reading as it was committed."""

    id: int
    temperature: float
    humidity: float
    pressure: float
    date_recorded: str
    time_recorded: str
    sensor_id: str
    client_ip: str


class ReadingEndpoint:
    """The work behind POST /api/temperature_reading: an ``app.web.protocol.Endpoint``.

    Args:
        service: stores the readings.
        api_keys: the known keys.
        window: which times a reading may bring.
        max_body_bytes: the largest body that is read.
        now_us: microseconds since 1970 UTC.
        observe: is told route, method, status and duration in seconds of each request.
        clock: seconds, for ``observe``.
    """

    path = PATH.encode()

    def __init__(
        self,
        *,
        service: WriteService,
        api_keys: auth.ApiKeys,
        window: TimeWindow,
        max_body_bytes: int,
        now_us: Callable[[], int],
        observe: Observe,
        clock: Callable[[], float],
    ) -> None:
        self.max_body_bytes = max_body_bytes
        self.observe = partial(observe, PATH, "POST")
        self.clock = clock
        self._service = service
        self._api_keys = api_keys
        self._window = window
        self._now_us = now_us
        self._writing: set[asyncio.Task[None]] = set()

    def knows(self, key: bytes | None) -> bool:
        """Return whether this is an API key, whatever it may be used for."""
        return self._api_keys.knows(key)

    def open(self, exchange: Exchange) -> BodyHandler:
        """Check the key, and return the function that stores a reading and answers when it is committed.

        Raises:
            Unauthorized, Forbidden, UnsupportedEncoding: the body is not asked for.
        """
        key_name = self._api_keys.authorize(exchange.headers.get(b"x-api-key"), auth.Scope.INGEST)
        if exchange.headers.get(b"content-encoding", b"identity") != b"identity":
            raise UnsupportedEncoding("Send the reading without a Content-Encoding.")

        def on_result(result: WriteOutcome) -> None:
            if isinstance(result, SensorFlowError):
                exchange.refuse(result)
            else:
                exchange.answer(201, (), result.to_json())

        def decode(body: bytes) -> Reading:
            source = Sender(key_name, exchange.client_ip[:MAX_ADDRESS_LENGTH])
            return decode_reading(body, source=source, window=self._window, now_us=self._now_us())

        def write(body: bytes) -> None:
            self._service.submit(WriteRequest(decode(body)), on_result)

        if b"idempotency-key" not in exchange.headers:
            return write
        idempotency_key = exchange.headers[b"idempotency-key"].decode("latin-1")
        require_usable(idempotency_key)

        async def write_unless_repeated(body: bytes, identity: RequestIdentity) -> None:
            result: WriteResult | None = await self._service.replay(identity)
            if result is None:
                result = await self._service.write(WriteRequest(decode(body), IdempotencyRecord(identity)))
            on_result(result)

        def write_once(body: bytes) -> None:
            identity = fingerprint(idempotency_key, key_name, self.path, body)
            self._writing.add(writing := asyncio.create_task(write_unless_repeated(body, identity)))
            writing.add_done_callback(self._writing.discard)
            writing.add_done_callback(exchange.fail_with)

        return write_once


async def post_temperature_reading(reading: ReadingBody, key: Annotated[str, Security(KEY_HEADER)]) -> Any:
    """Store one reading. 201 means that it is committed; 503 that it is not stored, and to send it again after
    Retry-After seconds; 504 that the database did not say.
    """
    raise NotImplementedError("app.web.protocol takes these requests past FastAPI")


def documented_route() -> APIRoute:
    """Return the route as the OpenAPI document shows it, and as FastAPI refuses other methods."""
    return APIRoute(
        PATH,
        post_temperature_reading,
        methods=["POST"],
        status_code=201,
        response_model=StoredReading,
        tags=["ingest"],
        summary="Store one reading",
        responses={
            **refusals(auth.Scope.INGEST),
            408: {"model": Problem, "description": "The body stopped coming"},
            409: {"model": Problem, "description": "The Idempotency-Key was used for another request"},
            413: {"model": Problem, "description": "The body is too large"},
            429: {"model": Problem, "description": "Not stored: this key holds its share of the buffer"},
            415: {"model": Problem, "description": "The body is encoded"},
            503: {"model": Problem, "description": "Not stored; send again after Retry-After seconds"},
            504: {"model": Problem, "description": "The database did not say whether it is stored"},
        },
        openapi_extra={"parameters": [IDEMPOTENCY_KEY]},
    )
