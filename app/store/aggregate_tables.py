"""The tables of aggregates, where these are not continuous: one statement for each tier. Pure.

A statement recomputes the buckets of a span as a whole, with one snapshot: it writes those that differ, and deletes
those that have no reading any more. So it may be cut off, and done again, with no harm.
"""

from datetime import datetime

from app.schema import METRICS
from app.store.tiers import TIERS, Span, Tier

# The index of readings begins with the sensor, and there is none by time alone. So each sensor is found by one step in
# it, also if it has no name, and its readings of the span by another. In a hypertable sensors are looked for in the
# chunks of the span: by whole days, because within a chunk a condition on the time would make the steps long.
_IDS = """
WITH RECURSIVE ids AS (
    (SELECT sensor_id FROM readings WHERE {near} ORDER BY sensor_id LIMIT 1)
    UNION ALL
    SELECT (SELECT sensor_id FROM readings WHERE sensor_id > ids.sensor_id AND {near} ORDER BY sensor_id LIMIT 1)
    FROM ids WHERE ids.sensor_id IS NOT NULL
)"""
_OF_EACH_SENSOR = """, fresh AS MATERIALIZED (
    SELECT bucket, ids.sensor_id, {names}
    FROM ids CROSS JOIN LATERAL (
        SELECT {bucket} AS bucket, {columns}
        FROM readings WHERE sensor_id = ids.sensor_id AND time >= %(start)s AND time < %(end)s
        GROUP BY 1
    ) of_sensor
)"""
_OF_FINER_TABLE = """
WITH fresh AS MATERIALIZED (
    SELECT {bucket} AS bucket, sensor_id, {columns}
    FROM {source} WHERE bucket >= %(start)s AND bucket < %(end)s
    GROUP BY 1, 2
)"""
# The inner limit also keeps PostgreSQL from reading all readings for a join.
_COUNT = """
SELECT count(*) FROM (
    SELECT FROM ids CROSS JOIN LATERAL (
        SELECT FROM readings WHERE sensor_id = ids.sensor_id AND time >= %(start)s AND time < %(end)s LIMIT %(limit)s
    ) of_sensor LIMIT %(limit)s
) AS found
"""
OLDEST_READING = (
    _IDS.format(near="true")
    + """
SELECT min((SELECT time FROM readings WHERE sensor_id = ids.sensor_id ORDER BY time LIMIT 1)) FROM ids
"""
)
_WRITE = """, gone AS (
    DELETE FROM {table} t WHERE bucket >= %(start)s AND bucket < %(end)s
        AND NOT EXISTS (SELECT FROM fresh WHERE (fresh.sensor_id, fresh.bucket) = (t.sensor_id, t.bucket))
)
INSERT INTO {table} AS t (bucket, sensor_id, {names})
SELECT bucket, sensor_id, {names} FROM fresh
ON CONFLICT (sensor_id, bucket) DO UPDATE SET ({names}) = ({excluded})
WHERE ({of_table}) IS DISTINCT FROM ({excluded})
"""
_BUCKET = "date_bin('{seconds:.0f} seconds', {time}, TIMESTAMPTZ 'epoch')"
# A sum of finite values that is not finite would fail. Both ends in one order: PostgreSQL sorts once.
_OF_READINGS = """count({0}) AS {0}_count,
    sum(least(greatest({0}, -1e290), 1e290)) FILTER (WHERE {0} IS NOT NULL) AS {0}_sum,
    min({0}) AS {0}_min, max({0}) AS {0}_max,
    (array_agg({0} ORDER BY time) FILTER (WHERE {0} IS NOT NULL))[1] AS {0}_first,
    (array_agg({0} ORDER BY time) FILTER (WHERE {0} IS NOT NULL))[count({0})::integer] AS {0}_last"""
_OF_FINER_TIER = """sum({0}_count)::bigint AS {0}_count, sum({0}_sum) AS {0}_sum,
    min({0}_min) AS {0}_min, max({0}_max) AS {0}_max,
    (array_agg({0}_first ORDER BY bucket) FILTER (WHERE {0}_count > 0))[1] AS {0}_first,
    (array_agg({0}_last ORDER BY bucket) FILTER (WHERE {0}_count > 0))[
        (count(*) FILTER (WHERE {0}_count > 0))::integer
    ] AS {0}_last"""
_FIGURES = ("count", "sum", "min", "max", "first", "last")
_NAMES = ["count", *(f"{metric}_{figure}" for metric in METRICS for figure in _FIGURES)]


def table_of(tier: str) -> str:
    """Return the name of the table behind a tier's view."""
    return tier.replace("readings", "aggregates")


def recompute(tier: Tier, span: Span, *, has_chunks: bool) -> tuple[str, dict[str, datetime]]:
    """Return the statement that recomputes a tier's buckets of a span, with its arguments.

    Args:
        tier: what is recomputed; all finer tiers are right in the span.
        span: from the start of a bucket to the start of another.
        has_chunks: whether ``readings`` is a hypertable.
    """
    place = TIERS.index(tier)
    count, of_metric = ("sum(count)::bigint", _OF_FINER_TIER) if place else ("count(*)", _OF_READINGS)
    statement = (_OF_FINER_TABLE if place else _IDS + _OF_EACH_SENSOR) + _WRITE
    names = {
        "table": table_of(tier.name),
        "source": table_of(TIERS[place - 1].name),
        "near": _near(has_chunks=has_chunks),
        "bucket": _BUCKET.format(seconds=tier.width.total_seconds(), time="bucket" if place else "time"),
        "columns": ", ".join([f"{count} AS count", *(of_metric.format(metric) for metric in METRICS)]),
        "names": ", ".join(_NAMES),
        "excluded": ", ".join(f"excluded.{name}" for name in _NAMES),
        "of_table": ", ".join(f"t.{name}" for name in _NAMES),
    }
    return statement.format(**names), _arguments(span)


def count_readings(span: Span, *, has_chunks: bool) -> tuple[str, dict[str, datetime]]:
    """Return the statement that counts the readings of a span up to a ``limit``, with its arguments but for that.

    ``has_chunks``: whether ``readings`` is a hypertable.
    """
    return (_IDS + _COUNT).format(near=_near(has_chunks=has_chunks)), _arguments(span)


def _near(*, has_chunks: bool) -> str:
    return "time >= %(first_day)s AND time < %(last_day)s" if has_chunks else "true"


def _arguments(span: Span) -> dict[str, datetime]:
    day = TIERS[-1]
    return {"start": span[0], "end": span[1], "first_day": day.floor(span[0]), "last_day": day.ceil(span[1])}
