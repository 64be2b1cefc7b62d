"""The deletion of rows that are no longer needed: of the ledger, records, senders and limit violations.

Each generator deletes piece by piece, each piece in a transaction of its own, and yields after each.
"""

from collections.abc import AsyncIterator

from app.store import idempotency, limits
from app.store.database import Connection, Database

LEDGER_WINDOW_MINUTES = 10
"""A ledger row is asked for as soon as the database is reached again, so within seconds of its being up."""
PRUNE_PAUSE_S = 60.0
"""After a start, or when the database was away, the ledger is not pruned for so long: some flusher may still ask about
a flush from before."""
PRUNE_PIECE_ROWS = 20_000

PRUNE_LEDGER = f"""
DELETE FROM flushes WHERE flush_id IN (
    SELECT flush_id FROM flushes WHERE committed_at < now() - interval '{LEDGER_WINDOW_MINUTES} minutes'
    LIMIT {PRUNE_PIECE_ROWS}
)
"""
# A sender that was last heard before the first stored reading came has none of them. When it came is not known: it may
# have been as much before its own time as readings may lie ahead. A day more, for that is how exactly its use is known,
# and another for clocks that differ.
OLDEST_OF_CHUNKS = """
SELECT coalesce(min(range_start), now()) FROM timescaledb_information.chunks
WHERE hypertable_schema = current_schema AND hypertable_name = 'readings'
"""
OLDEST_OF_SENSORS = """
SELECT coalesce(min(first.time), now()) FROM sensors
CROSS JOIN LATERAL (SELECT time FROM readings WHERE sensor_id = sensors.id ORDER BY time LIMIT 1) first
"""
UNHEARD = "SELECT EXISTS (SELECT FROM sources WHERE last_used_on < current_date - 2)"
THIS_PRUNES = "SELECT set_config('sensorflow.prunes', 'on', true)"
PRUNE_SOURCES = f"""
DELETE FROM sources WHERE id IN (
    SELECT id FROM sources
    WHERE last_used_on < (%s::timestamptz - make_interval(secs => 60 * %s))::date - 2
    LIMIT {PRUNE_PIECE_ROWS}
)
"""


class Pruning:
    """The rows that are deleted, and their age.

    Args:
        database: where it is.
        idempotency_window_hours: how long idempotency records are kept.
        accept_future_minutes: how far ahead readings may lie; 0: any distance.
    """

    def __init__(self, database: Database, *, idempotency_window_hours: float, accept_future_minutes: float) -> None:
        self._database = database
        self._idempotency_window_hours = idempotency_window_hours
        self._accept_future_minutes = accept_future_minutes

    async def prune_rows(self, connection: Connection) -> AsyncIterator[None]:
        """Delete old rows of the ledger and of the log of violations, and old idempotency records."""
        while (await connection.execute(PRUNE_LEDGER)).rowcount == PRUNE_PIECE_ROWS:
            yield
        yield
        while await idempotency.prune(connection, older_than_hours=self._idempotency_window_hours):
            yield
        yield
        while await limits.prune(connection):
            yield

    async def prune_senders(self, connection: Connection) -> AsyncIterator[None]:
        """Delete the senders of which no reading is stored, as far as that is certain."""
        if not self._accept_future_minutes or await (await connection.execute(UNHEARD)).fetchone() == (False,):
            return
        edition = self._database.edition
        has_chunks = edition is not None and edition.kind != "plain"
        oldest = await (await connection.execute(OLDEST_OF_CHUNKS if has_chunks else OLDEST_OF_SENSORS)).fetchone()
        assert oldest is not None  # an aggregate has one row
        is_more = True
        while is_more:
            yield
            async with connection.transaction():
                await connection.execute(THIS_PRUNES)
                cursor = await connection.execute(PRUNE_SOURCES, [oldest[0], self._accept_future_minutes])
                is_more = cursor.rowcount == PRUNE_PIECE_ROWS
