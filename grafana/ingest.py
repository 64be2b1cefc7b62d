"""Ingest and server: what Prometheus scrapes from ``/metrics``."""

from grafana.panels import (
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    RED,
    YELLOW,
    Json,
    dashboard,
    fixed,
    override,
    promql,
    promqls,
    row,
    stat,
    thresholds,
    timeseries,
    words,
)


def rate(counter: str) -> str:
    """How fast a counter of the server grows, per second."""
    return f"sum(rate(sensorflow_{counter}_total[$__rate_interval]))"


def quantiles(histogram: str, *, by: str = "") -> dict[str, str]:
    """The quantiles of one of the server's histograms, by the names of their series."""
    buckets = f"sum by (le{by}) (rate(sensorflow_{histogram}_bucket[$__rate_interval]))"
    return {name: f"histogram_quantile({q}, {buckets})" for name, q in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))}


def state(title: str, description: str, gauge: str, *, good: str, bad: str) -> Json:
    """A gauge that is 1 when all is well, in words."""
    return stat(
        title,
        f"{description} Unknown: Prometheus gets no answer from the server.",
        promql(f"min({gauge}) or vector(-1)"),
        size=(4, 4),
        defaults={"mappings": words({"1": (good, GREEN), "0": (bad, RED), "-1": ("unknown", GREY)})},
    )


HEALTH = [
    state(
        "Server",
        "Whether readings are taken: with several workers, by all of them.",
        "sensorflow_ready",
        good="ready",
        bad="not ready",
    ),
    state(
        "Database",
        "Whether the database answered when the server last asked, every 15 s.",
        "sensorflow_database_up",
        good="up",
        bad="away",
    ),
    stat(
        "Readings committed",
        "Readings committed per second.",
        promql(rate("readings_committed")),
        size=(4, 4),
        unit="cps",
    ),
    stat(
        "Share of errors",
        "Requests answered 5xx, of all requests.",
        promql("""
            (sum(rate(sensorflow_http_request_duration_seconds_count{status=~"5.."}[$__rate_interval])) or vector(0))
            / (sum(rate(sensorflow_http_request_duration_seconds_count[$__rate_interval])) > 0)
        """),
        size=(4, 4),
        unit="percentunit",
        defaults={
            "decimals": 2,
            "noValue": "no requests",
            "thresholds": thresholds(GREEN, (0.001, ORANGE), (0.05, RED)),
        },
    ),
    stat(
        "Buffer filled",
        "Rows and bytes held, of the most that may be. When either is full senders are answered 503.",
        *promqls(
            rows="sum(sensorflow_buffer_rows) / sum(sensorflow_buffer_max_rows)",
            bytes="sum(sensorflow_buffer_bytes) / sum(sensorflow_buffer_max_bytes)",
        ),
        size=(4, 4),
        unit="percentunit",
        defaults={"decimals": 1, "thresholds": thresholds(GREEN, (0.5, ORANGE), (0.8, RED))},
    ),
    stat(
        "Subscribers",
        "WebSocket connections.",
        promql("sum(sensorflow_websocket_connections)"),
        size=(4, 4),
        unit="short",
    ),
]

READINGS = [
    timeseries(
        "Readings by what became of them",
        """Every reading that is taken into the buffer ends as one of: committed; rejected (PostgreSQL refused it, or it
        came twice under one Idempotency-Key); given back (503, send again).""",
        promqls(
            accepted=rate("readings_accepted"),
            committed=rate("readings_committed"),
            rejected=rate("readings_rejected"),
            given_back=rate("readings_given_back"),
        ),
        unit="cps",
        overrides=[
            override("committed", color=fixed(GREEN)),
            override("rejected", color=fixed(ORANGE)),
            override("given back", color=fixed(RED)),
        ],
    ),
    timeseries(
        "Aggregate lag",
        "How long ago the aggregates were last brought up to date. What came late since then may be missing in them.",
        promqls(lag="max(sensorflow_aggregate_lag_seconds)"),
        size=(6, 8),
        unit="s",
    ),
    timeseries(
        "Late ranges to refresh",
        "Ranges of time of which late readings came, and whose aggregates wait to be refreshed.",
        promqls(ranges="max(sensorflow_stale_ranges)"),
        size=(6, 8),
        unit="short",
    ),
]

