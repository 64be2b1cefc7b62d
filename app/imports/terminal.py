"""The output of an import: a bar, rows a second and the time left, and at the end the result of each file."""

import time
from collections.abc import Iterator
from datetime import UTC
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from app.imports.importer import Importer, ImportResult
from app.imports.layout import ColumnMapping
from app.imports.rejects import report_path
from app.ingest.decode.columns import format_names, truncated_for_message
from app.ingest.decode.timestamps import EPOCH, MICROSECOND


async def import_file(path: Path, importer: Importer, *, store_again: bool) -> ImportResult:
    """Import a file, show its progress on a terminal, and print the result.

    With ``store_again``, delete the records of its earlier imports first.
    """
    console = Console(highlight=False)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[rows]:,} rows, {task.fields[rows_per_s]:,.0f}/s"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    started = time.monotonic()
    with bar:
        task = bar.add_task(path.name, total=1.0, rows=0, rows_per_s=0.0)

        def move(part: float, outcome: ImportResult) -> None:
            bar.update(task, completed=part, rows=outcome.rows, rows_per_s=outcome.rows / elapsed_s())

        def elapsed_s() -> float:
            return max(time.monotonic() - started, 1e-6)

        if store_again and await importer.forget(path):
            console.print(
                f"{path.name}: records of earlier imports deleted. If this import is interrupted, continue it without "
                "--store-again.",
                soft_wrap=True,
            )
        outcome = await importer.run(path, move)
    summary = ", ".join(_summary(outcome, path, is_stored=importer.service is not None))
    said = [
        f"{summary} ({elapsed_s():.1f} s, {outcome.rows / elapsed_s():,.0f} rows/s)",
        *_remarks(outcome, importer.layout),
    ]
    print("\n".join(f"{path.name}: {line}" for line in said), flush=True)
    return outcome


def _summary(outcome: ImportResult, path: Path, *, is_stored: bool) -> Iterator[str]:
    readings = "reading" if outcome.stored == 1 else "readings"
    yield f"{outcome.stored:,} {readings} {'stored' if is_stored else 'would be stored'}"
    if outcome.found:
        on = f" (on {outcome.found_at.astimezone(UTC):%Y-%m-%d})" if outcome.found_at else ""
        yield f"{outcome.found:,} {'was' if outcome.found == 1 else 'were'} imported before{on}"
    if outcome.rejected:
        yield f"{outcome.rejected:,} rejected, see {report_path(path)}"


def _remarks(outcome: ImportResult, layout: ColumnMapping) -> Iterator[str]:
    yield from outcome.notes
    if outcome.span_us is not None:
        first_us, last_us = outcome.span_us
        yield f"times from {_moment(first_us)} to {_moment(last_us)}"
    if outcome.local_rows and layout.time_zone != "UTC":
        times = "time without an offset is" if outcome.local_rows == 1 else "times without an offset are"
        yield f"{outcome.local_rows:,} {times} taken to be in {layout.time_zone}"
    if outcome.repeated_rows:
        yield (
            f"{outcome.repeated_rows:,} of them {'comes' if outcome.repeated_rows == 1 else 'come'} twice there, when "
            f"clocks were put back (first in row {outcome.first_repeated_row:,}): the earlier of the two is taken"
        )
    if outcome.found:
        yield "to store readings again that have been deleted since, use --store-again"
    if outcome.unknown_columns:
        yield f"columns not stored: {format_names(list(outcome.unknown_columns))}"
    if outcome.reasons:
        ((reason, rows),) = outcome.reasons.most_common(1)
        example = outcome.examples.get(reason)
        value = "" if example is None or example.value is None else f": {truncated_for_message(example.value)!r}"
        where = f", first row {example.row:,}{value}" if example else ""
        yield f"most often rejected because {reason} ({rows:,} {'row' if rows == 1 else 'rows'}{where})"
        if example and example.column == "time" and outcome.rows == outcome.rejected and layout.time_format is None:
            yield "give the format of the file's times with --time-format"


def _moment(time_us: int) -> str:
    moment = EPOCH + time_us * MICROSECOND
    return moment.isoformat(timespec="microseconds" if time_us % 1_000_000 else "seconds").replace("+00:00", "Z")
