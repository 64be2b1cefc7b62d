"""``python -m app import``: files into the database by the way that requests take: decoded, checked, flushed.

A file is cut into blocks, each a body of its own to the decoders, and a block's readings into parts, each claimed by
the file's digest and its place. So a file may be imported again, after a failure or by mistake: what is there is found
by its claims, which never expire, and only the rest is stored. (5)
"""

import asyncio
import csv
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TextIO

import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet

from app.errors import ConfigurationError, DatabaseAway, NotStored, SensorFlowError
from app.ingest.batch import Batch, Source
from app.ingest.buffer import Answer
from app.ingest.claim import Claim, Fingerprint, Replay
from app.ingest.decode.columns import Decoded, RowFault, Terms
from app.ingest.decode.readings import Format, decode_readings
from app.ingest.decode.timestamps import Precision, TimeWindow
from app.ingest.pipeline import Intake
from app.ingest.receipt import Stored

SOURCE = Source("import", "")
"""Who sent what is imported, as the tables show it."""

# These decide how a file is cut, and so which claims stand for it: after a change, what was imported before would be
# stored again.
BLOCK_BYTES = 4 << 20
BLOCK_ROWS = 50_000
PART_DAYS = 400
"""Days, each a chunk of the table, that one transaction writes at most: PostgreSQL locks every chunk that it touches. A
year of hourly readings stays in one piece."""

PARTS_UNDER_WAY = 4
"""Enough to have one decoded and one prepared while one is written."""
LONGEST_WAIT_S = 60.0
"""How long a database that is away is waited for."""

FORMATS = {".csv": Format.CSV, ".ndjson": Format.NDJSON, ".jsonl": Format.NDJSON, ".parquet": Format.PARQUET}
COMPRESSIONS = frozenset({".gz", ".zst"})
MAX_RECORD_BYTES = 4 * BLOCK_BYTES
"""A CSV without an end of a record in so many bytes has a quote that was never closed."""


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


@dataclass(frozen=True, slots=True)
class Block:
    """Some of a file's readings in the order of the file, as a body, and how much of the file has been read with it."""

    body: bytes
    format: Format
    progress: float
    """0 to 1."""


@dataclass(slots=True)
class Outcome:
    """What became of a file's readings so far."""

    stored: int = 0
    found: int = 0
    """Those that were there from an earlier import."""
    rejected: int = 0

    @property
    def rows(self) -> int:
        """All of them."""
        return self.stored + self.found + self.rejected


@dataclass(frozen=True, slots=True)
class Part:
    """Readings of one transaction, and which rows of their block they are, from 1."""

    batch: Batch
    rows: pa.Array


class Report:
    """The rejected rows as a CSV, made when there is one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: TextIO | None = None

    def __enter__(self) -> "Report":
        self._path.unlink(missing_ok=True)  # of an earlier import
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def write(self, faults: Sequence[RowFault], rows_before: int) -> None:
        """Adds rows, numbered as the file has them."""
        if not faults:
            return
        if self._file is None:
            self._file = self._path.open("w", newline="", encoding="utf-8")
            csv.writer(self._file).writerow(["row", "column", "reason", "value"])
        csv.writer(self._file).writerows(
            (fault.row + rows_before, fault.column, fault.reason, fault.value) for fault in faults
        )


def format_of(path: Path) -> Format:
    """The format of a file, by its name. Raises ConfigurationError if that tells none."""
    suffixes = [suffix for suffix in path.suffixes if suffix not in COMPRESSIONS]
    format_ = FORMATS.get(suffixes[-1].lower()) if suffixes else None
    if format_ is None or (format_ is Format.PARQUET and path.suffix in COMPRESSIONS):
        raise ConfigurationError(f"{path} should be named *{', *'.join(FORMATS)}, or a text with .gz or .zst after it.")
    return format_


def blocks(path: Path, layout: Layout) -> Iterator[Block]:
    """A file in blocks, its columns under our names. Raises ConfigurationError if it can't be read."""
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
    for piece, progress in _texts(path, _end_of_csv_record):
        text = piece
        if header is None:
            first, _, text = piece.partition(b"\n")
            names = next(csv.reader([first.decode("utf-8-sig").rstrip("\r")]), [])
            quoted = ['"' + layout.ours(name.strip()).replace('"', '""') + '"' for name in names]
            header = ",".join(quoted).encode() + b"\n"
        yield Block(header + text, Format.CSV, progress)


