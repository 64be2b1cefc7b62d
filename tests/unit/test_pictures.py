"""The README's pictures exist and are small, and answers become the right frames before they are drawn.

The command itself, `python -m tests.pictures`, is no test: it needs a browser and 450 packages from npm, and sends live
readings for longer than a minute, because the rate of the last minute is in the picture.
"""

import re
from datetime import UTC, datetime
from decimal import Decimal

import pytest

from tests.grafana.dashboards import DASHBOARDS, REPOSITORY, Node
from tests.pictures.__main__ import IMAGES, MOST_BYTES, PICTURES
from tests.pictures.demo import NEVER, SENSORS, readings
from tests.pictures.frames import CanNotBeDrawn, Choice, frame, placed, shown, transformed, wide, with_texts

TEXT, FLOAT, NUMERIC, TIME = 25, 701, 1700, 1184
NOON = datetime(2023, 7, 12, 12, tzinfo=UTC)
NOON_MS = 1_689_163_200_000


def test_readme_has_the_pictures() -> None:
    """Every picture is of a dashboard, in the README, a PNG, and all together load quickly."""
    shown_in_readme = re.findall(r"!\[[^\]]+\]\((docs/images/[^)]+)\)", (REPOSITORY / "README.md").read_text())
    drawn = [IMAGES / f"{picture.dashboard}.png" for picture in PICTURES]
    assert [REPOSITORY / path for path in shown_in_readme] == drawn
    assert sorted(IMAGES.iterdir()) == sorted(drawn)
    assert {f"{picture.dashboard}.json" for picture in PICTURES} <= DASHBOARDS.keys()
    assert all(path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n") for path in drawn)
    assert sum(path.stat().st_size for path in drawn) < MOST_BYTES


def test_frame_has_types_and_plain_values() -> None:
    """Times become milliseconds, numbers stay numbers, and what is missing stays so."""
    made = frame(
        "A", [("time", TIME), ("n", NUMERIC), ("name", TEXT)], [(NOON, Decimal("1.5"), "a"), (NOON, None, None)]
    )
    assert [(each["name"], each["type"], each["values"]) for each in made["fields"]] == [
        ("time", "time", [NOON_MS, NOON_MS]),
        ("n", "number", [1.5, None]),
        ("name", "string", ["a", None]),
    ]


def test_wide_makes_a_series_of_each_name() -> None:
    """Rows of one time become one point of each series, which is null if the series has no row."""
    rows = [(1, "upper", 30.0), (1, "lower", 10.0), (2, "upper", 31.0)]
    times = [(datetime.fromtimestamp(second, UTC), *rest) for second, *rest in rows]
    made = wide(frame("A", [("time", TIME), ("metric", TEXT), ("value", FLOAT)], times))
    assert [(each["name"], each["values"]) for each in made["fields"]] == [
        ("time", [1_000, 2_000]),
        ("upper", [30.0, 31.0]),
        ("lower", [10.0, None]),
    ]


def test_wide_leaves_series_without_names() -> None:
    """Numbers beside a time are series already."""
    made = frame("A", [("time", TIME), ("mean", FLOAT), ("max", FLOAT)], [(NOON, 1.0, 2.0)])
    assert wide(made) == made


def test_rows_become_fields_with_units_and_colors() -> None:
    """The first text is the field's name, the first number its value, and unit and color are what they say."""
    columns = [("metric", TEXT), ("value", FLOAT), ("unit", TEXT), ("color", TEXT)]
    rows = [("Humidity", 50.0, "percent", "green"), ("Temperature", 20.0, None, "red")]
    (made,) = transformed([frame("A", columns, rows)], [{"id": "rowsToFields", "options": {}}])
    assert [(each["name"], each["values"], each["config"]) for each in made["fields"]] == [
        ("Humidity", [50.0], {"unit": "percent", "color": {"mode": "fixed", "fixedColor": "green"}}),
        ("Temperature", [20.0], {"color": {"mode": "fixed", "fixedColor": "red"}}),
    ]


@pytest.mark.parametrize(("rows", "config"), [([("celsius",)], {"unit": "celsius"}), ([], {})])
def test_config_comes_from_a_query(rows: list[tuple[str]], config: dict[str, str]) -> None:
    """The numbers get the query's unit, its frame goes, and without a row nothing is set."""
    mappings = [{"fieldName": name, "handlerKey": name} for name in ("unit", "decimals")]
    options = {"configRefId": "unit", "mappings": mappings, "applyTo": {"id": "byType", "options": "number"}}
    frames = [frame("A", [("time", TIME), ("mean", FLOAT)], [(NOON, 1.0)]), frame("unit", [("unit", TEXT)], rows)]
    (made,) = transformed(frames, [{"id": "configFromData", "options": options}])
    assert [each["config"] for each in made["fields"]] == [{}, config]


def test_unknown_transformation_is_not_drawn() -> None:
    """A panel is left out, with the reason, rather than drawn from other data than Grafana's."""
    with pytest.raises(CanNotBeDrawn, match="groupBy"):
        transformed([], [{"id": "groupBy", "options": {}}])


def test_rows_are_repeated_and_stay_closed() -> None:
    """A row is drawn for each choice, with its panels. A collapsed row has none, unless it is opened."""
    panels: list[Node] = [
        {"type": "row", "title": "$metric", "repeat": "metric"},
        {"type": "stat", "title": "a"},
        {"type": "row", "title": "closed", "collapsed": True, "panels": [{"type": "stat", "title": "b"}]},
        {"type": "row", "title": "open", "collapsed": True, "panels": [{"type": "stat", "title": "c"}]},
    ]
    metrics = [Choice("Humidity", "humidity"), Choice("Pressure", "pressure")]
    made = [
        with_texts(panel["title"], {name: choice.text for name, choice in repeats.items()})
        for panel, repeats in shown(panels, {"open"}, {"metric": metrics})
    ]
    assert made == ["Humidity", "a", "Pressure", "a", "closed", "open", "c"]


def test_places_have_no_holes() -> None:
    """The remaining panels of a line fill it, and lines follow each other without holes."""
    places = [(0, 0, 12, 4), (12, 0, 6, 3), (0, 30, 24, 1), (0, 31, 5, 2)]
    panels = [{"gridPos": dict(zip("xywh", place, strict=True))} for place in places]
    assert [tuple(panel["gridPos"].values()) for panel in placed(panels)] == [
        (0, 0, 16, 4),
        (16, 0, 8, 3),
        (0, 4, 24, 1),
        (0, 5, 24, 2),
    ]


def test_demo_data_is_the_same_every_time() -> None:
    """Every sensor but the one that never sent has values that its metrics can have, and the same ones again."""
    for sensor in SENSORS:
        made = readings(sensor, NOON)
        assert made.empty == (sensor.gap == NEVER)
        assert made.equals(readings(sensor, NOON))
        assert made["temperature"].between(-20, 50).all()
        assert made["humidity"].between(0, 100).all()
