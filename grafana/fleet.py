"""Fleet overview: which sensors send, and which of them are out of their limits. Grafana's home."""

from grafana.metrics import WRITTEN, symbol
from grafana.panels import (
    BLUE,
    EVERY,
    GREEN,
    GREY,
    HIDDEN,
    ORANGE,
    RED,
    Json,
    alert_list,
    choice,
    colored_text,
    dashboard,
    fixed,
    frame_of_each,
    from_zero,
    link,
    override,
    override_matching,
    panel,
    pattern,
    promql,
    row,
    sql,
    stat,
    state_timeline,
    table,
    textbox,
    thresholds,
    timeseries,
    variable,
)
from grafana.zoom import HOURS_MS, TIER_S, Points, bin_of, counts, means

STATUS_COLORS = {"online": GREEN, "offline": RED, "never seen": GREY}
STATUS = "CASE WHEN is_online THEN 'online' WHEN last_seen_at IS NULL THEN 'never seen' ELSE 'offline' END"
METRICS = {"Temperature": "celsius", "Humidity": "percent", "Pressure": "pressurehpa"}
"""The unit of each."""
MOST_SENSORS, MOST_VIOLATIONS, MOST_PLACES, MOST_TIMELINES = 1_000, 1_000, 10_000, 20
MOST_LOCATIONS = 200
MOST_BUCKETS = 150_000
"""Buckets of all sensors together. It takes 40 ms to add up so many."""
OUT_OF_LIMITS = "out of limits"
STATE_COLORS = {**STATUS_COLORS, OUT_OF_LIMITS: ORANGE}

VIOLATION_WIDTHS_PX = {"Metric": 100, "Value": 75, "Side": 60, "Limit": 75, "Beyond by": 105, "Time": 125}
"""Without them the columns share the width evenly, and the last is out of sight on a narrow screen."""

SPARKLINE: Json = {"type": "sparkline", "fillOpacity": 0, "gradientMode": "none", "lineInterpolation": "linear"}

TO_SENSOR = link("Sensor detail", "/d/sensorflow-sensor?var-sensor=${__data.fields.id}&${__url_time_range}")

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
    size=(6, 4),
    unit="locale",
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
    size=(4, 4),
    unit="count:/s",
    defaults={"color": fixed(BLUE)},
)

# A filter that is not set costs nothing: its condition is a constant to PostgreSQL.
MATCHES = f"""\
(${{search:sqlstring}} = ''
     OR strpos(lower(concat_ws(chr(10), s.name, s.label, s.location)), lower(${{search:sqlstring}})) > 0)
    AND ('' IN (${{location:sqlstring}}) OR s.location IN (${{location:sqlstring}}))
    AND ('' IN (${{state:sqlstring}}) OR {STATUS} IN (${{state:sqlstring}})
         OR '{OUT_OF_LIMITS}' IN (${{state:sqlstring}}) AND s.sensor_id IN (SELECT sensor_id FROM limit_violations))"""
"""Whether the sensor ``s`` of ``sensor_status`` is one that is looked for."""
NO_SENSOR = (
    "No sensor matches the search, location and state above, or none has sent yet: "
    "POST /api/readings registers a sensor with its first reading."
)
FILTERED = "Search, location and state above choose which."

# A sensor that has been silent for days and was out of limits then is counted on neither side; a reading that arrives
# late counts, however old it is.
out_of_limits = stat(
    "Out of limits",
    """How many sensors are out of limits, of those that sent: in the last hour, or in their last three expected
    intervals where that is longer. A sensor is out of limits by any reading that arrived in the last hour, or by its
    latest one.""",
    # The sensors are counted without a look at their violations, which are few.
    sql(
        """
        WITH v AS MATERIALIZED (
            SELECT DISTINCT sensor_id FROM limit_violations
        ), counted AS (
            SELECT (SELECT count(*) FROM v) AS beyond,
                   (SELECT count(*) FROM sensor_status s WHERE {sent})
                   + (SELECT count(*) FROM v JOIN sensor_status s USING (sensor_id) WHERE NOT ({sent})) AS held
        )
        SELECT concat_ws(chr(160), to_char(beyond, 'FM999,999,990'), 'of', to_char(held, 'FM999,999,990')) AS "Sensors",
               beyond::double precision / nullif(held, 0) AS "Share"
        FROM counted
        """,
        sent="abs(s.age_s) < greatest(3600, 3 * s.expected_interval_s)",
    ),
    size=(5, 4),
    unit="none",
    defaults={"thresholds": thresholds(GREY)},
    overrides=[
        override("Sensors", mappings=[*pattern("^0\\sof\\s[1-9].*", GREEN), *pattern("^[1-9].*", ORANGE)]),
        override("Share", unit="percentunit", decimals=1, thresholds=from_zero(GREEN, (0.000001, ORANGE), (0.1, RED))),
    ],
    texts=True,
)

