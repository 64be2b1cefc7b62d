"""Queries are expanded as in Grafana's own tests: macros_test.go, interpolationTruthTable.test.ts."""

from datetime import UTC, datetime, timedelta

import pytest

from tests.grafana.expansion import ExpansionError, Request, Value, expand, formatted, interval_ms, without_comments

START = datetime(2018, 4, 12, 18, tzinfo=UTC)
FIVE_MINUTES = Request(START, START + timedelta(minutes=5), interval_ms=600_000)
PLAIN = Request(START, START + timedelta(minutes=5), interval_ms=600_000, timescaledb=False)
WITH_FRACTION = Request(
    datetime(1960, 2, 1, 7, 0, 0, 500_000, tzinfo=UTC), datetime(1980, 2, 3, 8, 0, 0, 500_000, tzinfo=UTC), 1_000
)


@pytest.mark.parametrize(
    ("sql", "expanded"),
    [
        ("select $__time(c)", 'select c AS "time"'),
        ("select min($__time(c))", 'select min(c AS "time")'),
        ("select $__timeEpoch(c)", 'select extract(epoch from c) as "time"'),
        ("WHERE $__timeFilter(c)", "WHERE c BETWEEN '2018-04-12T18:00:00Z' AND '2018-04-12T18:05:00Z'"),
        ("select $__timeFrom()", "select '2018-04-12T18:00:00Z'"),
        ("select $__timeTo()", "select '2018-04-12T18:05:00Z'"),
        ("SELECT $__timeGroup(c,'5m'), value", 'SELECT floor(extract(epoch from c)/300)*300 AS "time", value'),
        ("SELECT $__timeGroup(c,'5m') as time, v", "SELECT floor(extract(epoch from c)/300)*300 as time, v"),
        ("SELECT $__timeGroup(c,'5m')", "SELECT floor(extract(epoch from c)/300)*300"),
        ("SELECT $__timeGroupAlias(c,'5m')", 'SELECT floor(extract(epoch from c)/300)*300 AS "time"'),
        ("$__timeGroup(c , '5m')", "floor(extract(epoch from c)/300)*300"),
        ("$__timeGroup(c, '20ms')", "floor(extract(epoch from c)/0.02)*0.02"),
        ("$__timeGroup(c, $__interval, NULL)", "floor(extract(epoch from c)/600)*600"),
        ("select $__unixEpochFilter(t)", "select t >= 1523556000 AND t <= 1523556300"),
        ("select $__unixEpochFrom(), $__unixEpochTo()", "select 1523556000, 1523556300"),
        ("select $__unixEpochNanoFilter(t)", "select t >= 1523556000000000000 AND t <= 1523556300000000000"),
        ("select $__unixEpochNanoFrom()", "select 1523556000000000000"),
        ("select $__unixEpochNanoTo()", "select 1523556300000000000"),
        ("SELECT $__unixEpochGroup(c+d,'5m')", "SELECT floor((c+d)/300)*300"),
        ("SELECT $__unixEpochGroupAlias(c+d,'5m')", 'SELECT floor((c+d)/300)*300 AS "time"'),
        ("SELECT $__interval, $__interval_ms", "SELECT 10m, 600000"),
        ("SELECT 1 -- $__nonsense()", "SELECT 1 "),
    ],
)
def test_macros_are_evaluated(sql: str, expanded: str) -> None:
    assert expand(sql, PLAIN) == expanded


@pytest.mark.parametrize(
    ("sql", "expanded"),
    [
        ("GROUP BY $__timeGroup(c,'5m')", "GROUP BY time_bucket('300.000s',c)"),
        ("GROUP BY $__timeGroup(c , '5m')", "GROUP BY time_bucket('300.000s',c)"),
        ("GROUP BY $__timeGroup(c , '12d')", "GROUP BY time_bucket('1036800.000s',c)"),
        ("GROUP BY $__timeGroup(c , '20ms')", "GROUP BY time_bucket('0.020s',c)"),
        ("SELECT $__timeGroup(c, 1h), v", "SELECT time_bucket('3600.000s',c) AS \"time\", v"),
    ],
)
def test_with_timescaledb_times_are_grouped_by_time_bucket(sql: str, expanded: str) -> None:
    assert expand(sql, FIVE_MINUTES) == expanded


def test_a_comma_after_the_first_of_equal_time_groups_gives_all_of_them_an_alias() -> None:
    """Grafana looks for the text of the call and finds the first: the GROUP BY is then no longer SQL."""
    assert expand("SELECT $__timeGroup(c,'5m'), 1 GROUP BY $__timeGroup(c,'5m')", FIVE_MINUTES).endswith(
        "GROUP BY time_bucket('300.000s',c) AS \"time\""
    )


def test_an_argument_ends_at_the_first_closing_parenthesis() -> None:
    assert expand("$__timeGroupAlias(coalesce(a, '5m'), '1h')", FIVE_MINUTES) == (
        "time_bucket('300.000s',coalesce(a) AS \"time\", '1h')"
    )


