"""The background work on the database, in every edition: one process of all servers does it.

The processes of all servers on one database elect one by an advisory lock, and it does each kind of work piece by
piece, on a connection of its own. The lock is held by a transaction on a second connection, the guard: a pooler may
give a session to the next client. If the process or its machine goes, PostgreSQL ends that transaction, and another
process takes over.

Promises:
    * Nothing waits behind the maintenance: it waits for a lock for LOCK_TIMEOUT_S only, and tries again later. (16)
    * Work that can wait takes its share of a core at most, unless the database has little else to do. (16)
    * Work that is cut off at any point is begun again, and does no harm by being done twice.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import psycopg
from psycopg.errors import LockNotAvailable

from app.errors import DatabaseUnavailable
from app.store.budget import Budget
from app.store.database import Connection, Database, first_line, translate_driver_errors
from app.store.locks import LOCK_TIMEOUT_S, MAINTENANCE_LOCK, Busy

logger = logging.getLogger(__name__)

ELECTION_INTERVAL_S = 4.0
"""How often a process asks whether the database is without maintenance."""
PING_INTERVAL_S = 5.0
LEASE_S = 30
"""PostgreSQL ends the guard's session if nothing is heard of it for so long: its machine may have gone."""
QUERY_TIMEOUT_S = 10.0
RETRY_BUSY_S = 5.0
RETRY_FAILED_S = 60.0
LONGEST_REST_S = 600.0
"""A run that had a whole history to work on must not be followed by hours of rest."""
LONGEST_PAUSE_S = 1.0
"""Between looks for work that is due."""

TRY_LOCK = f"SELECT pg_try_advisory_xact_lock({MAINTENANCE_LOCK})"
LEASE = f"SET LOCAL idle_in_transaction_session_timeout = '{LEASE_S}s'"
# To compile a refresh takes 12 s where the refresh itself takes 0.2. A parallel refresh would take more than its share.
SETTINGS = f"""
SET jit = off;
SET max_parallel_workers_per_gather = 0;
SET lock_timeout = '{LOCK_TIMEOUT_S * 1_000:.0f}ms';
SET statement_timeout = 0;
SET client_min_messages = error;
SET client_connection_check_interval = '{PING_INTERVAL_S:.0f}s'
"""
# PostgreSQL counts it only where track_activities is on. Else it is unknown, and not zero.
ACTIVE_S = """
SELECT CASE WHEN current_setting('track_activities')::boolean THEN active_time / 1000 ELSE 'NaN' END
FROM pg_stat_database WHERE datname = current_database()
"""
# Work that never has its turn is late, too.
ANNOUNCE = """
INSERT INTO maintenance (
    work, runs, failures, busy_s, every_s, can_wait, first_started_at, last_started_at, last_run_s
) VALUES (%(work)s, 0, 0, 0, %(every_s)s, %(can_wait)s, now(), now(), 0)
ON CONFLICT (work) DO NOTHING
"""
RECORD = """
INSERT INTO maintenance AS m (
    work, runs, failures, busy_s, every_s, can_wait, first_started_at, last_started_at, last_run_s, last_succeeded_at,
    last_error
)
SELECT %(work)s, 1, (%(error)s::text IS NOT NULL)::integer, %(busy_s)s, %(every_s)s, %(can_wait)s, started_at,
       started_at, %(busy_s)s, CASE WHEN %(error)s::text IS NULL THEN now() END, %(error)s
FROM (SELECT now() - make_interval(secs => %(ago_s)s)) AS run (started_at)
ON CONFLICT (work) DO UPDATE SET
    runs = m.runs + 1, failures = m.failures + excluded.failures, busy_s = m.busy_s + excluded.busy_s,
    every_s = excluded.every_s, can_wait = excluded.can_wait, last_started_at = excluded.last_started_at,
    last_run_s = excluded.last_run_s, last_succeeded_at = coalesce(excluded.last_succeeded_at, m.last_succeeded_at),
    last_error = excluded.last_error
"""

Pieces = Callable[[Connection, Connection], AsyncIterator[float | None]]
"""Work on a connection, with the guard for further locks. It yields after each piece, and may ask for a pause in
seconds before the next one."""


