"""Aggregates agree with a plain count over the readings, whatever comes late, twice, out of order, or is cut short."""

import asyncio
import itertools
import re
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, NamedTuple

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.errors import DatabaseUnavailable
from app.store import aggregates, retention
from app.store.aggregates import Aggregates
from app.store.database import Connection, migrate
from app.store.locks import Busy
from app.store.retention import MARGIN, Retention
from app.store.tiers import TIERS, Span, Tier
from tests.support.aggregating import (
    DAY,
    FOUND,
    HOUR,
    LATEST,
    MINUTE,
    Rig,
    assert_right,
    execute,
    reading,
    rig,
    rows,
    run_job,
)
from tests.support.databases import new_database
from tests.support.examples import examples

END_OF_SUMMER_TIME_S = 1_729_990_800
"""In the European Union in 2024."""

INSERT = "INSERT INTO readings (time, sensor_id, id, source_id, temperature) SELECT to_timestamp({}), {}, 1, 1, 20"
OPERATORS_POLICIES = [
    f"SELECT add_continuous_aggregate_policy('{tier.name}', INTERVAL '4 days', INTERVAL '{tier.width}',"
    " INTERVAL '1 hour', if_not_exists => true)"
    for tier in TIERS
]

TIMES = "SELECT name, value::timestamptz AS time FROM server_settings WHERE name ~ '^aggregates' ORDER BY name"


AGES_S = st.one_of(
    st.integers(0, 5 * MINUTE), st.integers(0, 3 * HOUR), st.integers(0, 3 * DAY), st.integers(20 * DAY, 400 * DAY)
)
VALUES = st.none() | st.integers(-400, 400).map(lambda quarters: quarters / 4)


APART = itertools.count(0, 1e-5)


class Step(NamedTuple):
    """Something that happens."""

    what: Literal["write", "insert", "policy", "refresh", "cut"]
    behind_s: int
    """How long ago it happens: the writer's clock."""
    ages_s: Sequence[tuple[int, str, float | None]]
    """Readings to send: their age when they arrive, their sensor, and a value."""


STEPS = st.lists(
    st.builds(
        Step,
        st.sampled_from(["write", "write", "write", "insert", "policy", "refresh", "cut"]),
        st.sampled_from([0, 0, 10 * MINUTE, 5 * HOUR, 2 * DAY]),
        st.lists(st.tuples(AGES_S, st.sampled_from("abc"), VALUES), min_size=1, max_size=8),
    ),
    min_size=1,
    max_size=8,
)


async def take(step: Step, rig: Rig) -> None:
    match step.what:
        case "write":
            now_s = time.time() - step.behind_s
            rig.clock_s[0] = now_s
            # No two have the same time, because it is not defined which of them would be the first.
            await rig.write(
                *(reading(now_s - age_s - next(APART), value, sensor) for age_s, sensor, value in step.ages_s)
            )
        case "insert":
            times = [time.time() - age_s - next(APART) for age_s, *_ in step.ages_s]
            execute(
                rig.url,
                *(
                    INSERT.format(time_s, ord(sensor) - 96)
                    for time_s, (_, sensor, _) in zip(times, step.ages_s, strict=True)
                ),
            )
        case "policy":
            for tier in TIERS:
                run_job(rig.url, "policy_refresh_continuous_aggregate", tier.name)
        case "refresh":
            await rig.refresh()
        case "cut":
            try:
                async with asyncio.timeout(step.behind_s % 7 / 100 + 0.005):
                    await rig.refresh()
            except TimeoutError:
                pass


