"""Bulk Arrow streams to columns.

Pure. What a stream inflates to, dictionaries included, is added up from its messages before a byte of it is inflated.
Only the known columns are read.
"""

import struct
from typing import NamedTuple

import pyarrow as pa
import pyarrow.ipc

from app.errors import MalformedBody
from app.ingest.decode.columns import (
    COLUMNS,
    DecodeOptions,
    Opened,
    ParsedColumns,
    require_columns,
    require_few_columns,
    require_few_rows,
    require_small,
)
from app.ingest.decode.typed import columns_of_table, readably, require_flat

MAX_MESSAGES = 10_000
"""Batches and dictionaries: each takes 0.1 ms and 3 KB, however few its rows."""
MAX_REPEATED_BYTES = 1 << 30
"""Bytes of dictionaries, each as often as there are batches: each batch's is validated, which takes 0.6 s a gigabyte.
"""
MAX_SCHEMA_BYTES = 1 << 20
"""1,000 columns take some 200 KB."""


def open_arrow_stream(body: bytes, options: DecodeOptions) -> Opened:
    """Look at the messages of an Arrow IPC stream.

    Raises:
        MalformedBody: it is none, is damaged, or its columns can't be readings; so does reading it.
        TooManyRows, BodyTooLarge
    """
    if body.startswith(b"ARROW1"):
        raise MalformedBody("The body is an Arrow file (Feather): send an Arrow stream.")
    return readably("an Arrow stream", lambda: _open(body, options))


def _open(body: bytes, options: DecodeOptions) -> Opened:
    inflated_bytes = _inflated_bytes(body)
    require_small(len(body) + inflated_bytes, options)
    with pyarrow.ipc.open_stream(pa.BufferReader(body)) as reader:
        schema = reader.schema
    require_few_columns(len(schema.names), options.max_columns)
    unknown = require_columns(schema.names, options)
    known = [name for name in COLUMNS if name in schema.names]
    for name in known:
        require_flat(name, schema.field(name).type)

    def read() -> ParsedColumns:
        # Fields come in the order of the schema, whatever the order here.
        ipc_options = pyarrow.ipc.IpcReadOptions(
            use_threads=False, included_fields=[schema.get_field_index(name) for name in known]
        )
        stream = pa.BufferReader(body)
        batches, rows = [], 0
        with pyarrow.ipc.open_stream(stream, options=ipc_options) as reader:
            for batch in reader:
                rows += batch.num_rows
                if rows <= options.max_rows:
                    batches.append(batch)
            of_batches = reader.schema
        require_few_rows(rows, options)
        if stream.tell() < len(body):
            raise MalformedBody("The body goes on after the end of its Arrow stream: send one stream a request.")
        return columns_of_table(pa.Table.from_batches(batches, of_batches), known, unknown, options)

    return Opened(inflated_bytes, lambda: readably("an Arrow stream", read))


# What a stream inflates to stands in its messages, but pyarrow does not show it: so these few fields are read from the
# flatbuffers, whose tables are in https://github.com/apache/arrow/blob/main/format/Message.fbs.

_DICTIONARY_BATCH, _RECORD_BATCH = 2, 3
_MESSAGE_VERSION, _MESSAGE_HEADER_TYPE, _MESSAGE_HEADER, _MESSAGE_METADATA = 0, 1, 2, 4
_VERSION_5 = 4
"""The version of the format, since Arrow 1.0."""
_DICTIONARY_BATCH_ID, _DICTIONARY_BATCH_DATA, _DICTIONARY_BATCH_IS_DELTA = 0, 1, 2
_RECORD_BATCH_BUFFERS, _RECORD_BATCH_COMPRESSION = 2, 3
_NOT_INFLATED = -1


