"""One query for every zoom: of the readings and their three aggregates, only that is read which suits the range.

Grafana divides the range by a panel's maxDataPoints, rounds, and puts the result into the query as a constant. So each
branch below is either wholly there or, to PostgreSQL's planner, ``One-Time Filter: false``. maxDataPoints is fixed on
every panel: Grafana would otherwise take the panel's width, and another screen would show other aggregates.
"""

from enum import IntEnum


class Points(IntEnum):
    """maxDataPoints of a panel, by how many sensors it reads. With the bounds below it makes the ranges.

    Where one range ends and the next begins, the coarser points are some 70 a sensor and the finer ones 4,200 (where it
    sends each second).
    """

    ONE_SENSOR = 1_200
    """Readings below 70 minutes, 1m below 70 hours, 1h below 75 days, then 1d."""
    SEVERAL_SENSORS = 300
    """Readings below 17 minutes, 1m below 17 hours, 1h below 18 days, then 1d."""
    FLEET = 100
    """1m below 5 hours, 1h below 6 days, then 1d."""


READINGS = "$__interval_ms <= 2000"
TIERS = {
    "1m": ("1 minute", 60, "$__interval_ms > 2000 AND $__interval_ms <= 120000"),
    "1h": ("1 hour", 3_600, "$__interval_ms > 120000 AND $__interval_ms <= 3600000"),
    "1d": ("1 day", 86_400, "$__interval_ms > 3600000"),
}
FINEST_TIER = "$__interval_ms <= 120000"


def bucket_in_range(width: str) -> str:
    """The condition on buckets: the one in which the range begins is part of it."""
    return f"bucket BETWEEN date_bin('{width}', TIMESTAMPTZ $__timeFrom(), TIMESTAMPTZ 'epoch') AND $__timeTo()"


def points(where: str) -> str:
    """A subquery of values: time, width_s (0: a reading), sensor_id, count, sum, min, max, first, last."""
    readings = f"""
    SELECT time, 0 AS width_s, sensor_id, 1 AS count, value AS sum, value AS min, value AS max,
           value AS first, value AS last
    FROM points
    WHERE {READINGS} AND $__timeFilter(time) AND {where}"""
    tiers = [
        f"""
    SELECT bucket, {width_s}, sensor_id, count, sum, min, max, first, last
    FROM points_{tier}
    WHERE {gate} AND {bucket_in_range(width)}
      AND {where}"""
        for tier, (width, width_s, gate) in TIERS.items()
    ]
    return "\n    UNION ALL".join([readings, *tiers]) + "\n"


def counts() -> str:
    """A subquery of how many readings the whole fleet sent: time, width_s, count. Readings are not looked at."""
    return (
        "\n    UNION ALL".join(
            f"""
    SELECT bucket AS time, {width_s} AS width_s, count
    FROM readings_{tier}
    WHERE {FINEST_TIER if tier == "1m" else gate} AND {bucket_in_range(width)}"""
            for tier, (width, width_s, gate) in TIERS.items()
        )
        + "\n"
    )
