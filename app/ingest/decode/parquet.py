"""Bulk Parquet to columns.

Pure. ``pages`` says what a file inflates to before a page of it is inflated; only the known columns are read.
"""

import pyarrow as pa
import pyarrow.parquet

from app.ingest.decode.columns import (
    COLUMNS,
    DecodeOptions,
    Opened,
    ParsedColumns,
    require_columns,
    require_few_rows,
    require_small,
)
from app.ingest.decode.pages import Column, Pages, pages_of
from app.ingest.decode.typed import columns_of_table, readably, require_flat

_VALUE_BYTES = 16
"""What a value takes in memory at most, of a column that is not text, or as a position in a dictionary."""
_PIECE_BYTES = 8 << 20


def open_parquet(body: bytes, options: DecodeOptions) -> Opened:
    """Look at the footer and the page headers of a Parquet file.

    Raises:
        MalformedBody: it is none, is damaged, or its columns can't be readings; so does reading it.
        TooManyRows, BodyTooLarge
    """
    pages = readably("Parquet", lambda: pages_of(body, frozenset(COLUMNS)))
    unknown = require_columns(pages.names, options)
    require_few_rows(pages.rows, options)
    inflated_bytes = sum(column.inflated_bytes + column.values * _VALUE_BYTES for column in pages.columns.values())
    require_small(len(body) + inflated_bytes, options)

    def read() -> ParsedColumns:
        return columns_of_table(_table(body, pages, options), list(pages.columns), unknown, options)

    return Opened(inflated_bytes, lambda: readably("Parquet", read))


def _table(body: bytes, pages: Pages, options: DecodeOptions) -> pa.Table:
    """Return the known columns, each flat."""
    # As a dictionary, a long text that is in every row is there once.
    as_dictionary = [name for name, column in pages.columns.items() if column.is_text and column.is_dictionary_readable]
    with pyarrow.parquet.ParquetFile(pa.BufferReader(body), read_dictionary=as_dictionary) as file:
        schema = file.schema_arrow
        for name in pages.columns:
            require_flat(name, schema.field(name).type)
        in_pieces = [
            name
            for name, column in pages.columns.items()
            if column.is_text and not pa.types.is_dictionary(schema.field(name).type)
        ]
        at_once = [name for name in pages.columns if name not in in_pieces]
        table = file.read(columns=at_once, use_threads=False)
        columns = {name: _in_pieces(file, name, pages.columns[name], len(body), options) for name in in_pieces}
    return pa.table(columns | {name: table.column(name) for name in at_once})


def _in_pieces(
    file: pyarrow.parquet.ParquetFile, name: str, column: Column, file_bytes: int, options: DecodeOptions
) -> pa.ChunkedArray:
    """Read a column of byte arrays that can't be read as a dictionary: few bytes in the file may be many here.

    No value is longer than its page, so that a piece of few rows is bounded. The sum is checked after each piece.
    """
    rows = max(1, _PIECE_BYTES // max(1, column.largest_page_bytes))
    pieces, size_bytes = [], file_bytes
    for batch in file.iter_batches(rows, columns=[name], use_threads=False):
        size_bytes += batch.nbytes
        require_small(size_bytes, options)
        pieces.append(batch.column(0))
    return pa.chunked_array(pieces, file.schema_arrow.field(name).type)
