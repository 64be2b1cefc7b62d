"""POST /api/readings: many readings in one request, answered once they are committed.

Promises:
    * 201 and ``stored`` speak of committed readings; 202, asked for with ``Prefer: respond-async``, of buffered. (3)
    * An Idempotency-Key seen before is answered as it was the first time, and stores nothing. (5)
    * A key is checked before the body is read, and what was announced must fit into the buffer. Room is held for what
      has come, not for what was announced: bodies that come slowly lock no other out.
    * A body without a single reading is refused: it is no success of anything.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Literal

import orjson
import pyarrow as pa
from fastapi import APIRouter, Request, Security
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.responses import Response

from app.errors import (
    InvalidParameter,
    MalformedBody,
    OutcomeUnknown,
    SensorFlowError,
    TooManyRows,
    UnsupportedFormat,
)
from app.ingest.batch import Sender
from app.ingest.decode.columns import Decoded, DecodeOptions
from app.ingest.decode.inflate import codec_of, inflated
from app.ingest.decode.ranges import rows_of_ranges
from app.ingest.decode.readings import COMPACT_FORMATS, Format, decode_opened, decode_readings, open_readings
from app.ingest.decode.timestamps import Precision, TimeWindow
from app.ingest.idempotency import IdempotencyRecord, RequestIdentity, StoredResult
from app.ingest.request import WriteRequest
from app.ingest.result import MAX_ERRORS, BatchResult, WriteOutcome
from app.ingest.service import DECODING_FACTOR, WriteService
from app.schema import EXAMPLE_METRIC, METRICS, OTHER_EXAMPLE_METRIC
from app.web import auth, error_responses
from app.web.access import KEY_HEADER, key_bytes, refusals
from app.web.bodies import announced_bytes, parts_of
from app.web.error_responses import Problem
from app.web.idempotency import IDEMPOTENCY_KEY, OF_REJECTED, fingerprint, require_usable
from app.web.write_single import MAX_ADDRESS_LENGTH

logger = logging.getLogger(__name__)

PATH = "/api/readings"
DECODE_IN_THREAD_BYTES = 65_536
"""Larger bodies are decoded beside the event loop: they take 0.3 ms and more, a thread's hand-over 0.1."""


