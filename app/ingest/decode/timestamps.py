"""When a reading was taken: ISO 8601 or a number since 1970, in; microseconds since 1970-01-01 UTC, out.

Pure. A time without an offset is UTC. A number's unit is given by a Precision or told by its magnitude, with the
thresholds of InfluxDB 3's ``precision=auto``: below 5e9 seconds, below 5e12 milliseconds, below 5e15 microseconds, else
nanoseconds. A number whose unit was told so must not lie before 2000: one that does is a date in digits, a day of Excel
or of another epoch, and would be stored decades off.

``parse_time_us`` takes one time and says what is wrong with it; ``parse_times_us`` takes a column, without a Python
object a row, and gives null where ``parse_time_us`` would raise: the tests hold the one to the other.
"""

import re
from bisect import bisect_right
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import Enum

import pyarrow as pa
import pyarrow.compute as pc

EARLIEST_US = -2_208_988_800_000_000
"""1900-01-01. Before it, a time is a mistake rather than a measurement."""
LATEST_US = 9_214_646_400_000_000
"""2262-01-01. From that year on, nanoseconds no longer fit 64 bits."""

EARLIEST_GUESSED_US = 946_684_800_000_000
"""2000-01-01. With Precision.AUTO a number must not read as an earlier time. Dates in digits, serial days, uptimes,
.NET's ticks and, until 2030, MicroPython's seconds since 2000 all do. A named precision is believed."""

OUTSIDE_ALL_YEARS = "time should lie between the years 1900 and 2261"

MAX_TEXT_LENGTH = 64
"""No time is written longer."""

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
LARGEST_UNAMBIGUOUS = 5e15
"""Below it a whole number means the same as a float, to the microsecond; not so with Precision.NS."""


class Precision(Enum):
    """The unit of times that are sent as numbers."""

    AUTO = "auto"
    S = "s"
    MS = "ms"
    US = "us"
    NS = "ns"


_BEYOND_ANY_UNIT = 1e19
_LIMITS = ((5e9, Precision.S), (5e12, Precision.MS), (5e15, Precision.US), (_BEYOND_ANY_UNIT, Precision.NS))
_SCALES_US = {Precision.S: 1_000_000.0, Precision.MS: 1_000.0, Precision.US: 1.0, Precision.NS: 0.001}
_BOUNDS = [limit for limit, _ in _LIMITS]
_SCALES = [_SCALES_US[unit] for _, unit in _LIMITS]
_INTEGER = re.compile(r"[+-]?\d{1,20}", re.ASCII)
_ZONE = re.compile(r"[T ].*(Z|[+-]\d\d(:?\d\d)?)$", re.ASCII)
_CLOCK_ZONE = r"(?P<zone>(?:Z|[+-][\d:]+)?)"
_END_OF_DAY = re.compile(
    rf"(?P<date>.{{8,10}})[Tt ](?:24(?:00|:00)?|(?:240000|24:00:00)(?:[.,]0+)?){_CLOCK_ZONE}", re.ASCII
)
_LEAP_SECOND = re.compile(rf"(?P<minute>.{{8,10}}[Tt ]\d\d:?\d\d:?)60(?P<fraction>(?:[.,]\d+)?){_CLOCK_ZONE}", re.ASCII)
_DAY_US = 86_400_000_000
NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
"""How a number is written in a text."""


