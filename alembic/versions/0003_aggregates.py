"""Add aggregates of ``readings``, the registry of sensors, and the views and the role that read both.

Every edition has the same names and columns. On TimescaleDB Community the aggregates are continuous, each made of the
finer one; elsewhere they are plain views. Queries for one metric read ``points`` and its tiers, which have a row for
each value: another table of values becomes another branch of these views, and no query changes.
"""

from collections.abc import Iterator

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

METRICS = {
    "temperature": ("Temperature", "celsius"),
    "humidity": ("Humidity", "percent"),
    "pressure": ("Pressure", "pressurehpa"),
}
TIERS = {"readings_1m": "1 minute", "readings_1h": "1 hour", "readings_1d": "1 day"}
# TimescaleDB's default is ten days for all three. A chunk of ten day buckets takes longer to plan than to read, and one
# of 240 hour buckets takes more space in the columnstore than outside. Retention drops whole chunks.
CHUNKS = {"readings_1m": "10 days", "readings_1h": "30 days", "readings_1d": "90 days"}

REGISTRY = """
ALTER TABLE sensors
    ADD label text,
    ADD location text,
    ADD latitude double precision CHECK (latitude BETWEEN -90 AND 90),
    ADD longitude double precision CHECK (longitude BETWEEN -180 AND 180),
    ADD expected_interval_s double precision CHECK (expected_interval_s > 0);

-- Units are names that Grafana knows.
CREATE TABLE metrics (
    name text PRIMARY KEY,
    title text NOT NULL,
    unit text NOT NULL
);

CREATE TABLE sensor_limits (
    sensor_id integer NOT NULL REFERENCES sensors,
    metric text NOT NULL REFERENCES metrics,
    lower double precision,
    upper double precision,
    PRIMARY KEY (sensor_id, metric),
    CHECK (lower <= upper),
    CHECK (num_nonnulls(lower, upper) > 0)
);

-- The latest reading of each sensor by its own time, a few seconds behind. Half of every page is left free, so that an
-- update stays within its page and changes no index.
CREATE TABLE latest_readings (
    sensor_id integer PRIMARY KEY REFERENCES sensors,
    time timestamptz NOT NULL,
    id bigint NOT NULL,
    temperature double precision,
    humidity double precision,
    pressure double precision
) WITH (fillfactor = 50);

INSERT INTO server_settings (name, value)
VALUES ('offline_after_s', '300'), ('aggregates_refreshed_until', now()::text);

CREATE VIEW sensor_status AS
SELECT s.id AS sensor_id, s.name, s.label, s.location, s.latitude, s.longitude, s.expected_interval_s,
       l.time AS last_seen_at,
       extract(epoch FROM now() - l.time)::double precision AS age_s,
       -- A sensor whose clock was far ahead would otherwise count as online until that time.
       l.time < now() + INTERVAL '1 hour' AND l.time > now() - make_interval(secs => coalesce(
           3 * s.expected_interval_s,
           (SELECT value::double precision FROM server_settings WHERE name = 'offline_after_s')
       )) AS is_online,
       l.id, l.temperature, l.humidity, l.pressure
FROM sensors s
LEFT JOIN latest_readings l ON l.sensor_id = s.id;
"""

# Times whose aggregates must be refreshed, because late rows arrived or the readings are older than this migration.
STALE_RANGES = """
CREATE TABLE stale_ranges (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    starts_at timestamptz NOT NULL,
    ends_at timestamptz NOT NULL,
    CHECK (starts_at < ends_at)
);
"""
ALL_CHUNKS_ARE_STALE = """
INSERT INTO stale_ranges (starts_at, ends_at)
SELECT range_start, range_end FROM timescaledb_information.chunks
WHERE hypertable_schema = current_schema AND hypertable_name = 'readings'
ORDER BY range_start
"""

