"""Connections to PostgreSQL, what kind of server answers, and driver errors as our own.

A connection is inspected when it is made (``app.store.session``), and once more before anything is written over it:
whether the schema that it leads to is whole. What it finds may be another server than before, or one being restored.
"""

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psycopg
import sqlalchemy
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from app.errors import ConfigurationError, DatabaseUnavailable
from app.store.locks import MIGRATION_LOCK
from app.store.session import INSPECT, INSPECT_ARGUMENTS, PIN, inspected

logger = logging.getLogger(__name__)

Connection = psycopg.AsyncConnection[tuple[Any, ...]]

ALEMBIC_INI = Path(__file__).resolve().parents[2] / "alembic.ini"

CONNECT_TIMEOUT_S = 5
MIGRATION_LOCK_TIMEOUT = "10s"
"""How long a migration waits for a table's lock at most before it begins anew: a stopping server waits for it."""
MIGRATION_WAIT_S = 5.0
"""How long it waits for another process that is migrating; the server then says so, and begins anew."""
MIGRATION_POLL_S = 0.2
POOL_MAX_SIZE = 4
READERS_SHARE = 2
"""So many of the pool's connections may be with those who read back: flushes need names and records meanwhile."""


SCHEME = re.compile(r"^postgres(ql)?(\+\w+)?://")
"""The scheme of a URL; SQLAlchemy's has the driver's name in it."""


def connection_arguments(url: str, application_name: str) -> dict[str, Any]:
    """Arguments for psycopg.connect beside the URL: a dead peer is noticed within seconds, also while nothing is sent,
    text is UTF-8 whatever the role's settings say, and of several hosts the primary is taken.
    """
    target = conninfo_to_dict(url)
    several = "," in str(target.get("host", "")) + str(target.get("hostaddr", ""))
    return {
        "application_name": application_name,
        "client_encoding": "UTF8",
        **({"target_session_attrs": "primary"} if several and "target_session_attrs" not in target else {}),
        "connect_timeout": CONNECT_TIMEOUT_S,
        "keepalives_idle": 5,
        "keepalives_interval": 2,
        "keepalives_count": 3,
        "tcp_user_timeout": 10_000,
    }


def checked_url(url: str) -> str:
    """Return a connection string as libpq reads it. ``postgresql+psycopg://`` is SQLAlchemy's form of the same.

    Raises:
        ConfigurationError: it is not; the message does not show it, since it holds a password.
    """
    url = SCHEME.sub("postgresql://", url.strip(), count=1)
    try:
        conninfo_to_dict(url)
    except psycopg.ProgrammingError:
        raise ConfigurationError(
            "DATABASE_URL is not a connection string like postgresql://user:password@host:5432/database"
        ) from None
    return url


@contextmanager
def translate_driver_errors() -> Iterator[None]:
    """Driver errors inside become DatabaseUnavailable."""
    try:
        yield
    except (psycopg.Error, PoolTimeout, OSError) as error:
        raise away(error) from error


PUBLIC_REASONS = {
    "25006": "The database is read-only.",
    "42501": "The database's account lacks a permission.",
    "42P01": "The database's schema is not there.",
    "3F000": "The database's schema is not there.",
    "53100": "The database's disk is full.",
    "53300": "The database has no connection left.",
    "55P03": "A lock in the database was held for too long.",
    "57014": "The database cancelled a statement.",
}
"""What the public may know of an error, by SQLSTATE. One of a connection that was not made has none."""


def away(error: Exception) -> DatabaseUnavailable:
    """Translate a driver's error into DatabaseUnavailable."""
    sqlstate = error.sqlstate if isinstance(error, psycopg.Error) else None
    if (reason := PUBLIC_REASONS.get(sqlstate or "")) is not None:
        return DatabaseUnavailable(first_line(error), public=reason)
    if isinstance(error, PoolTimeout | TimeoutError):
        return DatabaseUnavailable(first_line(error), public="The database does not answer in time.")
    return DatabaseUnavailable(first_line(error))


