"""The records of Idempotency-Keys: SQL on the caller's connection, and the search for one.

A record that is there is believed only when it is as durable as the answer that is given because of it. (13)
"""

from collections.abc import Sequence

from app.errors import DatabaseUnavailable, OutcomeUnknown
from app.ingest.idempotency import Records, RequestIdentity, StoredResult, StoredResults
from app.store.database import Connection, Database
from app.store.durability import MARK, SEND_WARNINGS, confirmed

FIND_TIMEOUT_S = 4.0
# In the order of the keys, which the caller sorts: two flushes with the same keys in two orders would deadlock.
# A key that another transaction is inserting is waited for.
INSERT = """
INSERT INTO idempotency_keys (key_name, key, content_hash, result, expires)
SELECT * FROM unnest(%s::text[], %s::text[], %s::bytea[], %s::bytea[], %s::boolean[])
ON CONFLICT (key_name, key) DO NOTHING
RETURNING key_name, key
"""
EXISTS = """
SELECT FROM idempotency_keys WHERE (key_name, key) IN (SELECT * FROM unnest(%s::text[], %s::text[]))
"""
# Its own mark follows each record in the WAL, and where there is none nothing is written. In one statement, since a
# pooler may send two of them to different servers.
FIND = f"""
SELECT key_name, key, content_hash, result, created_at, {SEND_WARNINGS}, {MARK}
FROM idempotency_keys WHERE (key_name, key) IN (SELECT * FROM unnest(%s::text[], %s::text[]))
"""
PRUNE_PIECE_ROWS = 20_000
PRUNE = f"""
DELETE FROM idempotency_keys WHERE (key_name, key) IN (
    SELECT key_name, key FROM idempotency_keys
    WHERE expires AND created_at < now() - make_interval(secs => 3600 * %s)
    ORDER BY created_at LIMIT {PRUNE_PIECE_ROWS}
)
"""


class IdempotencyRecords:
    """The records that are in a database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def find(self, identity: RequestIdentity) -> StoredResult | None:
        """Return what was committed under a request's Idempotency-Key. None: nothing.

        Raises:
            DatabaseUnavailable
            OutcomeUnknown: something was committed, and is not known to be durable.
        """
        name, is_there = identity.name, False
        try:
            async with self._database.connection(timeout_s=FIND_TIMEOUT_S) as connection:
                is_there = (await connection.execute(EXISTS, [[column] for column in name])).rowcount > 0
                return (await find(connection, [name])).get(name) if is_there else None
        except DatabaseUnavailable as error:
            if is_there:
                raise OutcomeUnknown(
                    "The database has not confirmed yet that the readings under this Idempotency-Key are stored: send "
                    "the request again."
                ) from error
            raise DatabaseUnavailable(
                "Nothing is stored: the database can't be asked for this Idempotency-Key."
            ) from error


async def insert(connection: Connection, records: Records) -> Sequence[tuple[str, str]]:
    """Insert records with their results, and return the names of those that had been committed before. Raises what the
    driver raises.

    Which they are is known from here only: to this transaction, its own records look like any other.
    """
    rows = [
        (*record.identity, result, record.expires)
        for record, result in sorted(records.items(), key=lambda item: item[0].name)
    ]
    cursor = await connection.execute(INSERT, list(map(list, zip(*rows, strict=True))))
    inserted = set(await cursor.fetchall())
    return [record.name for record in records if record.name not in inserted]


async def find(connection: Connection, names: Sequence[tuple[str, str]]) -> StoredResults:
    """Look up the records with these names, as far as they are there, and wait until they are durable.

    Args:
        connection: in autocommit, and in no transaction.
        names: of the records.

    Raises:
        DatabaseUnavailable: they were not confirmed.
        psycopg.Error: what the driver raises.
    """
    async with confirmed(connection):
        cursor = await connection.execute(FIND, list(map(list, zip(*names, strict=True))))
    return {(key_name, key): StoredResult(*stored) async for key_name, key, *stored, _, _ in cursor}


async def prune(connection: Connection, *, older_than_hours: float) -> bool:
    """Delete up to PRUNE_PIECE_ROWS of the records that expire and are so old. Return whether there may be more. Raises
    what the driver raises.
    """
    return (await connection.execute(PRUNE, [older_than_hours])).rowcount == PRUNE_PIECE_ROWS
