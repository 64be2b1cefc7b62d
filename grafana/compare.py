"""Compare sensors: one metric of many sensors, side by side."""

from grafana.fleet import HIDDEN, TO_SENSOR
from grafana.panels import dashboard, override, sql, table, timeseries, unit_from, variable
from grafana.zoom import Points, curves, points

MOST_CURVES = 50
ZOOM = "Readings below 17 minutes, buckets of a minute below 17 hours, of an hour below 18 days, of a day above."

unit, with_unit = unit_from("SELECT unit FROM metrics WHERE name = ${metric:sqlstring}")

# As an array, and not as a subquery of its own, the ids reach the index and the columnstore.
FIRST_CHOSEN = f"ARRAY(SELECT id FROM sensors WHERE id IN (${{sensor:sqlstring}}) ORDER BY name LIMIT {MOST_CURVES})"

chart = timeseries(
    "$metric by sensor",
    f"The mean of each sensor; of more than {MOST_CURVES} chosen, the first {MOST_CURVES} by name. {ZOOM}",
    [
        sql(
            """
            SELECT time, sensor, mean
            FROM (
                {curves}
            ) AS curves
            ORDER BY time
            """,
            curves=curves(f"metric = ${{metric:sqlstring}} AND sensor_id = ANY({FIRST_CHOSEN})"),
        ),
        unit,
    ],
    size=(24, 12),
    defaults={"displayName": "${__field.labels.sensor}", "decimals": 2},
    custom={"fillOpacity": 0},
    calcs=["lastNotNull"],
    # Each sensor gets a frame of its own: in a common one, times that only another has would break its line.
    transformations=[
        with_unit,
        {
            "id": "partitionByValues",
            "options": {"fields": ["sensor"], "keepFields": False, "naming": {"asLabels": True}},
        },
    ],
    points=Points.SEVERAL_SENSORS,
)

figures = table(
    "$metric in this range",
    f"""Over what the chart shows, of every chosen sensor. Means are those of readings and not of buckets; the
    difference is to the mean of all readings of the chosen sensors. {ZOOM}""",
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
        points=points("metric = ${metric:sqlstring} AND sensor_id IN (${sensor:sqlstring})"),
    ),
    unit,
    size=(24, 10),
    defaults={"decimals": 2},
    overrides=[
        override("id", custom__hideFrom=HIDDEN),
        override("Sensor", links=TO_SENSOR),
        override("Readings", unit="short", decimals=0),
    ],
    transformations=[with_unit],
    points=Points.SEVERAL_SENSORS,
)

DASHBOARD = dashboard(
    "sensorflow-compare",
    "Compare sensors",
    "One metric of many sensors in one chart and one table.",
    [chart, figures],
    variables=[
        variable(
            "sensor",
            "Sensors",
            "The sensors that are compared.",
            "SELECT name AS __text, id::text AS __value FROM sensors ORDER BY 1",
            multi=True,
        ),
        variable(
            "metric",
            "Metric",
            "The metric that is compared.",
            "SELECT title AS __text, name AS __value FROM metrics ORDER BY 1",
        ),
    ],
)