def first_line(error: Exception) -> str:
    """Return an error's first line, for a log."""
    line = str(error).strip().split("\n", 1)[0] or type(error).__name__
    return f"disk full: {line}" if isinstance(error, psycopg.errors.DiskFull) else line


@dataclass(frozen=True, slots=True)
class Edition:
    """The kind of database that answers, and whether its commits outlive a crash."""

    kind: Literal["community", "apache", "plain"]
    postgres_version: str
    timescaledb_version: str | None
    direct_compress: bool
    """Whether COPY can write straight to the columnstore: Community, from 2.21 on."""
    continuous_aggregates: bool
    """Whether there are such: the licence may have become Community's after the schema was made."""
    aggregate_tables: bool
    """Whether the aggregates are tables instead."""
    weak_durability: tuple[str, ...]
    """Those of fsync, synchronous_commit and full_page_writes that are off: a crash may lose what was committed."""

    @property
    def has_aggregates(self) -> bool:
        """Whether there are aggregates that the maintenance keeps. Not so if the licence no longer lets it."""
        return self.continuous_aggregates or self.aggregate_tables

    def __str__(self) -> str:
        name = {"community": "Community", "apache": "Apache"}.get(self.kind)
        timescaledb = f"TimescaleDB {self.timescaledb_version} {name} on " if name else ""
        return f"{timescaledb}PostgreSQL {self.postgres_version}"


AGGREGATE_TABLES = "to_regclass(format('%I.aggregates_1m', current_schema)) IS NOT NULL"
"""Whether the schema's aggregates are tables."""
EDITION = f"""
SELECT split_part(current_setting('server_version'), ' ', 1),
       (SELECT extversion FROM pg_extension WHERE extname = 'timescaledb'),
       current_setting('timescaledb.license', true),
       current_setting('timescaledb.enable_direct_compress_copy', true) IS NOT NULL,
       {AGGREGATE_TABLES},
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
TRY_MIGRATION_LOCK = f"SELECT pg_try_advisory_xact_lock({MIGRATION_LOCK})"
WHO_MIGRATES = f"""
SELECT format('%s, process %s%s, %s for %s s', coalesce(nullif(application_name, ''), 'unnamed'), pid,
              ' from ' || client_addr, coalesce(state, 'busy'), extract(epoch FROM now() - state_change)::integer)
