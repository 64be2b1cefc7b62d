"""Every query of every dashboard and alert rule gives the numbers that pandas computes, at every zoom.

They are expanded as Grafana does, and run as the role that Grafana has, on every edition: over a year of real weather
and over what sensors have sent until now, in a range for each of the readings and their aggregates.
"""

import math
import re
from collections.abc import Callable, Iterator
from datetime import timedelta
from itertools import product
from typing import Any

import pandas as pd
import pytest

from grafana.fleet import LAST_DAY, MOST_BUCKETS
from tests.grafana.dashboards import (
    DASHBOARDS,
    Node,
    Query,
    alert_queries,
    annotation_queries,
    panel_queries,
    variable_queries,
)
from tests.grafana.data import MADE, METRICS, REAL, SENSORS
from tests.grafana.expansion import Request, Value, expand, interval_ms
from tests.grafana.expectations import (
    EVERY_SENSOR,
    EXPECTED,
    OF_POSTGRESQL,
    WIDTHS_S,
    Filters,
    Look,
    statuses,
    violations,
)
from tests.grafana.stored import Answer, Stored
from tests.support.clusters import EDITIONS
from tests.support.databases import WASM

QUERIES: dict[str, Query] = {
    str(query): query
    for query in [
        *(
            query
            for dashboard in DASHBOARDS.values()
            for queries in (panel_queries, variable_queries, annotation_queries)
            for query in queries(dashboard)
        ),
        *alert_queries(),
    ]
}
ZOOMED = {name: query for name, query in QUERIES.items() if "$__interval" in query.sql}
WIDEST_MS = {"readings": 2_000, "readings_1m": 120_000, "readings_1h": 3_600_000, "readings_1d": math.inf}
"""The widest interval for which each is read."""
POINT_MS = {"readings": 3_400, "readings_1m": 200_000, "readings_1h": 5_300_000, "readings_1d": 24_000_000}
"""The range over the points of a panel, for each: but for the last the widest of all, after rounding."""
WEATHER_UNTIL = pd.Timestamp("2013-12-20T12:03:00Z")
"""Early in an hour, so that the shortest ranges have an observation in them."""
DEFAULT_POINTS = 500
MAY_BE_EMPTY = {
    "sensorflow-sensor: $metric limits": "limits are set for some sensors only",
    "sensorflow-sensor: Latest reading": "a sensor may never have sent",
    "sensorflow-database: Background jobs": "no server has maintained the database",
    "sensorflow-database: Connections by user": "WebAssembly's one connection is nobody's",
}

JOB_WITHOUT_A_RUN = """
(
    VALUES (1, 'compression', 'readings', NULL, timestamptz '-infinity', NULL::float8, timestamptz '-infinity', 0, 0)
) AS database_jobs (job_id, job, table_name, last_status, last_started_at, last_run_s, next_start_at, runs, failures)
"""

FILTERS = [
    Filters(),
    Filters(search="O'HARA"),
    Filters(search="new york", states=("offline",)),
    Filters(search="%"),
    Filters(locations=("House",)),
    Filters(locations=("House", "New York"), states=("never seen", "out of limits")),
    Filters(states=("online",)),
]
"""What is looked for in a fleet: by label, location and state, and what would be a wildcard."""

Test = Callable[[Stored, Query], None]
OF_MANY_UNITS = {"sensorflow-fleet: Limit violations now", "sensorflow-sensor: Readings out of limits in this range"}
"""Tables whose rows are of different metrics, and say of which."""


def each(queries: dict[str, Query]) -> Callable[[Test], Test]:
    """Run a test once for each query on each edition."""
    of_query = pytest.mark.parametrize("query", queries.values(), ids=queries.keys())
    on_edition = pytest.mark.parametrize("edition_and_admin_url", [*EDITIONS, WASM], indirect=True)
    return lambda test: on_edition(of_query(test))


def variables_of(query: Query) -> set[str]:
    """Return the variables of the query's dashboard."""
    dashboards = [each for each in DASHBOARDS.values() if each["uid"] == query.dashboard]
    return {variable["name"] for dashboard in dashboards for variable in dashboard["templating"]["list"]}


