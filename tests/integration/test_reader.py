"""The role that may only read, and its password."""

import asyncio
from collections.abc import Iterator

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from app.errors import ConfigurationError
from app.store.database import Database, migrate

PASSWORD = 'it\'s "ü" \\ $$'


async def prepare(url: str, password: str) -> None:
    database = Database(url, timezone="UTC", offline_after_s=300, reader_password=password)
    try:
        await database.prepare()
    finally:
        await database.close()


@pytest.fixture
def url_of_a_plain_role(embedded_database_url: str) -> Iterator[str]:
    """A database whose owner may make no roles."""
    migrate(embedded_database_url)
    with psycopg.connect(embedded_database_url, autocommit=True) as connection:
        connection.execute("CREATE ROLE plain LOGIN")
        connection.execute("GRANT ALL ON ALL TABLES IN SCHEMA public TO plain")
        yield make_conninfo(embedded_database_url, user="plain")
        connection.execute("DROP OWNED BY plain")
        connection.execute("DROP ROLE plain")


async def test_many_processes_may_let_the_reader_in_at_once(embedded_database_url: str) -> None:
    await asyncio.gather(*(prepare(embedded_database_url, PASSWORD) for _ in range(6)))
    with psycopg.connect(embedded_database_url) as connection:
        found = connection.execute(
            "SELECT rolcanlogin, rolpassword LIKE 'SCRAM-SHA-256$%' FROM pg_authid WHERE rolname = 'sensorflow_reader'"
        ).fetchall()
    assert found == [(True, True)]


async def test_a_password_that_can_not_be_given_ends_the_start_in_words(url_of_a_plain_role: str) -> None:
    """Tried again and again it would refuse readings for ever."""
    with pytest.raises(ConfigurationError, match="READER_PASSWORD is set, but"):
        await prepare(url_of_a_plain_role, PASSWORD)
