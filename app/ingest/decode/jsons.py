"""Bulk JSON and NDJSON to columns: an array of readings, one reading, a reading a line, or an object of columns.

Pure. Lines of one shape are read as a CSV (``uniform``): 0.6 µs a row. Other rows are given to Arrow's JSON parser,
with the schema that the first of them have: 0.8 µs a row, outside the GIL. Whatever that can't read, or could read
otherwise than the single reading's parser does, goes through the single reading's parser (jiter, pydantic's) row by
row; that one alone says what is right. An object of columns always goes there, because for it jiter is the faster one:
0.35 µs a row, where Arrow takes 0.9. So does what has other names for its fields than ours.

Of a field that comes twice the last counts. NaN and Infinity are read, as there.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import chain

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj
from pydantic_core import from_json

from app.errors import MalformedBody, TooManyRows
from app.ingest.decode.columns import (
    COLUMNS,
    NO_NUMBER,
    NO_VALUE,
    NOT_FINITE,
    DecodeOptions,
    ParsedColumns,
    require_columns,
    require_few_rows,
    unknown_among,
)
from app.ingest.decode.timestamps import LARGEST_UNAMBIGUOUS, NUMBER, Precision, parse_time_us
from app.ingest.decode.uniform import columns_of_one_shape
from app.ingest.decode.utf8 import NOT_UTF8, as_binary, has, is_utf8, lines, without_bom
from app.schema import METRIC_TYPES, METRICS

ARROW_PAYS_FROM_BYTES = 16_384
"""Arrow's reader takes 0.3 ms to begin, in which jiter has read some 150 rows."""
ONE_SHAPE_PAYS_FROM_BYTES = 131_072
"""To begin takes what up to 1,000 rows save: 0.13 ms for the pattern alone."""

_NULL_AFTER_A_DOCUMENT = r"\}\s*null"
"""Ends the process in pyarrow 26.0.1, whose JSON reader takes no null for a row; } could end what it is given early."""
VALUES_A_ROW = 20
"""Values that a reading may have, on average, those of unknown columns included."""
VALUES_A_BODY = 100_000
"""Values that any body may have."""

_TEXT = r'(?s)"(?:[^"\\]|\\.)*"'
_WHITESPACE = b" \t\r\n"
_SAMPLE_BYTES = 4_096
_SAMPLE_DEPTH = 4
_READ = "Send an array of readings, one reading, or an object of columns."


def decode_ndjson(body: bytes, options: DecodeOptions) -> ParsedColumns:
    """Parse the columns of a body with one reading a line. Blank lines don't count.

    Raises:
        MalformedBody: the body is UTF-16.
        TooManyRows
    """
    body = without_bom(body)
    if b"\r" in body:
        body = body.replace(b"\r\n", b"\n")
    if not (body.startswith(b"{") and body.endswith((b"}", b"}\n"))):  # it would be copied for the newline at its end
        body = body.strip(_WHITESPACE)
    if not body:
        return ParsedColumns(0, {})
    may_have_columns = len(body) >= ARROW_PAYS_FROM_BYTES and is_utf8(body) and not options.renames
    if may_have_columns and (parsed := _lines_of_one_shape(body, options)) is not None:
        return parsed
    body = body.removesuffix(b"\n")
    if body.count(b"\n") >= options.max_rows:
        require_few_rows(sum(1 for _ in lines(body)), options)
    if may_have_columns and (parsed := _lines_by_arrow(body, options)) is not None:
        return parsed
    _require_few_values(body, options)
    texts = list(lines(body))
    readings: list[object] = []
    faults: dict[int, str] = {}
    for row, line in enumerate(texts):
        try:
            readings.append(_parse(line))
        except ValueError as error:
            readings.append(None)
            faults[row] = f"the line should be JSON: {error}".replace("at line 1 column", "at character")
    return _columns_of_readings(
        readings, faults, options, malformed=lambda row: texts[row][:1_000].decode(errors="replace")
    )


def _lines_of_one_shape(body: bytes, options: DecodeOptions) -> ParsedColumns | None:
    if len(body) < ONE_SHAPE_PAYS_FROM_BYTES:
        return None
    columns = columns_of_one_shape(body, max_rows=options.max_rows)
    if columns is None or not _reads_alike(columns, options.precision):
        return None
    return ParsedColumns(len(columns["sensor_id"]), columns)


def _lines_by_arrow(body: bytes, options: DecodeOptions) -> ParsedColumns | None:
    rows = _objects_by_the_line(body)
    if not rows:
        if body.count(b"\n") >= options.max_rows:
            return None
        body = b"\n".join(lines(body))
        rows = _objects_by_the_line(body)
    if not rows:
        return None
    require_few_rows(rows, options)
    parsed = _columns_by_arrow(body, options, is_array=False)
    return parsed if parsed is not None and parsed.rows == rows else None


