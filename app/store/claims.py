"""The claims of Idempotency-Keys: SQL on the caller's connection, in its transaction if there is one."""

from collections.abc import Mapping, Sequence

from app.ingest.claim import Claim, Kept, KeptClaims, Replay
from app.store.database import Connection

# In the order of the keys, which the caller sorts: two flushes with the same keys in two orders would deadlock.
# A key that another transaction is inserting is waited for.
INSERT = """
INSERT INTO idempotency_keys (key_name, key, content_hash, status, answer, expires)
SELECT * FROM unnest(%s::text[], %s::text[], %s::bytea[], %s::smallint[], %s::bytea[], %s::boolean[])
ON CONFLICT (key_name, key) DO NOTHING
RETURNING key_name, key
"""
RECALL = """
SELECT key_name, key, content_hash, status, answer
FROM idempotency_keys WHERE (key_name, key) IN (SELECT * FROM unnest(%s::text[], %s::text[]))
"""
PRUNE = """
DELETE FROM idempotency_keys WHERE (key_name, key) IN (
    SELECT key_name, key FROM idempotency_keys
    WHERE expires AND created_at < now() - make_interval(secs => 3600 * %s)
    ORDER BY created_at LIMIT 50000
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


async def recall(connection: Connection, names: Sequence[tuple[str, str]]) -> KeptClaims:
    """What is kept of the claims with these names, as far as they are there. Raises what the driver raises."""
    cursor = await connection.execute(RECALL, list(map(list, zip(*names, strict=True))))
    return {
        (key_name, key): Kept(content_hash, Replay(status, answer))
        async for key_name, key, content_hash, status, answer in cursor
    }


async def prune(connection: Connection, *, older_than_hours: float) -> None:
    """Forgets of the claims that may be forgotten and are so old as many as are soon deleted. Raises what the driver
    raises.
    """
    await connection.execute(PRUNE, [older_than_hours])