def looks(stored: Stored, query: Query) -> Iterator[tuple[Look, str]]:
    """Yield the expanded query for each range, and for each metric if one can be chosen."""
    points = query.of_panel.get("maxDataPoints", DEFAULT_POINTS)
    tiers = list(WIDTHS_S) if "$__" in query.sql else ["readings_1m"]
    metrics = list(METRICS) if "metric" in variables_of(query) else ["temperature"]
    for end, sensors in ((WEATHER_UNTIL, REAL), (stored.until, MADE[::-1])):
        for tier in tiers:
            start = end - timedelta(milliseconds=POINT_MS[tier] * points)
            width_ms = interval_ms(end - start, points, query.of_panel.get("interval", "1m"))
            chosen = [stored.ids[sensor] for sensor in sensors]
            for metric, filters in product(metrics, FILTERS if "${search" in query.sql else FILTERS[:1]):
                variables: dict[str, Value] = {
                    "sensor": chosen[0] if query.dashboard == "sensorflow-sensor" else chosen,
                    "metric": metric,
                    **filters.variables,
                }
                request = Request(
                    start.to_pydatetime(),
                    end.to_pydatetime(),
                    width_ms,
                    None if query.dashboard == "alerting" else variables,
                )
                look = Look(stored, start, end, tier, width_ms, sensors, metric, filters)
                yield look, expand(query.sql, request)


def texts(row: tuple[Any, ...]) -> list[str]:
    """Return what identifies a row: everything but its numbers, which may differ a little."""
    return [str(value) for value in row if not isinstance(value, float)]


def assert_same(found: Answer, expected: list[tuple[Any, ...]], *, in_order: bool) -> None:
    """Assert that numbers agree to nine digits and all else exactly. A series must only be ordered by time."""
    rows = found.rows
    if not in_order:
        rows, expected = (sorted(each, key=texts) for each in (rows, expected))
    assert len(rows) == len(expected)
    for row, expected_row in zip(rows, expected, strict=True):
        assert len(row) == len(expected_row)
        for column, value, expected_value in zip(found.columns, row, expected_row, strict=True):
            if expected_value is None or isinstance(expected_value, str | pd.Timestamp):
                assert value == expected_value, column
            else:
                assert math.isclose(value, expected_value, rel_tol=1e-9, abs_tol=1e-9), (column, value, expected_value)


def series_of(answer: Answer) -> dict[str, list[pd.Timestamp]]:
    """Return the times of each series by its name, in the order of first rows."""
    found: dict[str, list[pd.Timestamp]] = {}
    for row in answer.rows:
        found.setdefault(" ".join(value for value in row if isinstance(value, str)), []).append(
            row[answer.columns.index("time")]
        )
    return found


def test_every_query_of_readings_has_numbers_to_be_held_against() -> None:
    assert QUERIES.keys() == EXPECTED.keys() | OF_POSTGRESQL


@each({name: query for name, query in QUERIES.items() if name in EXPECTED})
def test_every_number_is_what_pandas_computes(stored: Stored, query: Query) -> None:
    has_rows = False
    for look, sql in looks(stored, query):
        answer = stored.ask(sql)
        expected = EXPECTED[str(query)](look, answer.now)
        assert_same(answer, expected, in_order="time" not in answer.columns)
        if "time" in answer.columns:
            by_series = series_of(answer)
            assert all(times == sorted(times) for times in by_series.values())
        has_rows = has_rows or bool(expected)
    assert has_rows


@each({name: query for name, query in QUERIES.items() if name == "sensorflow-fleet: Out of limits"})
def test_silent_sensors_are_not_out_of_limits(stored: Stored, query: Query) -> None:
    """One that has sent nothing for years, and was beyond its limit then, is counted on neither side."""
    for _, sql in looks(stored, query):
        answer = stored.ask(sql)
        (silent,) = (status for status in statuses(stored, answer.now) if status.name == "JFK")
        assert silent.values["humidity"] > 0
        assert "JFK" not in {sensor for sensor, _ in violations(stored, answer.now)}
        assert answer.rows[0][0].split() == ["3", "of", "4"]


@each({name: query for name, query in QUERIES.items() if query.of_panel.get("type") == "timeseries"})
def test_series_keep_their_order(stored: Stored, query: Query) -> None:
    """Colours and the legend follow the order of series, whichever sensor sent first in the range."""
    orders = set()
    for look, sql in looks(stored, query):
        answer = stored.ask(sql)
        if "time" in answer.columns:
            names = list(series_of(answer))
            assert names == sorted(names)
            if query.is_time_series:
                keys = [(row[0], *texts(row)[1:]) for row in answer.rows]
                assert keys == sorted(keys)
            elif len(names) > 1:
                orders.add((tuple(look.sensors), tuple(names)))
    assert len(dict(orders)) == len(orders), "a series comes and goes, and colours move"


