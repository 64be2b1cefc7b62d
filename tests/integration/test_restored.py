"""Readings that were not written by the flusher, and rows of the server's tables that were deleted by hand."""

import logging
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from app.errors import ConfigurationError, DatabaseUnavailable
from app.store import aggregates, move
from app.store.aggregates import Aggregates
from app.store.database import migrate
from app.store.observer import STATISTICS
from app.store.retention import Retention
from app.store.tiers import TIERS, Span
from tests.support.aggregating import (
    DAY,
    FOUND,
    HOUR,
    LATEST,
    assert_right,
    execute,
    reading,
    rig,
    rows,
)
from tests.support.databases import new_database
from tests.support.pgbouncer import pgbouncer

INSERT = """
INSERT INTO sensors (name) SELECT 'sensor ' || number FROM generate_series(1, 3) AS number ON CONFLICT DO NOTHING;
INSERT INTO readings (time, sensor_id, id, source_id, temperature)
SELECT time, s.id, 1, 1, extract(epoch FROM time)::bigint % 41
FROM sensors s, generate_series(now() - interval '400 days', now() - interval '1 minute', interval '7 hours') AS time
"""
CHANGES = (
    "UPDATE readings SET pressure = pressure + 0.25",
    "UPDATE readings SET temperature = NULL",
    "UPDATE readings SET sensor_id = 7",
    "UPDATE readings SET time = time + interval '61 minutes'",
    "DELETE FROM readings",
)
COUNTS = "SELECT (SELECT count(*) FROM readings)::int, (SELECT sum(count) FROM readings_1d)::int"


async def test_readings_inserted_by_sql(community_database: str, caplog: pytest.LogCaptureFixture) -> None:
    """Readings inserted by SQL reach aggregates and latest readings at the next look, and the log says so."""
    async with rig(community_database) as parts:
        await parts.write(*(reading(parts.clock_s[0] - age_s, 1) for age_s in range(60, 5 * DAY, HOUR)))
        await parts.refresh()
        execute(community_database, INSERT)
        ((readings, aggregated),) = rows(community_database, COUNTS)
        assert aggregated < readings  # or there is nothing to find
        await parts.refresh()
        assert_right(community_database)
        await parts.latest.write()
    assert [record for record in caplog.records if "another program has written" in record.getMessage()]
    latest = {row[0]: row[1] for row in rows(community_database, LATEST)}
    found = {row[0]: row[1] for row in rows(community_database, "SELECT sensor_id, time FROM latest_readings")}
    assert found.keys() == latest.keys()
    # A reading of the last hours is found when the aggregates of its hour are made.
    assert all(latest[sensor_id] - time < timedelta(hours=8) for sensor_id, time in found.items())


@pytest.mark.parametrize("age_s", [10 * DAY, 5 * HOUR])
async def test_latest_reading_by_sql(community_database: str, age_s: int) -> None:
    """A reading inserted by SQL becomes its sensor's latest if it is later by half an hour, on old days and today."""
    async with rig(community_database) as parts:
        hour_s = (parts.clock_s[0] - age_s) // HOUR * HOUR
        await parts.write(reading(hour_s + 300, 1))
        await parts.latest.write()
        await parts.refresh()
        execute(
            community_database,
            "INSERT INTO readings (time, sensor_id, id, source_id, temperature)"
            f" VALUES (to_timestamp({hour_s + 2_700}), 1, 77, 1, 20)",
        )
        await parts.refresh()
    assert rows(community_database, "SELECT id FROM latest_readings") == [(77,)]


async def test_readings_of_a_dump(database: str) -> None:
    """Readings restored before the first start are never missing from an aggregate that had them."""
    execute(database, INSERT)
    async with rig(database) as parts:
        seen: list[tuple[int, int]] = []

        class Watched(Aggregates):
            async def _pieces(self, *arguments: Any, **options: Any) -> AsyncIterator[Span]:
                async for piece in super()._pieces(*arguments, **options):
                    seen.extend(rows(database, COUNTS))
                    yield piece

        await parts.refresh(Watched(parts.database))
        assert_right(database)
        assert len(seen) > 2
        assert all(readings == aggregated for readings, aggregated in seen)


