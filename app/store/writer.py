"""Committing a flush: its ledger row, its rows by binary COPY, its idempotency records, and COMMIT, in one transaction.

Promises:
    * ``write`` returns only after COMMIT has been confirmed and as many rows were copied as were to be. (3)
    * A flush in the ledger, or a record in the way, is believed only once it is durable. (13)
    * The ledger row is in the flush's own transaction, so it is there exactly if the rows are. (4)
    * An idempotency record is in the transaction of its readings. (5)
    * One bad row never sinks its neighbours: what PostgreSQL refuses is found by halving, under savepoints. (6)
    * No lock of another session holds up more than it covers: its days, its records, or new names are found and named.

The ledger, and not pg_xact_status, is the proof: after a crash before the WAL was flushed, the same transaction id may
be given out again and then reads "committed" for the work of another.
"""

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeAlias

import psycopg
import pyarrow as pa
from psycopg.errors import LockNotAvailable
from psycopg.pq import TransactionStatus

from app.errors import DatabaseLocked, DatabaseUnavailable, OutcomeUnknown, RejectedByDatabase
from app.ingest.batch import MINUTE_US, Batch, Content, Reading
from app.ingest.blocked import Blocked
from app.ingest.blocked import Span as BlockedSpan
from app.ingest.idempotency import DuplicateRequest, Records
from app.store import idempotency
from app.store.copy import begin_copy, commit, copy_rows
from app.store.database import Connection, Database, first_line, translate_driver_errors
from app.store.durability import CONFIRM, confirmed, hear_warnings
from app.store.latest import LatestReadings
from app.store.limits import ROLLBACK_LOG, LimitSnapshot, SensorLimits, log_violations
from app.store.names import NameIds, SensorIds
from app.store.rows import DAY_US, FlushRows, RowSlice, payload_of
from app.store.tiers import merged, with_few_gaps
from app.store.wire import COPY_READINGS, encode_copy, latest_of_each_sensor

logger = logging.getLogger(__name__)

TOUCH_SOURCES = "UPDATE sources SET last_used_on = current_date WHERE id = ANY(%s) AND last_used_on < current_date"
TOUCH_EVERY_S = 3_600.0
RESERVE_IDS = "SELECT nextval('reading_ids')"
ID_BLOCK_ROWS = 100_000
"""Ids that one nextval hands out: the increment of the sequence ``reading_ids``, and so the most rows of a flush."""

BEGIN_FLUSH = (
    "BEGIN; SET LOCAL client_min_messages = warning; SET LOCAL lock_timeout = {lock_timeout_ms:.0f}; "
    "INSERT INTO flushes (flush_id, rows) VALUES "
    "({first_id:d}, begin_flush('{names}', {rows:d}, '{{{starts}}}', '{{{ends}}}')); "
)
"""Goes out with COPY as one simple query; that kind takes several statements, but no parameters. The function returns
the rows, and records late readings; it raises if names were deleted or renamed since their ids were looked up. Without
late readings it takes some 5 µs, a statement of its own took twice that."""
NAMES_CHANGED_BY = "SELECT coalesce((SELECT value FROM server_settings WHERE name = 'names_changed_by'), '')"
RECORD_LATE = "SELECT record_late('{{{starts}}}', '{{{ends}}}'); "
MAX_LATE_SPANS = 8
RECENT_US = 30_000_000
"""Readings no older than this are not late: the frontier of the aggregates is at least a minute behind."""
INTO_COLUMNSTORE = "SET LOCAL timescaledb.enable_direct_compress_copy = on; "
SAVEPOINT = "SAVEPOINT part; "
# What a constraint would only say at COMMIT, it says here.
RELEASE = "SET CONSTRAINTS ALL IMMEDIATE; RELEASE part"
RELEASE_PART = "RELEASE part"
ROLLBACK_PART = "ROLLBACK TO part; RELEASE part"
SAVEPOINT_WHOLE = "SAVEPOINT whole"
ROLLBACK_WHOLE = "ROLLBACK TO whole; RELEASE whole"
LOCK = "LOCK TABLE ONLY readings, ONLY flushes IN ROW EXCLUSIVE MODE"
"""What every flush needs, whatever days it has; without it, nothing can be stored."""
LOCK_RECORDS = "LOCK TABLE idempotency_keys IN ROW EXCLUSIVE MODE"
PROBE = f"{{begin}}{LOCK}; ROLLBACK; {CONFIRM}"
"""A database that lets us write, but does not confirm a commit, stores nothing."""
LOCK_HOLDERS = """
SELECT format('%s (pid %s) %s %s on %s', coalesce(nullif(application_name, ''), 'a session'), pid,
              CASE WHEN granted THEN 'holds' ELSE 'waits for' END, mode, relation::regclass)
FROM pg_locks LEFT JOIN pg_stat_activity USING (pid)
WHERE mode IN ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock') AND relation IN (
    SELECT inhrelid FROM pg_inherits WHERE inhparent = 'readings'::regclass
    UNION ALL
    SELECT unnest('{readings,flushes,stale_ranges,idempotency_keys,sensors,sources}'::regclass[])
)
ORDER BY granted DESC, pid LIMIT 3
"""
"""Those that an insertion waits for. Most often one is held, or waited for, by a session that waits for a third one."""
WAIT_FOR_LOST_FLUSH = """
INSERT INTO flushes (flush_id, rows) VALUES (%s, 0) ON CONFLICT (flush_id) DO NOTHING RETURNING flush_id
"""