@each({name: query for name, query in QUERIES.items() if query.is_time_series})
def test_a_series_has_times_and_numbers_and_at_most_one_name(stored: Stored, query: Query) -> None:
    """A series has the columns that Grafana needs: otherwise Grafana refuses it, or names its lines wrongly."""
    for _, sql in looks(stored, query):
        answer = stored.ask(sql)
        assert answer.columns[0] == "time"
        for row in answer.rows:
            assert sum(isinstance(value, str) for value in row) <= 1
            assert all(isinstance(value, float | str | None) for value in row[1:])


NO_SENSOR: dict[str, Value] = {"sensor": "", "metric": "none"}
"""What Grafana puts in before a sensor is registered."""


@each({name: query for name, query in QUERIES.items() if query.dashboard == "sensorflow-sensor"})
def test_no_sensor_is_no_error(stored: Stored, query: Query) -> None:
    """Sensor detail of an empty database has words in its panels, and no errors of PostgreSQL."""
    end = stored.until.to_pydatetime()
    for length, width_ms in ((timedelta(hours=1), 2_000), (timedelta(days=30), 1_800_000)):
        answer = stored.ask(expand(query.sql, Request(end - length, end, width_ms, NO_SENSOR)))
        if query.place == "variable metric":
            assert answer.rows == [("No readings yet", "none")]
        elif query.place == "$metric in this range" and query.ref_id == "A":
            assert answer.rows == [(0, *[None] * 5)]
        elif query.place != "variable sensor":
            assert answer.rows == []


def test_newest_of_no_readings(stored: Stored) -> None:
    """While nothing has ever come, the newest reading has no age."""
    query = QUERIES["sensorflow-fleet: Newest reading"]
    (sql,) = {sql for _, sql in looks(stored, query)}
    nothing = re.sub(r"(sensor_status|latest_readings)", r"(SELECT * FROM \1 LIMIT 0) AS \1", sql)
    assert stored.ask(nothing).rows == [(None,)]


def test_rate_of_readings_ahead(stored: Stored) -> None:
    """A reading with a future time counts over its whole bucket, like any other."""
    query = QUERIES["sensorflow-fleet: Readings by their own time"]
    now, minute = stored.until - timedelta(minutes=30), timedelta(minutes=1)
    start, end = stored.until - timedelta(hours=1), stored.until
    sql = expand(query.sql, Request(start.to_pydatetime(), end.to_pydatetime(), 60_000, {}))
    rates = dict(stored.ask(sql.replace("now()", f"TIMESTAMPTZ '{now.isoformat()}'")).rows)
    counts = stored.readings["time"].dt.floor(minute).value_counts()
    ahead = {time: count / 60 for time, count in counts.items() if time > now}
    assert ahead
    assert {time: rates[time] for time in ahead} == pytest.approx(ahead)


@pytest.mark.parametrize("edition_and_admin_url", [*EDITIONS, WASM], indirect=True)
def test_fleet_adds_up_a_bounded_number_of_buckets(stored: Stored) -> None:
    """A larger fleet sees less of the range, the newest of it, so that the cost does not grow with the fleet."""
    query = QUERIES["sensorflow-fleet: Readings by their own time"]
    for (look, sql), few in product(looks(stored, query), (1, 2, 10)):
        tier = "readings_1m" if look.tier == "readings" else look.tier
        answer = stored.ask(re.sub(rf"{MOST_BUCKETS}(?! \+)", str(few * len(SENSORS)), sql))
        # There is no room for 48 hours of each sensor, so days end where those hours would begin.
        until = (look.end - timedelta(days=1)).floor("1D") if tier == "readings_1d" else look.end
        since = until - few * timedelta(seconds=WIDTHS_S[tier])
        if tier != "readings_1d":
            until += timedelta(days=1)
        all_rows = EXPECTED[str(query)](look, answer.now)
        assert_same(answer, [row for row in all_rows if since <= row[0] < until], in_order=True)


STATES = "sensorflow-sensor: $metric: state in this range"


