"""Sensor detail: one sensor at every zoom, from a year down to single readings."""

from grafana.fleet import STATUS, STATUS_COLORS
from grafana.panels import (
    BLUE,
    RED,
    colored_text,
    dashboard,
    fixed,
    override,
    row,
    sql,
    stat,
    table,
    timeseries,
    unit_from,
    variable,
)
from grafana.zoom import Points, points

SENSOR = "${sensor:sqlstring}"
METRIC = "${metric:sqlstring}"
OF_THIS = f"sensor_id = {SENSOR} AND metric = {METRIC}"
ZOOM = """Zoomed in (below 70 minutes) the readings themselves; then buckets of a minute (below 70 hours), of an hour
(below 75 days) and of a day."""

unit, with_unit = unit_from(f"SELECT unit FROM metrics WHERE name = {METRIC}")

latest = stat(
    "Latest reading",
    "Each metric of the latest reading by its own time; red where it is out of the sensor's limits.",
    sql(f"""
        SELECT m.title AS metric, p.value, m.unit, CASE WHEN v.metric IS NULL THEN 'green' ELSE 'red' END AS color
        FROM latest_points p
        JOIN metrics m ON m.name = p.metric
        LEFT JOIN limit_violations v ON v.sensor_id = p.sensor_id AND v.metric = p.metric
        WHERE p.sensor_id = {SENSOR}
        ORDER BY m.title
    """),
    size=(12, 4),
    defaults={"decimals": 2},
    transformations=[{"id": "rowsToFields", "options": {}}],
)

registered = table(
    "Sensor",
    "What is known of the sensor. All but its name and its age is set with PATCH /api/sensors/{name}.",
    sql(f"""
        SELECT name AS "Sensor", label AS "Label", location AS "Location", {STATUS} AS "Status", age_s AS "Age",
               expected_interval_s AS "Expected every"
        FROM sensor_status
        WHERE sensor_id = {SENSOR}
    """),
    size=(12, 4),
    overrides=[
        override("Status", mappings=colored_text(STATUS_COLORS), custom__cellOptions={"type": "color-background"}),
        override("Age", unit="s", decimals=0),
        override("Expected every", unit="s"),
    ],
)

# A gap is where the sensor would have been offline. A row of nulls in it makes Grafana break the line.
curve = timeseries(
    "$metric",
    f"""Mean, and the band from the lowest to the highest reading, with the sensor's limits. {ZOOM} The line is broken
    where the sensor was silent for longer than three times its expected interval (five minutes, where none is set).""",
    [
        sql(
            f"""WITH zoomed AS ({points(OF_THIS)}),
spaced AS (
    SELECT time, sum / count AS mean, min, max, width_s,
           extract(epoch FROM lead(time) OVER (ORDER BY time) - time) AS step_s
    FROM zoomed
)
SELECT time, mean, min, max
FROM spaced
UNION ALL
SELECT time + INTERVAL '1 millisecond', NULL, NULL, NULL
FROM spaced
WHERE step_s > greatest(
    width_s, (SELECT coalesce(3 * expected_interval_s, 300) FROM sensors WHERE id = {SENSOR})
)
ORDER BY time""",
            series=True,
        ),
        sql(
            f"""
            SELECT t.time, l.name AS metric, l.value
            FROM sensor_limits
            CROSS JOIN LATERAL (VALUES ('upper limit', upper), ('lower limit', lower)) AS l (name, value)
            CROSS JOIN (VALUES (TIMESTAMPTZ $__timeFrom()), (TIMESTAMPTZ $__timeTo())) AS t (time)
            WHERE {OF_THIS} AND l.value IS NOT NULL
            ORDER BY t.time
            """,
            ref="limits",
            series=True,
        ),
        unit,
    ],
    size=(19, 10),
    custom={"fillOpacity": 0},
    calcs=[],
    overrides=[
        override("mean", color=fixed(BLUE), custom__lineWidth=2),
        *(
            override(
                edge,
                color=fixed(BLUE),
                custom__lineWidth=0,
                custom__showPoints="never",
                custom__hideFrom={"legend": True, "tooltip": False, "viz": False},
                **band,
            )
            for edge, band in (("max", {"custom__fillBelowTo": "min", "custom__fillOpacity": 20}), ("min", {}))
        ),
        *(
            override(
                limit,
                color=fixed(RED),
                custom__lineStyle={"fill": "dash", "dash": [10, 10]},
                custom__showPoints="never",
            )
            for limit in ("upper limit", "lower limit")
        ),
    ],
    transformations=[with_unit],
    points=Points.ONE_SENSOR,
)

figures = stat(
    "$metric in this range",
    f"Over what the chart shows. The mean is that of the readings and not of the buckets. {ZOOM}",
    sql(f"""SELECT sum(count) AS "Readings", min(min) AS "Lowest", sum(sum) / sum(count) AS "Mean",
       max(max) AS "Highest",
       (array_agg(first ORDER BY time))[1] AS "First", (array_agg(last ORDER BY time DESC))[1] AS "Last"
FROM ({points(OF_THIS)}) AS zoomed
HAVING count(*) > 0"""),
    unit,
    size=(5, 10),
    defaults={"color": fixed(BLUE), "decimals": 2},
    overrides=[override("Readings", unit="short", decimals=0)],
    transformations=[with_unit],
    points=Points.ONE_SENSOR,
)

DASHBOARD = dashboard(
    "sensorflow-sensor",
    "Sensor detail",
    "One sensor at every zoom: mean, range, limits and gaps of each metric.",
    [latest, registered, row("$metric", repeat="metric"), curve, figures],
    variables=[
        variable(
            "sensor",
            "Sensor",
            "The sensor that is looked at.",
            "SELECT name AS __text, id AS __value FROM sensors ORDER BY 1",
        ),
        variable(
            "metric",
            "Metric",
            "Metrics that are shown, each in a row of its own.",
            "SELECT title AS __text, name AS __value FROM metrics ORDER BY 1",
            multi=True,
        ),
    ],
)