def _ndjson_blocks(path: Path, layout: Layout) -> Iterator[Block]:
    for text, progress in _texts(path, _end_of_line):
        yield Block(_renamed(text, layout) if layout.columns else text, Format.NDJSON, progress)


def _renamed(text: bytes, layout: Layout) -> bytes:
    def renamed(line: bytes) -> bytes:
        try:
            reading = orjson.loads(line)
        except ValueError:
            return line  # the decoder will say what is wrong with it
        if not isinstance(reading, dict):
            return line
        return orjson.dumps({layout.ours(name): value for name, value in reading.items()})

    return b"\n".join(map(renamed, text.split(b"\n")))


def _texts(path: Path, end_of_record: Callable[[bytes], int]) -> Iterator[tuple[bytes, float]]:
    """A text file, inflated, in pieces that end where a record ends."""
    size = max(1, path.stat().st_size)
    rest = b""
    with ExitStack() as stack:
        file = stack.enter_context(pa.OSFile(str(path)))
        codec = {".gz": "gzip", ".zst": "zstd"}.get(path.suffix)
        stream = stack.enter_context(pa.CompressedInputStream(file, codec)) if codec else file
        while piece := stream.read(BLOCK_BYTES):
            rest += piece
            end = end_of_record(rest)
            if end:
                yield rest[:end], file.tell() / size
                rest = rest[end:]
    if rest:
        yield rest, 1.0


def _end_of_line(text: bytes) -> int:
    return text.rfind(b"\n") + 1


def _end_of_csv_record(text: bytes) -> int:
    """Where the last whole record ends: at a newline that is not in quotes, so after an even number of them."""
    end = text.rfind(b"\n") + 1
    quotes = text.count(b'"', 0, end)
    while end and quotes % 2:
        before = text.rfind(b"\n", 0, end - 1) + 1
        quotes -= text.count(b'"', before, end)
        end = before
    if not end and len(text) > MAX_RECORD_BYTES:  # the quote was never closed
        return _end_of_line(text)
    return end


