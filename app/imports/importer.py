"""The import of a file into the database. Its readings are decoded, checked and flushed like those of requests.

A file's blocks are decoded one by one, and a block's readings go in parts, each with an idempotency record. So a file
may be imported again, after a failure or by mistake: what was imported is found by its records, which never expire, and
only the rest is stored. (5)
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from app.errors import (
    ConfigurationError,
    DatabaseUnavailable,
    IdempotencyConflict,
    PermanentError,
)
from app.imports.files import BLOCK_BYTES, Block, InputFile, open_file
from app.imports.keys import forget, keys_of
from app.imports.layout import ColumnMapping
from app.imports.rejects import OWN_COLUMNS, RejectsReport, report_path
from app.imports.times import Localized, localize
from app.ingest.batch import Batch, Sender
from app.ingest.decode.columns import Decoded, DecodeOptions, ParsedColumns, RowError, validate
from app.ingest.decode.readings import open_readings
from app.ingest.decode.timestamps import TimeWindow
from app.ingest.idempotency import IdempotencyRecord, RequestIdentity, StoredResult
from app.ingest.request import WriteRequest
from app.ingest.result import BatchResult, WriteResult
from app.ingest.service import WriteService
from app.store.imports import ImportRecords

SOURCE = Sender("import", "")
"""The sender of imported readings, as the tables show it."""

PART_DAYS = 400
"""Days, each a chunk of the table, that one transaction writes at most: PostgreSQL locks every chunk that it touches. A
year of hourly readings stays in one piece. (It decides how a file is cut, like BLOCK_BYTES.)"""
PART_ROWS = 50_000
PARTS_UNDER_WAY = 4
"""Enough to have one decoded and one prepared while one is written."""
MAX_EXAMPLES = 1_000
CHANGED = (
    "Some readings of this file were imported before and would be rejected now, or the other way round; nothing was "
    "stored twice. Import the missing readings from a file of their own, or delete the file's readings and use "
    "--store-again."
)
LONGEST_WAIT_S = 60.0
"""Longest wait for a database that is unavailable."""


@dataclass(slots=True)
class ImportResult:
    """The result of a file's import so far."""

    stored: int = 0
    found: int = 0
    """Readings that an earlier import stored."""
    rejected: int = 0
    unknown_columns: dict[str, None] = field(default_factory=dict)
    """The file's columns that are not stored, in order of appearance."""
    span_us: tuple[int, int] | None = None
    """The earliest and the latest time of the readings stored or found, microseconds since 1970 UTC."""
    found_at: datetime | None = None
    """When the last of the readings found was stored."""
    reasons: Counter[str] = field(default_factory=Counter)
    """The reasons for which rows were rejected, and how often."""
    examples: dict[str, RowError] = field(default_factory=dict)
    """The first row rejected for each reason, numbered as the file has it."""
    local_rows: int = 0
    """Number of times without an offset."""
    repeated_rows: int = 0
    """Number of times without an offset that occur twice in the zone."""
    first_repeated_row: int | None = None
    notes: Sequence[str] = ()
    """Remarks on the file, such as what was detected in it."""

    @property
    def rows(self) -> int:
        """The number of rows so far."""
        return self.stored + self.found + self.rejected

    def add_localized(self, localized: Localized, rows_before: int) -> None:
        """Count times that had no offset."""
        self.local_rows += localized.local_rows
        self.repeated_rows += len(localized.repeated)
        if localized.repeated and self.first_repeated_row is None:
            self.first_repeated_row = localized.repeated[0] + 1 + rows_before

    def add_times(self, batch: Batch) -> None:
        """Extend the range of times by those of some readings."""
        if batch.rows:
            first_us, last_us = batch.time_range_us()
            before = self.span_us or (first_us, last_us)
            self.span_us = min(first_us, before[0]), max(last_us, before[1])

    def reject(self, faults: Sequence[RowError], rows_before: int) -> None:
        """Count rejected rows, and keep an example for each reason. ``rows_before`` precede their block."""
        self.rejected += len(faults)
        self.reasons.update(fault.reason for fault in faults)
        for fault in faults:
            if fault.reason not in self.examples and len(self.examples) < MAX_EXAMPLES:
                self.examples[fault.reason] = replace(fault, row=fault.row + rows_before)


@dataclass(frozen=True, slots=True)
class Chunk:
    """Readings of one transaction, and which rows of their block they are, from 1."""

    batch: Batch
    rows: pa.Array


