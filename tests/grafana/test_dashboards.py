"""Dashboards and provisioning agree with each other and with Grafana's types."""

import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from itertools import combinations
from pathlib import Path

import pytest
import yaml

from grafana.panels import BLUE, GREEN, GREY, ORANGE, RED
from grafana.zoom import HOURS_MS, MINUTES_MS, RAW_MS
from tests.grafana.dashboards import (
    ALERT_GROUPS,
    ALERT_RULES,
    DASHBOARDS,
    DATASOURCES,
    PROVIDERS,
    REPOSITORY,
    Node,
    alert_queries,
    annotation_queries,
    panel_queries,
    panels,
    variable_queries,
)
from tests.grafana.expansion import VARIABLE, interval_ms, seconds
from tests.grafana.schema import dashboard_schema

OF_COUNTS = {name: DASHBOARDS[name] for name in ("database.json", "ingest-and-server.json", "fleet-overview.json")}
"""Dashboards whose axes are of rates, sizes and durations; those of the others are of a sensor's values."""
UIDS = {dashboard["uid"] for dashboard in DASHBOARDS.values()}
EXPRESSION = "__expr__"
"""The datasource of a rule's steps that work on other steps."""
KINDS_WITHOUT_NUMBERS = {"text", "dashlist", "alertlist", "geomap", "table"}
"""Those of a table's columns that are numbers are only known once it has run: see test_queries.py."""
BUCKETS_MS = (RAW_MS, 0), (MINUTES_MS, 60_000), (HOURS_MS, 3_600_000)
"""Up to which interval which buckets are read; above, days."""
OF_GRAFANA = re.compile(r"__\w+")


def each_dashboard() -> pytest.MarkDecorator:
    """Run a test once for each dashboard."""
    return pytest.mark.parametrize("dashboard", DASHBOARDS.values(), ids=DASHBOARDS.keys())


def each_of_counts() -> pytest.MarkDecorator:
    """Run a test once for every dashboard of ``OF_COUNTS``."""
    return pytest.mark.parametrize("dashboard", OF_COUNTS.values(), ids=OF_COUNTS.keys())


def each_rule() -> pytest.MarkDecorator:
    """Run a test once for each alert rule."""
    return pytest.mark.parametrize("rule", ALERT_RULES, ids=[rule["uid"] for rule in ALERT_RULES])


def everything(node: object) -> Iterator[Node]:
    """Yield every object in a piece of JSON, with itself."""
    if isinstance(node, dict):
        yield node
    if isinstance(node, dict | list):
        for each in node.values() if isinstance(node, dict) else node:
            yield from everything(each)


def variables(dashboard: Node) -> set[str]:
    """Return the names of a dashboard's variables."""
    return {variable["name"] for variable in dashboard["templating"]["list"]}