FROM pg_locks JOIN pg_stat_activity USING (pid)
WHERE locktype = 'advisory' AND (classid, objid, objsubid) = (0, {MIGRATION_LOCK}, 1) AND granted
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""
HAS_TABLES = """
SELECT to_regclass(format('%I.alembic_version', current_schema)) IS NOT NULL,
       to_regclass(format('%I.readings', current_schema)) IS NOT NULL
"""
REVISION = "SELECT max(version_num) FROM alembic_version"
COLUMNS_OF_TABLE = """
SELECT ARRAY(SELECT attname::text FROM pg_attribute WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped),
       relkind IN ('r', 'p')
FROM pg_class c
WHERE relnamespace = current_schema::regnamespace AND relname = %s AND relkind IN ('r', 'p', 'v', 'm', 'f')
"""
ORIGINAL_METRICS = ("temperature", "humidity", "pressure")
ORIGINAL_COLUMNS = frozenset({"id", *ORIGINAL_METRICS, "date_recorded", "time_recorded", "sensor_id", "client_ip"})
KEPT_ORIGINAL = "data_of_original"
ADOPTION_IS_BEGUN = f"""
SELECT to_regclass(format('%I.{KEPT_ORIGINAL}', current_schema)) IS NULL
    OR EXISTS (SELECT FROM server_settings WHERE name = 'adopted_until_id')
"""
UNIQUE_KEYS: Mapping[str, tuple[str, ...]] = {
    "flushes": ("flush_id",),
    "sensors": ("name", "id"),
    "sources": ("key_name,client_ip", "id"),
    "idempotency_keys": ("key_name,key",),
    "latest_readings": ("sensor_id",),
    "server_settings": ("name",),
}
"""By table, the keys without which a flush could be stored twice, or a name have two ids."""
MISSING_KEYS = """
SELECT format('%%s (%%s)', wanted.relation, wanted.key) FROM unnest(%s::text[], %s::text[]) AS wanted (relation, key)
WHERE NOT EXISTS (
    SELECT FROM pg_index i
    WHERE i.indrelid = to_regclass(format('%%I.%%I', current_schema, wanted.relation))
        AND i.indisunique AND i.indisvalid AND i.indpred IS NULL
        AND wanted.key = (
            SELECT string_agg(a.attname, ',' ORDER BY k.place)
            FROM unnest(i.indkey) WITH ORDINALITY AS k (attnum, place)
            JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
        )
)
"""
MISSING_KEYS_ARGUMENTS = [
    [table for table, keys in UNIQUE_KEYS.items() for _ in keys],
    [key for keys in UNIQUE_KEYS.values() for key in keys],
]
INCOMPLETE = "The database's schema is incomplete."
# To update a row under a condition that does not hold would lock it, and so commit, and wait for a synchronous standby.
SET_FOR_VIEWS = """
INSERT INTO server_settings (name, value)
SELECT name, value FROM (VALUES ('timezone', %s::text), ('offline_after_s', %s::text)) AS wanted (name, value)
WHERE NOT EXISTS (SELECT FROM server_settings s WHERE (s.name, s.value) = (wanted.name, wanted.value))
ON CONFLICT (name) DO UPDATE SET value = excluded.value
"""
RESTORE_SETTINGS = """
INSERT INTO server_settings (name, value)
VALUES ('timezone', %s), ('offline_after_s', %s),
       ('aggregates_refreshed_until', coalesce(
           %s, (SELECT value FROM server_settings WHERE name = 'aggregates_frontier'), now()::text
       )),
       ('aggregates_frontier', now()::text)
ON CONFLICT (name) DO NOTHING
"""
IS_READ_ONLY = "SELECT current_setting('transaction_read_only') = 'on'"
READER = "sensorflow_reader"
"""The role to which migrations grant what may be read."""
FIND_READER = """
SELECT coalesce(shobj_description(oid, 'pg_authid'), '') FROM pg_roles WHERE rolname = %s
"""
# Roles belong to the whole server, and another database's installation may use the same one.
READER_MARK = r"""
SELECT format('SensorFlow: reads schema %%I of database %%s', current_schema, oid), %s <> '' AND EXISTS (
    SELECT FROM pg_database WHERE oid::text = substring(%s FROM '^SensorFlow: reads schema .* of database (\d+)$')
)
FROM pg_database WHERE datname = current_database()
"""
CREATE_READER = """
CREATE ROLE {role} NOLOGIN;
ALTER ROLE {role} SET default_transaction_read_only = on;
ALTER ROLE {role} SET statement_timeout = '30s'
"""
READABLE = """
SELECT relname FROM pg_class c, aclexplode(relacl) AS granted
WHERE relnamespace = current_schema::regnamespace AND granted.privilege_type = 'SELECT'
    AND granted.grantee = (SELECT oid FROM pg_roles WHERE rolname = %s) AND NOT has_table_privilege(%s, c.oid, 'SELECT')
"""


