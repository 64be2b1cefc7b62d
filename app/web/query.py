"""GET /api/readings: readings, or what they come to by the minute, hour or day, in pages or as a stream.

Promises:
    * An answer holds a page in memory, however slowly it is read, and no connection to the database meanwhile.
    * An answer that could not be finished does not look finished: its connection is cut.
    * The pages that cursors lead through have the rows that one stream has.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Annotated, Protocol, TypeAlias

import orjson
import pyarrow as pa
from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from app.errors import InvalidParameter, SensorFlowError, TooManyReads
from app.history.formats import MEDIA_TYPES, HistoryFormat, encode, head, tail
from app.history.query import DAY_US, Bucket, Cursor, Page, Position, bucket_for
from app.history.query import Query as HistoryQuery
from app.ingest.decode.timestamps import parse_time_us
from app.schema import EXAMPLE_METRIC, METRICS
from app.web import auth
from app.web.access import refusals, requires
from app.web.error_responses import Problem
from app.web.names import names_in, utf8_query
from app.web.sides import until_first_ends

logger = logging.getLogger(__name__)

PATH = "/api/readings"
DEFAULT_SPAN_US = DAY_US
DEFAULT_LIMIT = 10_000
"""Rows of JSON, which is not streamed."""
MAX_LIMIT = 20_000
"""What has a limit is put together before it is sent: 13 MB with all columns of a tier."""
MAX_READS = 8
"""Answers under way at a time, each of which holds as much, or a page."""
WAIT_FOR_TURN_S = 2.0
SEND_BYTES = 262_144
"""So much is handed to the connection at once: what it can't send, it copies."""
AUTO = "auto"
BUCKET_HEADER = "X-Bucket"
CURSOR_HEADER = "X-Next-Cursor"

Parts: TypeAlias = AsyncGenerator[bytes | memoryview, None]
"""The parts of an answer; they hold its turn until they end or are closed."""


class HistoryStore(Protocol):
    """Where the rows are."""

    async def find(self, names: Sequence[str]) -> list[int]:
        """Return the ids of these sensors. Raises NotFound, DatabaseUnavailable."""

    def schema(self, query: HistoryQuery) -> pa.Schema:
        """Return the columns of a query's rows."""

    def pages(self, query: HistoryQuery, *, after: Position | None, limit: int | None) -> AsyncGenerator[Page, None]:
        """Yield the rows of a query. Raises DatabaseUnavailable."""


class ReadingsQuery(BaseModel):
    """The query of a request."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sensor_id: list[str] = Field(
        [],
        description="Names of sensors, separated by commas. Put a name that has a comma or begins with a quotation "
        "mark in quotation marks, as in CSV. May be repeated. Default: all sensors.",
        examples=[["greenhouse-1,greenhouse-2"]],
    )
    from_: str | None = Field(
        None,
        alias="from",
        description="Start of the span: ISO 8601 (without an offset: UTC) or a number since 1970. Default: 24 hours "
        "before `to`.",
        examples=["2023-07-12T00:00:00Z"],
    )
    to: str | None = Field(
        None, description="End of the span, exclusive, in the same forms. Default: now.", examples=["1689206400"]
    )
    bucket: str = Field(
        AUTO,
        pattern=f"^({'|'.join([AUTO, *(bucket.value for bucket in Bucket)])})$",
        description="raw: readings. 1m, 1h, 1d: a row for each sensor and minute, hour or day (UTC) that begins within "
        "the span. auto: raw up to three hours, 1m up to three days, 1h up to 90 days, else 1d; a coarser one where "
        "those are no longer kept.",
    )
    metrics: str = Field(",".join(METRICS), description="Metrics to return, separated by commas.")
    limit: int | None = Field(
        None,
        ge=1,
        le=MAX_LIMIT,
        description=f"Maximum number of rows. Default: {DEFAULT_LIMIT:,} as JSON, all in the other formats.",
    )
    cursor: str | None = Field(
        None,
        description="The next_cursor or X-Next-Cursor of an answer: continues after it. Repeat the rest of the query.",
    )
    format: HistoryFormat = Field(
        HistoryFormat.JSON, description="json answers in pages; the other formats are streams."
    )

    @property
    def asked(self) -> str:
        """The query that a cursor belongs to, in the words of the request."""
        return repr((self.sensor_id, self.from_, self.to, self.bucket, self.metrics))


class ReadingsPage(BaseModel):
    """Rows as JSON."""

    bucket: Bucket
    readings: list[dict[str, object]]
    next_cursor: str | None = Field(description="Cursor of the next page; null on the last page.")


EXAMPLE = {
    "bucket": "1h",
    "readings": [
        {
            "time": "2023-07-12T14:00:00.000000Z",
            "sensor_id": "greenhouse-1",
            "count": 3600,
            f"{EXAMPLE_METRIC}_count": 3600,
            f"{EXAMPLE_METRIC}_mean": 23.48,
            f"{EXAMPLE_METRIC}_min": 22.9,
            f"{EXAMPLE_METRIC}_max": 24.1,
            f"{EXAMPLE_METRIC}_first": 23.1,
            f"{EXAMPLE_METRIC}_last": 23.5,
        }
    ],
    "next_cursor": None,
}


class Streamed(StreamingResponse):
    """A response whose parts may fail to come: then its connection is cut, and no end of it is sent."""

    def __init__(self, parts: Parts, headers: Mapping[str, str], media_type: str) -> None:
        super().__init__(parts, 200, headers, media_type)
        self._parts = parts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Answers until all is sent or the peer has gone. Not as Starlette does it: its way to cancel, again and again,
        costs the database connection on which a query is under way.
        """
        try:
            await until_first_ends(self.stream_response(send), self.listen_for_disconnect(receive))
        finally:
            await self._parts.aclose()

    async def stream_response(self, send: Send) -> None:
        """Send the parts. To return before the last is how an ASGI application has its connection cut."""
        try:
            await super().stream_response(send)
        except SensorFlowError as error:
            logger.warning("a streamed answer ended early: %s", error)


