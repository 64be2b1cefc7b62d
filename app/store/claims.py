"""The claims of Idempotency-Keys: SQL on the caller's connection.

A claim that is there is believed only when it is as durable as the answer that is given because of it. (13)
"""

from collections.abc import Mapping, Sequence

from app.ingest.claim import Claim, Replay, StoredResult, StoredResults
from app.store.database import Connection
from app.store.durability import MARK, SEND_WARNINGS, confirmed

# In the order of the keys, which the caller sorts: two flushes with the same keys in two orders would deadlock.
# A key that another transaction is inserting is waited for.
INSERT = """
INSERT INTO idempotency_keys (key_name, key, content_hash, status, answer, expires)
SELECT * FROM unnest(%s::text[], %s::text[], %s::bytea[], %s::smallint[], %s::bytea[], %s::boolean[])
ON CONFLICT (key_name, key) DO NOTHING
RETURNING key_name, key
"""
FIND = """
SELECT FROM idempotency_keys WHERE (key_name, key) IN (SELECT * FROM unnest(%s::text[], %s::text[]))
"""
# Its own mark follows each claim in the WAL, and where there is none nothing is written. In one statement, since a
# pooler may send two of them to different servers.
RECALL = f"""
SELECT key_name, key, content_hash, status, answer, {SEND_WARNINGS}, {MARK}
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


async def insert(connection: Connection, answers: Mapping[Claim, Replay]) -> Sequence[tuple[str, str]]:
    """Claims these keys, and gives back the names of those that had been claimed before. Raises what the driver raises.

    Which they are is known from here only: to this transaction, its own claims look like any other.
    """
    rows = [
        (*claim.fingerprint, replay.status, replay.body, claim.expires)
        for claim, replay in sorted(answers.items(), key=lambda item: item[0].name)
    ]
    cursor = await connection.execute(INSERT, list(map(list, zip(*rows, strict=True))))
    claimed = set(await cursor.fetchall())
    return [claim.name for claim in answers if claim.name not in claimed]


async def can_be_seen(connection: Connection, name: tuple[str, str]) -> bool:
    """Look for a claim, without asking whether it is durable. Raises what the driver raises."""
    return (await connection.execute(FIND, [[column] for column in name])).rowcount > 0


async def recall(connection: Connection, names: Sequence[tuple[str, str]]) -> StoredResults:
    """Look up the claims with these names, as far as they are there, and wait until they are durable.

    Args:
        connection: in autocommit, and in no transaction.
        names: of the claims.

    Raises:
        DatabaseUnavailable: they were not confirmed.
        psycopg.Error: what the driver raises.
    """
    async with confirmed(connection):
        cursor = await connection.execute(RECALL, list(map(list, zip(*names, strict=True))))
    return {
        (key_name, key): StoredResult(content_hash, Replay(status, answer))
        async for key_name, key, content_hash, status, answer, *_ in cursor
    }


async def prune(connection: Connection, *, older_than_hours: float) -> bool:
    """Delete up to PRUNE_PIECE_ROWS of the claims that expire and are so old; whether there may be more. Raises what
    the driver raises.
    """
    return (await connection.execute(PRUNE, [older_than_hours])).rowcount == PRUNE_PIECE_ROWS
