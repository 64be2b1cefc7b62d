"""Queries of the history: the bucket that suits a span, and cursors that only their own query takes."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import InvalidParameter
from app.history.query import DAY_US, HOUR_US, Bucket, Cursor, Position, bucket_for

ASKED = "what the client said"
INT64 = st.integers(-(2**63), 2**63 - 1)
CURSORS = st.builds(
    Cursor,
    INT64,
    INT64,
    st.sampled_from(Bucket),
    st.builds(Position, st.integers(0, 2**31 - 1), INT64, INT64),
)
CURSOR = Cursor(0, DAY_US, Bucket.RAW, Position(7, 12_345_678, 90))


@pytest.mark.parametrize(
    ("span_us", "bucket"),
    [
        (1, Bucket.RAW),
        (3 * HOUR_US, Bucket.RAW),
        (3 * HOUR_US + 1, Bucket.MINUTE),
        (3 * DAY_US, Bucket.MINUTE),
        (3 * DAY_US + 1, Bucket.HOUR),
        (90 * DAY_US, Bucket.HOUR),
        (90 * DAY_US + 1, Bucket.DAY),
        (300 * 365 * DAY_US, Bucket.DAY),
    ],
)
def test_the_longer_the_span_the_coarser_the_bucket(span_us: int, bucket: Bucket) -> None:
    assert bucket_for(span_us, age_us=10_000 * DAY_US, kept_us=dict.fromkeys(Bucket, 0)) is bucket


@pytest.mark.parametrize(
    ("days_ago", "bucket"),
    [
        (0.1, Bucket.RAW),
        (7, Bucket.RAW),
        (7.1, Bucket.MINUTE),
        (31, Bucket.HOUR),
        (400, Bucket.DAY),
        (9_999, Bucket.DAY),
    ],
)
def test_what_is_no_longer_kept_is_not_picked(days_ago: float, bucket: Bucket) -> None:
    kept_us = {Bucket.RAW: 7 * DAY_US, Bucket.MINUTE: 30 * DAY_US, Bucket.HOUR: 365 * DAY_US, Bucket.DAY: 730 * DAY_US}
    assert bucket_for(HOUR_US, age_us=round(days_ago * DAY_US), kept_us=kept_us) is bucket


@given(CURSORS, st.text())
def test_a_cursor_comes_back_as_it_was_and_needs_no_quoting_in_a_url(cursor: Cursor, asked: str) -> None:
    text = cursor.encode(asked)
    assert set(text) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")
    assert Cursor.decode(text, asked) == cursor


@given(st.integers(0, len(base64.urlsafe_b64decode(CURSOR.encode(ASKED) + "==")) * 8 - 1))
def test_a_cursor_of_which_any_bit_is_another_is_refused(bit: int) -> None:
    packed = bytearray(base64.urlsafe_b64decode(CURSOR.encode(ASKED) + "=="))
    packed[bit // 8] ^= 1 << bit % 8
    with pytest.raises(InvalidParameter, match="cursor"):
        Cursor.decode(base64.urlsafe_b64encode(packed).decode(), ASKED)


@pytest.mark.parametrize("text", ["", "x", "null", "é", "A" * 61, "A" * 10_000, CURSOR.encode(ASKED)[:-1], "\ud800"])
def test_what_is_no_cursor_is_refused(text: str) -> None:
    with pytest.raises(InvalidParameter, match="cursor"):
        Cursor.decode(text, ASKED)


def test_the_cursor_of_another_query_is_refused() -> None:
    with pytest.raises(InvalidParameter, match="same query"):
        Cursor.decode(CURSOR.encode(ASKED), "something else")
