"""Keep the aggregates in tables where they are not continuous, behind the views that there were.

A view has the rows of its table below the time up to which the server has refreshed, and makes the rest of the next
finer view. After the migration that time is -infinity, and the server refreshes the history from its oldest reading on.
"""

from collections.abc import Iterator

import sqlalchemy
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

METRICS = ("temperature", "humidity", "pressure")
WIDTHS = {"1m": "1 minute", "1h": "1 hour", "1d": "1 day"}
# How far each tier's table is behind the finest one's: as in app/store/tiers.py.
BEHIND = {"1m": "0", "1h": "1 hour", "1d": "1 day"}

TABLE = """
CREATE TABLE aggregates_{tier} (
    bucket timestamptz NOT NULL,
    sensor_id integer NOT NULL,
    count bigint NOT NULL,
    {columns},
    PRIMARY KEY (sensor_id, bucket)
);
-- For retention, for a refresh, and for queries of all sensors.
CREATE INDEX aggregates_{tier}_bucket ON aggregates_{tier} (bucket);
"""
COLUMNS_OF_METRIC = """{0}_count bigint NOT NULL,
    {0}_sum double precision,
    {0}_min double precision,
    {0}_max double precision,
    {0}_first double precision,
    {0}_last double precision"""

# As an uncorrelated subquery it is computed once for each query, and can be a bound of an index scan. Later than now it
# would hide readings: that is what a restored database may say, or one whose clock was wrong.
REFRESHED_UNTIL = """(
    SELECT date_bin(INTERVAL '{width}', least(coalesce(
        (SELECT value::timestamptz FROM server_settings WHERE name = 'aggregates_refreshed_until'), '-infinity'
    ), now()) - INTERVAL '{behind}', TIMESTAMPTZ 'epoch')
)"""
# The upper bound excludes nothing. Without one PostgreSQL expects a third of all rows above an unknown time, and scans
# the whole table; of a range with an unknown end it expects one row in 200.
VIEW = """
CREATE OR REPLACE VIEW readings_{tier} AS
SELECT bucket, sensor_id, count,
       {names}
FROM aggregates_{tier} WHERE bucket < {until}
UNION ALL
SELECT date_bin(INTERVAL '{width}', {time}, TIMESTAMPTZ 'epoch') AS bucket, sensor_id, {count} AS count,
       {columns}
FROM {source} WHERE {time} >= {until} AND {time} <= 'infinity'
GROUP BY 1, 2
"""
NAMES = "{0}_count, {0}_sum, {0}_min, {0}_max, {0}_first, {0}_last"
# One order for both ends, so that PostgreSQL sorts once, or not at all.
OF_READINGS = """count({0}) AS {0}_count,
       sum(least(greatest({0}, -1e290), 1e290)) FILTER (WHERE {0} IS NOT NULL) AS {0}_sum,
       min({0}) AS {0}_min,
       max({0}) AS {0}_max,
       (array_agg({0} ORDER BY time) FILTER (WHERE {0} IS NOT NULL))[1] AS {0}_first,
       (array_agg({0} ORDER BY time) FILTER (WHERE {0} IS NOT NULL))[count({0})::integer] AS {0}_last"""
OF_FINER_TIER = """sum({0}_count)::bigint AS {0}_count,
       sum({0}_sum) AS {0}_sum,
       min({0}_min) AS {0}_min,
       max({0}_max) AS {0}_max,
       (array_agg({0}_first ORDER BY bucket) FILTER (WHERE {0}_count > 0))[1] AS {0}_first,
       (array_agg({0}_last ORDER BY bucket) FILTER (WHERE {0}_count > 0))[
           (count(*) FILTER (WHERE {0}_count > 0))::integer
       ] AS {0}_last"""

# As 0003 has them.
EARLIER_VIEW = """
CREATE OR REPLACE VIEW readings_{tier} AS
SELECT date_bin(INTERVAL '{width}', time, TIMESTAMPTZ 'epoch') AS bucket, sensor_id, count(*) AS count,
       {columns}
FROM readings
GROUP BY 1, 2
"""
EARLIER_OF_READINGS = """count({0}) AS {0}_count,
       sum(least(greatest({0}, -1e290), 1e290)) FILTER (WHERE {0} IS NOT NULL) AS {0}_sum,
       min({0}) AS {0}_min,
       max({0}) AS {0}_max,
       (array_agg({0} ORDER BY time) FILTER (WHERE {0} IS NOT NULL))[1] AS {0}_first,
       (array_agg({0} ORDER BY time DESC) FILTER (WHERE {0} IS NOT NULL))[1] AS {0}_last"""

NOTHING_IS_REFRESHED = """
INSERT INTO server_settings (name, value)
VALUES ('aggregates_refreshed_until', '-infinity'), ('aggregates_frontier', '-infinity')
ON CONFLICT (name) DO UPDATE SET value = excluded.value;
DELETE FROM stale_ranges;
"""
ALL_IS_REFRESHED = """
UPDATE server_settings SET value = now()::text WHERE name = 'aggregates_refreshed_until';
DELETE FROM server_settings WHERE name = 'aggregates_frontier';
DELETE FROM stale_ranges;
"""

