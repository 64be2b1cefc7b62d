"""Files as bodies for the decoders: cut into blocks where a reading ends, their columns renamed to ours.

This module reads files; it knows neither readings nor where they are stored.
"""

import csv
import hashlib
import io
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet

from app.errors import ConfigurationError, MalformedBody
from app.imports.headers import find_header
from app.imports.layout import ColumnMapping
from app.ingest.decode.csvs import end_of_records
from app.ingest.decode.dialect import CsvDialect
from app.ingest.decode.jsons import field_names
from app.ingest.decode.readings import Format
from app.ingest.decode.utf8 import without_bom

# Both decide how a file is cut, and so which records stand for it: after a change, what was imported before would be
# stored again.
BLOCK_BYTES = 4 << 20
BLOCK_ROWS = 50_000

MAX_LINE_BYTES = 4 * BLOCK_BYTES
"""Longest line of a text. A file without a line end in so many bytes is rejected."""
MAX_QUOTED_BYTES = 1 << 20
"""Longest quoted field of a CSV. A quote that is not closed in so many bytes is taken for a stray one."""
MAX_DOCUMENT_BYTES = 256 << 20
"""A JSON document has to be read whole, and as Python objects takes several times its size."""
SAMPLE_BYTES = 1 << 20
"""How much of a CSV is searched for its header."""
FORMATS = {
    **{".csv": Format.CSV, ".tsv": Format.CSV},
    **{".ndjson": Format.NDJSON, ".jsonl": Format.NDJSON, ".json": Format.JSON},
    **{".parquet": Format.PARQUET, ".arrow": Format.ARROW_STREAM, ".feather": Format.ARROW_STREAM},
}
CODECS = {".gz": "gzip", ".zst": "zstd"}
_TEXTS = {Format.CSV, Format.NDJSON, Format.JSON}


@dataclass(frozen=True, slots=True)
class Cut:
    """The end of a block that was read from the same place before: its size in bytes, and the digest of these."""

    size: int
    digest: bytes

    @classmethod
    def of(cls, content: bytes) -> "Cut":
        """Return the cut at the end of a content."""
        return cls(len(content), hashlib.sha256(content).digest())


@dataclass(frozen=True, slots=True)
class Block:
    """Some of a file's readings in the order of the file, as a body, and how much of the file has been read with it.

    Attributes:
        body: what a decoder takes, a header included.
        format: which decoder.
        progress: 0 to 1.
        content: the bytes of a text that it was made of; empty for other files.
    """

    body: bytes
    format: Format
    progress: float
    content: bytes = b""


class InputFile:
    """An open file.

    Attributes:
        names: its columns, as it calls them; of NDJSON, those of the first BLOCK_BYTES.
        ours: the same, as they are called here.
        dialect: how it is written, if it is a CSV.
        header: the bytes of what all blocks of a CSV share; empty for other files.
        grows: whether more may be written to its end, so that its blocks are known by what comes before them.
        notes: what was detected, or is remarkable, in words.
    """

    dialect = CsvDialect()
    header = b""
    grows = False

    def __init__(self, names: Sequence[str], layout: ColumnMapping) -> None:
        self.names = names
        self.ours = layout.ours(names)
        self.notes: list[str] = []

    def next_block(self, earlier: Sequence[Cut] = (), /) -> Block | None:
        """Read the next block. None at the end.

        Args:
            earlier: where blocks ended that began at the same place in an earlier import; such a one comes again if the
                file still has it.
        """
        raise NotImplementedError


def format_of(path: Path) -> Format:
    """Return the format of a file by its name. Raises ConfigurationError for an unknown name."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    is_packed = bool(suffixes) and suffixes[-1] in CODECS
    format_ = FORMATS.get(suffixes[-1 - is_packed]) if len(suffixes) > is_packed else None
    if format_ is None or (is_packed and format_ not in _TEXTS):
        raise ConfigurationError(
            f"{path} should be named *{', *'.join(FORMATS)}; a text may also have .gz or .zst after it."
        )
    return format_


@contextmanager
def open_file(path: Path, layout: ColumnMapping) -> Iterator[InputFile]:
    """Open a file for being read in blocks.

    Raises:
        ConfigurationError: it can't be read, or ``layout`` has columns that are not in it, or one is missing. Of
            NDJSON, where a reading may have fewer than another, the first BLOCK_BYTES tell.
    """
    with ExitStack() as stack:
        with reading(path):
            file = _opened(path, layout, stack)
        if file.names:
            layout.require_in(path, file.names)
        yield file


def _opened(path: Path, layout: ColumnMapping, stack: ExitStack) -> InputFile:
    match format_of(path):
        case Format.PARQUET:
            return _ParquetFile(path, stack.enter_context(pa.parquet.ParquetFile(path)), layout)
        case Format.ARROW_STREAM:
            return _ArrowFile(path, stack.enter_context(pa.memory_map(str(path))), layout)
        case Format.CSV:
            return _CsvFile(stack.enter_context(_Text(path)), layout)
        case Format.JSON | Format.NDJSON as format_:
            text = stack.enter_context(_Text(path))
            return (_JsonFile if format_ is Format.JSON and not _is_ndjson(text) else _NdjsonFile)(text, layout)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn errors of reading inside the ``with`` block into ConfigurationError."""
    try:
        yield
    except (OSError, pa.ArrowException, MalformedBody) as error:
        raise ConfigurationError(f"Can't read {path}: {error}") from error


