"""Detection of a CSV's header and of how the CSV is written, from its first lines, unless options say it.

This module gets the start of a file's text, and reads no file.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from app.errors import MalformedBody
from app.imports.layout import ColumnMapping
from app.ingest.decode.columns import NO_VALUE, columns_like_time
from app.ingest.decode.csvs import read_header, records
from app.ingest.decode.dialect import CsvDialect
from app.ingest.decode.utf8 import without_bom
from app.schema import METRICS

SEPARATORS = {"comma": ",", "semicolon": ";", "tab": "\t", "pipe": "|"}
"""The separators of fields, by their names in the option."""
MAX_PREAMBLE_LINES = 100
MAX_UNIT_LINES = 2
"""Campbell's loggers write two below the header (TOA5): the units, and how values were aggregated."""
SAMPLE_RECORDS = 1_000

_LINE_END = re.compile(rb"\r\n|\r|\n")
_WITH_COMMA = re.compile(r"[+-]?\d+,\d+(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
_WITH_POINT = re.compile(r"[+-]?\d*\.\d+(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Header:
    """A CSV's header.

    Attributes:
        names: the columns, as the file calls them.
        dialect: how its records are written.
        end: where the first of them starts, in bytes.
        notes: what was detected, in words.
    """

    names: Sequence[str]
    dialect: CsvDialect
    end: int
    notes: Sequence[str]


def find_header(text: bytes, layout: ColumnMapping) -> Header:
    """Find the header in the start of a CSV.

    It is the first line that has the columns which every reading needs; if none has them, the first that has one like a
    time; if none has, the first.

    Raises:
        MalformedBody: there is no header, or it can't be read; or numbers have both decimal commas and points.
    """
    start = len(text) - len(without_bom(text))
    text = text[start:]
    separators = [layout.separator] if layout.separator is not None else [*SEPARATORS.values()]
    needed = {*layout.needed}
    at, separator = (
        _find(text, layout, separators, lambda names: needed <= {*names})
        or _find(text, layout, separators, lambda names: len(names) > 1 and bool(columns_like_time(names)))
        or _first_line(text, layout, separators)
    )
    dialect = CsvDialect(separator, decimal_comma=False, missing=layout.missing)
    names, size = read_header(text[at:], dialect)
    end = at + size
    notes = []
    if separator != "," and layout.separator is None:
        notes.append(f"fields are separated by {_NAMES[separator]}")
    lines = 0 if layout.skip_lines is not None else text.count(b"\n", 0, at) or text.count(b"\r", 0, at)
    if lines and text[:at].strip():
        notes.append(f"{_counted(lines)} before the header skipped")
    if text[:at].strip():
        units = _unit_lines(text, end, names, layout, dialect)
        if units:
            notes.append(f"{_counted(len(units))} of units after the header skipped")
            end = units[-1]
    if layout.has_decimal_comma is not None:
        has_comma = layout.has_decimal_comma
    elif has_comma := _has_decimal_comma(text, end, names, layout, dialect):
        notes.append("numbers have a decimal comma")
    return Header(names, CsvDialect(separator, has_comma, layout.missing), start + end, notes)


_NAMES = {separator: f"{name}s" for name, separator in SEPARATORS.items()}


def _counted(lines: int) -> str:
    return f"{lines} line" if lines == 1 else f"{lines} lines"


def _find(
    text: bytes, layout: ColumnMapping, separators: Sequence[str], is_header: Callable[[Sequence[str]], bool]
) -> tuple[int, str] | None:
    """Return where the first header line starts, and its separator. If several fit, it is the one with most fields."""
    for at in _line_starts(text, layout):
        names_by = {separator: _names_at(text, at, separator) for separator in separators}
        if fitting := [separator for separator, names in names_by.items() if names and is_header(names)]:
            return at, max(fitting, key=lambda separator: len(names_by[separator]))
    return None


def _first_line(text: bytes, layout: ColumnMapping, separators: Sequence[str]) -> tuple[int, str]:
    """Return where the first line starts, and the separator that gives most fields there."""
    at = next(_line_starts(text, layout))
    return at, max(separators, key=lambda separator: len(_names_at(text, at, separator)))


def _line_starts(text: bytes, layout: ColumnMapping) -> Iterator[int]:
    if layout.skip_lines is not None:
        yield _after_lines(text, layout.skip_lines)
        return
    yield 0
    for line_end in islice(_LINE_END.finditer(text), MAX_PREAMBLE_LINES):
        yield line_end.end()


def _after_lines(text: bytes, count: int) -> int:
    ends = [line_end.end() for line_end in islice(_LINE_END.finditer(text), count)]
    if len(ends) < count:
        raise MalformedBody(f"--skip-lines {count} is too many: the file has {len(ends)} lines in its first megabyte.")
    return ends[-1] if ends else 0


def _names_at(text: bytes, at: int, separator: str) -> list[str]:
    try:
        return read_header(text[at : at + MAX_HEADER_BYTES], CsvDialect(separator))[0]
    except MalformedBody:
        return []


MAX_HEADER_BYTES = 65_536


def _unit_lines(text: bytes, at: int, names: Sequence[str], layout: ColumnMapping, dialect: CsvDialect) -> list[int]:
    """Return the ends of a logger's lines below the header that have no digit in the time or in any value."""
    places = [place for place, name in enumerate(layout.ours(names)) if name in {"time", *METRICS}]
    ends: list[int] = []
    for fields, _, end in islice(records(text, at, dialect, names), MAX_UNIT_LINES):
        if fields is None or len(fields) != len(names) or any(re.search(rb"\d", fields[place]) for place in places):
            break
        ends.append(end)
    return ends


def _has_decimal_comma(text: bytes, at: int, names: Sequence[str], layout: ColumnMapping, dialect: CsvDialect) -> bool:
    places = [place for place, name in enumerate(layout.ours(names)) if name in METRICS]
    numbers = [
        fields[place].decode(errors="replace").strip()
        for fields, _, _ in islice(records(text, at, dialect, names), SAMPLE_RECORDS)
        if fields is not None and len(fields) == len(names)
        for place in places
    ]
    numbers = [number for number in numbers if number not in NO_VALUE | dialect.missing]
    with_comma = next(filter(_WITH_COMMA.fullmatch, numbers), None)
    with_point = next(filter(_WITH_POINT.fullmatch, numbers), None)
    if with_comma and with_point:
        raise MalformedBody(
            f"The file has numbers like {with_comma!r} and like {with_point!r}. Choose with --decimal comma or "
            "--decimal point; rows with the other kind are rejected."
        )
    return with_comma is not None
