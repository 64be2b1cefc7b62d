"""Runs a dashboard's queries as Grafana does: its variables, then each panel, as Grafana's role."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

import psycopg

from tests.grafana.dashboards import Node, is_sql
from tests.grafana.expansion import DEFAULT_MINIMUM, Request, Value, expand, interval_ms
from tests.grafana.stored import READER
from tests.pictures.frames import KINDS, CanNotBeDrawn, Choice, frame, placed, shown, transformed, wide, with_texts

ALL = "All"


@dataclass(frozen=True, slots=True)
class Picture:
    """A dashboard as it is drawn: the range up to now, and the texts that are chosen of variables; of the others, all.

    Args:
        dashboard: its file's name, without the ending.
        length: of the range.
        range_text: the range in Grafana's words.
        chosen: by the variable's name.
        opened: titles of collapsed rows that are open.
        width_px: how wide the picture is.
    """

    dashboard: str
    length: timedelta
    range_text: str
    chosen: Mapping[str, Sequence[str]]
    opened: Collection[str]
    width_px: int


class Asker:
    """The dashboard of a picture, asked now.

    Args:
        connection: a superuser's, in autocommit.
        dashboard: its JSON.
        picture: how it is drawn.
    """

    def __init__(self, connection: psycopg.Connection, dashboard: Node, picture: Picture) -> None:
        self._connection = connection
        self._panels: list[Node] = dashboard["panels"]
        self._picture = picture
        row = connection.execute("SELECT now()").fetchone()
        assert row is not None
        self.end = row[0]
        self.start = self.end - picture.length
        self.labels: dict[str, str] = {}
        """What stands at the dashboard's head: the chosen texts by the variable's label."""
        self._texts: dict[str, str] = {}
        self._chosen: dict[str, list[Choice]] = {}
        self._values: dict[str, Value] = {}
        self._all: dict[str, str] = {}
        """What the variables of which all is chosen stand for, where that is not the list of all."""
        for variable in dashboard["templating"]["list"]:
            self._choose(variable)

    def _choose(self, variable: Node) -> None:
        name, texts = variable["name"], self._picture.chosen.get(variable["name"])
        match variable["type"]:
            case "textbox":
                self._values[name] = variable["query"]
                return
            case "query":
                found = [Choice(text, value) for text, value in self._rows(variable["query"])]
            case _:
                found = [Choice(text, text) for text in variable["query"].split(",")]
        chosen = [choice for choice in found if texts is None or choice.text in texts]
        self._chosen[name] = chosen
        self._texts[name] = self.labels[variable["label"]] = ALL if texts is None else ", ".join(texts)
        if variable["multi"]:
            self._values[name] = [choice.value for choice in chosen]
        else:
            self._values[name] = chosen[0].value
        if texts is None and "allValue" in variable:
            self._all[name] = variable["allValue"]

    def _rows(self, query: str) -> list[tuple[str, str]]:
        table = self._table("", query, self._request({}, {}))
        by_name = {field["name"]: field["values"] for field in table["fields"]}
        return list(zip(by_name["__text"], by_name["__value"], strict=True))

    def panels(self) -> tuple[list[Node], list[str]]:
        """Return the panels with their places, titles and frames, and the reasons for those that can't be drawn."""
        drawn, lacking = [], []
        for panel, repeats in shown(self._panels, self._picture.opened, self._chosen):
            title = with_texts(panel["title"], self._texts | {name: choice.text for name, choice in repeats.items()})
            try:
                drawn.append({**panel, "title": title, "frames": self._frames(panel, repeats)})
            except CanNotBeDrawn as reason:
                lacking.append(f"{title}: {reason}")
        return placed(drawn), lacking

    def _frames(self, panel: Node, repeats: Mapping[str, Choice]) -> list[Node]:
        if panel["type"] not in KINDS:
            raise CanNotBeDrawn(f"no component is published for a panel of the kind {panel['type']}")
        request = self._request(panel, {name: [choice.value] for name, choice in repeats.items()})
        frames = []
        for target in panel.get("targets", []):
            if not is_sql(target["datasource"]):
                raise CanNotBeDrawn(f"its source is {target['datasource']['type']}, and not the database")
            table = self._table(target["refId"], target["rawSql"], request)
            frames.append(wide(table) if target["format"] == "time_series" else table)
        return transformed(frames, panel.get("transformations", []))

    def _request(self, panel: Node, values: Mapping[str, Value]) -> Request:
        points, minimum = panel.get("maxDataPoints", self._picture.width_px), panel.get("interval", DEFAULT_MINIMUM)
        interval = interval_ms(self._picture.length, points, minimum)
        return Request(self.start, self.end, interval, {**self._values, **values})

    def _table(self, ref: str, sql: str, request: Request) -> Node:
        for name, text in self._all.items():
            sql = re.sub(rf"\$\{{{name}(:\w+)?\}}|\${name}\b", text.replace("\\", r"\\"), sql)
        with self._connection.transaction(force_rollback=True):
            self._connection.execute(f"SET LOCAL ROLE {READER}")
            cursor = self._connection.execute(expand(sql, request).encode())
            columns = [(column.name, column.type_code) for column in cursor.description or ()]
            return frame(ref, columns, cursor.fetchall())