def test_aggregates_are_a_plain_count_whatever_comes_late_and_whatever_is_cut_short(
    edition_and_admin_url: tuple[str, str],
) -> None:
    """Aggregates are a plain count after late readings, kills, an operator's own policies, and with a slow clock."""
    edition, admin_url = edition_and_admin_url

    @settings(examples(30), suppress_health_check=[*HealthCheck])
    @given(steps=STEPS)
    def check(steps: list[Step]) -> None:
        async def go() -> None:
            async with rig(url) as parts:
                if edition == "community":
                    execute(url, *OPERATORS_POLICIES)
                for step in steps:
                    # Elsewhere nothing tells what other programs have written.
                    if edition == "community" or step.what not in {"insert", "policy"}:
                        await take(step, parts)
                await parts.refresh()
                assert_right(url)

        asyncio.run(go())

    with new_database(admin_url) as url:
        check()


async def test_another_process_refreshes(database: str) -> None:
    """While another process refreshes, as by hand, a refresh ends at once."""
    async with rig(database) as parts:
        await parts.refresh()
        await parts.write(reading(parts.clock_s[0] - HOUR))
        async with await parts.database.connect("test") as other, aggregates.refresh_lock(other, wait=True):
            with pytest.raises(Busy):
                await parts.do(Aggregates(parts.database).refresh_late)
        await parts.refresh()
    assert_right(database)


async def test_before_the_first_refresh_the_aggregates_are_right_already(database: str) -> None:
    async with rig(database) as parts:
        now_s = parts.clock_s[0]
        await parts.write(*(reading(now_s - age_s, age_s) for age_s in range(0, 2 * DAY, 977)))
        assert_right(database)


async def test_values_whose_sum_is_not_finite_stop_no_refresh(database: str) -> None:
    async with rig(database) as parts:
        now_s = parts.clock_s[0] - 2 * HOUR
        await parts.write(*(reading(now_s + second, 1.7e308) for second in range(9)))
        await parts.refresh()
        found = rows(database, "SELECT sum(count)::int, max(temperature_max) FROM readings_1d")
    assert found == [(9, 1.7e308)]


async def test_the_latest_readings_are_the_latest_by_event_time(database: str) -> None:
    """Out of order, in one request and in several, alone and together, with ties, and in another process."""
    async with rig(database) as parts, rig(database) as others:
        now_s = parts.clock_s[0]
        await parts.write(reading(now_s - 5, 1, "a"))
        await parts.write(*(reading(now_s - age_s, age_s, sensor) for age_s in (7, 3, 9, 3) for sensor in "abc"))
        await others.write(reading(now_s - 4, 2, "b"))
        await others.write(reading(now_s - 1, 3, "d"))
        await parts.latest.write()
        await others.latest.write()
        await parts.write(reading(now_s - 2, 4, "d"))
        await parts.latest.write()
    found = rows(database, "SELECT * FROM latest_readings ORDER BY sensor_id")
    assert found == rows(database, LATEST)
    assert len(found) == 4


async def test_the_latest_readings_lack_what_was_refused(database: str) -> None:
    execute(database, "ALTER TABLE readings ADD CONSTRAINT cool CHECK (temperature < 50)")
    async with rig(database) as parts:
        now_s = parts.clock_s[0]
        await parts.write(*(reading(now_s - age_s, value, "a") for age_s, value in ((3, 20), (1, 70), (2, 21))))
        await parts.write(reading(now_s - 1, 71, "b"))
        await parts.latest.write()
    assert rows(database, "SELECT temperature FROM latest_readings") == [(21,)]


async def test_a_start_finds_the_latest_readings_that_a_killed_process_had_not_written(database: str) -> None:
    async with rig(database) as parts:
        now_s = parts.clock_s[0]
        await parts.write(*(reading(now_s - age_s, age_s, sensor) for age_s in (9, 8) for sensor in "abc"))
        await parts.latest.write()
        await parts.write(*(reading(now_s - age_s, age_s, sensor) for age_s in (7, 200 * DAY) for sensor in "bd"))
    async with rig(database) as parts:
        task = asyncio.create_task(parts.latest.run())
        async with asyncio.timeout(10):
            while rows(database, "SELECT * FROM latest_readings ORDER BY sensor_id") != rows(database, LATEST):
                await asyncio.sleep(0.05)
        task.cancel()


