"""Does Grafana's work between a query's answer and a panel: data frames, transformations, repeated rows, places.

Knows nothing of databases and browsers. Raises `CanNotBeDrawn` where a panel needs what this does not have.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from tests.grafana.dashboards import Node

KINDS = {"row", "stat", "table", "timeseries"}
"""The panels that can be put together from Grafana's published components."""
GRID_COLUMNS = 24
NUMBERS = {20, 21, 23, 700, 701, 1700}
TIMES = {1114, 1184}
BOOLEAN = 16
"""Types of PostgreSQL by their object identifiers."""
CONFIGURED = {"unit", "decimals", "min", "max", "displayName", "color"}
"""Columns of rowsToFields that configure the field of their row."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One of a variable's: what is shown, and what queries get."""

    text: str
    value: str


class CanNotBeDrawn(ValueError):
    """A panel that only a Grafana server draws, with the reason as its text."""


def frame(ref: str, columns: Sequence[tuple[str, int]], rows: Sequence[tuple[object, ...]]) -> Node:
    """Return a table as the data source sends it. ``columns`` are names and types."""
    fields = [
        {"name": name, "type": _kind(oid), "config": {}, "values": [_plain(row[index]) for row in rows]}
        for index, (name, oid) in enumerate(columns)
    ]
    return {"refId": ref, "fields": fields}


def _kind(oid: int) -> str:
    return "number" if oid in NUMBERS else "time" if oid in TIMES else "boolean" if oid == BOOLEAN else "string"


def _plain(value: object) -> object:
    match value:
        case datetime():
            return round(value.timestamp() * 1_000)
        case Decimal():
            return float(value)
        case None | bool() | int() | float():
            return value
        case _:
            return str(value)


def wide(table: Node) -> Node:
    """Return the series of a table over its times: one for each number and each combination of texts.

    A single number's series have the texts as names, several have their own.
    """
    (time, *_), numbers, texts = (_of(table, kind) for kind in ("time", "number", "string"))
    if not texts:
        return table
    times = sorted(set(time["values"]))
    place = {moment: index for index, moment in enumerate(times)}
    series: dict[tuple[str, ...], Node] = {}
    for index, moment in enumerate(time["values"]):
        key = tuple(str(text["values"][index]) for text in texts)
        for number in numbers:
            labels = {text["name"]: value for text, value in zip(texts, key, strict=True)}
            name = " ".join(key) if len(numbers) == 1 else number["name"]
            made = {"name": name, "type": "number", "config": {}, "labels": labels, "values": [None] * len(times)}
            series.setdefault((number["name"], *key), made)["values"][place[moment]] = number["values"][index]
    if len(numbers) == 1:
        for made in series.values():
            del made["labels"]
    return {**table, "fields": [{**time, "values": times}, *series.values()]}


def transformed(frames: list[Node], transformations: Sequence[Node]) -> list[Node]:
    """Return the frames after a panel's transformations."""
    for transformation in transformations:
        match transformation["id"]:
            case "rowsToFields":
                frames = [_rows_to_fields(each) for each in frames]
            case "configFromData":
                frames = _configured(frames, transformation["options"])
            case name:
                raise CanNotBeDrawn(f"its transformation {name} is Grafana's own")
    return frames


def _rows_to_fields(table: Node) -> Node:
    names, values = _of(table, "string")[0], _of(table, "number")[0]
    made = [
        {"name": name, "type": "number", "config": {}, "values": [value]}
        for name, value in zip(names["values"], values["values"], strict=True)
    ]
    for column in table["fields"]:
        for each, value in zip(made, column["values"], strict=True):
            if column["name"] in CONFIGURED and value is not None:
                is_color = column["name"] == "color"
                each["config"][column["name"]] = {"mode": "fixed", "fixedColor": value} if is_color else value
    return {**table, "fields": made}


def _configured(frames: list[Node], options: Node) -> list[Node]:
    sources = [each for each in frames if each["refId"] == options["configRefId"]]
    found = {field["name"]: field["values"][-1] for each in sources for field in each["fields"] if field["values"]}
    config = {
        mapping["handlerKey"]: found[mapping["fieldName"]]
        for mapping in options["mappings"]
        if found.get(mapping["fieldName"]) is not None
    }
    others = [each for each in frames if each not in sources]
    for field in (field for each in others for field in _of(each, options["applyTo"]["options"])):
        field["config"] |= config
    return others


def _of(table: Node, kind: str) -> list[Node]:
    return [field for field in table["fields"] if field["type"] == kind]


def with_texts(title: str, texts: Mapping[str, str]) -> str:
    """Return a title with the texts of its variables."""
    return re.sub(r"\$\{?(\w+)\}?", lambda found: texts.get(found[1], found[0]), title)


def shown(
    panels: Sequence[Node], opened: Collection[str], chosen: Mapping[str, Sequence[Choice]]
) -> Iterator[tuple[Node, dict[str, Choice]]]:
    """Yield every visible panel, with the choices that its row is repeated for.

    Collapsed rows stay so, but for those whose titles are among ``opened``.
    """
    rows: list[list[Node]] = [[]]
    for panel in panels:
        if panel["type"] == "row":
            is_closed = panel.get("collapsed", False) and panel["title"] not in opened
            rows.append([{**panel, "collapsed": is_closed}, *([] if is_closed else panel.get("panels", []))])
        else:
            rows[-1].append(panel)
    for row in filter(None, rows):
        name = row[0].get("repeat")
        for repeats in [{name: choice} for choice in chosen[name]] if name else [{}]:
            for panel in row:
                yield panel, repeats


def placed(panels: Sequence[Node]) -> list[Node]:
    """Place panels line by line from the top, wider if others in their line are left out."""
    lines: list[list[Node]] = []
    for panel in panels:
        place = panel["gridPos"]
        if lines and lines[-1][-1]["gridPos"]["y"] == place["y"] and lines[-1][-1]["gridPos"]["x"] < place["x"]:
            lines[-1].append(panel)
        else:
            lines.append([panel])
    made, y = [], 0
    for line in lines:
        widths = [panel["gridPos"]["w"] for panel in line]
        ends = [round(GRID_COLUMNS * sum(widths[: index + 1]) / sum(widths)) for index in range(len(widths))]
        for panel, start, end in zip(line, [0, *ends], ends, strict=False):
            made.append({**panel, "gridPos": {**panel["gridPos"], "x": start, "y": y, "w": end - start}})
        y += max(panel["gridPos"]["h"] for panel in line)
    return made
