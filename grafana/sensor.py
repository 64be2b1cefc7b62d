"""Sensor detail: one sensor at every zoom, from a year down to single readings."""

from grafana.choices import CHOICES_IN_WORDS, SENSOR_CHOICES
from grafana.fleet import STATUS, STATUS_COLORS
from grafana.panels import (
    BLUE,
    GREY,
    RED,
    Json,
    colored_text,
    dashboard,
    fixed,
    override,
    row,
    sql,
    stat,
    table,
    thresholds,
    timeseries,
    unit_from,
    variable,
)
from grafana.zoom import Points, curves, points

VALUES = "sensor_id = ${sensor:sqlstring} AND metric = ${metric:sqlstring}"
ZOOM = """Below 70 minutes from the readings themselves; then from buckets of a minute (below 70 hours), of an hour
(below 75 days) and of a day."""
HIDDEN_IN_LEGEND: Json = {"legend": True, "tooltip": False, "viz": False}
DASHED: Json = {"fill": "dash", "dash": [10, 10]}

unit, with_unit = unit_from("SELECT unit FROM metrics WHERE name = ${metric:sqlstring}")

latest = stat(
    "Latest reading",
    """Each metric of the latest reading by its own time; red where it, or a reading of the last hour, is out of the
    sensor's limits.""",
    sql(
        """
        SELECT m.title AS metric, p.value, m.unit, CASE WHEN v.metric IS NULL THEN 'green' ELSE 'red' END AS color
        FROM latest_points p
        JOIN metrics m ON m.name = p.metric
        LEFT JOIN limit_violations v ON v.sensor_id = p.sensor_id AND v.metric = p.metric
        WHERE p.sensor_id = ${sensor:sqlstring}
        ORDER BY m.title
        """
    ),
    size=(12, 4),
    defaults={"decimals": 2, "thresholds": thresholds(GREY)},
    # The first text is the field's name, the number its value; columns named unit and color are what they say.
    transformations=[{"id": "rowsToFields", "options": {}}],
)

registered = table(
    "Sensor",
    "What is known of the sensor. Label, location and expected interval are set with PATCH /api/sensors/{name}.",
    sql(
        """
        SELECT name AS "Sensor", label AS "Label", location AS "Location", {status} AS "Status", age_s AS "Age",
               expected_interval_s AS "Expected every"
        FROM sensor_status
        WHERE sensor_id = ${sensor:sqlstring}
        """,
        status=STATUS,
    ),
    size=(12, 4),
    overrides=[
        override("Status", mappings=colored_text(STATUS_COLORS), custom__cellOptions={"type": "color-background"}),
        override("Age", unit="s", decimals=0),
        override("Expected every", unit="s"),
    ],
)

violations = table(
    "Readings out of limits in this range",
    """Committed readings that were beyond a limit of the sensor when they arrived, by their own time: how many, and the
    furthest. The log keeps them for 90 days.""",
    sql("""
        SELECT m.title AS "Metric", CASE WHEN v.is_above THEN 'above' ELSE 'below' END AS "Side", v.bound AS "Limit",
               sum(v.readings) AS "Readings",
               CASE WHEN v.is_above THEN max(v.value) ELSE min(v.value) END AS "Furthest",
               min(v.first_time) AS "First", max(v.last_time) AS "Last"
        FROM limit_violation_log v
        JOIN metrics m ON m.name = v.metric
        WHERE v.sensor_id = ${sensor:sqlstring} AND v.last_time >= $__timeFrom() AND v.first_time <= $__timeTo()
        GROUP BY m.title, v.is_above, v.bound
        ORDER BY max(v.last_time) DESC, m.title, v.is_above, v.bound
        LIMIT 1000
    """),
    size=(24, 5),
    unit="none",
    defaults={"decimals": 2},
    empty="No reading was out of limits when it came",
    overrides=[
        override("Readings", unit="locale"),
        override("Furthest", color=fixed(RED), custom__cellOptions={"type": "color-text"}),
    ],
)

chart = timeseries(
    "$metric",
    f"""Mean, and the band from the lowest to the highest reading, with the sensor's limits. {ZOOM} The line is broken
    where nothing came for longer than three of the sensor's expected intervals or, where none is set, of its usual
    ones.""",
    [
        sql(
            """
            SELECT time, mean, min, max
            FROM (
                {curves}
            ) AS curve
            ORDER BY time
            """,
            curves=curves(VALUES),
            series=True,
        ),
        sql(
            """
            SELECT t.time, l.name AS metric, l.value
            FROM sensor_limits
            CROSS JOIN LATERAL (VALUES ('upper limit', upper), ('lower limit', lower)) AS l (name, value)
            CROSS JOIN (VALUES (TIMESTAMPTZ $__timeFrom()), (TIMESTAMPTZ $__timeTo())) AS t (time)
            WHERE {values} AND l.value IS NOT NULL
            ORDER BY t.time, l.name
            """,
            values=VALUES,
            ref="limits",
            series=True,
        ),
        unit,
    ],
    size=(19, 10),
    defaults={"decimals": 2},
    custom={"fillOpacity": 0},
    calcs=[],
    overrides=[
        override("mean", color=fixed(BLUE), custom__lineWidth=2),
        override("max", custom__fillBelowTo="min", custom__fillOpacity=20),
        *(
            override(
                edge,
                color=fixed(BLUE),
                custom__lineWidth=0,
                custom__showPoints="never",
                custom__hideFrom=HIDDEN_IN_LEGEND,
            )
            for edge in ("max", "min")
        ),
        *(
            override(limit, color=fixed(RED), custom__lineStyle=DASHED, custom__showPoints="never")
            for limit in ("upper limit", "lower limit")
        ),
    ],
    transformations=[with_unit],
    points=Points.SENSORS,
)

figures = stat(
    "$metric in this range",
    f"Over what the chart shows. The mean is that of the readings and not of the buckets. {ZOOM}",
    sql(
        """
        SELECT sum(count) AS "Readings", min(min) AS "Lowest", sum(sum) / sum(count) AS "Mean", max(max) AS "Highest",
               (array_agg(first ORDER BY time))[1] AS "First", (array_agg(last ORDER BY time DESC))[1] AS "Last"
        FROM (
            {points}
        ) AS zoomed
        HAVING count(*) > 0
        """,
        points=points(VALUES),
    ),
    unit,
    size=(5, 10),
    defaults={"color": fixed(BLUE), "decimals": 2},
    overrides=[override("Readings", unit="locale")],
    transformations=[with_unit],
    points=Points.SENSORS,
)

DASHBOARD = dashboard(
    "sensorflow-sensor",
    "Sensor detail",
    "One sensor at every zoom: mean, range, limits and gaps of each metric.",
    [latest, registered, violations, row("$metric", repeat="metric"), chart, figures],
    variables=[
        variable(
            "sensor",
            "Sensor (type to search)",
            f"The sensor that is looked at. {CHOICES_IN_WORDS}",
            SENSOR_CHOICES,
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
