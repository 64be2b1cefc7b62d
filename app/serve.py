"""The server as one process, or as several behind one port.

One process listens itself, and its hub's bus goes nowhere. Several are the workers of a parent, which is this process:
it opens the database and the port, and serves nothing itself; ``app.workers`` says how.
"""

import asyncio
import logging
import multiprocessing
import resource
import signal
import socket
import time
from collections.abc import Callable
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess

import uvicorn
from prometheus_client import CollectorRegistry, generate_latest
from starlette.types import ASGIApp
from uvicorn.loops.auto import auto_loop_factory

from app.draining import DrainingServer
from app.errors import ConfigurationError
from app.live.bus import LocalBus
from app.live.mailbox import Mailbox
from app.logs import configure_logging
from app.main import create_app, horizon_us
from app.settings import Keys, Settings
from app.web.connections import ConnectionLimit
from app.web.protocol import HttpProtocol
from app.web.slices import Slices
from app.web.websocket import MAX_MESSAGE_BYTES, WebSocketProtocol
from app.web.write_single import ReadingEndpoint
from app.workers import metric_families
from app.workers.channel import ChannelStats
from app.workers.parent_link import ParentLink
from app.workers.supervisor import Supervisor
from app.workers.worker import WorkerServer

logger = logging.getLogger(__name__)

OTHER_FILES = 128
"""File descriptors that are not for connections: the database's, the log's, Python's own."""
MOST_FILES = 1_048_576
"""Linux's default maximum. A higher limit, or none, is of no use."""
HUNG_DATABASE_S = 15.0
"""Time that a hanging database may add to a worker's end, beyond twice the drain timeout."""


def serve(
    settings: Settings, *, database_url: str, keys: Keys, listener: socket.socket, announce: Callable[[str], None]
) -> None:
    """Serve on a listening socket until a signal. ``announce`` is told the edition once readings are accepted.

    Raises:
        ConfigurationError: the settings or the database don't allow it.
        SystemExit, KeyboardInterrupt: the end, by SIGTERM (status 0), an error that is in the log (1), or SIGINT.
    """
    _raise_file_limit()
    if settings.workers == 1:
        _serve_alone(settings, database_url, keys, listener, announce)
    else:
        _serve_with_workers(settings, database_url, keys, listener, announce)


def _serve_alone(
    settings: Settings, database_url: str, keys: Keys, listener: socket.socket, announce: Callable[[str], None]
) -> None:
    registry = CollectorRegistry()

    async def scrape() -> bytes:
        return generate_latest(registry)

    app, endpoint = create_app(
        settings,
        database_url=database_url,
        keys=keys,
        registry=registry,
        bus=LocalBus(settings.max_ws_connections_per_key),
        scrape=scrape,
        announce=lambda edition: announce(str(edition)),
        fail=lambda error: server.fail(error),  # noqa: PLW0108  # the server is made of what this returns
    )
    server = DrainingServer(_uvicorn_config(app, endpoint, settings))
    server.run(sockets=[listener])
    if isinstance(server.failure, ConfigurationError):
        raise server.failure
    if server.failure is not None:
        raise SystemExit(1)


def _serve_with_workers(
    settings: Settings, database_url: str, keys: Keys, listener: socket.socket, announce: Callable[[str], None]
) -> None:
    # They go to its process through a pipe, so that no list of processes shows them.
    of_worker = (_share_of(settings), database_url, keys)
    context = multiprocessing.get_context("spawn")
    # Starting it unblocks SIGINT, and the parent starts each worker with that signal blocked.
    resource_tracker.ensure_running()

    def spawn(number: int, channel: socket.socket, connections: socket.socket) -> BaseProcess:
        process = context.Process(target=_work, args=(*of_worker, channel, connections), name=f"worker {number}")
        process.start()
        return process

    parent = Supervisor(
        workers=settings.workers,
        spawn=spawn,
        listener=listener,
        max_subscribers_per_key=settings.max_ws_connections_per_key,
        new_mailbox=partial(Mailbox, settings.live_mailbox_messages, settings.live_mailbox_bytes),
        stop_timeout_s=2 * settings.drain_timeout_s + HUNG_DATABASE_S,
        horizon_us=partial(horizon_us, settings),
        announce=announce,
    )
    before = signal.getsignal(signal.SIGTERM)
    try:
        with asyncio.Runner(loop_factory=auto_loop_factory()) as runner:
            ended_by = runner.run(parent.run())
    finally:
        signal.signal(signal.SIGTERM, before)
    if ended_by == signal.SIGINT:
        raise KeyboardInterrupt