REQUESTS = [
    timeseries(
        "Requests by route",
        "Requests per second.",
        [
            promql(
                "sum by (method, route) (rate(sensorflow_http_request_duration_seconds_count[$__rate_interval]))",
                "{{method}} {{route}}",
            )
        ],
        unit="reqps",
    ),
    timeseries(
        "Requests by status",
        "Requests per second by the status of their answer. 429 and 503 say: not stored, send again.",
        [
            promql(
                "sum by (status) (rate(sensorflow_http_request_duration_seconds_count[$__rate_interval]))", "{{status}}"
            )
        ],
        unit="reqps",
        custom={"stacking": {"mode": "normal", "group": "A"}, "fillOpacity": 30},
    ),
    timeseries(
        "Latency",
        "Time from a request's arrival to the end of its answer, over all routes: it includes the commit.",
        promqls(**quantiles("http_request_duration_seconds")),
        unit="s",
        overrides=[
            override("p50", color=fixed(GREEN)),
            override("p95", color=fixed(YELLOW)),
            override("p99", color=fixed(RED)),
        ],
    ),
    timeseries(
        "Latency by route (p95)",
        "The time within which 95 % of the requests to each route were answered.",
        [promql(quantiles("http_request_duration_seconds", by=", method, route")["p95"], "{{method}} {{route}}")],
        unit="s",
    ),
    timeseries(
        "Share of errors by route",
        "Answers of 4xx and 5xx, of all requests to the route.",
        [
            promql(
                """
                sum by (method, route) (
                    rate(sensorflow_http_request_duration_seconds_count{status=~"[45].."}[$__rate_interval])
                )
                / sum by (method, route) (rate(sensorflow_http_request_duration_seconds_count[$__rate_interval]))
                """,
                "{{method}} {{route}}",
            )
        ],
        size=(24, 7),
        unit="percentunit",
        defaults={"min": 0, "max": 1, "noValue": "No errors"},
    ),
]

BUFFER = [
    timeseries(
        "Buffer rows",
        "Readings held, in flight included, and how many may be. Full means 503.",
        promqls(held="sum(sensorflow_buffer_rows)", maximum="sum(sensorflow_buffer_max_rows)"),
        size=(8, 8),
        unit="short",
        overrides=[override("maximum", color=fixed(RED), custom__fillOpacity=0)],
    ),
    timeseries(
        "Buffer bytes",
        "Bytes held, in flight and on their way in included, and how many may be. Full means 503.",
        promqls(held="sum(sensorflow_buffer_bytes)", maximum="sum(sensorflow_buffer_max_bytes)"),
        size=(8, 8),
        unit="bytes",
        overrides=[override("maximum", color=fixed(RED), custom__fillOpacity=0)],
    ),
    timeseries(
        "Oldest reading held",
        "How long the oldest reading in the buffer has waited. It grows while the database is unavailable.",
        promqls(age="max(sensorflow_buffer_oldest_age_seconds)"),
        size=(8, 8),
        unit="s",
    ),
    timeseries(
        "Rows in a flush",
        "How many readings one transaction commits: more as the load grows.",
        promqls(**quantiles("flush_rows")),
        size=(8, 8),
        unit="short",
        custom={"scaleDistribution": {"type": "log", "log": 10}},
    ),
    timeseries(
        "Flush duration",
        "From taking the rows to their commit.",
        promqls(**quantiles("flush_duration_seconds")),
        size=(8, 8),
        unit="s",
    ),
    timeseries(
        "Flushes",
        "Flushes committed, and flushes of which nothing was: their readings are tried again.",
        promqls(
            committed="sum(rate(sensorflow_flush_rows_count[$__rate_interval]))",
            failed=rate("flush_failures"),
        ),
        size=(8, 8),
        unit="ops",
        overrides=[override("failed", color=fixed(RED))],
    ),
]

LIVE = [
    timeseries(
        "Subscribers over time",
        "WebSocket connections.",
        promqls(subscribers="sum(sensorflow_websocket_connections)"),
        unit="short",
        overrides=[override("subscribers", color=fixed(PURPLE))],
    ),
    timeseries(
        "Live messages",
        """Messages put into subscribers' mailboxes; conflated: left out for a newer one of the same sensor; dropped:
        subscribers disconnected because they read too slowly.""",
        promqls(
            messages=rate("websocket_messages"),
            conflated=rate("websocket_messages_conflated"),
            dropped=rate("websocket_dropped"),
        ),
        unit="cps",
        overrides=[override("conflated", color=fixed(ORANGE)), override("dropped", color=fixed(RED))],
    ),
]

PROCESS = [
    timeseries(
        "Connections to the database",
        "The server's pool: open, idle, and requests that wait for one.",
        promqls(
            open="sum(sensorflow_pool_connections)",
            idle="sum(sensorflow_pool_available)",
            waiting="sum(sensorflow_pool_waiting)",
        ),
        size=(8, 8),
        unit="short",
        overrides=[override("waiting", color=fixed(RED))],
    ),
    timeseries(
        "Processor",
        "Cores that the server's processes keep busy.",
        promqls(cores='sum(rate(process_cpu_seconds_total{job="sensorflow"}[$__rate_interval]))'),
        size=(8, 8),
        unit="short",
        defaults={"decimals": 2, "min": 0},
    ),
    timeseries(
        "Memory",
        "Resident memory of the server's processes.",
        promqls(resident='sum(process_resident_memory_bytes{job="sensorflow"})'),
        size=(8, 8),
        unit="bytes",
        defaults={"min": 0},
    ),
]

DASHBOARD = dashboard(
    "sensorflow-ingest",
    "Ingest and server",
    "What the server takes in, how fast it answers, and what it holds.",
    [
        *HEALTH,
        row("Readings"),
        *READINGS,
        row("Requests"),
        *REQUESTS,
        row("Buffer and flushes"),
        *BUFFER,
        row("Live"),
        *LIVE,
        row("Process"),
        *PROCESS,
    ],
    refresh="5s",
)
