"""The parts of any dashboard, in Grafana's classic JSON (schema version 42).

The module knows nothing of sensors. Names and values of options are those of ``@grafana/schema`` 13.2. Options that are
left out have the right default there.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from textwrap import dedent

Json = dict[str, object]

POSTGRESQL: Json = {"type": "grafana-postgresql-datasource", "uid": "sensorflow-postgresql"}
PROMETHEUS: Json = {"type": "prometheus", "uid": "sensorflow-prometheus"}

GREEN, YELLOW, ORANGE, RED, BLUE, PURPLE, GREY = "green", "yellow", "orange", "red", "blue", "purple", "#8e8e8e"

GRID_COLUMNS = 24
NO_CELL = "–"
"""What stands in a table's cell that has no value."""
TAG = "sensorflow"


HIDDEN: Json = {"legend": True, "tooltip": True, "viz": True}
"""Where a column is hidden that is only there for links or axes."""


def sql(query: str, *, ref: str = "A", series: bool = False, **parts: str) -> Json:
    """Query the database, in one of Grafana's two shapes: a table, or series over the column ``time``.

    Each of ``parts`` takes the place of its name in braces, and the indentation of its line.
    """
    return {
        "refId": ref,
        "datasource": POSTGRESQL,
        "format": "time_series" if series else "table",
        "editorMode": "code",
        "rawQuery": True,
        "rawSql": "\n".join(_filled(line, parts) for line in dedent(query).strip().splitlines()),
    }


def _filled(line: str, parts: Mapping[str, str]) -> str:
    margin = line[: len(line) - len(line.lstrip())]
    for name, part in parts.items():
        line = line.replace(f"{{{name}}}", part.replace("\n", "\n" + margin))
    return line


def promql(expression: str, legend: str = "__auto", *, ref: str = "A") -> Json:
    """Query Prometheus over the range."""
    return {
        "refId": ref,
        "datasource": PROMETHEUS,
        "editorMode": "code",
        "range": True,
        "expr": dedent(expression).strip(),
        "legendFormat": legend,
    }


def promqls(**expressions: str) -> list[Json]:
    """Query Prometheus several times, each query by the name of its series. An underscore stands for a space."""
    return [
        promql(expression, name.replace("_", " "), ref=chr(ord("A") + index))
        for index, (name, expression) in enumerate(expressions.items())
    ]


def instant(targets: Sequence[Json]) -> list[Json]:
    """Ask the same queries of Prometheus as of the end of the range, and of nothing before it."""
    return [{**target, "instant": True, "range": False} for target in targets]


def override(field: str, **properties: object) -> Json:
    """Override properties of the field of a name. Two underscores in a property's name stand for a dot."""
    return _override("byName", field, properties)


def override_matching(pattern: str, **properties: object) -> Json:
    """Override the fields whose whole name matches a regular expression."""
    return _override("byRegexp", f"/^{pattern}$/", properties)


def _override(matcher: str, field: str, properties: Mapping[str, object]) -> Json:
    return {
        "matcher": {"id": matcher, "options": field},
        "properties": [{"id": name.replace("__", "."), "value": value} for name, value in properties.items()],
    }


def fixed(color: str) -> Json:
    """Use one colour, whatever the value."""
    return {"mode": "fixed", "fixedColor": color}


def shades(color: str) -> Json:
    """Give each series a shade of one colour."""
    return {"mode": "shades", "fixedColor": color}


def thresholds(base: str, *steps: tuple[float, str]) -> Json:
    """Colour by value: the first colour from below, each other one from its value on."""
    colors = [{"value": None, "color": base}, *({"value": value, "color": color} for value, color in steps)]
    return {"mode": "absolute", "steps": colors}


def from_zero(color: str, *steps: tuple[float, str]) -> Json:
    """Colour values that are never below zero. Grey, the base, is thus the colour of no data."""
    return thresholds(GREY, (0, color), *steps)


def ramp(*colors: str) -> Json:
    """Split the panel's values, from the lowest to the highest, into as many equal spans, and give each its colour."""
    steps = [{"value": 100 * index / len(colors) or None, "color": color} for index, color in enumerate(colors)]
    return {"mode": "percentage", "steps": steps}


def words(meanings: Mapping[str, tuple[str, str]]) -> list[Json]:
    """Map values to words in colours."""
    options = {
        value: {"text": word, "color": color, "index": index}
        for index, (value, (word, color)) in enumerate(meanings.items())
    }
    return [{"type": "value", "options": options}]


