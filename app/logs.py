"""Log lines on standard error: one line an event, coloured on a terminal, JSON when asked.

Alike lines are bounded, since what a request or an outage can cause once it can cause a thousand times a second: of a
kind a few lines are written, then one a minute with the number of those left out. A kind is a logger and its message
without the arguments; a line may name its own by ``extra={"kind": …}``, and is then written once a minute.
"""

import json
import logging
import math
import sys
import threading
import time
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TextIO

COLOURS = {"DEBUG": "\x1b[2m", "INFO": "\x1b[36m", "WARNING": "\x1b[33m", "ERROR": "\x1b[31m", "CRITICAL": "\x1b[31m"}
RESET = "\x1b[0m"

QUIET = ("uvicorn", "websockets", "psycopg", "psycopg.pool", "alembic", "sqlalchemy", "asyncio")
"""Libraries that speak only of warnings, at whatever level we log: uvicorn and websockets write each WebSocket's query
string, and so its key, at INFO and DEBUG."""


WINDOW_S = 60.0
BURST = 5
"""Lines of a kind that are written in a window."""
MAX_KINDS = 100
"""Kinds that are told apart in a window; beyond, all lines of a logger and a level are one kind, so that a hundred
senders that are refused keep no other logger's error from being written."""


@dataclass(slots=True)
class _Window:
    ends_at: float
    written: int = 0
    left_out: int = 0
    last: logging.LogRecord | None = None
    """The last that was left out."""


class Throttle:
    """The choice of log lines that are written. Others are only counted. Pure; ``now`` is in seconds, of any clock."""

    def __init__(self) -> None:
        self._windows: dict[Hashable, _Window] = {}

    def admits(self, record: logging.LogRecord, now: float) -> bool:
        """Return whether a line is to be written. Count it if not."""
        kind, burst = _kind_of(record)
        window = self._windows.get(kind)
        if window is None and len(self._windows) >= MAX_KINDS:
            kind = record.name, record.levelno
            window = self._windows.get(kind)
        if window is None or (now >= window.ends_at and not window.left_out):
            window = self._windows[kind] = _Window(now + WINDOW_S)
        if window.written < burst:
            window.written += 1
            return True
        window.left_out += 1
        window.last = record
        return False

    @property
    def has_left_out(self) -> bool:
        """Whether there are lines that were only counted, and are still to be told of."""
        return any(window.left_out for window in self._windows.values())

    def ended(self, now: float) -> Iterator[tuple[logging.LogRecord, int]]:
        """Return, for each kind with lines left out in a window that has ended, the last line and their number.

        To write that line begins the kind's next window.
        """
        for kind, window in [*self._windows.items()]:
            if now < window.ends_at:
                continue
            if window.last is None:
                del self._windows[kind]
            else:
                yield window.last, window.left_out
                self._windows[kind] = _Window(now + WINDOW_S, written=BURST)


def _kind_of(record: logging.LogRecord) -> tuple[Hashable, int]:
    """Return the kind of a line, and how many of that kind are written in a window."""
    if (kind := getattr(record, "kind", None)) is not None:
        return kind, 1
    error = record.exc_info[0] if record.exc_info else None
    # Good news comes one by one, like workers that start; but an outage may end every second.
    told_apart = record.args if record.levelno < logging.WARNING else None
    return (record.name, record.msg, error, str(told_apart)), BURST


class ThrottledHandler(logging.StreamHandler[TextIO]):
    """Writes to a stream what a Throttle admits, and once a minute what was left out. DEBUG is not bounded."""

    def __init__(self, stream: TextIO, *, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(stream)
        self._clock = clock
        self._throttle = Throttle()
        self._timer: threading.Timer | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line. logging calls this with the handler's lock held."""
        if record.levelno <= logging.DEBUG or self._throttle.admits(record, self._clock()):
            super().emit(record)
        else:
            self._start_timer()

    def close(self) -> None:
        """Write what was left out. logging calls this at the end of the process."""
        if self._timer is not None:
            self._timer.cancel()
            self._write_left_out(math.inf)
        super().close()

    def _start_timer(self) -> None:
        if self._timer is None:
            self._timer = threading.Timer(WINDOW_S, lambda: self._write_left_out(self._clock()))
            self._timer.daemon = True
            self._timer.start()

    def _write_left_out(self, now: float) -> None:
        self.acquire()
        try:
            self._timer = None
            for record, count in self._throttle.ended(now):
                record.msg, record.args = f"{record.getMessage()} ({count:,} such lines in the last minute)", None
                super().emit(record)
            if self._throttle.has_left_out:
                self._start_timer()
        finally:
            self.release()


class TextFormatter(logging.Formatter):
    """``2023-07-12T14:30:45Z INFO message``. The level in colour if asked."""

    def __init__(self, *, colour: bool) -> None:
        super().__init__()
        self._colour = colour

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # its name in logging
        """Return the line. What was raised follows it."""
        level = record.levelname
        if self._colour:
            level = f"{COLOURS.get(level, '')}{level}{RESET}"
        return f"{_time(record)} {level} {record.message}"


class JsonFormatter(logging.Formatter):
    """An object a line: time, level, logger, message, and exception where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        event = {
            "time": _time(record),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            event["exception"] = self.formatException(record.exc_info)
        return json.dumps(event)  # and not orjson, which refuses the lone surrogates of an undecodable file name


def configure_logging(*, level: str, as_json: bool) -> None:
    """Send every logger's lines to standard error in one form."""
    handler = ThrottledHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if as_json else TextFormatter(colour=sys.stderr.isatty()))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