def _objects_by_the_line(body: bytes) -> int:
    """Return the number of lines if each begins with { and ends with }. Else 0.

    Then no object goes on beyond its line, for after the } there would have to come something else than {. So if there
    are as many objects, there is one on each.
    """
    each = pc.split_pattern(as_binary(body), "\n").flatten()
    alike = pc.all(pc.starts_with(each, "{")).as_py() and pc.all(pc.ends_with(each, "}")).as_py()
    return len(each) if alike else 0


def decode_json(body: bytes, options: DecodeOptions) -> ParsedColumns:
    """Parse the columns of a JSON document.

    Raises:
        MalformedBody: it is not JSON, or nothing that could be readings.
        TooManyRows
    """
    body = without_bom(body).strip(_WHITESPACE)
    if not body:
        raise MalformedBody(f"The body is empty. {_READ}")
    if not is_utf8(body):
        raise MalformedBody(f"The body can't be read: {NOT_UTF8}.")
    _require_few_values(body, options)
    if len(body) >= ARROW_PAYS_FROM_BYTES and body.startswith(b"[") and not options.renames:
        parsed = _columns_by_arrow(body, options, is_array=True)
        if parsed is not None:
            return parsed
    try:
        document = _parse(body)
    except ValueError as error:
        raise MalformedBody(f"The body is not JSON: {error}.") from error
    if isinstance(document, list):
        require_few_rows(len(document), options)
        return _columns_of_readings(document, {}, options)
    if not isinstance(document, dict):
        raise MalformedBody(f"The body is {_kind(document)}. {_READ}")
    renamed = _renamed(document, options)
    if any(isinstance(renamed.get(name), list) for name in COLUMNS):
        return _columns_of_columns(renamed, options)
    return _columns_of_readings([document], {}, options)


def read_values(body: bytes, *, is_document: bool) -> Sequence[object]:
    """Return the readings of NDJSON or of a document as they are written, those that can't be read as their text."""
    body = without_bom(body)
    if is_document:
        document = _parse(body.strip(_WHITESPACE))
        if isinstance(document, list):
            return document
        columns = {}
        if isinstance(document, dict):
            columns = {name: values for name, values in document.items() if isinstance(values, list)}
        if not columns:
            return [document]
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=False)]
    values: list[object] = []
    for line in lines(body):
        try:
            values.append(_parse(line))
        except ValueError:
            values.append(line.decode(errors="replace"))
    return values


def field_names(body: bytes, *, is_document: bool = False) -> Sequence[str]:
    """Return the names of all fields in NDJSON or in a document, in order of appearance."""
    try:
        readings = read_values(body, is_document=is_document)
    except ValueError:
        return ()
    return list(dict.fromkeys(chain.from_iterable(each for each in readings if isinstance(each, dict))))


def _renamed(reading: dict[str, object], options: DecodeOptions) -> dict[str, object]:
    if not options.renames:
        return reading
    return {options.renames.get(name, name): value for name, value in reading.items()}


def _require_few_values(body: bytes, options: DecodeOptions) -> None:
    """Raise TooManyRows if a body has more values, of any kind, than its readings could need.

    27 MB of {}, or [] took 860 MB as Python objects, before they could be counted.
    """
    limit = VALUES_A_BODY + VALUES_A_ROW * options.max_rows
    if len(body) <= limit or _values(body) <= limit:
        return
    values = _values(pc.replace_substring_regex(as_binary(body), pattern=_TEXT, replacement="")[0].as_py())
    if values > limit:
        raise TooManyRows(values, limit, "values")


def _values(body: bytes) -> int:
    """Return the largest number of values that there may be. Those in texts are counted, too."""
    return 1 + body.count(b",") + body.count(b"{") + body.count(b"[")


def _parse(text: bytes) -> object:
    """Parse a JSON document to Python objects. ValueError says what is wrong with it, and where."""
    document: object = from_json(text)
    return document


def _columns_by_arrow(body: bytes, options: DecodeOptions, *, is_array: bool) -> ParsedColumns | None:
    """Parse an array of readings, or a reading a line, with Arrow. None if another way must parse it."""
    try:
        if b"\0" in body:
            raise ValueError("Arrow takes NUL for the end")
        fields = _fields_of(body, is_array=is_array)
    except ValueError:
        return None
    unknown = [each.name for each in fields if each.name not in COLUMNS]
    # Its parser takes a few more spellings of NaN; in the known columns none are taken, and none may be elsewhere.
    if has(body, _NULL_AFTER_A_DOCUMENT) or (unknown and has(body, "NaN|Inf")):
        return None
    read = _read_array if is_array else _read_lines
    rows = read(body, fields)
    if rows is None and any(each.name == "time" and each.type == pa.int64() for each in fields):
        rows = read(body, [each.with_type(pa.float64()) if each.name == "time" else each for each in fields])
    if rows is None:
        return None
    columns = {name: rows.field(name) for name in COLUMNS}
    if rows.null_count or not _reads_alike(columns, options.precision):
        return None
    return ParsedColumns(len(rows), columns, unknown_among(unknown))


