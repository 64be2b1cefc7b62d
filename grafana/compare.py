"""Compare sensors: one metric of many sensors, side by side."""

from grafana.choices import CHOICES_IN_WORDS, SENSOR_CHOICES
from grafana.fleet import TO_SENSOR
from grafana.metrics import UNIT, UNIT_ALONE, WITH_UNIT
from grafana.panels import HIDDEN, NO_CELL, dashboard, frame_of_each, override, sql, table, timeseries, variable
from grafana.zoom import Points, mean_curves, points

MOST_CURVES = 50
FIRST_BY_NAME = 5
"""How many sensors are shown before any is chosen."""
FIRST = "0"
"""Stands among the values of the variable for the first sensors by name. It is no sensor's id."""
ZOOM = """Readings up to an hour, buckets of a minute up to 60 hours, of an hour up to 65 days, of a day above; in place
of the bucket that is not whole yet, finer ones."""

# As an array, and not as a subquery of its own, the ids reach the index and the columnstore.
FIRST_CHOSEN = f"""ARRAY(
    SELECT id
    FROM (
        SELECT id, name FROM sensors WHERE id IN (${{sensor:sqlstring}})
        UNION
        (SELECT id, name FROM sensors WHERE '{FIRST}' IN (${{sensor:sqlstring}}) ORDER BY name LIMIT {FIRST_BY_NAME})
    ) AS chosen
    ORDER BY name
    LIMIT {MOST_CURVES}
)"""

NOTHING = "None of these sensors has sent this metric in this range"

# Frames come in the order of their first rows, and colours by the order of frames. So rows are ordered by sensor, and a
# silent sensor has one, too: before the first bucket, where it breaks no line.
chart = timeseries(
    f"$metric by sensor, {MOST_CURVES} at most",
    f"The mean of each sensor; of more than {MOST_CURVES} chosen, the first {MOST_CURVES} by name. {ZOOM}",
    [
        sql(
            """
            SELECT time, sensor, mean
            FROM (
                {curves}
            ) AS curves
            UNION ALL
            SELECT TIMESTAMPTZ $__timeFrom() - INTERVAL '1 day', name, NULL FROM sensors WHERE id = ANY({chosen})
            ORDER BY sensor, time
            """,
            curves=mean_curves(f"metric = ${{metric:sqlstring}} AND sensor_id = ANY({FIRST_CHOSEN})"),
            chosen=FIRST_CHOSEN,
        ),
        UNIT_ALONE,
    ],
    size=(24, 13),
    defaults={"displayName": "${__field.labels.sensor}", "noValue": NO_CELL},
    custom={"fillOpacity": 0},
    # Its last figure would be the mean of a bucket. The table below has the last reading.
    calcs=[],
    # Each sensor gets a frame of its own: in a common one, times that only another has would break its line.
    transformations=[
        WITH_UNIT,
        frame_of_each("sensor"),
    ],
    points=Points.COMPARED,
)

figures = table(
    f"$metric in this range, {MOST_CURVES} sensors at most",
    f"""Over what the chart shows, of the same sensors. Means are those of readings and not of buckets; the
    difference is to the mean of all readings of these sensors. {ZOOM}""",
    sql(
        """
        SELECT f.sensor_id::text AS id, s.name AS "Sensor", f.readings AS "Readings", f.lowest AS "Lowest",
               f.mean AS "Mean", f.mean - f.mean_of_all AS "Difference", f.highest AS "Highest", f.last AS "Last"
        FROM (
            SELECT sensor_id, sum(count) AS readings, min(min) AS lowest, sum(sum) / sum(count) AS mean,
                   sum(sum(sum)) OVER () / sum(sum(count)) OVER () AS mean_of_all, max(max) AS highest,
                   (array_agg(last ORDER BY time DESC))[1] AS last
            FROM (
                {points}
            ) AS zoomed
            GROUP BY sensor_id
        ) AS f
        JOIN sensors s ON s.id = f.sensor_id
        ORDER BY s.name
        """,
        points=points(f"metric = ${{metric:sqlstring}} AND sensor_id = ANY({FIRST_CHOSEN})"),
    ),
    UNIT,
    size=(24, 10),
    overrides=[
        override("id", custom__hideFrom=HIDDEN),
        override("Sensor", links=TO_SENSOR),
        override("Readings", unit="locale", decimals=0),
    ],
    transformations=[WITH_UNIT],
    points=Points.COMPARED,
    empty=NOTHING,
)

DASHBOARD = dashboard(
    "sensorflow-compare",
    "Compare sensors",
    "One metric of many sensors in one chart and one table.",
    [chart, figures],
    refresh="1m",
    variables=[
        variable(
            "sensor",
            "Sensors (type to search)",
            f"""The sensors that are compared, {MOST_CURVES} at most. {CHOICES_IN_WORDS}""",
            f"""
            SELECT __text, __value
            FROM (
                SELECT 0 AS place, 'First {FIRST_BY_NAME} by name' AS __text, '{FIRST}' AS __value
                UNION ALL
                (SELECT 1, __text, __value FROM ({SENSOR_CHOICES}) AS found)
            ) AS choices
            ORDER BY place, __text
            """,
            multi=True,
            has_all=False,
        ),
        variable(
            "metric",
            "Metric",
            "The metric that is compared.",
            "SELECT title AS __text, name AS __value FROM metrics ORDER BY 1",
        ),
    ],
)