newest = stat(
    "Newest reading",
    "Age of the newest reading of the whole fleet, by its own time.",
    # Without the condition the ages of all sensors would be computed to find the least.
    sql("""
        SELECT min(greatest(age_s, 0)) AS "Age"
        FROM sensor_status
        WHERE last_seen_at = (SELECT max(time) FROM latest_readings)
    """),
    size=(4, 4),
    unit="s",
    defaults={"color": fixed(BLUE)},
)

listed = stat(
    "Listed below",
    f"""How many of the sensors that match the search, location and state above the next table lists; it is cut after
    {MOST_SENSORS:,}. To see others, search, or choose a location or state.""",
    sql(
        """
        SELECT least(count(*), {most}) AS "Listed", count(*) AS "That match"
        FROM sensor_status s
        WHERE {matches}
        """,
        most=str(MOST_SENSORS),
        matches=MATCHES,
    ),
    size=(5, 4),
    unit="locale",
    defaults={"color": fixed(BLUE)},
)

every_sensor = table(
    "Sensors and their latest readings",
    f"""The latest reading of each sensor by its own time, a few seconds behind. First those out of limits in the last
    hour, then those offline; {MOST_SENSORS:,} at most. {FILTERED} A click on a sensor opens it. Limits, label, location
    and expected interval are set with PATCH /api/sensors/{{name}}.""",
    sql(
        """
        WITH v AS MATERIALIZED (
            SELECT l.sensor_id, string_agg(m.title, ', ' ORDER BY m.title) AS metrics
            FROM limit_violations l
            JOIN metrics m ON m.name = l.metric
            GROUP BY l.sensor_id
        ), first AS MATERIALIZED (
            SELECT s.sensor_id, v.metrics
            FROM sensor_status s
            LEFT JOIN v ON v.sensor_id = s.sensor_id
            WHERE {matches}
            ORDER BY v.metrics IS NULL, s.is_online NULLS LAST, s.name
            LIMIT {most}
        )
        SELECT s.sensor_id::text AS id, s.name AS "Sensor", s.label AS "Label", s.location AS "Location",
               {status} AS "Status",
               s.age_s AS "Age", s.temperature AS "Temperature", s.humidity AS "Humidity", s.pressure AS "Pressure",
               coalesce(first.metrics, 'none') AS "Out of limits"
        FROM first
        JOIN sensor_status s ON s.sensor_id = first.sensor_id
        ORDER BY first.metrics IS NULL, s.is_online NULLS LAST, s.name
        """,
        status=STATUS,
        matches=MATCHES,
        most=str(MOST_SENSORS),
    ),
    size=(24, 11),
    empty=NO_SENSOR,
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
        *(override(metric, unit=unit, decimals=WRITTEN[unit].decimals) for metric, unit in METRICS.items()),
        override(
            "Out of limits",
            mappings=[*colored_text({"none": GREEN}), *pattern("(.+)", RED, index=1)],
            custom__cellOptions={"type": "color-text"},
        ),
    ],
)

