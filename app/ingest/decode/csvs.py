"""Bulk CSV to columns, by RFC 4180: commas, a header, quotes around a field that has commas, quotes or newlines in it.

Pure. Arrow's reader takes the body whole; where it can't, or where it could read something otherwise than RFC 4180
says, a plain reader goes record by record, and that one alone says what is right. After a record that is none it goes
on at the next line. A record of several lines is none if it has not as many fields as the header, or a line break in a
time or a number: its quote was a stray one, or never closed, and costs its own line and no more.

Lines may end with CR LF, LF or CR. Lines that are empty or blank don't count. Spaces around the names in the header,
and around times and numbers, don't matter; those of a sensor_id are its own.

No value: an empty field; for a metric also the others in NO_VALUE, since programs write these where a frame has
nothing. Not so for a time, because no time means now, and not for a sensor_id, which is a name.
"""

import math
import re
from collections.abc import Iterator, Sequence
from functools import cache
from typing import TypeAlias

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from app.errors import MalformedBody
from app.ingest.decode.columns import (
    COLUMNS,
    NO_NUMBER,
    NO_VALUE,
    NOT_FINITE,
    DecodeOptions,
    ParsedColumns,
    require_columns,
    require_few_rows,
)
from app.ingest.decode.dialect import CsvDialect
from app.ingest.decode.timestamps import NUMBER
from app.ingest.decode.utf8 import NOT_UTF8, has, is_utf8, without_bom
from app.schema import METRIC_TYPES, METRICS

MAX_FIELDS = 1_000
"""A line of more is no record: 4 MB of two letters each took 159 MB."""
ARROW_PAYS_FROM_BYTES = 2_048
"""Arrow's reader takes 0.3 ms to begin, in which the plain one has read some 40 records."""

_QUOTED = re.compile(rb'"[^"]*+(?:""[^"]*+)*+"')
_BLANK_LINES = re.compile(rb"(?:[ \t]*+(?:\r\n|\r|\n))++")
_LINE = re.compile(rb"[^ \t\r\n][^\r\n]*")
_LINE_END = re.compile(rb"\r\n|\r|\n")
_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}
_BLANK = b" \t\r\n"
_SHOWN_BYTES = 1_000


def decode_csv(body: bytes, options: DecodeOptions) -> ParsedColumns:
    """Parse the columns of a CSV.

    Raises:
        MalformedBody: it has no header, or one that can't be used.
        TooManyRows
    """
    body = without_bom(body)
    names, start = read_header(body, options.dialect)
    try:
        unknown = require_columns(names, options)
    except MalformedBody as error:
        if len(names) == 1 and re.search(r"[;\t|]", names[0]):
            raise MalformedBody("The fields of a CSV should be separated by commas.") from error
        raise
    if len(body) >= ARROW_PAYS_FROM_BYTES and body.count(b"\n") + body.count(b"\r") <= 2 * options.max_rows + 2:
        parsed = _by_arrow(body, start, names, unknown, options.dialect)
        if parsed is not None:
            return parsed
    return _by_record(body, start, names, unknown, options)


def read_header(body: bytes, dialect: CsvDialect) -> tuple[list[str], int]:
    """Return the names in a CSV's header, and where its first record starts.

    Raises:
        MalformedBody: it has no header, or one that can't be read.
    """
    fields, _, start = next(records(body, 0, dialect), ([], 0, 0))
    if not fields:
        said = "is empty" if fields is not None else "has a first line that can't be read"
        raise MalformedBody(f"The CSV {said}: begin with a header, like {','.join(COLUMNS)}.")
    try:
        return [field.decode().strip() for field in fields], start
    except UnicodeDecodeError as error:
        raise MalformedBody(f"The CSV's header can't be read: {NOT_UTF8}.") from error


Record: TypeAlias = tuple[list[bytes] | None, int, int]
"""A record's fields, or None if it is none, where it starts, and where the next one does."""


