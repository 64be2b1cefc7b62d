"""Files as bodies for the decoders: cut into blocks where a reading ends, their columns under our names.

It reads files, and knows neither what a reading is nor where it goes.
"""

import csv
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import orjson
import pyarrow as pa
import pyarrow.parquet

from app.errors import ConfigurationError, MalformedBody
from app.ingest.decode.columns import in_words
from app.ingest.decode.readings import Format
from app.ingest.decode.timestamps import Precision
from app.ingest.decode.utf8 import NOT_UTF8, without_bom

# Both decide how a file is cut, and so which claims stand for it: after a change, what was imported before would be
# stored again.
BLOCK_BYTES = 4 << 20
BLOCK_ROWS = 50_000

MAX_RECORD_BYTES = 4 * BLOCK_BYTES
"""A CSV without an end of a record in so many bytes has a quote that was never closed."""
FORMATS = {".csv": Format.CSV, ".ndjson": Format.NDJSON, ".jsonl": Format.NDJSON, ".parquet": Format.PARQUET}
_BLANK = b" \t\r\n"
_LINE_END = re.compile(rb"\r\n|\r|\n")
CODECS = {".gz": "gzip", ".zst": "zstd"}
_OPTIONS = {"sensor_id": "--sensor ", "time": "--time "}


@dataclass(frozen=True, slots=True)
class Layout:
    """What a file's columns are.

    Attributes:
        columns: for our columns, the names that the file has for them, where those differ.
        fahrenheit: the metrics that the file has in °F.
        precision: the unit of times that are numbers.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    fahrenheit: frozenset[str] = frozenset()
    precision: Precision = Precision.AUTO

    def ours(self, name: str) -> str:
        """Our name of a column of the file; one that stands in another's place gets a name that is not ours."""
        for ours, theirs in self.columns.items():
            if name == theirs:
                return ours
        return f"{name} of the file" if name in self.columns else name

    def require_in(self, path: Path, names: Sequence[str]) -> None:
        """Raises ConfigurationError if an option names a column that is none of a file's."""
        options = {theirs: _OPTIONS.get(ours, f"--column {ours}=") + theirs for ours, theirs in self.columns.items()}
        options |= {metric: f"--fahrenheit {metric}" for metric in sorted(self.fahrenheit - self.columns.keys())}
        for column, option in options.items():
            if column not in names:
                raise ConfigurationError(
                    f"{path} has no column {column!r}, which {option} names. Its columns: {in_words(names)}."
                )


@dataclass(frozen=True, slots=True)
class Block:
    """Some of a file's readings in the order of the file, as a body, and how much of the file has been read with it."""

    body: bytes
    format: Format
    progress: float
    """0 to 1."""


def format_of(path: Path) -> Format:
    """The format of a file, by its name. Raises ConfigurationError if that tells none."""
    suffixes = [suffix for suffix in path.suffixes if suffix not in CODECS]
    format_ = FORMATS.get(suffixes[-1].lower()) if suffixes else None
    if format_ is None or (format_ is Format.PARQUET and path.suffix in CODECS):
        raise ConfigurationError(f"{path} should be named *{', *'.join(FORMATS)}, or a text with .gz or .zst after it.")
    return format_


def blocks(path: Path, layout: Layout) -> Iterator[Block]:
    """A file in blocks, its columns under our names.

    Raises:
        ConfigurationError: it can't be read, or, before the first block, ``layout`` has columns that are not in it. Of
            NDJSON, where a reading may have fewer than another, the first block's readings tell.
    """
    format_ = format_of(path)
    try:
        if format_ is Format.PARQUET:
            yield from _parquet_blocks(path, layout)
        elif format_ is Format.CSV:
            yield from _csv_blocks(path, layout)
        else:
            yield from _ndjson_blocks(path, layout)
    except (OSError, pa.ArrowException) as error:
        raise ConfigurationError(f"Can't read {path}: {error}") from error


def _parquet_blocks(path: Path, layout: Layout) -> Iterator[Block]:
    with pa.parquet.ParquetFile(path) as file:
        layout.require_in(path, file.schema_arrow.names)
        rows = 0
        for batch in file.iter_batches(BLOCK_ROWS):
            rows += batch.num_rows
            sink = pa.BufferOutputStream()
            renamed = batch.rename_columns([layout.ours(name) for name in batch.schema.names])
            with pa.ipc.new_stream(sink, renamed.schema) as stream:
                stream.write_batch(renamed)
            yield Block(sink.getvalue().to_pybytes(), Format.ARROW_STREAM, rows / file.metadata.num_rows)