CHECK_SCHEMA_EVERY_S = 5.0
"""A restore may take the tables away under a connection and bring them back without their keys. To name the ledger's
key in each flush's own statement would tell at once, and cost 15 to 25 µs of 200."""
ENCODE_IN_THREAD_ROWS = 2_000
"""Columns of so many rows are encoded beside the event loop: they take 0.2 ms and more, a thread's hand-over 0.1."""
BISECT_S = 2.0
"""How long the refused rows among those of one request are looked for: 1,000 of them take about a second. A request of
100,000, and all of them bad, would outlast the flush timeout and be tried again endlessly, before everything else."""
BRIEF_LOCK_TIMEOUT_S = 0.1
"""How long each lock is waited for where it is known that some can't be had: all other readings wait meanwhile."""
EARLIEST_US = -(1 << 62)
FARTHEST_US = 366 * DAY_US
"""So far ahead of this server's clock readings may be late by the database's: theirs may differ, and a flush may have
been held up. Of what is recorded, only what lies before the frontier is kept."""
MIN_COLUMNSTORE_ROWS = 1_000
"""Smaller flushes go to the rowstore unseen: looking at their times would cost more than it could bring."""

CONTENT_SQLSTATE_CLASSES = frozenset({"22", "23", "44", "54", "P0"})
"""Data exceptions, integrity constraints, WITH CHECK OPTION, program limits, and what a trigger raises: the row is at
fault, not the server. Any other SQLSTATE may pass by itself or by an operator's hand: its rows are tried again."""


@contextmanager
def content_errors() -> Iterator[None]:
    """Raise RejectedByDatabase where PostgreSQL objects to the rows, by SQLSTATE. Other errors pass."""
    try:
        yield
    except psycopg.Error as error:
        if error.sqlstate is not None and error.sqlstate[:2] in CONTENT_SQLSTATE_CLASSES:
            raise RejectedByDatabase(first_line(error)) from error
        raise


@contextmanager
def lock_errors() -> Iterator[None]:
    """Turn a lock that is not granted in time into DatabaseLocked. Pass other errors on."""
    try:
        yield
    except LockNotAvailable as error:
        raise DatabaseLocked(
            "another session has locked a table that readings are written to",
            public="Another session has locked a table that readings are written to.",
        ) from error


@dataclass(slots=True)
class IdBlock:
    """Ids that are ours and no row's yet."""

    next_id: int = 0
    left: int = 0


Minutes: TypeAlias = tuple[int, int]
"""A half-open range of minutes since 1970 UTC."""


class EncodedFlush(NamedTuple):
    """All that is computed from the rows of a flush before it is written."""

    payload: Sequence[bytes]
    """All of its rows, as a COPY in pieces of any size."""
    latest: pa.RecordBatch | None
    """The latest row of each sensor among those of its batches."""
    late: Sequence[Minutes]
    """The minutes of its readings that may be late, if there are aggregates."""
    recent: Sequence[Minutes]
    """The minutes of all others, as one span, if there are aggregates and others."""
    violations: Sequence[bytes]
    """Which of its readings are beyond their limits, as a COPY in pieces; empty if none is."""