def _work(
    settings: Settings, database_url: str, keys: Keys, channel: socket.socket, connections: socket.socket
) -> None:
    """Run a worker, from the start of its process to the end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    configure_logging(level=settings.log_level, as_json=settings.log_format == "json")
    registry, stats = CollectorRegistry(), ChannelStats()
    registry.register(metric_families.ChannelCollector(stats))
    parent_link = ParentLink(
        channel,
        families=lambda: metric_families.encode(metric_families.families_of(registry.collect())),
        max_subscribers_per_key=settings.max_ws_connections_per_key,
        mailbox=Mailbox(settings.live_mailbox_messages, settings.live_mailbox_bytes),
        stats=stats,
    )
    app, endpoint = create_app(
        settings,
        database_url=database_url,
        keys=keys,
        registry=registry,
        bus=parent_link,
        scrape=parent_link.scrape,
        announce=lambda edition: parent_link.ready(str(edition)),
        fail=lambda error: server.fail(error),  # noqa: PLW0108  # the server is made of what this returns
    )
    server = WorkerServer(_uvicorn_config(app, endpoint, settings), parent_link=parent_link, connections=connections)
    server.run()
    if server.failure is not None:
        raise SystemExit(1)


def _share_of(settings: Settings) -> Settings:
    """Return one worker's settings, with its share of the bounds on the server's memory."""
    bounds = ("buffer_max_rows", "buffer_max_bytes")
    return settings.model_copy(update={name: max(1, getattr(settings, name) // settings.workers) for name in bounds})


def _raise_file_limit() -> None:
    """Raise the limit of open files to what this account may have. Shells and systemd set it to 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    target = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft == resource.RLIM_INFINITY or soft >= target:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (target, hard))
    except (OSError, ValueError) as error:
        logger.warning("can't raise the limit of open files (%d): %s", soft, error)


def _max_connections(settings: Settings) -> int:
    """Return how many connections a process may have: as many as were set, and fewer than it may open files."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = MOST_FILES if soft == resource.RLIM_INFINITY else soft
    possible = max(files - OTHER_FILES, files // 2)
    if settings.max_connections is None:
        return possible
    if settings.max_connections > possible:
        logger.warning(
            "MAX_CONNECTIONS is %d, but only %d are used, because a process may open %d files: raise ulimit -n",
            settings.max_connections,
            possible,
            files,
        )
    return min(possible, settings.max_connections)


def _uvicorn_config(app: ASGIApp, endpoint: ReadingEndpoint, settings: Settings) -> uvicorn.Config:
    slices, limit = Slices(), ConnectionLimit(_max_connections(settings), clock=time.monotonic)
    return uvicorn.Config(
        app,
        http=partial(HttpProtocol, endpoint=endpoint, slices=slices, limit=limit),  # type: ignore[arg-type]
        ws=partial(WebSocketProtocol, slices=slices),  # type: ignore[arg-type]  # both are only called
        ws_max_size=MAX_MESSAGE_BYTES,
        ws_per_message_deflate=False,
        proxy_headers=bool(settings.forwarded_allow_ips),
        forwarded_allow_ips=settings.forwarded_allow_ips,
        server_header=False,
        access_log=False,
        log_config=None,
        timeout_graceful_shutdown=max(1, round(settings.drain_timeout_s)),
    )
