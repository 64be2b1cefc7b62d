"""Columns that have types, of Arrow streams and Parquet, as the columns that are checked.

Pure. Types are taken widely: any number for a metric, text, integers or a dictionary of them for a sensor_id, any
timestamp, date, number or text for a time. A column of a type that can't be meant refuses the body, for its rows are
all alike; of what is nested, or of a fixed size that a row may say, nothing is read. What comes in is checked to the
last offset before it is computed with.
"""

import struct
from collections.abc import Callable, Sequence
from typing import TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from app.errors import MalformedBody
from app.ingest.decode.columns import DecodeOptions, ParsedColumns, require_small
from app.schema import METRICS

Result = TypeVar("Result")

_UNREADABLE = (pa.ArrowException, OSError, UnicodeDecodeError, ValueError, KeyError, OverflowError, struct.error)
"""What is raised for bytes that are damaged."""

_Read = Callable[[pa.Array], pa.Array]


def readably(what: str, read: Callable[[], Result]) -> Result:
    """Return what ``read`` returns. What it raises for damaged bytes becomes a MalformedBody: they are no ``what``.

    A function, since a context manager takes 1 to 2 µs, which is 1 % of a small body.
    """
    try:
        return read()
    except _UNREADABLE as error:
        in_short = str(error).partition("\n")[0][:200] or type(error).__name__
        raise MalformedBody(f"The body can't be read as {what}: {in_short}") from error


def require_flat(name: str, type_: pa.DataType) -> None:
    """Raise MalformedBody unless a column's type is one that readings may have, before any of it is read."""
    if pa.types.is_dictionary(type_):
        type_ = type_.value_type
    if name in METRICS:
        if not any(is_one(type_) for is_one in _NUMBERS):
            raise MalformedBody(f"The column {name} should have numbers, and not {type_}.")
    elif name == "time":
        if not (is_text(type_) or any(is_one(type_) for is_one in _TIMES)):
            raise MalformedBody(f"The column time should have times or numbers, and not {type_}.")
    elif not (is_text(type_) or pa.types.is_integer(type_) or pa.types.is_null(type_)):
        raise MalformedBody(f"The column {name} should have text, and not {type_}.")


def columns_of_table(
    table: pa.Table, known: Sequence[str], unknown: Sequence[str], options: DecodeOptions
) -> ParsedColumns:
    """Return the columns of a table whose known ones are flat.

    Raises:
        MalformedBody, BodyTooLarge
    """
    columns = {}
    for name in known:
        chunked = table.column(name)
        chunked.validate(full=True)
        require_small(sum(map(_bytes_viewed, chunked.chunks)), options)
        read: _Read = _metric if name in METRICS else _time if name == "time" else _sensor
        if pa.types.is_dictionary(chunked.type):
            read = _dictionary_reader(read, is_kept=name not in METRICS)
        chunks = [read(chunk) for chunk in chunked.chunks] or [read(pa.array([], chunked.type))]
        columns[name] = pa.concat_arrays(chunks)
    return ParsedColumns(table.num_rows, columns, unknown)


_TEXTS = (
    *(pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view),
    *(pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view),
)
_NUMBERS = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_null)
_TIMES = (
    *(pa.types.is_integer, pa.types.is_floating, pa.types.is_null),
    *(pa.types.is_timestamp, pa.types.is_date),
)


def is_text(type_: pa.DataType) -> bool:
    """Return whether it is text, or bytes that may be."""
    return any(is_one(type_) for is_one in _TEXTS)


def _bytes_viewed(column: pa.Array) -> int:
    """Return how many bytes the texts of a string view have. Many may be views of the same bytes."""
    if pa.types.is_dictionary(column.type):
        return _bytes_viewed(column.dictionary)
    if not (pa.types.is_string_view(column.type) or pa.types.is_binary_view(column.type)):
        return 0
    # A view is 16 bytes, the first four of which are its length.
    words = pa.Array.from_buffers(pa.int32(), 4 * (column.offset + len(column)), [None, column.buffers()[1]])
    lengths = pc.list_element(pa.FixedSizeListArray.from_arrays(words, 4), 0)
    return pc.sum(lengths.cast(pa.int64())).as_py() or 0


def _dictionary_reader(read: _Read, *, is_kept: bool) -> _Read:
    """Make a reader of chunks with dictionaries from that of their values. A null among those is a null in the rows.

    A dictionary that many chunks share is read once: a copy of 10 MB for each of 5,000 batches would be 50 GB.
    """
    seen: dict[object, pa.Array] = {}

    def read_values(values: pa.Array) -> pa.Array:
        buffers = tuple((buffer.address, buffer.size) if buffer else None for buffer in values.buffers())
        extent = (values.offset, len(values), buffers)
        if extent not in seen:
            seen.clear()  # those that come later are most often the same
            seen[extent] = read(values)
        return seen[extent]

    def read_chunk(column: pa.DictionaryArray) -> pa.Array:
        values = read_values(column.dictionary)
        if not is_kept:
            return values.take(column.indices)
        positions = column.indices.cast(pa.int32())
        if values.null_count:
            absent = pc.is_null(values).take(positions)
            positions = pc.if_else(absent, pa.scalar(None, pa.int32()), positions)
        return pa.DictionaryArray.from_arrays(positions, values)

    return read_chunk


def _sensor(column: pa.Array) -> pa.Array:
    return column.cast(pa.string())


def _time(column: pa.Array) -> pa.Array:
    return column.cast(pa.string()) if is_text(column.type) else column


def _metric(column: pa.Array) -> pa.Array:
    if pa.types.is_decimal(column.type):
        column = column.cast(pa.string())  # Arrow's own cast is one bit off for a third of them
    return column.cast(pa.float64(), safe=False)