@dataclass(slots=True, eq=False)
class PreparedFlush:
    """Readings ready to be written."""

    rows: FlushRows
    encoded: EncodedFlush
    into_columnstore: bool
    connection: Connection | None
    """What it can be written on: its ids are those of the server behind it."""
    limits: LimitSnapshot
    names: str
    """What had last changed the names when their ids were looked up."""
    unnamed: Mapping[int, str | None]
    """The rows that can't be written, as ``refused``: there is no id for their sensor or their sender."""
    refused: dict[int, str | None]
    """The rows that are not stored, by their position, and why PostgreSQL did not take them; None where it would have,
    and another row of a request that is all or nothing is at fault. Known once it is committed."""
    unlogged: Sequence[bytes] = ()
    """Its violations, if a lock has kept them out of the log. Known once it is committed."""

    @property
    def first_id(self) -> int:
        """The id of its first row. The ledger knows the flush by it."""
        return self.rows.first_id

    def begin(self, lock_timeout_s: float, *, records_late: bool = True) -> str:
        """Return the statements that the flush's transaction begins with."""
        spans = [*self.encoded.late, *self.encoded.recent] if records_late else []
        return _begin(self.first_id, self.rows.count, lock_timeout_s, self.names, spans)

    @property
    def record_late(self) -> str:
        """The statement that records late readings, where the first ones do not. Empty if there are no aggregates."""
        spans = [*self.encoded.late, *self.encoded.recent]
        return RECORD_LATE.format(**_arrays(spans)) if spans else ""


def _begin(first_id: int, rows: int, lock_timeout_s: float, names: str, spans: Sequence[Minutes] = ()) -> str:
    return BEGIN_FLUSH.format(
        first_id=first_id,
        rows=rows,
        lock_timeout_ms=max(1, lock_timeout_s * 1_000),
        names=names.replace("'", "''"),
        **_arrays(spans),
    )


def _arrays(spans: Sequence[Minutes]) -> dict[str, str]:
    """Return the starts and the ends of spans as the insides of SQL's arrays."""
    return {"starts": ",".join([f"{start}" for start, _ in spans]), "ends": ",".join([f"{end}" for _, end in spans])}


