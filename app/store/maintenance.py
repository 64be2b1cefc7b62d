"""What the database needs now and then: ledger, claims and the log of violations pruned, its state looked at."""

import asyncio
import logging
from dataclasses import dataclass

from app.errors import DatabaseAway
from app.store import claims, limits
from app.store.database import Database
from app.store.locks import PRUNE_LOCK

logger = logging.getLogger(__name__)

INTERVAL_S = 15.0
QUERY_TIMEOUT_S = 10.0
LEDGER_WINDOW_MINUTES = 10
"""A ledger row is asked for as soon as the database is reached again, so within seconds of its being up."""
PRUNE_PAUSE_S = 60.0
"""After a start, or when the database was away, nothing is pruned for so long: some flusher may still ask about a flush
from before."""

PRUNE_S = 5.0
"""How long a turn prunes the log of violations at most, in steps that each are committed."""

PRUNE_LEDGER = f"""
DELETE FROM flushes
WHERE committed_at < now() - interval '{LEDGER_WINDOW_MINUTES} minutes' AND pg_try_advisory_xact_lock({PRUNE_LOCK})
"""
STATISTICS = """
SELECT pg_database_size(current_database()),
       (SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()),
       (SELECT count(*) FROM stale_ranges),
       (SELECT coalesce(max(lag_s), 0) FROM aggregate_lag)
"""


@dataclass(frozen=True, slots=True)
class DatabaseStatistics:
    """The database at the last look."""

    size_bytes: int
    connections: int
    stale_ranges: int
    aggregate_lag_s: float
    """How long ago the aggregates were last brought up to date."""


class Maintenance:
    """Runs beside the flusher, on pooled connections, and never in its way."""

    def __init__(self, database: Database, *, claims_window_hours: float) -> None:
        self._database = database
        self._claims_window_hours = claims_window_hours
        self.statistics: DatabaseStatistics | None = None
        """None until the first look, and while the database is away."""

    async def run(self) -> None:
        """Works until cancelled; a database that is away is left for the next turn."""
        clock = asyncio.get_running_loop().time
        prune_from = clock() + PRUNE_PAUSE_S
        while True:
            began = clock()
            try:
                async with self._database.borrow(timeout_s=QUERY_TIMEOUT_S) as connection:
                    if clock() >= prune_from:
                        await connection.execute(PRUNE_LEDGER)
                        await claims.prune(connection, older_than_hours=self._claims_window_hours)
                        while await limits.prune(connection) and clock() < began + PRUNE_S:
                            pass
                    await self._database.restore_settings(connection)
                    row = await (await connection.execute(STATISTICS)).fetchone()
                assert row is not None  # a SELECT without FROM has one row
                self.statistics = DatabaseStatistics(*row)
            except DatabaseAway as error:
                self.statistics = None
                prune_from = clock() + PRUNE_PAUSE_S
                logger.debug("maintenance waits: %s", error)
            await asyncio.sleep(INTERVAL_S)