def parse_time_us(value: object, *, precision: Precision = Precision.AUTO) -> int:
    """Microseconds since 1970-01-01 UTC of an ISO 8601 string or an epoch number (also one in quotes).

    Raises:
        ValueError: it is neither, or lies outside 1900 to 2261; the message says which.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError("time should be an ISO 8601 string or a number of seconds, ms, µs or ns since 1970")
    time_us = _from_text(value.strip(), precision) if isinstance(value, str) else _from_number(value, precision)
    if not EARLIEST_US <= time_us < LATEST_US:
        raise ValueError(OUTSIDE_ALL_YEARS)
    return time_us


def _from_text(text: str, precision: Precision) -> int:
    if len(text) > MAX_TEXT_LENGTH:
        raise ValueError("time should be ISO 8601 or a number, in few characters")
    # A number first: twelve and more digits would pass for an ISO date without its hyphens.
    if _INTEGER.fullmatch(text):
        return _from_number(int(text), precision)
    if NUMBER.fullmatch(text):
        return _from_number(float(text), precision)
    try:
        return _from_iso(text)
    except ValueError:
        pass
    try:
        return _from_rare_iso(text)
    except ValueError:
        raise ValueError("time should be ISO 8601, like 2023-07-12T14:30:45Z, or a number since 1970") from None


def _from_iso(text: str) -> int:
    moment = datetime.fromisoformat(text)
    return (moment.replace(tzinfo=moment.tzinfo or UTC) - EPOCH) // MICROSECOND


def _from_rare_iso(text: str) -> int:
    """Parse the forms of ISO 8601 and RFC 3339 that ``datetime`` lacks, or lacks in some version of Python.

    These are a z (RFC 3339, 5.6), 24:00 for the end of a day (ISO 8601-1:2019/Amd 1), and a leap second, which is the
    next day's first as in POSIX.
    """
    if text[-1:] == "z":
        text = text[:-1] + "Z"
    if end_of_day := _END_OF_DAY.fullmatch(text):
        return _from_iso(f"{end_of_day['date']}T00:00:00{end_of_day['zone']}") + _DAY_US
    if leap := _LEAP_SECOND.fullmatch(text):
        time_us = _from_iso(f"{leap['minute']}59{leap['fraction']}{leap['zone']}") + 1_000_000
        if time_us % _DAY_US < 1_000_000:
            return time_us
    return _from_iso(text)


def _from_number(number: float, precision: Precision) -> int:
    magnitude = abs(number)
    if not magnitude < _BEYOND_ANY_UNIT:  # nor is NaN
        raise ValueError("time should be a number of seconds, ms, µs or ns since 1970")
    if precision is not Precision.AUTO:
        return _in_us(number, _SCALES_US[precision])
    index = bisect_right(_BOUNDS, magnitude)
    time_us = _in_us(number, _SCALES[index])
    if EARLIEST_US <= time_us < EARLIEST_GUESSED_US:
        raise ValueError(_implausible(number, time_us, _LIMITS[index][1]))
    return time_us


def _in_us(number: float, scale: float) -> int:
    if isinstance(number, int):
        return number * int(scale) if scale >= 1 else number // 1_000
    return round(number * scale)


def _implausible(number: float, time_us: int, unit: Precision) -> str:
    read = _iso(time_us)
    looks_like = _looks_like(number, time_us)
    said = f"looks like {looks_like}" if looks_like else f"would be {read}, which is before 2000"
    return (
        f"time should be ISO 8601 or a number since 1970, and {number!r} {said}: "
        f"send ISO 8601, or precision={unit.value} at POST /api/readings to mean {read}"
    )


_DIGITS_OF_DATES = {4: "%Y", 8: "%Y%m%d", 12: "%Y%m%d%H%M", 14: "%Y%m%d%H%M%S", 17: "%Y%m%d%H%M%S%f"}
_DAY_COUNTS = {"Excel": 25_569, "the modified Julian date": 40_587, "the Julian date": 2_440_587.5, "MATLAB": 719_529}
"""1970-01-01 as each counts days."""
_TICKS_US = {".NET ticks": 62_135_596_800_000_000, "a Windows file time": 11_644_473_600_000_000}
"""1970-01-01 as each counts it, though in units of 100 ns."""
_USUAL_US = range(EARLIEST_GUESSED_US, 2_524_608_000_000_000)
"""2000 to 2049, where a time lies that another way of counting explains."""


def _looks_like(number: float, time_us: int) -> str | None:
    """Return the likeliest meaning of a number that is no plausible time since 1970. None if none is likely."""
    digits = str(int(number))
    if (form := _DIGITS_OF_DATES.get(len(digits))) and number == int(number):
        try:
            moment = datetime.strptime(digits, form).replace(tzinfo=UTC)
        except ValueError:
            pass
        else:
            if 1900 <= moment.year < 2262:
                written = moment.isoformat()[: {4: 4, 8: 10}.get(len(digits), 19)]
                return f"the {'year' if len(digits) == 4 else 'date'} {written} written as a number"
    for name, days in _DAY_COUNTS.items():
        if (counted_us := round((number - days) * 86_400e6)) in _USUAL_US:
            return f"{_iso(counted_us)} in days as {name} counts them"
    for name, epoch_us in _TICKS_US.items():
        if (counted_us := int(number) // 10 - epoch_us) in _USUAL_US:
            return f"{_iso(counted_us)} in {name}"
    if time_us >= _TEN_YEARS_US:
        return f"{_iso(time_us + EARLIEST_GUESSED_US)} counted from 2000, as MicroPython does"
    return "an uptime, or the time of a clock that was never set" if 0 <= time_us < _TEN_YEARS_US // 2 else None


_TEN_YEARS_US = 315_532_800_000_000


def _iso(time_us: int) -> str:
    return (EPOCH + time_us // 1_000_000 * timedelta(seconds=1)).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_times_us(times: pa.Array, precision: Precision) -> pa.Array | None:
    """Microseconds since 1970 (int64) of a column of times. Null where it is null, and where it is no time.

    Takes text, integers, floats, timestamps of every unit and zone, dates, all of these as a dictionary, and a column
    that has nothing but nulls. None: it is a column of something else.
    """
    if pa.types.is_dictionary(times.type):
        distinct = parse_times_us(times.dictionary, precision)
        return None if distinct is None else distinct.take(times.indices)
    if pa.types.is_string(times.type) or pa.types.is_large_string(times.type) or pa.types.is_string_view(times.type):
        return _texts(times.cast(pa.string()), precision)
    if pa.types.is_date(times.type):
        times = times.cast(pa.timestamp("s" if pa.types.is_date32(times.type) else "ms"))
    if pa.types.is_timestamp(times.type):
        precision = Precision(times.type.unit)
    numbers = _as_numbers(times)
    return None if numbers is None else _numbers(numbers, precision)


def _as_numbers(times: pa.Array) -> pa.Array | None:
    """Numbers of any width, or what is kept as numbers, as int64 or float64."""
    type_ = times.type
    if pa.types.is_unsigned_integer(type_):
        # The largest int64 is past every unit's last year, as is all that doesn't fit one.
        last = pa.scalar(2**63 - 1, pa.uint64())
        return pc.min_element_wise(times.cast(pa.uint64()), last, skip_nulls=False).cast(pa.int64())
    if pa.types.is_integer(type_) or pa.types.is_timestamp(type_) or pa.types.is_null(type_):
        return times.cast(pa.int64())
    return times.cast(pa.float64()) if pa.types.is_floating(type_) else None


def _numbers(numbers: pa.Array, precision: Precision) -> pa.Array:
    in_unit = _whole_in_unit if pa.types.is_integer(numbers.type) else _fraction_in_unit
    if precision is not Precision.AUTO:
        return in_unit(numbers, precision)
    extremes = pc.min_max(numbers)
    low, high = extremes["min"].as_py(), extremes["max"].as_py()
    if low is not None and high is not None and low >= 0:
        units = [unit for limit, unit in _LIMITS if low < limit and high < limit]
        if units and not any(low < limit <= high for limit, _ in _LIMITS):
            found = in_unit(numbers, units[0])
            # A second more, because the product is rounded.
            is_plausible = low * _SCALES_US[units[0]] > EARLIEST_GUESSED_US + 1_000_000
            return found if is_plausible else _plausible(found)
    magnitudes = pc.abs(numbers)
    found = in_unit(numbers, Precision.NS)
    for limit, unit in reversed(_LIMITS[:-1]):
        bound = pa.scalar(int(limit), numbers.type)
        found = pc.if_else(pc.less(magnitudes, bound), in_unit(numbers, unit), found)
    return _plausible(found)


def _plausible(times_us: pa.Array) -> pa.Array:
    return pc.if_else(pc.less(times_us, EARLIEST_GUESSED_US), pa.scalar(None, pa.int64()), times_us)


def _whole_in_unit(numbers: pa.Array, unit: Precision) -> pa.Array:
    """Convert int64 counts of a unit to microseconds, with null outside the accepted years."""
    scale = _SCALES_US[unit]
    if scale >= 1:
        first, end = EARLIEST_US // int(scale), LATEST_US // int(scale)
        return pc.multiply(_between(numbers, first, end), int(scale))
    taken = _between(numbers, EARLIEST_US * 1_000, LATEST_US * 1_000)
    truncated = pc.divide(taken, 1_000)
    below = pc.less(pc.subtract(taken, pc.multiply(truncated, 1_000)), 0)
    return pc.subtract(truncated, below.cast(pa.int64()))


def _fraction_in_unit(numbers: pa.Array, unit: Precision) -> pa.Array:
    """Convert float64 counts of a unit to the nearest microsecond, with null outside the accepted years."""
    rounded = pc.round(pc.multiply(numbers, _SCALES_US[unit]), round_mode="half_to_even")
    return _between(rounded, EARLIEST_US, LATEST_US).cast(pa.int64())


def _between(numbers: pa.Array, first: int, end: int) -> pa.Array:
    extremes = pc.min_max(numbers)
    low, high = extremes["min"].as_py(), extremes["max"].as_py()
    # min_max passes over NaN, which no comparison does.
    if pa.types.is_integer(numbers.type) and (low is None or first <= low <= high < end):
        return numbers
    kind = numbers.type
    as_kind = float if pa.types.is_floating(kind) else int
    inside = pc.and_(
        pc.greater_equal(numbers, pa.scalar(as_kind(first), kind)), pc.less(numbers, pa.scalar(as_kind(end), kind))
    )
    return pc.if_else(inside, numbers, pa.scalar(None, kind))


def _texts(texts: pa.Array, precision: Precision) -> pa.Array:
    """Convert texts to microseconds: all at once if all are written as the first is, else each distinct text alone."""
    longest = pc.max(pc.binary_length(texts)).as_py()
    if longest is None:
        return texts.cast(pa.int64())
    if longest <= MAX_TEXT_LENGTH:
        first = texts[pc.index(pc.is_valid(texts), True).as_py()].as_py()
        try:
            found = _written_alike(texts, first, precision)
        except pa.ArrowInvalid:
            found = None
        if found is not None:
            return found
    encoded = texts.dictionary_encode()
    distinct = pa.array([_parsed_or_none(text, precision) for text in encoded.dictionary.to_pylist()], pa.int64())
    return distinct.take(encoded.indices)


def _parsed_or_none(text: str, precision: Precision) -> int | None:
    try:
        return parse_time_us(text, precision=precision)
    except ValueError:
        return None


def _written_alike(texts: pa.Array, first: str, precision: Precision) -> pa.Array | None:
    """As ``parse_time_us`` reads them, or None or ArrowInvalid where Arrow doesn't, or not with certainty.

    Arrow reads a part of what ``datetime.fromisoformat`` reads, and reads it alike: seen on 200,000 mutated times. The
    year 0, the only exception, is outside the years that are taken.
    """
    if _INTEGER.fullmatch(first):
        numbers = texts.cast(pa.int64())
        is_hexadecimal = pc.match_substring(pc.ascii_lower(texts), "x")
        return None if is_hexadecimal.true_count else _numbers(numbers, precision)
    if NUMBER.fullmatch(first):
        numbers = texts.cast(pa.float64())
        # A whole number among them must be exact as a float, and of no unit in which it would be rounded another way.
        if precision is Precision.NS or (pc.max(pc.abs(numbers)).as_py() or 0.0) >= LARGEST_UNAMBIGUOUS:
            return None
        return _numbers(numbers, precision)
    zone = "UTC" if _ZONE.search(first) else None
    return _whole_in_unit(texts.cast(pa.timestamp("us", zone)).cast(pa.int64()), Precision.US)


@dataclass(frozen=True, slots=True)
class TimeWindow:
    """The largest distance from now that a reading's own time may have. None: any distance."""

    past_us: int | None
    future_us: int | None
    kept_us: int | None = None
    """How long a reading is kept: what is older would be taken only to be deleted, and is refused also as backfill."""

    @classmethod
    def of(cls, *, past_days: float, future_minutes: float, kept_days: float = 0) -> "TimeWindow":
        """Build a window from the units of the settings, where 0 means any."""
        return cls(
            past_us=round(past_days * 86_400e6) or None,
            future_us=round(future_minutes * 60e6) or None,
            kept_us=round(kept_days * 86_400e6) or None,
        )

    def for_backfill(self) -> "TimeWindow":
        """Return the window of a request that may bring readings of any age in the past."""
        return replace(self, past_us=None)

    def bounds_us(self, now_us: int) -> tuple[int | None, int | None]:
        """Return the earliest and the latest time of the window. None where there is no bound."""
        reach_us = min((reach for reach in (self.past_us, self.kept_us) if reach is not None), default=None)
        earliest = None if reach_us is None else now_us - reach_us
        return earliest, None if self.future_us is None else now_us + self.future_us

    def fault(self, time_us: int, *, now_us: int) -> str | None:
        """Why this time is outside the window, in words for the sender. None if it is inside."""
        if self.past_us is not None and time_us < now_us - self.past_us:
            return (
                f"time is more than {self.past_us / 86_400e6:g} days ago, which is as far back as this server takes "
                "without backfill=true at POST /api/readings"
            )
        if self.future_us is not None and time_us > now_us + self.future_us:
            return f"time is more than {self.future_us / 60e6:g} minutes ahead of this server's clock"
        if self.kept_us is not None and time_us < now_us - self.kept_us:
            return f"time is more than {self.kept_us / 86_400e6:g} days ago, and readings are not kept for longer"
        return None
