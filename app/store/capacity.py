"""The connections and locks that PostgreSQL has room for, compared with what this server may need."""

import logging
import math
from typing import NamedTuple

from app.errors import ConfigurationError
from app.store.database import POOL_MAX_SIZE, Connection, Database

logger = logging.getLogger(__name__)

QUERY_TIMEOUT_S = 10.0
OF_ITS_OWN = 2
"""Connections that a worker has beside its pool: for flushes, and for aggregates."""
MIN_POOL_SIZE = 2
"""One for readers, and one for names and idempotency records, which flushes need meanwhile."""
LOCKS_OF_A_CHUNK = 4
"""In the columnstore: two tables with an index each."""
WHOLE_QUERIES = 2
"""Queries over all readings that should have room at once: a dashboard's, and a refresh or a deletion."""
LOCKS_STEP = 64

ROOM = """
SELECT current_setting('max_connections')::integer,
       current_setting('superuser_reserved_connections')::integer
           + coalesce(current_setting('reserved_connections', true), '0')::integer,
       (SELECT nullif(rolconnlimit, -1) FROM pg_roles WHERE rolname = current_user AND NOT rolsuper),
       (
           SELECT count(*) FROM pg_stat_activity
           WHERE coalesce(backend_type, 'client backend') = 'client backend'
               AND application_name NOT LIKE 'sensorflow %'
       ),
       pg_backend_pid()
"""
LOCKS = """
SELECT current_setting('max_locks_per_transaction')::bigint,
       current_setting('max_connections')::bigint + current_setting('max_prepared_transactions')::bigint
"""
CHUNKS = """
SELECT count(*) FROM timescaledb_information.chunks
WHERE hypertable_schema = current_schema AND hypertable_name = 'readings'
"""


class Room(NamedTuple):
    """Connections that PostgreSQL allows."""

    max_connections: int
    reserved: int
    """Those reserved for superusers, and for those that administer it."""
    role_limit: int | None
    """What the account may have."""
    others: int
    """Those in use by other clients than servers of this kind."""

    @property
    def most(self) -> int:
        """Return what this account may have if there is no other client."""
        most = self.max_connections - self.reserved
        return most if self.role_limit is None else min(most, self.role_limit)

    @property
    def left(self) -> int:
        """Return what it may have now."""
        return min(self.most, self.max_connections - self.reserved - self.others)


def pool_size(room: Room, workers: int) -> int:
    """Return how many connections the pool of each worker may have, from MIN_POOL_SIZE to POOL_MAX_SIZE.

    Raises:
        ConfigurationError: so many workers can't have what they need, even if no other client is connected.
    """
    needed = OF_ITS_OWN + MIN_POOL_SIZE
    if workers * needed > room.most:
        limits = f"max_connections = {room.max_connections}, of which {room.reserved} are reserved"
        if room.role_limit is not None:
            limits += f"; the account in DATABASE_URL may have {room.role_limit}"
        at_most = room.most // needed
        remedy = f"Set WORKERS to {at_most} at most, or raise the limit" if at_most else "Raise the limit"
        raise ConfigurationError(
            f"WORKERS = {workers} needs {workers * needed} connections, {needed} for each, and PostgreSQL allows "
            f"{room.most} ({limits}). {remedy}"
        )
    return max(MIN_POOL_SIZE, min(room.left // workers - OF_ITS_OWN, POOL_MAX_SIZE))


async def fit(database: Database, *, workers: int) -> None:
    """Fit the pool into the connections that PostgreSQL allows, and warn of what is too little.

    Raises:
        ConfigurationError: as ``pool_size``.
        DatabaseUnavailable: the database can't be asked.
    """
    async with database.connection(timeout_s=QUERY_TIMEOUT_S) as connection:
        row = await (await connection.execute(ROOM)).fetchone()
        assert row is not None  # a SELECT without FROM has one row
        *room_, backend = row
        room = Room(*room_)
        try:
            size = pool_size(room, workers)
        except ConfigurationError as error:
            # A pooler serves more clients than it has connections.
            if backend == connection.info.backend_pid:
                raise
            logger.warning("%s, unless the pooler at DATABASE_URL shares its connections well", error)
            size = MIN_POOL_SIZE
        await warn_of_locks(database, connection)
    if workers * (OF_ITS_OWN + size) > room.left:
        logger.warning(
            "PostgreSQL has %d connections left, and this server needs up to %d; others use %d of max_connections = %d."
            " Flushes and queries may fail. Raise max_connections.",
            room.left,
            workers * (OF_ITS_OWN + size),
            room.others,
            room.max_connections,
        )
    elif size < POOL_MAX_SIZE:
        logger.warning(
            "Each worker's pool has %d connections instead of %d, because max_connections = %d allows no more for %d "
            "workers. Readers wait longer; raise max_connections.",
            size,
            POOL_MAX_SIZE,
            room.max_connections,
            workers,
        )
    await database.resize(size)


async def warn_of_locks(database: Database, connection: Connection) -> None:
    """Warn if queries over all readings can't have the locks that they take. Raises what the driver raises."""
    edition = database.edition
    if edition is None or edition.kind == "plain":
        return
    locks = await (await connection.execute(LOCKS)).fetchone()
    chunks = await (await connection.execute(CHUNKS)).fetchone()
    assert locks is not None  # a SELECT without FROM has one row
    assert chunks is not None  # an aggregate has one row
    if (required := lacking_locks(chunks[0], *locks)) is not None:
        logger.warning(
            "A query over all %d chunks of readings takes %d locks, and PostgreSQL has room for %d in all: queries "
            "over long spans may fail, and others with them. Set max_locks_per_transaction to %d (now %d) and restart "
            "PostgreSQL.",
            chunks[0],
            chunks[0] * LOCKS_OF_A_CHUNK,
            locks[0] * locks[1],
            required,
            locks[0],
        )


def lacking_locks(chunks: int, per_transaction: int, transactions: int) -> int | None:
    """Return what max_locks_per_transaction should be. None if it is enough for so many chunks."""
    needed = chunks * LOCKS_OF_A_CHUNK * WHOLE_QUERIES
    if needed <= per_transaction * transactions:
        return None
    return math.ceil(1.5 * needed / transactions / LOCKS_STEP) * LOCKS_STEP
