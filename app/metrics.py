"""The metrics that Prometheus reads. Instruments on a registry that is handed in; nothing is created at import.

What the parts count anyway is read from them at each scrape, in one go on the event loop, so that accepted = committed
+ rejected + given back + held is true of every scrape. Labels never hold a sensor, a raw path or a key.

Where several processes are one server, the sum of true sums is true: counters and histograms are added up. What becomes
of a gauge stands beside it.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Literal

from prometheus_client import CollectorRegistry, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from app.ingest.buffer import Buffer
from app.live.hub import Hub
from app.store.observer import DatabaseStatistics, WorkStatistics

LATENCY_BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
FLUSH_ROWS_BUCKETS = (1, 10, 100, 1_000, 10_000, 100_000)

READINGS_GIVEN_BACK = "sensorflow_readings_given_back"
BUFFER_ROWS = "sensorflow_buffer_rows"

Across = Literal["sum", "max", "min"]
"""How the values that several processes have become the server's."""
ACROSS: dict[Across, Callable[[tuple[float, float]], float]] = {"sum": sum, "max": max, "min": min}


@dataclass(slots=True)
class Durations:
    """The number of durations in each bucket, the last without a bound, and their sum."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(LATENCY_BUCKETS_S) + 1))
    sum_s: float = 0.0


class RequestDurations(Collector):
    """A histogram of HTTP requests by route, method and status.

    prometheus_client's own takes locks and walks through its buckets: 1.0 µs a request, and this 0.3.
    """

    def __init__(self) -> None:
        self._durations: defaultdict[tuple[str, str, int], Durations] = defaultdict(Durations)

    def observe(self, route: str, method: str, status: int, duration_s: float) -> None:
        """Count one answered request. On the event loop only."""
        durations = self._durations[route, method, status]
        durations.counts[bisect_left(LATENCY_BUCKETS_S, duration_s)] += 1
        durations.sum_s += duration_s

    def collect(self) -> Iterable[Metric]:
        family = HistogramMetricFamily(
            "sensorflow_http_request_duration_seconds",
            "Time from a request's arrival to the end of its answer.",
            labels=["route", "method", "status"],
        )
        bounds = [*map(floatToGoString, LATENCY_BUCKETS_S), "+Inf"]
        for (route, method, status), durations in self._durations.items():
            buckets = list(zip(bounds, accumulate(durations.counts), strict=True))
            family.add_metric([route, method, str(status)], buckets, durations.sum_s)
        yield family


class Instruments:
    """The metrics that are observed as something happens."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.request_durations = RequestDurations()
        registry.register(self.request_durations)
        self._flush_rows = Histogram(
            "sensorflow_flush_rows", "Rows in a committed flush.", buckets=FLUSH_ROWS_BUCKETS, registry=registry
        )
        self._flush_duration = Histogram(
            "sensorflow_flush_duration_seconds",
            "Time of a flush, from taking its rows to its commit.",
            buckets=LATENCY_BUCKETS_S,
            registry=registry,
        )

    def observe_flush(self, rows: int, duration_s: float) -> None:
        """Count one committed flush."""
        self._flush_rows.observe(rows)
        self._flush_duration.observe(duration_s)


