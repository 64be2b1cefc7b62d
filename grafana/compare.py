"""Compare sensors: one metric of many sensors, side by side."""

from grafana.panels import dashboard, link, override, sql, table, timeseries, unit_from, variable
from grafana.zoom import Points, points

CHOSEN = "sensor_id IN (${sensor:sqlstring})"
METRIC = "${metric:sqlstring}"
MOST_CURVES = 50
ZOOM = """Readings below 17 minutes, buckets of a minute below 17 hours, of an hour below 18 days, of a day above."""

unit, with_unit = unit_from(f"SELECT unit FROM metrics WHERE name = {METRIC}")

curves = timeseries(
    "$metric by sensor",
    f"The mean of each sensor; of more than {MOST_CURVES} chosen, the first {MOST_CURVES} by name. {ZOOM}",
    [
        sql(f"""WITH drawn AS (
    SELECT id, name
    FROM sensors
    WHERE id IN (${{sensor:sqlstring}})
    ORDER BY name
    LIMIT {MOST_CURVES}
)
SELECT zoomed.time, drawn.name AS sensor, zoomed.sum / zoomed.count AS mean
FROM ({points(f"metric = {METRIC} AND sensor_id IN (SELECT id FROM drawn)")}) AS zoomed
JOIN drawn ON drawn.id = zoomed.sensor_id
ORDER BY zoomed.time"""),
        unit,
    ],
    size=(24, 12),
    defaults={"displayName": "${__field.labels.sensor}"},
    custom={"fillOpacity": 0},
    calcs=["lastNotNull"],
    # Each sensor has a frame of its own; in one wide frame, times that only another has would break its line.
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
    sql(f"""SELECT s.id, s.name AS "Sensor", f.readings AS "Readings", f.lowest AS "Lowest", f.mean AS "Mean",
       f.mean - f.mean_of_all AS "Difference", f.highest AS "Highest", f.last AS "Last"
FROM (
    SELECT sensor_id, sum(count) AS readings, min(min) AS lowest, sum(sum) / sum(count) AS mean, max(max) AS highest,
           sum(sum(sum)) OVER () / sum(sum(count)) OVER () AS mean_of_all,
           (array_agg(last ORDER BY time DESC))[1] AS last
    FROM ({points(f"metric = {METRIC} AND {CHOSEN}")}) AS zoomed
    GROUP BY sensor_id
) f
JOIN sensors s ON s.id = f.sensor_id
ORDER BY s.name"""),
    unit,
    size=(24, 10),
    defaults={"decimals": 2},
    overrides=[
        override("id", unit="none", custom__hideFrom={"legend": True, "tooltip": True, "viz": True}),
        override(
            "Sensor",
            links=link("Sensor detail", "/d/sensorflow-sensor?var-sensor=${__data.fields.id}&${__url_time_range}"),
        ),
        override("Readings", unit="short", decimals=0),
    ],
    transformations=[with_unit],
    points=Points.SEVERAL_SENSORS,
)

DASHBOARD = dashboard(
    "sensorflow-compare",
    "Compare sensors",
    "One metric of many sensors in one chart and one table.",
    [curves, figures],
    variables=[
        variable(
            "sensor",
            "Sensors",
            "The sensors that are compared.",
            "SELECT name AS __text, id AS __value FROM sensors ORDER BY 1",
            multi=True,
        ),
        variable(
            "metric",
            "Metric",
            "The metric that is compared.",
            "SELECT title AS __text, name AS __value FROM metrics ORDER BY 1 DESC",
        ),
    ],
)
