"""Ingest and server: what Prometheus scrapes from ``/metrics``."""

from grafana.panels import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    RED,
    YELLOW,
    Json,
    dashboard,
    fixed,
    from_zero,
    instant,
    override,
    override_matching,
    promql,
    promqls,
    row,
    shades,
    stat,
    thresholds,
    timeseries,
    words,
)

NO_DATA = "no data"
"""What a panel says when Prometheus has nothing, never more: neither that all is well nor that it is not."""


def current(rate: str) -> str:
    """Keep the rates of instances that answered the last scrape: a window still has what a dead server did."""
    return f"({rate} and on (job, instance) sensorflow_ready)"


def requests(selector: str) -> str:
    """Ask for requests per second in the last two minutes, without those of Prometheus."""
    series = f'sensorflow_http_request_duration_seconds_count{{route!="/metrics"{selector}}}'
    return f"sum({current(f'rate({series}[2m])')})"


def rate(counter: str) -> str:
    """Ask how fast a counter of the server grows, per second."""
    return f"sum(rate(sensorflow_{counter}_total[$__rate_interval]))"


def of_workers(function: str, counter: str) -> str:
    """Ask for the growth of a counter that a server has only with several workers. A single process has 0."""
    return f"sum({function}(sensorflow_{counter}_total[$__rate_interval])) or 0 * max(sensorflow_ready)"


def quantiles(histogram: str, *, by: str = "") -> dict[str, str]:
    """Ask for the quantiles of one of the server's histograms, by the names of their series."""
    buckets = f"sum by (le{by}) (rate(sensorflow_{histogram}_bucket[$__rate_interval]))"
    return {name: f"histogram_quantile({q}, {buckets})" for name, q in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))}


def health(
    title: str,
    description: str,
    *targets: Json,
    unit: str | None = None,
    steps: Json | None = None,
    defaults: Json | None = None,
) -> Json:
    """Show the server at the end of the range. A query over the range would show the last that is known of it."""
    return stat(
        title,
        description,
        *instant(targets),
        size=(4, 4),
        unit=unit,
        defaults={"noValue": NO_DATA, "thresholds": steps or thresholds(GREY), **(defaults or {})},
    )


HEALTH = [
    health(
        "Server",
        """Whether readings are taken, by all workers of all servers. Down: Prometheus gets no answer from one. No data:
        Prometheus does not answer, or watches no server.""",
        promql('min(sensorflow_ready or on (job, instance) up{job="sensorflow"} - 1)'),
        defaults={"mappings": words({"1": ("ready", GREEN), "0": ("not ready", RED), "-1": ("down", RED)})},
    ),
    health(
        "Database",
        "Whether the database answered when the server last asked, every 15 s. No data: there is no server to say it.",
        promql("min(sensorflow_database_up)"),
        defaults={"mappings": words({"1": ("up", GREEN), "0": ("away", RED)})},
    ),
    health(
        "Readings committed",
        "Readings committed per second, over the last two minutes.",
        promql(f"sum({current('rate(sensorflow_readings_committed_total[2m])')})"),
        unit="count:readings/s",
        steps=from_zero(BLUE),
    ),
    health(
        "Requests that failed",
        "Requests answered 5xx, of all in the last two minutes. Those of Prometheus are left out.",
        # Without requests a share is not a number; that they are missing is known from the server that answers.
        promql(
            f"""
            ({requests(', status=~"5.."')} or 0 * max(sensorflow_ready)) / ({requests("")} > 0)
            or 0 * max(sensorflow_ready) - 1
            """,
        ),
        unit="percentunit",
        steps=from_zero(GREEN, (0.001, ORANGE), (0.05, RED)),
        defaults={"decimals": 1, "mappings": words({"-1": ("none sent", GREY)})},
    ),
    health(
        "Buffer filled",
        "Rows and bytes held, of the most that may be. When either is full senders are answered 503.",
        *promqls(
            of_rows="sum(sensorflow_buffer_rows) / sum(sensorflow_buffer_max_rows)",
            of_bytes="sum(sensorflow_buffer_bytes) / sum(sensorflow_buffer_max_bytes)",
        ),
        unit="percentunit",
        steps=from_zero(GREEN, (0.5, ORANGE), (0.8, RED)),
        defaults={"decimals": 0},
    ),
    health(
        "Subscribers",
        "WebSocket connections.",
        promql("sum(sensorflow_websocket_connections)"),
        unit="short",
        steps=from_zero(BLUE),
        defaults={"decimals": 0},
    ),
]