class ServerCollector(Collector):
    """Read the parts' own counts at each scrape.

    Args:
        buffer, hub: the parts.
        failed_flushes: how many there have been since the start.
        clock: seconds, the clock of the buffer.
        pool_stats: the connection pool's counters, by psycopg_pool's names.
        database_statistics: the last look at the database; None while it is unavailable.
        latest_age_s: how long the oldest reading has waited that is not yet among the latest.
        ready: whether readings are taken.
    """

    def __init__(
        self,
        *,
        buffer: Buffer,
        hub: Hub,
        failed_flushes: Callable[[], int],
        clock: Callable[[], float],
        pool_stats: Callable[[], dict[str, int]],
        database_statistics: Callable[[], DatabaseStatistics | None],
        latest_age_s: Callable[[], float],
        ready: Callable[[], bool],
    ) -> None:
        self._buffer = buffer
        self._hub = hub
        self._failed_flushes = failed_flushes
        self._clock = clock
        self._pool_stats = pool_stats
        self._database_statistics = database_statistics
        self._latest_age_s = latest_age_s
        self._ready = ready

    def collect(self) -> Iterable[Metric]:
        stats = self._buffer.stats
        for name, rows, help_ in (
            ("sensorflow_readings_accepted", stats.accepted, "Readings taken into the buffer."),
            ("sensorflow_readings_committed", stats.committed, "Readings committed."),
            (
                "sensorflow_readings_rejected",
                stats.rejected,
                "Readings that PostgreSQL refused, or that came twice under one Idempotency-Key.",
            ),
            (
                READINGS_GIVEN_BACK,
                stats.given_back,
                "Readings that had been accepted, and then were answered 503 or held by a worker that died.",
            ),
        ):
            yield CounterMetricFamily(name, help_, value=rows)
        yield CounterMetricFamily(
            "sensorflow_flush_failures",
            "Flushes of which nothing was committed; their readings are tried again.",
            value=self._failed_flushes(),
        )
        yield Gauge(BUFFER_ROWS, "Readings held, in flight included.", self._buffer.rows, "sum")
        yield Gauge(
            "sensorflow_buffer_bytes",
            "Bytes held, in flight and on their way in included.",
            self._buffer.size_bytes,
            "sum",
        )
        yield Gauge("sensorflow_buffer_max_rows", "Readings that may be held.", self._buffer.max_rows, "sum")
        yield Gauge("sensorflow_buffer_max_bytes", "Bytes that may be held.", self._buffer.max_bytes, "sum")
        yield Gauge(
            "sensorflow_buffer_oldest_age_seconds",
            "How long the oldest held reading has waited.",
            self._buffer.oldest_age_s(self._clock()),
            "max",
        )
        yield Gauge("sensorflow_websocket_connections", "Subscribers connected.", self._hub.subscribers, "sum")
        live = self._hub.stats
        for name, count, help_ in (
            ("messages", live.published, "Messages put into subscribers' mailboxes."),
            ("messages_conflated", live.conflated, "Messages left out for a newer one of the same sensor."),
            ("dropped", live.dropped, "Subscribers disconnected because they read too slowly."),
        ):
            yield CounterMetricFamily(f"sensorflow_websocket_{name}", help_, value=count)
        yield Gauge("sensorflow_ready", "1 while readings are taken.", self._ready(), "min")
        pool = self._pool_stats()
        yield Gauge("sensorflow_pool_connections", "Pooled connections open.", pool.get("pool_size", 0), "sum")
        yield Gauge("sensorflow_pool_available", "Pooled connections idle.", pool.get("pool_available", 0), "sum")
        yield Gauge(
            "sensorflow_pool_waiting", "Requests waiting for a connection.", pool.get("requests_waiting", 0), "sum"
        )
        yield Gauge(
            "sensorflow_latest_readings_age_seconds",
            "How long the oldest committed reading has waited to be taken into latest_readings.",
            self._latest_age_s(),
            "max",
        )
        statistics = self._database_statistics()
        up = statistics is not None
        yield Gauge("sensorflow_database_up", "1 if the database answered when last asked.", up, "min")
        if statistics is not None:
            yield Gauge("sensorflow_database_size_bytes", "Size of the database on disk.", statistics.size_bytes, "max")
            yield Gauge(
                "sensorflow_database_connections",
                "Connections to the database, of all users.",
                statistics.connections,
                "max",
            )
            yield Gauge(
                "sensorflow_stale_ranges",
                "Time ranges of late readings of which the aggregates are still to be refreshed.",
                statistics.stale_ranges,
                "max",
            )
            yield Gauge(
                "sensorflow_late_readings_lag_seconds",
                "How long the oldest of these time ranges has waited.",
                statistics.late_lag_s,
                "max",
            )
            yield Gauge(
                "sensorflow_aggregate_lag_seconds",
                "How far the aggregates are materialized behind now. What is younger, queries compute.",
                statistics.aggregate_lag_s,
                "max",
            )
            yield Gauge(
                "sensorflow_database_clock_skew_seconds",
                "How far the database's clock is ahead of the server's; negative: behind.",
                statistics.clock_skew_s,
                "max",
            )
            yield from of_works(statistics.works)


class ProcessMetrics(Collector):
    """Processor time, memory and descriptors of this process, by the usual names. Nothing where there is no /proc."""

    def __init__(self) -> None:
        self._process = ProcessCollector(registry=None)

    def collect(self) -> Iterable[Metric]:
        # A sum of moments is none.
        return [metric for metric in self._process.collect() if metric.name != "process_start_time_seconds"]


class Gauge(GaugeMetricFamily):
    """A gauge of one value, and what becomes of it where several processes are one server."""

    def __init__(self, name: str, help_: str, value: float, across: Across) -> None:
        super().__init__(name, help_, value=value)
        self.across = across


class WorkGauge(Gauge):
    """A gauge with a value for each kind of the maintenance's work, the same in every process."""

    def __init__(self, name: str, help_: str, values: Mapping[str, float]) -> None:
        GaugeMetricFamily.__init__(self, f"sensorflow_maintenance_{name}", help_, labels=["work"])
        self.across = "max"
        for work, value in values.items():
            self.add_metric([work], value)


def of_works(works: Sequence[WorkStatistics]) -> Iterator[Gauge]:
    """Yield what the database has recorded of its maintenance, by any server."""
    yield WorkGauge("failures", "Runs that an error has ended, ever.", {work.name: work.failures for work in works})
    yield WorkGauge(
        "busy_seconds", "How long all runs together have taken.", {work.name: work.busy_s for work in works}
    )
    yield WorkGauge(
        "last_success_timestamp_seconds",
        "When a run last succeeded, by the database's clock.",
        {work.name: work.last_succeeded_at for work in works if work.last_succeeded_at is not None},
    )


def rule_of(metric: Metric) -> Across:
    """Return the rule by which a metric's values in several processes become the server's."""
    return metric.across if isinstance(metric, Gauge) else "sum"
