"""The endpoint of one reading: its checks of a head, its submissions, and its answers."""

import asyncio
from collections.abc import Callable
from typing import Any, cast

import orjson
import pytest

from app.errors import (
    DatabaseUnavailable,
    Forbidden,
    InvalidParameter,
    InvalidReading,
    SensorFlowError,
    ShuttingDown,
    Unauthorized,
    UnsupportedEncoding,
)
from app.ingest.batch import Reading, Sender
from app.ingest.decode.timestamps import TimeWindow
from app.ingest.idempotency import RequestIdentity, StoredResult
from app.ingest.pipeline import Pipeline
from app.ingest.request import WriteRequest
from app.ingest.result import WriteOutcome
from app.ingest.service import WriteService
from app.web import error_responses
from app.web.auth import ApiKey, ApiKeys, Scope
from app.web.protocol import Exchange
from app.web.write_single import ReadingEndpoint
from tests.support.samples import T0_US, receipt

KEY, EARS = b"correct-horse-battery", b"correct-horse-listens"
API_KEYS = ApiKeys(
    ApiKey("API_KEY", KEY.decode(), frozenset(Scope)),
    ApiKey("API_KEY_WS", EARS.decode(), frozenset({Scope.LISTEN})),
)
BODY = b'{"temperature": 23.5, "humidity": 48.2, "pressure": 1013.2, "sensor_id": "greenhouse-1"}'


class Request:
    """The part of an Exchange that the endpoint uses."""

    def __init__(self, headers: dict[bytes, bytes], client_ip: str = "192.0.2.7") -> None:
        self.headers = headers
        self.client_ip = client_ip
        self.answers: list[tuple[int, error_responses.Headers, bytes]] = []

    def answer(self, status: int, headers: error_responses.Headers, body: bytes) -> None:
        self.answers.append((status, headers, body))

    def refuse(self, error: Any) -> None:
        self.answers.append(error_responses.answer(error))

    def fail_with(self, work: asyncio.Future[None]) -> None:
        if (error := work.exception()) is not None:
            self.refuse(error)


class Basket:
    """A pipeline that leaves it to the test to answer, and the records of earlier requests."""

    def __init__(self, error: Exception | None = None, earlier: StoredResult | None = None) -> None:
        self.error = error
        self.earlier = earlier
        self.submitted: list[tuple[WriteRequest, Callable[[WriteOutcome], None]]] = []
        self.sought: list[RequestIdentity] = []

    def submit(self, request: WriteRequest, on_result: Callable[[WriteOutcome], None]) -> None:
        if self.error is not None:
            raise self.error
        self.submitted.append((request, on_result))

    async def find(self, identity: RequestIdentity) -> StoredResult | None:
        self.sought.append(identity)
        return self.earlier


def endpoint(basket: Basket, observed: list[tuple[object, ...]] | None = None) -> ReadingEndpoint:
    return ReadingEndpoint(
        service=WriteService(cast("Pipeline[Any]", basket), basket),
        api_keys=API_KEYS,
        window=TimeWindow.of(past_days=30, future_minutes=10),
        max_body_bytes=1_000,
        now_us=lambda: T0_US,
        observe=lambda *seen: observed.append(seen) if observed is not None else None,
        clock=lambda: 0.0,
    )


def send(basket: Basket, request: Request, body: bytes = BODY) -> None:
    endpoint(basket).open(cast("Exchange", request))(body)


@pytest.mark.parametrize(
    ("headers", "error"),
    [({}, Unauthorized), ({b"x-api-key": b"wrong"}, Unauthorized), ({b"x-api-key": EARS}, Forbidden)],
)
def test_a_key_for_sending_is_asked_for_before_the_body(
    headers: dict[bytes, bytes], error: type[SensorFlowError]
) -> None:
    with pytest.raises(error):
        endpoint(Basket()).open(cast("Exchange", Request(headers)))


