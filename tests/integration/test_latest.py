"""The latest readings on real servers: with wrong clocks, many chunks, and in pieces."""

import asyncio
import math
from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from app.errors import DatabaseUnavailable
from app.store import latest
from app.store.database import Database
from app.store.history import latest_reading
from app.store.latest import LatestReadings, LatestRow, recovery_of

NOW = datetime.now(UTC).replace(microsecond=0)
NOW_US = round(NOW.timestamp()) * 1_000_000
YEAR_US = 365 * 86_400_000_000
RELATION_LOCKS = "SELECT count(*) FROM pg_locks WHERE locktype = 'relation' AND pid = pg_backend_pid()"


def noted(sensor_id: int, time_us: int, id_: int) -> LatestRow:
    return LatestRow(sensor_id, time_us, id_, (20.0, None, None))


def rows(url: str, query: str) -> list[tuple[object, ...]]:
    with psycopg.connect(url) as connection:
        return connection.execute(query).fetchall()


def fill(url: str, *, days: int) -> None:
    """Store a reading a day of sensor 1 and the oldest of sensor 2, with two chunks in the columnstore."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("INSERT INTO sensors (name) VALUES ('steady'), ('silent'), ('mute')")
        connection.execute("INSERT INTO sources (key_name, client_ip) VALUES ('k', '192.0.2.1')")
        insert = "INSERT INTO readings VALUES (%s, %s, %s, 1, 20, NULL, NULL)"
        for day in range(days):
            connection.execute(insert, [NOW - timedelta(days=day), 1, 1_000 - day])
        connection.execute(insert, [NOW - timedelta(days=days - 1), 2, 7])


async def test_latest_gives_way_when_ahead(database: str) -> None:
    """A reading stored by a server whose clock was a year ahead does not freeze its sensor."""
    opened = Database(database, timezone="UTC", offline_after_s=300)
    horizon_us = NOW_US + 2 * YEAR_US
    readings = LatestReadings(opened, horizon_us=lambda: horizon_us)
    try:
        await opened.prepare()
        fill(database, days=1)
        for time_us, id_, clock_us, expected in (
            (NOW_US + YEAR_US, 1, NOW_US + YEAR_US, 1),
            (NOW_US - 9, 2, NOW_US, 2),
            (NOW_US - 10, 3, NOW_US, 2),
            (NOW_US + YEAR_US, 4, NOW_US, 2),
            (NOW_US, 5, NOW_US, 5),
        ):
            horizon_us = clock_us
            readings.record([noted(1, time_us, id_)], None)
            await readings.write()
            assert rows(database, "SELECT id FROM latest_readings WHERE sensor_id = 1") == [(expected,)]
    finally:
        await opened.close()


async def test_a_start_does_not_find_what_is_ahead(database: str) -> None:
    opened = Database(database, timezone="UTC", offline_after_s=300)
    try:
        await opened.prepare()
        fill(database, days=3)
        with psycopg.connect(database, autocommit=True) as connection:
            ahead = NOW + timedelta(days=365)
            connection.execute("INSERT INTO readings VALUES (%s, 1, 5000, 1, 99, NULL, NULL)", [ahead])
            connection.execute("INSERT INTO latest_readings (sensor_id, time, id) VALUES (1, %s, 5000)", [ahead])
        readings = LatestReadings(opened, horizon_us=lambda: NOW_US)
        work = asyncio.create_task(readings.run())
        async with asyncio.timeout(20):
            await readings.recovered.wait()
        work.cancel()
        assert rows(database, "SELECT sensor_id, id FROM latest_readings ORDER BY 1") == [(1, 1_000), (2, 7)]
        async with opened.connection(timeout_s=9) as connection_:
            found = await latest_reading(connection_, horizon_us=NOW_US)
            await connection_.execute("DELETE FROM readings WHERE id = 1000")
            next_best = await latest_reading(connection_, horizon_us=NOW_US)
        assert found is not None
        assert (found[0].sensor, found[0].time_us, found[1]) == ("steady", NOW_US, 1_000)
        assert next_best is not None
        assert (next_best[0].sensor, next_best[1]) == ("silent", 7)
    finally:
        await opened.close()


async def test_locks_of_a_start_are_bounded(database: str, edition: str) -> None:
    """A start takes a bounded number of locks and still finds a sensor that was silent for long."""
    opened = Database(database, timezone="UTC", offline_after_s=300)
    readings = LatestReadings(opened)
    try:
        await opened.prepare()
        fill(database, days=60)
        async with opened.connection(timeout_s=60) as connection:
            if edition == "community":
                await connection.execute("SELECT compress_chunk(chunk) FROM show_chunks('readings') chunk")
            spans = await readings.spans(connection)
            assert (spans[0][1], spans[-1][0]) == ("infinity", "-infinity")
            for span in spans:
                async with connection.transaction():
                    await connection.execute(recovery_of(span, 0, 500, math.inf))
                    locks = await (await connection.execute(RELATION_LOCKS)).fetchone()
                assert locks is not None
                assert locks[0] <= 4 * latest.RECOVERY_CHUNKS + 30
            if edition in {"community", "apache"}:
                assert len(spans) >= 60 // latest.RECOVERY_CHUNKS
        assert rows(database, "SELECT sensor_id, id FROM latest_readings ORDER BY 1") == [(1, 1_000), (2, 7)]
    finally:
        await opened.close()


async def test_two_starts_at_once(community_database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """If two starts run at once, one looks up everything, and no reading is left out where they meet."""
    monkeypatch.setattr(latest, "RECOVERY_CHUNKS", 1)
    monkeypatch.setattr(latest, "RECOVERY_SENSORS", 1)
    opened = Database(community_database, timezone="UTC", offline_after_s=300)
    try:
        await opened.prepare()
        fill(community_database, days=5)
        with psycopg.connect(community_database, autocommit=True) as connection:
            connection.execute("INSERT INTO sensors (name) SELECT i::text FROM generate_series(4, 40) i")
            connection.execute("INSERT INTO readings SELECT now(), id, id, 1, 20 FROM sensors WHERE id > 3")
        await asyncio.gather(*(LatestReadings(opened).recover() for _ in range(3)))
        assert rows(community_database, "SELECT count(*) FROM latest_readings") == [(39,)]
    finally:
        await opened.close()


async def test_a_start_that_cannot_look_up_still_writes(database: str) -> None:
    """New commits are written even if earlier ones can't be looked up."""
    opened = Database(database, timezone="UTC", offline_after_s=300)
    readings = LatestReadings(opened)
    try:
        await opened.prepare()
        fill(database, days=1)
        with pytest.MonkeyPatch.context() as patch, psycopg.connect(database) as blocking:
            patch.setattr(latest, "INTERVAL_S", 0.05)
            patch.setattr(latest, "QUERY_TIMEOUT_S", 1.0)
            blocking.execute("LOCK TABLE readings")
            readings.record([noted(1, NOW_US, 9_999)], None)
            work = asyncio.create_task(readings.run())
            async with asyncio.timeout(20):
                while rows(database, "SELECT id FROM latest_readings") != [(9_999,)]:
                    await asyncio.sleep(0.05)
            assert not readings.recovered.is_set()
            blocking.rollback()
            async with asyncio.timeout(20):
                await readings.recovered.wait()
            work.cancel()
    finally:
        await opened.close()


