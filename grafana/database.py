"""Database: what is stored, how far the aggregates are, and what the database does in the background."""

from grafana.panels import (
    BLUE,
    GREEN,
    ORANGE,
    RED,
    colored_text,
    dashboard,
    fixed,
    override,
    sql,
    stat,
    table,
    thresholds,
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
        defaults={"color": fixed(BLUE), "decimals": 1, "noValue": "none"},
    ),
    stat(
        "Connections",
        "Connections to this database by anybody, and how many the server allows.",
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
        defaults={"thresholds": thresholds(GREEN, (1, ORANGE), (1000, RED))},
    ),
]

sizes = table(
    "Tables and aggregates",
    """Size on disk with indexes, chunks, and how many of them are in the columnstore. On plain PostgreSQL and in the
    Apache edition aggregates are views and take no space.""",
    sql("""
        SELECT name AS "Table", size_bytes AS "Size", chunks AS "Chunks", compressed_chunks AS "In columnstore",
               before_bytes AS "Before", after_bytes AS "After",
               before_bytes::double precision / nullif(after_bytes, 0) AS "Ratio"
        FROM table_sizes
        ORDER BY size_bytes DESC
    """),
    size=(14, 8),
    unit="none",
    overrides=[
        *(override(column, unit="bytes") for column in ("Size", "Before", "After")),
        override("Ratio", decimals=1),
    ],
)

lag = table(
    "Aggregate lag",
    """Lag is how long ago the aggregates were last brought up to date; what came late since then may be missing. What
    is newer than the materialized part is computed when it is asked for.""",
    sql("""
        SELECT aggregate AS "Aggregate", materialized_until AS "Materialized until", lag_s AS "Lag"
        FROM aggregate_lag
        ORDER BY aggregate DESC
    """),
    size=(10, 8),
    overrides=[override("Lag", unit="s", decimals=0)],
)

jobs = table(
    "Background jobs",
    """TimescaleDB's policies: refresh, columnstore, retention. With some versions of PostgreSQL (TimescaleDB 2.28 on
    15.20, 2.29 on 17.12 among them) jobs do their work and are then marked as failed: look at the lag before you worry.
    Empty without the Community edition.""",
    sql("""
        SELECT job_id AS "Job", job AS "Name", table_name AS "Table", last_status AS "Last status",
               last_started_at AS "Last started", last_run_s AS "Took", next_start_at AS "Next start", runs AS "Runs",
               failures AS "Failures"
        FROM database_jobs
        ORDER BY job_id
    """),
    size=(24, 9),
    unit="none",
    defaults={"noValue": "No jobs"},
    overrides=[
        override(
            "Last status",
            mappings=colored_text({"Success": GREEN, "Failed": ORANGE}),
            custom__cellOptions={"type": "color-text"},
        ),
        override("Took", unit="s", decimals=2),
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
)

activity = stat(
    "Activity",
    """Since the database's statistics were last reset: the share of pages found in PostgreSQL's own memory,
    transactions that were rolled back, deadlocks, and bytes that queries put into temporary files.""",
    sql("""
        SELECT blks_hit::double precision / nullif(blks_hit + blks_read, 0) AS "Pages found in memory",
               xact_rollback::double precision / nullif(xact_commit + xact_rollback, 0) AS "Rolled back",
               deadlocks AS "Deadlocks", temp_bytes AS "Temporary files"
        FROM pg_stat_database
        WHERE datname = current_database()
    """),
    size=(14, 4),
    unit="short",
    defaults={"color": fixed(BLUE)},
    overrides=[
        override("Pages found in memory", unit="percentunit", decimals=1),
        override("Rolled back", unit="percentunit", decimals=1),
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
    size=(14, 4),
    unit="short",
    defaults={"color": fixed(BLUE), "decimals": 0},
    overrides=[override("Since the last", unit="s")],
)

DASHBOARD = dashboard(
    "sensorflow-database",
    "Database",
    "What is stored, how far the aggregates are, and what the database does in the background.",
    [*HEALTH, sizes, lag, jobs, connections, activity, ledger],
)