violations = table(
    "Limit violations now",
    f"""For each sensor and metric, the reading furthest beyond its limit of those that arrived in the last hour;
    {MOST_VIOLATIONS:,} at most. {FILTERED} A latest reading beyond its limit counts until it is older than an hour and
    three expected intervals. Empty when all is well, and when no limits are set: set them with
    PATCH /api/sensors/{{name}}.""",
    sql(
        """
        SELECT v.sensor_id::text AS id, s.name AS "Sensor", m.title AS "Metric", v.value AS "Value",
               CASE WHEN v.value > v.upper THEN 'above' ELSE 'below' END AS "Side",
               CASE WHEN v.value > v.upper THEN v.upper ELSE v.lower END AS "Limit",
               greatest(v.value - v.upper, v.lower - v.value) AS "Beyond by", v.time AS "Time"
        FROM limit_violations v
        JOIN sensor_status s ON s.sensor_id = v.sensor_id
        JOIN metrics m ON m.name = v.metric
        WHERE {matches}
        ORDER BY "Beyond by" DESC
        LIMIT {most}
        """,
        matches=MATCHES,
        most=str(MOST_VIOLATIONS),
    ),
    size=(13, 10),
    unit="none",
    defaults={"decimals": 2},
    empty="No reading is out of limits",
    overrides=[
        override("id", custom__hideFrom=HIDDEN),
        override("Sensor", links=TO_SENSOR),
        override("Value", color=fixed(RED), custom__cellOptions={"type": "color-text"}),
        *(override(column, custom__width=width) for column, width in VIOLATION_WIDTHS_PX.items()),
        override("Time", unit="dateTimeFromNow"),
    ],
)