def states_of(
    stored: Stored, sensor: str, metric: str, start: pd.Timestamp, end: pd.Timestamp
) -> list[tuple[Any, ...]]:
    """Return the changes of a sensor's state in a range."""
    width_ms = interval_ms(end - start, QUERIES[STATES].of_panel["maxDataPoints"], "1s")
    chosen: dict[str, Value] = {"sensor": stored.ids[sensor], "metric": metric}
    request = Request(start.to_pydatetime(), end.to_pydatetime(), width_ms, chosen)
    return stored.ask(expand(QUERIES[STATES].sql, request)).rows


@pytest.mark.parametrize("edition_and_admin_url", [*EDITIONS, WASM], indirect=True)
def test_states(stored: Stored) -> None:
    """A sensor that is silent for more than three intervals is offline until it sends again or the range ends."""
    until, hour = stored.until, timedelta(hours=1)
    died = [state for _, state in states_of(stored, "Roof", "temperature", until - 2 * hour, until)]
    assert died == ["out of limits", "offline"]
    dead = states_of(stored, "Roof", "temperature", until - hour / 4, until)
    assert dead == [(until - hour / 4, "offline")]
    # Its interval is an hour, and it was silent for two.
    patient = [state for _, state in states_of(stored, "Greenhouse", "pressure", until - 8 * hour, until)]
    assert patient == ["online"]
    assert states_of(stored, "Attic", "temperature", until - hour, until) == [(until - hour, "never seen")]


@pytest.mark.parametrize("edition_and_admin_url", [*EDITIONS, WASM], indirect=True)
def test_completeness_of_a_sensor_that_never_sent(stored: Stored) -> None:
    """It has no share of its expected readings and no gap, because the time of its first reading is unknown."""
    query = QUERIES["sensorflow-sensor: Completeness in this range"]
    chosen: dict[str, Value] = {"sensor": stored.ids["Attic"], "metric": "none"}
    for tier in WIDTHS_S:
        length = timedelta(milliseconds=POINT_MS[tier] * query.of_panel["maxDataPoints"])
        width_ms = interval_ms(length, query.of_panel["maxDataPoints"], query.of_panel["interval"])
        request = Request((stored.until - length).to_pydatetime(), stored.until.to_pydatetime(), width_ms, chosen)
        assert stored.ask(expand(query.sql, request)).rows == [(0, None, None, None)]


def test_states_are_bounded() -> None:
    """A range has a bounded number of spans of states, however often a sensor goes over its limit."""
    panel = QUERIES[STATES].of_panel
    for length in (timedelta(minutes=69), timedelta(hours=69), timedelta(days=74), timedelta(days=365)):
        width_ms = interval_ms(length, panel["maxDataPoints"], panel["interval"])
        assert length / timedelta(milliseconds=4 * width_ms) * 2 <= 1_200


def metrics_of(stored: Stored, sensor: str) -> list[str]:
    """Return the metrics that Sensor detail offers for a sensor."""
    query = QUERIES["sensorflow-sensor: variable metric"]
    end = stored.until.to_pydatetime()
    chosen: dict[str, Value] = {"sensor": stored.ids[sensor], "metric": []}
    return [row[1] for row in stored.ask(expand(query.sql, Request(end, end, 1_000, chosen))).rows]


@pytest.mark.parametrize("edition_and_admin_url", [*EDITIONS, WASM], indirect=True)
def test_metrics_of_a_sensor(stored: Stored) -> None:
    """A row stands for each metric that the sensor has, or is to have by its limits, and for no other."""
    assert metrics_of(stored, "Roof") == ["humidity", "temperature"]
    assert metrics_of(stored, "Cellar") == ["pressure", "temperature"]
    assert metrics_of(stored, "Greenhouse") == ["humidity", "pressure", "temperature"]
    assert metrics_of(stored, "Attic") == ["none"]


@each(ZOOMED)
def test_only_the_tier_that_suits_the_range_is_read(stored: Stored, query: Query) -> None:
    """A query reads finer tiers only for the current bucket, or since the last refresh.

    Of the fleet's days, it reads the hours of the last two.
    """
    for look, sql in looks(stored, query):
        reads_readings = re.search(r"FROM (points|readings)\b", query.sql)
        tier = "readings_1m" if look.tier == "readings" and not reads_readings else look.tier
        finer = [each for each in WIDTHS_S if WIDTHS_S[each] < WIDTHS_S[tier]]
        taken = stored.rows_taken(sql)
        assert taken.keys() <= {tier, *finer}
        assert taken[tier] or look.end != WEATHER_UNTIL or look.chosen != EVERY_SENSOR
        since = look.end.floor(timedelta(seconds=WIDTHS_S[tier])) if finer else look.end
        since = min([since, *(stored.materialized_until[each] for each in (tier, *finer) if each != "readings")])
        times = stored.readings["time"]
        newer = 0 if look.end == WEATHER_UNTIL else (times >= since).sum()
        if LAST_DAY in query.sql and tier == "readings_1d":
            newer += times.between((look.end - timedelta(days=1)).floor("1D"), look.end).sum()
        if "points_" in query.sql and "metric = " not in query.sql:
            newer *= len(METRICS)
        assert all(taken[each] <= newer for each in finer), (taken, newer)