async def test_late_readings_of_the_hour_that_comes_twice_become_aggregates(database: str) -> None:
    """Late readings of the hour that clocks repeat become aggregates, in a database with such a time zone."""
    execute(
        database,
        "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET timezone = %L', current_database(), 'Europe/Madrid');"
        " END $$",
    )
    async with rig(database) as parts:
        await parts.refresh()
        for hour in (-1, 0):
            await parts.write(reading(END_OF_SUMMER_TIME_S + hour * HOUR, hour))
            await parts.refresh()
    assert_right(database)


async def test_of_many_late_flushes_one_turn_refreshes_all(database: str) -> None:
    execute(
        database,
        "INSERT INTO stale_ranges (starts_at, ends_at) SELECT moment, moment + interval '1 hour'"
        " FROM generate_series(now() - interval '1 day', now() - interval '22 hours', interval '1 hour') moment,"
        " generate_series(1, 1000)",
    )
    async with rig(database) as parts:
        await parts.refresh()
    assert rows(database, "SELECT count(*) FROM stale_ranges") == [(0,)]


async def test_where_aggregates_are_views_nobody_waits_for_late_ranges(community_database: str) -> None:
    """The schema is from a time when the licence was another one: nothing would ever refresh them."""
    execute(community_database, "DROP MATERIALIZED VIEW readings_1m CASCADE")
    async with rig(community_database) as parts:
        assert parts.database.edition is not None
        assert not parts.database.edition.continuous_aggregates
        await parts.write(reading(parts.clock_s[0] - 3 * DAY))
    assert rows(community_database, "SELECT count(*) FROM stale_ranges") == [(0,)]


async def test_aggregates_outlive_the_readings_that_they_are_of(database: str) -> None:
    """Aggregates outlive their readings, also if late readings beside the deleted ones are refreshed afterwards."""
    retention = Retention(3, 0, 0, 0)
    async with rig(database) as parts:
        now_s = parts.clock_s[0]
        for age_days in range(8):
            await parts.write(*(reading(now_s - age_days * DAY - second * 60, second) for second in range(100)))
        await parts.refresh()
        assert_right(database)
        before = {tier.name: rows(database, FOUND.format(tier.name)) for tier in TIERS}
        await parts.delete_old(retention)
        (kept,) = rows(database, "SELECT count(*), min(time) < now() - interval '5 days' FROM readings")
        assert kept[0] < 600
        assert not kept[1]
        await parts.refresh()
        for tier in TIERS:
            assert rows(database, FOUND.format(tier.name)) == before[tier.name]
        await parts.write(reading(now_s - 2.9 * DAY, 7, "late"))
        await parts.refresh()
        for tier in TIERS:
            found = rows(database, FOUND.format(tier.name))
            assert [row for row in found if row[1] == 1] == before[tier.name]
            assert [row[2] for row in found if row[1] != 1] == [1]


async def test_what_is_too_old_by_a_new_retention_becomes_aggregates_before_it_goes(database: str) -> None:
    """Readings become aggregates before a new retention deletes them, and a longer one later costs none."""
    week = Retention(7, 0, 0, 0)
    async with rig(database) as parts:
        now_s = parts.clock_s[0]
        await parts.write(*(reading(now_s - age_s, age_s) for age_s in range(0, 30 * DAY, 6 * HOUR)))
        await parts.refresh()
        await parts.delete_old(week)
        assert rows(database, "SELECT count(*) < 40 FROM readings") == [(True,)]
        await parts.refresh()
        await parts.write(reading(now_s - 20 * DAY, 7, "late"))
        await parts.refresh()
        for tier in TIERS:
            found = rows(database, f"SELECT sum(count)::int FROM {tier.name} WHERE sensor_id = 1")
            assert found == [(120,)], tier.name