def _inflated_bytes(body: bytes) -> int:
    """Return what a stream takes in memory beside its own bytes.

    Compressed buffers are copied as they are inflated. A dictionary that has been added to is copied whole for the
    batches after it: that, too, is counted, for it grows with the square of the additions.
    """
    copied = repeated = 0
    grown: dict[int, int] = {}
    changed: set[int] = set()
    for position, message in enumerate(pyarrow.ipc.MessageReader.open_stream(pa.BufferReader(body))):
        if position > MAX_MESSAGES:
            raise MalformedBody(f"The Arrow stream has more than {MAX_MESSAGES:,} batches: write larger ones.")
        if message.metadata.size > MAX_SCHEMA_BYTES:
            raise MalformedBody(
                f"The schema of the Arrow stream has {message.metadata.size:,} bytes, and may have "
                f"{MAX_SCHEMA_BYTES:,}: leave out unknown columns."
            )
        sizes = _sizes_of_message(message.metadata, message.body)
        copied += sizes.inflated_bytes
        if sizes.dictionary is None:
            copied += sum(grown[dictionary] for dictionary in changed)
            changed.clear()
            repeated += sum(grown.values())
            if repeated > MAX_REPEATED_BYTES:
                raise MalformedBody("The Arrow stream has large dictionaries and many batches: write larger batches.")
        elif sizes.is_delta:
            grown[sizes.dictionary] = grown.get(sizes.dictionary, 0) + sizes.content_bytes
            changed.add(sizes.dictionary)
        else:
            grown[sizes.dictionary] = sizes.content_bytes
    return copied


class _Sizes(NamedTuple):
    """The memory that a message takes."""

    inflated_bytes: int = 0
    """Bytes of its compressed buffers, inflated."""
    content_bytes: int = 0
    """Bytes of all its buffers, inflated."""
    dictionary: int | None = None
    """The id of the dictionary that it is."""
    is_delta: bool = False


def _sizes_of_message(metadata: pa.Buffer, body: pa.Buffer | None) -> _Sizes:
    message = _Flatbuffer(metadata)
    table = message.offset(0)
    version = message.field(table, _MESSAGE_VERSION)
    if message.field(table, _MESSAGE_METADATA) and not (version and message.read("<h", version) >= _VERSION_5):
        raise ValueError("metadata of a message from before Arrow 1.0")  # pyarrow looks there for a compression
    kind = message.field(table, _MESSAGE_HEADER_TYPE)
    if not kind or not (header := message.field(table, _MESSAGE_HEADER)):
        return _Sizes()
    header_type, batch = message.read("<B", kind), message.offset(header)
    dictionary, is_delta = None, False
    if header_type == _DICTIONARY_BATCH:
        position = message.field(batch, _DICTIONARY_BATCH_ID)
        dictionary = message.read("<q", position) if position else 0
        position = message.field(batch, _DICTIONARY_BATCH_IS_DELTA)
        is_delta = bool(position and message.read("<B", position))
        data = message.field(batch, _DICTIONARY_BATCH_DATA)
        batch = message.offset(data) if data else 0
    elif header_type != _RECORD_BATCH:
        return _Sizes()
    if not batch or body is None or not (buffers := message.field(batch, _RECORD_BATCH_BUFFERS)):
        return _Sizes(dictionary=dictionary, is_delta=is_delta)
    if not message.field(batch, _RECORD_BATCH_COMPRESSION):
        return _Sizes(0, body.size, dictionary, is_delta)
    vector = message.offset(buffers)
    inflated = 0
    view = memoryview(body)
    for position in range(message.read("<I", vector)):
        start, length = struct.unpack_from("<qq", message.view, vector + 4 + 16 * position)
        if length > 0:
            if start < 0:
                raise ValueError("a buffer that begins before its message")
            (size,) = struct.unpack_from("<q", view, start)
            inflated += length if size == _NOT_INFLATED else max(size, 0)
    return _Sizes(inflated, inflated, dictionary, is_delta)


class _Flatbuffer:
    """Tables and their fields by position, as https://flatbuffers.dev/internals/ lays them out."""

    def __init__(self, buffer: pa.Buffer) -> None:
        self.view = memoryview(buffer)

    def read(self, form: str, position: int) -> int:
        if position < 0:
            raise ValueError("an offset that points before its message")
        value: int = struct.unpack_from(form, self.view, position)[0]
        return value

    def offset(self, position: int) -> int:
        """Where the offset at ``position`` points."""
        return position + self.read("<I", position)

    def field(self, table: int, number: int) -> int:
        """Where a table has a field. 0 if it has not."""
        layout = table - self.read("<i", table)
        slot = 4 + 2 * number
        if slot >= self.read("<H", layout):
            return 0
        position = self.read("<H", layout + slot)
        return table + position if position else 0
