"""Database: what is stored, how far the aggregates are, and what the database does in the background."""

from grafana.panels import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    RED,
    colored_text,
    dashboard,
    fixed,
    from_zero,
    override,
    promql,
    promqls,
    row,
    sql,
    stat,
    table,
    timeseries,
)

HEALTH = [
    stat(
        "Database size",
        "The whole database on disk, indexes included.",
        sql("""SELECT pg_database_size(current_database()) AS "Size" """),
        unit="bytes",
        defaults={"color": fixed(BLUE)},
    ),
    stat(
        "Compression ratio",
        "Bytes before over bytes after, of the chunks that are in the columnstore. Community edition only.",
        sql("""
            SELECT sum(before_bytes)::double precision / nullif(sum(after_bytes), 0) AS "Ratio" FROM table_sizes
        """),
        unit="suffix: ×",
        defaults={"color": fixed(BLUE), "decimals": 1},
    ),
    stat(
        "Connections",
        "Connections to this database from all clients, and how many the server allows.",
        sql("""
            SELECT count(*) AS "Open", current_setting('max_connections')::integer AS "Maximum"
            FROM pg_stat_activity
            WHERE datname = current_database()
        """),
        unit="short",
        defaults={"color": fixed(BLUE)},
    ),
    stat(
        "Late ranges to refresh",
        "Ranges of which late readings came, and whose aggregates wait to be refreshed; 0 is all done.",
        sql("""SELECT count(*) AS "Ranges" FROM stale_ranges"""),
        unit="short",
        defaults={"thresholds": from_zero(GREEN, (1, ORANGE), (1000, RED))},
    ),
]

sizes = table(
    "Tables and aggregates",
    """Size on disk with indexes, chunks, and how many of them are in the columnstore. The columnstore is of
    TimescaleDB Community.""",
    sql("""
        SELECT name AS "Table", size_bytes AS "Size", chunks AS "Chunks", compressed_chunks AS "In columnstore",
               before_bytes AS "Before", after_bytes AS "After",
               before_bytes::double precision / nullif(after_bytes, 0) AS "Ratio"
        FROM table_sizes
        ORDER BY size_bytes DESC
    """),
    size=(14, 7),
    unit="none",
    overrides=[
        *(override(column, unit="bytes", custom__width=95) for column in ("Size", "Before", "After")),
        override("Chunks", custom__width=85),
        override("In columnstore", custom__width=125),
        override("Ratio", decimals=1, custom__width=75),
    ],
)

lag = table(
    "Aggregate lag",
    """Lag is how far the aggregates are materialized behind now: one to two minutes. What is newer is computed when it
    is asked for. Readings that come late may be missing for longer, see Late ranges to refresh.""",
    sql("""
        SELECT aggregate AS "Aggregate", materialized_until AS "Materialized until", lag_s AS "Lag"
        FROM aggregate_lag
        ORDER BY aggregate DESC
    """),
    size=(10, 7),
    overrides=[override("Lag", unit="s", decimals=0)],
)

jobs = table(
    "Background jobs",
    """What one server does for the database: refresh brings the aggregates forward, late refreshes late readings,
    changes and check find what others have written, chunks makes new chunks, columnstore converts them, merging merges
    old ones, retention, pruning and senders delete.
    Jobs with a table are TimescaleDB's own, which an operator has added. Some versions of PostgreSQL mark them as
    failed after they have done their work.""",
    sql("""
        SELECT job AS "Name", table_name AS "Table",
               coalesce(last_status, 'never run') AS "Last status",
               CASE WHEN isfinite(last_started_at) THEN last_started_at END AS "Last started",
               last_run_s AS "Took",
               CASE WHEN isfinite(next_start_at) THEN next_start_at END AS "Next start",
               runs AS "Runs", failures AS "Failures"
        FROM database_jobs
        ORDER BY job_id NULLS FIRST, job
    """),
    size=(24, 8),
    unit="none",
    empty="No jobs",
    overrides=[
        override(
            "Last status",
            color=fixed(GREY),
            mappings=colored_text({"Success": GREEN, "Failed": ORANGE, "never run": ORANGE}),
            custom__cellOptions={"type": "color-text"},
            custom__width=110,
        ),
        override("Took", unit="s", decimals=2, custom__width=80),
        *(override(column, unit="dateTimeAsIso", custom__width=170) for column in ("Last started", "Next start")),
        *(override(column, custom__width=90) for column in ("Runs", "Failures")),
    ],
)

connections = table(
    "Connections by user",
    "Who is connected to this database, and as what. What they run is not shown to the role that dashboards read with.",
    sql("""
        SELECT usename AS "User", coalesce(nullif(application_name, ''), 'unnamed') AS "Application",
               count(*) AS "Connections"
        FROM pg_stat_activity
        WHERE datname = current_database()
        GROUP BY 1, 2
        ORDER BY 3 DESC, 1, 2
    """),
    size=(10, 8),
    unit="none",
    overrides=[override(column, custom__width=115) for column in ("User", "Connections")],
)