class Writer:
    """The flusher's connection, and what is remembered along with it.

    One flush at a time is prepared, and one written; both may go on at once.

    Args:
        database: where to connect.
        flush_timeout_s: how long one step may take before its connection is given up for dead.
        lock_timeout_s: how long a flush waits for each lock that another session holds, or waits for.
        columnstore_rows_per_sensor: flushes with as many rows a sensor go straight to the columnstore; 0: none does.
        latest: is told what has been committed.
        now_us: the time, microseconds since 1970 UTC.
    """

    def __init__(
        self,
        database: Database,
        *,
        flush_timeout_s: float,
        lock_timeout_s: float,
        columnstore_rows_per_sensor: int,
        latest: LatestReadings,
        now_us: Callable[[], int],
    ) -> None:
        self._database = database
        self._latest = latest
        self._now_us = now_us
        self._flush_timeout_s = flush_timeout_s
        self._lock_timeout_s = lock_timeout_s
        self._columnstore_rows_per_sensor = columnstore_rows_per_sensor
        self._connection: Connection | None = None
        self._checked_at = -math.inf
        self._sensors = SensorIds(database, timeout_s=flush_timeout_s)
        self._sources = NameIds[tuple[str, ...]](
            database,
            "sources",
            ["key_name", "client_ip"],
            timeout_s=flush_timeout_s,
            touch=TOUCH_SOURCES,
            touch_every_s=TOUCH_EVERY_S,
        )
        self.limits = SensorLimits(database)
        self._names_changed_by: str | None = None
        self._ids = IdBlock()
        self._encoder = ThreadPoolExecutor(1)
        """A thread that no decoding can keep busy."""
        self.gains_by_large_flushes = False
        """Whether what comes at present goes into the columnstore, which takes 20 rows of a sensor for 0.8 of what two
        times 10 cost. The rowstore takes them as they come, and had better be kept busy."""

    async def connect(self) -> None:
        """Ensure a connection that can commit: test a live one, replace a dead one. Raises DatabaseUnavailable."""
        async with self._step() as connection, confirmed(connection):
            begin = _begin(0, 0, self._lock_timeout_s, self._names_changed_by or "")
            await connection.execute(PROBE.format(begin=begin), prepare=False)

    async def close(self) -> None:
        """Give up the connection. PostgreSQL rolls back its open transaction."""
        if self._connection is not None:
            await self._connection.close()
            self._connection = None

    def new_names(self, batch: Batch) -> int:
        """Return how many of a batch's sensors are not remembered here."""
        return len(self._sensors.unknown_of(batch.sensors))

    def has_new_names(self, content: Content) -> bool:
        """Return whether a sensor or the sender of some readings is not remembered here."""
        if self._sources.has_new(content.source):
            return True
        return self._sensors.has_new(content.sensor) if isinstance(content, Reading) else self.new_names(content) > 0

    async def learn_names(self, batch: Batch) -> None:
        """Look up a batch's unknown sensors and add missing ones, piece by piece in turn with other batches. Raises
        DatabaseUnavailable.
        """
        await self._sensors.learn(batch.sensors, lock_timeout_s=self._lock_timeout_s)

    async def prepare(self, contents: Sequence[Content], *, was_blocked: bool = False) -> PreparedFlush:
        """Make a flush of the contents, in their order: names become ids, every row gets one, all is encoded. After
        ``was_blocked``, wait only briefly for locks.

        It holds for the connection that there is now: if that is lost, prepare anew.

        Raises:
            DatabaseUnavailable: the database is needed for it, and can't be asked.
            Blocked: another session has locked a table of names, or a new name in it.
        """
        connection, names = self._connection, self._names_changed_by
        rows = await self._rows(contents, lock_timeout_s=BRIEF_LOCK_TIMEOUT_S if was_blocked else self._lock_timeout_s)
        limits = await self.limits.current()
        into_columnstore = self._suits_columnstore(rows)
        if rows.count >= MIN_COLUMNSTORE_ROWS:
            self.gains_by_large_flushes = into_columnstore
        if rows.batch_rows >= ENCODE_IN_THREAD_ROWS:
            loop = asyncio.get_running_loop()
            encoded = await loop.run_in_executor(self._encoder, _encode, rows, limits, self._recent_us())
        else:
            encoded = _encode(rows, limits, self._recent_us())
        unnamed = rows.unnamed(self._sensors.no_id_left, self._sources.no_id_left)
        return PreparedFlush(rows, encoded, into_columnstore, connection, limits, names or "", unnamed, dict(unnamed))

    async def write(self, flush: PreparedFlush, records: Callable[[], Records], *, was_blocked: bool = False) -> None:
        """Commit a flush, less the rows that PostgreSQL refuses: ``flush.refused`` names them. ``records`` is asked
        for its idempotency records, once it is known which those are. If the flush ``was_blocked`` by a lock, wait for
        each lock only briefly.

        Raises:
            DatabaseUnavailable: nothing of it is committed; the connection that it was prepared for may be lost.
            DatabaseLocked: nothing is committed; another session's lock is in the way of any flush.
            Blocked: nothing is committed; a lock is in the way of some days, or records.
            DuplicateRequest: nothing is committed; some of its requests have been committed before.
            OutcomeUnknown: the connection died, or went silent, after COMMIT was sent; or it was not confirmed.
        """
        if asyncio.get_running_loop().time() - self._checked_at > CHECK_SCHEMA_EVERY_S:
            async with self._step() as connection:
                await self._database.check_schema(connection)
                self._checked_at = asyncio.get_running_loop().time()
        copy = self._copy_by_day if was_blocked else self._copy_at_once
        tried = set()
        last: DatabaseLocked | RejectedByDatabase
        while copy not in tried:
            tried.add(copy)
            try:
                await self._transact(flush, copy, records)
            except DatabaseLocked as error:  # or Blocked, which only that copy raises
                copy, last = self._copy_by_day, error
            except RejectedByDatabase as error:
                copy, last = self._copy_what_is_taken, error
            else:
                self._record_latest(flush)
                return
        if isinstance(last, RejectedByDatabase):  # at COMMIT, where every row that is left has been taken
            raise DatabaseUnavailable(str(last)) from last
        raise last

    async def was_committed(self, flush: PreparedFlush) -> bool:
        """Return whether a flush is in the ledger, and durable. Waits for a lost transaction that writes it to end.

        Raises:
            DatabaseUnavailable: the ledger can't be asked now, the lost transaction has not ended in time, or what the
                ledger has was not confirmed.
        """
        async with self._step() as connection, confirmed(connection), connection.transaction() as asking:
            row = await (await connection.execute(WAIT_FOR_LOST_FLUSH, [flush.first_id])).fetchone()
            if row is not None:
                raise psycopg.Rollback(asking)
            await connection.execute(CONFIRM)
        if row is None:
            self._record_latest(flush)
        return row is None

    def _record_latest(self, flush: PreparedFlush) -> None:
        """Tell the latest readings and the limits of a committed flush. A failure must not make it look uncommitted."""
        try:
            if flush.unlogged:
                self.limits.hold(flush.unlogged)
            if flush.refused:
                singles, rows = flush.rows.without(flush.refused)
                self._latest.record(singles, None if rows is None else latest_of_each_sensor(rows))
            else:
                self._latest.record(flush.rows.single_rows(), flush.encoded.latest)
        except Exception:
            logger.exception("the latest readings of flush %d are not known until the next start", flush.first_id)

    def _recent_us(self) -> int | None:
        """Return the time from which on no reading is late, microseconds since 1970 UTC.

        None: there are no aggregates.
        """
        edition = self._database.edition
        if edition is None or not edition.has_aggregates:
            return None
        return self._now_us() - RECENT_US

    async def _rows(self, contents: Sequence[Content], *, lock_timeout_s: float) -> FlushRows:
        """Look up the ids of names, add missing names, and give each row an id."""
        names = [content.sensor for content in contents if isinstance(content, Reading)]
        arrays = [content.sensors for content in contents if isinstance(content, Batch)]
        try:
            source_ids = await self._sources.ids_of(
                [content.source for content in contents], lock_timeout_s=lock_timeout_s
            )
            of_names, of_arrays = await self._sensors.ids_of_all(names, arrays, lock_timeout_s=lock_timeout_s)
        except DatabaseLocked as error:
            blocked = Blocked((), of_new_names=True)
            async with self._database.connection(timeout_s=self._flush_timeout_s) as connection:
                blocked.holders = await _lock_holders(connection)
            raise blocked from error
        first_id = await self._reserve_ids(sum(content.rows for content in contents))
        return FlushRows.of(
            first_id, contents, source_ids=source_ids, sensor_ids=of_names, sensor_ids_of_batches=of_arrays
        )

    def _suits_columnstore(self, rows: FlushRows) -> bool:
        """Whether writing straight to the columnstore is the faster way. Few rows a sensor and chunk make it the slower
        one. TimescaleDB 2.29.2, flushes of 10,000 rows, columnstore's rate over rowstore's, by rows a sensor: 1 0.25,
        2 0.42, 3 0.52, 4 0.72, 5 0.89, 7 1.13, 10 1.58, 20 1.58; of 50,000: 5 0.92, 7 0.97, 10 1.31, 20 1.97. In bytes
        on disk a reading: 1 608, 5 154, 7 114, 10 85, 20 56, and always some 135 in the rowstore with its index.
        """
        edition, threshold = self._database.edition, self._columnstore_rows_per_sensor
        if rows.count < MIN_COLUMNSTORE_ROWS or not threshold or edition is None or not edition.direct_compress:
            return False
        return rows.count >= threshold * rows.sensor_count() * rows.day_count()

    async def _reserve_ids(self, count: int) -> int:
        """Return the first of ``count`` consecutive ids, at most ID_BLOCK_ROWS. The rest of a short block is lost."""
        block = self._ids
        if count > block.left:
            async with self._database.connection(timeout_s=self._flush_timeout_s) as connection:
                row = await (await connection.execute(RESERVE_IDS)).fetchone()
            assert row is not None  # nextval has a row
            block.next_id, block.left = row[0], ID_BLOCK_ROWS
        first_id = block.next_id
        block.next_id += count
        block.left -= count
        return first_id

    async def _transact(
        self,
        flush: PreparedFlush,
        copy_all: Callable[[Connection, PreparedFlush], Awaitable[None]],
        records: Callable[[], Records],
    ) -> None:
        if self._connection is None or self._connection is not flush.connection:
            raise DatabaseUnavailable("the connection that the flush was prepared for is lost")
        commit_is_out = False
        try:
            async with self._step() as connection:
                await copy_all(connection, flush)
                await _insert_records(connection, records(), is_brief=copy_all == self._copy_by_day)
                await _log_violations(connection, flush)
                commit_is_out = True
                try:
                    with content_errors(), hear_warnings(connection) as warnings:
                        tag = await connection.wait(commit(connection.pgconn))
                except (psycopg.Error, RejectedByDatabase):
                    # An error that PostgreSQL itself sends in answer to COMMIT leaves the connection idle: rolled back.
                    # Idle after a timeout proves nothing: psycopg waits on while it cancels, and drops the answer.
                    commit_is_out = connection.info.transaction_status != TransactionStatus.IDLE
                    raise
                commit_is_out = False
                if tag != "COMMIT":
                    raise DatabaseUnavailable(f"PostgreSQL answered COMMIT with {tag}")
                if warnings:
                    raise OutcomeUnknown(f"PostgreSQL warned at COMMIT: {warnings[0]}")
        except Exception as error:
            if commit_is_out:
                raise OutcomeUnknown(str(error)) from error
            raise

    async def _copy_at_once(self, connection: Connection, flush: PreparedFlush) -> None:
        """All rows in one COPY. Raises RejectedByDatabase if PostgreSQL does not take every one."""
        begin = flush.begin(self._lock_timeout_s)
        begin += INTO_COLUMNSTORE if flush.into_columnstore else ""
        await self._copy(connection, begin, flush.encoded.payload, flush.rows.count - len(flush.unnamed))

    async def _copy_what_is_taken(self, connection: Connection, flush: PreparedFlush) -> None:
        """Row by row where it must be: what is refused stands in ``flush.refused``, the rest in the transaction."""
        await connection.execute(flush.begin(self._lock_timeout_s), prepare=False)
        flush.refused = dict(flush.unnamed)
        bisect_until = asyncio.get_running_loop().time() + min(BISECT_S, self._flush_timeout_s / 3)
        await self._copy_parts(connection, list(flush.rows.slices()), flush.refused, bisect_until)

    async def _copy_parts(
        self, connection: Connection, slices: Sequence[RowSlice], refused: dict[int, str | None], bisect_until: float
    ) -> None:
        """Copy slices, split where PostgreSQL refuses a row. From ``bisect_until`` on, each request stays whole."""
        parts = [slices]
        while parts:
            slices = parts.pop()
            try:
                payload = payload_of(each.rows for each in slices)
                await self._copy(connection, SAVEPOINT, payload, sum(each.count for each in slices))
                with content_errors():
                    await connection.execute(RELEASE, prepare=False)
            except RejectedByDatabase as error:
                await connection.execute(ROLLBACK_PART, prepare=False)
                has_time = asyncio.get_running_loop().time() < bisect_until
                split = slices if len(slices) > 1 else slices[0].split() if has_time else []
                if split:
                    middle = len(split) // 2
                    parts += [split[middle:], split[:middle]]
                else:
                    refused.update(await self._reasons(connection, slices[0], str(error), bisect_until))

    async def _copy_by_day(self, connection: Connection, flush: PreparedFlush) -> None:
        """Write all rows, each day (UTC) by its own COPY into the rowstore, waiting little for locks.

        Raises:
            Blocked: some days are locked; how the transaction stands is of no use then.
            RejectedByDatabase: none is, and PostgreSQL does not take every row.
        """
        flush.refused = dict(flush.unnamed)
        await connection.execute(flush.begin(BRIEF_LOCK_TIMEOUT_S, records_late=False), prepare=False)
        await connection.execute(LOCK, prepare=False)
        blocked: list[BlockedSpan] = []
        if flush.record_late and not await _unless_locked(connection.execute(SAVEPOINT + flush.record_late)):
            await connection.execute(ROLLBACK_PART, prepare=False)
            late = flush.encoded.late or flush.encoded.recent
            blocked = [(EARLIEST_US, late[-1][1] * MINUTE_US - 1)]
        rejected = None
        ends = asyncio.get_running_loop().time() + BISECT_S
        for day, rows in sorted(flush.rows.by_day().items(), reverse=True):
            payload = payload_of(rows)
            count = sum(1 if isinstance(part, bytes) else part.num_rows for part in rows)
            has_time = asyncio.get_running_loop().time() < ends
            try:
                is_free = has_time and await _unless_locked(self._copy(connection, SAVEPOINT, payload, count))
            except RejectedByDatabase as error:
                is_free, rejected = True, error
            if not is_free:
                blocked.append((day * DAY_US, (day + 1) * DAY_US - 1))
            if has_time:
                await connection.execute(RELEASE_PART if is_free and not rejected else ROLLBACK_PART, prepare=False)
        if blocked:
            raise Blocked(blocked)
        if rejected is not None:
            raise rejected

    async def _reasons(
        self, connection: Connection, piece: RowSlice, error: str, bisect_until: float
    ) -> Mapping[int, str | None]:
        """Why the rows of a slice that is rejected, and not split further, are not stored."""
        positions = range(piece.start, piece.start + piece.count)
        if piece.count == 1:
            return {piece.start: error}
        if piece.is_atomic:
            culprits: dict[int, str | None] = {}
            await connection.execute(SAVEPOINT_WHOLE, prepare=False)
            await self._copy_parts(connection, [replace(piece, is_atomic=False)], culprits, bisect_until)
            await connection.execute(ROLLBACK_WHOLE, prepare=False)
            if culprits:
                return {**dict.fromkeys(positions), **culprits}
        return dict.fromkeys(positions, f"{error} (of this or another of {piece.count:,} readings refused together)")

    @staticmethod
    async def _copy(connection: Connection, statements: str, payload: Sequence[bytes], rows: int) -> None:
        await connection.wait(begin_copy(connection.pgconn, (statements + COPY_READINGS).encode()))
        with content_errors():
            taken = await connection.wait(copy_rows(connection.pgconn, payload))
        # A trigger that returns NULL leaves its row out, and PostgreSQL calls that success.
        if taken != rows:
            raise RejectedByDatabase(f"PostgreSQL took {taken} of {rows} rows without an error")

    @asynccontextmanager
    async def _step(self) -> AsyncIterator[Connection]:
        """Lend a live connection for one step, within the timeout. A failed step leaves nothing behind."""
        if is_new := self._connection is None:
            with translate_driver_errors():
                async with asyncio.timeout(self._flush_timeout_s):
                    self._connection = await self._database.connect_to_write("sensorflow flusher")
            # What was remembered is another server's, if this one took over after a failover.
            self._sensors.forget()
            self._sources.forget()
            self._ids = IdBlock()
        connection = self._connection
        try:
            with translate_driver_errors(), lock_errors():
                async with asyncio.timeout(self._flush_timeout_s):
                    if is_new:  # before any name is looked up that is to be written on it
                        await self._ask_what_changed_names(connection)
                    yield connection
        except (RejectedByDatabase, DatabaseLocked, DuplicateRequest) as error:
            try:
                async with asyncio.timeout(self._flush_timeout_s):
                    await connection.rollback()
                    if isinstance(error, DatabaseLocked):
                        error.holders = await _lock_holders(connection)
            except (psycopg.Error, TimeoutError):
                await self.close()
            raise
        except Exception:
            await self.close()
            raise

    async def _ask_what_changed_names(self, connection: Connection) -> None:
        row = await (await connection.execute(NAMES_CHANGED_BY, prepare=False)).fetchone()
        assert row is not None  # a SELECT without FROM has one row
        if self._names_changed_by not in {None, row[0]}:
            logger.warning("Rows of sensors or sources were deleted or renamed. Looking up every name again.")
        (self._names_changed_by,) = row


