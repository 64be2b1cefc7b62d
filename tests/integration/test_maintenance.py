"""Pruning, and measurements of the database, on real servers."""

import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from app.store import idempotency, maintenance, retention, sensors
from app.store.database import Database
from app.store.maintenance import Maintenance
from tests.support.writing import sensors_of

MINUTE_US = 60_000_000


def real_us() -> int:
    return time.time_ns() // 1_000


@asynccontextmanager
async def maintaining(
    url: str, *, now_us: Callable[[], int] = real_us, accept_future_minutes: float = 10
) -> AsyncIterator[Maintenance]:
    database = Database(url, timezone="UTC", offline_after_s=300)
    try:
        await database.prepare()
        yield Maintenance(
            database, idempotency_window_hours=24, accept_future_minutes=accept_future_minutes, now_us=now_us
        )
    finally:
        await database.close()


def rows(url: str, query: str) -> list[tuple[object, ...]]:
    with psycopg.connect(url) as connection:
        return connection.execute(query).fetchall()


def execute(url: str, query: str, *arguments: object) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(query, arguments or None)


@pytest.mark.parametrize("minutes", [10, -10])
async def test_a_skewed_clock_is_told_and_makes_nobody_offline(
    database: str, caplog: pytest.LogCaptureFixture, minutes: int
) -> None:
    """Whether a sensor is online goes by the clock that its readings are held against."""
    servers_us = real_us() - minutes * MINUTE_US
    seen = datetime.fromtimestamp(servers_us / 1e6, UTC)
    online = "SELECT name, is_online, abs(age_s) < 30 FROM sensor_status ORDER BY name"
    execute(database, "INSERT INTO sensors (name) VALUES ('now'), ('old')")
    add = "INSERT INTO latest_readings (sensor_id, time, id) VALUES (%s, %s, 1)"
    execute(database, add, 1, seen)
    execute(database, add, 2, seen - timedelta(minutes=6))
    async with maintaining(database, now_us=lambda: real_us() - minutes * MINUTE_US) as skewed:
        with caplog.at_level(logging.INFO):
            await skewed.look()
            await skewed.look()
        assert rows(database, online) == [("now", True, True), ("old", False, False)]
        assert skewed.statistics is not None
        assert abs(skewed.statistics.clock_skew_s - minutes * 60) < 5
        (told,) = [record for record in caplog.records if "clock" in record.message]
        assert told.levelname == "WARNING"
        assert ("ahead" if minutes > 0 else "behind") in told.message
        skewed._now_us = real_us
        with caplog.at_level(logging.INFO):
            await skewed.look()
        assert "agrees" in caplog.text
    assert rows(database, "SELECT value FROM server_settings WHERE name = 'clock_skew_s'") == [("0",)]


async def test_pruning_goes_in_pieces(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pruning goes in pieces until nothing is left, because one piece a turn would never catch up."""
    monkeypatch.setattr(maintenance, "PRUNE_PIECE_ROWS", 10)
    monkeypatch.setattr(maintenance, "PRUNE_LEDGER", maintenance.PRUNE_LEDGER.replace("20000", "10"))
    monkeypatch.setattr(idempotency, "PRUNE_PIECE_ROWS", 10)
    monkeypatch.setattr(idempotency, "PRUNE", idempotency.PRUNE.replace("20000", "10"))
    execute(database, "INSERT INTO flushes SELECT i, 1, now() - i * interval '1 minute' FROM generate_series(1, 45) i")
    execute(
        database,
        "INSERT INTO idempotency_keys SELECT 'k', i::text, '', '', true, now() - i * interval '1 hour'"
        " FROM generate_series(1, 59) i",
    )
    async with maintaining(database) as pruning:
        await pruning.prune()
        assert rows(database, "SELECT max(flush_id) FROM flushes") == [(9,)]
        assert rows(database, "SELECT count(*) FROM idempotency_keys") == [(23,)]
        monkeypatch.setattr(maintenance, "PRUNE_TURN_S", 0)
        execute(database, "UPDATE flushes SET committed_at = '2000-01-01'")
        await pruning.prune()
        assert rows(database, "SELECT count(*) FROM flushes") == [(9,)]


async def test_senders_without_a_stored_reading_are_pruned(database: str) -> None:
    """Only senders that were long silent and can have no stored reading are deleted."""
    oldest = datetime.now(UTC) - timedelta(days=30)
    execute(
        database,
        "INSERT INTO sources (key_name, client_ip, last_used_on) SELECT 'k', name, current_date - days"
        " FROM (VALUES ('ancient', 40), ('older', 34), ('same', 30), ('young', 0)) s (name, days)",
    )
    execute(database, "INSERT INTO sensors (name) VALUES ('a')")
    execute(database, "INSERT INTO readings VALUES (%s, 1, 1, 3, 20, NULL, NULL)", oldest)
    left = "SELECT client_ip FROM sources ORDER BY id"
    async with maintaining(database, accept_future_minutes=0) as anytime:
        await anytime.prune_sources()
        assert len(rows(database, left)) == 4
    async with maintaining(database) as pruning:
        before = rows(database, "SELECT value FROM server_settings WHERE name = 'names_changed_by'")
        await pruning.prune_sources()
        assert rows(database, left) == [("same",), ("young",)]
        assert rows(database, "SELECT value FROM server_settings WHERE name = 'names_changed_by'") == before
        execute(database, "TRUNCATE readings")
        await pruning.prune_sources()
        assert rows(database, left) == [("young",)]


async def test_chunks_are_dropped_few_at_a_time(database: str, edition: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Old chunks are dropped a few at a time until all are gone, because one statement would take the locks of all."""
    if edition not in {"community", "apache"}:
        pytest.skip("there are no chunks")
    monkeypatch.setattr(retention, "CHUNKS_AT_A_TIME", 3)
    monkeypatch.setattr(retention, "DROP_CHUNKS", retention.DROP_CHUNKS.replace("LIMIT 20", "LIMIT 3"))
    execute(
        database,
        "INSERT INTO readings SELECT now() - i * interval '1 day', 1, i, 1, 20, NULL, NULL"
        " FROM generate_series(0, 10) i",
    )
    opened = Database(database, timezone="UTC", offline_after_s=300)
    try:
        await opened.prepare()
        await retention.delete_old_readings(opened, days=2, has_chunks=True)
    finally:
        await opened.close()
    assert rows(database, "SELECT id FROM readings ORDER BY 1") == [(0,), (1,), (2,)]


async def test_few_of_many_sensors_are_found_stretch_by_stretch(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few of many sensors are found by statements of which none reads all sensors."""
    execute(database, "INSERT INTO sensors (name) SELECT lpad(i::text, 4, '0') FROM generate_series(0, 999) i")
    execute(
        database,
        "INSERT INTO latest_readings (sensor_id, time, id, temperature)"
        " SELECT id, now(), id, 20 FROM sensors WHERE name IN ('0007', '0500', '0999')",
    )
    monkeypatch.setattr(sensors, "LONGEST_STRETCH", 300)
    opened = Database(database, timezone="UTC", offline_after_s=300)
    try:
        await opened.prepare()
        registry = sensors_of(opened)
        online = await registry.page(after="", limit=2, online=True)
        assert [sensor.sensor_id for sensor in online] == ["0007", "0500"]
        online = await registry.page(after="0500", limit=2, online=True)
        assert [sensor.sensor_id for sensor in online] == ["0999"]
        assert [reading.sensor_id for reading in await registry.latest(after="0007", limit=9)] == ["0500", "0999"]
        assert len(await registry.page(after="0900", limit=500, online=None)) == 99
    finally:
        await opened.close()