def test_every_dashboard_is_valid_by_grafanas_own_types(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """The options of each kind of panel included. Grafana ignores what it does not know, and says nothing."""
    kinds = sorted({panel["type"] for dashboard in DASHBOARDS.values() for panel in panels(dashboard)})
    schema, files = tmp_path / "schema.json", [tmp_path / name for name in DASHBOARDS]
    schema.write_text(json.dumps(dashboard_schema(request.config, kinds)))
    for file, dashboard in zip(files, DASHBOARDS.values(), strict=True):
        file.write_text(json.dumps(dashboard))
    command = [sys.executable, "-m", "check_jsonschema", "--schemafile", *map(str, [schema, *files])]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


def test_uids_and_titles_of_dashboards_are_unique() -> None:
    assert len(UIDS) == len({dashboard["title"] for dashboard in DASHBOARDS.values()}) == len(DASHBOARDS) > 0


@each_dashboard()
def test_ids_and_titles_of_panels_are_unique_and_so_are_refids(dashboard: Node) -> None:
    assert max(Counter(each["id"] for each in everything(dashboard) if "gridPos" in each).values()) == 1
    assert max(Counter(panel["title"] for panel in panels(dashboard)).values()) == 1
    for panel in panels(dashboard):
        assert max(Counter(target["refId"] for target in panel["targets"]).values(), default=1) == 1


@each_dashboard()
def test_panels_lie_on_the_grid_and_not_on_each_other(dashboard: Node) -> None:
    places = [panel["gridPos"] for panel in dashboard["panels"]]
    assert all(place["x"] >= 0 and place["x"] + place["w"] <= 24 for place in places)
    for one, other in combinations(places, 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        above = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or above, (one, other)


@each_dashboard()
def test_every_datasource_is_provisioned_and_of_the_type_that_is_said(dashboard: Node) -> None:
    for node in everything(dashboard):
        if isinstance(source := node.get("datasource"), dict):
            assert DATASOURCES[source["uid"]]["type"] == source["type"]


@each_dashboard()
def test_every_panel_says_what_it_shows_and_in_which_unit(dashboard: Node) -> None:
    """A unit may also come from a query, by a transformation, and numbers that are shown as words need none."""
    for panel in panels(dashboard):
        assert panel["description"].endswith("."), panel["title"]
        defaults = panel["fieldConfig"]["defaults"]
        from_query = {"configFromData", "rowsToFields"} & {each["id"] for each in panel["transformations"]}
        has_unit = "unit" in defaults or "mappings" in defaults or from_query
        assert has_unit or panel["type"] in KINDS_WITHOUT_NUMBERS, panel["title"]


@each_dashboard()
def test_a_dashboard_refreshes_every_five_to_ten_seconds_and_shows_the_readers_time(dashboard: Node) -> None:
    """The one that reads many sensors once a minute: without materialized aggregates that costs seconds."""
    expected_s = (60, 60) if dashboard["uid"] == "sensorflow-compare" else (5, 10)
    assert expected_s[0] <= seconds(dashboard["refresh"]) <= expected_s[1]
    assert dashboard["refresh"] in dashboard["timepicker"]["refresh_intervals"]
    assert (dashboard["schemaVersion"], dashboard["timezone"]) == (42, "browser")
    assert dashboard.get("id") is None


@each_dashboard()
def test_variables_that_are_used_exist_and_those_that_exist_are_used(dashboard: Node) -> None:
    used: set[str] = set()
    for panel in dashboard["panels"]:
        if "repeat" in panel:
            used.add(panel["repeat"])
        for match in VARIABLE.finditer(json.dumps(panel)):
            used.add(match["bare"] or match["old"] or match["braced"])
    used = {name for name in used if not OF_GRAFANA.fullmatch(name) and not name.isdigit()}
    assert used == variables(dashboard)


@each_dashboard()
def test_a_choice_of_sensors_is_searched_and_cut(dashboard: Node) -> None:
    """A choice of sensors can be searched, never selects all by itself, and says that its list is cut."""
    for variable in dashboard["templating"]["list"]:
        if "FROM sensors" in variable["query"]:
            assert "$__searchFilter" in variable["query"]
            (limit,) = re.findall(r"LIMIT (\d+)", variable["query"])
            assert f"the first {limit} by name" in variable["description"]
            # All is a text of its own, and not the list.
            assert not variable["includeAll"] or variable["allValue"] == "''"


@pytest.mark.parametrize("hours", [0.25, 1, 3, 6, 12, 24, 48, 7 * 24, 30 * 24])
def test_curves_of_several_sensors_keep_their_shape(hours: float) -> None:
    """Values beyond a limit for minutes are not lost in the mean of an hour or a day."""
    for panel in panels(DASHBOARDS["compare-sensors.json"]):
        width_ms = interval_ms(timedelta(hours=hours), panel["maxDataPoints"], "1s")
        bucket_ms = next((bucket for bound, bucket in BUCKETS_MS if width_ms <= bound), 86_400_000)
        assert hours * 3_600_000 / max(bucket_ms, 2 * width_ms) > 150


@each_dashboard()
def test_a_query_that_looks_at_the_interval_is_on_a_panel_of_fixed_points(dashboard: Node) -> None:
    """A query that uses the interval is on a panel of fixed points: otherwise the window's width would decide."""
    for query in panel_queries(dashboard):
        if "$__interval" in query.sql:
            assert query.of_panel["maxDataPoints"] > 0
            assert seconds(query.of_panel["interval"]) < 60


@each_dashboard()
def test_links_lead_to_dashboards_that_exist_and_set_variables_that_they_have(dashboard: Node) -> None:
    by_uid = {each["uid"]: each for each in DASHBOARDS.values()}
    urls = [node["url"] for node in everything(dashboard) if node.get("url")]
    for url in urls:
        path, _, parameters = url.partition("?")
        target = by_uid[path.removeprefix("/d/").partition("/")[0]]
        set_here = {each.partition("=")[0] for each in parameters.split("&") if each.startswith("var-")}
        assert {name.removeprefix("var-") for name in set_here} <= variables(target)
    for link in dashboard["links"]:
        if link["type"] == "dashboards":
            assert sum(set(link["tags"]) <= set(each["tags"]) for each in DASHBOARDS.values()) == len(DASHBOARDS)


def test_every_override_is_of_a_field_that_its_queries_name() -> None:
    """An override of no field changes nothing. Fields of SQL are looked for as text, those of PromQL as legends.

    An override by a pattern is of fields that only the data names.
    """
    for dashboard in DASHBOARDS.values():
        for panel in panels(dashboard):
            texts = "\n".join(target.get("rawSql", "") + target.get("legendFormat", "") for target in panel["targets"])
            for override in panel["fieldConfig"]["overrides"]:
                if override["matcher"]["id"] == "byRegexp":
                    assert panel["type"] == "table" or re.search(r"\{\{\w+\}\}| AS metric\b", texts), override
                    continue
                assert override["matcher"]["id"] == "byName"
                assert re.search(rf"\b{re.escape(override['matcher']['options'])}\b", texts), override


def prometheus_panels(dashboard: Node) -> Iterator[Node]:
    """Yield the panels that query Prometheus."""
    return (panel for panel in panels(dashboard) if panel.get("datasource", {}).get("type") == "prometheus")


def color_of_nothing(panel: Node) -> str:
    """Return the colour of a stat without a value: the one below all thresholds, unless it has only one."""
    defaults = panel["fieldConfig"]["defaults"]
    color = defaults["color"]
    found: str = color["fixedColor"] if color["mode"] == "fixed" else defaults["thresholds"]["steps"][0]["color"]
    return found


@each_dashboard()
def test_prometheus_stats_are_instant(dashboard: Node) -> None:
    """A stat of Prometheus shows the current value, not the last one, and is grey without a value."""
    for panel in prometheus_panels(dashboard):
        if panel["type"] != "stat":
            continue
        for target in panel["targets"]:
            assert (target["instant"], target["range"]) == (True, False), panel["title"]
            # In a long range it is hours, in which a server that is down still had requests.
            assert "$__rate_interval" not in target["expr"], panel["title"]
        words = panel["fieldConfig"]["defaults"]["noValue"]
        assert (words, color_of_nothing(panel)) == ("no data", GREY), panel["title"]


@each_dashboard()
def test_no_data_is_not_green(dashboard: Node) -> None:
    """A stat of a database that does not answer looks no better than one of a server that doesn't."""
    for panel in panels(dashboard):
        if panel["type"] == "stat":
            assert color_of_nothing(panel) != GREEN, panel["title"]


@each_dashboard()
def test_no_series_is_not_good_news(dashboard: Node) -> None:
    """A panel without series says so, and does not show it as good news."""
    for panel in prometheus_panels(dashboard):
        assert panel["fieldConfig"]["defaults"].get("noValue", "no data") == "no data", panel["title"]


@each_dashboard()
def test_empty_cells_have_words_of_their_own(dashboard: Node) -> None:
    """The text of an empty table never stands in a cell: Grafana would put it into every NULL."""
    for panel in panels(dashboard):
        if panel["type"] == "table":
            first = panel["fieldConfig"]["overrides"][0]
            assert first["matcher"] == {"id": "byRegexp", "options": "/^.*$/"}, panel["title"]
            assert first["properties"] == [{"id": "noValue", "value": "–"}], panel["title"]


@each_dashboard()
def test_figures_without_a_value_are_short(dashboard: Node) -> None:
    """Grafana writes whatever stands for a value as large as a value: a sentence fills the panel."""
    for panel in panels(dashboard):
        if panel["type"] == "stat":
            assert panel["fieldConfig"]["defaults"]["noValue"] in {"–", "no data"}, panel["title"]


def test_an_empty_fleet_says_how_to_send() -> None:
    """Where no sensor is listed, either none matches or none has sent: the words are for both."""
    words = {
        panel["title"]: panel["fieldConfig"]["defaults"]["noValue"]
        for panel in panels(DASHBOARDS["fleet-overview.json"])
        if panel["title"] in {"Sensors and their latest readings", "States of 20 sensors"}
    }
    assert len(words) == 2
    for each in words.values():
        assert "matches" in each
        assert "none has sent yet: POST /api/readings" in each


def test_trends_are_a_row_for_each_series() -> None:
    """A frame for each sensor and metric becomes a row, drawn as a line through the means and no others."""
    (trends,) = (each for each in panels(DASHBOARDS["fleet-overview.json"]) if each["title"].startswith("Trends of"))
    parted, to_rows = trends["transformations"]
    assert (parted["id"], to_rows["id"]) == ("partitionByValues", "timeSeriesTable")
    assert parted["options"]["fields"] == ["id", "Sensor", "Metric"]
    (cell,) = (
        each["value"]
        for override in trends["fieldConfig"]["overrides"]
        if override["matcher"]["options"] == "/^Trend #A$/"
        for each in override["properties"]
        if each["id"] == "custom.cellOptions"
    )
    assert (cell["type"], cell["lineInterpolation"]) == ("sparkline", "linear")


def test_a_sensor_that_never_sent_is_promised_no_link() -> None:
    """An empty chart names the link to the last reading only on the condition that there is one."""
    (chart,) = (each for each in panels(DASHBOARDS["sensor-detail.json"]) if each["title"] == "$metric")
    assert "If the sensor has ever sent," in chart["fieldConfig"]["defaults"]["noValue"]


def luminance(color: str) -> float:
    """Return the relative luminance of a colour, by WCAG 2."""
    parts = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_hours_are_read_on_their_colours() -> None:
    """The text in a cell has a contrast of 4.5 at least. Grafana makes it white, but on very pale colours."""
    (days,) = (each for each in panels(DASHBOARDS["sensor-detail.json"]) if "mean of each hour" in each["title"])
    defaults = days["fieldConfig"]["defaults"]
    assert (defaults["color"]["mode"], defaults["thresholds"]["mode"]) == ("thresholds", "percentage")
    steps = defaults["thresholds"]["steps"]
    assert len(steps) == 9
    for step in steps:
        contrast = (luminance("#f7f8fa") + 0.05) / (luminance(step["color"]) + 0.05)
        assert contrast >= 4.5, step


def test_compare_has_one_last_reading() -> None:
    """The chart's last value is the mean of a bucket, so only the table says what the last reading was."""
    chart, figures = panels(DASHBOARDS["compare-sensors.json"])
    assert chart["options"]["legend"]["calcs"] == []
    assert 'AS "Last"' in figures["targets"][0]["rawSql"]


@each_dashboard()
def test_no_figure_is_extrapolated(dashboard: Node) -> None:
    """Growth in a day is known after a day. Prometheus' delta makes a day's out of the first minute's."""
    for panel in prometheus_panels(dashboard):
        for target in panel["targets"]:
            assert not re.search(r"\bdelta\(", target["expr"]), panel["title"]
            assert "in a day" not in panel["title"] or "offset 1d" in target["expr"]


@each_dashboard()
def test_legends_have_no_sentences(dashboard: Node) -> None:
    """The text of an empty chart is no sentence, because Grafana shows it in the legend of series without values."""
    for panel in panels(dashboard):
        if panel["type"] == "timeseries" and panel["options"]["legend"]["calcs"]:
            assert panel["fieldConfig"]["defaults"].get("noValue", "–") in {"–", "no data"}, panel["title"]


@each_dashboard()
def test_named_routes_exist(dashboard: Node) -> None:
    """Every route that a dashboard names is in docs/api.md, which another test compares with the server."""
    routes = set(re.findall(r"(?:GET|POST|PUT|PATCH|DELETE) /api/[\w/{}]*\w}?", json.dumps(dashboard)))
    api = (REPOSITORY / "docs" / "api.md").read_text()
    assert {route for route in routes if f"`{route}`" not in api} == set()


@each_dashboard()
def test_folded_panels_lie_below_their_row(dashboard: Node) -> None:
    """Folded panels lie below their row and have unique numbers, by which Grafana queries them once unfolded."""
    numbers = [panel["id"] for panel in [*dashboard["panels"], *panels(dashboard)] if panel["type"] != "row"]
    assert len(set(numbers)) == len({panel["title"] for panel in panels(dashboard)})
    for each in dashboard["panels"]:
        if each["type"] == "row":
            assert each["collapsed"] == bool(each["panels"])
            assert all(panel["gridPos"]["y"] > each["gridPos"]["y"] for panel in each["panels"])


def test_the_fleet_does_not_add_up_all_sensors_over_time() -> None:
    """Queries that run every ten seconds for every viewer read no aggregate, which has rows for each sensor."""
    for panel in DASHBOARDS["fleet-overview.json"]["panels"]:
        for target in panel.get("targets", []):
            assert not re.search(r"FROM (readings|points)\w*", target.get("rawSql", "")), panel["title"]


def test_filters_of_the_fleet_hold_for_all_that_lists_sensors() -> None:
    """The map and the violations show the same sensors as the table."""
    listing = {"Listed below", "Sensors and their latest readings", "Limit violations now", "Where the sensors are"}
    listing |= {"States of 20 sensors", "Trends of 20 sensors"}
    of_filters = {
        query.place
        for query in panel_queries(DASHBOARDS["fleet-overview.json"])
        if all(f"${{{name}:sqlstring}}" in query.sql for name in ("search", "location", "state"))
    }
    assert of_filters == listing


@each_dashboard()
def test_layout_has_no_holes(dashboard: Node) -> None:
    """Panels cover the grid."""
    places = [panel["gridPos"] for panel in dashboard["panels"]]
    height = max(place["y"] + place["h"] for place in places)
    assert sum(place["w"] * place["h"] for place in places) == 24 * height


@each_of_counts()
def test_axes_have_a_scale_for_zeros(dashboard: Node) -> None:
    """An axis of a constant 0 would go up to 100, which is 1.67 min. One that is logarithmic has no 0."""
    for panel in panels(dashboard):
        if panel["type"] == "timeseries":
            custom = panel["fieldConfig"]["defaults"]["custom"]
            is_logarithmic = custom.get("scaleDistribution", {}).get("type") == "log"
            assert is_logarithmic or (custom["axisSoftMin"] == 0 and 0 < custom["axisSoftMax"] < 100), panel["title"]


@each_of_counts()
def test_legends_have_room(dashboard: Node) -> None:
    """A legend has room: two rows fit below the lines. Longer or unbounded legends stand beside them."""
    for panel in panels(dashboard):
        if panel["type"] == "timeseries":
            is_of_labels = any("{{" in target.get("legendFormat", "") for target in panel["targets"])
            legend = panel["options"]["legend"]
            if is_of_labels or len(panel["targets"]) > 2:
                assert (legend["placement"], legend["width"] > 0) == ("right", True), panel["title"]


@each_dashboard()
def test_units_are_words(dashboard: Node) -> None:
    """Units are words, not Grafana's "c/s". A count of things has no decimals on its axis, and one of readings has all
    digits: 8,006 and 8,697 would both be 8 K.
    """
    for panel in panels(dashboard):
        for override in panel["fieldConfig"]["overrides"]:
            if override["matcher"]["options"] == "Readings":
                assert {"id": "unit", "value": "locale"} in override["properties"], panel["title"]
        assert panel["fieldConfig"]["defaults"].get("unit") not in {"cps", "ops"}, panel["title"]
        if panel["type"] == "timeseries" and re.search("connections|ranges|pool_", str(panel["targets"])):
            defaults = panel["fieldConfig"]["defaults"]
            assert (defaults["unit"], defaults["decimals"]) == ("short", 0), panel["title"]


def test_axes_have_the_decimals_of_their_steps() -> None:
    """An axis is written as its panel's first series: that has no decimals, and is not drawn. Figures have those of
    their metric.
    """
    by_title = {panel["title"]: panel for panel in panels(DASHBOARDS["sensor-detail.json"])}
    chart, figures = by_title["$metric"], by_title["$metric in this range"]
    (axis,) = (
        {each["id"]: each["value"] for each in override["properties"]}
        for override in chart["fieldConfig"]["overrides"]
        if override["matcher"]["options"] == "axis"
    )
    assert axis == {"decimals": None, "custom.hideFrom": {"legend": True, "tooltip": True, "viz": True}}
    assert re.match(r"SELECT time, NULL::double precision AS axis,", chart["targets"][0]["rawSql"])
    for panel in (chart, figures):
        assert "decimals" not in panel["fieldConfig"]["defaults"]
        (options,) = (each["options"] for each in panel["transformations"] if each["id"] == "configFromData")
        assert {each["handlerKey"] for each in options["mappings"]} == {"unit", "decimals"}


def test_hours_by_days_are_asked_for_when_they_are_looked_at() -> None:
    """Their row is closed, and Grafana asks nothing for what is in it. They have no colour where there is no value."""
    (row,) = (each for each in DASHBOARDS["sensor-detail.json"]["panels"] if each.get("panels"))
    assert (row["collapsed"], row["repeat"]) == (True, "metric")
    (days,) = row["panels"]
    assert days["gridPos"]["y"] == row["gridPos"]["y"] + 1
    (mapping,) = days["fieldConfig"]["defaults"]["mappings"]
    assert (mapping["options"]["match"], mapping["options"]["result"]["color"]) == ("null", "transparent")


def test_figures_of_a_sensor_are_large() -> None:
    """The name stands above its figure: beside it, three figures in half a screen's width are 10 pixels high."""
    for panel in panels(DASHBOARDS["sensor-detail.json"]):
        if panel["type"] == "stat":
            assert panel["options"]["wideLayout"] is False, panel["title"]


def test_an_offline_sensor_links_to_its_last_reading() -> None:
    """The time of the last reading is a link to the same sensor and metrics, around that time."""
    (sensor,) = (each for each in panels(DASHBOARDS["sensor-detail.json"]) if each["title"] == "Sensor")
    properties = {
        override["matcher"]["options"]: {each["id"]: each["value"] for each in override["properties"]}
        for override in sensor["fieldConfig"]["overrides"]
    }
    (link,) = properties["Last reading"]["links"]
    fields = re.findall(r"(from|to)=\$\{__data\.fields\.(\w+)\}", link["url"])
    assert fields == [("from", "link_from"), ("to", "link_to")]
    assert link["url"].startswith("/d/sensorflow-sensor?${sensor:queryparam}&${metric:queryparam}&")
    assert all(properties[field]["custom.hideFrom"]["viz"] for _, field in fields)
    # Three limits take 500 pixels, and a panel on a screen of 1366 has 1316.
    widths = sum(each["custom.width"] for each in properties.values() if "custom.width" in each)
    assert widths + 500 <= 1_316


@pytest.mark.parametrize(
    ("status", "color"),
    [("200", GREEN), ("204", GREEN), ("304", BLUE), ("404", ORANGE), ("429", ORANGE), ("503", RED)],
)
def test_statuses_have_the_colour_of_their_class(status: str, color: str) -> None:
    """Statuses have the colour of their class, not of their place in the list."""
    (panel,) = (each for each in panels(DASHBOARDS["ingest-and-server.json"]) if each["title"] == "Requests by status")
    (found,) = (
        each["properties"]
        for each in panel["fieldConfig"]["overrides"]
        if re.search(each["matcher"]["options"].strip("/"), status)
    )
    assert found == [{"id": "color", "value": {"mode": "shades", "fixedColor": color}}]


def test_datasources_are_fixed() -> None:
    """Grafana 13 looks for the database's name below jsonData, and not beside the user."""
    for source in DATASOURCES.values():
        assert source["editable"] is False
    (postgresql,) = (source for source in DATASOURCES.values() if "postgres" in source["type"])
    assert postgresql["type"] == "grafana-postgresql-datasource"
    assert postgresql["jsonData"]["database"]
    assert postgresql["jsonData"]["timescaledb"] is True
    assert "database" not in postgresql


def test_the_provider_reads_the_dashboards_where_they_are_mounted() -> None:
    (provider,) = PROVIDERS
    assert provider["type"] == "file"
    assert provider["allowUiUpdates"] is False
    assert provider["updateIntervalSeconds"] <= 30
    grafana = yaml.safe_load((REPOSITORY / "docker-compose.yml").read_text())["services"]["grafana"]
    mounted = dict(volume.split(":")[:2] for volume in grafana["volumes"])
    assert mounted["./grafana/dashboards"] == provider["options"]["path"]
    home = Path(grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert (str(home.parent), home.name in DASHBOARDS) == (provider["options"]["path"], True)


def test_uids_and_titles_of_alert_rules_are_unique() -> None:
    assert (
        len({rule["uid"] for rule in ALERT_RULES}) == len({rule["title"] for rule in ALERT_RULES}) == len(ALERT_RULES)
    )
    assert ALERT_RULES


@each_rule()
def test_a_rules_condition_is_one_of_its_steps_and_each_step_reads_what_exists(rule: Node) -> None:
    steps = {step["refId"]: step for step in rule["data"]}
    assert rule["condition"] in steps
    assert len(steps) == len(rule["data"])
    for step in steps.values():
        assert step["model"]["refId"] == step["refId"]
        if step["datasourceUid"] == EXPRESSION:
            read = re.findall(r"\w+", step["model"]["expression"])
            assert read
            assert set(read) <= steps.keys() - {step["refId"]}
        else:
            assert step["datasourceUid"] in DATASOURCES
            assert step["relativeTimeRange"]["from"] > step["relativeTimeRange"]["to"]
    assert {rule["noDataState"], rule["execErrState"]} <= {"OK", "NoData", "Error", "Alerting", "KeepLast"}
    assert seconds(rule["for"]) >= 0


@each_rule()
def test_a_rule_links_to_a_dashboard_and_names_steps_that_exist(rule: Node) -> None:
    link = rule["annotations"]["link"].removeprefix("{{ externalURL }}d/")
    assert link.partition("?")[0] in UIDS
    texts = " ".join(rule["annotations"].values())
    assert set(re.findall(r"\.Values\.(\w+)", texts)) <= {step["refId"] for step in rule["data"]}


@each_rule()
def test_a_rule_stands_beside_a_panel(rule: Node) -> None:
    """Each rule names a panel, so that Grafana shows both together. Grafana takes both annotations or neither."""
    annotations = rule["annotations"]
    (dashboard,) = (each for each in DASHBOARDS.values() if each["uid"] == annotations["__dashboardUid__"])
    (panel,) = (each for each in panels(dashboard) if str(each["id"]) == annotations["__panelId__"])
    assert panel["type"] != "row"


@each_rule()
def test_an_alert_does_not_flap(rule: Node) -> None:
    """An alert does not flap: it goes on firing as long if its row shows a good value as if its row is gone."""
    (group,) = (group for group in ALERT_GROUPS if rule in group["rules"])
    kept_s = seconds(rule["keepFiringFor"])
    assert kept_s >= 2 * seconds(group["interval"])
    assert rule["missing_series_evals_to_resolve"] * seconds(group["interval"]) == kept_s


def shown(text: str, labels: dict[str, str], values: dict[str, float]) -> str:
    """Fill a template of an alert as Grafana does, with plain durations and numbers."""

    def number(match: re.Match[str]) -> str:
        return f"{values[match[1]]:g}"

    def branch(match: re.Match[str]) -> str:
        other = float(match[2]) if match[2][0].isdigit() else values[match[2].split(".")[2]]
        return match[3] if values[match[1]] > other else match[4]

    text = re.sub(r"\{\{ if gt \.Values\.(\w+)\.Value (\S+) \}\}(.*?)\{\{ else \}\}(.*?)\{\{ end \}\}", branch, text)
    text = re.sub(r"\{\{ \.Labels\.(\w+) \}\}", lambda match: labels[match[1]], text)
    text = re.sub(r'\{\{ (?:printf "%\.6g"|humanizeDuration) \.Values\.(\w+)\.Value \}\}', number, text)
    assert "{{" not in text, text
    return text


LABELS_OF_VIOLATION = {"sensor": "roof", "sensor_id": "7", "metric": "pressure", "title": "Pressure", "unit": "hPa"}


@pytest.mark.parametrize(
    ("uid", "labels", "values", "parts"),
    [
        (
            "sensorflow-out-of-limits",
            LABELS_OF_VIOLATION,
            {"value": 1031.5, "limit": 1030.0},
            ["Pressure of roof", "1031.5 hPa is above the limit of 1030 hPa"],
        ),
        (
            "sensorflow-out-of-limits",
            LABELS_OF_VIOLATION,
            {"value": 899.5, "limit": 900.0},
            ["Pressure of roof", "899.5 hPa is below the limit of 900 hPa"],
        ),
        (
            "sensorflow-sensor-offline",
            {"sensor": "roof", "sensor_id": "7"},
            {"age": 4_000, "expected": 60.0},
            ["of roof is 4000 old", "expected every 60;"],
        ),
        (
            "sensorflow-sensor-offline",
            {"sensor": "roof", "sensor_id": "7"},
            {"age": 4_000, "expected": 0.0},
            ["of roof is 4000 old", "No expected interval is set", "OFFLINE_AFTER_S"],
        ),
        ("sensorflow-aggregate-lag", {}, {"lag": 1_000}, ["1000 ago", "at most 15m 0s"]),
    ],
)
def test_an_alert_says_what_is_and_what_should_be(
    uid: str, labels: dict[str, str], values: dict[str, float], parts: list[str]
) -> None:
    """An alert names the value with its unit, the limit and its side, or a sensor's silence and its interval."""
    (rule,) = (rule for rule in ALERT_RULES if rule["uid"] == uid)
    text = shown(rule["annotations"]["description"], labels, values)
    assert all(part in text for part in parts), text
    assert shown(rule["annotations"]["summary"], labels, values)


def test_no_piece_of_sql_is_left_out_of_the_tests() -> None:
    """Every ``rawSql`` and every query of PostgreSQL is found where the tests look for it."""
    found = [
        query.sql
        for dashboard in DASHBOARDS.values()
        for queries in (panel_queries, variable_queries, annotation_queries)
        for query in queries(dashboard)
    ] + [query.sql for query in alert_queries()]
    in_files = [
        text
        for node in everything([list(DASHBOARDS.values()), ALERT_RULES])
        if node.get("type") not in {"custom", "textbox"}
        for key in ("rawSql", "query", "rawQuery")
        if isinstance(text := node.get(key), str)
    ]
    assert sorted(found) == sorted(in_files)