WIDE_LEGEND, ROUTES_LEGEND, NARROW_LEGEND = 260, 400, 210
"""Pixels, on a panel of half the width, with names of routes, and on one of a third."""

READINGS = [
    timeseries(
        "Readings by what became of them",
        """Readings per second. Every reading that is taken into the buffer ends as one of: committed; rejected
        (PostgreSQL refused it, or it came twice under one Idempotency-Key); given back (503, send again).""",
        promqls(
            accepted=rate("readings_accepted"),
            committed=rate("readings_committed"),
            rejected=rate("readings_rejected"),
            given_back=rate("readings_given_back"),
        ),
        unit="count:/s",
        legend_width=WIDE_LEGEND,
        soft_max=1,
        overrides=[
            override("accepted", color=fixed(BLUE)),
            override("committed", color=fixed(GREEN)),
            override("rejected", color=fixed(ORANGE)),
            override("given back", color=fixed(RED)),
        ],
    ),
    timeseries(
        "Wait for the latest readings",
        """How long the oldest committed reading has waited to be taken into the latest readings, by which the API
        and the dashboards tell whether a sensor is online.""",
        promqls(wait="max(sensorflow_latest_readings_age_seconds)"),
        unit="s",
        soft_max=1,
    ),
]

STATUS_COLORS = {"2": GREEN, "3": BLUE, "4": ORANGE, "5": RED}
"""By the first digit of a status, which is its class."""

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
        size=(24, 11),
        unit="reqps",
        legend_width=ROUTES_LEGEND,
        soft_max=1,
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
        legend_width=WIDE_LEGEND,
        soft_max=1,
        custom={"stacking": {"mode": "normal", "group": "A"}, "fillOpacity": 30},
        overrides=[override_matching(f"{digit}..", color=shades(color)) for digit, color in STATUS_COLORS.items()],
    ),
    timeseries(
        "Latency",
        "Time from a request's arrival to the end of its answer, over all routes: it includes the commit.",
        promqls(**quantiles("http_request_duration_seconds")),
        unit="s",
        legend_width=WIDE_LEGEND,
        soft_max=0.01,
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
        size=(24, 11),
        unit="s",
        legend_width=ROUTES_LEGEND,
        soft_max=0.01,
    ),
    timeseries(
        "Share of errors by route",
        "Answers of 4xx and 5xx, of all requests to the route.",
        [
            promql(
                """
                (
                    sum by (method, route) (
                        rate(sensorflow_http_request_duration_seconds_count{status=~"[45].."}[$__rate_interval])
                    )
                    or 0 * sum by (method, route) (
                        rate(sensorflow_http_request_duration_seconds_count[$__rate_interval])
                    )
                )
                / (sum by (method, route) (rate(sensorflow_http_request_duration_seconds_count[$__rate_interval])) > 0)
                """,
                "{{method}} {{route}}",
            )
        ],
        size=(24, 11),
        unit="percentunit",
        legend_width=ROUTES_LEGEND,
        soft_max=0.1,
    ),
]

