"""Bulk Arrow streams and Parquet to columns.

Pure. Only the known columns are read. Their types are taken widely: any number for a metric, text, integers or a
dictionary of them for a sensor_id, any timestamp, date, number or text for a time. A column of a type that can't be
meant refuses the body, for its rows are all alike. What comes in is checked to the last offset before it is computed
with, and what it says that it inflates to is held against a bound before a byte of it is inflated.
"""

import struct
from collections.abc import Callable, Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc
import pyarrow.parquet

from app.errors import BodyTooLarge, MalformedBody
from app.ingest.decode.columns import COLUMNS, METRICS, Sent, Terms, require_columns, require_few_rows

INFLATED_ROW_BYTES = 2_048
"""What a row may take inflated, on average: a name and a time at their longest take 1,084 bytes, the metrics 24."""
INFLATED_BYTES = 1 << 20
"""What a body may take inflated, however few its rows: pages and dictionaries."""

_UNREADABLE = (pa.ArrowException, OSError, UnicodeDecodeError, ValueError, KeyError, OverflowError, struct.error)


def decode_arrow_stream(body: bytes, terms: Terms) -> Sent:
    """The columns of an Arrow IPC stream.

    Raises:
        MalformedBody: it is none, is damaged, or its columns can't be readings.
        TooManyRows, BodyTooLarge
    """
    if body.startswith(b"ARROW1"):
        raise MalformedBody("The body is an Arrow file (Feather): send an Arrow stream.")
    try:
        _require_small(_inflated_bytes_of_stream(body), terms)
        stream = pa.BufferReader(body)
        with pyarrow.ipc.open_stream(stream) as reader:
            schema = reader.schema
        unknown = require_columns(schema.names)
        known = [name for name in COLUMNS if name in schema.names]
        # Fields come in the order of the schema, whatever the order here.
        options = pyarrow.ipc.IpcReadOptions(
            use_threads=False, included_fields=[schema.get_field_index(name) for name in known]
        )
        stream = pa.BufferReader(body)
        batches, rows = [], 0
        with pyarrow.ipc.open_stream(stream, options=options) as reader:
            for batch in reader:
                rows += batch.num_rows
                if rows <= terms.max_rows:
                    batches.append(batch)
            schema = reader.schema
        require_few_rows(rows, terms)
        if stream.tell() < len(body):
            raise MalformedBody("The body goes on after the end of its Arrow stream: send one stream a request.")
        return _columns_of_table(pa.Table.from_batches(batches, schema), known, unknown, terms)
    except _UNREADABLE as error:
        raise MalformedBody(f"The body can't be read as an Arrow stream: {_in_short(error)}") from error


def decode_parquet(body: bytes, terms: Terms) -> Sent:
    """The columns of a Parquet file.

    Raises:
        MalformedBody: it is none, is damaged, or its columns can't be readings.
        TooManyRows, BodyTooLarge
    """
    try:
        metadata = pyarrow.parquet.read_metadata(pa.BufferReader(body))
        schema = metadata.schema.to_arrow_schema()
        unknown = require_columns(schema.names)
        require_few_rows(metadata.num_rows, terms)
        _require_small(_inflated_bytes_of_parquet(metadata), terms)
        known = [name for name in COLUMNS if name in schema.names]
        # As a dictionary, a long text that is in every row is there once.
        texts = [name for name in known if _is_text(schema.field(name).type)]
        with pyarrow.parquet.ParquetFile(pa.BufferReader(body), metadata=metadata, read_dictionary=texts) as file:
            table = file.read(columns=known, use_threads=False)
        require_few_rows(table.num_rows, terms)
        return _columns_of_table(table, known, unknown, terms)
    except _UNREADABLE as error:
        raise MalformedBody(f"The body can't be read as Parquet: {_in_short(error)}") from error


def _in_short(error: BaseException) -> str:
    return str(error).partition("\n")[0][:200] or type(error).__name__


def _require_small(inflated_bytes: int, terms: Terms) -> None:
    limit = INFLATED_BYTES + INFLATED_ROW_BYTES * terms.max_rows
    if inflated_bytes > limit:
        raise BodyTooLarge(limit, inflated=True)


def _columns_of_table(table: pa.Table, known: Sequence[str], unknown: Sequence[str], terms: Terms) -> Sent:
    columns = {}
    for name in known:
        chunked = table.column(name)
        chunked.validate(full=True)
        _require_small(sum(map(_bytes_viewed, chunked.chunks)), terms)
        read = _metric if name in METRICS else _time if name == "time" else _sensor
        chunks = [read(chunk, name) for chunk in chunked.chunks] or [read(pa.array([], chunked.type), name)]
        columns[name] = pa.concat_arrays(chunks)
    return Sent(table.num_rows, columns, unknown)


def _is_text(type_: pa.DataType) -> bool:
    return any(
        is_one(type_)
        for is_one in (
            *(pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view),
            *(pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view),
        )
    )


def _bytes_viewed(column: pa.Array) -> int:
    """What the texts of a string view come to, any number of which may be views of the same bytes."""
    if pa.types.is_dictionary(column.type):
        return _bytes_viewed(column.dictionary)
    if not (pa.types.is_string_view(column.type) or pa.types.is_binary_view(column.type)):
        return 0
    # A view is 16 bytes, the first four of which are its length.
    words = pa.Array.from_buffers(pa.int32(), 4 * (column.offset + len(column)), [None, column.buffers()[1]])
    lengths = pc.list_element(pa.FixedSizeListArray.from_arrays(words, 4), 0)
    return pc.sum(lengths.cast(pa.int64())).as_py() or 0


