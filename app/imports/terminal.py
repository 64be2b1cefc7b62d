"""What a person sees of an import: a bar, rows a second and the time left; and in the end what became of each file."""

import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from app.imports.files import Layout
from app.imports.importer import Importer, Outcome, report_path
from app.ingest.decode.columns import in_words
from app.ingest.decode.timestamps import TimeWindow
from app.ingest.pipeline import Intake


async def import_file(
    path: Path, *, intake: Intake | None, layout: Layout, window: TimeWindow, now_us: Callable[[], int]
) -> Outcome:
    """Imports a file as Importer does, before the eyes of who watches a terminal, and prints what became of it."""
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

        def move(part: float, outcome: Outcome) -> None:
            bar.update(task, completed=part, rows=outcome.rows, rows_per_s=outcome.rows / elapsed_s())

        def elapsed_s() -> float:
            return max(time.monotonic() - started, 1e-6)

        importer = Importer(intake=intake, layout=layout, window=window, now_us=now_us, on_progress=move)
        outcome = await importer.run(path)
    readings = "reading" if outcome.stored == 1 else "readings"
    said = [f"{outcome.stored:,} {readings} {'stored' if intake else 'would be stored'}"]
    if outcome.found:
        said.append(f"{outcome.found:,} {'was' if outcome.found == 1 else 'were'} there already")
    if outcome.rejected:
        said.append(f"{outcome.rejected:,} rejected, see {report_path(path)}")
    print(f"{path.name}: {', '.join(said)} ({elapsed_s():.1f} s, {outcome.rows / elapsed_s():,.0f} rows/s)", flush=True)
    if outcome.unknown_columns:
        print(f"{path.name}: columns not stored: {in_words(list(outcome.unknown_columns))}", flush=True)
    return outcome
