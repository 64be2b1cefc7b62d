"""When a reading was taken: ISO 8601 or a number since 1970, in; microseconds since 1970-01-01 UTC, out.

Pure. A time without an offset is UTC. A number's unit is told by its magnitude, with the thresholds of InfluxDB 3's
``precision=auto``: below 5e9 seconds, below 5e12 milliseconds, below 5e15 microseconds, else nanoseconds.
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

EARLIEST_US = -2_208_988_800_000_000
"""1900-01-01. Before it, a time is a mistake rather than a measurement."""
LATEST_US = 9_214_646_400_000_000
"""2262-01-01. From that year on, nanoseconds no longer fit 64 bits."""

MAX_TEXT_LENGTH = 64
"""No time is written longer."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_BEYOND_ANY_UNIT = 1e19
_UNITS_US = ((5e9, 1_000_000.0), (5e12, 1_000.0), (5e15, 1.0), (_BEYOND_ANY_UNIT, 0.001))
_INTEGER = re.compile(r"[+-]?\d{1,20}", re.ASCII)
_DECIMAL = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)


def parse_time_us(value: object) -> int:
    """Microseconds since 1970-01-01 UTC of an ISO 8601 string or an epoch number (also one in quotes).

    Raises:
        ValueError: it is neither, or lies outside 1900 to 2261; the message says which.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError("time should be an ISO 8601 string or a number of seconds, ms, µs or ns since 1970")
    time_us = _from_text(value.strip()) if isinstance(value, str) else _from_number(value)
    if not EARLIEST_US <= time_us < LATEST_US:
        raise ValueError("time should lie between the years 1900 and 2261")
    return time_us


def _from_text(text: str) -> int:
    if len(text) > MAX_TEXT_LENGTH:
        raise ValueError("time should be ISO 8601 or a number, in few characters")
    # A number first: twelve and more digits would pass for an ISO date without its hyphens.
    if _INTEGER.fullmatch(text):
        return _from_number(int(text))
    if _DECIMAL.fullmatch(text):
        return _from_number(float(text))
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError("time should be ISO 8601, like 2023-07-12T14:30:45Z, or a number since 1970") from None
    return (moment.replace(tzinfo=moment.tzinfo or UTC) - _EPOCH) // _MICROSECOND


def _from_number(number: float) -> int:
    magnitude = abs(number)
    if not magnitude < _BEYOND_ANY_UNIT:  # nor is NaN
        raise ValueError("time should be a number of seconds, ms, µs or ns since 1970")
    scale = next(scale for limit, scale in _UNITS_US if magnitude < limit)
    if isinstance(number, int):
        return number * int(scale) if scale >= 1 else number // 1_000
    return round(number * scale)


@dataclass(frozen=True, slots=True)
class TimeWindow:
    """How far from now a reading's own time may lie. None: any distance."""

    past_us: int | None
    future_us: int | None

    @classmethod
    def of(cls, *, past_days: float, future_minutes: float) -> "TimeWindow":
        """The window in the units of the settings, where 0 means any."""
        return cls(
            past_us=round(past_days * 86_400e6) or None,
            future_us=round(future_minutes * 60e6) or None,
        )

    def fault(self, time_us: int, *, now_us: int) -> str | None:
        """Why this time is outside the window, in words for the sender; None if it is inside."""
        if self.past_us is not None and time_us < now_us - self.past_us:
            return f"time is more than {self.past_us / 86_400e6:g} days ago, which is as far back as this server takes"
        if self.future_us is not None and time_us > now_us + self.future_us:
            return f"time is more than {self.future_us / 60e6:g} minutes ahead of this server's clock"
        return None
