"""The dashboards, provisioning and alert rules as they stand in the repository, and every query in them."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
PROVISIONING = REPOSITORY / "grafana" / "provisioning"
SQL_TYPE = "grafana-postgresql-datasource"

Node = dict[str, Any]
"""An object of JSON or YAML."""


def _provisioned(kind: str, key: str) -> list[Node]:
    files = sorted((PROVISIONING / kind).glob("*.y*ml"))
    return [entry for file in files for entry in yaml.safe_load(file.read_text()).get(key, [])]


DASHBOARDS: dict[str, Node] = {
    path.name: json.loads(path.read_text()) for path in sorted((REPOSITORY / "grafana" / "dashboards").glob("*.json"))
}
"""By file name."""
DATASOURCES: dict[str, Node] = {source["uid"]: source for source in _provisioned("datasources", "datasources")}
PROVIDERS = _provisioned("dashboards", "providers")
ALERT_GROUPS = _provisioned("alerting", "groups")
ALERT_RULES: list[Node] = [rule for group in ALERT_GROUPS for rule in group["rules"]]


@dataclass(frozen=True, slots=True)
class Query:
    """A piece of SQL, and where it stands.

    Args:
        dashboard: the dashboard's uid, or ``alerting``.
        place: the panel's title, or ``variable``, ``annotation`` or ``alert`` and a name.
        ref_id: of several of the same place.
        sql: before anything is put in.
        is_time_series: Grafana wants a time column, ascending.
        of_panel: the panel, or nothing.
    """

    dashboard: str
    place: str
    ref_id: str
    sql: str
    is_time_series: bool
    of_panel: Node = field(default_factory=dict, compare=False)

    def __str__(self) -> str:
        return f"{self.dashboard}: {self.place}" + (f" {self.ref_id}" if self.ref_id not in {"", "A"} else "")


def panels(dashboard: Node) -> Iterator[Node]:
    """Yield every panel that shows something, also those of rows."""
    for panel in dashboard.get("panels", []):
        if panel["type"] == "row":
            yield from panel.get("panels", [])
        else:
            yield panel


def is_sql(source: Node | None) -> bool:
    """Return whether a reference to a datasource means PostgreSQL."""
    uid = (source or {}).get("uid")
    return uid in DATASOURCES and DATASOURCES[uid]["type"] == SQL_TYPE


def panel_queries(dashboard: Node) -> Iterator[Query]:
    """Yield the SQL of a dashboard's panels."""
    for panel in panels(dashboard):
        for target in panel.get("targets", []):
            if is_sql(target.get("datasource") or panel.get("datasource")):
                is_time_series = target["format"] == "time_series"
                yield Query(dashboard["uid"], panel["title"], target["refId"], target["rawSql"], is_time_series, panel)


def variable_queries(dashboard: Node) -> Iterator[Query]:
    """Yield the SQL of a dashboard's variables."""
    for variable in dashboard.get("templating", {}).get("list", []):
        if variable["type"] == "query" and is_sql(variable.get("datasource")):
            query = variable["query"]
            sql = query if isinstance(query, str) else query["rawSql"]
            yield Query(dashboard["uid"], f"variable {variable['name']}", "", sql, is_time_series=False)


def annotation_queries(dashboard: Node) -> Iterator[Query]:
    """Yield the SQL of a dashboard's annotations."""
    for annotation in dashboard.get("annotations", {}).get("list", []):
        if is_sql(annotation.get("datasource")):
            sql = annotation["target"]["rawSql"] if "target" in annotation else annotation["rawQuery"]
            yield Query(dashboard["uid"], f"annotation {annotation['name']}", "", sql, is_time_series=False)


def alert_queries() -> Iterator[Query]:
    """Yield the SQL of the alert rules."""
    for rule in ALERT_RULES:
        for step in rule["data"]:
            if is_sql({"uid": step["datasourceUid"]}):
                model = step["model"]
                is_time_series = model["format"] == "time_series"
                yield Query("alerting", f"alert {rule['title']}", step["refId"], model["rawSql"], is_time_series)