class Importer:
    """Has files committed, and tells how far it has come.

    Args:
        intake: takes the readings; None: they are only checked.
        layout: what the files' columns are.
        window: which times the readings may bring.
        now_us: microseconds since 1970 UTC.
        on_progress: is told the part of the file that has been read, 0 to 1, and what became of it so far.
    """

    def __init__(
        self,
        *,
        intake: Intake | None,
        layout: Layout,
        window: TimeWindow,
        now_us: Callable[[], int],
        on_progress: Callable[[float, Outcome], None],
    ) -> None:
        self._intake = intake
        self._layout = layout
        self._window = window
        self._now_us = now_us
        self._on_progress = on_progress

    async def run(self, path: Path) -> Outcome:
        """Imports a file. What is rejected stands in a CSV beside it, ``<name>.rejected.csv``.

        Raises:
            ConfigurationError: the file can't be read, or the report not be written.
            NotStored: the database was away for too long; what was committed is found again by the next import.
        """
        outcome = Outcome()
        digest = await asyncio.to_thread(_digest, path, self._layout)
        free = asyncio.Semaphore(PARTS_UNDER_WAY)
        pieces = blocks(path, self._layout)
        rows_before = 0
        with Report(path.with_name(f"{path.name}.rejected.csv")) as report:
            async with asyncio.TaskGroup() as tasks:
                while (block := await asyncio.to_thread(next, pieces, None)) is not None:
                    decoded = await asyncio.to_thread(self._decode, block)
                    outcome.rejected += decoded.rejected
                    report.write(decoded.errors, rows_before)
                    for place, part in enumerate(_parts(decoded)):
                        name = Fingerprint(SOURCE.key_name, f"{digest}:{rows_before}:{place}", b"")
                        await free.acquire()
                        storing = tasks.create_task(self._store(part, name, rows_before, outcome, report))
                        storing.add_done_callback(lambda _: free.release())
                    rows_before += decoded.batch.rows + decoded.rejected
                    self._on_progress(block.progress, outcome)
        self._on_progress(1.0, outcome)
        return outcome

    def _decode(self, block: Block) -> Decoded:
        decoded = decode_readings(
            block.body,
            block.format,
            Terms(
                source=SOURCE,
                precision=self._layout.precision,
                window=self._window,
                now_us=self._now_us(),
                max_rows=BLOCK_BYTES,
                max_chunks=BLOCK_BYTES,
                max_errors=BLOCK_BYTES,
                is_time_required=True,
            ),
        )
        return replace(decoded, batch=_in_celsius(decoded.batch, self._layout))

    async def _store(self, part: Part, name: Fingerprint, rows_before: int, outcome: Outcome, report: Report) -> None:
        """Has a part committed, or finds that it was."""
        answer = await self._answer(part.batch, name)
        if isinstance(answer, SensorFlowError):
            raise answer
        if isinstance(answer, Replay):
            outcome.found += part.batch.rows
        elif isinstance(answer, Stored):
            outcome.stored += answer.rows
            outcome.rejected += len(answer.refused)
            faults = [RowFault(part.rows[place].as_py(), None, why, None) for place, why in answer.refused.items()]
            report.write(faults, rows_before)

    async def _answer(self, batch: Batch, name: Fingerprint) -> Answer:
        if self._intake is None:
            return Stored(batch.rows, {})
        answered: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        claim = Claim(name, lambda _: Replay(201, b""), expires=False)
        try:
            async with asyncio.timeout(LONGEST_WAIT_S):
                while True:
                    try:
                        self._intake.submit(batch, answered.set_result, claim=claim, is_awaited=False)
                    except NotStored as error:
                        await asyncio.sleep(error.retry_after_s)
                    else:
                        return await answered
        except TimeoutError:
            raise DatabaseAway(
                "The database has been away for too long. Import the file again: what is there will be found."
            ) from None


def _parts(decoded: Decoded) -> Iterator[Part]:
    """A block's readings, by time if they lie in more days than a transaction may write."""
    part = Part(decoded.batch, decoded.rows)
    days = pc.floor_temporal(part.batch.columns["time"], unit="day").dictionary_encode()
    if len(days.dictionary) <= PART_DAYS:
        if part.batch.rows:
            yield part
        return
    ranks = pc.rank(days.dictionary, tiebreaker="dense").take(days.indices)
    numbers = pc.divide(pc.subtract(ranks, 1), PART_DAYS)
    for number in sorted(numbers.unique().to_pylist()):
        chosen = pc.indices_nonzero(pc.equal(numbers, number))
        yield Part(replace(part.batch, columns=part.batch.columns.take(chosen)), part.rows.take(chosen))


def _in_celsius(batch: Batch, layout: Layout) -> Batch:
    columns = batch.columns
    for metric in layout.fahrenheit:
        celsius = pc.divide(pc.multiply(pc.subtract(columns[metric], 32.0), 5.0), 9.0)
        columns = columns.set_column(columns.schema.get_field_index(metric), metric, celsius)
    return replace(batch, columns=columns)


def _digest(path: Path, layout: Layout) -> str:
    """What a file's claims begin with: its content, and what is made of it."""
    try:
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256")
    except OSError as error:
        raise ConfigurationError(f"Can't read {path}: {error.strerror}") from error
    content.update(repr((sorted(layout.columns.items()), sorted(layout.fahrenheit), layout.precision)).encode())
    return content.hexdigest()
