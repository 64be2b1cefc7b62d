"""One query for every zoom: of the readings and their three aggregates, only that is read which suits the range.

Grafana divides the range by a panel's maxDataPoints, rounds, and puts the result into the query as a constant. So each
branch below is either wholly there or, to PostgreSQL's planner, ``One-Time Filter: false``. maxDataPoints is fixed on
every panel: Grafana would otherwise take the panel's width, and another screen would show other aggregates.
"""

from collections.abc import Mapping
from enum import IntEnum
from textwrap import indent


class Points(IntEnum):
    """maxDataPoints of a panel. With the bounds below it makes the ranges.

    Of one sensor, a reading a second is drawn as 4,200 points at most, and a coarser aggregate begins with 70.
    """

    SENSORS = 1_200
    """One sensor. Readings below 70 minutes, 1m below 70 hours, 1h below 75 days, then 1d."""
    COMPARED = 1_050
    """Each of several sensors. Readings up to an hour, 1m up to 60 hours, 1h up to 65 days, then 1d."""
    STATES = 600
    """States of some sensors. 1m below 35 hours, 1h below 37 days, then 1d."""
    FLEET = 43
    """1m up to 2.5 hours, 1h up to 2.5 days, then 1d."""


RAW_MS, MINUTES_MS, HOURS_MS = 2_000, 120_000, 3_600_000
"""The longest interval at which readings and the aggregates of a minute and an hour are read."""
TIER_S = f"""CASE WHEN $__interval_ms <= {MINUTES_MS} THEN 60 WHEN $__interval_ms <= {HOURS_MS} THEN 3600
     ELSE 86400 END"""
"""The width of the aggregates' buckets that suit the range."""
WIDTH_S = f"CASE WHEN $__interval_ms <= {RAW_MS} THEN 0 ELSE {TIER_S} END"
"""The same where readings are read, too: their width is 0."""
BIN_S = "$__interval_ms * 0.002::float8"
"""Two intervals."""


def sources(where: str) -> tuple[str, str, str, str, str, str]:
    """Return what to read for each interval, as FROM and WHERE.

    They are six: readings; readings of the current minute; readings of the current hour, for its minutes; minutes;
    hours; days. The current bucket is not whole yet. In its place come finer ones: of a day its hours, of an hour its
    minutes, of a minute its readings. So a line ends where its sensor's readings do, and its last value is no mean of a
    part. Minutes of the current hour are made of readings here, since a condition on a view's buckets does not reach
    the index of the readings. With now() less a constant TimescaleDB plans for the newest chunks only; through date_bin
    it plans for all.
    """
    return (
        f"""FROM points
WHERE $__interval_ms <= {RAW_MS} AND {where}
  AND time >= $__timeFrom() AND time <= $__timeTo()""",
        f"""FROM points
WHERE $__interval_ms > {RAW_MS} AND $__interval_ms <= {MINUTES_MS} AND {where}
  AND time >= greatest($__timeFrom(), {bucket_of_now("1 minute")}) AND time <= $__timeTo()
  AND time > now() - INTERVAL '1 minute'""",
        f"""FROM points
WHERE $__interval_ms > {MINUTES_MS} AND {where}
  AND time >= greatest($__timeFrom(), {bucket_of_now("1 hour")}) AND time <= $__timeTo()
  AND time > now() - INTERVAL '1 hour'""",
        f"""FROM points_1m
WHERE $__interval_ms > {RAW_MS} AND $__interval_ms <= {MINUTES_MS} AND {where}
  AND {in_range("1 minute")} AND bucket < {bucket_of_now("1 minute")}""",
        f"""FROM points_1h
WHERE $__interval_ms > {MINUTES_MS} AND {where}
  AND {in_range("1 hour")} AND bucket < {bucket_of_now("1 hour")}
  AND ($__interval_ms <= {HOURS_MS} OR bucket >= {bucket_of_now("1 day")})""",
        f"""FROM points_1d
WHERE $__interval_ms > {HOURS_MS} AND {where}
  AND {in_range("1 day")} AND bucket < {bucket_of_now("1 day")}""",
    )