CONTINUOUS = """
CREATE MATERIALIZED VIEW {tier}
WITH (timescaledb.continuous, timescaledb.materialized_only = false, timescaledb.chunk_interval = '{chunk}') AS
SELECT {columns}
FROM {source}
GROUP BY 1, 2
WITH NO DATA;
ALTER MATERIALIZED VIEW {tier} SET (
    timescaledb.compress, timescaledb.compress_segmentby = 'sensor_id', timescaledb.compress_orderby = 'bucket DESC'
);
"""
PLAIN = """
CREATE VIEW {tier} AS
SELECT {columns}
FROM readings
GROUP BY 1, 2;
"""

# The sum of finite values may overflow, and then every refresh of the bucket would fail. So each value is bounded
# before it is summed: a day's sum of one sensor then stays finite, however many readings it has.
OF_READINGS = """count({0}) AS {0}_count,
       sum(least(greatest({0}, -1e290), 1e290)) FILTER (WHERE {0} IS NOT NULL) AS {0}_sum,
       min({0}) AS {0}_min,
       max({0}) AS {0}_max"""
FIRST_AND_LAST = """first({0}, time) FILTER (WHERE {0} IS NOT NULL) AS {0}_first,
       last({0}, time) FILTER (WHERE {0} IS NOT NULL) AS {0}_last"""
PLAIN_FIRST_AND_LAST = """(array_agg({0} ORDER BY time) FILTER (WHERE {0} IS NOT NULL))[1] AS {0}_first,
       (array_agg({0} ORDER BY time DESC) FILTER (WHERE {0} IS NOT NULL))[1] AS {0}_last"""
OF_FINER_TIER = """sum({0}_count)::bigint AS {0}_count,
       sum({0}_sum) AS {0}_sum,
       min({0}_min) AS {0}_min,
       max({0}_max) AS {0}_max,
       first({0}_first, bucket) FILTER (WHERE {0}_count > 0) AS {0}_first,
       last({0}_last, bucket) FILTER (WHERE {0}_count > 0) AS {0}_last"""

LATEST_POINT = "SELECT sensor_id, '{0}' AS metric, time, {0} AS value FROM latest_readings WHERE {0} IS NOT NULL"
POINT = "SELECT time, sensor_id, '{0}' AS metric, {0} AS value FROM readings WHERE {0} IS NOT NULL"
POINT_OF_TIER = """SELECT bucket, sensor_id, '{0}' AS metric, {0}_count AS count, {0}_sum AS sum, {0}_min AS min,
       {0}_max AS max, {0}_first AS first, {0}_last AS last
FROM {tier} WHERE {0}_count > 0"""
LIMIT_VIOLATIONS = """
CREATE VIEW limit_violations AS
SELECT p.sensor_id, p.metric, p.time, p.value, l.lower, l.upper
FROM latest_points p
JOIN sensor_limits l ON l.sensor_id = p.sensor_id AND l.metric = p.metric
WHERE p.value < l.lower OR p.value > l.upper
"""