async def test_a_locked_row_holds_up_its_piece_only(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces before a locked row are written, and not tried again."""
    monkeypatch.setattr(latest, "PIECE_ROWS", 10)
    monkeypatch.setattr(latest, "MIN_PIECE_ROWS", 1)
    monkeypatch.setattr(latest, "QUERY_TIMEOUT_S", 1.0)
    opened = Database(database, timezone="UTC", offline_after_s=300)
    readings = LatestReadings(opened)
    try:
        await opened.prepare()
        with psycopg.connect(database, autocommit=True) as connection:
            connection.execute("INSERT INTO sensors (name) SELECT i::text FROM generate_series(1, 30) i")
            connection.execute("INSERT INTO latest_readings (sensor_id, time, id) VALUES (25, '2000-01-01', 1)")
        with psycopg.connect(database) as blocking:
            blocking.execute("SELECT FROM latest_readings WHERE sensor_id = 25 FOR UPDATE")
            readings.record([noted(sensor, NOW_US, sensor) for sensor in range(1, 31)], None)
            for written in (20, 20, 24, 24):
                with pytest.raises(DatabaseUnavailable):
                    await readings.write()
                assert rows(database, f"SELECT count(*) FROM latest_readings WHERE time = '{NOW}'") == [(written,)]
        await readings.write()
        assert rows(database, f"SELECT count(*) FROM latest_readings WHERE time = '{NOW}'") == [(30,)]
    finally:
        await opened.close()
