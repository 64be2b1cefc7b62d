"""Fleet overview: which sensors send, and which of them are out of their limits. Grafana's home."""

from grafana.panels import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    RED,
    Json,
    colored_text,
    dashboard,
    fixed,
    from_zero,
    link,
    override,
    panel,
    sql,
    stat,
    table,
    timeseries,
)
from grafana.zoom import Points, counts

STATUS_COLORS = {"online": GREEN, "offline": RED, "never seen": GREY}
STATUS = "CASE WHEN is_online THEN 'online' WHEN last_seen_at IS NULL THEN 'never seen' ELSE 'offline' END"
METRIC_UNITS = {"Temperature": "celsius", "Humidity": "percent", "Pressure": "pressurehpa"}

TO_SENSOR = link("Sensor detail", "/d/sensorflow-sensor?var-sensor=${__data.fields.id}&${__url_time_range}")
HIDDEN: Json = {"legend": True, "tooltip": True, "viz": True}

sensors = stat(
    "Sensors",
    """Online: the latest reading is no older than three times the sensor's expected interval, or OFFLINE_AFTER_S where
    none is set. Never seen: registered, but nothing has come.""",
    sql("""
        SELECT count(*) FILTER (WHERE is_online) AS "Online",
               count(*) FILTER (WHERE NOT is_online) AS "Offline",
               count(*) FILTER (WHERE last_seen_at IS NULL) AS "Never seen"
        FROM sensor_status
    """),
    size=(9, 4),
    unit="short",
    defaults={"thresholds": from_zero(BLUE)},
    overrides=[
        override("Online", color=fixed(GREEN)),
        override("Offline", thresholds=from_zero(GREEN, (1, RED))),
        override("Never seen", color=fixed(GREY)),
    ],
)

rate = stat(
    "Readings per second",
    "Readings committed in the last minute, whatever their own time is. From the ledger of flushes.",
    sql("""
        SELECT coalesce(sum(rows), 0) / 60.0 AS "Readings/s"
        FROM flushes
        WHERE committed_at > now() - INTERVAL '1 minute'
    """),
    size=(5, 4),
    unit="count:/s",
    defaults={"color": fixed(BLUE)},
)

out_of_limits = stat(
    "Out of limits",
    """Share of the sensors with readings that are out of limits: by any reading that arrived in the last hour, or by
    the latest one.""",
    sql("""
        SELECT (SELECT count(DISTINCT sensor_id)::double precision FROM limit_violations) / nullif(count(*), 0)
                   AS "Share"
        FROM latest_readings
    """),
    size=(5, 4),
    unit="percentunit",
    defaults={"decimals": 1, "thresholds": from_zero(GREEN, (0.000001, ORANGE), (0.1, RED))},
)

oldest = stat(
    "Newest reading",
    "Age of the newest reading of the whole fleet, by its own time.",
    sql("""SELECT greatest(min(age_s), 0) AS "Age" FROM sensor_status"""),
    size=(5, 4),
    unit="s",
    defaults={"color": fixed(BLUE)},
)

every_sensor = table(
    "Sensors and their latest readings",
    """The latest reading of each sensor by its own time, a few seconds behind. First those out of limits in the last
    hour, then those offline; 1,000 at most. A click on a sensor opens it. Limits, label, location and expected interval
    are set with PATCH /api/sensors/{name}.""",
    sql(
        """
        SELECT s.sensor_id::text AS id, s.name AS "Sensor", s.label AS "Label", s.location AS "Location",
               {status} AS "Status",
               s.age_s AS "Age", s.temperature AS "Temperature", s.humidity AS "Humidity", s.pressure AS "Pressure",
               coalesce(v.metrics, 'none') AS "Out of limits"
        FROM sensor_status s
        LEFT JOIN (
            SELECT l.sensor_id, string_agg(m.title, ', ' ORDER BY m.title) AS metrics
            FROM limit_violations l
            JOIN metrics m ON m.name = l.metric
            GROUP BY l.sensor_id
        ) v ON v.sensor_id = s.sensor_id
        ORDER BY v.metrics IS NULL, s.is_online NULLS LAST, s.name
        LIMIT 1000
        """,
        status=STATUS,
    ),
    size=(24, 11),
    overrides=[
        override("id", custom__hideFrom=HIDDEN),
        override("Sensor", links=TO_SENSOR),
        override(
            "Status",
            mappings=colored_text(STATUS_COLORS),
            custom__cellOptions={"type": "color-background"},
            custom__width=110,
        ),
        override("Age", unit="s", decimals=0, custom__width=110),
        *(override(metric, unit=unit, decimals=2) for metric, unit in METRIC_UNITS.items()),
        override(
            "Out of limits",
            mappings=[
                *colored_text({"none": GREEN}),
                {"type": "regex", "options": {"pattern": "/(.+)/", "result": {"text": "$1", "color": RED, "index": 1}}},
            ],
            custom__cellOptions={"type": "color-text"},
        ),
    ],
)