def _read_array(array: bytes, fields: Sequence[pa.Field]) -> pa.StructArray | None:
    document = b'{"readings":%b}\n' % array
    table = _read(document, pa.schema([pa.field("readings", pa.list_(pa.struct(fields)))]))
    if table is None or table.num_rows != 1:
        return None
    return pa.concat_arrays(table.column("readings").chunks).flatten()


def _read_lines(body: bytes, fields: Sequence[pa.Field]) -> pa.StructArray | None:
    table = _read(body, pa.schema(fields))
    if table is None:
        return None
    (rows,) = table.to_batches()
    return rows.to_struct_array()


def _read(text: bytes, schema: pa.Schema) -> pa.Table | None:
    try:
        return pj.read_json(
            pa.BufferReader(text),
            # One block, since a block must end with a line; one thread, since bodies are decoded side by side.
            read_options=pj.ReadOptions(use_threads=False, block_size=len(text) + 1),
            parse_options=pj.ParseOptions(explicit_schema=schema, unexpected_field_behavior="error"),
        )
    except pa.ArrowException:
        return None


def _reads_alike(columns: Mapping[str, pa.Array], precision: Precision) -> bool:
    """Whether no number was read in which Arrow differs from the other parser."""
    if any(pc.all(pc.is_finite(columns[name])).as_py() is False for name in METRICS):
        return False
    times = columns["time"]
    if not pa.types.is_floating(times.type):
        return True
    return precision is not Precision.NS and bool(
        pc.all(pc.less(pc.abs(times), LARGEST_UNAMBIGUOUS)).as_py() is not False
    )


def _fields_of(body: bytes, *, is_array: bool) -> list[pa.Field]:
    """Return the fields of the first readings, COLUMNS first. ValueError if there are none that fit."""
    start = body[:_SAMPLE_BYTES]
    readings = from_json(start if is_array else b"[" + start.replace(b"\n", b","), allow_partial=True)
    if len(readings) > 1 and len(body) > _SAMPLE_BYTES:
        readings.pop()  # it may have been cut within a number
    if not all(isinstance(reading, dict) for reading in readings):
        raise ValueError("not readings")
    times = {type(reading.get("time")) for reading in readings} - {type(None)}
    fields = {
        "sensor_id": pa.string(),
        "time": pa.float64() if float in times else pa.int64() if int in times else pa.string(),
        **METRIC_TYPES,
    }
    for name in dict.fromkeys(chain.from_iterable(readings)):
        if name not in fields:
            fields[name] = _type_of([reading.get(name) for reading in readings], _SAMPLE_DEPTH)
    return [pa.field(name, type_) for name, type_ in fields.items()]


def _type_of(values: Sequence[object], depth: int) -> pa.DataType:
    """Return the type of an unknown column, as far as it matters to find that the other rows have it, too.

    Deeply nested values have no type, since Arrow recurses. Nor have lists of lists or objects.
    """
    values = [value for value in values if value is not None]
    if not values:
        return pa.null()
    if not depth:
        raise ValueError("nested too deeply")
    if objects := [value for value in values if isinstance(value, dict)]:
        names = list(dict.fromkeys(chain.from_iterable(objects)))
        if not names:
            raise ValueError("an object without fields")
        return pa.struct([(name, _type_of([each.get(name) for each in objects], depth - 1)) for name in names])
    if lists := [value for value in values if isinstance(value, list)]:
        inner = _type_of(list(chain.from_iterable(lists)), depth - 1)
        if pa.types.is_nested(inner):
            raise ValueError("a list of lists or objects")
        return pa.list_(inner)
    if isinstance(values[0], bool):
        return pa.bool_()
    return pa.string() if isinstance(values[0], str) else pa.float64()


def _columns_of_readings(
    readings: Sequence[object],
    malformed_rows: Mapping[int, str],
    options: DecodeOptions,
    *,
    malformed: Callable[[int], str] | None = None,
) -> ParsedColumns:
    """Build the columns of parsed readings. ``malformed`` has the text of rows that could not be parsed."""
    faults_of_rows = dict(malformed_rows)
    objects: list[dict[str, object]] = []
    for row, reading in enumerate(readings):
        if isinstance(reading, dict):
            objects.append(_renamed(reading, options))
        else:
            faults_of_rows.setdefault(row, f"a reading should be an object, and this is {_kind(reading)}")
            objects.append({})

    def value(row: int, column: str | None) -> object:
        if column is not None:
            return objects[row].get(column)
        return malformed(row) if malformed is not None and row in malformed_rows else readings[row]

    lists = {name: [reading.get(name) for reading in objects] for name in COLUMNS}
    unknown = unknown_among(list(dict.fromkeys(chain.from_iterable(objects))))
    return _columns_of_lists(lists, unknown, faults_of_rows, value, options)


