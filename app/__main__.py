"""The command line: ``python -m app serve``, ``migrate``, ``import``, ``refresh`` and ``move``."""

import sys

if sys.platform == "win32":  # before the imports below, of which fcntl, pwd and resource exist on Unix only
    sys.exit("sensorflow: Windows is not supported. Run SensorFlow in WSL 2 or with Docker: README.md says how.")

import argparse
import asyncio
import json
import logging
import math
import os
import secrets
import shlex
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from app import __version__
from app.addresses import urls_of
from app.errors import ConfigurationError, SensorFlowError
from app.imports.command import add_arguments, import_files
from app.ingest.decode.reading import EXAMPLE_BODY
from app.logs import configure_logging
from app.serve import serve
from app.settings import Keys, Settings, load_settings, strong_keys, unknown_settings
from app.store.adoption import ZONE, adopt
from app.store.database import KEPT_ORIGINAL, Database, checked_url, migrate
from app.store.embedded import embedded_database
from app.store.move import move
from app.store.refresh import refresh

logger = logging.getLogger("app")

KEY_FILES = ("api_key", "api_key_ws")
"""Files in DATA_DIR with the keys that were generated for an embedded database."""
INCOMPLETE_STATUS = 3
"""Exit status of an adoption that left rows out."""
TCP_USER_TIMEOUT_MS = 5_000
SEND_BUFFER_BYTES = 65_536
LISTEN_BACKLOG = 2_048