async def test_buckets_stay_as_long_as_their_readings(database: str) -> None:
    """While late readings keep their day, so are the minutes kept that its hours are made of again."""
    async with rig(database) as parts:
        now_s = parts.clock_s[0]
        day_s = (now_s // DAY - 60) * DAY
        await parts.write(*(reading(day_s + minute * 60, minute) for minute in range(100)))
        await parts.refresh()
        await parts.write(reading(day_s + 90.5 * 60, 7))
        await parts.delete_old(Retention(30, 30, 30, 30))
        await parts.refresh()
        assert_right(database)
        await parts.delete_old(Retention(30, 30, 0, 0))
    assert rows(database, "SELECT count(*) FROM readings") == [(0,)]
    assert rows(database, "SELECT sum(count)::int FROM readings_1h") == [(101,)]


async def test_whole_days_of_readings_go(database: str) -> None:
    async with rig(database) as parts:
        now_s = parts.clock_s[0]
        for sensor in "ab":
            await parts.write(*(reading(now_s - age_s, age_s, sensor) for age_s in range(0, 8 * DAY, 600)))
        await parts.refresh()
        await parts.delete_old(Retention(3, 0, 0, 0))
    start_of_day = (now_s - MARGIN.total_seconds()) // DAY * DAY
    kept = sum(now_s - age_s >= start_of_day - 3 * DAY for age_s in range(0, 8 * DAY, 600))
    assert rows(database, "SELECT count(*) FROM readings") == [(2 * kept,)]


class Failing(Aggregates):
    """A database that can't refresh readings from 35 to 45 days ago."""

    async def _pieces(
        self, connection: Connection, guard: Connection, tier: Tier, span: Span, *arguments: Any, **options: Any
    ) -> AsyncIterator[Span]:
        if timedelta(days=35) < datetime.now(UTC) - span[0] < timedelta(days=45):
            await connection.execute("SELECT 1 / 0")
        async for piece in super()._pieces(connection, guard, tier, span, *arguments, **options):
            yield piece


async def test_a_span_that_cannot_be_refreshed_holds_up_no_other(database: str) -> None:
    """A span that can't be refreshed holds up no other, is tried again, and keeps its readings from being dropped."""
    month = Retention(30, 0, 0, 0)
    async with rig(database) as parts:
        now_s = parts.clock_s[0]
        await parts.refresh()
        await parts.write(*(reading(now_s - age_days * DAY, age_days) for age_days in (60, 40, 20)))
        with pytest.raises(DatabaseUnavailable, match="division by zero"):
            await parts.refresh(Failing(parts.database))
        assert rows(database, "SELECT count(*) FROM stale_ranges") == [(1,)]
        await parts.delete_old(month)
        assert rows(database, "SELECT count(*) FROM readings") == [(2,)]
        await parts.refresh()
        assert rows(database, "SELECT count(*) FROM stale_ranges") == [(0,)]
        await parts.delete_old(month)
        assert rows(database, "SELECT count(*) FROM readings") == [(1,)]
    for tier in TIERS:
        assert rows(database, f"SELECT sum(count)::int FROM {tier.name}") == [(3,)]


async def test_a_flush_that_began_before_the_frontier_moved_is_waited_for(database: str) -> None:
    """A refresh waits for such a flush, and gives up for now if it takes too long."""
    async with rig(database) as parts:
        await parts.refresh()
        execute(
            database,
            "UPDATE server_settings SET value = (now() - interval '1 hour')::text"
            " WHERE name IN ('aggregates_refreshed_until', 'aggregates_frontier')",
        )
        with psycopg.connect(database) as flush:
            flush.execute("INSERT INTO flushes (flush_id, rows) VALUES (1, 1)")
            flush.execute(
                "SELECT record_late(ARRAY[minute - 10], ARRAY[minute - 9])"
                " FROM (SELECT extract(epoch FROM now())::bigint / 60) AS this (minute)"
            )
            flush.execute(INSERT.format(time.time() - 570, 1))
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(aggregates, "FLUSH_WAIT_S", 0.2)
                with pytest.raises(Busy, match="flush"):
                    await parts.do(Aggregates(parts.database).refresh)
            refreshing = asyncio.create_task(parts.do(Aggregates(parts.database).refresh))
            await asyncio.sleep(0.5)
            assert not refreshing.done()
            flush.commit()
        await refreshing
    assert rows(database, "SELECT count(*) FROM stale_ranges") == [(0,)]
    assert rows(database, "SELECT count(*) FROM readings_1m WHERE bucket < now() - interval '5 minutes'") == [(1,)]
    assert_right(database)


async def test_a_flush_after_the_frontier_moved_is_late(database: str) -> None:
    """A flush records the minutes of readings before the frontier, and no others."""
    async with rig(database) as parts:
        execute(
            database,
            "UPDATE server_settings SET value = (now() - interval '1 hour')::text"
            " WHERE name IN ('aggregates_refreshed_until', 'aggregates_frontier')",
        )
        await parts.refresh()
        parts.clock_s[0] = time.time()
        minute = int(parts.clock_s[0] // MINUTE) - 5
        await parts.write(*(reading(time_s, 1) for time_s in (parts.clock_s[0], minute * MINUTE, minute * MINUTE - 61)))
        found = rows(database, "SELECT extract(epoch FROM starts_at)::int / 60, ends_at - starts_at FROM stale_ranges")
        assert found == [(minute - 2, timedelta(minutes=1)), (minute, timedelta(minutes=1))]


async def test_tables_take_the_place_of_views(database: str, edition: str) -> None:
    """The history of an older version is right before, while and after it becomes tables, and back again."""
    if edition == "community":
        pytest.skip("aggregates are continuous")
    async with rig(database) as parts:
        now_s = parts.clock_s[0]
        await parts.write(*(reading(now_s - age_s, age_s, "ab"[age_s % 2]) for age_s in range(0, 90 * DAY, 2_999)))
    migrate(database, "0009", down=True)
    assert_right(database)
    migrate(database)
    assert_right(database)
    async with rig(database) as parts:
        seen = 0

        class Watched(Aggregates):
            async def _pieces(self, *arguments: Any, **options: Any) -> AsyncIterator[Span]:
                nonlocal seen
                async for piece in super()._pieces(*arguments, **options):
                    seen += 1
                    assert_right(database)
                    yield piece

        await parts.refresh(Watched(parts.database))
    assert seen > 5
    assert_right(database)
    materialized = "SELECT (SELECT sum(count) FROM aggregates_1d) > 0.9 * (SELECT count(*) FROM readings)"
    assert rows(database, materialized) == [(True,)]
    migrate(database, "0009", down=True)
    assert_right(database)


PLANS = (
    "SELECT * FROM {tier} WHERE sensor_id = 2 AND bucket >= now() - interval '20 days' ORDER BY bucket",
    "SELECT * FROM {tier} WHERE sensor_id = ANY(ARRAY(SELECT id FROM sensors)) AND bucket >= now() - interval '9 days'",
)


async def test_a_query_of_tables_reads_no_history(database: str, edition: str) -> None:
    """A query of some sensors finds by an index what it needs of the readings: those not yet in a table."""
    if edition == "community":
        pytest.skip("aggregates are continuous")
    async with rig(database) as parts:
        now_s = parts.clock_s[0]
        for sensor in "abc":
            await parts.write(*(reading(now_s - age_s, 1, sensor) for age_s in range(0, 30 * DAY, 150)))
        await parts.refresh()
        execute(database, "ANALYZE")
        with psycopg.connect(database) as connection:
            for tier, query in itertools.product(TIERS, PLANS):
                plan = connection.execute("EXPLAIN (ANALYZE, FORMAT JSON) " + query.format(tier=tier.name)).fetchone()
                assert plan is not None
                # Early in a day its chunk is so small that PostgreSQL reads all of it. The history has 51,840 readings.
                assert rows_of_readings(plan[0][0]["Plan"]) < 1_000, tier.name


def rows_of_readings(node: dict[str, Any]) -> float:
    """Return how many readings a plan has looked at."""
    own = 0.0
    if re.match("readings$|_hyper", node.get("Relation Name", "")):
        own = node["Actual Loops"] * (node["Actual Rows"] + node.get("Rows Removed by Filter", 0))
    return own + sum(rows_of_readings(child) for child in node.get("Plans", []))


async def test_tables_have_their_own_retention(database: str, edition: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Buckets go when they have reached their age, in steps, and neither readings nor coarser buckets with them."""
    if edition == "community":
        pytest.skip("aggregates are continuous")
    monkeypatch.setattr(retention, "DELETE_BUCKETS", retention.DELETE_BUCKETS.replace("20000", "7"))
    monkeypatch.setattr(retention, "ROWS_AT_A_TIME", 7)
    async with rig(database) as parts:
        now_s = parts.clock_s[0]
        await parts.write(*(reading(now_s - age_s, 1) for age_s in range(0, 90 * DAY, DAY)))
        await parts.refresh()
        await parts.delete_old(Retention(0, 60, 75, 0))
        ages = [rows(database, f"SELECT count(*)::int FROM {tier.name}")[0][0] for tier in TIERS]
    assert 60 <= ages[0] <= 63
    assert 75 <= ages[1] <= 78
    assert ages[2] >= 90
    assert rows(database, "SELECT count(*) FROM readings") == [(90,)]


OLD_POLICIES = [
    "SELECT add_compression_policy('readings', INTERVAL '1 day')",
    "SELECT add_retention_policy('readings', INTERVAL '100 days')",
    *(
        f"SELECT add_continuous_aggregate_policy('{name}', INTERVAL '{start}', INTERVAL '{end}', INTERVAL '1 hour')"
        for name, start, end in (
            ("readings_1m", "3 hours", "1 minute"),
            ("readings_1h", "8 hours", "1 hour"),
            ("readings_1d", "4 days", "1 day"),
        )
    ),
    *(f"SELECT add_compression_policy('{tier.name}', INTERVAL '400 days')" for tier in TIERS),
]
OLD_HISTORY = """
INSERT INTO sensors (name) VALUES ('a') ON CONFLICT DO NOTHING;
INSERT INTO readings (time, sensor_id, id, source_id, temperature)
SELECT time, 1, 1, 1, extract(epoch FROM time)::bigint % 41
FROM generate_series(now() - interval '40 days', now(), interval '51 minutes') AS time
"""
OLD_STALE = """
INSERT INTO stale_ranges (starts_at, ends_at)
SELECT range_start, range_end FROM timescaledb_information.chunks WHERE hypertable_name = 'readings'
"""
OLD_REFRESH = """
CALL refresh_continuous_aggregate(
    '{}', '2020-01-01', now() - interval '5 hours', options => '{{"buckets_per_batch": 0}}'
)
"""
OWN_POLICIES = "SELECT proc_name FROM timescaledb_information.jobs WHERE hypertable_name IS NOT NULL"


@pytest.mark.parametrize("had_policies", [True, False])
async def test_upgrade_from_policies(community_admin_url: str, had_policies: bool) -> None:
    """An upgrade removes the policies, and continues where they were, or from the oldest reading if there were none."""
    with new_database(community_admin_url) as url:
        migrate(url, "0008")
        execute(url, "SELECT _timescaledb_functions.stop_background_workers()", OLD_HISTORY)
        if had_policies:
            execute(url, *OLD_POLICIES)
            for tier in TIERS:
                execute(url, OLD_REFRESH.format(tier.name))
            execute(url, OLD_HISTORY.replace("51 minutes", "7 hours"))  # late for the old version, too
        execute(url, OLD_STALE)
        migrate(url)
        assert rows(url, OWN_POLICIES) == []
        deleted = rows(url, "SELECT value::timestamptz FROM server_settings WHERE name = 'readings_deleted_until'")
        assert len(deleted) == had_policies
        async with rig(url) as parts:
            await parts.write(reading(parts.clock_s[0] - 3 * DAY))
            await parts.refresh()
            assert_right(url)
            assert rows(url, "SELECT count(*) FROM stale_ranges") == [(0,)]
        migrate(url, "0008", down=True)
        migrate(url)
        async with rig(url) as parts:
            await parts.refresh()
            assert_right(url)


async def test_a_refresh_under_way_keeps_the_aggregates_of_what_retention_deletes(community_database: str) -> None:
    """A refresh that is under way keeps the aggregates of days that retention deletes meanwhile."""
    async with rig(community_database) as parts:
        now_s = parts.clock_s[0]
        await parts.write(*(reading(now_s - age_s) for age_s in range(0, 4 * DAY, HOUR)))
        await parts.refresh()
        before = rows(community_database, FOUND.format("readings_1m"))

        async def retention_comes_between(connection: Connection, guard: Connection) -> AsyncIterator[None]:
            pieces = Aggregates(parts.database).refresh_changed(connection, guard)
            await anext(pieces)
            await parts.delete_old(Retention(0.5, 0, 0, 0))
            async for _ in pieces:
                yield

        await parts.do(retention_comes_between)
        assert rows(community_database, "SELECT min(time) > now() - interval '2 days' FROM readings") == [(True,)]
        assert rows(community_database, FOUND.format("readings_1m")) == before


async def test_what_a_retention_policy_deletes_stays_in_the_aggregates(community_database: str) -> None:
    """A late reading of a day that an operator's own retention policy has deleted costs no aggregates."""
    async with rig(community_database) as parts:
        noon_s = parts.clock_s[0] // DAY * DAY - 6 * DAY + 12 * HOUR
        await parts.write(*(reading(noon_s + second) for second in range(0, 5 * HOUR, MINUTE)))
        await parts.refresh()
        before = rows(community_database, FOUND.format("readings_1d"))
        execute(community_database, "SELECT add_retention_policy('readings', INTERVAL '3 days')")
        run_job(community_database, "policy_retention", "readings")
        assert rows(community_database, "SELECT count(*) FROM readings") == [(0,)]
        await parts.write(reading(noon_s))
        await parts.refresh()
        await parts.refresh()
        assert rows(community_database, FOUND.format("readings_1d")) == before


async def test_a_process_whose_term_is_over_moves_no_frontier_back(
    community_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that was held up while another took over leaves the other's frontier where it is."""
    async with rig(community_database) as parts:
        await parts.refresh()
        frontier = rows(community_database, TIMES)

        async def state_of_long_ago(connection: Connection, **options: Any) -> aggregates.AggregateState:
            found = await real(connection, **options)
            ago = timedelta(minutes=20)
            long_ago = found.refreshed_until - 2 * ago
            return replace(found, now=found.now - ago, refreshed_until=long_ago)

        async def is_killed(_: Connection) -> AsyncIterator[float]:
            raise Busy
            yield 0.0

        real = aggregates.state
        monkeypatch.setattr(aggregates, "state", state_of_long_ago)
        monkeypatch.setattr(aggregates, "_until_flushes_have_ended", is_killed)
        with pytest.raises(Busy):
            await parts.do(Aggregates(parts.database).refresh)
        assert rows(community_database, TIMES) == frontier


async def test_a_clock_that_was_ahead_stops_no_refresh(community_database: str) -> None:
    """After the database's clock has been ahead, refreshes go on from now."""
    async with rig(community_database) as parts:
        execute(community_database, "UPDATE server_settings SET value = now() + interval '1 day' WHERE name ~ '^aggr'")
        await parts.refresh()
        assert rows(community_database, f"SELECT bool_and(time <= now()) FROM ({TIMES}) t") == [(True,)]


async def test_a_refresh_under_way_forgets_no_older_readings(community_database: str) -> None:
    """When older readings are taken over during a refresh, the next refresh begins with them."""
    back = "UPDATE server_settings SET value = (now() - interval '{}')::text WHERE name = 'aggregates_refreshed_until'"
    async with rig(community_database) as parts:
        await parts.write(*(reading(parts.clock_s[0] - age_s) for age_s in range(0, 9 * HOUR, MINUTE)))
        execute(community_database, back.format("1 hour"))

        async def others_set_it_back(connection: Connection, guard: Connection) -> AsyncIterator[None]:
            pieces = Aggregates(parts.database).refresh(connection, guard)
            await anext(pieces)
            yield
            execute(community_database, back.format("8 hours"))
            async for _ in pieces:
                yield

        with pytest.raises(Busy):
            await parts.do(others_set_it_back)
        old = (
            "SELECT value::timestamptz < now() - interval '7 hours' FROM server_settings WHERE name ~ 'refreshed_until'"
        )
        assert rows(community_database, old) == [(True,)]
        await parts.refresh()
        assert_right(community_database)


async def test_late_readings_of_a_server_whose_clock_is_behind(community_database: str) -> None:
    """Late readings are recorded as such by a server whose clock is hours behind, or that has held them for hours."""
    async with rig(community_database) as parts:
        await parts.refresh()
        now_s = parts.clock_s[0]
        parts.clock_s[0] -= 5 * HOUR
        await parts.write(reading(now_s - 10 * MINUTE))
        covering = "SELECT FROM stale_ranges WHERE to_timestamp(%(at)s) >= starts_at AND to_timestamp(%(at)s) < ends_at"
        assert len(rows(community_database, covering, at=now_s - 10 * MINUTE)) == 1


async def test_hours_that_a_retention_policy_deletes_stay_in_the_aggregates(community_database: str) -> None:
    """Where chunks are narrow, a policy deletes a part of a day: its aggregates stay."""
    execute(community_database, "SELECT set_chunk_time_interval('readings', INTERVAL '1 hour')")
    async with rig(community_database) as parts:
        noon_s = parts.clock_s[0] // DAY * DAY - 6 * DAY + 12 * HOUR
        await parts.write(*(reading(noon_s + second) for second in range(-5 * HOUR, 5 * HOUR, 10 * MINUTE)))
        await parts.refresh()
        before = {tier.name: rows(community_database, FOUND.format(tier.name)) for tier in TIERS}
        age_s = round(time.time() - noon_s)
        execute(community_database, f"SELECT add_retention_policy('readings', INTERVAL '{age_s} seconds')")
        run_job(community_database, "policy_retention", "readings")
        assert rows(community_database, "SELECT count(*) BETWEEN 30 AND 36 FROM readings") == [(True,)]
        await parts.refresh()
        await parts.refresh()
        assert {tier.name: rows(community_database, FOUND.format(tier.name)) for tier in TIERS} == before


async def test_changes_are_found_in_each_day_of_a_wide_chunk(community_database: str) -> None:
    """A chunk that starts within a day and ends within another has changes of both found."""
    async with rig(community_database) as parts:
        noon_s = parts.clock_s[0] // DAY * DAY - 20 * DAY + 12 * HOUR
        span = f"""'{{"time": [{int(noon_s + 8 * HOUR)}000000, {int(noon_s + 15 * HOUR)}000000]}}'"""
        execute(community_database, f"SELECT _timescaledb_functions.create_chunk('readings', {span})")
        await parts.write(reading(noon_s + 13 * HOUR))
        await parts.refresh()
        execute(community_database, INSERT.format(noon_s + 14 * HOUR, 1))
        await parts.refresh()
        assert_right(community_database)