@pytest.mark.parametrize("edition_and_admin_url", EDITIONS, indirect=True)
def test_planning_does_not_grow_with_the_history(stored: Stored) -> None:
    """The part for the current bucket is planned for its chunk: for all of a year's, it took 50 ms. The chunks of the
    aggregates are a dozen. As WebAssembly, TimescaleDB takes all.
    """
    for query in ZOOMED.values():
        for look, sql in looks(stored, query):
            if "points_1m" in sql:
                assert stored.chunks_planned_in_vain(sql) <= 15, (str(query), look.tier)


@each({name: query for name, query in QUERIES.items() if str(query) == "sensorflow-database: Background jobs"})
def test_jobs_without_a_run(stored: Stored, query: Query) -> None:
    """A job that has never run is shown without TimescaleDB's -infinity, which no panel can draw."""
    answer = stored.ask(query.sql.replace("FROM database_jobs", f"FROM {JOB_WITHOUT_A_RUN}"))
    assert answer.rows == [("compression", "readings", "never run", None, None, None, 0, 0)]


@each({name: query for name, query in QUERIES.items() if name in OF_POSTGRESQL})
def test_what_postgresql_says_of_itself_is_shown(stored: Stored, query: Query) -> None:
    for _, sql in looks(stored, query):
        answer = stored.ask(sql)
        assert answer.rows or str(query) in MAY_BE_EMPTY
        for row in answer.rows:
            assert all(value >= 0 for value in row if isinstance(value, float))


@each(
    {
        name: query
        for name, query in QUERIES.items()
        if query.of_panel.get("type") == "table" and name not in OF_MANY_UNITS
    }
)
def test_every_number_in_a_table_has_a_unit(stored: Stored, query: Query) -> None:
    """From the panel, from a query by a transformation, or from an override of its column."""
    panel: Node = query.of_panel
    overridden = {
        override["matcher"]["options"]
        for override in panel["fieldConfig"]["overrides"]
        if {"unit", "custom.hideFrom"} & {each["id"] for each in override["properties"]}
    }
    from_query = "configFromData" in {each["id"] for each in panel["transformations"]}
    for _, sql in looks(stored, query):
        answer = stored.ask(sql)
        numbers = {
            column
            for row in answer.rows
            for column, value in zip(answer.columns, row, strict=True)
            if isinstance(value, float)
        }
        assert "unit" in panel["fieldConfig"]["defaults"] or from_query or numbers <= overridden


@each({name: query for name, query in QUERIES.items() if query.dashboard == "alerting"})
def test_an_alerts_rows_are_one_number_and_labels_that_tell_them_apart(stored: Stored, query: Query) -> None:
    """An alert's rows are one number and unique labels, because Grafana makes an alert of each row by its labels."""
    for _, sql in looks(stored, query):
        answer = stored.ask(sql)
        labels = [tuple(value for value in row if isinstance(value, str)) for row in answer.rows]
        assert answer.rows
        assert len(set(labels)) == len(labels)
        assert {len(row) - len(of_row) for row, of_row in zip(answer.rows, labels, strict=True)} == {1}


@each({name: query for name, query in QUERIES.items() if query.dashboard == "alerting"})
def test_numbers_of_a_rule_meet_by_their_labels(stored: Stored, query: Query) -> None:
    """Grafana joins the steps of a rule by equal labels: its texts would lack what has other ones."""
    labels = set()
    for other in QUERIES.values():
        if (other.dashboard, other.place) == (query.dashboard, query.place):
            for _, sql in looks(stored, other):
                answer = stored.ask(sql)
                names = [
                    column
                    for column, value in zip(answer.columns, answer.rows[0], strict=True)
                    if isinstance(value, str)
                ]
                labels.add((tuple(names), *(tuple(texts(row)) for row in answer.rows)))
    assert len(labels) == 1