class QueryService:
    """The work behind GET /api/readings.

    Args:
        history: where the rows are.
        kept_us: how long the rows of each bucket are kept, microseconds; 0: without end.
        now_us: microseconds since 1970 UTC.
    """

    def __init__(self, history: HistoryStore, *, kept_us: Mapping[Bucket, int], now_us: Callable[[], int]) -> None:
        self._history = history
        self._kept_us = kept_us
        self._now_us = now_us
        self._turns = asyncio.Semaphore(MAX_READS)

    async def answer(self, request: ReadingsQuery) -> Response:
        """Begin an answer: return once its first rows are there, or all of them if it has a limit.

        Raises:
            InvalidParameter, NotFound, TooManyReads, DatabaseUnavailable: there is none.
        """
        query, after = await self._query(request)
        headers = {BUCKET_HEADER: query.bucket.value}
        if request.format is HistoryFormat.JSON or request.limit is not None:
            parts = self._whole(request, query, after, headers)
        else:
            parts = self._stream(request.format, query, after)
        await anext(parts)
        return Streamed(parts, headers, MEDIA_TYPES[request.format])

    async def _query(self, request: ReadingsQuery) -> tuple[HistoryQuery, Position | None]:
        """Return the query, and the row after which it continues."""
        after = None
        if request.cursor is not None:
            from_us, to_us, bucket, after = Cursor.decode(request.cursor, request.asked)
        else:
            now_us = self._now_us()
            to_us = _time_us("to", request.to) if request.to is not None else now_us
            from_us = _time_us("from", request.from_) if request.from_ is not None else to_us - DEFAULT_SPAN_US
            if from_us >= to_us:
                raise InvalidParameter(
                    f"from should be before to. from is {(request.from_ or '24 hours before to')[:100]!r}, "
                    f"to is {(request.to or 'now')[:100]!r}."
                )
            if request.bucket == AUTO:
                bucket = bucket_for(to_us - from_us, age_us=now_us - from_us, kept_us=self._kept_us)
            else:
                bucket = Bucket(request.bucket)
        metrics = tuple(dict.fromkeys(request.metrics.split(",")))
        if unknown := [metric for metric in metrics if metric not in METRICS]:
            raise InvalidParameter(f"Unknown metric {unknown[0][:100]!r}. Known metrics: {', '.join(METRICS)}.")
        sensor_ids = await self._history.find(names_in(request.sensor_id)) if request.sensor_id else None
        return HistoryQuery(sensor_ids, from_us, to_us, bucket, metrics), after

    async def _whole(
        self, request: ReadingsQuery, query: HistoryQuery, after: Position | None, headers: dict[str, str]
    ) -> Parts:
        """Yield the parts of an answer that has a limit. The first is empty: it comes when the headers are complete."""
        limit = request.limit or DEFAULT_LIMIT
        rows, texts, cursor = 0, list[memoryview](), None
        whole: list[bytes | memoryview]
        async with self._turn():
            async with aclosing(self._history.pages(query, after=after, limit=limit)) as pages:
                async for page in pages:
                    texts.append(await asyncio.to_thread(encode, request.format, page.rows))
                    rows += page.rows.num_rows
                    if rows == limit:
                        cursor = Cursor(query.from_us, query.to_us, query.bucket, page.last).encode(request.asked)
                        headers[CURSOR_HEADER] = cursor
            if request.format is HistoryFormat.JSON:
                begin, end = b'{"bucket":"%s","readings":[' % query.bucket.value.encode(), orjson.dumps(cursor)
                whole = [begin, *texts[:-1], *(text[:-1] for text in texts[-1:]), b'],"next_cursor":' + end + b"}"]
            else:
                whole = [head(request.format, self._history.schema(query)), *texts, tail(request.format)]
            headers["Content-Length"] = str(sum(map(len, whole)))
            yield b""
            for part in whole:
                for piece in _pieces(part):
                    yield piece

    async def _stream(self, format_: HistoryFormat, query: HistoryQuery, after: Position | None) -> Parts:
        """Yield the parts of a stream. The first is empty: it comes when the first rows are there."""
        async with self._turn(), aclosing(self._history.pages(query, after=after, limit=None)) as pages:
            page = await anext(pages, None)
            yield b""
            yield head(format_, self._history.schema(query))
            while page is not None:
                for piece in _pieces(await asyncio.to_thread(encode, format_, page.rows)):
                    yield piece
                page = await anext(pages, None)
            yield tail(format_)

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """One of the answers that may be under way. Raises TooManyReads."""
        try:
            async with asyncio.timeout(WAIT_FOR_TURN_S):
                await self._turns.acquire()
        except TimeoutError:
            raise TooManyReads from None
        try:
            yield
        finally:
            self._turns.release()