class Options(BaseModel):
    """The query of a request."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    precision: Precision = Precision.AUTO
    partial: bool | Literal["ok"] = True
    backfill: bool = False


PARAMETERS = [
    {
        "in": "query",
        "name": "precision",
        "schema": {"enum": [unit.value for unit in Precision], "default": Precision.AUTO.value},
        "description": "The unit of times that are numbers; auto tells it by magnitude.",
    },
    {
        "in": "query",
        "name": "partial",
        "schema": {"enum": ["true", "false", "ok"], "default": "true"},
        "description": "Whether good readings are stored where others are bad. false: all or none. ok: as true, and "
        "the answer is 200 (202 for respond-async), not 422, for senders that repeat any 4xx.",
    },
    {
        "in": "query",
        "name": "backfill",
        "schema": {"type": "boolean", "default": False},
        "description": "Whether readings may be older than ACCEPT_PAST_DAYS. A request that was rejected in part, sent "
        "again with backfill=true and the same Idempotency-Key, has only its rejected readings stored.",
    },
    IDEMPOTENCY_KEY,
    {
        "in": "header",
        "name": "Prefer",
        "schema": {"type": "string"},
        "example": "respond-async",
        "description": "respond-async: answered once the readings are in memory, with 202.",
    },
]
EXAMPLES: Mapping[Format, object] = {
    Format.JSON: [{"sensor_id": "greenhouse-1", **{name: metric.example for name, metric in METRICS.items()}}],
    Format.NDJSON: f'{{"sensor_id": "greenhouse-1", "{EXAMPLE_METRIC}": 23.5}}\n'
    f'{{"sensor_id": "greenhouse-2", "{OTHER_EXAMPLE_METRIC}": 9}}\n',
    Format.CSV: f"sensor_id,time,{EXAMPLE_METRIC}\ngreenhouse-1,2023-07-12T14:30:45Z,23.5\n",
}


@dataclass(frozen=True, slots=True)
class BulkLimits:
    """The bounds of one request."""

    body_bytes: int
    """As it is sent."""
    inflated_bytes: int
    rows: int
    days: int
    """Distinct days, each a chunk of the table, or up to 24 of them."""
    held_bytes: int
    """Room in the buffer: what takes more would never fit."""


class StoredReadings(BaseModel):
    """The result of a request."""

    stored: int
    unknown_columns: list[str] = []
    hints: list[str] = Field([], description="What to change in what is sent, though it was taken.")


class AcceptedReadings(BaseModel):
    """The result of a request that is in memory."""

    accepted: int
    unknown_columns: list[str] = []
    hints: list[str] = Field([], description="What to change in what is sent, though it was taken.")


class BadRow(BaseModel):
    """A reading that is not stored, and why."""

    row: int = Field(description="From 1.")
    column: str | None
    reason: str
    value: object


class PartialResult(StoredReadings):
    """The result of a request some of whose readings were bad. If 202 was asked for, ``stored`` is called
    ``accepted``.
    """

    rejected: int
    rejected_rows: str = Field(description="All of them, as ranges.", examples=["3,17-402"])
    errors: list[BadRow] = Field(description=f"The first {MAX_ERRORS}.")


def bulk_router(bulk: "BulkIngest") -> APIRouter:
    """Return the route."""
    router = APIRouter(tags=["ingest"])

    @router.post(
        PATH,
        status_code=201,
        response_model=StoredReadings,
        summary="Store many readings",
        responses={
            200: {
                "model": PartialResult,
                "description": "With partial=ok: some readings are bad and named, the others are stored",
            },
            202: {
                "model": AcceptedReadings,
                "description": "With respond-async: in memory; a crash may lose them",
            },
            **refusals(auth.Scope.INGEST),
            408: {"model": Problem, "description": "The body stopped coming"},
            409: {"model": Problem, "description": "The Idempotency-Key was used for another request"},
            413: {"model": Problem, "description": "Too many bytes or readings: split them"},
            415: {"model": Problem, "description": "The Content-Type or Content-Encoding is not known"},
            422: {
                "model": PartialResult | Problem,
                "description": "Some readings are bad: they are named, and unless partial=false the good are stored",
            },
            429: {
                "model": Problem,
                "description": "Not stored: this key sends too fast; again after Retry-After seconds",
            },
            503: {"model": Problem, "description": "Not stored; send again after Retry-After seconds"},
            504: {"model": Problem, "description": "The database did not say whether they are stored"},
        },
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {
                    format_.value: {"example": EXAMPLES[format_]} if format_ in EXAMPLES else {} for format_ in Format
                },
            },
            "parameters": PARAMETERS,
        },
    )
    async def post_readings(request: Request, key: Annotated[str | None, Security(KEY_HEADER)]) -> Response:
        """Store the readings of a body: an object, an array of them or an object of columns, NDJSON, CSV with a header
        row, an Arrow stream or Parquet, gzip or zstd if you like. 201 means that they are committed.
        """
        try:
            response = await bulk.store(request, key)
        except SensorFlowError as error:
            response = await error_responses.respond(request, error)
        if "respond-async" in _preferences(request):
            response.headers["preference-applied"] = "respond-async"
        return response

    return router


class BulkIngest:
    """The work behind POST /api/readings.

    Args:
        service: stores the readings.
        api_keys: the known keys.
        window: which times a reading may bring.
        limits: what one request may bring.
        now_us: microseconds since 1970 UTC.
    """

    def __init__(
        self,
        *,
        service: WriteService,
        api_keys: auth.ApiKeys,
        window: TimeWindow,
        limits: BulkLimits,
        now_us: Callable[[], int],
    ) -> None:
        self._service = service
        self._api_keys = api_keys
        self._window = window
        self._limits = limits
        self._now_us = now_us
        self._inflated_limit_bytes = min(limits.inflated_bytes, limits.held_bytes // DECODING_FACTOR)
        """Bytes of a body inflated, whether its Content-Encoding or its format has compressed it."""

    async def store(self, request: Request, key: str | None) -> Response:
        """Store the readings of a request, and answer it.

        Raises:
            SensorFlowError: nothing of it is stored, or that can't be known.
        """
        headers = request.headers
        key_name = self._api_keys.authorize(key_bytes(key), auth.Scope.INGEST)
        options = _options(request)
        format_ = _format(headers.get("content-type", ""))
        codec = codec_of(headers.get("content-encoding", "identity"))
        is_awaited = "respond-async" not in _preferences(request)
        source = Sender(key_name, request.client.host[:MAX_ADDRESS_LENGTH] if request.client else "")
        if (idempotency_key := headers.get("idempotency-key")) is not None:
            require_usable(idempotency_key)
        with self._service.room(key_name) as grow_to:
            body = await self._body(request, key_name, codec, grow_to)
            identity, only_rows = None, None
            if idempotency_key is not None:
                asked_for = f"{PATH} {format_.value} {{}} {is_awaited}"
                identify = partial(_fingerprint, idempotency_key, key_name, asked_for, body)
                identity, replay, only_rows = await self._repeated(identify, options)
                del identify  # it has the body
                if replay is not None:
                    result = BatchResult.from_json(replay.result)
                    return _answer(result, options, is_awaited=is_awaited, has_key=True)
            decode_options = self._decode_options(source, options, only_rows)
            decoded = await self._decoded(body, format_, decode_options, grow_to)
            del body
        if decoded.batch.size_bytes > self._limits.held_bytes:
            raise TooManyRows(
                decoded.batch.rows, decoded.batch.rows * self._limits.held_bytes // decoded.batch.size_bytes
            )
        if not decoded.batch.rows and not decoded.rejected:
            raise MalformedBody("The body has no readings; nothing is stored.")
        result = await self._result(decoded, options, identity, is_awaited=is_awaited)
        return _answer(result, options, is_awaited=is_awaited, has_key=identity is not None)

    def _decode_options(self, source: Sender, options: Options, only_rows: pa.Array | None) -> DecodeOptions:
        return DecodeOptions(
            source=source,
            precision=options.precision,
            window=self._window.for_backfill() if options.backfill else self._window,
            now_us=self._now_us(),
            max_rows=self._limits.rows,
            max_chunks=self._limits.days,
            max_errors=MAX_ERRORS,
            max_inflated_bytes=self._inflated_limit_bytes,
            is_backfill=options.backfill,
            only_rows=only_rows,
        )

    async def _decoded(
        self, body: bytes, format_: Format, options: DecodeOptions, grow_to: Callable[[int], None]
    ) -> Decoded:
        if format_ in COMPACT_FORMATS:
            with self._service.batch_being_decoded():
                opened = await asyncio.to_thread(open_readings, body, format_, options)
                grow_to(len(body) + opened.inflated_bytes)
                return await asyncio.to_thread(decode_opened, opened, options)
        if len(body) > DECODE_IN_THREAD_BYTES:
            with self._service.batch_being_decoded():
                return await asyncio.to_thread(decode_readings, body, format_, options)
        return decode_readings(body, format_, options)

    async def _result(
        self, decoded: Decoded, options: Options, identity: RequestIdentity | None, *, is_awaited: bool
    ) -> BatchResult:
        """Store the readings that may be stored, and return the result."""
        batch = decoded.batch if options.partial else replace(decoded.batch, is_atomic=True)
        if not batch.rows or (decoded.rejected and not options.partial):
            return BatchResult.of(decoded, 0)
        if is_awaited:
            record = IdempotencyRecord(identity) if identity else None
            return await self._written(WriteRequest(batch, record, decoded=decoded))
        accepted = BatchResult.of(decoded, batch.rows)
        record = IdempotencyRecord(identity, accepted.to_json()) if identity else None
        self._service.submit(WriteRequest(batch, record, is_awaited=False), _log_loss)
        return accepted

    async def _repeated(
        self, identify: Callable[[Options], RequestIdentity], options: Options
    ) -> tuple[RequestIdentity, StoredResult | None, pa.Array | None]:
        """Return the identity of a request, its result if it is stored, and the rows that are left to store.

        Rows are left if the request was rejected in part and now comes as backfill.

        Of two that come at once both may be told to go on: they have one name, and its second commit finds the first.
        """
        identity = await asyncio.to_thread(identify, options)
        stored = await self._service.find(identity)
        if stored is None:
            return identity, None, None
        if options.backfill and stored.content_hash != identity.content_hash:
            first = await asyncio.to_thread(identify, options.model_copy(update={"backfill": False}))
            if stored.content_hash == first.content_hash:
                result = BatchResult.from_json(stored.result)
                if not result.rejected:
                    return first, stored.replay_to(first), None
                if result.rejected_rows:  # the first versions did not name them
                    rest = identity._replace(key=identity.key + OF_REJECTED)
                    return rest, await self._service.replay(rest), rows_of_ranges(result.rejected_rows)
        return identity, stored.replay_to(identity), None

    async def _written(self, write: WriteRequest) -> BatchResult:
        """Return the result of a request once it is committed."""
        try:
            result = await self._service.write(write)
        except asyncio.CancelledError:  # the server is stopping, and waits no longer for the commit
            raise OutcomeUnknown("The server is stopping: the readings may be stored, or not.") from None
        return result if isinstance(result, BatchResult) else BatchResult.from_json(result.to_json())

    async def _body(self, request: Request, key_name: str, codec: str | None, grow_to: Callable[[int], None]) -> bytes:
        """Return the body, inflated, reserving room for each part that has come."""
        limit = min(self._limits.body_bytes, self._limits.held_bytes // DECODING_FACTOR)
        with self._service.room(key_name) as announce:  # given back: it is held for what comes
            announce(announced_bytes(request, limit_bytes=limit))
        parts: list[bytes] = []
        size = 0
        async for part in parts_of(request, limit_bytes=limit):
            parts.append(part)
            size += len(part)
            grow_to(size)
        body = b"".join(parts)
        if codec is None:
            return body
        parts, size = [], 0
        rest = inflated(body, codec, limit_bytes=self._inflated_limit_bytes)
        while part := await asyncio.to_thread(next, rest, b""):
            parts.append(part)
            size += len(part)
            grow_to(size)
        return b"".join(parts)


def _fingerprint(key: str, key_name: str, asked_for: str, body: bytes, options: Options) -> RequestIdentity:
    return fingerprint(key, key_name, asked_for.format(options).encode(), body)


def _options(request: Request) -> Options:
    query = request.query_params
    for name in query:
        if name not in Options.model_fields:
            raise InvalidParameter(f"Unknown query parameter {name[:100]!r}. Known: {', '.join(Options.model_fields)}.")
    try:
        return Options.model_validate(dict(query))
    except ValidationError as error:
        fault = error.errors()[0]
        raise InvalidParameter(f"{fault['loc'][0]} in the query: {fault['msg']}.") from error


def _preferences(request: Request) -> set[str]:
    """Return what the Prefer headers ask for (RFC 7240), without parameters."""
    preferences = ",".join(request.headers.getlist("prefer")).split(",")
    return {preference.partition(";")[0].strip().lower() for preference in preferences}


def _format(content_type: str) -> Format:
    media_type = content_type.partition(";")[0].strip().lower()
    try:
        return Format(media_type)
    except ValueError:
        raise UnsupportedFormat(
            f"Content-Type {media_type!r} is not supported. Send {', '.join(format_.value for format_ in Format)}."
        ) from None


def _log_loss(result: WriteOutcome) -> None:
    """Log the result of a request whose sender has had its 202."""
    if isinstance(result, SensorFlowError):
        logger.warning("readings that were answered 202 are not stored: %s", result)
    elif isinstance(result, BatchResult) and result.refused:
        why = next(filter(None, result.refused.values()), "")
        logger.warning("PostgreSQL refused %d readings that were answered 202: %s", len(result.refused), why)


def _answer(result: BatchResult, options: Options, *, is_awaited: bool, has_key: bool) -> Response:
    """Return the answer to a request with this result."""
    body: dict[str, object] = {"stored" if is_awaited else "accepted": result.stored}
    if result.rejected:
        ranges = {"rejected_rows": result.rejected_rows} if result.rejected_rows else {}
        body |= {"rejected": result.rejected, **ranges, "errors": result.errors}
    if result.unknown_columns:
        body["unknown_columns"] = result.unknown_columns
    if hints := [*result.hints, *_hints_at_backfill(result, has_key=has_key)]:
        body["hints"] = hints
    status = _status(result, options, is_awaited=is_awaited)
    return Response(orjson.dumps(body), status, media_type="application/json")


def _hints_at_backfill(result: BatchResult, *, has_key: bool) -> Iterator[str]:
    if not result.is_backfill_wanted:
        return
    if not result.stored:
        how = "Send the request again with backfill=true."
    elif has_key:
        how = (
            "Send the request again with the same Idempotency-Key and backfill=true: "
            "only the missing readings are then stored."
        )
    else:
        how = (
            "Send only the rows in rejected_rows again, with backfill=true: the others are stored. "
            "With an Idempotency-Key you could send the whole request again."
        )
    yield f"Some readings are older than ACCEPT_PAST_DAYS. {how}"


def _status(result: BatchResult, options: Options, *, is_awaited: bool) -> int:
    if result.rejected and options.partial != "ok":
        return 422
    if not is_awaited:
        return 202
    return 200 if result.rejected else 201
