"""A buffer in which each counter has a value of its own, and the metrics made of it."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from app.errors import DatabaseUnavailable, RejectedByDatabase
from app.ingest.buffer import Buffer, Submission
from app.ingest.request import WriteRequest
from app.live.bus import LocalBus
from app.live.hub import Hub
from app.metrics import Instruments, ServerCollector
from app.store.observer import DatabaseStatistics, WorkStatistics
from tests.support.samples import at_once, batch_of, reading, receipt

NOW = 100.0


def buffer_with_everything() -> Buffer:
    """Seventeen rows: 7 committed, 2 rejected, 3 given back, 2 in flight, 3 waiting; and room reserved."""
    buffer = Buffer(max_rows=20, max_bytes=1 << 20, max_bytes_per_key=1 << 20)
    for place, rows in enumerate([5, 1, 2, 1, 2, 1, 2, 3]):
        deadline = 10.0 if place in {4, 5} else 1_000.0
        content = batch_of([reading()] * rows) if rows > 1 else reading()
        buffer.add(
            Submission(WriteRequest(content), rows, content.size_bytes, 90.0 + place, deadline, lambda _: None),
            retry_after_s=lambda: 1,
        )
    flight = buffer.begin_flush(9)
    buffer.reject(flight[1], RejectedByDatabase("no"))
    buffer.commit(refused_rows=1)
    buffer.expire(NOW, lambda: DatabaseUnavailable("away"), lambda: DatabaseUnavailable("away"))
    buffer.begin_flush(2)
    buffer.reserve("API_KEY", 1_000, retry_after_s=lambda: 1)
    return buffer


def registry(
    buffer: Buffer,
    *,
    statistics: Callable[[], DatabaseStatistics | None] = lambda: DatabaseStatistics(
        size_bytes=7,
        connections=3,
        stale_ranges=2,
        late_lag_s=40.5,
        aggregate_lag_s=61.5,
        clock_skew_s=-2.5,
        works=[WorkStatistics("refresh", 1, 2.5, 1_000.0), WorkStatistics("senders", 1, 0.5, None)],
        late_works=["senders has not succeeded for 90 minutes"],
    ),
) -> CollectorRegistry:
    hub = Hub(bus=LocalBus(1), mailbox_messages=2, mailbox_bytes=1_000)
    at_once(hub.subscribe("API_KEY", lambda: None))
    hub.publish([receipt(1), receipt(2), receipt(3)])
    hub.publish([receipt(4, sensor="b"), receipt(5, sensor="c")])
    registry = CollectorRegistry()
    instruments = Instruments(registry)
    instruments.observe_flush(4, 0.25)
    instruments.request_durations.observe("/api/temperature_reading", "POST", 201, 0.003)
    collector = ServerCollector(
        buffer=buffer,
        hub=hub,
        failed_flushes=lambda: 6,
        clock=lambda: NOW,
        pool_stats=lambda: {"pool_size": 4, "pool_available": 3},
        database_statistics=statistics,
        latest_age_s=lambda: 1.5,
        ready=lambda: True,
    )
    registry.register(collector)
    return registry


def scrape(registry: CollectorRegistry) -> dict[str, float]:
    """Return every sample without labels, by name."""
    families = text_string_to_metric_families(generate_latest(registry).decode())
    return {sample.name: sample.value for family in families for sample in family.samples if not sample.labels}