@dataclass(frozen=True, slots=True)
class Work:
    """A kind of work.

    Attributes:
        name: as metrics and the table ``maintenance`` have it.
        every_s: from the end of one run to the beginning of the next.
        pieces: a run of it. Raises Busy, DatabaseUnavailable and what the driver raises.
        can_wait: whether it keeps to the budget.
        rest: a run is followed by a pause of at least so many times its duration, up to LONGEST_REST_S.
        first_after_s: the pause before the first run.
        is_awaited: whether work that awaits the first run of such work may not begin before.
        awaits_first: whether it is such work.
    """

    name: str
    every_s: float
    pieces: Pieces
    can_wait: bool = False
    rest: float = 0.0
    first_after_s: float = 0.0
    is_awaited: bool = False
    awaits_first: bool = False

    def rest_s(self, busy_s: float) -> float:
        """Return the shortest pause after a run that took ``busy_s``."""
        return min(self.rest * busy_s, LONGEST_REST_S)


class _Run:
    """A kind of work, and its run under way, if there is one."""

    def __init__(self, work: Work, now: float) -> None:
        self.work = work
        self.due_at = now + work.first_after_s
        self.pieces: AsyncIterator[float | None] | None = None
        self.began_at = 0.0
        self.busy_s = 0.0
        self.has_ended = False
        """Whether it has run once, with whatever result."""

    @property
    def can_wait(self) -> bool:
        """Whether it keeps to the budget now. The first run of awaited work does not."""
        return self.work.can_wait and (self.has_ended or not self.work.is_awaited)


