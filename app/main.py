"""Puts the parts together: the only place that knows them all, and the settings."""

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from zoneinfo import ZoneInfo

import pyarrow as pa
from fastapi import FastAPI
from prometheus_client import CollectorRegistry, disable_created_metrics
from starlette.types import ASGIApp

from app import __version__
from app.errors import ConfigurationError, DatabaseUnavailable, SensorFlowError
from app.history.query import DAY_US, Bucket
from app.ingest.batch import Reading
from app.ingest.buffer import Buffer
from app.ingest.decode.timestamps import TimeWindow
from app.ingest.pipeline import Pipeline, Publisher
from app.ingest.result import CommittedReading, receipt_encoder
from app.ingest.service import WriteService
from app.live.bus import Bus, LocalBus
from app.live.hub import Hub
from app.memory import keep_returning, share_one_arena
from app.metrics import Instruments, ProcessMetrics, ServerCollector
from app.settings import Keys, Settings
from app.store.aggregates import Aggregates
from app.store.capacity import fit
from app.store.chunks import Chunks
from app.store.columnstore import Columnstore
from app.store.database import Database, Edition
from app.store.durability import confirm
from app.store.history import History, latest_reading
from app.store.idempotency import IdempotencyRecords
from app.store.imports import ImportRecords
from app.store.latest import LatestReadings
from app.store.maintenance import Maintenance, Work
from app.store.observer import DatabaseObserver
from app.store.pruning import PRUNE_PAUSE_S, Pruning
from app.store.retention import Retention
from app.store.sensors import Sensors
from app.store.writer import PreparedFlush, Writer
from app.web import error_responses, methods
from app.web.auth import ApiKey, ApiKeys, Scope
from app.web.docs import docs_router
from app.web.live import live_router
from app.web.measure import RequestMetricsMiddleware
from app.web.names import WholePaths
from app.web.ops import Readiness, ops_router
from app.web.query import QueryService, query_router
from app.web.sensors import sensors_router
from app.web.write_bulk import BulkIngest, BulkLimits, bulk_router
from app.web.write_single import ReadingEndpoint, documented_route

logger = logging.getLogger(__name__)

DESCRIPTION = "Ingestion of sensor readings into TimescaleDB. 201 means committed."
PREPARE_INTERVAL_S = 1.0
READINESS_TIMEOUT_S = 2.0
CHECK_REST = 20.0
"""What looks for work that may not be there rests for so many times its duration: it takes a twentieth of a core."""
LOCK_SHARE = 0.25
"""Part of COMMIT_TIMEOUT_S for waiting for a lock. Readings that are not locked must still be stored in time."""
IMPORT_MAX_ROWS = 1_000_000
IMPORT_MAX_BYTES = 256 << 20
"""Bounds of an import's own buffer. A part of a file must fit, however the server's buffer is set."""
IMPORT_RECORDS_TIMEOUT_S = 60.0
REMEMBERING_HEAD_START_S = 1.0
REMEMBERING_TIMEOUT_S = 60.0


def _kept_us(settings: Settings) -> dict[Bucket, int]:
    days = {
        Bucket.RAW: settings.retention_raw_days,
        Bucket.MINUTE: settings.retention_1m_days,
        Bucket.HOUR: settings.retention_1h_days,
        Bucket.DAY: settings.retention_1d_days,
    }
    return {bucket: round(kept * DAY_US) for bucket, kept in days.items()}


def _share_of_key(settings: Settings) -> int:
    return round(settings.buffer_max_bytes * settings.buffer_key_share)


def horizon_us(settings: Settings) -> float:
    """Return the latest time that a reading may have now, microseconds since 1970 UTC."""
    minutes = settings.accept_future_minutes
    return now_us() + minutes * 60e6 if minutes else math.inf


def _database(settings: Settings, url: str) -> Database:
    password = settings.reader_password
    return Database(
        url,
        timezone=settings.timezone,
        offline_after_s=settings.offline_after_s,
        reader_password=password.get_secret_value() if password else None,
        reader_role=settings.reader_role,
    )


def _writer(settings: Settings, database: Database, latest: LatestReadings) -> Writer:
    return Writer(
        database,
        flush_timeout_s=settings.flush_timeout_s,
        lock_timeout_s=settings.commit_timeout_s * LOCK_SHARE,
        columnstore_rows_per_sensor=settings.columnstore_rows_per_sensor,
        latest=latest,
        now_us=now_us,
    )