EARLY = "time < now() - interval '20 days' AND extract(hour FROM time AT TIME ZONE 'UTC') < 22"
"""Readings that stay in their chunk when they are moved by an hour."""


async def test_changed_readings(community_database: str) -> None:
    """Aggregates follow readings that were corrected or deleted by hand."""
    async with rig(community_database) as parts:
        await parts.write(*(reading(parts.clock_s[0] - age_s, 1) for age_s in range(0, 30 * DAY, HOUR)))
        await parts.refresh()
        for change in CHANGES:
            execute(community_database, f"{change} WHERE {EARLY} AND id % 2 = 0")
            await parts.refresh()
            assert_right(community_database)


async def test_late_readings_are_nobody_elses(community_database: str, caplog: pytest.LogCaptureFixture) -> None:
    """A flush of old and new readings is no foreign one, and the days between are checked once, also by others."""
    caplog.set_level(logging.WARNING)
    async with rig(community_database) as parts:
        for age_s in range(0, 30 * DAY, 6 * HOUR):
            await parts.write(reading(parts.clock_s[0] - age_s, 1))
        await parts.refresh()
        await parts.write(*(reading(parts.clock_s[0] - age_s, 2) for age_s in (29.4 * DAY, 15.3 * DAY, 60)))
        for _ in range(2):  # the first one's check leaves out the days that its refresh of late readings is for
            await parts.refresh()
        checked = "SELECT day, changes, xmin::text FROM checked_days ORDER BY day"
        before = rows(community_database, checked)
        assert len(before) > 20
        await parts.refresh()
        assert rows(community_database, checked) == before
        assert not caplog.records
        assert_right(community_database)
        execute(community_database, "UPDATE readings SET temperature = 3 WHERE time < now() - interval '20 days'")
        await parts.refresh()
        assert_right(community_database)


