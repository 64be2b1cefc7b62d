"""Alert rules, each tied to a panel of a dashboard: ``python -m grafana`` writes them to ``provisioning/alerting``.

A query of a rule gives a table of one number and, as labels, its texts. Each row is an alert of its own, known by its
labels, so a number that changes must not be one of them. Grafana joins the steps of a rule by equal labels, and a text
takes its numbers from them: ``.Values.value.Value`` is the number of the step ``value``.

Templates say .Labels and .Values where Grafana's documentation says $labels and $values: whether a $ in an annotation
has to be doubled depends on Grafana's version.
"""

from textwrap import dedent

import yaml

from grafana import database, fleet, ingest
from grafana.metrics import symbol
from grafana.panels import POSTGRESQL, Json

FOLDER = "SensorFlow"
HEAD = """\
# Written by `python -m grafana` from grafana/alerts.py, which says why each rule is as it is.
#
# Without a contact point of yours Grafana's default takes the alerts: e-mail, which it does not send before it knows a
# mail server.
"""

SYMBOL = symbol("m.unit")

SENSOR_LINK = "{{ externalURL }}d/sensorflow-sensor?var-sensor={{ .Labels.sensor_id }}"


def panel_id(dashboard: Json, title: str) -> int:
    """Return the number that a panel has by its place. Raises ValueError where no panel has the title."""
    match dashboard:
        case {"panels": list(panels)}:
            for panel in panels:
                match panel:
                    case {"title": str(found), "id": int(number)} if found == title:
                        return number
    raise ValueError(f"{dashboard['title']} has no panel {title!r}.")


def query(ref: str, sql: str) -> Json:
    """Make a step that asks the database. Grafana strips comments and evaluates no variables."""
    model: Json = {
        "refId": ref,
        "format": "table",
        "rawQuery": True,
        "editorMode": "code",
        "intervalMs": 1_000,
        "maxDataPoints": 100,
        "rawSql": dedent(sql).strip() + "\n",
    }
    return {
        "refId": ref,
        "datasourceUid": POSTGRESQL["uid"],
        "relativeTimeRange": {"from": 600, "to": 0},
        "model": model,
    }


def threshold(ref: str, of: str, kind: str, bound: float) -> Json:
    """Make a step that is true where the number of another is above (``gt``) or below (``lt``) a bound."""
    return _expression(ref, "threshold", of, conditions=[{"evaluator": {"type": kind, "params": [bound]}}])


def math(ref: str, expression: str) -> Json:
    """Make a step that computes with the numbers of others, for each set of labels that they all have."""
    return _expression(ref, "math", expression)


def _expression(ref: str, kind: str, expression: str, **more: object) -> Json:
    return {
        "refId": ref,
        "datasourceUid": "__expr__",
        "relativeTimeRange": {"from": 0, "to": 0},
        "model": {"refId": ref, "type": kind, "expression": expression, **more},
    }


def rule(
    uid: str,
    title: str,
    steps: list[Json],
    *,
    dashboard: Json,
    panel: str,
    every_s: int,
    pending_s: int,
    keep_firing_s: int,
    severity: str,
    summary: str,
    description: str,
    link: str,
    on_error: str = "Error",
) -> Json:
    """Make a rule whose last step is its condition, beside the panel of a title.

    No rows mean that all is well. An alert fires on for ``keep_firing_s`` after it has ended: by ``keepFiringFor``
    where Grafana still gets its row or no rows at all, by ``missing_series_evals_to_resolve`` where only others have
    rows.
    """
    return {
        "uid": uid,
        "title": title,
        "condition": steps[-1]["refId"],
        "for": f"{pending_s}s",
        "keepFiringFor": f"{keep_firing_s}s",
        "missing_series_evals_to_resolve": keep_firing_s // every_s,
        "noDataState": "OK",
        "execErrState": on_error,
        "labels": {"severity": severity},
        "annotations": {
            "summary": " ".join(summary.split()),
            "description": " ".join(description.split()),
            "link": link,
            "__dashboardUid__": dashboard["uid"],
            "__panelId__": str(panel_id(dashboard, panel)),
        },
        "data": steps,
    }


def group(name: str, every_s: int, rules: list[Json]) -> Json:
    """Group rules that are evaluated together."""
    return {"orgId": 1, "name": name, "folder": FOLDER, "interval": f"{every_s}s", "rules": rules}


SENSORS_EVERY_S, SERVER_EVERY_S = 30, 60

# Rows only of those that are offline: Grafana would keep a state of every sensor.
OFFLINE = """
    SELECT name AS sensor, sensor_id::text AS sensor_id, {number}
    FROM sensor_status
    WHERE NOT is_online
    ORDER BY name, sensor_id
"""
offline = rule(
    "sensorflow-sensor-offline",
    "Sensor offline",
    [
        query("age", OFFLINE.format(number="age_s")),
        query("expected", OFFLINE.format(number="coalesce(expected_interval_s, 0) AS expected_s")),
        # One whose clock is ahead by hours is not silent.
        threshold("offline", "age", "gt", 0),
    ],
    dashboard=fleet.DASHBOARD,
    panel="Sensors and their latest readings",
    every_s=SENSORS_EVERY_S,
    pending_s=60,
    keep_firing_s=300,
    severity="warning",
    summary="{{ .Labels.sensor }} has been offline for {{ humanizeDuration .Values.age.Value }}",
    # 0 would be an integer to Go's templates, which compare it with no other number.
    description="""
        The latest reading of {{ .Labels.sensor }} is {{ humanizeDuration .Values.age.Value }} old.
        {{ if gt .Values.expected.Value 0.0 }}One is expected every {{ humanizeDuration .Values.expected.Value }}; it is
        offline when three are missing.{{ else }}No expected interval is set for it; it is offline when nothing came for
        OFFLINE_AFTER_S.{{ end }}
    """,
    link=SENSOR_LINK,
)