def _of_dictionary(column: pa.DictionaryArray, name: str, read: Callable[[pa.Array, str], pa.Array]) -> pa.Array:
    """A dictionary of what ``read`` makes of its values; a null among those is a null in the rows."""
    values = read(column.dictionary, name)
    positions = column.indices.cast(pa.int32())
    if values.null_count:
        absent = pc.is_null(values).take(positions)
        positions = pc.if_else(absent, pa.scalar(None, pa.int32()), positions)
    return pa.DictionaryArray.from_arrays(positions, values)


def _sensor(column: pa.Array, name: str) -> pa.Array:
    type_ = column.type
    if pa.types.is_dictionary(type_):
        return _of_dictionary(column, name, _sensor)
    if _is_text(type_) or pa.types.is_integer(type_) or pa.types.is_null(type_):
        return column.cast(pa.string())
    raise MalformedBody(f"The column {name} should have text, and not {type_}.")


def _time(column: pa.Array, name: str) -> pa.Array:
    type_ = column.type
    if pa.types.is_dictionary(type_):
        return _of_dictionary(column, name, _time)
    return column.cast(pa.string()) if _is_text(type_) else column


def _metric(column: pa.Array, name: str) -> pa.Array:
    type_ = column.type
    if pa.types.is_dictionary(type_):
        return _metric(column.dictionary, name).take(column.indices)
    if not any(
        is_one(type_) for is_one in (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_null)
    ):
        raise MalformedBody(f"The column {name} should have numbers, and not {type_}.")
    if pa.types.is_decimal(type_):
        column = column.cast(pa.string())  # Arrow's own cast is one bit off for a third of them
    return column.cast(pa.float64(), safe=False)


def _inflated_bytes_of_parquet(metadata: pyarrow.parquet.FileMetaData) -> int:
    # By row group: pyarrow 26 ends the process when it is asked about a column whose histograms don't fit.
    groups = map(metadata.row_group, range(metadata.num_row_groups))
    return sum(abs(group.total_byte_size) for group in groups)


# What a stream inflates to stands in its messages, but pyarrow does not show it: so these few fields are read from the
# flatbuffers, whose tables are in https://github.com/apache/arrow/blob/main/format/Message.fbs.

_DICTIONARY_BATCH, _RECORD_BATCH = 2, 3
_MESSAGE_HEADER_TYPE, _MESSAGE_HEADER = 1, 2
_DICTIONARY_BATCH_DATA = 1
_RECORD_BATCH_BUFFERS, _RECORD_BATCH_COMPRESSION = 2, 3
_NOT_INFLATED = -1


def _inflated_bytes_of_stream(body: bytes) -> int:
    messages = pyarrow.ipc.MessageReader.open_stream(pa.BufferReader(body))
    return sum(_inflated_bytes_of_message(message.metadata, message.body) for message in messages)


def _inflated_bytes_of_message(metadata: pa.Buffer, body: pa.Buffer | None) -> int:
    """What the compressed buffers of a message say that they inflate to."""
    message = _Flatbuffer(metadata)
    table = message.offset(0)
    kind = message.field(table, _MESSAGE_HEADER_TYPE)
    if not kind or not (header := message.field(table, _MESSAGE_HEADER)):
        return 0
    header_type, batch = message.read("<B", kind), message.offset(header)
    if header_type == _DICTIONARY_BATCH:
        data = message.field(batch, _DICTIONARY_BATCH_DATA)
        batch = message.offset(data) if data else 0
    elif header_type != _RECORD_BATCH:
        return 0
    if not batch or body is None or not message.field(batch, _RECORD_BATCH_COMPRESSION):
        return 0
    if not (buffers := message.field(batch, _RECORD_BATCH_BUFFERS)):
        return 0
    vector = message.offset(buffers)
    inflated = 0
    view = memoryview(body)
    for place in range(message.read("<I", vector)):
        start, length = struct.unpack_from("<qq", message.view, vector + 4 + 16 * place)
        if length > 0:
            if start < 0:
                raise ValueError("a buffer that begins before its message")
            (size,) = struct.unpack_from("<q", view, start)
            inflated += length if size == _NOT_INFLATED else max(size, 0)
    return inflated


class _Flatbuffer:
    """Tables and their fields by position, as https://flatbuffers.dev/internals/ lays them out."""

    def __init__(self, buffer: pa.Buffer) -> None:
        self.view = memoryview(buffer)

    def read(self, form: str, place: int) -> int:
        if place < 0:
            raise ValueError("an offset that points before its message")
        value: int = struct.unpack_from(form, self.view, place)[0]
        return value

    def offset(self, place: int) -> int:
        """Where the offset at ``place`` points."""
        return place + self.read("<I", place)

    def field(self, table: int, number: int) -> int:
        """Where a table has a field; 0 if it has not."""
        layout = table - self.read("<i", table)
        slot = 4 + 2 * number
        if slot >= self.read("<H", layout):
            return 0
        place = self.read("<H", layout + slot)
        return table + place if place else 0
