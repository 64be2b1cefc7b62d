"""The write service: its submissions, and the results that its callers get."""

import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest

from app.errors import BufferFull, DatabaseUnavailable, IdempotencyConflict
from app.ingest.idempotency import RequestIdentity, StoredResult
from app.ingest.pipeline import Pipeline
from app.ingest.request import WriteRequest
from app.ingest.result import BatchResult, WriteOutcome
from app.ingest.service import DECODING_FACTOR, WriteService
from tests.support.samples import batch_of, reading


class StandIn:
    """A pipeline that answers when the test says so, and the records of earlier requests."""

    def __init__(self) -> None:
        self.refusals = 0
        self.submitted: list[WriteRequest] = []
        self.answers: list[Callable[[WriteOutcome], None]] = []
        self.reserved = 0
        self.earlier: StoredResult | None = None

    def submit(self, request: WriteRequest, on_result: Callable[[WriteOutcome], None]) -> None:
        if self.refusals:
            self.refusals -= 1
            raise BufferFull("full", retry_after_s=2)
        self.submitted.append(request)
        self.answers.append(on_result)

    def reserve(self, key_name: str, size_bytes: int) -> None:
        assert key_name == "API_KEY"
        if self.reserved + size_bytes > 1_000:
            raise BufferFull("full", retry_after_s=2)
        self.reserved += size_bytes

    async def find(self, _: RequestIdentity) -> StoredResult | None:
        return self.earlier


def service(stand_in: StandIn) -> WriteService:
    return WriteService(cast("Pipeline[Any]", stand_in), stand_in)


def request() -> WriteRequest:
    return WriteRequest(batch_of([reading()]))


async def submitted(stand_in: StandIn, count: int = 1) -> None:
    while len(stand_in.submitted) < count:
        await asyncio.sleep(0.1)


async def test_write() -> None:
    """A write returns its result, and raises the error that there is instead of one."""
    stand_in = StandIn()
    writes = [asyncio.create_task(service(stand_in).write(request())) for _ in range(2)]
    await submitted(stand_in, 2)
    stand_in.answers[0](BatchResult(1))
    stand_in.answers[1](DatabaseUnavailable("away"))
    assert await writes[0] == BatchResult(1)
    with pytest.raises(DatabaseUnavailable):
        await writes[1]


async def test_write_without_room() -> None:
    """A write fails at once where there is no room, and waits where it was asked to, in the order of the calls."""
    stand_in = StandIn()
    stand_in.refusals = 1
    with pytest.raises(BufferFull):
        await service(stand_in).write(request())
    stand_in.refusals = 2
    waiting, requests = service(stand_in), [request(), request()]
    writes = [asyncio.create_task(waiting.write(each, waits_for_room=True)) for each in requests]
    await submitted(stand_in, 2)
    assert stand_in.submitted == requests
    for answer in stand_in.answers:
        answer(BatchResult(1))
    assert await asyncio.gather(*writes) == 2 * [BatchResult(1)]


async def test_cancelled_write() -> None:
    """The result of a cancelled request is dropped without an error."""
    stand_in = StandIn()
    write = asyncio.create_task(service(stand_in).write(request()))
    await submitted(stand_in)
    write.cancel()
    with pytest.raises(asyncio.CancelledError):
        await write
    stand_in.answers[0](BatchResult(1))


async def test_replay() -> None:
    """A request has a replay if it was committed before, and a conflict if another was under its key."""
    stand_in, identity = StandIn(), RequestIdentity("API_KEY", "k", b"content")
    assert await service(stand_in).replay(identity) is None
    stand_in.earlier = StoredResult(b"content", b'{"stored":1}')
    assert await service(stand_in).replay(identity) == StoredResult(b"content", b'{"stored":1}')
    with pytest.raises(IdempotencyConflict):
        await service(stand_in).replay(identity._replace(content_hash=b"other"))


def test_room() -> None:
    """Room grows with the body and is given back. A check for room reserves none."""
    stand_in = StandIn()
    with service(stand_in).room("API_KEY") as grow_to:
        for size in (10, 200, 150):
            grow_to(size)
        assert stand_in.reserved == 200 * DECODING_FACTOR
        with pytest.raises(BufferFull):
            grow_to(251)
        assert stand_in.reserved == 200 * DECODING_FACTOR
    assert stand_in.reserved == 0
