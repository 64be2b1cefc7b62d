"""Retention of readings where no policy of TimescaleDB's does it: on its Apache edition, and on plain PostgreSQL.

Days (UTC) go as a whole, as they do by a policy, so that no bucket of an aggregate is ever made of a part.
"""

import asyncio
import logging
from datetime import UTC, datetime

from app.errors import DatabaseUnavailable
from app.store.database import Database
from app.store.locks import RETENTION_LOCK

logger = logging.getLogger(__name__)

INTERVAL_S = 3_600.0
RETRY_S = 60.0
STEP_TIMEOUT_S = 300.0
ROWS_AT_A_TIME = 20_000

# By the clock that is further back, because deleted rows are gone for good.
FIRST_KEPT = "date_trunc('day', least(now(), %(now)s::timestamptz) - make_interval(secs => 86400 * %(days)s), 'UTC')"
# Few at a time: a transaction holds locks on all that it drops, and all sessions share a fixed number.
CHUNKS_AT_A_TIME = 20
DROP_CHUNKS = f"""
SELECT drop_chunks('readings', (
    SELECT least(max(range_end), {FIRST_KEPT}) FROM (
        SELECT range_end FROM timescaledb_information.chunks
        WHERE hypertable_schema = current_schema AND hypertable_name = 'readings'
        ORDER BY range_end LIMIT {CHUNKS_AT_A_TIME}
    ) AS oldest
)) WHERE pg_try_advisory_xact_lock({RETENTION_LOCK})
"""
# By the index, which begins with the sensor: there is none by time alone.
DELETE_SOME = f"""
DELETE FROM readings WHERE ctid = ANY (ARRAY(
    SELECT old.ctid
    FROM sensors CROSS JOIN LATERAL (
        SELECT ctid FROM readings WHERE sensor_id = sensors.id AND time < {FIRST_KEPT} LIMIT {ROWS_AT_A_TIME}
    ) old
    WHERE (SELECT pg_try_advisory_xact_lock({RETENTION_LOCK}))
    LIMIT {ROWS_AT_A_TIME}
))
"""


async def delete_old_readings(database: Database, *, days: float, has_chunks: bool) -> None:
    """Delete readings older than ``days``, in steps that hold no other session up. Raises DatabaseUnavailable."""
    at_a_time = CHUNKS_AT_A_TIME if has_chunks else ROWS_AT_A_TIME
    deleted = at_a_time
    while deleted >= at_a_time:
        async with database.connection(timeout_s=STEP_TIMEOUT_S) as connection:
            arguments = {"days": days, "now": datetime.now(UTC)}
            cursor = await connection.execute(DROP_CHUNKS if has_chunks else DELETE_SOME, arguments)
            deleted = cursor.rowcount


async def run_retention(database: Database, *, days: float, has_chunks: bool) -> None:
    """Delete old readings every hour until cancelled."""
    while True:
        pause_s = INTERVAL_S
        try:
            await delete_old_readings(database, days=days, has_chunks=has_chunks)
        except DatabaseUnavailable as error:
            logger.warning("old readings could not be deleted: %s", error)
            pause_s = RETRY_S
        await asyncio.sleep(pause_s)