class _Text:
    """A text file, inflated, read ahead as far as it is looked at."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.position = 0
        """Number of bytes taken."""
        self.ahead = b""
        """The bytes that were read ahead and not taken yet."""
        self.is_read = False
        """Whether the file has been read to its end."""
        self._size = max(1, path.stat().st_size)
        self._stack = ExitStack()

    def __enter__(self) -> "_Text":
        with self._stack:
            self._file = self._stack.enter_context(pa.OSFile(str(self.path)))
            codec = CODECS.get(self.path.suffix.lower())
            compressed = pa.CompressedInputStream(self._file, codec) if codec else None
            self._stream = self._stack.enter_context(compressed) if compressed else self._file
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def progress(self) -> float:
        """The part of the file that has been read, 0 to 1."""
        position: int = self._file.tell()
        return min(1.0, position / self._size)

    def look(self, size: int) -> bytes:
        """Read ahead until ``size`` bytes are there, or the file ends. Return all bytes read ahead."""
        pieces = [self.ahead]
        missing = size - len(self.ahead)
        while missing > 0 and not self.is_read:
            piece = self._stream.read(missing)
            self.is_read = not piece
            pieces.append(piece)
            missing -= len(piece)
        self.ahead = b"".join(pieces) if len(pieces) > 1 else self.ahead
        return self.ahead

    def take(self, size: int) -> bytes:
        """Take the next bytes, which have been read."""
        taken, self.ahead = self.ahead[:size], self.ahead[size:]
        self.position += size
        return taken


def _is_ndjson(text: _Text) -> bool:
    """Return whether a file named like a JSON document has one reading a line, as many programs write it."""
    lines = without_bom(text.look(SAMPLE_BYTES)).strip().split(b"\n", 2)
    return len(lines) > 1 and all(line.strip().startswith(b"{") and line.strip().endswith(b"}") for line in lines[:2])


class _TextFile(InputFile):
    """A text of records, one after the other."""

    grows = True
    _format: Format

    def __init__(self, text: _Text, names: Sequence[str], layout: ColumnMapping) -> None:
        super().__init__(names, layout)
        self._text = text

    def next_block(self, earlier: Sequence[Cut] = (), /) -> Block | None:
        with reading(self._text.path):
            size = next((cut.size for cut in earlier if self._has(cut)), 0) or self._next_cut()
            if not size:
                return None
            content = self._text.take(size)
            return Block(self.header + content, self._format, self._text.progress, content)

    def _end_of_record(self, text: bytes) -> int:
        """Return where the last whole record ends. 0 if there is none."""
        raise NotImplementedError

    def _has(self, cut: Cut) -> bool:
        """Return whether the file still has an earlier block, and a record ends where that block does."""
        ahead = self._text.look(cut.size + 1)
        if len(ahead) < cut.size or Cut.of(ahead[: cut.size]) != cut:
            return False
        if (
            len(ahead) == cut.size
            or ahead[cut.size - 1 : cut.size] == b"\n"
            or ahead[cut.size : cut.size + 1] in b"\r\n"
        ):
            return True
        line = ahead[: cut.size].rpartition(b"\n")[2][:80].decode(errors="replace")
        self.notes.append(
            f"the line that began with {line!r} was imported before it was complete: it is now stored in full, and "
            "its earlier part is still stored too"
        )
        return False

    def _next_cut(self) -> int:
        """Return the length of the next block that was not read before: up to a multiple of BLOCK_BYTES in the file."""
        text = self._text
        limit = BLOCK_BYTES - text.position % BLOCK_BYTES
        while True:
            ahead = text.look(limit)
            if text.is_read and len(ahead) <= limit:
                return self._end_of_record(ahead) or len(ahead)
            if end := self._end_of_record(ahead[:limit]):
                return end
            if limit > MAX_LINE_BYTES + BLOCK_BYTES:
                raise ConfigurationError(f"{text.path} has a line of more than {MAX_LINE_BYTES:,} bytes: split it.")
            limit += BLOCK_BYTES


class _CsvFile(_TextFile):
    _format = Format.CSV

    def __init__(self, text: _Text, layout: ColumnMapping) -> None:
        found = find_header(text.look(SAMPLE_BYTES), layout)
        super().__init__(text, found.names, layout)
        self.dialect = found.dialect
        self.notes.extend(found.notes)
        line = io.StringIO(newline="")
        writer = csv.writer(line, delimiter=self.dialect.separator, quoting=csv.QUOTE_ALL, lineterminator="\n")
        writer.writerow(self.ours)
        self.header = line.getvalue().encode()
        text.take(found.end)

    def _end_of_record(self, text: bytes) -> int:
        return end_of_records(text, self.dialect, self.ours, max_bytes=MAX_QUOTED_BYTES)


class _NdjsonFile(_TextFile):
    _format = Format.NDJSON

    def __init__(self, text: _Text, layout: ColumnMapping) -> None:
        start = text.look(BLOCK_BYTES)
        super().__init__(text, field_names(start[: end_of_line(start)] if len(start) >= BLOCK_BYTES else start), layout)

    def _end_of_record(self, text: bytes) -> int:
        return end_of_line(text)


def end_of_line(text: bytes) -> int:
    """Return where the last whole line ends. 0 if there is none."""
    return text.rfind(b"\n") + 1


class _JsonFile(InputFile):
    """A document: an array, an object of columns, or one reading."""

    def __init__(self, text: _Text, layout: ColumnMapping) -> None:
        body = text.look(MAX_DOCUMENT_BYTES + 1)
        if len(body) > MAX_DOCUMENT_BYTES:
            raise ConfigurationError(
                f"{text.path} is a JSON document of more than {MAX_DOCUMENT_BYTES:,} bytes: write it as NDJSON, "
                "a reading a line."
            )
        super().__init__(field_names(body, is_document=True), layout)
        self._body: bytes | None = body

    def next_block(self, _earlier: Sequence[Cut] = (), /) -> Block | None:
        body, self._body = self._body, None
        return None if body is None else Block(body, Format.JSON, 1.0)


class _TableFile(InputFile):
    """A file of record batches."""

    def __init__(
        self, path: Path, batches: Iterator[tuple[pa.RecordBatch, float]], schema: pa.Schema, layout: ColumnMapping
    ) -> None:
        super().__init__(schema.names, layout)
        self._path = path
        self._batches = batches

    def next_block(self, _earlier: Sequence[Cut] = (), /) -> Block | None:
        with reading(self._path):
            batch, progress = next(self._batches, (None, 1.0))
        if batch is None:
            return None
        sink = pa.BufferOutputStream()
        # Without what pandas says of each column: a stream's schema is bounded.
        renamed = batch.rename_columns(self.ours).replace_schema_metadata()
        with pa.ipc.new_stream(sink, renamed.schema) as stream:
            stream.write_batch(renamed)
        return Block(sink.getvalue().to_pybytes(), Format.ARROW_STREAM, progress)


class _ParquetFile(_TableFile):
    def __init__(self, path: Path, file: pa.parquet.ParquetFile, layout: ColumnMapping) -> None:
        def batches() -> Iterator[tuple[pa.RecordBatch, float]]:
            rows = 0
            for batch in file.iter_batches(BLOCK_ROWS):
                rows += batch.num_rows
                yield batch, rows / file.metadata.num_rows

        super().__init__(path, batches(), file.schema_arrow, layout)


class _ArrowFile(_TableFile):
    """An Arrow stream, as GET /api/readings gives it, or an Arrow file (Feather)."""

    def __init__(self, path: Path, source: pa.NativeFile, layout: ColumnMapping) -> None:
        magic = source.read(6)
        source.seek(0)
        size = max(1, source.size())
        file: pa.RecordBatchFileReader | pa.RecordBatchStreamReader
        if magic == b"ARROW1":
            file = pyarrow.ipc.open_file(source)
            read = (file.get_batch(number) for number in range(file.num_record_batches))
        else:
            file = pyarrow.ipc.open_stream(source)
            read = iter(file)

        def batches() -> Iterator[tuple[pa.RecordBatch, float]]:
            for batch in read:
                for start in range(0, batch.num_rows, BLOCK_ROWS):
                    yield batch.slice(start, BLOCK_ROWS), source.tell() / size

        super().__init__(path, batches(), file.schema, layout)