places = panel(
    "geomap",
    "Where the sensors are",
    f"""Sensors that have coordinates, by their status; the first {MOST_PLACES:,} by name. {FILTERED} The map's tiles
    come from the Internet, and are asked for by the browser.""",
    [
        sql(
            """
            SELECT s.sensor_id::text AS id, s.name AS "Sensor", s.location AS "Location", s.latitude, s.longitude,
                   {status} AS "Status"
            FROM sensor_status s
            WHERE s.latitude IS NOT NULL AND s.longitude IS NOT NULL AND {matches}
            ORDER BY s.name
            LIMIT {most}
            """,
            status=STATUS,
            matches=MATCHES,
            most=str(MOST_PLACES),
        )
    ],
    size=(11, 10),
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

# Prometheus has it as one series. The database would add up what each sensor sent, and take longer with each sensor.
over_time = timeseries(
    "Readings over time",
    """Readings per second as the server committed them, whatever their own time is; from Prometheus. By their own time
    they are in the row below.""",
    [promql("sum(rate(sensorflow_readings_committed_total[$__rate_interval]))", "Readings/s")],
    size=(16, 7),
    unit="count:/s",
    defaults={"color": fixed(BLUE), "min": 0, "noValue": "no data"},
    soft_max=1,
    calcs=["lastNotNull", "mean", "max"],
)

# All sensors together have MOST_BUCKETS at most. The days that the aggregate may lack are made of hours, and only of
# whole ones that are in their aggregate: to make the missing ones takes as long as to read 150 days. TimescaleDB skips
# that where the end is a constant, as it is here, and not where it is computed from now().
BUCKETS_OF_EACH = (
    f"(SELECT {MOST_BUCKETS} / greatest(1, count(*)) FROM (SELECT FROM sensors LIMIT {MOST_BUCKETS} + 1) AS few)"
)
LAST_DAY = "date_bin('1 day', to_timestamp($__unixEpochTo() - 86400), TIMESTAMPTZ 'epoch')"
LAST_HOUR = "date_bin('1 hour', to_timestamp($__unixEpochTo() - 3600), TIMESTAMPTZ 'epoch')"
by_own_time = timeseries(
    "Readings by their own time",
    f"""Readings per second of all sensors, by the readings' own time. From the aggregates: of a minute up to 2.5 hours,
    of an hour up to 2.5 days, of a day above. Days end with the last whole hour that is an hour old. A large fleet sees
    only the newest part of the range, {MOST_BUCKETS:,} buckets of all sensors together: 150 days of 1,000 sensors, and
    nothing of more than {MOST_BUCKETS:,}. Above 3,125 sensors, days end two days ago.""",
    [
        sql(
            """
            SELECT time, sum(count) / CASE WHEN time > now() THEN width_s
                       ELSE greatest(1, least(width_s, extract(epoch FROM least(now(), ends_at) - time)))
                   END AS "Readings/s"
            FROM (
                SELECT time, width_s, count, TIMESTAMPTZ 'infinity' AS ends_at
                FROM (
                    {counts}
                ) AS zoomed
                UNION ALL
                SELECT {day}, 86400, count, {last_hour}
                FROM readings_1h
                WHERE $__interval_ms > {hours_ms} AND bucket >= {last_day} AND bucket < {last_hour} AND 48 <= {each}
            ) AS counted
            GROUP BY time, width_s, ends_at
            ORDER BY time
            """,
            counts=counts(
                f"""bucket >= (
      SELECT CASE WHEN $__interval_ms > {HOURS_MS} AND each < 48 THEN {LAST_DAY} ELSE $__timeTo() END
             - make_interval(secs => {TIER_S} * each)
      FROM {BUCKETS_OF_EACH} AS of (each)
  )
  AND ($__interval_ms <= {HOURS_MS} OR bucket < {LAST_DAY})"""
            ),
            day=bin_of("bucket", "86400"),
            hours_ms=str(HOURS_MS),
            last_day=LAST_DAY,
            last_hour=LAST_HOUR,
            each=BUCKETS_OF_EACH,
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

# The sensors are those that the table begins with, in the order of their names: a row keeps its place as states change.
# Each gets a frame of its own, as in a common one a time of another sensor would have no state.
states = state_timeline(
    f"States of {MOST_TIMELINES} sensors",
    f"""What the first {MOST_TIMELINES} sensors of the table were in this range. {FILTERED} Out of limits: the log of
    violations, which is kept for 90 days, has one of the sensor. Offline: nothing came for three expected intervals or,
    where none is set, three usual ones and five minutes at least. In steps of a minute below 35 hours, of an hour below
    37 days, of a day above.""",
    sql(
        """
        WITH first AS MATERIALIZED (
            SELECT s.sensor_id, s.name, s.expected_interval_s, s.last_seen_at
            FROM sensor_status s
            LEFT JOIN (SELECT DISTINCT sensor_id FROM limit_violations) v ON v.sensor_id = s.sensor_id
            WHERE {matches}
            ORDER BY v.sensor_id IS NULL, s.is_online NULLS LAST, s.name
            LIMIT {most}
        ), seen AS (
            SELECT sensor_id, time, width_s, lead(time) OVER (PARTITION BY sensor_id ORDER BY time) AS next_time
            FROM (
                {counts}
            ) AS counted
        ), beyond AS (
            SELECT DISTINCT v.sensor_id, date_bin({width}, v.at, TIMESTAMPTZ 'epoch') AS time
            FROM (
                SELECT sensor_id, unnest(ARRAY[first_time, time, last_time]) AS at
                FROM limit_violation_log
                WHERE sensor_id = ANY(ARRAY(SELECT sensor_id FROM first))
                  AND last_time >= $__timeFrom() AND first_time <= $__timeTo()
            ) AS v
        ), allowed AS (
            SELECT f.sensor_id, f.name, f.last_seen_at, least($__timeTo(), now()) AS ends_at,
                   make_interval(secs => greatest(max(s.width_s), coalesce(
                       3 * f.expected_interval_s,
                       greatest(
                           300,
                           3 * percentile_disc(0.5) WITHIN GROUP (ORDER BY extract(epoch FROM s.next_time - s.time))
                       )
                   ))) AS silence
            FROM first f
            LEFT JOIN seen s ON s.sensor_id = f.sensor_id
            GROUP BY f.sensor_id, f.name, f.last_seen_at, f.expected_interval_s
        ), changes AS (
            SELECT a.name, s.time, CASE WHEN b.time IS NULL THEN 'online' ELSE '{out}' END AS state
            FROM seen s
            JOIN allowed a ON a.sensor_id = s.sensor_id
            LEFT JOIN beyond b ON b.sensor_id = s.sensor_id AND b.time = s.time
            UNION ALL
            SELECT a.name, s.time + a.silence, 'offline'
            FROM seen s
            JOIN allowed a ON a.sensor_id = s.sensor_id
            WHERE s.time + a.silence < coalesce(s.next_time, a.ends_at)
            UNION ALL
            SELECT a.name, TIMESTAMPTZ $__timeFrom(),
                   CASE WHEN a.last_seen_at IS NULL THEN 'never seen' ELSE 'offline' END
            FROM allowed a
            WHERE NOT EXISTS (
                SELECT FROM seen s
                WHERE s.sensor_id = a.sensor_id AND s.time <= TIMESTAMPTZ $__timeFrom() + a.silence
            )
        )
        SELECT time, name AS sensor, state
        FROM (SELECT *, lag(state) OVER (PARTITION BY name ORDER BY time) AS before FROM changes) AS each
        WHERE state IS DISTINCT FROM before
        ORDER BY name, time
        """,
        matches=MATCHES,
        most=str(MOST_TIMELINES),
        counts=counts("sensor_id = ANY(ARRAY(SELECT sensor_id FROM first))"),
        width=f"make_interval(secs => {TIER_S})",
        out=OUT_OF_LIMITS,
    ),
    size=(24, 12),
    defaults={
        "displayName": "${__field.labels.sensor}",
        "mappings": colored_text(STATE_COLORS),
        "noValue": NO_SENSOR,
    },
    transformations=[frame_of_each("sensor")],
    points=Points.STATES,
)

# Each series becomes a row, and the rows keep the order of the first table, in which the series come.
trends = table(
    f"Trends of {MOST_TIMELINES} sensors",
    f"""The course of each metric of the first {MOST_TIMELINES} sensors of the table in this range, and its last mean.
    {FILTERED} A line spans its cell from the lowest mean to the highest. Sensors that sent nothing in this range are
    left out. Means of a minute up to 2.5 hours, of an hour up to 2.5 days, of a day above.""",
    sql(
        """
        WITH first AS MATERIALIZED (
            SELECT s.sensor_id, s.name, s.is_online, v.sensor_id IS NULL AS is_within_limits
            FROM sensor_status s
            LEFT JOIN (SELECT DISTINCT sensor_id FROM limit_violations) v ON v.sensor_id = s.sensor_id
            WHERE {matches}
            ORDER BY is_within_limits, s.is_online NULLS LAST, s.name
            LIMIT {most}
        )
        SELECT p.time, f.sensor_id::text AS id, f.name AS "Sensor", m.title || ', ' || {symbol} AS "Metric", p.mean
        FROM (
            {means}
        ) AS p
        JOIN first f ON f.sensor_id = p.sensor_id
        JOIN metrics m ON m.name = p.metric
        ORDER BY f.is_within_limits, f.is_online NULLS LAST, f.name, m.title, p.time
        """,
        matches=MATCHES,
        most=str(MOST_TIMELINES),
        symbol=symbol("m.unit"),
        means=means("sensor_id = ANY(ARRAY(SELECT sensor_id FROM first))"),
    ),
    size=(24, 12),
    unit="none",
    defaults={"decimals": 1, "color": fixed(BLUE)},
    empty="None of the sensors that match has sent in this range",
    overrides=[
        override("id", custom__hideFrom=HIDDEN),
        override("Sensor", links=TO_SENSOR, custom__width=220),
        override("Metric", custom__width=160),
        override_matching("Trend #A", displayName="Trend", custom__cellOptions=SPARKLINE),
    ],
    transformations=[frame_of_each("id", "Sensor", "Metric"), {"id": "timeSeriesTable", "options": {}}],
    points=Points.FLEET,
)

alerts = alert_list(
    "Alerts",
    "Alerts of SensorFlow that fire, are about to, or are about to end.",
    size=(8, 7),
    labels='{grafana_folder="SensorFlow"}',
)

# With many sensors they take longer than all other panels together.
FOLDED = [
    row("States over time", folded=[states]),
    row("Trends", folded=[trends]),
    row("Readings by their own time", folded=[by_own_time]),
]

DASHBOARD = dashboard(
    "sensorflow-fleet",
    "Fleet overview",
    "Which sensors send, what they say, and which are out of their limits.",
    [sensors, rate, out_of_limits, newest, listed, every_sensor, violations, places, over_time, alerts, *FOLDED],
    variables=[
        textbox(
            "search",
            "Search",
            "A part of a name, label or location, in upper or lower case. Empty: all sensors.",
        ),
        variable(
            "location",
            "Location (type to search)",
            f"Locations whose sensors are shown. The list shows the first {MOST_LOCATIONS} by name.",
            f"""
            SELECT DISTINCT location AS __text, location AS __value
            FROM sensors
            WHERE location ILIKE '%$__searchFilter'
            ORDER BY 1
            LIMIT {MOST_LOCATIONS}
            """,
            multi=True,
            all_value=EVERY,
        ),
        choice("state", "State", "States of the sensors that are shown: those in any of them.", list(STATE_COLORS)),
    ],
)
