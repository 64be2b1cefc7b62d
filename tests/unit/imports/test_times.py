"""Times of files, in formats and zones."""

from datetime import UTC, datetime

import pyarrow as pa
import pytest

from app.imports.layout import ColumnMapping
from app.imports.times import localize
from app.ingest.decode.columns import ParsedColumns, validate
from app.ingest.decode.readings import Format, open_readings
from tests.support.bodies import ANY_TIME, ndjson, options_of, rows_of, rules

TERMS = options_of(rules(window=ANY_TIME))


def moments(times: pa.Array, layout: ColumnMapping) -> list[str | None]:
    """Return times as moments in UTC, or None."""
    parsed = localize(ParsedColumns(len(times), {"time": times}), layout).parsed
    return [
        time and f"{time.astimezone(UTC):%Y-%m-%d %H:%M:%S.%f}".rstrip("0").rstrip(".")
        for time in parsed.columns["time"].to_pylist()
    ]


BERLIN = ColumnMapping(time_zone="Europe/Berlin")
LOCAL = datetime(2013, 7, 1, 12)


@pytest.mark.parametrize(
    "times",
    [
        pa.array(["2013-07-01T12:00", "2013-07-01 10:00Z", "2013-07-01T05:00:00-05:00", None]),
        pa.array(["2013-07-01T12:00", "1372672800", "1372672800000", None]).dictionary_encode(),
        pa.array([LOCAL, LOCAL, LOCAL, None], pa.timestamp("ns")),
        pa.array([LOCAL, LOCAL, LOCAL, None], pa.timestamp("s")),
    ],
)
def test_zone(times: pa.Array) -> None:
    """Times of any type without an offset are read in the zone. Others keep their own."""
    assert moments(times, BERLIN) == [*["2013-07-01 10:00:00"] * 3, None]


def test_dates() -> None:
    """A day begins when it does in the zone."""
    days = pa.array([LOCAL.date()], pa.date32())
    assert moments(days, BERLIN) == moments(days.cast(pa.date64()), BERLIN) == ["2013-06-30 22:00:00"]
    assert moments(pa.array(["2013-07-01"]), BERLIN) == ["2013-06-30 22:00:00"]


def test_moments_are_left_alone() -> None:
    """Moments stay as they are, and so does everything in UTC without a format."""
    for times in (pa.array([LOCAL], pa.timestamp("s", "UTC")), pa.array([1], pa.int64()), pa.array([1.5])):
        parsed = ParsedColumns(1, {"time": times})
        assert localize(parsed, BERLIN).parsed is parsed
    parsed = ParsedColumns(1, {"time": pa.array(["2013-07-01"])})
    assert localize(parsed, ColumnMapping()).parsed is parsed


def test_clocks_that_are_put_back_and_forward() -> None:
    """A time that comes twice is read as the first, and its row is named. A time that the clocks skipped is a fault."""
    times = pa.array(
        ["2023-10-29T01:59:59", "2023-10-29T02:30", "2023-10-29T03:00", "2023-03-26T02:30", "2023-03-26T03:00"]
    )
    localized = localize(ParsedColumns(5, {"time": times}), BERLIN)
    assert (localized.local_rows, localized.repeated) == (4, (1,))
    assert list(localized.parsed.faults["time"]) == [3]
    assert localized.parsed.value_at(3, "time") == "2023-03-26T02:30"
    hours = [time and time.astimezone(UTC).hour for time in localized.parsed.columns["time"].to_pylist()]
    assert hours == [23, 0, 2, None, 1]


@pytest.mark.parametrize(
    ("form", "times", "expected"),
    [
        (
            "%d.%m.%Y %H:%M",
            pa.array(["12.07.2023 14:30", "31.02.2023 14:30", "2023-07-12"]),
            ["2023-07-12 12:30:00", None, None],
        ),
        ("%d/%b/%Y:%H:%M:%S %z", pa.array(["12/Jul/2023:14:30:45 -0500"]), ["2023-07-12 19:30:45"]),
        ("%Y%m%d", pa.array([20230712, None]), ["2023-07-11 22:00:00", None]),
        ("%I:%M:%S.%f %p %m/%d/%y", pa.array([" 02:30:45.5 PM 07/12/23"]), ["2023-07-12 12:30:45.5"]),
        ("excel", pa.array([45119.60417]), ["2023-07-12 12:30:00.288"]),
        ("excel", pa.array(["45119", "x", "1e300"]), ["2023-07-11 22:00:00", None, None]),
    ],
)
def test_formats(form: str, times: pa.Array, expected: list[str | None]) -> None:
    """Times are read as the format says, and in no other way."""
    assert moments(times, ColumnMapping(time_zone="Europe/Berlin", time_format=form)) == expected


def test_text_and_numbers_in_one_column() -> None:
    """JSON may have text beside numbers: each is read as it is alone."""
    times = ["2013-07-01T12:00", 1372672800, 1372672800.0, "2013-07-01T10:00Z", True, 1e300]
    body = ndjson([{"sensor_id": "a", "time": time, "temperature": 1} for time in times])
    decoded = validate(localize(open_readings(body, Format.NDJSON, TERMS).read(), BERLIN).parsed, TERMS)
    assert [row[1] for row in rows_of(decoded)] == [1372672800 * 10**6] * 4
    assert [(fault.row, fault.column) for fault in decoded.errors] == [(5, "time"), (6, "time")]
