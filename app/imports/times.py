"""Times of files: in a given format, and in a time zone if they have no offset.

This module takes columns as the decoders read them, and returns them with their times resolved. Without a format and in
UTC it has nothing to do: the decoders read such times as fast.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pyarrow as pa

from app.errors import ConfigurationError
from app.imports.layout import ColumnMapping
from app.ingest.decode.columns import ParsedColumns
from app.ingest.decode.timestamps import EPOCH, MICROSECOND, NUMBER, Precision, parse_time_us

EXCEL = "excel"
"""The time format of Excel's serial numbers: days since 1899-12-30."""

_EXCEL_EPOCH = datetime(1899, 12, 30)
_LOCAL_EPOCH = datetime(1970, 1, 1)
_OFFSET = re.compile(r"[T ].*([Zz]|UTC|GMT|[+-]\d\d(:?\d\d){0,2})$", re.ASCII)


@dataclass(frozen=True, slots=True)
class Localized:
    """Columns whose times are moments.

    Attributes:
        sent: the columns.
        local_rows: how many of their times had no offset, and so were taken to be in the zone.
        repeated: the rows, from 0, whose time comes twice in the zone, where clocks are put back. The first is taken.
    """

    parsed: ParsedColumns
    local_rows: int = 0
    repeated: tuple[int, ...] = ()


def require_time_format(time_format: str) -> None:
    """Raise ConfigurationError unless a format has day, month and year."""
    if time_format == EXCEL:
        return
    moment = datetime(2023, 7, 12, 14, 30, 45, tzinfo=UTC)
    try:
        read = datetime.strptime(moment.strftime(time_format), time_format)
    except ValueError as error:
        raise ConfigurationError(
            f"--time-format {time_format!r} can't be read: {error}. It should be like '%d.%m.%Y %H:%M:%S', or 'excel'."
        ) from error
    if read.date() != moment.date():
        raise ConfigurationError(f"--time-format {time_format!r} should have a day, a month and a year.")


def localize(parsed: ParsedColumns, layout: ColumnMapping) -> Localized:
    """Parse times by a layout's format, and those without an offset in its zone.

    A time that the format doesn't fit, and one that the zone has not, where clocks are put forward, are faults.
    """
    times = parsed.columns.get("time")
    if times is None or (layout.time_format is None and layout.time_zone == "UTC"):
        return Localized(parsed)
    if pa.types.is_dictionary(times.type):
        times = times.dictionary.take(times.indices)
    read = _reader_of(times.type, layout)
    if read is None:
        return Localized(parsed)
    zone = ZoneInfo(layout.time_zone)
    distinct = times.dictionary_encode()
    moments: list[int | None] = []
    reasons: dict[int, str] = {}
    local, twice = set[int](), set[int]()
    for place, value in enumerate(_plain(distinct.dictionary).to_pylist()):
        try:
            moment = read(value)
            if isinstance(moment, datetime):
                moment, is_repeated = _in_zone(moment, zone)
                local.add(place)
                if is_repeated:
                    twice.add(place)
            moments.append(moment)
        except ValueError as error:
            moments.append(None)
            reasons[place] = str(error)
    rows = distinct.indices.to_pylist()
    faults = {row: reasons[place] for row, place in enumerate(rows) if place in reasons} if reasons else {}
    return Localized(
        replace(
            parsed,
            columns={**parsed.columns, "time": pa.array(moments, pa.timestamp("us", "UTC")).take(distinct.indices)},
            faults={**parsed.faults, "time": {**parsed.faults.get("time", {}), **faults}},
            value=lambda row, column: times[row].as_py() if column == "time" else parsed.value_at(row, column),
        ),
        local_rows=sum(place in local for place in rows),
        repeated=tuple(row for row, place in enumerate(rows) if place in twice) if twice else (),
    )


def _is_moment(type_: pa.DataType) -> bool:
    return bool(pa.types.is_timestamp(type_) or pa.types.is_date(type_))


def _plain(values: pa.Array) -> pa.Array:
    """Return the values, with those that are moments already as the numbers that are stored."""
    if not _is_moment(values.type):
        return values
    return values.cast(pa.int32() if pa.types.is_date32(values.type) else pa.int64())


_Read = Callable[[object], int | datetime]
"""Makes a moment of a value, in microseconds since 1970 UTC, or a datetime without a zone; ValueError if it is none."""


def _reader_of(type_: pa.DataType, layout: ColumnMapping) -> _Read | None:
    """Return a reader for values of a type. None if they are moments already and the decoders read them."""
    if _is_moment(type_):
        if pa.types.is_timestamp(type_) and type_.tz is not None:
            return None
        unit = type_.unit if pa.types.is_timestamp(type_) else "ms" if pa.types.is_date64(type_) else "D"
        per_unit = {"D": 86_400 * 10**6, "s": 10**6, "ms": 10**3, "us": 1}.get(unit)
        return lambda value: _local(int(value) * per_unit if per_unit else int(value) // 1_000)  # type: ignore[call-overload]
    is_number = pa.types.is_integer(type_) or pa.types.is_floating(type_)
    if layout.time_format is not None:
        form = layout.time_format
        return _excel if form == EXCEL else lambda value: _formatted(str(value).strip(), form)
    return None if is_number else lambda value: _iso(str(value).strip(), layout.precision)


def _local(time_us: int) -> datetime:
    try:
        return _LOCAL_EPOCH + timedelta(microseconds=time_us)
    except OverflowError as error:
        raise ValueError("time should lie between the years 1900 and 2261") from error


def _iso(text: str, precision: Precision) -> int | datetime:
    time_us = parse_time_us(text, precision=precision)
    return time_us if NUMBER.fullmatch(text) or _OFFSET.search(text) else _local(time_us)


def _formatted(text: str, form: str) -> int | datetime:
    try:
        moment = datetime.strptime(text, form)
    except ValueError as error:
        raise ValueError(f"time should be written as --time-format says: {form}") from error
    return moment if moment.tzinfo is None else (moment - EPOCH) // MICROSECOND


def _excel(value: object) -> datetime:
    try:
        return _EXCEL_EPOCH + timedelta(milliseconds=round(float(str(value)) * 86_400_000))
    except (ValueError, OverflowError) as error:
        raise ValueError("time should be a number of days, as in Excel") from error


def _in_zone(local: datetime, zone: ZoneInfo) -> tuple[int, bool]:
    """Return a local time in microseconds since 1970, and whether the clocks show it twice."""
    first, second = (local.replace(tzinfo=zone, fold=fold).utcoffset() for fold in (0, 1))
    assert first is not None
    assert second is not None
    if first < second:
        raise ValueError(f"time does not exist in {zone.key}: the clocks were put forward")
    return (local - first - _LOCAL_EPOCH) // MICROSECOND, first > second