def query_router(reads: QueryService, *, api_keys: auth.ApiKeys) -> APIRouter:
    """Return the route."""
    router = APIRouter(tags=["read"], dependencies=[requires(api_keys, auth.Scope.READ), Depends(utf8_query)])

    @router.get(
        PATH,
        summary="Read readings, or their aggregates by minute, hour or day",
        response_model=ReadingsPage,
        responses={
            200: {
                "description": "Rows, sorted by sensor and then time. X-Bucket is the bucket. X-Next-Cursor, present "
                "if the limit was reached, is the cursor of the next page. A stream that fails lacks the final chunk.",
                "headers": {name: {"schema": {"type": "string"}} for name in (BUCKET_HEADER, CURSOR_HEADER)},
                "content": {
                    "application/json": {"example": EXAMPLE},
                    **{MEDIA_TYPES[format_]: {} for format_ in HistoryFormat if format_ is not HistoryFormat.JSON},
                },
            },
            **refusals(auth.Scope.READ),
            404: {"model": Problem, "description": "One of the sensors is unknown"},
            503: {"model": Problem, "description": "Unavailable; try again after Retry-After seconds"},
        },
    )
    async def get_readings(query: Annotated[ReadingsQuery, Query()]) -> Response:
        """Return readings, or a row for each bucket of them, of some or all sensors in a span of time. A bucket's
        mean is the mean of its readings; its first and last are those by time.
        """
        return await reads.answer(query)

    return router


def _pieces(part: bytes | memoryview) -> Iterator[bytes | memoryview]:
    return (part[start : start + SEND_BYTES] for start in range(0, len(part), SEND_BYTES))


def _time_us(name: str, text: str) -> int:
    if text == "0":  # usual for "from the beginning", though no reading is so old
        return 0
    try:
        return parse_time_us(text)
    except ValueError as error:
        hint = " In a URL a + is written %2B." if " " in text else ""
        raise InvalidParameter(f"{name}: {error}, and is {text[:100]!r}.{hint}") from None
