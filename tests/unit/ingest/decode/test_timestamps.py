"""A time is the same in every form in which it is written."""

import re
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta, tzinfo

import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.ingest.decode.timestamps import (
    EARLIEST_GUESSED_US,
    EARLIEST_US,
    LATEST_US,
    Precision,
    TimeWindow,
    parse_time_us,
    parse_times_us,
)
from tests.support.examples import examples
from tests.support.samples import T0_US, times_us

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
DAY_US = 86_400_000_000
MINUTE_US = 60_000_000
NANOSECONDS_A = {"s": 1_000_000_000, "ms": 1_000_000, "µs": 1_000, "ns": 1}

PRECISIONS = [Precision.S, Precision.MS, Precision.US, Precision.NS]

epochs = st.integers(946_684_800 * 10**9, 5 * 10**9 * 10**9 - 1)
"""Nanoseconds between 2000 and 2128, where a magnitude tells every unit."""


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        ("2023-07-12T14:30:45Z", T0_US),
        ("2023-07-12T14:30:45+00:00", T0_US),
        ("2023-07-12T16:30:45+02:00", T0_US),
        ("2023-07-12T09:00:45-05:30", T0_US),
        ("2023-07-12T14:30:45", T0_US),
        ("2023-07-12 14:30:45", T0_US),
        ("20230712T143045Z", T0_US),
        (" 2023-07-12T14:30:45Z ", T0_US),
        ("2023-07-12T14:30:45.000001Z", T0_US + 1),
        ("2023-07-12t14:30:45z", T0_US),
        ("2023-07-11T24:00:00Z", T0_US - T0_US % DAY_US),
        ("2023-07-11 24:00", T0_US - T0_US % DAY_US),
        ("20230711T240000.000Z", T0_US - T0_US % DAY_US),
        ("2023-07-12T24:00:00+02:00", T0_US - T0_US % DAY_US + 22 * 3_600_000_000),
        ("2016-12-31T23:59:60Z", 1_483_228_800_000_000),
        ("2016-12-31T23:59:60.25z", 1_483_228_800_250_000),
        ("2017-01-01T05:29:60+05:30", 1_483_228_800_000_000),
        ("2023-07-12T14:30:45.999Z", T0_US + 999_000),
        ("2023-07-12", T0_US - T0_US % DAY_US),
        (1689172245, T0_US),
        (1689172245.25, T0_US + 250_000),
        (1689172245000, T0_US),
        (1689172245000000, T0_US),
        (1689172245000000999, T0_US),
        ("1689172245", T0_US),
        ("1689172245.25", T0_US + 250_000),
        ("1689172245000", T0_US),
        ("1689172245000000", T0_US),
        ("1689172245000000999", T0_US),
        ("1712120112345", 1712120112345_000),
        ("1.689172245e9", T0_US),
        (946_684_800, 946_684_800_000_000),
        (5e9 - 1, (5 * 10**9 - 1) * 1_000_000),
        ("1900-01-01T00:00:00Z", EARLIEST_US),
        ("2261-12-31T23:59:59.999999Z", LATEST_US - 1),
    ],
)
def test_a_time_is_understood_in_every_form(sent: object, expected: int) -> None:
    assert parse_time_us(sent) == expected


@pytest.mark.parametrize(
    "sent",
    [
        True,
        False,
        None,
        [],
        {},
        b"2023-07-12",
        "",
        " ",
        "now",
        "yesterday",
        "12/07/2023",
        "2023-02-29T00:00:00Z",
        "2023-07-12T25:00:00Z",
        "2023-07-12T24:00:01Z",
        "2023-07-12T24:30Z",
        "2023-07-12T14:30:60Z",
        "2023-07-12T23:59:61Z",
        "2023-07-12T14:30:45 UTC",
        "2023-07-12 14:30:45 GMT",
        "2023-07-12Z",
        "nan",
        "inf",
        float("nan"),
        float("inf"),
        float("-inf"),
        1e300,
        10**400,
        -(10**400),
        "1" + 400 * "0",
        "1899-12-31T23:59:59.999999Z",
        "1900-01-01T00:00:00+00:01",
        "2262-01-01T00:00:00Z",
        "2261-12-31T23:59:59-00:01",
        "0001-01-01T00:00:00+14:00",
        "9999-12-31T23:59:59-14:00",
        -2208988801,
        LATEST_US * 1_000,
    ],
    ids=lambda sent: f"{sent!r:.30}",
)
def test_what_is_no_time_is_refused_in_words(sent: object) -> None:
    with pytest.raises(ValueError, match=r"^time should "):
        parse_time_us(sent)