def _csv_blocks(path: Path, layout: Layout) -> Iterator[Block]:
    header = None
    for piece, progress in _texts(path, end_of_csv_record):
        text = piece
        if header is None:
            first, text = _first_line(without_bom(piece))
            if not first:
                continue
            names = _names_of_header(first)
            layout.require_in(path, names)
            header = _header([layout.ours(name) for name in names])
        yield Block(header + text, Format.CSV, progress)
    if header is None:
        yield Block(b"", Format.CSV, 1.0)  # the decoder will say what is missing


def _first_line(text: bytes) -> tuple[bytes, bytes]:
    """The first line that is not blank, and what comes after it."""
    first, *rest = _LINE_END.split(text.lstrip(_BLANK), maxsplit=1)
    return first, b"".join(rest)


def _names_of_header(line: bytes) -> list[str]:
    try:
        return [name.strip() for name in next(csv.reader([line.decode()]))]
    except UnicodeDecodeError as error:
        raise MalformedBody(f"The CSV's header can't be read: {NOT_UTF8}.") from error
    except csv.Error as error:
        raise MalformedBody(f"The CSV's header can't be read: {error}.") from error


def _header(names: Sequence[str]) -> bytes:
    return ",".join('"' + name.replace('"', '""') + '"' for name in names).encode() + b"\n"


def _ndjson_blocks(path: Path, layout: Layout) -> Iterator[Block]:
    has_options = bool(layout.columns or layout.fahrenheit)
    names: list[str] = []
    for piece, progress in _texts(path, end_of_line):
        text = piece if names else without_bom(piece)
        if has_options and not names and (names := _names_of_objects(text)):
            layout.require_in(path, names)
        yield Block(_renamed(text, layout) if layout.columns else text, Format.NDJSON, progress)


def _names_of_objects(text: bytes) -> list[str]:
    return list(dict.fromkeys(chain.from_iterable(_object(line) or () for line in text.split(b"\n"))))


def _renamed(text: bytes, layout: Layout) -> bytes:
    def renamed(line: bytes) -> bytes:
        reading = _object(line)
        if reading is None:
            return line  # the decoder will say what is wrong with it
        return orjson.dumps({layout.ours(name): value for name, value in reading.items()})

    return b"\n".join(map(renamed, text.split(b"\n")))


def _object(line: bytes) -> dict[str, object] | None:
    """The object in a line of JSON, if there is one."""
    if not line or line.isspace():
        return None
    try:
        reading = orjson.loads(line)
    except ValueError:
        return None
    return reading if isinstance(reading, dict) else None


def _texts(path: Path, end_of_record: Callable[[bytes], int]) -> Iterator[tuple[bytes, float]]:
    """A text file, inflated, in pieces that end where a record ends."""
    size = max(1, path.stat().st_size)
    rest = b""
    with ExitStack() as stack:
        file = stack.enter_context(pa.OSFile(str(path)))
        codec = CODECS.get(path.suffix)
        stream = stack.enter_context(pa.CompressedInputStream(file, codec)) if codec else file
        while piece := stream.read(BLOCK_BYTES):
            rest += piece
            end = end_of_record(rest)
            if end:
                yield rest[:end], file.tell() / size
                rest = rest[end:]
            elif len(rest) > MAX_RECORD_BYTES:
                raise ConfigurationError(f"{path} has a line of more than {MAX_RECORD_BYTES:,} bytes.")
    if rest:
        yield rest, 1.0


def end_of_line(text: bytes) -> int:
    """Where the last whole line ends; 0 if there is none."""
    return text.rfind(b"\n") + 1


def end_of_csv_record(text: bytes) -> int:
    """Where the last whole record ends, at a newline that is not in quotes, so after an even number of them; 0 if there
    is none.
    """
    end = text.rfind(b"\n") + 1
    quotes = text.count(b'"', 0, end)
    while end and quotes % 2:
        before = text.rfind(b"\n", 0, end - 1) + 1
        quotes -= text.count(b'"', before, end)
        end = before
    if not end and len(text) > MAX_RECORD_BYTES:  # the quote was never closed
        return end_of_line(text)
    return end
