"""POST /api/readings before the flush: room in the buffer is held and given back."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import pyarrow as pa
import pytest
from starlette.requests import Request
from starlette.types import Message

from app.errors import BodyStalled, BodyTooLarge, BufferFull, MalformedBody, SensorFlowError, UnsupportedEncoding
from app.ingest.batch import Content
from app.ingest.decode.timestamps import TimeWindow
from app.ingest.idempotency import RequestIdentity
from app.ingest.pipeline import Pipeline
from app.ingest.request import WriteRequest
from app.ingest.result import BatchResult, WriteOutcome
from app.ingest.service import DECODING_FACTOR, WriteService
from app.web.auth import ApiKey, ApiKeys, Scope
from app.web.bodies import STALLED_AFTER_S
from app.web.write_bulk import BulkIngest, BulkLimits
from tests.support import bodies
from tests.support.samples import T0_US

KEY = "correct-horse-battery"
READING = b'{"sensor_id":"a","temperature":1}'

FEW = BulkLimits(body_bytes=1_000, inflated_bytes=1_000, rows=10, days=10, held_bytes=100_000)


class RoomyPipeline:
    """A pipeline that commits at once, and keeps account of the room that is held."""

    def __init__(self, room_bytes: int = 1_000_000) -> None:
        self.room_bytes = room_bytes
        self.held_bytes = 0
        self.most_held_bytes = 0
        self.submitted: list[Content] = []
        self.requests: list[WriteRequest] = []

    def reserve(self, key_name: str, size_bytes: int) -> None:
        assert key_name == "API_KEY"
        if self.held_bytes + size_bytes > self.room_bytes:
            raise BufferFull("full", retry_after_s=7)
        self.held_bytes += size_bytes
        self.most_held_bytes = max(self.most_held_bytes, self.held_bytes)

    @contextmanager
    def batch_being_decoded(self) -> Iterator[None]:
        yield

    def submit(
        self,
        request: WriteRequest,
        on_result: Callable[[WriteOutcome], None],
    ) -> None:
        assert request.record is None
        assert self.held_bytes == 0, "what has become columns is counted as such, and not twice"
        self.submitted.append(request.content)
        self.requests.append(request)
        on_result(BatchResult(request.content.rows))

    async def find(self, _: RequestIdentity) -> None:
        """Find nothing: no request was seen before."""


async def send(
    pipeline: RoomyPipeline,
    parts: AsyncIterator[Message],
    headers: dict[str, str] | None = None,
    *,
    limits: BulkLimits = FEW,
) -> int:
    """Store a body and return the status."""
    bulk = BulkIngest(
        service=WriteService(cast("Pipeline[Any]", pipeline), pipeline),
        api_keys=ApiKeys(ApiKey("API_KEY", KEY, frozenset(Scope))),
        window=TimeWindow(None, None),
        limits=limits,
        now_us=lambda: T0_US,
    )
    sent = {"content-type": "application/x-ndjson"} | (headers or {})
    scope = {
        "type": "http",
        "query_string": b"",
        "client": ("192.0.2.7", 1),
        "headers": [(name.encode(), value.encode()) for name, value in sent.items()],
    }
    request = Request(scope, parts.__anext__)
    return (await bulk.store(request, KEY)).status_code


async def whole(*parts: bytes) -> AsyncIterator[Message]:
    for part in parts:
        yield {"type": "http.request", "body": part, "more_body": True}
    yield {"type": "http.request", "body": b"", "more_body": False}


async def stalled(part: bytes) -> AsyncIterator[Message]:
    yield {"type": "http.request", "body": part, "more_body": True}
    await asyncio.sleep(10 * STALLED_AFTER_S)


async def cut(part: bytes) -> AsyncIterator[Message]:
    yield {"type": "http.request", "body": part, "more_body": True}
    yield {"type": "http.disconnect"}


async def test_a_body_holds_room_for_what_was_announced_until_it_has_become_columns() -> None:
    pipeline = RoomyPipeline()
    assert await send(pipeline, whole(READING[:5], READING[5:]), {"content-length": "900"}) == 201
    assert pipeline.most_held_bytes == 900 * DECODING_FACTOR
    assert pipeline.held_bytes == 0
    assert [content.rows for content in pipeline.submitted] == [1]


@pytest.mark.parametrize("headers", [{}, {"prefer": "respond-async"}])
async def test_rejected_rows_in_the_buffer(headers: dict[str, str]) -> None:
    """The buffer, which does not count them, holds a request's rejected rows only while its sender waits."""
    pipeline = RoomyPipeline()
    await send(pipeline, whole(READING, b"\n{}"), headers)
    [request] = pipeline.requests
    assert request.is_awaited == (not headers)
    assert (request.decoded is not None) == request.is_awaited