def _columns_of_columns(document: Mapping[str, object], options: DecodeOptions) -> ParsedColumns:
    unknown = require_columns(list(document), options)
    lists: dict[str, list[object]] = {}
    for name in COLUMNS:
        values = document.get(name)
        if isinstance(values, list):
            lists[name] = values
        elif values is not None:
            raise MalformedBody(f"In an object of columns {name} should be an array, and this is {_kind(values)}.")
    if "sensor_id" not in lists and options.is_sensor_required:
        raise MalformedBody("In an object of columns sensor_id should be an array, and this is null.")
    lengths = {name: len(values) for name, values in lists.items()}
    if len(set(lengths.values())) > 1:
        said = ", ".join(f"{name} {length:,}" for name, length in lengths.items())
        raise MalformedBody(f"The columns should be of one length, with null where there is no value: {said}.")
    rows = max(lengths.values())
    require_few_rows(rows, options)

    def value(row: int, column: str | None) -> object:
        if column is not None:
            return lists[column][row] if column in lists else None
        return {name: values[row] for name, values in lists.items()}

    return _columns_of_lists(lists, unknown, {}, value, options)


def _columns_of_lists(
    lists: Mapping[str, Sequence[object]],
    unknown: Sequence[str],
    faults_of_rows: Mapping[int, str],
    value: Callable[[int, str | None], object],
    options: DecodeOptions,
) -> ParsedColumns:
    columns: dict[str, pa.Array] = {}
    faults: dict[str | None, Mapping[int, str]] = {None: faults_of_rows}
    for name, values in lists.items():
        if name == "sensor_id":
            columns[name], faults[name] = _names(values)
        elif name == "time":
            columns[name], faults[name] = _times(values, options.precision)
        else:
            columns[name], faults[name] = _numbers(values, name)
    return ParsedColumns(max(map(len, lists.values())), columns, unknown, faults, value)


_NONE = type(None)
_Column = tuple[pa.Array, Mapping[int, str]]


def _each(values: Sequence[object], read: Callable[[object], object], type_: pa.DataType) -> _Column:
    """Read values one by one into a column, with null and the error's text where ``read`` raises ValueError."""
    read_values: list[object] = []
    faults: dict[int, str] = {}
    for row, value in enumerate(values):
        try:
            read_values.append(None if value is None else read(value))
        except ValueError as error:
            read_values.append(None)
            faults[row] = str(error)
    return pa.array(read_values, type_), faults


def _names(values: Sequence[object]) -> _Column:
    if set(map(type, values)) <= {str, _NONE}:
        return pa.array(values, pa.string()), {}
    return _each(values, _name, pa.string())


def _name(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"sensor_id should be text, and this is {_kind(value)}")
    return value


def _times(values: Sequence[object], precision: Precision) -> _Column:
    kinds = set(map(type, values)) - {_NONE}
    try:
        if kinds <= {str}:
            return pa.array(values, pa.string()), {}
        if kinds == {int}:
            return pa.array(values, pa.int64()), {}
        if kinds == {float}:
            return pa.array(values, pa.float64()), {}
    except (pa.ArrowException, OverflowError):
        pass

    def text(value: object) -> str:
        if not isinstance(value, str):
            parse_time_us(value, precision=precision)
        return value if isinstance(value, str) else repr(value)

    return _each(values, text, pa.string())


def _numbers(values: Sequence[object], name: str) -> _Column:
    if set(map(type, values)) <= {int, float, _NONE}:
        try:
            return pa.array(values, pa.float64()), {}
        except (pa.ArrowException, OverflowError):
            pass

    def number(value: object) -> float | None:
        if isinstance(value, bool):
            raise ValueError(f"{NO_NUMBER.format(name)}, not a boolean")
        if isinstance(value, str) and value.strip() in NO_VALUE:
            return None
        if isinstance(value, str) and not NUMBER.fullmatch(value.strip()):
            raise ValueError(NO_NUMBER.format(name))
        if not isinstance(value, int | float | str):
            raise ValueError(f"{NO_NUMBER.format(name)}, and this is {_kind(value)}")
        try:
            found = float(value)
        except OverflowError:  # an integer past 1e308
            found = math.inf
        if math.isinf(found):
            raise ValueError(NOT_FINITE.format(name))
        return found

    return _each(values, number, pa.float64())


_KINDS = {_NONE: "null", bool: "a boolean", int: "a number", float: "a number", str: "text", list: "an array"}


def _kind(value: object) -> str:
    return _KINDS.get(type(value), "an object")
