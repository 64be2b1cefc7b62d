"""The log's lines about refused senders."""

import logging

import orjson
import pytest

from app.web.refusals import log_refusal, reason_in

FAULTS = [{"type": "missing", "loc": ["body", "humidity"], "msg": "Field required"}]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"detail": "An API key is missing."}, "An API key is missing."),
        ({"detail": FAULTS}, "body.humidity: Field required"),
        ({"detail": FAULTS * 3}, "body.humidity: Field required (and 2 more)"),
        (
            {
                "stored": 2,
                "rejected": 7,
                "errors": [{"row": 3, "column": "x", "reason": "should be a number", "value": 1}],
            },
            "row 3: should be a number (and 6 more)",
        ),
        ({}, "no reason was given"),
        ([], "no reason was given"),
    ],
)
def test_reason_in_body(body: object, reason: str) -> None:
    """The reason is the first that the answer gives."""
    assert reason_in(orjson.dumps(body)) == reason


def test_reason_in_other_body() -> None:
    """A body that is no JSON has none."""
    assert reason_in(b"Not Found") == reason_in(b"") == "no reason was given"


def kinds(caplog: pytest.LogCaptureFixture) -> int:
    """Return the number of kinds of the logged lines."""
    return len({vars(record)["kind"] for record in caplog.records})


def test_kind_is_sender_status_and_reason(caplog: pytest.LogCaptureFixture) -> None:
    """Lines are of one kind if sender, status and the general reason are the same."""
    with caplog.at_level(logging.WARNING):
        for row in range(3):
            log_refusal("POST /x", "203.0.113.9", 422, f"row {row}: 'a{row}' is 2026-07-12T0{row}:00:00Z, -{row}.5e3")
        assert kinds(caplog) == 1
        log_refusal("POST /x", "203.0.113.8", 422, "row 1: 'a' is 2026-07-12T00:00:00Z, 1 (and 7 more)")
        log_refusal("POST /x", "203.0.113.9", 401, "row 1: 'a' is 2026-07-12T00:00:00Z, 1")
        log_refusal("POST /x", "203.0.113.9", 422, "another")
    assert kinds(caplog) == 4


def test_line_is_short_and_harmless(caplog: pytest.LogCaptureFixture) -> None:
    """No line is long, or has a character that ends it or that a terminal obeys."""
    with caplog.at_level(logging.WARNING):
        log_refusal("PATCH /a\n\x1b[2J" + "x" * 9_999, "\r\n" * 999, 422, "\x00\u2028" * 999)
    (line,) = caplog.messages
    assert len(line) < 4_000
    assert line.isprintable()
