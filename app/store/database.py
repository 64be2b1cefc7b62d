"""Connections to PostgreSQL, what kind of server answers, and driver errors as our own.

Migrations run here too, when the server starts, each process under the same advisory lock.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psycopg
import sqlalchemy
from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from app.errors import ConfigurationError, DatabaseAway
from app.store.locks import MIGRATION_LOCK

logger = logging.getLogger(__name__)

Connection = psycopg.AsyncConnection[tuple[Any, ...]]

ALEMBIC_INI = Path(__file__).resolve().parents[2] / "alembic.ini"

CONNECT_TIMEOUT_S = 5
MIGRATION_LOCK_TIMEOUT = "10s"
"""How long a migration waits for a lock at most before it begins anew: a stopping server waits for it."""
POOL_MAX_SIZE = 4
READERS_SHARE = 2
"""So many of the pool's connections may be with those who read back: flushes need names and claims meanwhile."""


def connection_arguments(application_name: str) -> dict[str, Any]:
    """Arguments for psycopg.connect: a dead peer is noticed within seconds, also while nothing is sent."""
    return {
        "application_name": application_name,
        "connect_timeout": CONNECT_TIMEOUT_S,
        "keepalives_idle": 5,
        "keepalives_interval": 2,
        "keepalives_count": 3,
        "tcp_user_timeout": 10_000,
    }


def checked_url(url: str) -> str:
    """The connection string, if it is one.

    Raises:
        ConfigurationError: it is not; the message does not show it, since it holds a password.
    """
    try:
        conninfo_to_dict(url)
    except psycopg.ProgrammingError:
        raise ConfigurationError(
            "DATABASE_URL is not a connection string like postgresql://user:password@host:5432/database"
        ) from None
    return url


@contextmanager
def own_errors() -> Iterator[None]:
    """Driver errors inside become DatabaseAway."""
    try:
        yield
    except (psycopg.Error, PoolTimeout, OSError) as error:
        raise DatabaseAway(first_line(error)) from error


def first_line(error: Exception) -> str:
    """An error in one line, for a log."""
    line = str(error).strip().split("\n", 1)[0] or type(error).__name__
    return f"disk full: {line}" if isinstance(error, psycopg.errors.DiskFull) else line


@dataclass(frozen=True, slots=True)
class Edition:
    """What kind of database answers, and whether its commits outlive a crash."""

    kind: Literal["community", "apache", "plain"]
    postgres_version: str
    timescaledb_version: str | None
    direct_compress: bool
    """Whether COPY can write straight to the columnstore: Community, from 2.21 on."""
    continuous_aggregates: bool
    """Whether there are such: the licence may have become Community's after the schema was made."""
    weak_durability: tuple[str, ...]
    """Those of fsync, synchronous_commit and full_page_writes that are off: a crash may lose what was committed."""

    def __str__(self) -> str:
        name = {"community": "Community", "apache": "Apache"}.get(self.kind)
        timescaledb = f"TimescaleDB {self.timescaledb_version} {name} on " if name else ""
        return f"{timescaledb}PostgreSQL {self.postgres_version}"


EDITION = """
SELECT split_part(current_setting('server_version'), ' ', 1),
       (SELECT extversion FROM pg_extension WHERE extname = 'timescaledb'),
       current_setting('timescaledb.license', true),
       current_setting('timescaledb.enable_direct_compress_copy', true) IS NOT NULL,
       current_setting('fsync'), current_setting('synchronous_commit'), current_setting('full_page_writes')
"""
HYPERTABLE = """
SELECT compression_enabled FROM timescaledb_information.hypertables
WHERE hypertable_schema = current_schema AND hypertable_name = 'readings'
"""
HAS_CONTINUOUS_AGGREGATES = """
SELECT EXISTS (
    SELECT FROM timescaledb_information.continuous_aggregates
    WHERE view_schema = current_schema AND view_name = 'readings_1m'
)
"""
TIMESCALEDB_IS_LOADED = "SELECT EXISTS (SELECT FROM pg_settings WHERE name LIKE 'timescaledb%')"
CREATE_EXTENSION = "CREATE EXTENSION IF NOT EXISTS timescaledb"
SET_FOR_VIEWS = """
INSERT INTO server_settings (name, value) VALUES ('timezone', %s), ('offline_after_s', %s)
ON CONFLICT (name) DO UPDATE SET value = excluded.value WHERE server_settings.value <> excluded.value
"""
RESTORE_SETTINGS = """
INSERT INTO server_settings (name, value)
VALUES ('timezone', %s), ('offline_after_s', %s), ('aggregates_refreshed_until', now()::text)
ON CONFLICT DO NOTHING
"""
READER = "sensorflow_reader"