def test_times_have_a_fraction_only_where_there_is_one() -> None:
    assert expand("$__timeFilter(c)", WITH_FRACTION) == (
        "c BETWEEN '1960-02-01T07:00:00.5Z' AND '1980-02-03T08:00:00.5Z'"
    )


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("$__nonsense(c)", "unknown macro '__nonsense'"),
        ("$__timeGroup(c)", "needs time column and interval"),
        ("$__timeGroup(c, '5 apples')", "error parsing interval"),
        ("$__timeGroup(c, '1M')", "error parsing interval"),
        ("$__timeGroup(c, '5m', nothing)", "error parsing fill value"),
        ("${sensor:glob}", "unknown format"),
    ],
)
def test_what_grafana_would_refuse_is_refused(sql: str, message: str) -> None:
    request = Request(START, START, 1_000, variables={"sensor": "1"})
    with pytest.raises(ExpansionError, match=message):
        expand(sql, request)


@pytest.mark.parametrize(
    ("sql", "stripped"),
    [
        ("SELECT 1 -- a comment", "SELECT 1 "),
        ("SELECT 1 -- comment\nFROM t", "SELECT 1 \nFROM t"),
        ("SELECT /* a\n comment */ 1", "SELECT  1"),
        ("SELECT '-- no' AS a -- yes", "SELECT '-- no' AS a "),
        ("SELECT '/* no */' AS a /* yes */", "SELECT '/* no */' AS a "),
        ('SELECT "c -- no" FROM t', 'SELECT "c -- no" FROM t'),
        ('SELECT "c ""-- no""" FROM t', 'SELECT "c ""-- no""" FROM t'),
        ("SELECT 'it''s -- no' AS v", "SELECT 'it''s -- no' AS v"),
        ("SELECT $$ -- no $$", "SELECT $$ -- no $$"),
        ("SELECT $body$ /* no */ $body$", "SELECT $body$ /* no */ $body$"),
        ("SELECT $__timeFrom() -- yes", "SELECT $__timeFrom() "),
        ("SELECT $1 -- yes", "SELECT $1 "),
    ],
)
def test_comments_are_stripped_and_quotes_are_kept(sql: str, stripped: str) -> None:
    assert without_comments(sql) == stripped


@pytest.mark.parametrize(
    ("sql", "value", "expanded"),
    [
        ("host = $v", "server01", "host = server01"),
        ("host = '$v'", "server01", "host = 'server01'"),
        ("name = '${v}'", "O'Brien", "name = 'O''Brien'"),
        ("name = '[[v]]'", "a", "name = 'a'"),
        ("IN ($v)", ["srv1", "srv2"], "IN ('srv1','srv2')"),
        ("IN ($v)", ["O'Brien", "D'Angelo"], "IN ('O''Brien','D''Angelo')"),
        ("= $v", ["app1"], "= 'app1'"),
        ("IN ('$v')", ["srv1", "srv2"], "IN (''srv1','srv2'')"),
        ("IN (${v:csv})", ["50", "75"], "IN (50,75)"),
        ("${v:raw}", "o'clock", "o'clock"),
        ("IN (${v:sqlstring})", ["it's", "b"], "IN ('it''s','b')"),
        ("${v:singlequote}", "it's", r"'it\'s'"),
        ("$v2 $__timeFilter", "a", "$v2 $__timeFilter"),
    ],
)
def test_variables_are_put_in_as_the_datasource_does(sql: str, value: Value, expanded: str) -> None:
    assert expand(sql, Request(START, START, 1_000, variables={"v": value})) == expanded


def test_the_range_is_there_as_variables_too() -> None:
    sql = "$__from ${__to} $__range_s $__range_ms $__interval_ms $__interval $__timezone"
    assert expand(sql, FIVE_MINUTES) == "1523556000000 1523556300000 300 300000 600000 10m UTC"


def test_an_alert_rule_has_an_interval_and_no_variables() -> None:
    request = Request(START, START, 60_000, variables=None)
    assert expand("$__interval_ms $sensor $__from", request) == "60000 $sensor $__from"


@pytest.mark.parametrize(
    ("length", "points", "minimum", "milliseconds"),
    [
        (timedelta(minutes=5), 500, "1s", 1_000),
        (timedelta(hours=1), 500, "1s", 5_000),
        (timedelta(hours=1), 500, "10s", 10_000),
        (timedelta(hours=6), 500, "1s", 30_000),
        (timedelta(days=1), 500, "1s", 120_000),
        (timedelta(days=7), 500, "1s", 1_200_000),
        (timedelta(days=30), 500, "1s", 3_600_000),
        (timedelta(days=365), 500, "1s", 43_200_000),
        (timedelta(days=365), 365, "1s", 86_400_000),
        (timedelta(days=365 * 50), 10, "1s", 31_536_000_000),
        (timedelta(minutes=5), 500, "1m", 60_000),
    ],
)
def test_an_interval_is_the_range_over_the_points_in_round_numbers(
    length: timedelta, points: int, minimum: str, milliseconds: int
) -> None:
    assert interval_ms(length, points, minimum) == milliseconds


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [(500, "500ms"), (5_000, "5s"), (120_000, "2m"), (43_200_000, "12h"), (604_800_000, "7d"), (31_536_000_000, "1y")],
)
def test_an_interval_is_written_in_its_largest_unit(milliseconds: int, text: str) -> None:
    assert formatted(milliseconds) == text