async def test_check_is_bounded(community_database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Days that have aggregates are checked some at a time, and in the end none is left out."""
    monkeypatch.setattr(aggregates, "CHECK_S", 0.0)
    async with rig(community_database) as parts:
        await parts.write(*(reading(parts.clock_s[0] - age_s, 1) for age_s in range(0, 30 * DAY, 6 * HOUR)))
        await parts.refresh()
        execute(community_database, "UPDATE readings SET temperature = 3 WHERE time < now() - interval '20 days'")
        await parts.refresh()
        assert rows(community_database, "SELECT count(*)::int FROM readings_1d WHERE temperature_max = 3") == [(0,)]
        monkeypatch.undo()
        await parts.refresh()
        assert_right(community_database)


async def test_readings_of_nameless_sensors(community_database: str, caplog: pytest.LogCaptureFixture) -> None:
    """The log says which ids have no name, and what to do."""
    execute(community_database, INSERT.replace("s.id, 1", "s.id + 70, 1"))
    async with rig(community_database) as parts:
        await parts.refresh()
    (message,) = [record.message for record in caplog.records if "without a name" in record.message]
    assert "71, 72, 73" in message
    assert "OVERRIDING SYSTEM VALUE" in message


async def test_aggregates_of_deleted_days_stay(database: str) -> None:
    """Neither a check nor a refresh by hand removes aggregates whose readings were deleted by retention."""
    week = Retention(7, 0, 0, 0)
    async with rig(database) as parts:
        now_s = parts.clock_s[0]
        await parts.write(*(reading(now_s - age_s, age_s) for age_s in range(0, 30 * DAY, 6 * HOUR)))
        await parts.refresh()
        await parts.delete_old(week)
        assert rows(database, "SELECT count(*) < 40 FROM readings") == [(True,)]
        before = {tier.name: rows(database, FOUND.format(tier.name)) for tier in TIERS}
        execute(database, INSERT.replace("1 minute", "12 days"))
        await parts.refresh()
        keeper = Aggregates(parts.database)
        await keeper.recompute(datetime(2020, 1, 1, tzinfo=UTC), datetime.now(UTC), on_piece=lambda _: None)
        for tier in TIERS:
            found = rows(database, FOUND.format(tier.name))
            assert [row for row in found if row[1] == 1] == before[tier.name], tier.name


async def test_refresh_by_hand(community_database: str) -> None:
    """A refresh by hand corrects what TimescaleDB does not know of, and reports its pieces."""
    async with rig(community_database) as parts:
        await parts.write(*(reading(parts.clock_s[0] - age_s, 1) for age_s in range(0, 40 * DAY, 5 * HOUR)))
        await parts.refresh()
        for tier in TIERS:
            ((table,),) = rows(
                community_database,
                "SELECT format('%%I.%%I', materialization_hypertable_schema, materialization_hypertable_name)"
                " FROM timescaledb_information.continuous_aggregates WHERE view_name = %(name)s",
                name=tier.name,
            )
            execute(community_database, f"DELETE FROM {table} WHERE bucket < now() - interval '9 days'")
        execute(community_database, "DELETE FROM latest_readings")
        pieces: list[object] = []
        await parts.refresh()  # finds nothing to do: nothing says that these have changed
        keeper = Aggregates(parts.database)
        start = datetime.now(UTC) - timedelta(days=100)
        await keeper.recompute(start, datetime.now(UTC), on_piece=pieces.append)
        assert_right(community_database)
    assert len(pieces) > 1
    assert rows(community_database, "SELECT count(*) FROM latest_readings") == [(1,)]


async def test_more_stale_spans_than_one_query_gives(database: str) -> None:
    execute(
        database,
        "INSERT INTO stale_ranges (starts_at, ends_at) SELECT moment, moment + interval '1 hour'"
        " FROM generate_series(now() - interval '1500 hours', now() - interval '2 hours', interval '1 hour') AS moment",
    )
    async with rig(database) as parts:
        await parts.refresh()
    assert rows(database, "SELECT count(*) FROM stale_ranges") == [(0,)]


def test_move_is_all_or_nothing(
    embedded_database_url: str, community_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A move that fails leaves the other database empty, and says why."""
    migrate(embedded_database_url)
    execute(embedded_database_url, INSERT)
    monkeypatch.setattr(move, "LOCKS_A_DAY", 1_000_000)
    with pytest.raises(ConfigurationError, match=r"40[01] days, .* Set its max_locks_per_transaction to \d+"):
        move.move(embedded_database_url, community_database, say=print)
    monkeypatch.undo()
    execute(community_database, "ALTER TABLE readings ADD CONSTRAINT cold CHECK (temperature < 35)")
    with pytest.raises(DatabaseUnavailable, match="cold"):
        move.move(embedded_database_url, community_database, say=print)
    assert rows(community_database, "SELECT count(*) FROM sensors") == [(0,)]
    execute(community_database, "ALTER TABLE readings DROP CONSTRAINT cold")
    move.move(embedded_database_url, community_database, say=print)
    count = "SELECT count(*) FROM readings"
    assert rows(community_database, count) == rows(embedded_database_url, count)


def test_move_of_a_deleted_sensor(embedded_database_url: str, database: str) -> None:
    """The readings of a deleted sensor do not become a new sensor's."""
    migrate(embedded_database_url)
    execute(embedded_database_url, INSERT, "DELETE FROM sensors WHERE id = 3")
    move.move(embedded_database_url, database, say=print)
    for url in (embedded_database_url, database):
        assert rows(url, "INSERT INTO sensors (name) VALUES ('new') RETURNING id") == [(4,)]


def test_move_by_way_of_a_pooler(embedded_database_url: str, database: str) -> None:
    """A move by way of a pooler leaves nothing in its sessions for another client."""
    migrate(embedded_database_url)
    execute(embedded_database_url, INSERT)
    with pgbouncer(database) as pooled_url:
        move.move(embedded_database_url, pooled_url, say=print)
        with psycopg.connect(pooled_url, prepare_threshold=None) as client:
            assert client.execute("SELECT array_agg(statement) FROM pg_prepared_statements").fetchone() == (None,)


def test_move_beside_a_writer(embedded_database_url: str, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A move does not wait for a server that writes to either database, but reports it."""
    monkeypatch.setattr(move, "LOCK_TIMEOUT_S", 1)
    migrate(embedded_database_url)
    for url in (embedded_database_url, database):
        with psycopg.connect(url) as server:
            server.execute("INSERT INTO flushes (flush_id, rows) VALUES (1, 1)")
            with pytest.raises(ConfigurationError, match="A server is writing"):
                move.move(embedded_database_url, database, say=print)


async def test_plain_table_beside_timescaledb(
    community_admin_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A dump of plain PostgreSQL restored beside TimescaleDB works as such, and the log says once what to do."""
    with new_database(community_admin_url) as url:
        with monkeypatch.context() as patched:
            patched.setattr("app.store.database._create_extension", lambda _: None)
            migrate(url)
        await use_plain_table(url)
    assert len([record for record in caplog.records if "readings is a plain table" in record.message]) == 1


async def use_plain_table(url: str) -> None:
    """Write a reading to the plain table."""
    async with rig(url) as parts:
        await parts.write(reading(parts.clock_s[0], 1))
        assert parts.database.edition is not None
        assert parts.database.edition.kind == "plain"


SETTINGS = (
    "timezone",
    "offline_after_s",
    "aggregates_refreshed_until",
    "aggregates_frontier",
    "limits_version",
    "readings_deleted_until",
)


@pytest.mark.parametrize("name", SETTINGS)
async def test_deleted_setting(database: str, name: str) -> None:
    """A row of server_settings that was deleted comes back with its default, and nothing fails meanwhile."""
    async with rig(database) as parts:
        await parts.write(reading(parts.clock_s[0] - 60, 1))
        await parts.latest.write()
        execute(database, f"DELETE FROM server_settings WHERE name = '{name}'")
        await parts.write(reading(parts.clock_s[0] - 30, 2))
        assert None not in rows(database, STATISTICS)[0]
        await parts.refresh()
        await parts.writer.limits.check()
        async with parts.database.connection(timeout_s=10) as connection:
            await parts.database.restore_settings(connection)
        assert None not in rows(database, STATISTICS)[0]
        found = {setting for (setting,) in rows(database, "SELECT name FROM server_settings")}
        assert {"timezone", "offline_after_s", "aggregates_refreshed_until", "aggregates_frontier"} <= found
        assert rows(database, "SELECT DISTINCT date_recorded IS NULL FROM data") == [(False,)]
        assert rows(database, "SELECT is_online FROM sensor_status") == [(True,)]


async def test_refresh_by_hand_after_changes_by_sql(database: str) -> None:
    """A refresh by hand brings the aggregates up to readings that were inserted, changed or deleted by SQL."""
    async with rig(database) as parts:
        await parts.write(*(reading(parts.clock_s[0] - age_s, 1) for age_s in range(0, 40 * DAY, 5 * HOUR)))
        await parts.refresh()
        execute(database, INSERT, *(f"{change} WHERE {EARLY} AND id % 2 = 0" for change in CHANGES[:3]))
        execute(database, "DELETE FROM readings WHERE time < now() - interval '390 days'")
        keeper = Aggregates(parts.database)
        await keeper.recompute(datetime(2020, 1, 1, tzinfo=UTC), datetime.now(UTC), on_piece=lambda _: None)
        await parts.refresh()
        assert_right(database)


async def test_deleted_progress_hides_nothing(database: str) -> None:
    """When it is lost how far the aggregates are refreshed, they stay right, and are refreshed anew."""
    async with rig(database) as parts:
        await parts.write(*(reading(parts.clock_s[0] - age_s, 1) for age_s in range(0, 3 * DAY, HOUR)))
        await parts.refresh()
        execute(database, "DELETE FROM server_settings WHERE name LIKE 'aggregates%'")
        assert_right(database)
        await parts.write(reading(parts.clock_s[0] - 2 * DAY + 7, 2), reading(parts.clock_s[0] - 7, 2))
        async with parts.database.connection(timeout_s=10) as connection:
            await parts.database.restore_settings(connection)
        await parts.refresh()
        assert_right(database)