# The state of the database, for dashboards and alerts. These are functions, because PostgreSQL records no dependencies
# of their text: views on TimescaleDB's views would keep its updates from replacing those. They keep this migration's
# path.
COMMUNITY_STATE_VIEW = """
CREATE FUNCTION {name}() RETURNS TABLE ({columns})
LANGUAGE sql STABLE SECURITY DEFINER SET search_path FROM CURRENT AS $$
{query}
$$;
CREATE VIEW {name} AS SELECT * FROM {name}();
"""
# The lag is the age of the time up to which all arrived readings have been refreshed. The end of the materialized data
# says less, because without readings nothing is materialized.
COMMUNITY_STATE = {
    "aggregate_lag": (
        "aggregate text, materialized_until timestamptz, lag_s double precision",
        """
SELECT c.view_name::text,
       nullif(
           _timescaledb_functions.to_timestamp(_timescaledb_functions.cagg_watermark(h.id)),
           TIMESTAMPTZ '4714-11-24 00:00:00+00 BC'
       ),
       extract(epoch FROM now() - s.value::timestamptz)::double precision
FROM timescaledb_information.continuous_aggregates c
JOIN _timescaledb_catalog.hypertable h
    ON h.schema_name = c.materialization_hypertable_schema AND h.table_name = c.materialization_hypertable_name
JOIN server_settings s ON s.name = 'aggregates_refreshed_until'
WHERE c.view_schema = current_schema AND c.view_name IN ('readings_1m', 'readings_1h', 'readings_1d')""",
    ),
    "table_sizes": (
        "name text, size_bytes bigint, chunks bigint, compressed_chunks bigint, before_bytes bigint,"
        " after_bytes bigint",
        """
SELECT t.name, hypertable_approximate_size(t.hypertable), (SELECT count(*) FROM show_chunks(t.name::regclass)),
       c.compressed_chunks, c.before_bytes, c.after_bytes
FROM (
    SELECT hypertable_name::text AS name, format('%I.%I', hypertable_schema, hypertable_name)::regclass AS hypertable
    FROM timescaledb_information.hypertables
    WHERE hypertable_schema = current_schema AND hypertable_name = 'readings'
    UNION ALL
    SELECT view_name, format('%I.%I', materialization_hypertable_schema, materialization_hypertable_name)::regclass
    FROM timescaledb_information.continuous_aggregates
    WHERE view_schema = current_schema AND view_name IN ('readings_1m', 'readings_1h', 'readings_1d')
) t
LEFT JOIN LATERAL (
    SELECT sum(number_compressed_chunks)::bigint AS compressed_chunks,
           sum(before_compression_total_bytes)::bigint AS before_bytes,
           sum(after_compression_total_bytes)::bigint AS after_bytes
    FROM hypertable_compression_stats(t.hypertable)
) c ON true""",
    ),
    "database_jobs": (
        "job_id integer, job text, table_name text, last_status text, last_started_at timestamptz,"
        " last_run_s double precision, next_start_at timestamptz, runs bigint, failures bigint",
        """
SELECT j.job_id, j.proc_name::text, j.hypertable_name::text, s.last_run_status, s.last_run_started_at,
       extract(epoch FROM s.last_run_duration)::double precision, s.next_start, coalesce(s.total_runs, 0),
       coalesce(s.total_failures, 0)
FROM timescaledb_information.jobs j
LEFT JOIN timescaledb_information.job_stats s ON s.job_id = j.job_id
WHERE j.hypertable_schema = current_schema""",
    ),
}
PLAIN_STATE = """
CREATE VIEW aggregate_lag AS
SELECT aggregate, now() AS materialized_until, 0::double precision AS lag_s
FROM (VALUES ('readings_1m'), ('readings_1h'), ('readings_1d')) AS tiers (aggregate);

CREATE VIEW table_sizes AS
SELECT 'readings' AS name,
       (pg_total_relation_size('readings') + coalesce(sum(pg_total_relation_size(inhrelid)), 0))::bigint AS size_bytes,
       count(*) AS chunks, NULL::bigint AS compressed_chunks, NULL::bigint AS before_bytes, NULL::bigint AS after_bytes
FROM pg_inherits WHERE inhparent = 'readings'::regclass;

CREATE VIEW database_jobs AS
SELECT NULL::integer AS job_id, NULL::text AS job, NULL::text AS table_name, NULL::text AS last_status,
       NULL::timestamptz AS last_started_at, NULL::double precision AS last_run_s,
       NULL::timestamptz AS next_start_at, NULL::bigint AS runs, NULL::bigint AS failures
WHERE false;
"""

READER = "sensorflow_reader"
# Roles belong to the whole server, and the migrating account may lack the right to create one. A setting has the
# password.
CREATE_READER = f"""
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{READER}') THEN
        CREATE ROLE {READER} NOLOGIN;
        ALTER ROLE {READER} SET default_transaction_read_only = on;
        ALTER ROLE {READER} SET statement_timeout = '30s';
    END IF;
EXCEPTION WHEN insufficient_privilege THEN
    RAISE WARNING 'The role {READER} is left out: % may not create roles', current_user;
END $$
"""
# Tables are granted by name: the schema may hold tables of others, and stored answers and settings are not for the
# reader. A migration that adds a table grants it.
READABLE = """
sensors, sources, readings, data, flushes, metrics, sensor_limits, latest_readings, sensor_status, stale_ranges,
readings_1m, readings_1h, readings_1d, points, points_1m, points_1h, points_1d, latest_points, limit_violations,
aggregate_lag, table_sizes, database_jobs
"""
GRANTS = f"""
DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = '{READER}') THEN
        EXECUTE format('GRANT USAGE ON SCHEMA %I TO {READER}', current_schema);
        GRANT SELECT ON {READABLE} TO {READER};
    END IF;
END $$
"""
REVOKES = f"""
DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = '{READER}') THEN
        REVOKE SELECT ON {READABLE} FROM {READER};
        EXECUTE format('REVOKE USAGE ON SCHEMA %I FROM {READER}', current_schema);
    END IF;
END $$
"""