@pytest.mark.parametrize(
    ("sent", "looks_like"),
    [
        (2023, "the year 2023 written as a number"),
        (20230712, "the date 2023-07-12 written as a number"),
        ("20230712", "the date 2023-07-12 written as a number"),
        (20230712.0, "the date 2023-07-12 written as a number"),
        (202307121430, "the date 2023-07-12T14:30:00 written as a number"),
        (20230712143045, "the date 2023-07-12T14:30:45 written as a number"),
        (20230712143045123, "the date 2023-07-12T14:30:45 written as a number"),
        (45119.60417, "2023-07-12T14:30:00Z in days as Excel counts them"),
        ("45119.60417", "2023-07-12T14:30:00Z in days as Excel counts them"),
        (60137, "2023-07-12T00:00:00Z in days as the modified Julian date counts them"),
        (2460138.0, "2023-07-12T12:00:00Z in days as the Julian date counts them"),
        (739079.5, "2023-07-12T12:00:00Z in days as MATLAB counts them"),
        (638247690450000000, "2023-07-12T14:30:45Z in .NET ticks"),
        (133336458450000000, "2023-07-12T14:30:45Z in a Windows file time"),
        (742487445, "2023-07-12T14:30:45Z counted from 2000, as MicroPython does"),
        (742487445000, "2023-07-12T14:30:45Z counted from 2000, as MicroPython does"),
        (946_684_799, "2029-12-30T23:59:59Z counted from 2000"),
        (0, "an uptime, or the time of a clock that was never set"),
        (86_400_000, "an uptime, or the time of a clock that was never set"),
    ],
)
def test_implausible_epoch(sent: float | str, looks_like: str) -> None:
    """A number that no sender means as a time since 1970 is refused, with what it looks like and the way out."""
    with pytest.raises(ValueError, match=f" looks like {re.escape(looks_like)}.*send ISO 8601, or precision="):
        parse_time_us(sent)
    assert read(pa.array([sent]), Precision.AUTO) == [None]


@pytest.mark.parametrize("sent", [-1, -1e9, 230712143000])
def test_number_before_2000(sent: float) -> None:
    """A number that looks like nothing else is refused with the time that it would be."""
    with pytest.raises(ValueError, match=r" would be 19..-..-..T..:..:..Z, which is before 2000: send .* precision="):
        parse_time_us(sent)


@pytest.mark.parametrize("precision", PRECISIONS)
@given(number=st.integers(0, 946_684_799))
@example(number=20230712)
def test_named_precision_is_believed(precision: Precision, number: int) -> None:
    """A named precision holds even for a number as small as a date in digits."""
    time_us = number * NANOSECONDS_A[{"us": "µs"}.get(precision.value, precision.value)] // 1_000
    assert parse_time_us(number, precision=precision) == time_us
    assert read(pa.array([number]), precision) == [time_us]


@given(st.integers(EARLIEST_US, EARLIEST_GUESSED_US + 10**6) | st.integers(EARLIEST_US * 1_000, LATEST_US * 1_000))
def test_numbers_as_times(number: int) -> None:
    """A number that is taken as a time is one from 2000 on."""
    with suppress(ValueError):
        assert parse_time_us(number) >= EARLIEST_GUESSED_US


