"""A file into the database, by the way that requests take: decoded, checked, flushed.

A file's blocks are decoded one by one, and a block's readings go in parts, each claimed by the file's digest and its
place. So a file may be imported again, after a failure or by mistake: what is there is found by its claims, which never
expire, and only the rest is stored. (5)
"""

import asyncio
import csv
import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TextIO

import pyarrow as pa
import pyarrow.compute as pc

from app.errors import (
    ConfigurationError,
    DatabaseAway,
    IdempotencyConflict,
    NotStored,
    Refused,
    SensorFlowError,
)
from app.imports.files import BLOCK_BYTES, Block, Layout, blocks
from app.ingest.batch import Batch, Source
from app.ingest.buffer import Answer
from app.ingest.claim import Claim, Fingerprint, Replay
from app.ingest.decode.columns import Decoded, RowFault, Terms
from app.ingest.decode.readings import decode_readings
from app.ingest.decode.timestamps import TimeWindow
from app.ingest.pipeline import Intake
from app.ingest.receipt import Stored

SOURCE = Source("import", "")
"""Who sent what is imported, as the tables show it."""

PART_DAYS = 400
"""Days, each a chunk of the table, that one transaction writes at most: PostgreSQL locks every chunk that it touches. A
year of hourly readings stays in one piece. (It decides how a file is cut, like BLOCK_BYTES.)"""
PART_ROWS = 50_000
PARTS_UNDER_WAY = 4
"""Enough to have one decoded and one prepared while one is written."""
LONGEST_WAIT_S = 60.0
"""How long a database that is away is waited for."""


@dataclass(slots=True)
class Outcome:
    """What became of a file's readings so far."""

    stored: int = 0
    found: int = 0
    """Those that were there from an earlier import."""
    rejected: int = 0
    unknown_columns: dict[str, None] = field(default_factory=dict)
    """The file's columns that are none of ours, in order of appearance."""

    @property
    def rows(self) -> int:
        """All of them."""
        return self.stored + self.found + self.rejected


@dataclass(frozen=True, slots=True)
class Part:
    """Readings of one transaction, and which rows of their block they are, from 1."""

    batch: Batch
    rows: pa.Array


def report_path(path: Path) -> Path:
    """Where a file's rejected rows are reported."""
    return path.with_name(f"{path.name}.rejected.csv")


class Report:
    """The rejected rows as a CSV, made when there is one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: TextIO | None = None

    def __enter__(self) -> "Report":
        with self._writing():
            self._path.unlink(missing_ok=True)  # of an earlier import
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def write(self, faults: Sequence[RowFault], rows_before: int) -> None:
        """Adds rows, numbered as the file has them."""
        if not faults:
            return
        with self._writing():
            if self._file is None:
                self._file = self._path.open("w", newline="", encoding="utf-8")
                csv.writer(self._file).writerow(["row", "column", "reason", "value"])
            csv.writer(self._file).writerows(
                (fault.row + rows_before, fault.column, fault.reason, fault.value) for fault in faults
            )

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ConfigurationError(f"Can't write {self._path}: {error.strerror}") from error


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
        """Imports a file. What is rejected stands in a CSV at ``report_path``.

        Raises:
            ConfigurationError: the file can't be read, or the report not be written.
            NotStored: the database was away for too long; what was committed is found again by the next import.
        """
        try:
            return await self._import(path)
        except ExceptionGroup as errors:
            error = errors.exceptions[0]
            if isinstance(error, Refused):  # by a decoder: the columns, or all that is there, can't be readings
                raise ConfigurationError(f"Can't read {path}: {error}") from error
            raise error from None

    async def _import(self, path: Path) -> Outcome:
        outcome = Outcome()
        digest = await asyncio.to_thread(_digest, path, self._layout)
        free = asyncio.Semaphore(PARTS_UNDER_WAY)
        pieces = blocks(path, self._layout)
        rows_before = 0
        with Report(report_path(path)) as report:
            async with asyncio.TaskGroup() as tasks:
                while (block := await asyncio.to_thread(next, pieces, None)) is not None:
                    decoded = await asyncio.to_thread(self._decode, block)
                    outcome.rejected += decoded.rejected
                    outcome.unknown_columns |= dict.fromkeys(decoded.unknown_columns)
                    report.write(decoded.errors, rows_before)
                    for place, part in enumerate(_parts(decoded)):
                        claimed = f"{digest}:{rows_before}:{place}"
                        name = Fingerprint(SOURCE.key_name, claimed, b"%d" % part.batch.rows)
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
        if isinstance(answer, IdempotencyConflict):
            raise ConfigurationError(
                "Of this file, some readings were imported that would now be refused, or the other way round; nothing "
                "was stored twice. Import what is missing from a file of its own."
            )
        if isinstance(answer, SensorFlowError):
            raise answer
        if isinstance(answer, Replay):
            outcome.found += part.batch.rows
        elif isinstance(answer, Stored):
            outcome.stored += answer.rows
            outcome.rejected += len(answer.refused)
            refused = answer.refused.items()
            faults = [RowFault(part.rows[place].as_py(), None, why, None) for place, why in refused if why is not None]
            report.write(faults, rows_before)

    async def _answer(self, batch: Batch, name: Fingerprint) -> Answer:
        if self._intake is None:
            return Stored(batch.rows, {})
        answered: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        claim = Claim(name, lambda _: Replay(201, b""), expires=False)

        def settle(answer: Answer) -> None:
            if not answered.done():  # nobody waits any longer
                answered.set_result(answer)

        try:
            async with asyncio.timeout(LONGEST_WAIT_S):
                while True:
                    try:
                        self._intake.submit(batch, settle, claim=claim, is_awaited=False)
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
            yield Part(replace(batch, columns=batch.columns.take(places)), rows.take(places))


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
