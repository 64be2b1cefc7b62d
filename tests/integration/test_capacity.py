"""The connections and locks that PostgreSQL has room for, on real servers."""

import logging
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from app.store import capacity
from app.store.database import Database
from tests.support.server import COMMAND_TIMEOUT_S, running, starting

LIMIT = 9


@pytest.fixture
def limited_url(embedded_database_url: str) -> Iterator[str]:
    """Return a database whose owner may have LIMIT connections."""
    name = conninfo_to_dict(embedded_database_url)["dbname"]
    with psycopg.connect(embedded_database_url, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE limited LOGIN CREATEROLE CONNECTION LIMIT {LIMIT}")
        connection.execute(f"ALTER DATABASE {name} OWNER TO limited")
        connection.execute("GRANT ALL ON SCHEMA public TO limited")
        yield make_conninfo(embedded_database_url, user="limited")
        connection.execute("REASSIGN OWNED BY limited TO CURRENT_USER")
        connection.execute("DROP OWNED BY limited")
        connection.execute("DROP ROLE limited")


def test_too_many_workers_end_the_start(limited_url: str, tmp_path: Path) -> None:
    """In words, and before they take the connections of others."""
    with starting(tmp_path, DATABASE_URL=limited_url, WORKERS="3") as server:
        server.process.wait(COMMAND_TIMEOUT_S)  # a busy machine takes its time to start three
        assert server.wait() == 1
    assert "WORKERS = 3 needs 12 connections" in server.log
    assert "Set WORKERS to 2 at most" in server.log
    assert "Traceback" not in server.log


def test_pools_share_what_there_is(limited_url: str, tmp_path: Path) -> None:
    """Pools share the connections that there are, and the log says that they are smaller."""
    with running(tmp_path, DATABASE_URL=limited_url, WORKERS="2") as server:
        assert any("pool has 2 connections instead of 4" in message for message in server.messages), server.log


async def test_too_few_locks_are_told(
    community_database: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the setting that would be enough."""
    with psycopg.connect(community_database) as connection:
        connection.execute(
            "INSERT INTO readings SELECT '2026-01-01'::timestamptz + i * interval '1 day', 1, i, 1, 20, NULL, NULL"
            " FROM generate_series(1, 5) i"
        )
    database = Database(community_database, timezone="UTC", offline_after_s=300)
    try:
        await database.prepare()
        with caplog.at_level(logging.WARNING):
            await capacity.fit(database, workers=1)
            assert "locks" not in caplog.text
            monkeypatch.setattr(capacity, "LOCKS_OF_A_CHUNK", 4 * 365)
            await capacity.fit(database, workers=1)
        assert "all 5 chunks of readings takes 7300 locks" in caplog.text
        assert "Set max_locks_per_transaction to 256 (now 64)" in caplog.text
    finally:
        await database.close()
