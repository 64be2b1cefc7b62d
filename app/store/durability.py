"""Whether a commit that can be seen is durable: behind a synchronous standby it may be visible before it is. (13)

Where a wait for the standby is cancelled, or its backend ended, PostgreSQL makes the commit visible all the same. It
sends a warning in the first case and nothing in the second, and after a failover the commit is gone. WAL is sent in
order: once a later commit has been confirmed, every earlier one is on the standby too.
"""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from psycopg.errors import Diagnostic

from app.errors import DatabaseUnavailable
from app.store.database import Connection

MARK = "pg_logical_emit_message(true, 'sensorflow', '')"
"""Writes to the WAL and to no table: its transaction waits for the standby, and for no lock. Readers of the WAL skip
it."""
SEND_WARNINGS = "set_config('client_min_messages', 'warning', true)"
"""A role may be set to hear no warnings. Until the transaction ends, which is after the warning about its COMMIT."""
CONFIRM = f"SELECT {SEND_WARNINGS}, {MARK}"


@contextmanager
def hear_warnings(connection: Connection) -> Iterator[list[str]]:
    """Collect the warnings that PostgreSQL sends on a connection during the block.

    It warns of a COMMIT with no SQLSTATE of its own, so whatever it warns of there counts.
    """
    warnings: list[str] = []

    def hear(diagnostic: Diagnostic) -> None:
        if diagnostic.severity_nonlocalized == "WARNING":
            warnings.append(diagnostic.message_primary or "a warning")

    connection.add_notice_handler(hear)
    try:
        yield warnings
    finally:
        connection.remove_notice_handler(hear)


@asynccontextmanager
async def confirmed(connection: Connection) -> AsyncIterator[None]:
    """Make sure that what is committed during the block is confirmed.

    Raises:
        DatabaseUnavailable: PostgreSQL has warned of something; what was committed may be lost after a failover.
    """
    with hear_warnings(connection) as warnings:
        yield
    if warnings:
        raise DatabaseUnavailable(f"PostgreSQL did not confirm a commit: {warnings[0]}")


async def confirm(connection: Connection) -> None:
    """Make sure that what has been seen on a connection is durable, by a commit of its own. Wait for the standby.

    Raises:
        DatabaseUnavailable: it was not confirmed.
        psycopg.Error: what the driver raises.
    """
    async with confirmed(connection):
        await connection.execute(CONFIRM)
