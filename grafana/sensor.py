"""Sensor detail: one sensor at every zoom, from a year down to single readings."""

from grafana.choices import CHOICES_IN_WORDS, SENSOR_CHOICES
from grafana.fleet import OUT_OF_LIMITS, STATE_COLORS, STATUS, STATUS_COLORS
from grafana.metrics import AXIS, OF_AXIS, UNIT, WITH_UNIT, decimals, with_symbol
from grafana.panels import (
    BLUE,
    GREEN,
    GREY,
    HIDDEN,
    NO_CELL,
    ORANGE,
    RED,
    Json,
    colored_text,
    dashboard,
    fixed,
    from_zero,
    link,
    override,
    override_matching,
    ramp,
    row,
    sql,
    stat,
    state_timeline,
    table,
    thresholds,
    timeseries,
    variable,
)
from grafana.zoom import WIDTH_S, Points, curves, in_range, points, received

# Before the first sensor is registered the variable is empty.
SENSOR = "nullif(${sensor:sqlstring}, '')::integer"
VALUES = f"sensor_id = {SENSOR} AND metric = ${{metric:sqlstring}}"
NO_METRIC = "none"
"""Stands among the metrics for those of a sensor that has none. It is no metric's name."""
ZOOM = """Below 70 minutes from the readings themselves; then from buckets of a minute (below 70 hours), of an hour
(below 75 days) and of a day."""
SHORTEST_DAYS = 2
MOST_DAYS = 366
"""The longest range whose hours are shown by day."""
NOTHING_IN_RANGE = (
    "No reading in this range. If the sensor has ever sent, a click on Last reading above goes to that time."
)
HIDDEN_IN_LEGEND: Json = {"legend": True, "tooltip": False, "viz": False}
DASHED: Json = {"fill": "dash", "dash": [10, 10]}

registered = table(
    "Sensor",
    """What is known of the sensor. A click on its last reading goes to that time, in a range as long as this one.
    Label, location, limits and expected interval are set with PATCH /api/sensors/{name}.""",
    sql(
        """
        SELECT s.name AS "Sensor", s.label AS "Label", s.location AS "Location", {status} AS "Status",
               s.last_seen_at AS "Last reading", s.age_s AS "Age", s.expected_interval_s AS "Expected every",
               l.limits AS "Limits",
               -- As texts: Grafana would write numbers into a link as it shows them.
               floor(1000 * extract(epoch FROM s.last_seen_at - 0.95 * r.length))::bigint::text AS link_from,
               floor(1000 * extract(epoch FROM s.last_seen_at + 0.05 * r.length))::bigint::text AS link_to
        FROM sensor_status s
        CROSS JOIN (SELECT TIMESTAMPTZ $__timeTo() - TIMESTAMPTZ $__timeFrom() AS length) AS r
        LEFT JOIN (
            SELECT l.sensor_id, string_agg(m.title || ' ' || CASE
                       WHEN l.upper IS NULL THEN 'from ' || {lower}
                       WHEN l.lower IS NULL THEN 'up to ' || {upper}
                       ELSE l.lower || ' to ' || {upper}
                   END, ', ' ORDER BY m.title) AS limits
            FROM sensor_limits l
            JOIN metrics m ON m.name = l.metric
            WHERE l.sensor_id = {sensor}
            GROUP BY l.sensor_id
        ) AS l ON l.sensor_id = s.sensor_id
        WHERE s.sensor_id = {sensor}
        """,
        status=STATUS,
        lower=with_symbol("l.lower", "m.unit"),
        upper=with_symbol("l.upper", "m.unit"),
        sensor=SENSOR,
    ),
    size=(24, 4),
    empty="No sensor yet. One is registered by its first reading or with PATCH /api/sensors/{name}.",
    is_filterable=False,
    overrides=[
        override(
            "Status",
            mappings=colored_text(STATUS_COLORS),
            custom__cellOptions={"type": "color-background"},
            custom__width=85,
        ),
        override(
            "Last reading",
            links=link(
                "Go to that time",
                "/d/sensorflow-sensor?${sensor:queryparam}&${metric:queryparam}"
                "&from=${__data.fields.link_from}&to=${__data.fields.link_to}",
            ),
            custom__width=150,
        ),
        override("Age", unit="s", decimals=1, custom__width=75),
        override("Expected every", unit="s", custom__width=110),
        override("Limits", custom__wrapText=True),
        *(override(name, custom__width=125) for name in ("Sensor", "Label", "Location")),
        override("link_from", custom__hideFrom=HIDDEN),
        override("link_to", custom__hideFrom=HIDDEN),
    ],
)

