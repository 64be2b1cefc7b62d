"""One of the servers on a database maintains it, and another takes over when it is killed."""

import signal
import time
from pathlib import Path

import psycopg

from app.store.locks import MAINTENANCE_LOCK
from tests.support.server import Server, eventually, running

HOLDERS = f"""
SELECT count(*) FROM pg_locks
WHERE locktype = 'advisory' AND objid = {MAINTENANCE_LOCK} AND granted
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""
RUNS = "SELECT coalesce(sum(runs), 0) FROM maintenance"
TAKEOVER_S = 10


def number(url: str, query: str) -> int:
    with psycopg.connect(url) as connection:
        row = connection.execute(query).fetchone()
    assert row
    return int(row[0])


def terms(server: Server) -> int:
    """Return how often processes of a server have been elected."""
    return server.messages.count("this process maintains the database")


def test_another_server_takes_over_from_one_that_is_killed(embedded_database_url: str, tmp_path: Path) -> None:
    """Exactly one of two servers maintains the database, and the other does ten seconds after it is killed."""
    folders = [tmp_path / name for name in "ab"]
    for folder in folders:
        folder.mkdir()
    with (
        running(folders[0], DATABASE_URL=embedded_database_url, WORKERS="2") as first,
        running(folders[1], DATABASE_URL=embedded_database_url) as second,
    ):
        eventually(lambda: number(embedded_database_url, RUNS) > 0, timeout_s=90)
        for _ in range(20):
            assert number(embedded_database_url, HOLDERS) == 1
            assert (terms(first), terms(second)) == (1, 0)
            time.sleep(0.3)
        first.stop(signal.SIGKILL)
        killed_at = time.monotonic()
        eventually(lambda: terms(second) == 1, timeout_s=TAKEOVER_S)
        assert time.monotonic() - killed_at < TAKEOVER_S
        assert number(embedded_database_url, HOLDERS) == 1


def test_a_server_that_stands_still_loses_its_term(embedded_database_url: str, tmp_path: Path) -> None:
    """PostgreSQL ends the session of a maintaining process that is not heard of, and another server takes over."""
    folders = [tmp_path / name for name in "ab"]
    for folder in folders:
        folder.mkdir()
    with (
        running(folders[0], DATABASE_URL=embedded_database_url) as first,
        running(folders[1], DATABASE_URL=embedded_database_url) as second,
    ):
        eventually(lambda: terms(first) == 1)
        first.process.send_signal(signal.SIGSTOP)
        try:
            eventually(lambda: terms(second) == 1, timeout_s=60)
        finally:
            first.process.send_signal(signal.SIGCONT)
        assert number(embedded_database_url, HOLDERS) == 1