def main(arguments: list[str] | None = None) -> int:
    """Run one command, and return the process's exit status."""
    parser = argparse.ArgumentParser(prog="python -m app", description="SensorFlow: ingestion of sensor readings.")
    parser.add_argument("--version", action="version", version=f"SensorFlow {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("serve", help="start the server; without DATABASE_URL, with an embedded PostgreSQL")
    migration = commands.add_parser("migrate", help="bring the database's schema up to date, without serving")
    migration.add_argument(
        "--down", metavar="REVISION", help="go back to this revision instead; `base` removes everything"
    )
    migration.add_argument(
        "--adopt",
        nargs="?",
        const=ZONE,
        metavar="ZONE",
        help=f"take over the readings of the original SensorFlow; ZONE is the time zone of its times (default: {ZONE})",
    )
    add_arguments(
        commands.add_parser("import", help="store the readings of CSV, JSON, NDJSON, Arrow and Parquet files")
    )
    refreshing = commands.add_parser("refresh", help="recompute aggregates and latest readings")
    refreshing.add_argument(
        "--from",
        dest="start",
        required=True,
        type=_moment,
        metavar="TIME",
        help="start of the span, ISO 8601; without an offset: UTC",
    )
    refreshing.add_argument(
        "--to", dest="end", type=_moment, metavar="TIME", help="end of the span, ISO 8601; default: now"
    )
    moving = commands.add_parser("move", help="copy everything from a database into the empty one at DATABASE_URL")
    moving.add_argument(
        "--from", dest="source", metavar="URL", help="the database to copy from; default: the embedded one in DATA_DIR"
    )
    chosen = parser.parse_args(arguments)
    # Both end in an exception, so that every `with` on the way out does its work: the embedded database is stopped.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        settings = load_settings()
        configure_logging(level=settings.log_level, as_json=settings.log_format == "json")
        for sentence in unknown_settings(os.environ):
            logger.warning(sentence)
        return _run(settings, chosen)
    except SensorFlowError as error:
        print(f"sensorflow: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        if chosen.command == "import":
            again = "Run the same import again, without --store-again, to continue: stored readings are recognised."
            print(f"sensorflow: stopped. {'Nothing is stored.' if chosen.dry_run else again}", file=sys.stderr)
        return 130


def _run(settings: Settings, chosen: argparse.Namespace) -> int:
    """Run the chosen command. Return the exit status."""
    is_import = chosen.command == "import"
    if is_import:
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # an interrupted import has not succeeded
        if chosen.dry_run:
            return import_files(settings, chosen, None)
    if chosen.command == "move":
        _move(settings, chosen.source)
        return 0
    with _database(settings, may_join=chosen.command in {"import", "refresh"}) as url:
        if is_import:
            return import_files(settings, chosen, url)
        if chosen.command == "serve":
            _serve(settings, url)
        elif chosen.command == "refresh":
            now = datetime.now(UTC)
            _refresh(settings, url, chosen.start, min(chosen.end or now, now))
        elif chosen.adopt is not None:
            return _adopt(url, chosen.adopt)
        else:
            migrate(url, chosen.down or "head", down=chosen.down is not None)
    return 0


def _adopt(url: str, zone: str) -> int:
    """Take over the original's readings and print the result. Return the exit status."""
    adoption = adopt(url, zone)
    span = (
        f", from {adoption.first:%Y-%m-%d %H:%M:%S} to {adoption.last:%Y-%m-%d %H:%M:%S} UTC" if adoption.rows else ""
    )
    print(
        f"{adoption.rows:,} readings taken over{span}; their times were read as those of {zone}. "
        f"The original table is kept as {KEPT_ORIGINAL}."
    )
    if not adoption.left_out:
        return 0
    print(
        f"{adoption.left_out:,} rows left out, because they have no valid time, sensor or finite value. "
        f"The first have these ids: {', '.join(map(str, adoption.ids_left_out))}.",
        file=sys.stderr,
    )
    return INCOMPLETE_STATUS


@contextmanager
def _database(settings: Settings, *, may_join: bool = False) -> Iterator[str]:
    """Yield the connection string that is set, or that of an embedded database, which is stopped at the end.

    With ``may_join``, an embedded database that another process runs is used too.
    """
    if settings.database_url is not None:
        yield checked_url(settings.database_url)
    else:
        with embedded_database(settings.data_dir, workers=settings.workers, may_join=may_join) as url:
            yield url


def _moment(argument: str) -> datetime:
    """Return a time of the command line. Without an offset it is UTC."""
    try:
        moment = datetime.fromisoformat(argument)
    except ValueError:
        message = f"{argument!r} should be ISO 8601, like 2023-07-12 or 2023-07-12T14:30:00Z"
        raise argparse.ArgumentTypeError(message) from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _refresh(settings: Settings, database_url: str, start: datetime, end: datetime) -> None:
    database = Database(database_url, timezone=settings.timezone, offline_after_s=settings.offline_after_s)
    minutes = settings.accept_future_minutes
    horizon_us = time.time() * 1e6 + minutes * 60e6 if minutes else math.inf
    say = partial(print, flush=True)
    asyncio.run(refresh(database, start=start, end=end, horizon_us=horizon_us, say=say))


def _move(settings: Settings, source: str | None) -> None:
    if settings.database_url is None:
        raise ConfigurationError("Set DATABASE_URL to the database to move to.")
    target_url = checked_url(settings.database_url)
    with nullcontext(checked_url(source)) if source else embedded_database(settings.data_dir) as source_url:
        move(source_url, target_url, say=partial(print, flush=True))
    print("Everything is moved. Start the server with this DATABASE_URL; it computes the aggregates.")


def _keys(settings: Settings) -> Keys:
    """Return the keys that are set. For an embedded database, generate and keep those that are missing."""
    keys = [key.get_secret_value() if key else "" for key in (settings.api_key, settings.api_key_ws)]
    if settings.database_url is None:
        keys = [key or _kept_key(settings.data_dir / name) for key, name in zip(keys, KEY_FILES, strict=True)]
    return strong_keys(*keys)


def _kept_key(path: Path) -> str:
    """Return the key in a file of mode 0600. Generate it if there is none."""
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        key = secrets.token_urlsafe(24)
        draft = path.with_suffix(".new")
        try:
            draft.touch(mode=0o600)
            draft.write_text(key + "\n")
            draft.rename(path)  # whole, or not at all
        except OSError as error:
            raise ConfigurationError(f"Can't write {path}: {error.strerror}. Set API_KEY and API_KEY_WS.") from error
        return key


def _serve(settings: Settings, database_url: str) -> None:
    keys = _keys(settings)
    listener = _listen(settings.host, settings.port)
    host, port = listener.getsockname()[:2]
    logger.info("binding http://%s:%d", f"[{host}]" if ":" in host else host, port)

    def announce(edition: str) -> None:
        urls = urls_of(host, port)
        logger.info("listening on %s, storing in %s", " and ".join(urls), edition)
        if settings.log_format == "text":
            print(_welcome(urls, edition, settings), flush=True)

    serve(settings, database_url=database_url, keys=keys, listener=listener, announce=announce)


def _listen(host: str, port: int) -> socket.socket:
    """Return a listening socket whose connections don't outlive a peer that stops reading.

    Linux hands both options down to accepted connections. Without them a WebSocket client that stops reading keeps
    megabytes in the kernel, without a limit in time, and a stopping server waits for it.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, TCP_USER_TIMEOUT_MS)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        listener.bind(address)
        listener.listen(LISTEN_BACKLOG)
    except OSError as error:
        raise ConfigurationError(f"Can't listen on {host}:{port}: {error.strerror}. Set HOST or PORT.") from error
    return listener


def _welcome(urls: list[str], edition: str, settings: Settings) -> str:
    """Return a greeting with a command to paste. The shell reads the key from its file, so that no log holds it."""
    key_file = (settings.data_dir / KEY_FILES[0]).resolve()
    is_kept = settings.database_url is None and settings.api_key is None
    key = f"$(cat {shlex.quote(str(key_file))})" if is_kept else "$API_KEY"
    url = urls[0]
    return f"""
SensorFlow listens on {" and ".join(urls)}   (docs: {url}/docs)
Readings are stored in {edition}.
Send one:

  curl -i {url}/api/temperature_reading -H "X-API-Key: {key}" \\
    -d '{json.dumps(EXAMPLE_BODY)}'
"""


if __name__ == "__main__":
    sys.exit(main())