def points(where: str) -> str:
    """Return a query of values: time, width_s (0: a reading), sensor_id, count, sum, min, max, first, last."""
    readings, readings_of_now, minutes_of_now, minutes, hours, days = sources(where)
    return f"""\
SELECT time, 0 AS width_s, sensor_id, 1 AS count, value AS sum,
       value AS min, value AS max, value AS first, value AS last
{readings}
UNION ALL
SELECT time, 0, sensor_id, 1, value, value, value, value, value
{readings_of_now}
UNION ALL
SELECT date_bin('1 minute', time, TIMESTAMPTZ 'epoch'), 60, sensor_id, count(*), sum(value), min(value), max(value),
       (array_agg(value ORDER BY time))[1], (array_agg(value ORDER BY time DESC))[1]
{minutes_of_now}
GROUP BY 1, 3
UNION ALL
SELECT bucket, 60, sensor_id, count, sum, min, max, first, last
{minutes}
UNION ALL
SELECT bucket, 3600, sensor_id, count, sum, min, max, first, last
{hours}
UNION ALL
SELECT bucket, 86400, sensor_id, count, sum, min, max, first, last
{days}"""


def thinned(where: str) -> str:
    """Return a query for many sensors, with about half as many points of each as the panel may have.

    Its columns are time, width_s, sensor_id, count, sum. Points of two intervals become one; Grafana's intervals are
    such that two hold whole buckets. A bin of readings begins with the first of them. In place of the bucket of now,
    hours and minutes stay as they are. Each branch is grouped by itself, which PostgreSQL can do in parallel: 50 curves
    take half as long as grouped together.
    """
    readings, readings_of_now, minutes_of_now, minutes, hours, days = sources(where)
    hours_s = f"CASE WHEN $__interval_ms <= {HOURS_MS} THEN greatest(3600, {BIN_S}) ELSE 3600 END"
    return f"""\
SELECT min(time) AS time, 0 AS width_s, sensor_id, count(*) AS count, sum(value) AS sum
{readings}
GROUP BY sensor_id, {bin_of("time", BIN_S)}
UNION ALL
SELECT min(time), 0, sensor_id, count(*), sum(value)
{readings_of_now}
GROUP BY sensor_id, {bin_of("time", str(2 * RAW_MS // 1_000))}
UNION ALL
SELECT {bin_of("time", "60")} AS bin, 60, sensor_id, count(*), sum(value)
{minutes_of_now}
GROUP BY bin, sensor_id
UNION ALL
SELECT {bin_of("bucket", f"greatest(60, {BIN_S})")} AS bin, greatest(60, {BIN_S}), sensor_id, sum(count), sum(sum)
{minutes}
GROUP BY bin, sensor_id
UNION ALL
SELECT {bin_of("bucket", hours_s)} AS bin, {hours_s}, sensor_id, sum(count), sum(sum)
{hours}
GROUP BY bin, sensor_id
UNION ALL
SELECT {bin_of("bucket", f"greatest(86400, {BIN_S})")} AS bin, greatest(86400, {BIN_S}), sensor_id, sum(count), sum(sum)
{days}
GROUP BY bin, sensor_id"""


def curves(where: str) -> str:
    """Return a query of a sensor's curve: time, sensor, mean, min, max; where a gap begins, a row without values."""
    return _drawn(points(where), WIDTH_S, {"mean": "p.sum / p.count", "min": "p.min", "max": "p.max"})


def mean_curves(where: str) -> str:
    """Return a query of many sensors' curves: time, sensor, mean; where a gap begins, a row without values."""
    width_s = f"CASE WHEN $__interval_ms <= {RAW_MS} THEN 0 ELSE greatest({WIDTH_S}, {BIN_S}) END"
    return _drawn(thinned(where), width_s, {"mean": "p.sum / p.count"})