def migrate(url: str, revision: str = "head", *, down: bool = False) -> None:
    """Bring the schema to a revision. Wait for another process that is at it.

    Raises:
        DatabaseUnavailable: the database can't be reached or does not let us, or another process goes on migrating.
        ConfigurationError: its schema is of another, newer version of the server.
    """
    with migrating(url) as connection:
        if not down:
            _create_extension(connection)
            _check_revision(connection)
        engine = sqlalchemy.create_engine(
            "postgresql+psycopg://",
            creator=lambda: connect_to_migrate(url, autocommit=False),
            poolclass=sqlalchemy.NullPool,
        )
        sqlalchemy.event.listen(engine, "begin", _bound_lock_waits)
        config = Config(ALEMBIC_INI)
        try:
            with engine.connect() as alembic_connection:
                config.attributes["connection"] = alembic_connection
                (command.downgrade if down else command.upgrade)(config, revision)
        except CommandError as error:
            raise ConfigurationError(f"Can't migrate to {revision!r}: {error}") from error
        except sqlalchemy.exc.DBAPIError as error:
            cause = error.orig if isinstance(error.orig, Exception) else error
            raise DatabaseUnavailable(f"migration failed: {first_line(cause)}", public=away(cause).public) from error


@contextmanager
def migrating(url: str) -> Iterator[psycopg.Connection]:
    """Yield a connection in autocommit while no other process migrates. Raises DatabaseUnavailable, and what
    ``inspected`` raises.

    The lock is held by a transaction on a connection of its own: a pooler may give a session's lock to the next client.
    """
    with translate_driver_errors(), connect_to_migrate(url, autocommit=False) as guard, guard.transaction():
        deadline = time.monotonic() + MIGRATION_WAIT_S
        said = False
        while guard.execute(TRY_MIGRATION_LOCK).fetchone() != (True,):
            holder = (guard.execute(WHO_MIGRATES).fetchone() or ("already gone",))[0]
            if time.monotonic() > deadline:
                raise DatabaseUnavailable(
                    f"another process is migrating the database ({holder})",
                    public="Another process is migrating the database.",
                )
            if not said:
                said = True
                logger.warning("waiting for another process to finish migrating the database: %s", holder)
            time.sleep(MIGRATION_POLL_S)
        with connect_to_migrate(url, autocommit=True) as connection:
            yield connection


def connect_to_migrate(url: str, *, autocommit: bool) -> psycopg.Connection:
    """Open a connection for long statements. Raises what the driver raises, and what ``inspected`` does."""
    connection = psycopg.connect(url, autocommit=True, **connection_arguments(url, "sensorflow migrate"))
    try:
        row = connection.execute(INSPECT, INSPECT_ARGUMENTS, prepare=False).fetchone()
        assert row is not None  # a SELECT without FROM has one row
        session = inspected(row, backend_pid=connection.info.backend_pid)
        if session.to_pin:
            connection.execute(PIN, session.pin_arguments, prepare=False)
    except BaseException:
        connection.close()
        raise
    connection.prepare_threshold = None
    connection.autocommit = autocommit
    return connection


def _bound_lock_waits(connection: sqlalchemy.Connection) -> None:
    """Let no migration keep others waiting behind it. In its transaction, since a pooler may have parted sessions."""
    connection.exec_driver_sql(f"SET LOCAL lock_timeout TO '{MIGRATION_LOCK_TIMEOUT}'")


def _create_extension(connection: psycopg.Connection) -> None:
    """TimescaleDB, where the server has loaded it. Where it hasn't, CREATE EXTENSION would end the connection."""
    row = connection.execute(TIMESCALEDB_IS_LOADED).fetchone()
    if row and row[0]:
        try:
            connection.execute(CREATE_EXTENSION)
        except psycopg.Error as error:
            logger.warning("TimescaleDB is loaded but can't be used in this database: %s", first_line(error))


def find_original(connection: psycopg.Connection, name: str) -> bool:
    """Return whether there is a table of this name that has the columns of the original SensorFlow's."""
    row = connection.execute(COLUMNS_OF_TABLE, [name]).fetchone()
    return row is not None and set(row[0]) >= ORIGINAL_COLUMNS and bool(row[1])  # ours is a view


def has_aggregate_tables(connection: psycopg.Connection) -> bool:
    """Return whether the schema's aggregates are tables."""
    return connection.execute(f"SELECT {AGGREGATE_TABLES}").fetchone() == (True,)


