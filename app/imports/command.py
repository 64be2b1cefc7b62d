"""The command itself: what may be said to it, and an intake for the files to go through."""

import argparse
import asyncio
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path

from app.errors import ConfigurationError
from app.imports.files import FORMATS, Layout, format_of
from app.imports.terminal import import_file
from app.ingest.decode.columns import METRICS
from app.ingest.decode.timestamps import Precision, TimeWindow
from app.main import importing, now_us
from app.settings import Settings

REJECTED_STATUS = 3
"""Exit status of an import some of whose readings were rejected."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What may be said after ``import``."""
    metrics = ", ".join(METRICS)
    parser.add_argument(
        "files", nargs="+", type=Path, metavar="FILE", help=f"*{', *'.join(FORMATS)}; texts also .gz, .zst"
    )
    parser.add_argument("--sensor", metavar="COLUMN", help="the file's column that is sensor_id")
    parser.add_argument("--time", metavar="COLUMN", help="the file's column that is time")
    parser.add_argument(
        "--column",
        action="append",
        default=[],
        type=_metric_and_column,
        metavar="METRIC=COLUMN",
        help=f"the file's column that is one of {metrics}; may be given for each",
    )
    parser.add_argument(
        "--fahrenheit",
        action="append",
        default=[],
        choices=["temperature"],
        help="the file has it in °F; stored in °C",
    )
    parser.add_argument(
        "--precision",
        choices=[precision.value for precision in Precision],
        default=Precision.AUTO.value,
        help="unit of times that are numbers: auto (by magnitude), s, ms, us, ns",
    )
    parser.add_argument("--dry-run", action="store_true", help="read and check only; nothing is stored")


def _metric_and_column(argument: str) -> tuple[str, str]:
    metric, _, column = argument.partition("=")
    if metric not in METRICS or not column:
        raise argparse.ArgumentTypeError(f"{argument!r} should be like temperature=temp; known: {', '.join(METRICS)}")
    return metric, column


def _columns(chosen: argparse.Namespace) -> dict[str, str]:
    named = [*chosen.column, ("sensor_id", chosen.sensor), ("time", chosen.time)]
    named = [(ours, theirs) for ours, theirs in named if theirs]
    for names in zip(*named, strict=True):
        if twice := [name for name, times in Counter(names).items() if times > 1]:
            raise ConfigurationError(f"The options have {twice[0]!r} twice: a column of the file can be one of ours.")
    return dict(named)


def import_files(settings: Settings, chosen: argparse.Namespace, database_url: str | None) -> int:
    """Imports the files that were named; without a database they are only checked.

    Returns:
        The exit status: REJECTED_STATUS if some readings were rejected, 0 if all are stored, now or before.

    Raises:
        ConfigurationError: the options contradict each other or a file, a file can't be read, or a report not be
            written.
        NotStored: the database can't be reached.
        KeyboardInterrupt: it was ended, by SIGTERM too.
    """
    layout = Layout(_columns(chosen), frozenset(chosen.fahrenheit), Precision(chosen.precision))
    window = TimeWindow.of(
        past_days=0, future_minutes=settings.accept_future_minutes, kept_days=settings.retention_raw_days
    )
    for path in chosen.files:
        format_of(path)

    async def run() -> int:
        async with AsyncExitStack() as stack:
            stack.enter_context(_cancelled_by_sigterm())
            intake = await stack.enter_async_context(importing(settings, database_url)) if database_url else None
            outcomes = [
                await import_file(path, intake=intake, layout=layout, window=window, now_us=now_us)
                for path in chosen.files
            ]
        return REJECTED_STATUS if any(outcome.rejected for outcome in outcomes) else 0

    try:
        return asyncio.run(run())
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None


@contextmanager
def _cancelled_by_sigterm() -> Iterator[None]:
    """What asyncio.run does about a first SIGINT, which a command in the background of a script never hears."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None  # it is entered in one
    before = signal.signal(signal.SIGTERM, lambda *_: loop.call_soon_threadsafe(task.cancel))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