DROP = """
DROP VIEW database_jobs, table_sizes, aggregate_lag, limit_violations, latest_points, points_1d, points_1h, points_1m,
          points, sensor_status;
DROP FUNCTION IF EXISTS database_jobs, table_sizes, aggregate_lag;
DROP {view} readings_1d;
DROP {view} readings_1h;
DROP {view} readings_1m;
DROP TABLE stale_ranges, latest_readings, sensor_limits, metrics;
DELETE FROM server_settings
WHERE name IN ('offline_after_s', 'aggregates_refreshed_until', 'readings_deleted_until');
ALTER TABLE sensors DROP label, DROP location, DROP latitude, DROP longitude, DROP expected_interval_s;
"""


def tiers(*, is_community: bool) -> Iterator[str]:
    """Yield the statements that create the aggregates, from the finest to the coarsest."""
    finer = None
    for tier, width in TIERS.items():
        if not is_community:
            bucket, count = f"date_bin(INTERVAL '{width}', time, TIMESTAMPTZ 'epoch')", "count(*)"
            of_metric = [OF_READINGS, PLAIN_FIRST_AND_LAST]
        elif finer is None:
            bucket, count, of_metric = (
                f"time_bucket(INTERVAL '{width}', time)",
                "count(*)",
                [OF_READINGS, FIRST_AND_LAST],
            )
        else:
            bucket, count = f"time_bucket(INTERVAL '{width}', bucket)", "sum(count)::bigint"
            of_metric = [OF_FINER_TIER]
        columns = [f"{bucket} AS bucket", "sensor_id", f"{count} AS count"]
        columns += [column.format(metric) for metric in METRICS for column in of_metric]
        create = CONTINUOUS if is_community else PLAIN
        names = {"tier": tier, "source": finer or "readings", "chunk": CHUNKS[tier]}
        yield create.format(**names, columns=",\n       ".join(columns))
        finer = tier


def view_of_metrics(name: str, branch: str, **names: str) -> str:
    """Return the statement for a view with a branch for each metric."""
    branches = "\nUNION ALL\n".join(branch.format(metric, **names) for metric in METRICS)
    return f"CREATE VIEW {name} AS\n{branches}"


def upgrade() -> None:
    is_community = op.get_context().opts["is_community"]()
    op.execute(CREATE_READER)
    op.execute(REGISTRY)
    for metric, (title, unit) in METRICS.items():
        op.execute(f"INSERT INTO metrics (name, title, unit) VALUES ('{metric}', '{title}', '{unit}')")
    for statement in tiers(is_community=is_community):
        op.execute(statement)
    op.execute(STALE_RANGES)
    if is_community:
        op.execute(ALL_CHUNKS_ARE_STALE)
    op.execute(view_of_metrics("points", POINT))
    for tier in TIERS:
        op.execute(view_of_metrics(tier.replace("readings", "points"), POINT_OF_TIER, tier=tier))
    op.execute(view_of_metrics("latest_points", LATEST_POINT))
    op.execute(LIMIT_VIOLATIONS)
    if is_community:
        for name, (columns, query) in COMMUNITY_STATE.items():
            op.execute(COMMUNITY_STATE_VIEW.format(name=name, columns=columns, query=query.strip()))
    else:
        op.execute(PLAIN_STATE)
    op.execute(GRANTS)


def downgrade() -> None:
    op.execute(REVOKES)
    op.execute(DROP.format(view="MATERIALIZED VIEW" if op.get_context().opts["is_community"]() else "VIEW"))
