"""The server behind a PgBouncer in transaction mode, and starts that find the lock of migrations taken."""

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

import httpx
import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from app.store.locks import MIGRATION_LOCK
from tests.support.pgbouncer import pgbouncer
from tests.support.server import API_KEY, Server, eventually, running, starting

SENDERS = 8
REQUESTS = 40


@pytest.fixture
def pooled_database(empty_database: str) -> Iterator[str]:
    """Make a new database behind a PgBouncer."""
    with pgbouncer(empty_database) as url:
        yield url


def rows(url: str, query: str) -> list[tuple[object, ...]]:
    with psycopg.connect(url) as connection:
        return connection.execute(query).fetchall()


def test_transaction_mode(pooled_database: str, empty_database: str, tmp_path: Path) -> None:
    """Every request is answered well and once, two starts in a row take readings, and no lock stays in the pool."""

    def send(server: Server, start: int, sender: int) -> list[int]:
        with httpx.Client(base_url=server.url, headers={"X-API-Key": API_KEY}, timeout=15) as client:
            statuses = []
            for number in range(REQUESTS):
                key = {"Idempotency-Key": f"{start}-{sender}-{number}"}
                body = {"sensor_id": f"sensor {start} {number % 13}", "temperature": 1, "humidity": 2, "pressure": 3}
                statuses.append(client.post("/api/temperature_reading", json=body, headers=key).status_code)
                statuses.append(client.post("/api/readings", json=[body] * 20, headers=key).status_code)
                statuses.append(client.get("/api/sensors", params={"limit": 5}).status_code)
                statuses.append(client.get("/ready").status_code)
            return statuses

    statuses: list[int] = []
    for start in range(2):
        with running(tmp_path, DATABASE_URL=pooled_database, READER_PASSWORD="for-grafana") as server:
            with ThreadPoolExecutor(SENDERS) as pool:
                for answered in pool.map(partial(send, server, start), range(SENDERS)):
                    statuses += answered
            assert any("connected through a pooler" in line for line in server.messages)
    assert {status: statuses.count(status) for status in set(statuses)} == {
        201: 2 * SENDERS * REQUESTS,
        409: 2 * SENDERS * REQUESTS,
        200: 4 * SENDERS * REQUESTS,
    }
    assert rows(empty_database, "SELECT count(*) FROM readings") == [(2 * SENDERS * REQUESTS,)]
    assert rows(empty_database, "SELECT pid FROM pg_locks WHERE locktype = 'advisory'") == []
    assert rows(pooled_database, "SELECT name FROM pg_prepared_statements") == []


def test_settings_that_a_pooler_parts(pooled_database: str, empty_database: str, tmp_path: Path) -> None:
    """If no session can set a setting behind a pooler, the start ends with the command to run. After that command the
    server works.
    """
    parameters = conninfo_to_dict(empty_database)
    database, user = (sql.Identifier(str(parameters[name])) for name in ("dbname", "user"))
    with psycopg.connect(empty_database, autocommit=True) as connection:
        for setting in ("DateStyle TO 'SQL, DMY'", "extra_float_digits = 0"):
            connection.execute(sql.SQL("ALTER DATABASE {} SET {}").format(database, sql.SQL(setting)))
        connection.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        with suppress(psycopg.OperationalError):  # which it learns by using them
            rows(pooled_database, "SELECT 1")
        with starting(tmp_path, DATABASE_URL=pooled_database) as server:
            assert server.wait() == 1
        command = re.search(r"ALTER ROLE .*? SET extra_float_digits = '1'", server.log)
        assert command, server.log
        assert "DateStyle" not in command[0]
        connection.execute(command[0].replace('\\"', '"').encode())
        connection.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        try:
            with running(tmp_path, DATABASE_URL=pooled_database) as server:
                sent = {"sensor_id": "a", "temperature": 794.8000000000001, "humidity": 2, "pressure": 3}
                with httpx.Client(base_url=server.url, headers={"X-API-Key": API_KEY}) as client:
                    assert client.post("/api/temperature_reading", json=sent).status_code == 201
                    eventually(lambda: client.get("/api/latest").json()["readings"] != [])
                    assert client.get("/api/latest").json()["readings"][0]["temperature"] == 794.8000000000001
        finally:
            connection.execute(sql.SQL("ALTER ROLE {} IN DATABASE {} RESET ALL").format(user, database))


def test_start_waits_for_a_migration(embedded_database_url: str, tmp_path: Path) -> None:
    """A start that waits for the lock of migrations names its holder, and ends on SIGTERM."""
    with psycopg.connect(embedded_database_url, application_name="another migration") as holder:
        holder.execute("SELECT pg_advisory_lock(%s)", [MIGRATION_LOCK])
        with starting(tmp_path, DATABASE_URL=embedded_database_url) as server:
            said = f"another migration, process {holder.info.backend_pid}"
            eventually(lambda: any(said in message for message in server.messages))
            assert server.stop() == 0