class Importer:
    """Imports files.

    Args:
        service: stores the readings; None: they are only checked.
        log: what was imported before; None: nothing.
        layout: what the files' columns are.
        window: which times the readings may bring.
        now_us: microseconds since 1970 UTC.
    """

    def __init__(
        self,
        *,
        service: WriteService | None,
        log: ImportRecords | None,
        layout: ColumnMapping,
        window: TimeWindow,
        now_us: Callable[[], int],
    ) -> None:
        self.service = service
        self.layout = layout
        self._log = log
        self._window = window
        self._now_us = now_us

    async def forget(self, path: Path) -> bool:
        """Delete the records of a file, so that it is imported anew, and return whether it had any.

        Raises:
            ConfigurationError: it can't be read.
            DatabaseUnavailable
        """
        if self._log is None:
            return False
        with open_file(path, self.layout) as file:
            return await forget(path, file, self.layout, self._log)

    async def run(self, path: Path, on_progress: Callable[[float, ImportResult], None]) -> ImportResult:
        """Import a file. Rejected rows go into a CSV at ``report_path``.

        Args:
            path: the file.
            on_progress: is told the part of it that has been read, 0 to 1, and what became of that.

        Raises:
            ConfigurationError: the file can't be read, or the report not be written.
            NotStored: the database was unavailable for too long; the next import recognises what was committed.
        """
        try:
            with open_file(path, self.layout) as file, RejectsReport(report_path(path), file) as report:
                return await self._import(path, file, report, on_progress)
        except ExceptionGroup as errors:
            error = errors.exceptions[0]
            if isinstance(error, PermanentError):  # by a decoder: the columns, or all that is there, can't be readings
                raise ConfigurationError(f"Can't read {path}: {error}") from error
            raise error from None

    async def _import(
        self, path: Path, file: InputFile, report: RejectsReport, on_progress: Callable[[float, ImportResult], None]
    ) -> ImportResult:
        outcome = ImportResult(notes=file.notes)
        keys = await keys_of(path, file, self.layout, self._log)
        free = asyncio.Semaphore(PARTS_UNDER_WAY)
        rows_before = 0
        async with asyncio.TaskGroup() as tasks:
            while (block := await asyncio.to_thread(file.next_block, await keys.cuts())) is not None:
                decoded = await asyncio.to_thread(self._decode, path, block, file, rows_before, outcome)
                keys.enter(block, rows_before)
                storing = _Storing(block, rows_before, report, outcome)
                storing.reject(decoded.errors)
                parts = list(_parts(decoded))
                part_keys = [keys.key(number) for number in range(len(parts))]
                imported = await self._log.find(part_keys) if self._log is not None and parts else {}
                for number, (key, part) in enumerate(zip(part_keys, parts, strict=True)):
                    identity = RequestIdentity(SOURCE.key_name, key, keys.content_hash(part.batch.rows))
                    record = IdempotencyRecord(identity, keys.result(number, len(parts)), expires=False)
                    if (earlier := imported.get(key)) is not None:
                        storing.find(part, record, earlier)
                    else:
                        await free.acquire()
                        task = tasks.create_task(self._store(part, record, storing, is_first=number == 0))
                        task.add_done_callback(lambda _: free.release())
                rows_before += decoded.batch.rows + decoded.rejected
                on_progress(block.progress, outcome)
        on_progress(1.0, outcome)
        return outcome

    def _decode(self, path: Path, block: Block, file: InputFile, rows_before: int, outcome: ImportResult) -> Decoded:
        options = DecodeOptions(
            source=SOURCE,
            precision=self.layout.precision,
            window=self._window,
            now_us=self._now_us(),
            max_rows=BLOCK_BYTES,
            max_chunks=BLOCK_BYTES,
            max_errors=BLOCK_BYTES,
            max_columns=BLOCK_BYTES,
            is_time_required=True,
            is_sensor_required=self.layout.sensor_name is None,
            renames=self.layout.renames,
            dialect=file.dialect,
        )
        parsed = open_readings(block.body, block.format, options).read()
        if self.layout.sensor_name is not None:
            parsed = _of_one_sensor(parsed, self.layout.sensor_name, path)
        localized = localize(parsed, self.layout)
        outcome.add_localized(localized, rows_before)
        decoded = validate(localized.parsed, options)
        outcome.unknown_columns |= dict.fromkeys(name for name in decoded.unknown_columns if name not in OWN_COLUMNS)
        return replace(decoded, batch=_in_celsius(decoded.batch, self.layout))

    async def _store(self, part: Chunk, record: IdempotencyRecord, storing: "_Storing", *, is_first: bool) -> None:
        """Commit a part, or find that it was committed before.

        The first part's record says how its block was cut. It comes before the others, which would not be found without
        it when the file has grown.
        """
        if not is_first:
            await storing.first_is_recorded.wait()
        result = await self._write(WriteRequest(part.batch, record, is_awaited=False))
        if isinstance(result, StoredResult):
            storing.outcome.found += part.batch.rows
            storing.outcome.add_times(part.batch)
        elif isinstance(result, BatchResult):
            storing.store(part, result)
        storing.first_is_recorded.set()

    async def _write(self, request: WriteRequest) -> WriteResult:
        if self.service is None:
            return BatchResult(request.content.rows)
        try:
            async with asyncio.timeout(LONGEST_WAIT_S):
                return await self.service.write(request, waits_for_room=True)
        except IdempotencyConflict:
            raise ConfigurationError(CHANGED) from None
        except TimeoutError:
            raise DatabaseUnavailable(
                "The database was unavailable for too long. Import the file again: stored readings are recognised."
            ) from None