def _pipeline(
    settings: Settings,
    writer: Writer,
    *,
    buffer: Buffer,
    encode: Callable[[Reading, int], CommittedReading],
    publisher: Publisher,
    on_flush: Callable[[int, float], None],
) -> Pipeline[PreparedFlush]:
    return Pipeline(
        buffer=buffer,
        store=writer,
        encode=encode,
        publisher=publisher,
        on_flush=on_flush,
        clock=time.monotonic,
        commit_timeout_s=settings.commit_timeout_s,
        flush_max_rows=settings.flush_max_rows,
    )


def maintenance_works(
    database: Database, edition: Edition, *, retention: Retention, pruning: Pruning, chunks: Chunks
) -> Sequence[Work]:
    """Return what the elected process does for a database, as its edition needs it."""
    works = [
        Work("retention", 3_600, lambda connection, _: retention.delete_old(connection, edition)),
        Work("pruning", 15, lambda connection, _: pruning.prune_rows(connection), first_after_s=PRUNE_PAUSE_S),
        Work("senders", 86_400, lambda connection, _: pruning.prune_senders(connection), first_after_s=PRUNE_PAUSE_S),
    ]
    if edition.kind == "community":  # the licence of the Apache edition allows neither
        works.append(Work("chunks", 60, lambda connection, _: chunks.make_ahead(connection)))
        works.append(Work("merging", 3_600, lambda connection, _: chunks.merge(connection), can_wait=True))
    if not edition.has_aggregates:
        return works
    aggregates, columnstore = Aggregates(database), Columnstore()
    refresh = Work("refresh", 30, aggregates.refresh, awaits_first=True)
    late = Work("late", 5, aggregates.refresh_late, can_wait=True, awaits_first=True)
    if not edition.continuous_aggregates:
        return [refresh, late, *works]
    return [
        # Days without aggregates are refreshed before a refresh of later days could hide them from queries.
        Work("check", 600, aggregates.check_days, can_wait=True, rest=CHECK_REST, is_awaited=True),
        refresh,
        late,
        Work("changes", 300, aggregates.refresh_changed, can_wait=True, rest=CHECK_REST, awaits_first=True),
        Work("columnstore", 15, lambda connection, _: columnstore.convert(connection), rest=CHECK_REST),
        *works,
    ]