activity = stat(
    "Activity",
    """Since the database's statistics were last reset: the share of pages found in PostgreSQL's own memory,
    transactions that were rolled back, deadlocks, and bytes that queries put into temporary files.""",
    sql("""
        SELECT blks_hit::double precision / nullif(blks_hit + blks_read, 0) AS "Pages found in memory",
               xact_rollback::double precision / nullif(xact_commit + xact_rollback, 0) AS "Transactions rolled back",
               deadlocks AS "Deadlocks", temp_bytes AS "Temporary files"
        FROM pg_stat_database
        WHERE datname = current_database()
    """),
    size=(7, 8),
    unit="short",
    defaults={"color": fixed(BLUE)},
    overrides=[
        override("Pages found in memory", unit="percentunit", decimals=1),
        override("Transactions rolled back", unit="percentunit", decimals=1),
        override("Temporary files", unit="bytes"),
    ],
)

ledger = stat(
    "Ledger of flushes",
    """Each flush leaves a row in the ledger for ten minutes, in its own transaction: by it a lost COMMIT is told from a
    failed one.""",
    sql("""
        SELECT count(*) AS "Flushes", coalesce(sum(rows), 0) AS "Readings",
               coalesce(avg(rows), 0) AS "Readings a flush",
               extract(epoch FROM now() - max(committed_at)) AS "Since the last"
        FROM flushes
    """),
    size=(7, 8),
    unit="locale",
    defaults={"color": fixed(BLUE), "decimals": 0},
    overrides=[override("Since the last", unit="s", decimals=1)],
)

OVER_TIME = [
    timeseries(
        "Size",
        "The whole database on disk, indexes included. It falls when chunks go to the columnstore or are dropped.",
        promqls(size="max(sensorflow_database_size_bytes)"),
        size=(8, 7),
        unit="bytes",
        soft_max=1,
    ),
    timeseries(
        "Growth in a day",
        """By how much the database has grown in the 24 hours before; below zero it has shrunk. It begins a day after
        Prometheus has begun to watch.""",
        promqls(growth="max(sensorflow_database_size_bytes) - max(sensorflow_database_size_bytes offset 1d)"),
        size=(8, 7),
        unit="bytes",
        soft_max=1,
    ),
    timeseries(
        "Connections over time",
        "Connections to this database from all clients.",
        promqls(connections="max(sensorflow_database_connections)"),
        size=(8, 7),
        unit="short",
        defaults={"decimals": 0},
        soft_max=10,
    ),
    timeseries(
        "Aggregate lag over time",
        """How far the aggregates are materialized behind now, and how long the oldest late reading has waited to be in
        them. Late readings are refreshed within a share of the processor's time, MAINTENANCE_SHARE.""",
        promqls(lag="max(sensorflow_aggregate_lag_seconds)", late="max(sensorflow_late_readings_lag_seconds)"),
        size=(8, 7),
        unit="s",
        soft_max=60,
    ),
    timeseries(
        "Maintenance",
        "Part of a core's time that each kind of background work has taken, whichever server did it.",
        [
            promql(
                "max by (work) (rate(sensorflow_maintenance_busy_seconds[$__rate_interval]))",
                "{{work}}",
            )
        ],
        size=(8, 7),
        unit="percentunit",
        soft_max=0.1,
        legend_width=230,
    ),
    timeseries(
        "Clock skew",
        "How far the database's clock is ahead of the server's; below zero it is behind.",
        promqls(skew="max(sensorflow_database_clock_skew_seconds)"),
        size=(8, 7),
        unit="s",
        soft_max=1,
    ),
    timeseries(
        "Late ranges over time",
        "Ranges of time of which late readings came, and whose aggregates wait to be refreshed.",
        promqls(ranges="max(sensorflow_stale_ranges)"),
        size=(8, 7),
        unit="short",
        defaults={"decimals": 0},
        soft_max=10,
    ),
    timeseries(
        "Failures of maintenance",
        "Runs of each kind of background work that an error has ended, since the database was made.",
        [promql("max by (work) (sensorflow_maintenance_failures)", "{{work}}")],
        size=(8, 7),
        unit="short",
        defaults={"decimals": 0},
        soft_max=10,
        legend_width=230,
    ),
    timeseries(
        "Time since the last success",
        "How long ago each kind of background work last succeeded. The log has the reason if that is long.",
        [promql("time() - max by (work) (sensorflow_maintenance_last_success_timestamp_seconds)", "{{work}}")],
        size=(8, 7),
        unit="s",
        soft_max=60,
        legend_width=230,
    ),
]

DASHBOARD = dashboard(
    "sensorflow-database",
    "Database",
    "What is stored, how far the aggregates are, and what the database does in the background.",
    [
        *HEALTH,
        sizes,
        lag,
        row("Over time, as the server saw it"),
        *OVER_TIME,
        row("PostgreSQL"),
        connections,
        activity,
        ledger,
        jobs,
    ],
)