async def _unless_locked(work: Awaitable[object]) -> bool:
    """Return whether some work got its locks. If not, its savepoint must be rolled back."""
    try:
        await work
    except LockNotAvailable:
        return False
    return True


async def _insert_records(connection: Connection, records: Records, *, is_brief: bool) -> None:
    """Insert idempotency records. Raises DuplicateRequest if some have been committed before; if it is to be brief,
    Blocked if some are in a transaction that has not ended.
    """
    if not records:
        return
    insert = _insert_records_briefly if is_brief else idempotency.insert
    if names := await insert(connection, records):
        # Those are committed: the insertion waited for any transaction that was about to. Whether they are durable, a
        # commit tells, which must not be that of this flush.
        await connection.rollback()
        results = await idempotency.find(connection, names)
        if not results:
            raise DatabaseUnavailable("the conflicting idempotency records have just been deleted")
        raise DuplicateRequest(results)


async def _log_violations(connection: Connection, flush: PreparedFlush) -> None:
    """Log which of the rows that PostgreSQL has taken are beyond their limits, unless the log is locked."""
    violations = flush.encoded.violations
    if flush.refused:
        violations = flush.limits.violations(*flush.rows.without(flush.refused))
    flush.unlogged = ()
    if violations and not await _unless_locked(log_violations(connection, violations)):
        await connection.execute(ROLLBACK_LOG, prepare=False)
        flush.unlogged = violations