def records(body: bytes, at: int, dialect: CsvDialect, names: Sequence[str] | None = None) -> Iterator[Record]:
    """Iterate over the records of a CSV from a place on, without those that are blank.

    Args:
        body: the CSV, its header included or not.
        at: where the first of them starts.
        dialect: how it is written.
        names: those of the header; without them, a record may have any number of fields.
    """
    pattern = _field_pattern(dialect.separator)
    separator = dialect.separator.encode()
    one_line = [index for index, name in enumerate(names or ()) if name in COLUMNS and name != "sensor_id"]
    while at < len(body):
        if body[at] in _BLANK and (blank := _BLANK_LINES.match(body, at)):
            at = blank.end()
            continue
        start, fields = at, list[bytes]()
        while len(fields) < MAX_FIELDS and (found := pattern.match(body, at)):
            quoted, plain, end = found.groups()
            fields.append(plain if quoted is None else quoted.replace(b'""', b'"'))
            at = found.end()
            if end != separator:
                is_stray = names is not None and (
                    len(fields) != len(names) or any(_LINE_END.search(fields[index]) for index in one_line)
                )
                if is_stray and (line_end := _LINE_END.search(body, start, at)) and line_end.end() < at:
                    at = line_end.end()
                    yield None, start, at
                elif len(fields) > 1 or quoted is not None or plain.strip(_BLANK):
                    yield fields, start, at
                break
        else:
            line_end = _LINE_END.search(body, start)
            at = line_end.end() if line_end else len(body)
            yield None, start, at


def end_of_records(text: bytes, dialect: CsvDialect, names: Sequence[str], *, max_bytes: int) -> int:
    """Return where the last record ends that more text can't change. 0 if there is none.

    A quote that isn't closed yet may be closed by what follows, unless more than ``max_bytes`` have come after it.
    """
    end = (text.rfind(b"\n") if b"\n" in text else text.rfind(b"\r", 0, -1)) + 1
    if text.find(b'"', 0, end) < 0 or has(text[:end], _fields_pattern(dialect.separator, line_breaks=False)):
        return end
    end = 0
    for fields, start, after in records(text, 0, dialect, names):
        is_cut = after == len(text) and not text.endswith(b"\n")
        may_go_on = fields is None and len(text) - start <= max_bytes and _reaches_the_end(text, start, dialect)
        if is_cut or may_go_on:
            break
        end = after
    return end


def _reaches_the_end(text: bytes, start: int, dialect: CsvDialect) -> bool:
    """Return whether a record that starts there may continue beyond the text."""
    pattern, separator = _field_pattern(dialect.separator), dialect.separator.encode()
    while (found := pattern.match(text, start)) and found[3] == separator:
        start = found.end()
    if found:
        return not found[3]
    return text.startswith(b'"', start) and not _QUOTED.match(text, start)


@cache
def _field_pattern(separator: str) -> re.Pattern[bytes]:
    of = re.escape(separator).encode()
    return re.compile(rb'(?:"([^"]*+(?:""[^"]*+)*+)"|([^"\r\n%b]*+))(%b|\r\n|\r|\n|\Z)' % (of, of))


@cache
def _fields_pattern(separator: str, *, line_breaks: bool) -> str:
    """Return the pattern of a text that has only fields, with line breaks in quotes or without."""
    of = re.escape(separator)
    quoted = r'[^"]' if line_breaks else r'[^"\r\n]'
    each = rf'(?:[^"\r\n{of}]*|"(?:{quoted}|"")*")'
    return rf"\A{each}(?:(?:{of}|\r\n|\r|\n){each})*\z"