def colored_text(colors: Mapping[str, str]) -> list[Json]:
    """Map words to themselves, in colours."""
    return words({word: (word, color) for word, color in colors.items()})


def pattern(expression: str, color: str, *, index: int = 0) -> list[Json]:
    """Give texts that match a regular expression a colour, and leave them as they are."""
    result = {"color": color, "index": index}
    return [{"type": "regex", "options": {"pattern": f"/{expression}/", "result": result}}]


def link(title: str, url: str) -> list[Json]:
    """Link a value to a URL."""
    return [{"title": title, "url": url}]


def unit_from(query: str) -> tuple[Json, Json]:
    """Return a query and the transformation that gives its ``unit`` and ``decimals`` to every number on the panel.

    A query may leave ``decimals`` out. Where they are NULL, Grafana chooses.
    """
    options = {
        "configRefId": "unit",
        "mappings": [{"fieldName": name, "handlerKey": name} for name in ("unit", "decimals")],
        "applyTo": {"id": "byType", "options": "number"},
    }
    return sql(query, ref="unit"), {"id": "configFromData", "options": options}


def frame_of_each(*columns: str) -> Json:
    """Return the transformation that makes a frame of the rows that have the same values in some columns.

    In a common frame, a time that only another series has would break a line.
    """
    options = {"fields": list(columns), "keepFields": False, "naming": {"asLabels": True}}
    return {"id": "partitionByValues", "options": options}


def panel(
    kind: str,
    title: str,
    description: str,
    targets: Sequence[Json],
    *,
    size: tuple[int, int],
    options: Json,
    unit: str | None = None,
    defaults: Json | None = None,
    custom: Json | None = None,
    overrides: Sequence[Json] = (),
    transformations: Sequence[Json] = (),
    points: int | None = None,
) -> Json:
    """Make a panel of Grafana's visualization ``kind``, ``size`` columns wide and rows high.

    ``defaults`` are of every field, and ``custom`` is what only this kind knows of fields. ``points`` is maxDataPoints,
    for queries that look at the interval.
    """
    field: Json = {"color": {"mode": "thresholds"}, "thresholds": thresholds(GREEN), **(defaults or {})}
    if unit is not None:
        field["unit"] = unit
    if custom is not None:
        field["custom"] = custom
    width, height = size
    made: Json = {
        "type": kind,
        "title": title,
        "description": " ".join(description.split()),
        "datasource": targets[0]["datasource"],
        "gridPos": {"w": width, "h": height},
        "targets": list(targets),
        "fieldConfig": {"defaults": field, "overrides": list(overrides)},
        "options": options,
        "transformations": list(transformations),
    }
    if points is not None:
        # Without an interval of its own a panel has the datasource's, which is a minute.
        made |= {"maxDataPoints": int(points), "interval": "1s"}
    return made


