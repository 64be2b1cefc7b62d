"""The import command: its options, and the queue that the files' readings go through."""

import argparse
import asyncio
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from app.errors import ConfigurationError
from app.imports.files import FORMATS, format_of
from app.imports.headers import SEPARATORS
from app.imports.importer import SOURCE, Importer
from app.imports.layout import ColumnMapping
from app.imports.terminal import import_file
from app.imports.times import require_time_format
from app.ingest.decode.reading import MAX_SENSOR_ID_LENGTH
from app.ingest.decode.timestamps import Precision, TimeWindow
from app.main import importing, now_us
from app.schema import EXAMPLE_METRIC, METRICS
from app.settings import Settings

REJECTED_STATUS = 3
"""Exit status of an import some of whose readings were rejected."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``import``."""
    metrics = ", ".join(METRICS)
    parser.add_argument(
        "files", nargs="+", type=Path, metavar="FILE", help=f"*{', *'.join(FORMATS)}; texts also .gz, .zst"
    )
    sensor = parser.add_mutually_exclusive_group()
    sensor.add_argument("--sensor", metavar="COLUMN", help="the file's column of sensors")
    sensor.add_argument(
        "--sensor-name", metavar="NAME", help="the sensor of all readings, for a file without such a column"
    )
    parser.add_argument("--time", metavar="COLUMN", help="the file's column of times")
    parser.add_argument(
        "--column",
        action="append",
        default=[],
        type=_metric_and_column,
        metavar="METRIC=COLUMN",
        help=f"the file's column of a metric ({metrics}); may be repeated",
    )
    parser.add_argument(
        "--fahrenheit",
        action="append",
        default=[],
        choices=[metric.name for metric in METRICS.values() if metric.unit == "°C"],
        help="convert this metric from °F to °C",
    )
    parser.add_argument(
        "--precision",
        choices=[precision.value for precision in Precision],
        default=Precision.AUTO.value,
        help="unit of times that are numbers: auto (by magnitude), s, ms, us, ns",
    )
    parser.add_argument(
        "--time-format",
        metavar="FORMAT",
        help="how times are written, in Python's strptime format, like '%%d.%%m.%%Y %%H:%%M:%%S'; excel for Excel's "
        "numbers of days",
    )
    parser.add_argument(
        "--time-zone", metavar="ZONE", help="zone of times without an offset, like Europe/Madrid; default: TIMEZONE"
    )
    parser.add_argument("--separator", choices=SEPARATORS, help="separator of a CSV's fields; default: detected")
    parser.add_argument(
        "--decimal", choices=["point", "comma"], help="decimal mark of a CSV's numbers; default: detected"
    )
    parser.add_argument(
        "--missing",
        action="append",
        default=[],
        metavar="MARK",
        help="mark of a missing value in a CSV, beside NA, NaN and the like; may be repeated",
    )
    parser.add_argument(
        "--skip-lines", type=_line_count, metavar="N", help="lines before a CSV's header; default: detected"
    )
    parser.add_argument(
        "--store-again",
        action="store_true",
        help="store again what was imported before, for readings that have been deleted since",
    )
    parser.add_argument("--dry-run", action="store_true", help="only check the files; store nothing")


def _metric_and_column(argument: str) -> tuple[str, str]:
    metric, _, column = argument.partition("=")
    if metric not in METRICS or not column:
        raise argparse.ArgumentTypeError(
            f"{argument!r} should be like {EXAMPLE_METRIC}=temp; known: {', '.join(METRICS)}"
        )
    return metric, column


def _line_count(argument: str) -> int:
    if not argument.isdecimal():
        raise argparse.ArgumentTypeError(f"{argument!r} should be a number of lines, like 3")
    return int(argument)


def _layout(chosen: argparse.Namespace, settings: Settings) -> ColumnMapping:
    if chosen.time_format is not None:
        require_time_format(chosen.time_format)
    if chosen.sensor_name is not None:
        _require_sensor_name(chosen.sensor_name)
    return ColumnMapping(
        columns=_columns(chosen),
        fahrenheit=frozenset(chosen.fahrenheit),
        precision=Precision(chosen.precision),
        sensor_name=chosen.sensor_name,
        separator=SEPARATORS[chosen.separator] if chosen.separator else None,
        has_decimal_comma=chosen.decimal == "comma" if chosen.decimal else None,
        missing=frozenset(chosen.missing),
        skip_lines=chosen.skip_lines,
        time_format=chosen.time_format,
        time_zone=_time_zone(chosen.time_zone) if chosen.time_zone else settings.timezone,
    )


def _time_zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ConfigurationError(f"--time-zone {name!r} should be an IANA time zone, like Europe/Madrid.") from error
    return name


def _require_sensor_name(name: str) -> None:
    if not name.strip() or len(name) > MAX_SENSOR_ID_LENGTH or "\0" in name:
        raise ConfigurationError(f"--sensor-name should have 1 to {MAX_SENSOR_ID_LENGTH} characters, not all blank.")


def _columns(chosen: argparse.Namespace) -> dict[str, str]:
    named = [*chosen.column, ("sensor_id", chosen.sensor), ("time", chosen.time)]
    named = [(ours, theirs) for ours, theirs in named if theirs]
    for names in zip(*named, strict=True):
        if twice := [name for name, times in Counter(names).items() if times > 1]:
            raise ConfigurationError(
                f"Column {twice[0]!r} is mapped twice. Map each column of the file to one of ours."
            )
    return dict(named)


def import_files(settings: Settings, chosen: argparse.Namespace, database_url: str | None) -> int:
    """Import the named files. Without a database, only check them.

    Returns:
        The exit status: REJECTED_STATUS if some readings were rejected, 0 if all are stored, now or before.

    Raises:
        ConfigurationError: the options contradict each other or a file, a file can't be read, or a report not be
            written.
        NotStored: the database can't be reached.
        KeyboardInterrupt: SIGINT or SIGTERM stopped it.
    """
    layout = _layout(chosen, settings)
    window = TimeWindow.of(
        past_days=0, future_minutes=settings.accept_future_minutes, kept_days=settings.retention_raw_days
    )
    for path in chosen.files:
        format_of(path)

    async def run() -> int:
        async with AsyncExitStack() as stack:
            stack.enter_context(_cancelled_by_sigterm())
            service, log = (
                await stack.enter_async_context(importing(settings, database_url, SOURCE.key_name))
                if database_url
                else (None, None)
            )
            importer = Importer(service=service, log=log, layout=layout, window=window, now_us=now_us)
            outcomes = [await import_file(path, importer, store_again=chosen.store_again) for path in chosen.files]
        return REJECTED_STATUS if any(outcome.rejected for outcome in outcomes) else 0

    try:
        return asyncio.run(run())
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None


@contextmanager
def _cancelled_by_sigterm() -> Iterator[None]:
    """Cancel the task at SIGTERM, as asyncio.run does at SIGINT, which a script's background commands never get."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    before = signal.signal(signal.SIGTERM, lambda *_: loop.call_soon_threadsafe(task.cancel))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