BUFFER = [
    timeseries(
        "Buffer rows",
        "Readings held, in flight included, and how many may be. Full means 503.",
        promqls(held="sum(sensorflow_buffer_rows)", maximum="sum(sensorflow_buffer_max_rows)"),
        size=(8, 8),
        unit="short",
        soft_max=1,
        overrides=[override("maximum", color=fixed(RED), custom__fillOpacity=0)],
    ),
    timeseries(
        "Buffer bytes",
        "Bytes held, in flight and on their way in included, and how many may be. Full means 503.",
        promqls(held="sum(sensorflow_buffer_bytes)", maximum="sum(sensorflow_buffer_max_bytes)"),
        size=(8, 8),
        unit="bytes",
        soft_max=1,
        overrides=[override("maximum", color=fixed(RED), custom__fillOpacity=0)],
    ),
    timeseries(
        "Oldest reading held",
        "How long the oldest reading in the buffer has waited. It grows while the database is unavailable.",
        promqls(age="max(sensorflow_buffer_oldest_age_seconds)"),
        size=(8, 8),
        unit="s",
        soft_max=1,
    ),
    timeseries(
        "Rows in a flush",
        "How many readings one transaction commits: more as the load grows.",
        promqls(**quantiles("flush_rows")),
        size=(8, 8),
        unit="short",
        legend_width=NARROW_LEGEND,
        custom={"scaleDistribution": {"type": "log", "log": 10}},
    ),
    timeseries(
        "Flush duration",
        "From taking the rows to their commit.",
        promqls(**quantiles("flush_duration_seconds")),
        size=(8, 8),
        unit="s",
        legend_width=NARROW_LEGEND,
        soft_max=0.01,
    ),
    timeseries(
        "Flushes",
        "Flushes per second: committed, and those of which nothing was, whose readings are tried again.",
        promqls(
            committed="sum(rate(sensorflow_flush_rows_count[$__rate_interval]))",
            failed=rate("flush_failures"),
        ),
        size=(8, 8),
        unit="count:/s",
        soft_max=1,
        overrides=[override("failed", color=fixed(RED))],
    ),
]

LIVE = [
    timeseries(
        "Subscribers over time",
        "WebSocket connections.",
        promqls(subscribers="sum(sensorflow_websocket_connections)"),
        unit="short",
        defaults={"decimals": 0},
        soft_max=5,
        overrides=[override("subscribers", color=fixed(PURPLE))],
    ),
    timeseries(
        "Live messages",
        """Messages per second put into subscribers' mailboxes; conflated: left out for a newer one of the same sensor;
        dropped: subscribers disconnected because they read too slowly.""",
        promqls(
            messages=rate("websocket_messages"),
            conflated=rate("websocket_messages_conflated"),
            dropped=rate("websocket_dropped"),
        ),
        unit="count:/s",
        legend_width=WIDE_LEGEND,
        soft_max=1,
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
        legend_width=NARROW_LEGEND,
        defaults={"decimals": 0},
        soft_max=5,
        overrides=[override("waiting", color=fixed(RED))],
    ),
    timeseries(
        "Workers",
        """Processes that share the port; how many of them ended unasked; and lapses: how often live readings found no
        room on their way from one to another, for which subscribers are dropped.""",
        promqls(
            processes="sum(sensorflow_workers) or count(sensorflow_ready)",
            ended=of_workers("increase", "worker_restarts"),
            lapses=of_workers("increase", "forwarded_lapses"),
        ),
        size=(8, 8),
        unit="short",
        legend_width=NARROW_LEGEND,
        defaults={"decimals": 0},
        soft_max=5,
        overrides=[override("ended", color=fixed(RED)), override("lapses", color=fixed(ORANGE))],
    ),
    timeseries(
        "Live readings between workers",
        "Per second, for subscribers of other workers; conflated: left out for a newer one of the same sensor.",
        promqls(
            forwarded=of_workers("rate", "forwarded_readings"),
            conflated=of_workers("rate", "forwarded_readings_conflated"),
        ),
        size=(8, 8),
        unit="count:/s",
        soft_max=1,
        overrides=[override("conflated", color=fixed(ORANGE))],
    ),
    timeseries(
        "Processor cores",
        "Cores that the server's processes keep busy.",
        promqls(cores='sum(rate(process_cpu_seconds_total{job="sensorflow"}[$__rate_interval]))'),
        unit="short",
        defaults={"decimals": 2},
        soft_max=1,
    ),
    timeseries(
        "Memory",
        "Resident memory of the server's processes.",
        promqls(resident='sum(process_resident_memory_bytes{job="sensorflow"})'),
        unit="bytes",
        soft_max=1,
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