def timeseries(
    title: str,
    description: str,
    targets: Sequence[Json],
    *,
    size: tuple[int, int] = (12, 8),
    unit: str | None = None,
    defaults: Json | None = None,
    custom: Json | None = None,
    calcs: Sequence[str] = ("lastNotNull", "max"),
    legend_width: int | None = None,
    soft_max: float | None = None,
    overrides: Sequence[Json] = (),
    transformations: Sequence[Json] = (),
    points: int | None = None,
) -> Json:
    """Draw lines over time. ``calcs`` are the figures in the legend. Without any it is a list of names.

    The legend stands below the lines, where Grafana cuts it after two rows or so; with ``legend_width``, in pixels, it
    stands beside them. With ``soft_max`` the axis begins at 0 and reaches at least so far: left alone, Grafana draws a
    line of zeros on an axis up to 100.
    """
    soft: Json = {} if soft_max is None else {"axisSoftMin": 0, "axisSoftMax": soft_max}
    place: Json = {"placement": "bottom"} if legend_width is None else {"placement": "right", "width": legend_width}
    return panel(
        "timeseries",
        title,
        description,
        targets,
        size=size,
        unit=unit,
        defaults={"color": {"mode": "palette-classic"}, **(defaults or {})},
        custom={"lineWidth": 1, "fillOpacity": 10, "showPoints": "auto", "spanNulls": False, **soft, **(custom or {})},
        options={
            "legend": {"displayMode": "table" if calcs else "list", **place, "showLegend": True, "calcs": list(calcs)},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
        overrides=overrides,
        transformations=transformations,
        points=points,
    )


def stat(
    title: str,
    description: str,
    target: Json,
    *others: Json,
    size: tuple[int, int] = (6, 4),
    unit: str | None = None,
    defaults: Json | None = None,
    overrides: Sequence[Json] = (),
    transformations: Sequence[Json] = (),
    points: int | None = None,
    text: str = "auto",
    is_wide: bool = True,
    texts: bool = False,
) -> Json:
    """Show large figures, one a field. A series shows its course behind its last value, an instant has none.

    ``text`` is what stands there: left alone, Grafana leaves out the name of a figure that is the only one. Unless
    ``is_wide`` is false, name and figure stand side by side where there is width for it, and both get small. With
    ``texts``, fields that are no numbers are shown, too. Grafana makes them as large as has room in one line, and then
    breaks them at a space: there should be none that breaks. So is what stands for a missing figure: a dash.
    """
    has_course = not (texts or target.get("instant"))
    return panel(
        "stat",
        title,
        description,
        [target, *others],
        size=size,
        unit=unit,
        defaults={"noValue": NO_CELL, **(defaults or {})},
        options={
            "colorMode": "value",
            "graphMode": "area" if has_course else "none",
            "justifyMode": "auto",
            "orientation": "auto",
            "percentChangeColorMode": "standard",
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "/.*/" if texts else "", "values": False},
            "showPercentChange": False,
            "textMode": text,
            "wideLayout": is_wide,
        },
        overrides=overrides,
        transformations=transformations,
        points=points,
    )


def table(
    title: str,
    description: str,
    target: Json,
    *others: Json,
    size: tuple[int, int] = (24, 8),
    unit: str | None = None,
    defaults: Json | None = None,
    overrides: Sequence[Json] = (),
    transformations: Sequence[Json] = (),
    points: int | None = None,
    empty: str = "no data",
    is_filterable: bool = True,
) -> Json:
    """Make a table of rows as the query orders them. ``empty`` stands there when the query has none.

    To Grafana that is a value of the panel's fields, so each field gets another one for its own cells without a value.
    Unless ``is_filterable`` is false, each heading has a button that filters by its column.
    """
    defaults = {**(defaults or {}), "noValue": empty}
    overrides = [override_matching(".*", noValue=NO_CELL), *overrides]
    return panel(
        "table",
        title,
        description,
        [target, *others],
        size=size,
        unit=unit,
        defaults=defaults,
        custom={"align": "auto", "cellOptions": {"type": "auto"}, "filterable": is_filterable, "inspect": False},
        options={"cellHeight": "sm", "frameIndex": 0, "showHeader": True},
        overrides=overrides,
        transformations=transformations,
        points=points,
    )


def state_timeline(
    title: str,
    description: str,
    target: Json,
    *,
    size: tuple[int, int] = (24, 4),
    defaults: Json | None = None,
    transformations: Sequence[Json] = (),
    points: int | None = None,
) -> Json:
    """Show states over time: a row's text holds from its time to the next one's."""
    return panel(
        "state-timeline",
        title,
        description,
        [target],
        size=size,
        defaults=defaults,
        custom={"fillOpacity": 80, "lineWidth": 0},
        options={
            "alignValue": "left",
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": False},
            "mergeValues": True,
            "rowHeight": 0.9,
            "showValue": "auto",
            "tooltip": {"mode": "single", "sort": "none"},
        },
        transformations=transformations,
        points=points,
    )


def alert_list(title: str, description: str, *, size: tuple[int, int], labels: str) -> Json:
    """List the alerts that fire or are about to, of those whose labels match.

    Grafana publishes no types of this panel; its options are those of its source, ``UnifiedAlertListOptions``.
    """
    states = {"firing": True, "pending": True, "recovering": True, "error": True, "noData": False, "normal": False}
    width, height = size
    return {
        "type": "alertlist",
        "title": title,
        "description": " ".join(description.split()),
        "gridPos": {"w": width, "h": height},
        "targets": [],
        "fieldConfig": {"defaults": {}, "overrides": []},
        "options": {
            "alertInstanceLabelFilter": labels,
            "alertName": "",
            "dashboardAlerts": False,
            "groupBy": [],
            "groupMode": "default",
            "maxItems": 20,
            "showInactiveAlerts": False,
            "showInstances": True,
            "sortOrder": 3,  # what matters most first
            "stateFilter": states,
            "viewMode": "list",
        },
        "transformations": [],
    }


