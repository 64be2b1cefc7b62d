"""Panels are queried at the longest range of each zoom, and a history has exactly its readings."""

from datetime import UTC, datetime, timedelta

import pyarrow.compute as pc
import pytest

from benchmarks.history import DAY_MS, OTHERS, history
from benchmarks.panels import DETAIL, ZOOMS, requests, written
from benchmarks.report import Asked, panel_goals, panel_table
from tests.grafana.dashboards import DASHBOARDS, Query, panel_queries
from tests.grafana.expansion import interval_ms

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)


def query_of(dashboard: str, title: str) -> Query:
    (query,) = (
        query
        for node in DASHBOARDS.values()
        if node["uid"] == dashboard
        for query in panel_queries(node)
        if query.place == title and query.ref_id == "A"
    )
    return query


def test_a_second_more_would_be_another_zoom() -> None:
    query = query_of(DETAIL, "$metric")
    seen = list(requests(query, {}, NOW, days=365))
    assert [reads for _, reads, _ in seen] == ["readings", "readings", "1m", "1m", "1h", "1h", "1d"]
    for _, reads, request in seen[:-1]:
        length, points = request.end - request.start, query.of_panel["maxDataPoints"]
        assert request.interval_ms == ZOOMS[reads] < interval_ms(length + timedelta(seconds=1), points, "1s")
    assert seen[-1][2].interval_ms > ZOOMS["1h"]


def test_a_zoom_that_a_query_does_not_have_is_left_out() -> None:
    seen = requests(query_of("sensorflow-fleet", "Readings by their own time"), {}, NOW, days=365)
    assert [reads for _, reads, _ in seen] == ["1m", "1h", "1d"]


def test_a_query_that_does_not_look_at_the_interval_is_asked_once() -> None:
    assert len(list(requests(query_of("sensorflow-fleet", "Sensors"), {}, NOW, days=365))) == 1


@pytest.mark.parametrize(
    ("seconds", "text"), [(4_199, "70 min"), (251_999, "70 h"), (6_479_999, "75 d"), (62_999, "17.5 h")]
)
def test_a_range_is_written_in_a_unit_of_which_it_has_some(seconds: int, text: str) -> None:
    assert written(timedelta(seconds=seconds)) == text


def test_a_history_is_all_seconds_of_one_sensor_and_the_minutes_of_others_since_they_began() -> None:
    tables = list(history(0, DAY_MS + 60_000, others_from_ms=DAY_MS))
    assert [table.num_rows for table in tables] == [86_400, 60, OTHERS]
    assert [pc.min_max(table["time_ms"]).as_py() for table in tables] == [
        {"min": 0, "max": DAY_MS - 1_000},
        {"min": DAY_MS, "max": DAY_MS + 59_000},
        {"min": DAY_MS, "max": DAY_MS},
    ]
    assert pc.unique(tables[2]["sensor"]).to_pylist() == list(range(1, OTHERS + 1))


def asked(place: str, range_: str, first_ms: float, median_ms: float, dashboard: str = "Fleet") -> Asked:
    return Asked(dashboard, place, range_, "1m" if range_ else "", 7, first_ms, median_ms)


def test_of_queries_without_a_range_the_slowest_is_told() -> None:
    table = panel_table([asked("Sensors", "", 3, 1), asked("Over time", "70 h", 12, 8), asked("Age", "", 2, 9)])
    assert table.splitlines()[2:] == [
        "| Fleet | Over time | 70 h | 1m | 7 | 12 | 8 |",
        "| Fleet | the slowest of 2 queries without a range |  |  |  | 3 | 9 |",
    ]


def test_a_dashboard_is_as_fast_as_its_slowest_query_at_its_slowest() -> None:
    seen = [
        asked("Curve", "70 h", 150, 40, "Detail"),
        asked("Figures", "", 20, 160, "Detail"),
        asked("Age", "", 201, 1),
    ]
    assert [goal.verdict for goal in panel_goals(seen, dashboard="Detail")] == ["met", "**not met**"]
    assert [each.is_slow for each in seen] == [False, False, True]