# The limit that the value is beyond. Metrics of one title are still told apart by their names.
OUT_OF_LIMITS = """
    SELECT s.name AS sensor, v.sensor_id::text AS sensor_id, v.metric, m.title,
           {symbol} AS unit,
           {number}
    FROM limit_violations v
    JOIN sensors s ON s.id = v.sensor_id
    JOIN metrics m ON m.name = v.metric
    ORDER BY s.name, v.sensor_id, v.metric
"""
BEYOND = """\
{{ printf "%.6g" .Values.value.Value }} {{ .Labels.unit }} is
{{ if gt .Values.value.Value .Values.limit.Value }}above{{ else }}below{{ end }} the limit of
{{ printf "%.6g" .Values.limit.Value }} {{ .Labels.unit }}"""
out_of_limits = rule(
    "sensorflow-out-of-limits",
    "Reading out of limits",
    [
        query("value", OUT_OF_LIMITS.format(symbol=SYMBOL, number="v.value")),
        query(
            "limit",
            OUT_OF_LIMITS.format(
                symbol=SYMBOL, number='CASE WHEN v.value > v.upper THEN v.upper ELSE v.lower END AS "limit"'
            ),
        ),
        # Every row is of a value beyond its limit.
        math("out", "$value != $limit"),
    ],
    dashboard=fleet.DASHBOARD,
    panel="Limit violations now",
    every_s=SENSORS_EVERY_S,
    pending_s=0,
    # The view holds a violation for an hour already.
    keep_firing_s=120,
    severity="warning",
    summary="{{ .Labels.title }} of {{ .Labels.sensor }}: " + BEYOND,
    description=f"""
        {{{{ .Labels.title }}}} of {{{{ .Labels.sensor }}}} is out of limits: {BEYOND}. The value is the furthest of the
        last hour. The alert ends an hour after the last such reading arrived, or when the limit is corrected.
    """,
    link=SENSOR_LINK,
)

nothing_ingested = rule(
    "sensorflow-nothing-ingested",
    "Nothing ingested",
    [
        # Sensors that send once an hour, and say so by their expected interval, are no silence. No row: nothing has
        # ever been sent.
        query(
            "signs",
            """
            SELECT (SELECT count(*) FROM flushes WHERE committed_at > now() - INTERVAL '5 minutes')
                   + count(*) FILTER (WHERE is_online) AS signs_of_life
            FROM sensor_status
            HAVING count(last_seen_at) > 0
            """,
        ),
        threshold("silent", "signs", "lt", 1),
    ],
    dashboard=ingest.DASHBOARD,
    panel="Readings committed",
    every_s=SERVER_EVERY_S,
    pending_s=60,
    keep_firing_s=300,
    severity="critical",
    summary="Nothing is ingested",
    description="No reading has been committed for five minutes, and no sensor is online.",
    link="{{ externalURL }}d/sensorflow-ingest",
    # The database can't be asked, so that nothing can be stored either.
    on_error="Alerting",
)

aggregate_lag = rule(
    "sensorflow-aggregate-lag",
    "Aggregate lag",
    [
        query("lag", "SELECT max(lag_s) AS lag FROM aggregate_lag"),
        threshold("late", "lag", "gt", 900),
    ],
    dashboard=database.DASHBOARD,
    panel="Aggregate lag",
    every_s=SERVER_EVERY_S,
    pending_s=600,
    keep_firing_s=300,
    severity="warning",
    summary="Aggregates have not been brought up to date for {{ humanizeDuration .Values.lag.Value }}",
    description="""
        It was {{ humanizeDuration .Values.lag.Value }} ago that they were, and at most 15m 0s are allowed; readings
        that came late since then may be missing. The server's log says what stands in the way.
    """,
    link="{{ externalURL }}d/sensorflow-database",
)

maintenance = rule(
    "sensorflow-maintenance",
    "Maintenance failing",
    [
        query("age", "SELECT work, age_s AS age FROM late_maintenance"),
        threshold("late", "age", "gt", 0),
    ],
    dashboard=database.DASHBOARD,
    panel="Background jobs",
    every_s=SERVER_EVERY_S,
    pending_s=300,
    keep_firing_s=300,
    severity="warning",
    summary="The maintenance's work {{ .Labels.work }} has not succeeded for {{ humanizeDuration .Values.age.Value }}",
    description="""
        It has not succeeded for {{ humanizeDuration .Values.age.Value }}, and at most 1h 0m 0s are allowed, or three
        times its interval. Without columnstore and retention the disk fills up; without refresh dashboards become slow.
        The server's log and /ready with a key say what stands in the way.
    """,
    link="{{ externalURL }}d/sensorflow-database",
)

GROUPS = [
    group("Sensors", SENSORS_EVERY_S, [offline, out_of_limits]),
    group("Server", SERVER_EVERY_S, [nothing_ingested, aggregate_lag, maintenance]),
]


class _Dumper(yaml.SafeDumper):
    """Write texts of several lines as such, and each list once more where it is used again."""

    def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def text() -> str:
    """Return the rules as Grafana reads them."""
    rules = {"apiVersion": 1, "groups": GROUPS}
    return HEAD + yaml.dump(rules, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
