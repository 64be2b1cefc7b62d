"""The read-only role and its password."""

import asyncio
from collections.abc import Iterator

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from app.errors import ConfigurationError
from app.store.database import READER, Database, migrate
from tests.support.databases import new_database

PASSWORD = 'it\'s "ü" \\ $$'


async def prepare(url: str, password: str, role: str = READER) -> None:
    database = Database(url, timezone="UTC", offline_after_s=300, reader_password=password, reader_role=role)
    try:
        await database.prepare()
    finally:
        await database.close()


@pytest.fixture
def url_of_a_plain_role(embedded_database_url: str) -> Iterator[str]:
    """Return a database whose owner may create no roles."""
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
    """The start ends with the reason, because with retries the server would never accept readings."""
    with pytest.raises(ConfigurationError, match="can't give READER_PASSWORD to the role"):
        await prepare(url_of_a_plain_role, PASSWORD)


def role(url: str, name: str) -> tuple[object, ...] | None:
    with psycopg.connect(url) as connection:
        return connection.execute(
            "SELECT a.rolcanlogin, a.rolpassword, r.rolconfig FROM pg_authid a JOIN pg_roles r USING (oid)"
            " WHERE a.rolname = %s",
            [name],
        ).fetchone()


READABLE = """
SELECT relname FROM pg_class
WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'v', 'p') AND has_table_privilege(%s, oid, 'SELECT')
"""


async def test_two_installations(
    embedded_admin_url: str, embedded_database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The second installation on a server leaves the first one's reader alone, says so, and may have a reader of its
    own.
    """
    with new_database(embedded_admin_url) as second:
        await prepare(embedded_database_url, "first")
        before = role(second, READER)
        await prepare(second, "second")
        assert role(second, READER) == before
        assert "set READER_ROLE" in caplog.text
        await prepare(embedded_database_url, "changed")
        assert role(second, READER) != before
        try:
            for _ in range(2):
                await prepare(second, "second", "second_reader")
            login, password, configuration = role(second, "second_reader") or (None, None, [])
            assert login
            assert str(password).startswith("SCRAM-SHA-256$")
            assert configuration == ["default_transaction_read_only=on", "statement_timeout=30s", "jit=off"]
            with psycopg.connect(second) as connection:
                of_both = [set(connection.execute(READABLE, [name])) for name in (READER, "second_reader")]
            assert of_both[0] == of_both[1] > {("readings",), ("data",), ("readings_1d",)}
            with psycopg.connect(embedded_database_url) as connection:
                assert set(connection.execute(READABLE, ["second_reader"])) == set()
        finally:
            with psycopg.connect(second, autocommit=True) as connection:
                connection.execute("DROP OWNED BY second_reader; DROP ROLE second_reader")


async def test_mark_of_a_database_that_is_gone(embedded_admin_url: str, embedded_database_url: str) -> None:
    """The role of an installation whose database was dropped is free."""
    with new_database(embedded_admin_url) as gone:
        await prepare(gone, "gone")
        before = role(gone, READER)
    await prepare(embedded_database_url, "here")
    assert role(embedded_database_url, READER) != before


@pytest.mark.parametrize("of_extension", ["tools", "one", "public"])
async def test_two_schemas_in_one_database(
    edition_and_admin_url: tuple[str, str], empty_database: str, of_extension: str
) -> None:
    """Two installations in two schemas keep apart, wherever the extension is, and each has its reader."""
    edition, _ = edition_and_admin_url
    with psycopg.connect(empty_database, autocommit=True) as connection:
        connection.execute("CREATE SCHEMA tools; CREATE SCHEMA one; CREATE SCHEMA two")
        if edition != "embedded":
            connection.execute(f"CREATE EXTENSION timescaledb SCHEMA {of_extension}")
        if of_extension == "public":
            migrate(empty_database)
        try:
            for schema in ("one", "two"):
                url = make_conninfo(empty_database, options=f"-c search_path={schema}")
                for _ in range(2):
                    await prepare(url, schema, f"reader_{schema}")
                connection.execute(f"INSERT INTO {schema}.sensors (name) VALUES ('{schema}')")
                connection.execute(
                    f"INSERT INTO {schema}.readings (time, sensor_id, id, source_id, temperature)"
                    " VALUES ('2026-01-01 00:00Z', 1, 1, 1, 20)"
                )
            for schema in ("one", "two"):
                reader = make_conninfo(empty_database, user=f"reader_{schema}")
                with psycopg.connect(reader) as as_reader:
                    assert as_reader.execute("SELECT sensor_id FROM data").fetchall() == [(schema,)]
                    assert as_reader.execute("SELECT count(*), sum(count) FROM readings_1d").fetchall() == [(1, 1)]
                    assert as_reader.execute("SELECT count(*) FROM table_sizes").fetchall() > [(0,)]
        finally:
            for schema in ("one", "two"):
                migrate(make_conninfo(empty_database, options=f"-c search_path={schema}"), "base", down=True)
                connection.execute(f"DROP OWNED BY reader_{schema}; DROP ROLE reader_{schema}")