@dataclass(slots=True)
class _Storing:
    """A block whose parts are being stored."""

    block: Block
    rows_before: int
    report: RejectsReport
    outcome: ImportResult
    first_is_recorded: asyncio.Event = field(default_factory=asyncio.Event)

    def reject(self, faults: Sequence[RowError]) -> None:
        """Report rejected rows of the block."""
        self.outcome.reject(faults, self.rows_before)
        self.report.write(faults, self.block, self.rows_before)

    def find(self, part: Chunk, record: IdempotencyRecord, earlier: StoredResult) -> None:
        """Count a part that was imported before. Raises ConfigurationError if it had other readings then."""
        if earlier.content_hash != record.identity.content_hash:
            raise ConfigurationError(CHANGED)
        self.first_is_recorded.set()
        self.outcome.found += part.batch.rows
        self.outcome.add_times(part.batch)
        self.outcome.found_at = max(filter(None, (earlier.at, self.outcome.found_at)), default=None)

    def store(self, part: Chunk, stored: BatchResult) -> None:
        """Count the rows of a part that was committed, and report those that PostgreSQL rejected."""
        self.outcome.stored += stored.stored
        batch = part.batch
        if stored.refused:
            is_refused = pc.is_in(pa.arange(0, batch.rows), pa.array(list(stored.refused), pa.int64()))
            batch = replace(batch, columns=batch.columns.filter(pc.invert(is_refused)))
        self.outcome.add_times(batch)
        self.reject(
            [
                RowError(part.rows[place].as_py(), None, reason, None)
                for place, reason in stored.refused.items()
                if reason is not None
            ]
        )


def _of_one_sensor(parsed: ParsedColumns, name: str, path: Path) -> ParsedColumns:
    """Return the columns with one sensor for all rows. Raises ConfigurationError if they have sensors of their own."""
    sensors = parsed.columns.get("sensor_id")
    if (sensors is not None and sensors.null_count < parsed.rows) or parsed.faults.get("sensor_id"):
        raise ConfigurationError(f"{path} has readings with their own sensor_id: leave --sensor-name out.")
    names = pa.DictionaryArray.from_arrays(pa.repeat(pa.scalar(0, pa.int32()), parsed.rows), pa.array([name]))
    return replace(parsed, columns={**parsed.columns, "sensor_id": names})


def _parts(decoded: Decoded) -> Iterator[Chunk]:
    """Split a block's readings into parts, by time if they span more days than a transaction may write."""
    batch, rows = decoded.batch, decoded.rows
    days = pc.floor_temporal(batch.columns["time"], unit="day").dictionary_encode()
    spans = [pa.arange(0, batch.rows)]
    if len(days.dictionary) > PART_DAYS:
        ranks = pc.rank(days.dictionary, tiebreaker="dense").take(days.indices)
        numbers = pc.divide(pc.subtract(ranks, 1), PART_DAYS)
        spans = [pc.indices_nonzero(pc.equal(numbers, number)) for number in sorted(numbers.unique().to_pylist())]
    for span in spans:
        for start in range(0, len(span), PART_ROWS):
            places = span.slice(start, PART_ROWS)
            yield Chunk(replace(batch, columns=batch.columns.take(places)), rows.take(places))


def _in_celsius(batch: Batch, layout: ColumnMapping) -> Batch:
    columns = batch.columns
    for metric in layout.fahrenheit:
        celsius = pc.divide(pc.multiply(pc.subtract(columns[metric], 32.0), 5.0), 9.0)
        columns = columns.set_column(columns.schema.get_field_index(metric), metric, celsius)
    return replace(batch, columns=columns)
