"""The records of imported readings: looked up before a file is stored, and deleted when it is to be stored again."""

from collections.abc import Collection, Mapping

from app.ingest.idempotency import StoredResult
from app.store import idempotency
from app.store.database import Database

# Neither asks an index for the prefix: which one could help depends on the database's collation.
ANY_WITH_PREFIX = "SELECT FROM idempotency_keys WHERE key_name = %s AND starts_with(key, %s) LIMIT 1"
FORGET = "DELETE FROM idempotency_keys WHERE key_name = %s AND (key = ANY(%s) OR starts_with(key, %s))"


class ImportRecords:
    """The idempotency records of one sender, in the database. Its methods raise DatabaseUnavailable.

    Args:
        database: where they are.
        key_name: whose they are.
        timeout_s: how long each look may take.
    """

    def __init__(self, database: Database, *, key_name: str, timeout_s: float) -> None:
        self._database = database
        self._key_name = key_name
        self._timeout_s = timeout_s

    async def find(self, keys: Collection[str]) -> Mapping[str, StoredResult]:
        """Look up records by their keys."""
        async with self._database.connection(timeout_s=self._timeout_s) as connection:
            found = await idempotency.find(connection, [(self._key_name, key) for key in keys])
        return {key: stored for (_, key), stored in found.items()}

    async def has_any(self, prefix: str) -> bool:
        """Tell whether there is a record whose key begins so."""
        async with self._database.connection(timeout_s=self._timeout_s) as connection:
            return await (await connection.execute(ANY_WITH_PREFIX, [self._key_name, prefix])).fetchone() is not None

    async def forget(self, keys: Collection[str], prefix: str | None) -> None:
        """Delete records by their keys, and those whose key begins so. Either all are deleted or none."""
        async with self._database.connection(timeout_s=self._timeout_s) as connection:
            await connection.execute(FORGET, [self._key_name, list(keys), prefix])
