"""The report has medians, ratios within one run, and no goal that passes unmeasured."""

from benchmarks.readings import Format
from benchmarks.report import (
    GOAL_SHAPE,
    GOAL_SINGLE,
    INFLUX,
    Goal,
    Round,
    Rounds,
    Workload,
    goal_table,
    goals,
    raw_name,
    server_name,
    table,
)


def rounds(*rates: float, p99_ms: float = 1.0) -> list[Round]:
    return [Round(rate, p50_ms=0.5, p99_ms=p99_ms) for rate in rates]


def test_a_ratio_is_of_medians() -> None:
    name = server_name(2, Format.NDJSON)
    text = table(GOAL_SHAPE, {name: rounds(1, 600, 9_999), INFLUX: rounds(300, 1, 9_999)})
    assert f"| {name} | 600 | – | 2.00 | – |" in text


def test_the_limit_is_the_best_raw_copy_of_all() -> None:
    seen = {raw_name(into, 1): rounds(rate) for into, rate in [("rowstore", 500), ("columnstore", 1_000)]}
    text = table(GOAL_SHAPE, {server_name(1, Format.CSV): rounds(600), **seen})
    assert "| SensorFlow, 1 process, CSV | 600 | 0.60 |" in text


def test_the_goal_on_the_columnstore_is_measured_by_copy_into_it_alone() -> None:
    seen = {
        server_name(2, Format.NDJSON): rounds(590),
        raw_name("columnstore", 1): rounds(900),
        raw_name("columnstore", 2): rounds(1_000),
        raw_name("rowstore", 2): rounds(2_000),
    }
    first, *_ = goals({GOAL_SHAPE: seen}, has_columnstore=True, is_embedded=False)
    assert (first.measured, first.verdict) == (0.59, "**not met**")


def test_what_was_not_measured_is_not_met() -> None:
    found = goals({}, has_columnstore=True, is_embedded=True)
    assert {goal.verdict for goal in found} == {"not measured"}
    assert goal_table(found).count("not measured") == len(found)


def test_latency_is_a_ceiling() -> None:
    results: dict[Workload, Rounds] = {
        GOAL_SINGLE: {server_name(1): rounds(1, 1, 1, p99_ms=30.5), INFLUX: rounds(1, 1, 1)}
    }
    found = [goal for goal in goals(results, has_columnstore=False, is_embedded=False) if goal.is_ceiling]
    assert [goal.verdict for goal in found] == ["**not met**", "not measured"]
    assert Goal("p99", 30, 30, is_ceiling=True).verdict == "met"