async def test_a_body_that_announces_nothing_holds_room_for_what_has_come() -> None:
    pipeline = RoomyPipeline()
    assert await send(pipeline, whole(READING, b"\n", READING)) == 201
    assert pipeline.most_held_bytes == (2 * len(READING) + 1) * DECODING_FACTOR


@pytest.mark.parametrize(
    ("parts", "headers", "error"),
    [
        (stalled(READING), {"content-length": "900"}, BodyStalled),
        (cut(READING), {"content-length": "900"}, MalformedBody),
        (whole(READING * 40), {}, BodyTooLarge),
        (whole(b"\xff\xfe"), {}, MalformedBody),
        (whole(READING), {"content-encoding": "br"}, UnsupportedEncoding),
    ],
    ids=["it stalls", "it is cut short", "it is longer than it may be", "it is no text", "it is encoded"],
)
async def test_whatever_becomes_of_a_body_its_room_is_given_back(
    parts: AsyncIterator[Message], headers: dict[str, str], error: type[SensorFlowError]
) -> None:
    pipeline = RoomyPipeline()
    with pytest.raises(error):
        await send(pipeline, parts, headers)
    assert pipeline.held_bytes == 0
    assert not pipeline.submitted


async def test_a_body_for_which_there_is_no_room_is_refused_before_it_is_read() -> None:
    pipeline = RoomyPipeline(room_bytes=900 * DECODING_FACTOR - 1)
    with pytest.raises(BufferFull):
        await send(pipeline, stalled(READING), {"content-length": "900"})
    assert pipeline.held_bytes == 0


COMPACT: dict[str, Callable[[pa.Table], bytes]] = {
    "application/vnd.apache.arrow.stream": lambda content: bodies.arrow_stream(
        content, compression="zstd", rows_a_batch=5_000
    ),
    "application/vnd.apache.parquet": bodies.parquet,
}
"""Content-Types, and what writes such a body."""


@pytest.mark.parametrize("content_type", COMPACT)
def test_room_for_what_a_format_inflates_to(content_type: str) -> None:
    """Room for the inflated size is held while the body is read, and given back after. Without room it is refused."""
    body = COMPACT[content_type](bodies.table([{"sensor_id": "a" * 200, "temperature": 1.0}] * 5_000))
    limits = BulkLimits(body_bytes=1 << 20, inflated_bytes=4 << 20, rows=5_000, days=10, held_bytes=16 << 20)
    values_bytes = 5_000 * 5 * 8

    def sent(pipeline: RoomyPipeline, limits: BulkLimits) -> int:
        # On a loop of real time, since it is decoded in a thread.
        return asyncio.run(send(pipeline, whole(body), {"content-type": content_type}, limits=limits))

    pipeline = RoomyPipeline(room_bytes=16 << 20)
    assert sent(pipeline, limits) == 201
    assert pipeline.most_held_bytes >= DECODING_FACTOR * values_bytes
    assert pipeline.held_bytes == 0
    pipeline = RoomyPipeline(room_bytes=DECODING_FACTOR * values_bytes)
    with pytest.raises(BufferFull):
        sent(pipeline, limits)
    assert (pipeline.held_bytes, pipeline.submitted) == (0, [])
    with pytest.raises(BodyTooLarge, match="100,000 bytes when inflated"):
        sent(RoomyPipeline(room_bytes=16 << 20), replace(limits, inflated_bytes=100_000))