def _by_arrow(
    body: bytes, start: int, names: Sequence[str], unknown: Sequence[str], dialect: CsvDialect
) -> ParsedColumns | None:
    # With one column, a blank line could be a row.
    has_quotes = b'"' in body
    if (
        len(names) == 1
        or not is_utf8(body)
        or (has_quotes and not has(body, _fields_pattern(dialect.separator, line_breaks=True)))
    ):
        return None
    rest = pa.py_buffer(body if body.endswith(b"\n") else body + b"\n")[start:]
    if not rest.size:
        return ParsedColumns(0, {}, unknown)
    known = [name for name in COLUMNS if name in names]
    metrics = [name for name in known if name in METRICS]
    try:
        table = pyarrow.csv.read_csv(
            pa.BufferReader(rest),
            # One block, since a block must end with a line; one thread, since bodies are decoded side by side.
            read_options=pyarrow.csv.ReadOptions(
                use_threads=False,
                block_size=rest.size + 1,
                column_names=[name if name in known else str(index) for index, name in enumerate(names)],
            ),
            parse_options=pyarrow.csv.ParseOptions(delimiter=dialect.separator, newlines_in_values=True),
            convert_options=pyarrow.csv.ConvertOptions(
                include_columns=known,
                column_types={name: METRIC_TYPES.get(name, pa.string()) for name in known},
                null_values=list(NO_VALUE | dialect.missing),
                strings_can_be_null=False,
                decimal_point="," if dialect.decimal_comma else ".",
            ),
        )
    except pa.ArrowException:
        return None
    columns = {name: pa.concat_arrays(table.column(name).chunks) for name in known}
    if any(pc.all(pc.is_finite(columns[name])).as_py() is False for name in metrics):
        return None
    if "time" in columns:
        times = columns["time"]
        is_broken = has_quotes and pc.any(pc.match_substring_regex(times, "[\r\n]")).as_py()
        if is_broken or pc.any(pc.utf8_is_space(times)).as_py():
            return None
        absent = pc.equal(times, "")
        if absent.true_count:
            columns["time"] = pc.if_else(absent, pa.scalar(None, pa.string()), times)
    return ParsedColumns(table.num_rows, columns, unknown)


def _by_record(
    body: bytes,
    first: int,
    names: Sequence[str],
    unknown: Sequence[str],
    options: DecodeOptions,
) -> ParsedColumns:
    indices = {name: names.index(name) for name in COLUMNS if name in names}
    texts: dict[str, list[str | None]] = {name: [] for name in indices}
    faults: dict[str | None, dict[int, str]] = {None: {}} | {name: {} for name in METRICS}
    spans: list[tuple[int, int]] = []
    for row, (fields, start, end) in enumerate(records(body, first, options.dialect, names)):
        if row == options.max_rows:  # the rest is counted by the line: quicker, and all but exact
            require_few_rows(row + sum(1 for _ in _LINE.finditer(body, start)), options)
        spans.append((start, end))
        try:
            if fields is None:
                separators = _SEPARATORS.get(options.dialect.separator, repr(options.dialect.separator))
                raise ValueError(
                    f"the line should be fields between {separators}, those with a quote in them quoted: "
                    '"such ""as"" this"'
                )
            if len(fields) != len(names):
                count = "1 field" if len(fields) == 1 else f"{len(fields)} fields"
                raise ValueError(f"the row has {count} where the header has {len(names)}")
            decoded = [field.decode() for field in fields]
        except ValueError as error:
            faults[None][row] = NOT_UTF8 if isinstance(error, UnicodeDecodeError) else str(error)
            for column in texts.values():
                column.append(None)
        else:
            for name, index in indices.items():
                texts[name].append(decoded[index])
    columns: dict[str, pa.Array] = {}
    for name, column in texts.items():
        if name in METRICS:
            columns[name] = _numbers(column, name, faults[name], options.dialect)
        elif name == "time":
            columns[name] = pa.array([text if text and text.strip(" \t") else None for text in column], pa.string())
        else:
            columns[name] = pa.array(column, pa.string())

    def value(row: int, column: str | None) -> object:
        if column is None:
            start, end = spans[row]
            return body[start : min(end, start + _SHOWN_BYTES)].decode(errors="replace").rstrip("\r\n")
        return texts[column][row] if column in texts else None

    return ParsedColumns(len(spans), columns, unknown, faults, value)


def _numbers(texts: Sequence[str | None], name: str, faults: dict[int, str], dialect: CsvDialect) -> pa.Array:
    numbers: list[float | None] = []
    no_value = NO_VALUE | dialect.missing
    for row, text in enumerate(texts):
        number = None
        stripped = (text or "").strip()
        if stripped not in no_value:
            if dialect.decimal_comma:
                stripped = stripped.translate(_COMMA_FOR_POINT)
            if not NUMBER.fullmatch(stripped):
                faults[row] = (NOT_FINITE if stripped.lower().lstrip("+-") in _INFINITE else NO_NUMBER).format(name)
            elif not math.isfinite(number := float(stripped)):
                faults[row] = NOT_FINITE.format(name)
                number = None
        numbers.append(number)
    return pa.array(numbers, pa.float64())


_COMMA_FOR_POINT = str.maketrans(",.", ".,")
_INFINITE = frozenset(["inf", "infinity", "nan"])