def has_continuous_aggregates(connection: psycopg.Connection) -> bool:
    """Return whether the schema's aggregates are continuous."""
    row = connection.execute(
        "SELECT to_regclass('timescaledb_information.continuous_aggregates') IS NOT NULL"
    ).fetchone()
    return row == (True,) and connection.execute(HAS_CONTINUOUS_AGGREGATES).fetchone() == (True,)


def _check_names(connection: psycopg.Connection) -> None:
    """Raise ConfigurationError if a schema that is not ours yet has tables where ours will be."""
    if find_original(connection, "data"):
        row = connection.execute("SELECT max(id), min(date_recorded), max(date_recorded) FROM data").fetchone()
        last_id, first, last = row or (None, None, None)
        raise ConfigurationError(
            f"The database belongs to the original SensorFlow: its table data has ids up to {last_id}, from {first} to "
            f"{last}. Stop that server and take its readings over with: python -m app migrate --adopt. "
            f"The table is kept as {KEPT_ORIGINAL}"
        )
    found = [
        name for name in ("data", "sensors", "sources", "flushes", "server_settings") if _is_there(connection, name)
    ]
    if found and not _is_there(connection, "readings"):
        raise ConfigurationError(
            f"The schema has another program's tables under SensorFlow's names: {', '.join(found)}. Make a schema for "
            "SensorFlow alone: CREATE SCHEMA sensorflow, and add ?options=-csearch_path%3Dsensorflow to DATABASE_URL"
        )


def _is_there(connection: psycopg.Connection, name: str) -> bool:
    return connection.execute(COLUMNS_OF_TABLE, [name]).fetchone() is not None


def _check_revision(connection: psycopg.Connection) -> None:
    """Raise ConfigurationError if the schema is newer than this code, DatabaseUnavailable if it is being restored."""
    has_revision, has_readings = connection.execute(HAS_TABLES).fetchone() or (False, False)
    (revision,) = (connection.execute(REVISION).fetchone() if has_revision else None) or (None,)
    if revision is None:
        _check_names(connection)
    scripts = ScriptDirectory.from_config(Config(ALEMBIC_INI))
    if revision is None and has_readings:
        raise DatabaseUnavailable(
            "the schema has its tables but no revision (alembic_version): it was restored in part",
            public=INCOMPLETE,
        )
    if revision is not None and revision not in {script.revision for script in scripts.walk_revisions()}:
        raise ConfigurationError(
            f"The database's schema has revision {revision}, and this version of SensorFlow knows revisions up to "
            f"{scripts.get_current_head()}. A newer version has migrated it: run that version, or go back with it by: "
            f"python -m app migrate --down {scripts.get_current_head()}"
        )