def migrate(url: str, revision: str = "head", *, down: bool = False) -> None:
    """Brings the schema to a revision; waits for another process that is at it.

    Raises:
        DatabaseAway: the database can't be reached or does not let us.
        ConfigurationError: its schema is of another, newer version of the server.
    """
    with own_errors(), _connect_to_migrate(url, autocommit=True) as connection:
        connection.execute("SELECT pg_advisory_lock(%s)", [MIGRATION_LOCK])
        if not down:
            _create_extension(connection)
        engine = sqlalchemy.create_engine(
            "postgresql+psycopg://",
            creator=lambda: _connect_to_migrate(url, autocommit=False),
            poolclass=sqlalchemy.NullPool,
        )
        config = Config(ALEMBIC_INI)
        try:
            with engine.connect() as alembic_connection:
                config.attributes["connection"] = alembic_connection
                (command.downgrade if down else command.upgrade)(config, revision)
        except CommandError as error:
            raise ConfigurationError(
                f"The database's schema does not fit this version of the server: {error}"
            ) from error
        except sqlalchemy.exc.DBAPIError as error:
            raise DatabaseAway(f"migration failed: {first_line(error.orig or error)}") from error


def _connect_to_migrate(url: str, *, autocommit: bool) -> psycopg.Connection:
    connection = psycopg.connect(url, autocommit=True, **connection_arguments("sensorflow migrate"))
    # A statement and not a start-up option, which would take the place of the URL's own and which poolers refuse.
    connection.execute(f"SET lock_timeout TO '{MIGRATION_LOCK_TIMEOUT}'")
    connection.autocommit = autocommit
    return connection


def _create_extension(connection: psycopg.Connection) -> None:
    """TimescaleDB, where the server has loaded it. Where it hasn't, CREATE EXTENSION would end the connection."""
    row = connection.execute(TIMESCALEDB_IS_LOADED).fetchone()
    if row and row[0]:
        try:
            connection.execute(CREATE_EXTENSION)
        except psycopg.Error as error:
            logger.warning("TimescaleDB is loaded but can't be used in this database: %s", first_line(error))


