"""``python -m app move``: copy everything from one SensorFlow database into another, empty one.

The copy is one transaction: the other database has all of it or nothing. Rows go over as PostgreSQL's binary COPY, bit
for bit, whatever kind of database either is. Ids stay, and the sequences continue after them.
"""

from collections.abc import Callable, Sequence
from graphlib import TopologicalSorter
from typing import Any

import psycopg
from psycopg import sql

from app.errors import ConfigurationError
from app.store.aggregate_tables import table_of
from app.store.capacity import LOCKS
from app.store.database import (
    connect_to_migrate,
    has_aggregate_tables,
    has_continuous_aggregates,
    migrate,
    translate_driver_errors,
)
from app.store.tiers import TIERS

NOT_MOVED = [
    "alembic_version",
    "server_settings",
    "metrics",
    "flushes",
    "stale_ranges",
    "checked_days",
    "maintenance",
    *(table_of(tier.name) for tier in TIERS),
]
"""What each database has of its own: its schema's, what the settings say, and what was under way."""
REPORT_ROWS = 1_000_000
LOCK_TIMEOUT_S = 10
LOCKS_A_DAY = 2
"""A chunk and its index."""
OTHER_LOCKS = 1_000

Connection = psycopg.Connection[tuple[Any, ...]]

TABLES = """
SELECT c.relname::text,
       (SELECT array_agg(attname::text ORDER BY attnum) FROM pg_attribute
        WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped),
       (SELECT coalesce(array_agg(confrelid::regclass::text), '{}') FROM pg_constraint
        WHERE conrelid = c.oid AND contype = 'f')
FROM pg_class c
WHERE c.relnamespace = current_schema::regnamespace AND c.relkind IN ('r', 'p') AND c.relname <> ALL(%s)
ORDER BY c.relname
"""
# A writing server would interfere, and hands out ids of its own.
KEEP_SERVERS_OUT = "LOCK TABLE flushes, sensors, sources IN EXCLUSIVE MODE"
IS_IN_USE = """
SELECT EXISTS (SELECT FROM readings) OR EXISTS (SELECT FROM sensors) OR EXISTS (SELECT FROM sources)
"""
IS_HYPERTABLE = "SELECT EXISTS (SELECT FROM pg_extension WHERE extname = 'timescaledb')"
DAYS = "SELECT count(DISTINCT date_bin('1 day', time, TIMESTAMPTZ 'epoch')) FROM readings"
IDENTITIES = """
SELECT relname::text FROM pg_attribute
JOIN pg_class c ON c.oid = pg_get_serial_sequence(quote_ident(%(table)s), attname)::regclass
WHERE attrelid = quote_ident(%(table)s)::regclass AND attidentity <> '' AND NOT attisdropped
"""
NOTHING_IS_REFRESHED = """
UPDATE server_settings SET value = (
    SELECT coalesce(min(range_start), now())::text FROM timescaledb_information.chunks
    WHERE hypertable_schema = current_schema AND hypertable_name = 'readings'
)
WHERE name IN ('aggregates_refreshed_until', 'aggregates_frontier')
"""
NO_TABLE_IS_REFRESHED = """
UPDATE server_settings SET value = '-infinity' WHERE name IN ('aggregates_refreshed_until', 'aggregates_frontier')
"""


def move(source_url: str, target_url: str, *, say: Callable[[str], None]) -> None:
    """Copy everything. The source stays as it is.

    Args:
        source_url: the connection string of the database that has the readings.
        target_url: that of the other.
        say: is told how far it has come.

    Raises:
        ConfigurationError: the target is not empty, or can't take so much at once; the message says what to do.
        DatabaseUnavailable: one of them can't be reached; nothing is copied.
    """
    migrate(source_url)
    migrate(target_url)
    with (
        translate_driver_errors(),
        connect_to_migrate(source_url, autocommit=False) as source,
        connect_to_migrate(target_url, autocommit=False) as target,
    ):
        source.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        for connection in (source, target):
            _keep_servers_out(connection)
        if target.execute(IS_IN_USE).fetchone() == (True,):
            raise ConfigurationError(
                "The database at DATABASE_URL has readings or sensors already. Move into an empty one; "
                "`python -m app migrate --down base` empties this one, and removes every reading in it."
            )
        _check_locks(source, target)
        known = {name for name, *_ in target.execute(TABLES, [NOT_MOVED])}
        columns_of, referred_to = {}, {}
        for table, columns, references in source.execute(TABLES, [NOT_MOVED]):
            if table in known:
                columns_of[table], referred_to[table] = columns, known.intersection(references) - {table}
            else:
                say(f"{table}: not a table of SensorFlow's, left out")
        tables = [*TopologicalSorter(referred_to).static_order()]
        for table in tables:
            rows = _copy(source, target, table, columns_of[table], say)
            say(f"{table}: {rows:,} rows")
        _continue_ids(source, target, tables)
        if has_continuous_aggregates(target):
            target.execute(NOTHING_IS_REFRESHED)
        elif has_aggregate_tables(target):
            target.execute(NO_TABLE_IS_REFRESHED)


def _keep_servers_out(connection: Connection) -> None:
    connection.execute(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT_S}s'")
    try:
        connection.execute(KEEP_SERVERS_OUT)
    except psycopg.errors.LockNotAvailable as error:
        raise ConfigurationError(
            f"A server is writing to the database {connection.info.dbname!r} at {connection.info.host}. Stop it, then "
            "run move again."
        ) from error


def _check_locks(source: Connection, target: Connection) -> None:
    """Raise ConfigurationError if the target lacks locks: each day is a chunk, locked until the transaction ends."""
    if target.execute(IS_HYPERTABLE).fetchone() != (True,):
        return
    ((days,),) = source.execute(DAYS).fetchall()
    ((per_transaction, transactions),) = target.execute(LOCKS).fetchall()
    needed = LOCKS_A_DAY * days + OTHER_LOCKS
    if needed > per_transaction * transactions:
        raise ConfigurationError(
            f"The readings span {days:,} days, and the database at DATABASE_URL has too few locks for so many in one "
            f"transaction. Set its max_locks_per_transaction to {needed // transactions + 1}, restart it, then run "
            "move again."
        )


def _copy(
    source: Connection, target: Connection, table: str, columns: Sequence[str], say: Callable[[str], None]
) -> int:
    names = {"table": sql.Identifier(table), "columns": sql.SQL(", ").join(map(sql.Identifier, columns))}
    out = sql.SQL("COPY (SELECT {columns} FROM {table}) TO STDOUT (FORMAT BINARY)").format(**names)
    into = sql.SQL("COPY {table} ({columns}) FROM STDIN (FORMAT BINARY)").format(**names)
    with target.cursor() as writer:
        with source.cursor().copy(out) as reading, writer.copy(into) as writing:
            for count, row in enumerate(reading, start=1):
                writing.write(row)
                if count % REPORT_ROWS == 0:
                    say(f"{table}: {count:,} rows so far")
        return writer.rowcount


def _continue_ids(source: Connection, target: Connection, tables: Sequence[str]) -> None:
    """Goes on behind the last ids given out, and not the last in use: readings may have a deleted sensor's."""
    sequences = ["reading_ids"]
    for table in tables:
        sequences += [name for (name,) in source.execute(IDENTITIES, {"table": table}).fetchall()]
    for name in sequences:
        state = source.execute(sql.SQL("SELECT last_value, is_called FROM {}").format(sql.Identifier(name))).fetchone()
        assert state is not None  # a sequence has one row
        target.execute("SELECT setval(quote_ident(%s), %s, %s)", [name, *state])
