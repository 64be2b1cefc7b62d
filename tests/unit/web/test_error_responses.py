"""The table from errors to the wire: complete, and no 5xx for what sending again can't cure."""

from collections.abc import Iterator

import orjson
import pytest

from app.errors import (
    BodyStalled,
    BodyTooLarge,
    BufferFull,
    ConfigurationError,
    DatabaseUnavailable,
    Fault,
    Forbidden,
    InvalidReading,
    KeyOverShare,
    MalformedBody,
    NotStored,
    OutcomeUnknown,
    PermanentError,
    RejectedByDatabase,
    SensorFlowError,
    ShuttingDown,
    TooManyRows,
    TooManySubscribers,
    Unauthorized,
    UnsupportedEncoding,
)
from app.web import error_responses

FAULT = Fault(type="missing", loc=("body", "humidity"), msg="Field required", input={"temperature": 23.5})


def tree(root: type[SensorFlowError]) -> Iterator[type[SensorFlowError]]:
    yield root
    for branch in root.__subclasses__():
        yield from tree(branch)


@pytest.mark.parametrize(
    ("error", "status", "headers", "detail"),
    [
        (Unauthorized("no key"), 401, [(b"www-authenticate", b"APIKey")], "no key"),
        (Forbidden("may only listen"), 403, [], "may only listen"),
        (BodyTooLarge(65_536), 413, [(b"connection", b"close")], "The body is larger than 65,536 bytes."),
        (TooManyRows(1_001, 1_000), 413, [], "The body has 1,001 readings. A request may have 1,000: split it."),
        (MalformedBody("no header"), 422, [], "no header"),
        (UnsupportedEncoding("no br"), 415, [], "no br"),
        (InvalidReading([FAULT]), 422, [], [FAULT | {"loc": ["body", "humidity"]}]),
        (RejectedByDatabase("no"), 422, [], [{"type": "rejected_by_database", "loc": ["body"], "msg": "no"}]),
        (BufferFull("full", retry_after_s=7), 503, [(b"retry-after", b"7")], "full"),
        (DatabaseUnavailable("away"), 503, [(b"retry-after", b"1")], "away"),
        (ShuttingDown("bye", retry_after_s=0), 503, [(b"retry-after", b"1")], "bye"),
        (OutcomeUnknown("who knows"), 504, [], "who knows"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, SensorFlowError) else "",
)
def test_an_error_has_its_status_its_headers_and_a_detail(
    error: SensorFlowError, status: int, headers: list[tuple[bytes, bytes]], detail: object
) -> None:
    said_status, said_headers, body = error_responses.answer(error)
    assert (said_status, list(said_headers), orjson.loads(body)) == (status, headers, {"detail": detail})


@pytest.mark.parametrize(
    "kind",
    sorted(set(tree(SensorFlowError)) - {SensorFlowError, PermanentError, ConfigurationError}, key=str),
)
def test_every_error_that_a_client_can_meet_is_in_a_table(kind: type[SensorFlowError]) -> None:
    assert kind in error_responses.CLOSE_CODES or any(parent in error_responses.STATUSES for parent in kind.__mro__)


def statuses(root: type[SensorFlowError]) -> set[int]:
    return {error_responses.STATUSES[kind] for kind in tree(root) if kind in error_responses.STATUSES}


def test_what_sending_again_cannot_cure_is_never_5xx_and_only_the_unknown_is_504() -> None:
    assert all(
        400 <= status < 500 for status in statuses(PermanentError) | statuses(Unauthorized) | statuses(Forbidden)
    )
    assert statuses(KeyOverShare) == {429}
    assert statuses(BodyStalled) == {408}
    assert statuses(NotStored) == {408, 429, 503}
    assert statuses(OutcomeUnknown) == {504}


def test_a_websocket_is_closed_for_what_its_handshake_can_raise() -> None:
    codes = {kind: error_responses.CLOSE_CODES[kind] for kind in (Unauthorized, Forbidden, TooManySubscribers)}
    assert set(codes.values()) == {1008}