def test_an_encoding_is_refused_before_the_body_but_not_before_the_key() -> None:
    with pytest.raises(UnsupportedEncoding):
        endpoint(Basket()).open(cast("Exchange", Request({b"x-api-key": KEY, b"content-encoding": b"gzip"})))
    with pytest.raises(Unauthorized):
        endpoint(Basket()).open(cast("Exchange", Request({b"content-encoding": b"gzip"})))
    send(Basket(), Request({b"x-api-key": KEY, b"content-encoding": b"identity"}))


def test_a_reading_is_submitted_with_its_source_and_answered_when_it_is_settled() -> None:
    basket, request = Basket(), Request({b"x-api-key": KEY}, client_ip="2001:db8::" + "1" * 100)
    send(basket, request)
    [(write, on_result)] = basket.submitted
    source = Sender("API_KEY", "2001:db8::" + "1" * 35)
    assert write.content == Reading(T0_US, "greenhouse-1", 23.5, 48.2, 1013.2, source)
    assert request.answers == []
    on_result(receipt(7))
    assert request.answers == [(201, (), b"x" * 10)]


def test_a_reading_that_is_not_stored_is_answered_with_the_reason() -> None:
    basket, request = Basket(), Request({b"x-api-key": KEY})
    send(basket, request)
    basket.submitted[0][1](DatabaseUnavailable("away", retry_after_s=3))
    [(status, headers, body)] = request.answers
    assert (status, list(headers), orjson.loads(body)) == (503, [(b"retry-after", b"3")], {"detail": "away"})


def test_what_is_not_taken_is_raised() -> None:
    request = Request({b"x-api-key": KEY})
    with pytest.raises(ShuttingDown):
        send(Basket(ShuttingDown("bye")), request)
    with pytest.raises(InvalidReading):
        send(Basket(), request, b"{}")
    assert request.answers == []


def test_requests_are_observed_under_their_route() -> None:
    observed: list[tuple[object, ...]] = []
    endpoint(Basket(), observed).observe(201, 0.25)
    assert observed == [("/api/temperature_reading", "POST", 201, 0.25)]


async def send_with_key(basket: Basket, body: bytes = BODY) -> Request:
    """Send a reading with an Idempotency-Key, and let the records be asked."""
    request = Request({b"x-api-key": KEY, b"idempotency-key": b"once"})
    endpoint(basket).open(cast("Exchange", request))(body)
    for _ in range(5):
        await asyncio.sleep(0)
    return request


async def test_new_key() -> None:
    """A reading with a new key is submitted with a record, and the record keeps its result."""
    basket = Basket()
    request = await send_with_key(basket)
    [(write, on_result)] = basket.submitted
    assert write.record is not None
    assert (write.record.name, write.record.result) == (("API_KEY", "once"), None)
    on_result(receipt(7))
    for _ in range(5):
        await asyncio.sleep(0)
    assert request.answers == [(201, (), b"x" * 10)]


@pytest.mark.parametrize(
    "body", [BODY, BODY[:-1] + b', "time": "2001-01-01T00:00:00Z"}'], ids=["now", "too old by now"]
)
async def test_a_reading_sent_again_is_answered_as_the_first_time_before_it_is_looked_at(body: bytes) -> None:
    basket = Basket()
    await send_with_key(basket, body)
    basket.earlier = StoredResult(basket.sought[0].content_hash, b"as it was")
    basket.submitted.clear()
    request = await send_with_key(basket, body)
    assert basket.sought[0] == basket.sought[1]
    assert request.answers == [(201, (), b"as it was")]
    assert not basket.submitted


async def test_another_reading_under_the_same_key_is_refused() -> None:
    basket = Basket(earlier=StoredResult(b"of another body", b"as it was"))
    request = await send_with_key(basket)
    assert [status for status, *_ in request.answers] == [409]
    assert not basket.submitted


@pytest.mark.parametrize("key", [b"", b"x" * 256, b"\xc3\xa9", b"a\tb"])
def test_a_key_that_cannot_be_one_is_refused_before_the_body(key: bytes) -> None:
    with pytest.raises(InvalidParameter, match=rf"{len(key)} characters\. It should be 1 to 255"):
        endpoint(Basket()).open(cast("Exchange", Request({b"x-api-key": KEY, b"idempotency-key": key})))