SIZE_OF_READINGS = """
SELECT 'readings' AS name,
       (pg_total_relation_size('readings') + coalesce(sum(pg_total_relation_size(inhrelid)), 0))::bigint AS size_bytes,
       count(*) AS chunks, NULL::bigint AS compressed_chunks, NULL::bigint AS before_bytes, NULL::bigint AS after_bytes
FROM pg_inherits WHERE inhparent = 'readings'::regclass"""
SIZES = f"""
CREATE OR REPLACE VIEW table_sizes AS {SIZE_OF_READINGS}
UNION ALL
SELECT 'readings_' || tier, pg_total_relation_size(('aggregates_' || tier)::regclass), 0, NULL, NULL, NULL
FROM unnest(ARRAY['1m', '1h', '1d']) AS tier
"""
EARLIER_SIZES = f"CREATE OR REPLACE VIEW table_sizes AS {SIZE_OF_READINGS}"
LAG = """
CREATE OR REPLACE VIEW aggregate_lag AS
SELECT 'readings_' || tier AS aggregate, nullif(materialized_until, '-infinity') AS materialized_until,
       extract(epoch FROM now() - nullif(s.value::timestamptz, '-infinity'))::double precision AS lag_s
FROM (VALUES {tiers}) AS tiers (tier, materialized_until)
JOIN server_settings s ON s.name = 'aggregates_refreshed_until'
"""
EARLIER_LAG = """
CREATE OR REPLACE VIEW aggregate_lag AS
SELECT aggregate, now() AS materialized_until, 0::double precision AS lag_s
FROM (VALUES ('readings_1m'), ('readings_1h'), ('readings_1d')) AS tiers (aggregate)
"""

READER = "sensorflow_reader"
GRANT = f"""
DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = '{READER}') THEN
        GRANT SELECT ON aggregates_1m, aggregates_1h, aggregates_1d TO {READER};
    END IF;
END $$
"""

HAS_TIMESCALEDB = "SELECT 1 FROM pg_extension WHERE extname = 'timescaledb'"
CONTINUOUS = """
SELECT 1 FROM timescaledb_information.continuous_aggregates
WHERE view_schema = current_schema AND view_name = 'readings_1m'
"""
VIEWS = """
SELECT 1 FROM pg_class
WHERE relnamespace = current_schema::regnamespace AND relname = 'readings_1m' AND relkind = 'v'
"""


def has(query: str) -> bool:
    """Return whether a query has a row."""
    return op.get_bind().execute(sqlalchemy.text(query)).scalar() is not None


def has_plain_views() -> bool:
    """Return whether the aggregates are there, and not continuous. A changed licence does not change them."""
    return has(VIEWS) and not (has(HAS_TIMESCALEDB) and has(CONTINUOUS))


def until(tier: str) -> str:
    """Return the time up to which a tier's table is right, as SQL."""
    return REFRESHED_UNTIL.format(width=WIDTHS[tier], behind=BEHIND[tier])


def of_metrics(columns: str, separator: str = ",\n       ") -> str:
    """Return columns of each metric."""
    return separator.join(columns.format(metric) for metric in METRICS)


def statements() -> Iterator[str]:
    """Yield the statements that create the tables and replace the views, from the finest tier on."""
    finer = None
    for tier, width in WIDTHS.items():
        yield TABLE.format(tier=tier, columns=of_metrics(COLUMNS_OF_METRIC, ",\n    "))
        yield VIEW.format(
            tier=tier,
            width=width,
            until=until(tier),
            names=of_metrics(NAMES),
            source=finer or "readings",
            time="bucket" if finer else "time",
            count="sum(count)::bigint" if finer else "count(*)",
            columns=of_metrics(OF_FINER_TIER if finer else OF_READINGS),
        )
        finer = f"readings_{tier}"
    yield LAG.format(tiers=", ".join(f"('{tier}', {until(tier)})" for tier in WIDTHS))
    yield SIZES


def upgrade() -> None:
    if not has_plain_views():
        return
    op.execute(NOTHING_IS_REFRESHED)
    for statement in statements():
        op.execute(statement)
    op.execute(GRANT)


def downgrade() -> None:
    if not has("SELECT to_regclass('aggregates_1m')"):
        return
    for tier, width in WIDTHS.items():
        op.execute(EARLIER_VIEW.format(tier=tier, width=width, columns=of_metrics(EARLIER_OF_READINGS)))
    op.execute(EARLIER_LAG)
    op.execute(EARLIER_SIZES)
    op.execute(ALL_IS_REFRESHED)
    op.execute("DROP TABLE aggregates_1m, aggregates_1h, aggregates_1d")