class Database:
    """The database at a connection string: opened once, reached again whenever it comes back.

    Args:
        url: a PostgreSQL connection string.
        timezone: IANA name of the zone in which the view ``data`` gives its dates and times.
        offline_after_s: after how long a sensor without an expected interval is offline in the view ``sensor_status``.
        reader_password: lets the role that may only read log in; None: it is left as it is.
        reader_role: that role.
    """

    def __init__(
        self,
        url: str,
        *,
        timezone: str,
        offline_after_s: float,
        reader_password: str | None = None,
        reader_role: str = READER,
    ) -> None:
        self._url = url
        self._for_views = [timezone, str(offline_after_s)]
        self._reader_password = reader_password
        self._reader_role = reader_role
        self._pool: AsyncConnectionPool[Connection] = AsyncConnectionPool(
            url,
            kwargs={"autocommit": True, **connection_arguments(url, "sensorflow reads")},
            configure=self._inspect,
            min_size=1,
            max_size=POOL_MAX_SIZE,
            open=False,
        )
        self._readers = asyncio.Semaphore(READERS_SHARE)
        self._revision = ScriptDirectory.from_config(Config(ALEMBIC_INI)).get_current_head()
        self.is_pooled = False
        """Whether a pooler stands before it, by the last connection made."""
        self.edition: Edition | None = None
        """What answered when the schema was prepared; None until then."""

    async def prepare(self) -> Edition:
        """Migrates, probes, and opens the pool.

        Raises:
            DatabaseUnavailable: not now; it may be called again.
            ConfigurationError: something has to be changed first; the message says what.
        """
        await asyncio.to_thread(migrate, self._url)
        connection = await self.connect_to_write("sensorflow start")
        async with connection:
            with translate_driver_errors():
                if self._reader_password is not None:
                    await _set_reader_password(connection, self._reader_role, self._reader_password)
                edition = await _probe(connection)
        # Which came with the refresh that the aggregates need.
        if edition.continuous_aggregates and not edition.direct_compress:
            raise ConfigurationError(
                f"TimescaleDB {edition.timescaledb_version} is too old: update it to 2.21 or newer"
            )
        if edition.kind == "plain" and edition.timescaledb_version is not None:
            logger.warning(
                "TimescaleDB is installed, but readings is a plain table: the schema was made without the extension, "
                "or restored from a dump of plain PostgreSQL. It is used as a plain table. To make it a hypertable, "
                "copy everything into a new database: python -m app move --from URL"
            )
        self.edition = edition
        await self._pool.open()
        return edition

    async def restore_settings(self, connection: Connection) -> None:
        """Add the rows of ``server_settings`` that views need and that were deleted. Raises what the driver
        raises.
        """
        # A later time than was true would hide the readings that are in no table yet. TimescaleDB has its own record.
        is_unknown = self.edition is not None and self.edition.aggregate_tables
        await connection.execute(RESTORE_SETTINGS, [*self._for_views, "-infinity" if is_unknown else None])

    async def connect(self, application_name: str) -> Connection:
        """Open a connection of the caller's own, in autocommit. Raises DatabaseUnavailable and, before ``prepare`` has
        succeeded, ConfigurationError.
        """
        with translate_driver_errors():
            connection = await psycopg.AsyncConnection.connect(
                self._url, autocommit=True, **connection_arguments(self._url, application_name)
            )
            await self._inspect(connection)
            return connection

    async def connect_to_write(self, application_name: str) -> Connection:
        """Connect as ``connect`` does, to a schema that is whole and of this version: another server may have taken
        over, or a restore be under way.
        """
        connection = await self.connect(application_name)
        try:
            with translate_driver_errors():
                await self.check_schema(connection)
                await connection.execute(SET_FOR_VIEWS, self._for_views)
        except BaseException:
            await connection.close()
            raise
        return connection

    async def _inspect(self, connection: Connection) -> None:
        """Make a new connection fit for use, or close it and say why it can't be."""
        try:
            row = await (await connection.execute(INSPECT, INSPECT_ARGUMENTS, prepare=False)).fetchone()
            assert row is not None  # a SELECT without FROM has one row
            session = inspected(row, backend_pid=connection.info.backend_pid)
            if session.to_pin:
                await connection.execute(PIN, session.pin_arguments, prepare=False)
        except BaseException as error:
            await connection.close()
            if isinstance(error, ConfigurationError) and self.edition is not None:
                raise DatabaseUnavailable(str(error)) from error  # a running server continues, and tries again
            raise
        if session.is_pooled:
            connection.prepare_threshold = None
            if not self.is_pooled:
                logger.info("connected through a pooler: statements are not prepared")
        self.is_pooled = session.is_pooled

    async def check_schema(self, connection: Connection) -> None:
        """Raise DatabaseUnavailable unless all that keeps flushes apart is there."""
        row = await (await connection.execute(REVISION)).fetchone()
        assert row is not None  # a SELECT without FROM has one row
        if row[0] != self._revision:
            raise DatabaseUnavailable(
                f"the schema has revision {row[0]} and needs {self._revision}: run python -m app migrate, or restart "
                "the server",
                public=INCOMPLETE,
            )
        # Adopted rows keep their ids, so adoption must set the sequence before a server draws from it.
        if await (await connection.execute(ADOPTION_IS_BEGUN)).fetchone() == (False,):
            error = ConfigurationError if self.edition is None else DatabaseUnavailable  # a running server continues
            raise error(
                f"The original's readings in {KEPT_ORIGINAL} are not taken over yet: run python -m app migrate --adopt"
            )
        missing = await (await connection.execute(MISSING_KEYS, MISSING_KEYS_ARGUMENTS)).fetchall()
        if missing:
            keys = ", ".join(key for (key,) in missing)
            raise DatabaseUnavailable(
                f"the schema lacks unique keys: {keys}. A restore is under way, or ended early",
                public=INCOMPLETE,
            )
        before = self.edition
        if before is not None and (before.kind == "plain") != ((await _probe(connection)).kind == "plain"):
            raise DatabaseUnavailable(
                "readings was a hypertable and is a plain table now, or the other way round: a restore is under way, "
                "or ended early. If this is intended, restart the server",
                public=INCOMPLETE,
            )

    @asynccontextmanager
    async def connection(self, *, timeout_s: float) -> AsyncIterator[Connection]:
        """Lend a pooled connection for a read. Driver errors inside, and a pool that has none in time, are
        DatabaseUnavailable.
        """
        with translate_driver_errors():
            async with asyncio.timeout(timeout_s), self._lend(timeout_s) as connection:
                yield connection

    @asynccontextmanager
    async def read_connection(self, *, timeout_s: float) -> AsyncIterator[Connection]:
        """Lend a connection to a reader, in turn. Raises DatabaseUnavailable, with a message for the reader."""
        try:
            with translate_driver_errors():
                async with (
                    asyncio.timeout(timeout_s),
                    self._readers,
                    self._lend(CONNECT_TIMEOUT_S) as connection,
                ):
                    yield connection
        except DatabaseUnavailable as error:
            logger.warning("can't read the database: %s", error)
            raise DatabaseUnavailable("The database can't be read at the moment.", public=error.public) from error

    @asynccontextmanager
    async def _lend(self, timeout_s: float) -> AsyncIterator[Connection]:
        """Lend a pooled connection. One that leads to a server that takes no writes is not given back: a
        balancer, or a setting of that moment, would keep it there for good.

        Before Python 3.12, asyncio.wait_for, by which the pool waits, drops a cancellation that comes together with the
        connection: a deadline would pass without effect.
        """
        task = asyncio.current_task()
        assert task is not None  # a coroutine runs in one
        cancellations = task.cancelling()
        async with self._pool.connection(timeout_s) as connection:
            if task.cancelling() > cancellations:
                raise asyncio.CancelledError
            try:
                yield connection
            except psycopg.errors.ReadOnlySqlTransaction:
                await connection.close()
                raise

    async def check_writable(self, *, timeout_s: float) -> None:
        """Check that the database answers. Raise DatabaseUnavailable if it does not, or nothing may be written."""
        async with self.connection(timeout_s=timeout_s) as connection:
            row = await (await connection.execute(IS_READ_ONLY)).fetchone()
            if row == (True,):
                raise psycopg.errors.ReadOnlySqlTransaction("default_transaction_read_only is on for the session")

    async def resize(self, pool_size: int) -> None:
        """Bound the pool, of which readers may have half."""
        await self._pool.resize(1, pool_size)
        self._readers = asyncio.Semaphore(max(1, pool_size * READERS_SHARE // POOL_MAX_SIZE))

    def pool_stats(self) -> dict[str, int]:
        """Return the pool's own counters, by the names that psycopg_pool gives them."""
        return self._pool.get_stats()

    async def close(self) -> None:
        """Close the pool. Callers close the connections of their own."""
        await self._pool.close(timeout=2)


async def _set_reader_password(connection: Connection, role: str, password: str) -> None:
    """Give the reader its password, hashed here, so that no log of PostgreSQL's can hold it, and what it may read.

    A role that another installation has marked as its own is left as it is.
    """
    hashed = connection.pgconn.encrypt_password(password.encode(), role.encode(), b"scram-sha-256").decode()
    name = sql.Identifier(role)
    try:
        # PostgreSQL refuses one of two sessions that alter a role at once.
        async with connection.transaction():
            await connection.execute("SELECT pg_advisory_xact_lock(%s)", [MIGRATION_LOCK])
            found = await (await connection.execute(FIND_READER, [role])).fetchone()
            if found is None and role != READER:
                await connection.execute(sql.SQL(CREATE_READER).format(role=name))
            marked = found[0] if found else ""
            row = await (await connection.execute(READER_MARK, [marked, marked])).fetchone()
            assert row is not None  # the database that is asked
            mark, is_taken = row
            if is_taken and marked != mark:
                logger.error(
                    "the role %s belongs to another installation (%s), so its password is not changed: set READER_ROLE "
                    "to another name here and in Grafana",
                    role,
                    marked,
                )
                return
            await connection.execute(sql.SQL("ALTER ROLE {} LOGIN PASSWORD {}").format(name, hashed))
            # Compiling a dashboard's query takes up to 0.3 s, and saves less: on each new connection of Grafana's.
            await connection.execute(sql.SQL("ALTER ROLE {} SET jit = off").format(name))
            await connection.execute(sql.SQL("COMMENT ON ROLE {} IS {}").format(name, mark))
            await _let_reader_see(connection, role)
    except (psycopg.errors.UndefinedObject, psycopg.errors.InsufficientPrivilege) as error:
        raise ConfigurationError(
            f"The account in DATABASE_URL can't give READER_PASSWORD to the role {role} ({first_line(error)}). "
            "Unset READER_PASSWORD. With an account that may: create the role, give it a password, and grant it USAGE "
            "of the schema and SELECT on the tables and views to read"
        ) from error


async def _let_reader_see(connection: Connection, role: str) -> None:
    """Grant a role what migrations have granted to READER, and show it the schema."""
    row = await (await connection.execute("SELECT current_schema, current_database()")).fetchone()
    assert row is not None  # a SELECT without FROM has one row
    schema, database, name = sql.Identifier(row[0]), sql.Identifier(row[1]), sql.Identifier(role)
    if role != READER:
        await connection.execute(sql.SQL("GRANT USAGE ON SCHEMA {} TO {}").format(schema, name))
        for (relation,) in await (await connection.execute(READABLE, [READER, role])).fetchall():
            grant = sql.SQL("GRANT SELECT ON {} TO {}")
            await connection.execute(grant.format(sql.Identifier(row[0], relation), name))
    if row[0] != "public":
        await connection.execute(
            sql.SQL("ALTER ROLE {} IN DATABASE {} SET search_path = {}").format(name, database, schema)
        )


async def _probe(connection: Connection) -> Edition:
    row = await (await connection.execute(EDITION)).fetchone()
    assert row is not None  # a SELECT without FROM has one row
    postgres, timescaledb, license_, direct_compress, tables, *durability = row
    hypertable = continuous = None
    if timescaledb is not None:
        hypertable = await (await connection.execute(HYPERTABLE)).fetchone()
        continuous = await (await connection.execute(HAS_CONTINUOUS_AGGREGATES)).fetchone()
    names = ("fsync", "synchronous_commit", "full_page_writes")
    return Edition(
        kind="plain" if hypertable is None else "community" if license_ == "timescale" else "apache",
        postgres_version=postgres,
        timescaledb_version=timescaledb,
        direct_compress=direct_compress and license_ == "timescale" and hypertable == (True,),
        continuous_aggregates=license_ == "timescale" and continuous == (True,),
        aggregate_tables=tables,
        weak_durability=tuple(name for name, value in zip(names, durability, strict=True) if value == "off"),
    )