class Database:
    """The database at a connection string: opened once, reached again whenever it comes back.

    Args:
        url: a PostgreSQL connection string.
        timezone: IANA name of the zone in which the view ``data`` gives its dates and times.
        offline_after_s: after how long a sensor without an expected interval is offline in the view ``sensor_status``.
        reader_password: lets the role that may only read log in; None: it is left as it is.
    """

    def __init__(self, url: str, *, timezone: str, offline_after_s: float, reader_password: str | None = None) -> None:
        self._url = url
        self._for_views = [timezone, str(offline_after_s)]
        self._reader_password = reader_password
        self._pool: AsyncConnectionPool[Connection] = AsyncConnectionPool(
            url,
            kwargs={"autocommit": True, **connection_arguments("sensorflow reads")},
            min_size=1,
            max_size=POOL_MAX_SIZE,
            open=False,
        )
        self._readers = asyncio.Semaphore(READERS_SHARE)
        self.edition: Edition | None = None
        """What answered when the schema was prepared; None until then."""

    async def prepare(self) -> Edition:
        """Migrates, probes, and opens the pool.

        Raises:
            DatabaseAway: not now; it may be called again.
            ConfigurationError: something has to be changed first; the message says what.
        """
        await asyncio.to_thread(migrate, self._url)
        connection = await self.connect("sensorflow start")
        async with connection:
            with own_errors():
                await connection.execute(SET_FOR_VIEWS, self._for_views)
                if self._reader_password is not None:
                    await _let_reader_in(connection, self._reader_password)
                self.edition = await _probe(connection)
        await self._pool.open()
        return self.edition

    async def restore_settings(self, connection: Connection) -> None:
        """Adds the rows of ``server_settings`` that views need and somebody has deleted. Raises what the driver
        raises.
        """
        await connection.execute(RESTORE_SETTINGS, self._for_views)

    async def connect(self, application_name: str) -> Connection:
        """A connection of the caller's own, in autocommit. Raises DatabaseAway."""
        with own_errors():
            return await psycopg.AsyncConnection.connect(
                self._url, autocommit=True, **connection_arguments(application_name)
            )

    @asynccontextmanager
    async def borrow(self, *, timeout_s: float) -> AsyncIterator[Connection]:
        """A pooled connection for a read. Driver errors inside, and a pool that has none in time, are DatabaseAway."""
        with own_errors():
            async with asyncio.timeout(timeout_s), self._pool.connection(timeout_s) as connection:
                yield connection

    @asynccontextmanager
    async def borrow_in_turn(self, *, timeout_s: float) -> AsyncIterator[Connection]:
        """Borrows for a reader, as soon as it is their turn. Raises DatabaseAway, in words for them."""
        try:
            with own_errors():
                async with (
                    asyncio.timeout(timeout_s),
                    self._readers,
                    self._pool.connection(CONNECT_TIMEOUT_S) as connection,
                ):
                    yield connection
        except DatabaseAway as error:
            logger.warning("the database can't be read: %s", error)
            raise DatabaseAway("The database can't be read at the moment.") from error

    async def resize(self, pool_size: int) -> None:
        """Bounds the pool, of which readers may have half."""
        await self._pool.resize(1, pool_size)
        self._readers = asyncio.Semaphore(max(1, pool_size * READERS_SHARE // POOL_MAX_SIZE))

    def pool_stats(self) -> dict[str, int]:
        """The pool's own counters, by the names that psycopg_pool gives them."""
        return self._pool.get_stats()

    async def close(self) -> None:
        """Closes the pool; connections of callers' own are theirs to close."""
        await self._pool.close(timeout=2)


async def _let_reader_in(connection: Connection, password: str) -> None:
    """Gives the reader its password, hashed here, so that no log of PostgreSQL's can hold it."""
    hashed = connection.pgconn.encrypt_password(password.encode(), READER.encode(), b"scram-sha-256").decode()
    try:
        # Of two that alter a role at once PostgreSQL refuses one.
        async with connection.transaction():
            await connection.execute("SELECT pg_advisory_xact_lock(%s)", [MIGRATION_LOCK])
            await connection.execute(sql.SQL("ALTER ROLE {} LOGIN PASSWORD {}").format(sql.Identifier(READER), hashed))
    except (psycopg.errors.UndefinedObject, psycopg.errors.InsufficientPrivilege) as error:
        raise ConfigurationError(
            f"READER_PASSWORD is set, but the account in DATABASE_URL can't give it to the role {READER} "
            f"({first_line(error)}). Unset it, and let one that may make the role, give it a password, and grant it "
            "USAGE of the schema and SELECT on what it is to read"
        ) from error


async def _probe(connection: Connection) -> Edition:
    row = await (await connection.execute(EDITION)).fetchone()
    assert row is not None  # a SELECT without FROM has one row
    postgres, timescaledb, license_, direct_compress, *durability = row
    hypertable = continuous = None
    if timescaledb is not None:
        hypertable = await (await connection.execute(HYPERTABLE)).fetchone()
        continuous = await (await connection.execute(HAS_CONTINUOUS_AGGREGATES)).fetchone()
        if hypertable is None:
            logger.warning(
                "TimescaleDB is there, but readings is a plain table: the schema was made without the extension, or "
                "restored from a dump of plain PostgreSQL. It is used as one; `python -m app move --from URL` copies "
                "all of it into a new database, where it is a hypertable."
            )
    if continuous == (True,) and not direct_compress:  # which came with the refresh that the aggregates need
        raise ConfigurationError(f"TimescaleDB {timescaledb} is too old: update it to 2.21 or newer")
    names = ("fsync", "synchronous_commit", "full_page_writes")
    return Edition(
        kind="plain" if hypertable is None else "community" if license_ == "timescale" else "apache",
        postgres_version=postgres,
        timescaledb_version=timescaledb,
        direct_compress=direct_compress and license_ == "timescale" and hypertable == (True,),
        continuous_aggregates=license_ == "timescale" and continuous == (True,),
        weak_durability=tuple(name for name, value in zip(names, durability, strict=True) if value == "off"),
    )