latest = stat(
    "Latest reading",
    """Each metric of the latest reading by its own time. Red: it, or a reading of the last hour, is out of the sensor's
    limits; green: within them; blue: it has none; grey: the sensor is offline. A dash: it has never sent.""",
    sql(
        """
        SELECT m.title AS metric, p.value, m.unit, {decimals} AS decimals,
               CASE WHEN v.metric IS NOT NULL THEN '{red}' WHEN NOT s.is_online THEN '{grey}'
                    WHEN l.metric IS NOT NULL THEN '{green}' ELSE '{blue}' END AS color
        FROM latest_points p
        JOIN metrics m ON m.name = p.metric
        JOIN sensor_status s ON s.sensor_id = p.sensor_id
        LEFT JOIN sensor_limits l ON l.sensor_id = p.sensor_id AND l.metric = p.metric
        LEFT JOIN limit_violations v ON v.sensor_id = p.sensor_id AND v.metric = p.metric
        WHERE p.sensor_id = {sensor}
        ORDER BY m.title
        """,
        decimals=decimals("m.unit"),
        sensor=SENSOR,
        red=RED,
        grey=GREY,
        green=GREEN,
        blue=BLUE,
    ),
    size=(12, 4),
    defaults={"thresholds": thresholds(GREY)},
    text="value_and_name",
    is_wide=False,
    # The first text is the field's name, the number its value; columns named unit, decimals, color are what they say.
    transformations=[{"id": "rowsToFields", "options": {}}],
)

# A mark at either end makes a gap of what is missing there. Buckets at the ends are whole, and so the range is that
# of its buckets.
quality = stat(
    "Completeness in this range",
    f"""Readings against those that the expected interval gives, up to now. A gap is longer than three expected
    intervals and, where buckets are read, than one of them. Without an expected interval neither is known, nor of a
    sensor that has never sent; how many came late, twice or were refused is not kept by sensor. {ZOOM}""",
    sql(
        """
        WITH came AS (
            {received}
        ), looked_at AS (
            SELECT CASE WHEN last_seen_at IS NOT NULL THEN expected_interval_s END AS expected_s,
                   coalesce(date_bin({bucket}, $__timeFrom(), TIMESTAMPTZ 'epoch'), $__timeFrom()) AS starts_at,
                   least(now(), coalesce(
                       date_bin({bucket}, $__timeTo(), TIMESTAMPTZ 'epoch') + {bucket}, $__timeTo()
                   )) AS ends_at
            FROM sensor_status
            WHERE sensor_id = {sensor}
        ), stepped AS (
            SELECT count, width_s, extract(epoch FROM lead(time) OVER (ORDER BY time, count) - time) AS step_s
            FROM (
                SELECT time, width_s, count FROM came
                UNION ALL
                SELECT starts_at, 0, 0 FROM looked_at
                UNION ALL
                SELECT ends_at, 0, 0 FROM looked_at
            ) AS marked
        )
        SELECT sum(s.count) AS "Readings",
               sum(s.count) * l.expected_s / nullif(greatest(extract(epoch FROM l.ends_at - l.starts_at), 0), 0)
                   AS "Share of expected",
               CASE WHEN l.expected_s > 0
                   THEN count(*) FILTER (WHERE s.step_s > greatest(s.width_s, 3 * l.expected_s)) END AS "Gaps",
               CASE WHEN l.expected_s > 0 THEN coalesce(
                   max(s.step_s - s.width_s) FILTER (WHERE s.step_s > greatest(s.width_s, 3 * l.expected_s)), 0
               ) END AS "Longest gap"
        FROM stepped s
        CROSS JOIN looked_at l
        GROUP BY l.expected_s, l.starts_at, l.ends_at
        """,
        received=received(f"sensor_id = {SENSOR}"),
        bucket="make_interval(secs => nullif({bucket_s}, 0))",
        bucket_s=WIDTH_S,
        sensor=SENSOR,
    ),
    size=(12, 4),
    unit="short",
    defaults={"color": fixed(BLUE)},
    overrides=[
        override("Readings", unit="locale", decimals=0),
        override(
            "Share of expected",
            unit="percentunit",
            decimals=1,
            color={"mode": "thresholds"},
            thresholds=from_zero(RED, (0.9, ORANGE), (0.99, GREEN)),
        ),
        override("Gaps", unit="locale", decimals=0),
        override("Longest gap", unit="s", decimals=1),
    ],
    points=Points.SENSORS,
    is_wide=False,
)