violations = table(
    "Limit violations now",
    """For each sensor and metric, the reading furthest beyond its limit of those that arrived in the last hour. A
    latest reading beyond its limit counts until it is older than an hour and three expected intervals. Empty when all
    is well, and when no limits are set: set them with PATCH /api/sensors/{name}.""",
    sql("""
        SELECT v.sensor_id::text AS id, s.name AS "Sensor", m.title AS "Metric", v.value AS "Value",
               v.lower AS "Lower limit", v.upper AS "Upper limit",
               greatest(v.value - v.upper, v.lower - v.value) AS "Beyond by", v.time AS "Time"
        FROM limit_violations v
        JOIN sensors s ON s.id = v.sensor_id
        JOIN metrics m ON m.name = v.metric
        ORDER BY "Beyond by" DESC
        LIMIT 1000
    """),
    size=(12, 10),
    unit="none",
    defaults={"decimals": 2},
    empty="No reading is out of limits",
    overrides=[
        override("id", custom__hideFrom=HIDDEN),
        override("Sensor", links=TO_SENSOR),
        override("Value", color=fixed(RED), custom__cellOptions={"type": "color-text"}),
    ],
)

places = panel(
    "geomap",
    "Where the sensors are",
    """Sensors that have coordinates, by their status. The map's tiles come from the Internet, and are asked for by the
    browser.""",
    [
        sql(
            """
            SELECT sensor_id::text AS id, name AS "Sensor", location AS "Location", latitude, longitude,
                   {status} AS "Status"
            FROM sensor_status
            WHERE latitude IS NOT NULL AND longitude IS NOT NULL
            ORDER BY name
            LIMIT 10000
            """,
            status=STATUS,
        )
    ],
    size=(12, 10),
    options={
        "basemap": {"type": "default", "name": "Layer 0", "config": {}},
        "controls": {
            "mouseWheelZoom": False,
            "showAttribution": True,
            "showDebug": False,
            "showMeasure": False,
            "showScale": False,
            "showZoom": True,
        },
        "layers": [
            {
                "type": "markers",
                "name": "Sensors",
                "location": {"mode": "coords", "latitude": "latitude", "longitude": "longitude"},
                "tooltip": True,
                "config": {
                    "showLegend": True,
                    "style": {
                        "color": {"field": "Status", "fixed": GREY},
                        "opacity": 0.8,
                        "size": {"fixed": 7, "min": 2, "max": 15},
                        "symbol": {"mode": "fixed", "fixed": "img/icons/marker/circle.svg"},
                    },
                },
            }
        ],
        "tooltip": {"mode": "details"},
        "view": {"id": "fit", "allLayers": True, "lat": 0, "lon": 0, "zoom": 15, "padding": 10},
    },
    overrides=[
        override("Status", mappings=colored_text(STATUS_COLORS)),
        override("Sensor", links=TO_SENSOR),
    ],
)

over_time = timeseries(
    "Readings over time",
    """Readings per second by their own time, of all sensors. From the aggregates: of a minute below 5 hours, of an hour
    below 6 days, of a day above.""",
    [
        sql(
            """
            SELECT time, sum(count) / greatest(1, least(width_s, extract(epoch FROM now() - time))) AS "Readings/s"
            FROM (
                {counts}
            ) AS zoomed
            GROUP BY time, width_s
            ORDER BY time
            """,
            counts=counts(),
            series=True,
        )
    ],
    size=(24, 7),
    unit="count:/s",
    defaults={"color": fixed(BLUE), "min": 0},
    custom={"drawStyle": "bars", "fillOpacity": 60, "lineWidth": 0},
    soft_max=1,
    calcs=["lastNotNull", "mean", "max"],
    points=Points.FLEET,
)

DASHBOARD = dashboard(
    "sensorflow-fleet",
    "Fleet overview",
    "Which sensors send, what they say, and which are out of their limits.",
    [sensors, rate, out_of_limits, oldest, every_sensor, violations, places, over_time],
)