async def _lock_holders(connection: Connection) -> str:
    """Return the sessions that hold or await locks that flushes wait for, in words."""
    held = await (await connection.execute(LOCK_HOLDERS)).fetchall()
    return "; ".join(lock for (lock,) in held)


async def _insert_records_briefly(connection: Connection, records: Records) -> Sequence[tuple[str, str]]:
    """Insert records like ``idempotency.insert``, in halves, each under a savepoint. Raises Blocked."""
    if not await _unless_locked(connection.execute(LOCK_RECORDS, prepare=False)):
        raise Blocked((), None)
    repeated: list[tuple[str, str]] = []
    blocked: list[tuple[str, str]] = []
    parts = [list(records)]
    ends = asyncio.get_running_loop().time() + BISECT_S
    while parts:
        part = parts.pop()
        await connection.execute(SAVEPOINT, prepare=False)
        try:
            repeated += await idempotency.insert(connection, {record: records[record] for record in part})
        except LockNotAvailable:
            await connection.execute(ROLLBACK_PART, prepare=False)
            if len(part) > 1 and asyncio.get_running_loop().time() < ends:
                parts += [part[: len(part) // 2], part[len(part) // 2 :]]
            else:
                blocked += [record.name for record in part]
        else:
            await connection.execute(RELEASE_PART, prepare=False)
    if blocked:
        raise Blocked((), blocked)
    return repeated


def _encode(rows: FlushRows, limits: LimitSnapshot, recent_us: int | None) -> EncodedFlush:
    """Encode the rows of a flush. None of its readings from ``recent_us`` on is late; None: there are no aggregates."""
    ordered = rows.ordered()
    latest = None if ordered is None else latest_of_each_sensor(ordered)
    late, recent = ([], []) if recent_us is None else _minutes(rows.contents, recent_us)
    violations = limits.violations(rows.single_rows(), ordered)
    return EncodedFlush(encode_copy(rows.packed(), ordered), latest, late, recent, violations)


def _minutes(contents: Sequence[Content], recent_us: int) -> tuple[Sequence[Minutes], Sequence[Minutes]]:
    """Return the minutes of the readings before a time, in few spans, and those of the others, in one span at most."""
    ranges = [content.time_range_us() for content in contents]
    earliest_us, latest_us = min(ranges)[0], max([last for _, last in ranges])
    spans: Sequence[Minutes] = []
    if earliest_us < recent_us:
        late = set().union(*(content.minutes_before(recent_us) for content in contents))
        spans = with_few_gaps(merged((minute, minute + 1) for minute in sorted(late)), MAX_LATE_SPANS)
    if latest_us < recent_us:
        return spans, []
    return spans, [(recent_us // MINUTE_US, min(latest_us, recent_us + FARTHEST_US) // MINUTE_US + 1)]