def _drawn(zoomed: str, width_s: str, values: Mapping[str, str]) -> str:
    """Return a query of time, sensor, and ``values`` of a point ``p`` by their names.

    After the last values before a gap comes a row without any, at which Grafana breaks the line. In a gap a bucket is
    empty, and nothing came for longer than three expected intervals or, where none is set, than three usual ones.

    Args:
        zoomed: a query of points.
        width_s: the width of those that suit the range.
        values: by their names.
    """
    return f"""\
WITH zoomed AS (
    {indent(zoomed, "    ").lstrip()}
), stepped AS (
    SELECT *, date_part('epoch', lead(time) OVER (PARTITION BY sensor_id ORDER BY time) - time) AS step_s
    FROM zoomed
), usual AS (
    SELECT sensor_id, percentile_disc(0.5) WITHIN GROUP (ORDER BY step_s) AS step_s
    FROM stepped
    WHERE width_s = {width_s}
    GROUP BY sensor_id
), drawn AS (
    SELECT p.time, s.name AS sensor, {", ".join(f"{value} AS {name}" for name, value in values.items())},
           p.step_s > greatest(
               p.width_s, 3 * coalesce(s.expected_interval_s, nullif(u.step_s, p.width_s))
           ) AS ends_at_gap
    FROM stepped p
    LEFT JOIN usual u ON u.sensor_id = p.sensor_id
    JOIN sensors s ON s.id = p.sensor_id
)
SELECT time, sensor, {", ".join(values)}
FROM drawn
UNION ALL
SELECT time + INTERVAL '1 millisecond', sensor, {", ".join("NULL" for _ in values)}
FROM drawn
WHERE ends_at_gap"""


def means(where: str) -> str:
    """Return a query of the means of all metrics, by buckets: time, sensor_id, metric, mean."""
    return f"""\
SELECT bucket AS time, sensor_id, metric, sum / count AS mean
FROM points_1m
WHERE $__interval_ms <= {MINUTES_MS} AND {where}
  AND {in_range("1 minute")}
UNION ALL
SELECT bucket, sensor_id, metric, sum / count
FROM points_1h
WHERE $__interval_ms > {MINUTES_MS} AND $__interval_ms <= {HOURS_MS} AND {where}
  AND {in_range("1 hour")}
UNION ALL
SELECT bucket, sensor_id, metric, sum / count
FROM points_1d
WHERE $__interval_ms > {HOURS_MS} AND {where}
  AND {in_range("1 day")}"""


def counts(where: str = "true", *, above_ms: int = 0) -> str:
    """Return a query of how many readings each sensor sent, by buckets: time, width_s, sensor_id, count.

    Up to an interval of ``above_ms`` it has no rows.
    """
    return f"""\
SELECT bucket AS time, 60 AS width_s, sensor_id, count
FROM readings_1m
WHERE $__interval_ms > {above_ms} AND $__interval_ms <= {MINUTES_MS} AND {where}
  AND {in_range("1 minute")}
UNION ALL
SELECT bucket, 3600, sensor_id, count
FROM readings_1h
WHERE $__interval_ms > {MINUTES_MS} AND $__interval_ms <= {HOURS_MS} AND {where}
  AND {in_range("1 hour")}
UNION ALL
SELECT bucket, 86400, sensor_id, count
FROM readings_1d
WHERE $__interval_ms > {HOURS_MS} AND {where}
  AND {in_range("1 day")}"""


def received(where: str) -> str:
    """Return a query of all readings that came, whatever is in them: time, width_s (0: a reading), sensor_id, count."""
    return f"""\
SELECT time, 0 AS width_s, sensor_id, 1 AS count
FROM readings
WHERE $__interval_ms <= {RAW_MS} AND {where}
  AND time >= $__timeFrom() AND time <= $__timeTo()
UNION ALL
{counts(where, above_ms=RAW_MS)}"""


def bin_of(time: str, width_s: str) -> str:
    """Return the start of the bin in which a time lies."""
    return f"date_bin(make_interval(secs => {width_s}), {time}, TIMESTAMPTZ 'epoch')"


def in_range(width: str) -> str:
    """Return the condition on buckets. $__timeFilter would drop the one in which the range begins."""
    return f"bucket BETWEEN date_bin('{width}', TIMESTAMPTZ $__timeFrom(), TIMESTAMPTZ 'epoch') AND $__timeTo()"


def bucket_of_now(width: str) -> str:
    """Return the start of the bucket that is not whole yet."""
    return f"date_bin('{width}', now(), TIMESTAMPTZ 'epoch')"
