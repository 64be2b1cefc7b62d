"""Log lines on standard error: one line an event, coloured on a terminal, JSON when asked."""

import json
import logging
import sys
from datetime import UTC, datetime

COLOURS = {"DEBUG": "\x1b[2m", "INFO": "\x1b[36m", "WARNING": "\x1b[33m", "ERROR": "\x1b[31m", "CRITICAL": "\x1b[31m"}
RESET = "\x1b[0m"

QUIET = ("uvicorn", "websockets", "psycopg", "psycopg.pool", "alembic", "sqlalchemy", "asyncio")
"""Libraries that speak only of warnings, at whatever level we log: uvicorn and websockets write each WebSocket's query
string, and so its key, at INFO and DEBUG."""


class TextFormatter(logging.Formatter):
    """``2023-07-12T14:30:45Z INFO message``; the level in colour if asked."""

    def __init__(self, *, colour: bool) -> None:
        super().__init__()
        self._colour = colour

    def format(self, record: logging.LogRecord) -> str:
        level = record.levelname
        if self._colour:
            level = f"{COLOURS.get(level, '')}{level}{RESET}"
        line = f"{_time(record)} {level} {record.getMessage()}"
        if record.exc_info:
            line = f"{line}\n{self.formatException(record.exc_info)}"
        return line


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
    """Sends every logger's lines to standard error in one form."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if as_json else TextFormatter(colour=sys.stderr.isatty()))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