class Maintenance:
    """The election, and the work of the elected process.

    Args:
        database: what is maintained.
        share: the part of a core that work takes if it can wait.
    """

    def __init__(self, database: Database, *, share: float) -> None:
        self._database = database
        self._share = share

    async def run(self, works: Sequence[Work]) -> None:
        """Stand for election, and do all kinds of work while elected, until cancelled.

        Of the work that is due at the same time, the first comes first.
        """
        while True:
            try:
                async with self._elected() as guard:
                    if guard is not None:
                        logger.info("this process maintains the database")
                        await self._work_while_guarded(guard, works)
            except DatabaseUnavailable as error:
                logger.debug("the maintenance waits: %s", error)
            await asyncio.sleep(ELECTION_INTERVAL_S)

    @asynccontextmanager
    async def _elected(self) -> AsyncIterator[Connection | None]:
        """Yield the connection that holds the lock if this process got it."""
        async with self._database.connection(timeout_s=QUERY_TIMEOUT_S) as pooled:  # most often another has it
            is_free = await (await pooled.execute(TRY_LOCK)).fetchone() == (True,)
        if not is_free:
            yield None
            return
        with translate_driver_errors():
            async with await self._database.connect("sensorflow maintenance lock") as guard, guard.transaction():
                await guard.execute(LEASE)
                has_lock = await (await guard.execute(TRY_LOCK)).fetchone() == (True,)
                yield guard if has_lock else None

    async def _work_while_guarded(self, guard: Connection, works: Sequence[Work]) -> None:
        async with await self._database.connect("sensorflow maintenance") as connection:
            if not self._database.is_pooled:
                await connection.execute(SETTINGS)
            working = asyncio.create_task(self._work(connection, guard, works))
            pinging = asyncio.create_task(_ping(guard))
            try:
                await asyncio.wait([working, pinging], return_when=asyncio.FIRST_COMPLETED)
            finally:
                working.cancel()
                pinging.cancel()
                outcomes = await asyncio.gather(working, pinging, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                raise outcome

    async def _work(self, connection: Connection, guard: Connection, works: Sequence[Work]) -> None:
        """Do what is due, a piece at a time. Raises what shows that a connection is lost."""
        clock = asyncio.get_running_loop().time
        runs = [_Run(work, clock()) for work in works]
        for work in works:
            announcement = {"work": work.name, "every_s": work.every_s, "can_wait": work.can_wait}
            await _record(connection, ANNOUNCE, announcement)
        budget = Budget(self._share)
        while True:
            await self._note_load(connection, budget, clock())
            run = _next(runs, clock(), may_spend=budget.may_spend(clock()))
            if run is None:
                await asyncio.sleep(min(LONGEST_PAUSE_S, max(0.05, _pause_s(runs, clock(), budget))))
                continue
            began = clock()
            pause_s, error = await self._do_piece(run, connection, guard)
            took_s = clock() - began
            run.busy_s += took_s
            run.due_at = clock() + (pause_s or 0.0)  # behind what became due meanwhile
            budget.spend(took_s, now=clock(), could_wait=run.can_wait)
            if pause_s is None:
                await self._end(run, connection, error, clock())

    async def _do_piece(
        self, run: _Run, connection: Connection, guard: Connection
    ) -> tuple[float | None, Exception | None]:
        """Return the pause before the next piece, None if the run is over, and what has ended it early."""
        if run.pieces is None:
            run.pieces, run.began_at, run.busy_s = (
                run.work.pieces(connection, guard),
                asyncio.get_running_loop().time(),
                0.0,
            )
        try:
            return await anext(run.pieces) or 0.0, None
        except StopAsyncIteration:
            return None, None
        except Exception as error:  # an unforeseen one, too, must not end the server
            if connection.closed or guard.closed:
                raise
            if not isinstance(error, Busy | DatabaseUnavailable | psycopg.Error):
                logger.exception("unforeseen error in the maintenance's work %r", run.work.name)
            return None, error

    async def _end(self, run: _Run, connection: Connection, error: Exception | None, now: float) -> None:
        """Plan the next run, and record how this one has ended."""
        work, run.pieces, run.has_ended = run.work, None, True
        is_busy = isinstance(error, Busy | LockNotAvailable)
        pause_s = RETRY_BUSY_S if is_busy else work.every_s if error is None else RETRY_FAILED_S
        run.due_at = now + max(pause_s, work.rest_s(run.busy_s))
        reason = None if error is None else first_line(error)
        if is_busy:
            logger.debug("the maintenance's work %r waits: %s", work.name, reason)
            return
        if reason is not None:
            logger.warning("the maintenance's work %r failed and is tried again: %s", work.name, reason)
        record = {
            "work": work.name,
            "busy_s": run.busy_s,
            "every_s": max(work.every_s, work.rest_s(run.busy_s)),
            "can_wait": work.can_wait,
            "ago_s": now - run.began_at,
            "error": reason,
        }
        await _record(connection, RECORD, record)

    async def _note_load(self, connection: Connection, budget: Budget, now: float) -> None:
        """Tell the budget how busy the database is, now and then."""
        if budget.wants_load(now):
            row = await (await connection.execute(ACTIVE_S)).fetchone()
            assert row is not None  # this database has a row
            budget.note_load(row[0], now=now)


async def _record(connection: Connection, statement: str, record: Mapping[str, object]) -> None:
    """Write about some work. If that fails, as on a full disk, the work goes on: retention frees space."""
    try:
        await connection.execute(statement, record)
    except psycopg.Error as error:
        if connection.closed:
            raise
        logger.warning("can't record the maintenance's work %r: %s", record["work"], first_line(error))


async def _ping(guard: Connection) -> None:
    while True:
        await asyncio.sleep(PING_INTERVAL_S)
        await guard.execute("SELECT")


def _next(runs: Sequence[_Run], now: float, *, may_spend: bool) -> _Run | None:
    """Return the run whose piece is next: work that can't wait first, and of it what has been due longest."""
    is_ready = all(run.has_ended for run in runs if run.work.is_awaited)
    due = [run for run in runs if run.due_at <= now and (may_spend or not run.can_wait)]
    due = [run for run in due if is_ready or not run.work.awaits_first]
    return min(due, key=lambda run: (run.can_wait, run.due_at), default=None)


def _pause_s(runs: Sequence[_Run], now: float, budget: Budget) -> float:
    """Return how long nothing is to be done."""
    return min(max(run.due_at, budget.free_at if run.can_wait else run.due_at) for run in runs) - now