class Server:
    """The components that live as long as the process. They prepare, work and drain together.

    Args:
        settings: the configuration; the database and the keys are given separately.
        database_url: where readings are stored.
        registry: where its metrics go.
        bus: the way to the other processes of the server, if there are any.
        announce: is told the database's edition once readings are accepted.
        fail: is told the error that ended the work: a ConfigurationError, or an unforeseen one.
    """

    def __init__(
        self,
        settings: Settings,
        database_url: str,
        *,
        registry: CollectorRegistry,
        bus: Bus,
        announce: Callable[[Edition], None],
        fail: Callable[[BaseException], None],
    ) -> None:
        self._announce = announce
        self._fail = fail
        self._drain_timeout_s = settings.drain_timeout_s
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.instruments = Instruments(registry)
        self.hub = Hub(
            bus=bus,
            mailbox_messages=settings.live_mailbox_messages,
            mailbox_bytes=settings.live_mailbox_bytes,
            horizon_us=partial(horizon_us, settings),
        )
        self._workers = settings.workers
        self._horizon_us = partial(horizon_us, settings)
        self._database = _database(settings, database_url)
        self._latest = LatestReadings(self._database, horizon_us=self._horizon_us)
        self._writer = _writer(settings, self._database, self._latest)
        self._retention = Retention(
            settings.retention_raw_days,
            settings.retention_1m_days,
            settings.retention_1h_days,
            settings.retention_1d_days,
        )
        self._chunks = Chunks(settings.retention_raw_days, settings.accept_future_minutes)
        self.history = History(self._database)
        self.sensors = Sensors(self._database, on_new_limits=self._writer.limits.check)
        self._pruning = Pruning(
            self._database,
            idempotency_window_hours=settings.idempotency_window_hours,
            accept_future_minutes=settings.accept_future_minutes,
        )
        self._maintenance = Maintenance(self._database, share=settings.maintenance_share)
        self._observer = DatabaseObserver(self._database, now_us=now_us)
        self._encode = receipt_encoder(ZoneInfo(settings.timezone))
        self.pipeline = _pipeline(
            settings,
            self._writer,
            buffer=Buffer(settings.buffer_max_rows, settings.buffer_max_bytes, _share_of_key(settings)),
            encode=self._encode,
            publisher=self.hub,
            on_flush=self.instruments.observe_flush,
        )
        self.service = WriteService(self.pipeline, IdempotencyRecords(self._database))
        registry.register(ProcessMetrics())
        registry.register(
            ServerCollector(
                buffer=self.pipeline.buffer,
                hub=self.hub,
                failed_flushes=lambda: self.pipeline.failed_flushes,
                clock=time.monotonic,
                pool_stats=self._database.pool_stats,
                database_statistics=lambda: self._observer.statistics,
                latest_age_s=lambda: self._latest.age_s,
                ready=lambda: self.pipeline.unavailable_reason is None,
            )
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Work until exit, then flush what is held within the drain timeout, and answer the rest."""
        work = asyncio.create_task(self._work())
        work.add_done_callback(self._report_death)
        try:
            yield
        finally:
            await self.pipeline.drain(self._drain_timeout_s)
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
            await self._latest.leave()
            await self._writer.limits.leave()
            await self._writer.close()
            await self._database.close()

    async def _work(self) -> None:
        edition = await self._prepare()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._latest.run())
            remembering = tasks.create_task(self._remember_latest())
            # On a small database it is loaded before the first subscriber comes; on a large one it is not waited for.
            await asyncio.wait([remembering], timeout=REMEMBERING_HEAD_START_S)
            tasks.create_task(self.pipeline.run())
            tasks.create_task(self._observer.run())
            tasks.create_task(self._writer.limits.run())
            works = maintenance_works(
                self._database, edition, retention=self._retention, pruning=self._pruning, chunks=self._chunks
            )
            tasks.create_task(self._maintenance.run(works))
            tasks.create_task(keep_returning(lambda: self.pipeline.buffer.size_bytes))
            await self.pipeline.opened.wait()
            logger.info("database available; accepting readings")
            self._announce(edition)

    async def _remember_latest(self) -> None:
        """Load the latest reading for the hub, before and after recovering what a killed process left behind."""
        recovered = self._latest.recovered
        with suppress(TimeoutError):
            async with asyncio.timeout(REMEMBERING_HEAD_START_S / 2):
                await recovered.wait()
        while True:
            is_all = recovered.is_set()
            try:
                async with self._database.connection(timeout_s=REMEMBERING_TIMEOUT_S) as connection:
                    latest = await latest_reading(connection, horizon_us=self._horizon_us())
                    await confirm(connection)
                if latest is not None:
                    self.hub.remember(self._encode(*latest))
            # The last two are for readings stored by SQL, in a year that Python does not support.
            except (DatabaseUnavailable, ValueError, OverflowError) as error:
                logger.warning("can't load the latest reading; subscribers start without it: %s", error)
            if is_all:
                return
            await recovered.wait()

    async def _prepare(self) -> Edition:
        """Migrate and probe the database. Retry until it is available."""
        while True:
            try:
                edition = await self._database.prepare()
                await fit(self._database, workers=self._workers)
            except DatabaseUnavailable as error:
                self.pipeline.record_unavailable(error)
                await asyncio.sleep(PREPARE_INTERVAL_S)
                continue
            for name in edition.weak_durability:
                logger.warning("%s is off in PostgreSQL: a crash there may lose readings answered 201", name)
            return edition

    def _report_death(self, work: asyncio.Task[None]) -> None:
        if not work.cancelled() and (error := work.exception()) is not None:
            if not isinstance(error, ConfigurationError):
                logger.critical("unhandled error in the server's work; stopping", exc_info=error)
            self._fail(error)

    async def readiness(self, *, detailed: bool) -> Readiness:
        """Check the pipeline, and that the database accepts writes. ``detailed`` quotes the database's own errors."""
        reason, public = self.pipeline.unavailable_reason, self.pipeline.public_reason
        if reason is None:
            try:
                await self._database.check_writable(timeout_s=READINESS_TIMEOUT_S)
            except DatabaseUnavailable as error:
                reason, public = str(error), error.public
        edition, statistics = self._database.edition, self._observer.statistics
        return Readiness(
            ready=reason is None,
            trouble=reason if detailed else public,
            edition=str(edition) if edition else None,
            durability_off=list(edition.weak_durability) if edition else [],
            maintenance_late=list(statistics.late_works) if detailed and statistics else [],
        )


@asynccontextmanager
async def importing(
    settings: Settings, database_url: str, key_name: str
) -> AsyncIterator[tuple[WriteService, ImportRecords]]:
    """Open the way into a database, without a server, and the records of earlier imports.

    At the end, what the buffer holds is flushed if the database is available, also after an error.

    Raises:
        DatabaseUnavailable: the database can't be reached.
    """
    database = _database(settings, database_url)
    latest = LatestReadings(database, horizon_us=partial(horizon_us, settings))
    writer = _writer(settings, database, latest)
    pipeline = _pipeline(
        settings,
        writer,
        buffer=Buffer(IMPORT_MAX_ROWS, IMPORT_MAX_BYTES, IMPORT_MAX_BYTES),
        encode=receipt_encoder(ZoneInfo(settings.timezone)),
        publisher=Hub(bus=LocalBus(0), mailbox_messages=0, mailbox_bytes=0),
        on_flush=lambda _rows, _duration_s: None,
    )
    await database.prepare()
    work = asyncio.create_task(pipeline.run())
    opened = asyncio.create_task(pipeline.opened.wait())
    try:
        await asyncio.wait([opened, work], return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            work.result()
        try:
            service = WriteService(pipeline, IdempotencyRecords(database))
            yield service, ImportRecords(database, key_name=key_name, timeout_s=IMPORT_RECORDS_TIMEOUT_S)
        finally:
            # To cancel a COPY under way would roll it back, and psycopg 3.3.9 can't: its C generators end in a
            # TypeError when it resumes them, which it logs.
            if pipeline.rejection_reason is None:
                await pipeline.drain(settings.drain_timeout_s)
    finally:
        for task in (opened, work):
            task.cancel()
        await asyncio.gather(opened, work, return_exceptions=True)
        await latest.leave()
        await writer.limits.leave()
        await writer.close()
        await database.close()


def now_us() -> int:
    """Return the time now, microseconds since 1970 UTC."""
    return time.time_ns() // 1_000


def create_app(
    settings: Settings,
    *,
    database_url: str,
    keys: Keys,
    registry: CollectorRegistry,
    bus: Bus,
    scrape: Callable[[], Awaitable[bytes]],
    announce: Callable[[Edition], None],
    fail: Callable[[BaseException], None],
) -> tuple[ASGIApp, ReadingEndpoint]:
    """Return the ASGI application, and the endpoint that bypasses it.

    ``scrape`` is that of ``ops_router``; the other arguments are those of Server.
    """
    # Arrow's own allocator keeps what threads have freed: 16 senders of 10,000 readings took 357 MiB at the peak, with
    # this 301, in the same time.
    pa.set_memory_pool(pa.system_memory_pool())
    share_one_arena()
    server = Server(settings, database_url, registry=registry, bus=bus, announce=announce, fail=fail)
    api_keys = ApiKeys(
        ApiKey("API_KEY", keys.api_key, frozenset(Scope)),
        ApiKey("API_KEY_WS", keys.api_key_ws, frozenset({Scope.LISTEN})),
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with server.running():
            yield

    app = FastAPI(
        title="SensorFlow",
        version=__version__,
        description=DESCRIPTION,
        lifespan=lifespan,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
    )
    app.add_exception_handler(SensorFlowError, error_responses.respond)
    app.add_exception_handler(405, methods.respond)
    observe = server.instruments.request_durations.observe
    window = TimeWindow.of(
        past_days=settings.accept_past_days,
        future_minutes=settings.accept_future_minutes,
        kept_days=settings.retention_raw_days,
    )
    endpoint = ReadingEndpoint(
        service=server.service,
        api_keys=api_keys,
        window=window,
        max_body_bytes=settings.max_body_bytes,
        now_us=now_us,
        observe=observe,
        clock=time.perf_counter,
    )
    app.router.routes.append(documented_route())
    app.include_router(
        bulk_router(
            BulkIngest(
                service=server.service,
                api_keys=api_keys,
                window=window,
                limits=BulkLimits(
                    body_bytes=settings.max_bulk_body_bytes,
                    inflated_bytes=settings.max_bulk_inflated_bytes,
                    rows=min(settings.flush_max_rows, settings.buffer_max_rows),
                    held_bytes=_share_of_key(settings),
                    days=settings.max_bulk_days,
                ),
                now_us=now_us,
            )
        )
    )
    app.include_router(
        query_router(QueryService(server.history, kept_us=_kept_us(settings), now_us=now_us), api_keys=api_keys)
    )
    app.include_router(sensors_router(server.sensors, api_keys=api_keys))
    app.include_router(live_router(hub=server.hub, api_keys=api_keys, send_timeout_s=settings.live_send_timeout_s))
    app.include_router(docs_router(title=app.title))
    app.include_router(ops_router(version=app.version, readiness=server.readiness, api_keys=api_keys, scrape=scrape))
    return RequestMetricsMiddleware(WholePaths(app), observe=observe, clock=time.perf_counter), endpoint