@given(times_us, st.timezones() | st.just(UTC))
@example(EARLIEST_US, UTC)
@example(LATEST_US - 1, UTC)
def test_any_moment_survives_iso_8601_exactly(time_us: int, zone: tzinfo) -> None:
    assert parse_time_us((EPOCH + timedelta(microseconds=time_us)).astimezone(zone).isoformat()) == time_us


@given(epochs)
def test_a_whole_number_means_the_same_instant_in_every_unit(epoch_ns: int) -> None:
    for unit_ns in NANOSECONDS_A.values():
        number = epoch_ns // unit_ns
        assert parse_time_us(number) == number * unit_ns // 1_000


@pytest.mark.parametrize("unit", NANOSECONDS_A)
@given(epoch_ns=epochs)
@example(epoch_ns=1712120112345_000_000)
@example(epoch_ns=1700000000123456789)
def test_a_number_in_quotes_means_what_it_means_without_them(unit: str, epoch_ns: int) -> None:
    """A number in quotes means the same as without them, even if it looks like a date, such as 17121201."""
    number = epoch_ns // NANOSECONDS_A[unit]
    assert parse_time_us(str(number)) == parse_time_us(number)


@pytest.mark.parametrize("write", [int, str, float])
@given(epoch_ns=epochs)
def test_a_precision_says_the_unit_whatever_the_magnitude(write: type, epoch_ns: int) -> None:
    for precision, unit_ns in zip(PRECISIONS, NANOSECONDS_A.values(), strict=True):
        number = write(epoch_ns // unit_ns)
        assert parse_time_us(number, precision=precision) == parse_time_us(number)
    for wrong in (Precision.S, Precision.MS):
        with pytest.raises(ValueError, match="between the years"):
            parse_time_us(write(epoch_ns), precision=wrong)
    assert parse_time_us("2023-07-12T14:30:45Z", precision=Precision.NS) == T0_US


@given(st.integers() | st.floats() | st.text() | st.from_regex(r"[0-9TZ:+. -]{1,30}", fullmatch=True))
def test_whatever_is_sent_is_a_time_within_the_bounds_or_a_value_error(sent: object) -> None:
    with suppress(ValueError):
        assert EARLIEST_US <= parse_time_us(sent) < LATEST_US


def read(column: pa.Array, precision: Precision) -> object:
    found = parse_times_us(column, precision)
    assert found is not None
    return found.to_pylist()


def parsed_one_by_one(column: list[object], precision: Precision) -> list[int | None]:
    found: list[int | None] = []
    for value in column:
        found.append(None)
        with suppress(ValueError):
            found[-1] = parse_time_us(value, precision=precision)
    return found


INTEGERS = [
    0,
    -1,
    -999,
    -1_000,
    -1_001,
    5 * 10**9 - 1,
    5 * 10**9,
    5 * 10**12 - 1,
    5 * 10**12,
    5 * 10**15 - 1,
    5 * 10**15,
]
INTEGERS += [946_684_800 * 1_000**power + less for power in range(4) for less in (0, -1)]
INTEGERS += [-number for number in INTEGERS] + [2**63 - 1, -(2**63), EARLIEST_US * 1_000, LATEST_US * 1_000 - 1]
FLOATS = [float(number) for number in INTEGERS] + [
    0.5,
    1.5,
    2.5,
    -0.5,
    1e-7,
    1e19,
    -1e19,
    1e300,
    float("inf"),
    float("nan"),
]
TEXTS = [
    "",
    " ",
    "noon",
    "0x10",
    "2023-07-12T14:30:45Z",
    "2023-07-12 14:30",
    "2023-07-12T14:30:45+05:30",
    "0000-01-01",
    "1e3",
]
TEXTS += [
    *map(str, INTEGERS),
    *map(str, FLOATS),
    "00000000000000000000012",
    "0" * 70,
    "2023-07-12T24:00:00Z",
    "2023-07-12T23:59:60Z",
    "2023-07-12T24:00:00.0z",
    "2023-07-12T14:30:60Z",
    "2023-07-12T14:30:45z",
    "2023-07-12T14:30:45 UTC",
]
like_times = st.from_regex(
    r"20[0-9]{2}-?[01][0-9]-?[0-3][0-9]([T ][0-9:]{2,8}([.,][0-9]{1,9})?(Z|[+-][0-9:]{2,5})?)?", fullmatch=True
)


@pytest.mark.parametrize(
    ("type_", "some"),
    [
        (pa.int64(), st.sampled_from(INTEGERS) | st.integers(-(2**63), 2**63 - 1) | st.integers(0, 2 * T0_US)),
        (pa.uint64(), st.sampled_from([abs(number) for number in INTEGERS]) | st.integers(0, 2**64 - 1)),
        (pa.int32(), st.integers(-(2**31), 2**31 - 1)),
        (pa.float64(), st.sampled_from(FLOATS) | st.floats() | st.floats(-1e19, 1e19)),
        (pa.float32(), st.floats(width=32)),
        (pa.string(), st.sampled_from(TEXTS) | like_times | st.text(max_size=5)),
    ],
    ids=lambda value: str(value) if isinstance(value, pa.DataType) else "",
)
@given(data=st.data(), precision=st.sampled_from(Precision))
@examples(100)
def test_a_column_is_read_as_its_values_are_one_by_one(
    type_: pa.DataType, some: st.SearchStrategy[object], data: st.DataObject, precision: Precision
) -> None:
    values = data.draw(st.lists(st.none() | some, max_size=6) | st.lists(some, min_size=1, max_size=2))
    assert read(pa.array(values, type_), precision) == parsed_one_by_one(values, precision)


@given(st.data())
@examples(150)
def test_times_that_are_written_alike_are_read_alike(data: st.DataObject) -> None:
    """Times that Arrow parses as a whole column are the same that Python parses."""
    first = data.draw(like_times)
    characters = st.sampled_from("0123456789-:+.TZtz ")
    place, character = data.draw(st.integers(0, len(first))), data.draw(characters)
    values: list[object] = [first, first[:place] + character + first[place + data.draw(st.integers(0, 1)) :]]
    for column in (values, values[:1], values[1:]):
        assert read(pa.array(column), Precision.AUTO) == parsed_one_by_one(column, Precision.AUTO)


def test_what_is_no_column_of_times_is_told_from_one_of_bad_times() -> None:
    assert parse_times_us(pa.array([True]), Precision.AUTO) is None
    assert parse_times_us(pa.array([[1]]), Precision.AUTO) is None
    assert read(pa.array(["noon"]), Precision.AUTO) == [None]


@pytest.mark.parametrize(
    "sent", ["1" * 8_000 + "x", "1." + "1" * 8_000 + "x", "1e" + "1" * 8_000 + "x", " " * 8_000 + "x"]
)
def test_a_long_time_is_refused_in_a_short_one(sent: str) -> None:
    """Time taken grows with the length and not with its square: 8,000 characters are read in well under 1 ms."""
    started = time.process_time()
    with pytest.raises(ValueError, match=r"^time should "):
        parse_time_us(sent)
    assert time.process_time() - started < 0.1


@pytest.mark.parametrize(
    ("offset_us", "fault"),
    [
        (-30 * DAY_US - 1, "more than 30 days ago"),
        (-30 * DAY_US, None),
        (0, None),
        (10 * MINUTE_US, None),
        (10 * MINUTE_US + 1, "more than 10 minutes ahead"),
    ],
)
def test_a_window_includes_its_edges(offset_us: int, fault: str | None) -> None:
    said = TimeWindow.of(past_days=30, future_minutes=10).fault(T0_US + offset_us, now_us=T0_US)
    assert said is None if fault is None else said is not None and fault in said


def test_zero_days_and_zero_minutes_mean_any_time() -> None:
    window = TimeWindow.of(past_days=0, future_minutes=0)
    assert window.fault(EARLIEST_US, now_us=T0_US) is None
    assert window.fault(LATEST_US - 1, now_us=T0_US) is None