violations = table(
    "Readings out of limits in this range",
    """The log of readings that were beyond a limit of the sensor when they arrived, by their own time: how many, and
    the furthest. It keeps them for 90 days. Readings that came by SQL, or before their limit was set, are not in it:
    beside each chart is for how long it was beyond the limits of today.""",
    sql(
        """
        SELECT m.title AS "Metric", CASE WHEN v.is_above THEN 'above' ELSE 'below' END AS "Side", v.bound AS "Limit",
               sum(v.readings) AS "Readings",
               CASE WHEN v.is_above THEN max(v.value) ELSE min(v.value) END AS "Furthest",
               min(v.first_time) AS "First", max(v.last_time) AS "Last"
        FROM limit_violation_log v
        JOIN metrics m ON m.name = v.metric
        WHERE v.sensor_id = {sensor} AND v.last_time >= $__timeFrom() AND v.first_time <= $__timeTo()
        GROUP BY m.title, v.is_above, v.bound
        ORDER BY max(v.last_time) DESC, m.title, v.is_above, v.bound
        LIMIT 1000
        """,
        sensor=SENSOR,
    ),
    size=(24, 5),
    unit="none",
    defaults={"decimals": 2},
    empty="No reading in this range was out of limits when it came. By the limits of today, see each metric below.",
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
            SELECT time, {axis}, mean, min, max
            FROM (
                {curves}
            ) AS curve
            ORDER BY time
            """,
            axis=AXIS,
            curves=curves(VALUES),
            series=True,
        ),
        sql(
            """
            SELECT t.time, l.name || ' limit ' || {value} AS metric, l.value
            FROM sensor_limits
            JOIN metrics m ON m.name = metric
            CROSS JOIN LATERAL (VALUES ('upper', upper), ('lower', lower)) AS l (name, value)
            CROSS JOIN (VALUES (TIMESTAMPTZ $__timeFrom()), (TIMESTAMPTZ $__timeTo())) AS t (time)
            WHERE {values} AND l.value IS NOT NULL
            ORDER BY t.time, l.name
            """,
            values=VALUES,
            value=with_symbol("l.value", "m.unit"),
            ref="limits",
            series=True,
        ),
        UNIT,
    ],
    size=(18, 10),
    defaults={"noValue": NOTHING_IN_RANGE},
    # With one width, the axes of metrics below each other begin at the same place.
    custom={"axisWidth": 80, "fillOpacity": 0},
    calcs=[],
    overrides=[
        OF_AXIS,
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
        override_matching(
            "(upper|lower) limit .*", color=fixed(RED), custom__lineStyle=DASHED, custom__showPoints="never"
        ),
    ],
    transformations=[WITH_UNIT],
    points=Points.SENSORS,
)

# Points planned for all metrics at once cost three times as much as for one, so each metric has its own query.
figures = stat(
    "$metric in this range",
    f"""Over what the chart shows. The mean is that of the readings and not of the buckets. Out of limits are the
    minutes, hours or days in which any reading was beyond a limit of today. {ZOOM}""",
    sql(
        """
        WITH zoomed AS (
            {points}
        ), limits AS (
            SELECT lower, upper FROM sensor_limits WHERE {values}
        ), spans AS (
            SELECT DISTINCT s.width_s, date_bin(make_interval(secs => s.width_s), z.time, TIMESTAMPTZ 'epoch')
            FROM zoomed z
            JOIN limits l ON z.max > l.upper OR z.min < l.lower
            CROSS JOIN LATERAL (VALUES (greatest(z.width_s, 60))) AS s (width_s)
        )
        SELECT coalesce(sum(count), 0) AS "Readings", min(min) AS "Lowest", sum(sum) / sum(count) AS "Mean",
               max(max) AS "Highest", (array_agg(last ORDER BY time DESC))[1] AS "Last",
               CASE WHEN EXISTS (SELECT FROM limits) THEN coalesce((SELECT sum(width_s) FROM spans), 0) END
                   AS "Out of limits"
        FROM zoomed
        """,
        points=points(VALUES),
        values=VALUES,
    ),
    UNIT,
    size=(6, 10),
    defaults={"color": fixed(BLUE)},
    overrides=[
        override("Readings", unit="locale", decimals=0),
        override(
            "Out of limits",
            unit="s",
            decimals=1,
            color={"mode": "thresholds"},
            thresholds=from_zero(GREEN, (1, RED)),
        ),
    ],
    transformations=[WITH_UNIT],
    points=Points.SENSORS,
    is_wide=False,
)

# After each span in which readings came lies one in which none did, if that was longer than the sensor may be silent.
states = state_timeline(
    "$metric: state in this range",
    """Out of limits: a reading was beyond a limit of today. Offline: no value came for three of the sensor's expected
    intervals or, where none is set, three usual ones and five minutes at least. What lasts shorter than a part of the
    range is shown as that part: four points of the chart, and no less than its buckets.""",
    sql(
        """
        WITH spans AS (
            SELECT date_bin(make_interval(secs => {span_s}), p.time, TIMESTAMPTZ 'epoch') AS time,
                   coalesce(bool_or(p.max > l.upper OR p.min < l.lower), false) AS is_out
            FROM (
                {points}
            ) AS p
            LEFT JOIN sensor_limits l ON l.sensor_id = p.sensor_id AND l.metric = ${metric:sqlstring}
            GROUP BY 1
        ), stepped AS (
            SELECT time, is_out, lead(time) OVER (ORDER BY time) AS next_time FROM spans
        ), allowed AS (
            SELECT make_interval(secs => greatest({span_s}, coalesce(
                       3 * max(s.expected_interval_s),
                       greatest(
                           300,
                           3 * percentile_disc(0.5) WITHIN GROUP (ORDER BY extract(epoch FROM p.next_time - p.time))
                       )
                   ))) AS silence,
                   least($__timeTo(), now()) AS ends_at
            FROM sensors s
            LEFT JOIN stepped p ON true
            WHERE s.id = {sensor}
        ), changes AS (
            SELECT time, CASE WHEN is_out THEN '{out}' ELSE 'online' END AS state FROM stepped
            UNION ALL
            SELECT time + silence, 'offline' FROM stepped, allowed WHERE time + silence < coalesce(next_time, ends_at)
            UNION ALL
            SELECT TIMESTAMPTZ $__timeFrom(), CASE WHEN last_seen_at IS NULL THEN 'never seen' ELSE 'offline' END
            FROM allowed
            JOIN sensor_status ON sensor_id = {sensor}
            WHERE last_seen_at IS NULL
               OR TIMESTAMPTZ $__timeFrom() + silence < coalesce((SELECT min(time) FROM spans), ends_at)
        )
        SELECT time, state AS "State"
        FROM (SELECT time, state, lag(state) OVER (ORDER BY time) AS before FROM changes) AS each
        WHERE state IS DISTINCT FROM before
        ORDER BY time
        """,
        out=OUT_OF_LIMITS,
        span_s="greatest(0.004 * $__interval_ms, {bucket_s})",
        bucket_s=WIDTH_S,
        points=points(VALUES),
        sensor=SENSOR,
    ),
    size=(24, 3),
    defaults={"mappings": colored_text(STATE_COLORS)},
    points=Points.SENSORS,
)

LOCAL_TIME = "AT TIME ZONE '${__timezone}'"
HOURS = [f"{hour:02}:00" for hour in range(24)]
MEANS_OF_HOURS = ",\n".join(
    f'sum(sum) FILTER (WHERE hour = {hour}) / sum(count) FILTER (WHERE hour = {hour}) AS "{name}"'
    for hour, name in enumerate(HOURS)
)

COLD_TO_WARM = "#1f5fc4", "#315fae", "#445f99", "#566083", "#68606d", "#7f4f5d", "#96394c", "#ad283b", "#c4162a"
"""White text is read on each of them, in either theme. Grafana's own scales pass through colours on which none is."""

# Hours are read whatever the zoom is: of a short range, those before it would cost more than all else.
days = table(
    "$metric: mean of each hour",
    f"""The mean of each hour of the range, the newest day first, in the dashboard's time zone. Of {SHORTEST_DAYS} days
    or more, and the newest {MOST_DAYS} of them.""",
    sql(
        """
        SELECT to_char(time {local}, 'YYYY-MM-DD') AS "Day",
               {means}
        FROM (
            SELECT bucket AS time, extract(hour FROM bucket {local}) AS hour, sum, count
            FROM points_1h
            WHERE {values} AND {in_range}
              AND TIMESTAMPTZ $__timeTo() - TIMESTAMPTZ $__timeFrom() >= INTERVAL '{shortest} days'
        ) AS hours
        GROUP BY 1
        ORDER BY 1 DESC
        LIMIT {most}
        """,
        means=MEANS_OF_HOURS,
        local=LOCAL_TIME,
        values=VALUES,
        in_range=in_range("1 hour"),
        shortest=str(SHORTEST_DAYS),
        most=str(MOST_DAYS),
    ),
    size=(24, 9),
    defaults={
        "thresholds": ramp(*COLD_TO_WARM),
        # Else it would have the colour of the lowest value.
        "mappings": [
            {
                "type": "special",
                "options": {"match": "null", "result": {"text": NO_CELL, "color": "transparent", "index": 0}},
            }
        ],
    },
    empty=f"Hours by days are shown of a range of {SHORTEST_DAYS} days or more in which the sensor sent",
    overrides=[
        override("Day", custom__width=100),
        # The unit stands beside the chart; with it, 24 columns would not fit.
        *(
            override(
                hour,
                unit="none",
                decimals=1,
                custom__cellOptions={"type": "color-background", "mode": "basic"},
                custom__minWidth=46,
                custom__filterable=False,
            )
            for hour in HOURS
        ),
    ],
)

DASHBOARD = dashboard(
    "sensorflow-sensor",
    "Sensor detail",
    "One sensor at every zoom: mean, range, limits and gaps of each metric.",
    [
        registered,
        latest,
        quality,
        violations,
        row("$metric", repeat="metric"),
        chart,
        figures,
        states,
        row("$metric by hour and day", repeat="metric", folded=[days]),
    ],
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
            """Metrics that are shown, each in a row of its own: those that the sensor sent in the last hour before its
            latest reading (of one that has been silent for a day, those of that reading) or has limits for.""",
            # A reading may have only some of the sensor's metrics, the latest one too. With a year of chunks, planning
            # takes 130 ms unless now() says which of them are meant.
            f"""
            WITH looked_at AS (
                SELECT sensor_id, last_seen_at FROM sensor_status WHERE sensor_id = {SENSOR}
            ), its_metrics AS (
                SELECT m.title, m.name
                FROM metrics m
                CROSS JOIN looked_at s
                WHERE EXISTS (SELECT FROM sensor_limits l WHERE l.sensor_id = s.sensor_id AND l.metric = m.name)
                   OR EXISTS (SELECT FROM latest_points p WHERE p.sensor_id = s.sensor_id AND p.metric = m.name)
                   OR EXISTS (
                       SELECT FROM points p
                       WHERE p.sensor_id = s.sensor_id AND p.metric = m.name
                         AND p.time > now() - INTERVAL '1 day' AND p.time > s.last_seen_at - INTERVAL '1 hour'
                   )
            )
            SELECT title AS __text, name AS __value FROM its_metrics
            UNION ALL
            SELECT 'No readings yet', '{NO_METRIC}' WHERE NOT EXISTS (SELECT FROM its_metrics)
            ORDER BY 1
            """,
            multi=True,
        ),
    ],
)