def row(title: str, *, repeat: str | None = None, folded: Sequence[Json] = ()) -> Json:
    """Make a heading. With ``repeat``, it and what lies under it are repeated for each value of that variable.

    Grafana asks for what is ``folded`` under it only when the row is unfolded.
    """
    made: Json = {
        "type": "row",
        "title": title,
        "collapsed": bool(folded),
        "panels": list(folded),
        "gridPos": {"w": 24, "h": 1},
    }
    return made | {"repeat": repeat} if repeat else made


EVERY = "''"
"""What All puts into a query in place of all values, as Grafana takes it: unquoted. To SQL it is one empty text."""


def variable(
    name: str,
    label: str,
    description: str,
    query: str,
    *,
    multi: bool = False,
    has_all: bool | None = None,
    all_value: str | None = None,
) -> Json:
    """Offer a choice at the dashboard's head, from a query of ``__text`` and ``__value``. ``multi`` has All, too.

    Without a choice Grafana takes All or, where ``has_all`` is false, the query's first row. All stands for every row
    of the query, however many there are, or for ``all_value``.
    """
    every: Json = {} if all_value is None else {"allValue": all_value}
    return every | {
        "type": "query",
        "name": name,
        "label": label,
        "description": description,
        "datasource": POSTGRESQL,
        "query": dedent(query).strip(),
        "refresh": 1,
        "sort": 0,
        "regex": "",
        "multi": multi,
        "includeAll": multi if has_all is None else has_all,
        "hide": 0,
        "options": [],
    }


def choice(name: str, label: str, description: str, values: Sequence[str]) -> Json:
    """Offer a choice of any of a few words, or All, which is ``EVERY``."""
    return {
        "type": "custom",
        "name": name,
        "label": label,
        "description": description,
        "query": ",".join(values),
        "current": {"text": ["All"], "value": ["$__all"]},
        "multi": True,
        "includeAll": True,
        "allValue": EVERY,
        "hide": 0,
        "options": [],
    }


def textbox(name: str, label: str, description: str) -> Json:
    """Put a field to type into at the dashboard's head, empty at first."""
    return {
        "type": "textbox",
        "name": name,
        "label": label,
        "description": description,
        "query": "",
        "current": {"text": "", "value": ""},
        "hide": 0,
        "options": [],
    }


def laid_out(panels: Sequence[Json]) -> list[Json]:
    """Give panels their ids and places: from left to right, and each line below the tallest panel of the one before."""
    return _placed(panels, count(1), 0)


def _placed(panels: Sequence[Json], numbers: Iterator[int], y: int) -> list[Json]:
    placed = []
    x = line_height = 0
    for each in panels:
        match each["gridPos"]:
            case {"w": int(width), "h": int(height)}:
                if x + width > GRID_COLUMNS:
                    x, y, line_height = 0, y + line_height, 0
                made = {"id": next(numbers), **each, "gridPos": {"x": x, "y": y, "w": width, "h": height}}
                match each:
                    case {"type": "row", "panels": list(folded)}:
                        made["panels"] = _placed(folded, numbers, y + height)
                placed.append(made)
                x, line_height = x + width, max(line_height, height)
    return placed


def dashboard(
    uid: str,
    title: str,
    description: str,
    panels: Sequence[Json],
    *,
    variables: Sequence[Json] = (),
    since: str = "now-1h",
    refresh: str = "10s",
) -> Json:
    """Make a whole dashboard, with links to all others of the tag."""
    return {
        "uid": uid,
        "title": title,
        "description": " ".join(description.split()),
        "tags": [TAG],
        "schemaVersion": 42,
        "version": 1,
        "editable": False,
        "graphTooltip": 1,
        "timezone": "browser",
        "time": {"from": since, "to": "now"},
        "refresh": refresh,
        "timepicker": {"refresh_intervals": ["5s", "10s", "30s", "1m", "5m", "15m"]},
        "annotations": {"list": []},
        "links": [
            {
                "type": "dashboards",
                "title": "SensorFlow",
                "tags": [TAG],
                "asDropdown": False,
                "icon": "external link",
                "includeVars": False,
                "keepTime": True,
                "targetBlank": False,
                "tooltip": "",
                "url": "",
            }
        ],
        "templating": {"list": list(variables)},
        "panels": laid_out(panels),
    }
