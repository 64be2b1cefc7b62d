"""Group commit: a flush starts as soon as the last one has ended, and takes along everything that came meanwhile.

This module owns the order of events between the buffer and the database, and the answers; it knows neither SQL nor
HTTP. Time is a clock that it is given, the database a ``Store``.

Promises:
    * A sender has its receipt only after its reading is committed; ``NotStored`` only if it certainly is not;
      ``OutcomeUnknown`` if nobody can tell yet. (3)
    * A flush commits once, also when its connection dies during COMMIT: the ledger is asked, on a new connection,
      before anything of it is tried again. (4)
    * One bad row never sinks its neighbours: a refused flush is halved until the row stands alone. (6)
    * Receipts reach ``on_commit`` after COMMIT and in the order of commits. (7)
"""

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, TypeVar

from app.errors import DatabaseAway, NotStored, OutcomeUnknown, RejectedByDatabase, ShuttingDown
from app.ingest.batch import Batch, Reading
from app.ingest.buffer import Answer, Buffer, Parcel
from app.ingest.receipt import Receipt

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

SWEEP_INTERVAL_S = 0.2
ENOUGH_ROWS = 1_000
"""A flush this large is worth its own round trips: it waits for no neighbour."""
TURNS_TO_ARRIVE = 3
"""Turns of the event loop from a readable socket to a submitted reading."""
FIRST_BACKOFF_S = 0.05
LONGEST_BACKOFF_S = 2.0
LONGEST_RETRY_AFTER_S = 60


class Store(Protocol):
    """What the pipeline needs of a database."""

    async def connect(self) -> None:
        """Makes sure of a connection that can write; DatabaseAway if there is none."""

    async def reserve_ids(self, count: int) -> int:
        """The first of ``count`` consecutive ids that nobody else will get; DatabaseAway if it can't ask."""

    async def write(self, batch: Batch, *, first_id: int) -> None:
        """Commits a batch, with ``first_id`` as its place in the ledger.

        Raises:
            DatabaseAway: nothing of it is committed, nor will be.
            RejectedByDatabase: likewise, and PostgreSQL objects to the content.
            OutcomeUnknown: COMMIT was sent and no answer came.
        """

    async def was_committed(self, first_id: int) -> bool:
        """Whether that flush committed; waits for a lost transaction to end. DatabaseAway if it can't ask."""


class Pipeline:
    """Takes readings in, has them committed in groups, and answers for each.

    Args:
        buffer: where readings are held; nobody else changes it.
        store: the database.
        encode: makes a committed reading's receipt from the reading and its id.
        on_commit: gets the receipts of every flush that committed. It must not block.
        on_flush: is told each committed flush's rows and duration in seconds.
        clock: seconds, monotonic.
        commit_timeout_s: how long a reading may wait for its commit.
        flush_max_rows: rows in one flush at most.
    """

    def __init__(
        self,
        *,
        buffer: Buffer,
        store: Store,
        encode: Callable[[Reading, int], Receipt],
        on_commit: Callable[[Sequence[Receipt]], None],
        on_flush: Callable[[int, float], None],
        clock: Callable[[], float],
        commit_timeout_s: float,
        flush_max_rows: int,
    ) -> None:
        self.buffer = buffer
        self._store = store
        self._encode = encode
        self._on_commit = on_commit
        self._on_flush = on_flush
        self._clock = clock
        self._commit_timeout_s = commit_timeout_s
        self._flush_max_rows = flush_max_rows
        self._trouble: str | None = "the database has not been reached yet"
        self._draining = False
        self.opened = asyncio.Event()
        """Set once readings have been taken for the first time."""
        self._arrived = asyncio.Event()
        self._emptied = asyncio.Event()
        self._backoff_s = FIRST_BACKOFF_S
        self._rows_per_s = 0.0

    @property
    def trouble(self) -> str | None:
        """Why nothing can be stored at the moment; None when all is well."""
        return "the server is shutting down" if self._draining else self._trouble

    def submit(self, reading: Reading, settle: Callable[[Answer], None]) -> None:
        """Takes a reading in; ``settle`` gets its answer, once, at the latest when the commit timeout has passed.

        Raises:
            BufferFull, DatabaseAway, ShuttingDown: it is not taken, and ``settle`` won't be called.
        """
        if self._draining:
            raise self._shutting_down()
        if self._trouble is not None:
            raise self._away()
        now = self._clock()
        parcel = Parcel(reading, now, now + self._commit_timeout_s, settle)
        self.buffer.add(parcel, retry_after_s=self._seconds_to_drain())
        self._arrived.set()

    async def run(self) -> None:
        """Flushes until cancelled. Whatever ends it, everybody who waits is answered."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._sweep())
                tasks.create_task(self._flush_for_ever())
        finally:
            self._trouble = self._trouble or "the flusher has stopped"
            self._answer_everybody()

    async def drain(self, timeout_s: float) -> None:
        """Takes nothing new and waits until all is flushed, for ``timeout_s`` at most; the rest is given back."""
        self._draining = True
        try:
            async with asyncio.timeout(timeout_s):
                while self.buffer.rows:
                    self._emptied.clear()
                    await self._emptied.wait()
        except TimeoutError:
            logger.warning("stopping with %d rows that could not be flushed", self.buffer.rows)
        self._answer_everybody()

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_INTERVAL_S)
            self.buffer.expire(self._clock(), self._away, self._unknown)
            if not self.buffer.rows:
                self._emptied.set()

    async def _flush_for_ever(self) -> None:
        await self._reach(self._store.connect)
        failures = 0
        while True:
            if not self.buffer.rows:
                self._emptied.set()
            if not self.buffer.waiting_rows:
                self._arrived.clear()
                await self._arrived.wait()
            await self._let_neighbours_in()
            parcels = self.buffer.begin(self._flush_max_rows)
            if not parcels:  # they have expired meanwhile
                continue
            try:
                await self._store_parcels(parcels)
            except DatabaseAway as error:
                self.buffer.keep()
                failures += 1
                # The first failure is most often a connection that died while idle: a new one is tried at once.
                if failures > 1:
                    await self._back_off(error)
                await self._reach(self._store.connect)
            else:
                failures = 0
                self._backoff_s = FIRST_BACKOFF_S

    async def _let_neighbours_in(self) -> None:
        """Lets requests that have reached this process's sockets join the flush, for as long as every turn of the
        event loop brings some. A lone request waits a few turns; there is no fixed delay. Measured with 32
        connections: 31 rows a flush instead of 16, and 8,100 requests/s instead of 7,100.
        """
        seen = 0
        while seen < self.buffer.waiting_rows < ENOUGH_ROWS:
            seen = self.buffer.waiting_rows
            for _ in range(TURNS_TO_ARRIVE):
                await asyncio.sleep(0)

    async def _store_parcels(self, parcels: Sequence[Parcel]) -> None:
        """Commits these parcels, the first of the flight, and ends their part of it.

        Raises:
            DatabaseAway: those that are still in flight are not committed.
        """
        started = self._clock()
        readings = [parcel.reading for parcel in parcels]
        first_id = await self._store.reserve_ids(len(readings))
        try:
            await self._store.write(Batch.of(readings), first_id=first_id)
        except RejectedByDatabase as error:
            if len(parcels) == 1:
                logger.warning("PostgreSQL refused a reading of sensor %r: %s", readings[0].sensor, error)
                self.buffer.reject(error)
                return
            middle = len(parcels) // 2
            await self._store_parcels(parcels[:middle])
            await self._store_parcels(parcels[middle:])
            return
        except OutcomeUnknown as error:
            logger.warning("the answer to COMMIT was lost; asking the ledger about flush %d", first_id)
            if not await self._reach(lambda: self._store.was_committed(first_id)):
                raise DatabaseAway(f"flush {first_id} did not commit") from error
        self._commit(parcels, first_id, self._clock() - started)

    def _commit(self, parcels: Sequence[Parcel], first_id: int, duration_s: float) -> None:
        receipts = [self._encode(parcel.reading, first_id + place) for place, parcel in enumerate(parcels)]
        self.buffer.accept(len(parcels))
        for parcel, receipt in zip(parcels, receipts, strict=True):
            parcel.answer(receipt)
        self._on_commit(receipts)
        self._on_flush(len(parcels), duration_s)
        self._rows_per_s += 0.2 * (len(parcels) / max(duration_s, 1e-6) - self._rows_per_s)

    async def _reach(self, attempt: Callable[[], Awaitable[Result]]) -> Result:
        """The result of ``attempt``, however often it takes until the database can be reached."""
        while True:
            try:
                result = await attempt()
            except DatabaseAway as error:
                await self._back_off(error)
            else:
                if self._trouble is not None:
                    logger.info("the database is reached; readings are taken")
                self._trouble = None
                self.opened.set()
                return result

    async def _back_off(self, error: DatabaseAway) -> None:
        if self._trouble is None:
            logger.warning("the database is away, readings are refused: %s", error)
        self._trouble = str(error)
        await asyncio.sleep(self._backoff_s)
        self._backoff_s = min(2 * self._backoff_s, LONGEST_BACKOFF_S)

    def _answer_everybody(self) -> None:
        """Gives back what waits, and tells the senders of what is in flight that nobody knows."""
        self.buffer.expire(math.inf, self._shutting_down if self._draining else self._away, self._unknown)

    def _seconds_to_drain(self) -> int:
        if not self._rows_per_s:
            return 1
        return min(math.ceil(self.buffer.rows / self._rows_per_s), LONGEST_RETRY_AFTER_S)

    def _away(self) -> NotStored:
        return DatabaseAway(
            "The reading is not stored: the database is away, or did not commit it in time.",
            retry_after_s=math.ceil(LONGEST_BACKOFF_S),
        )

    @staticmethod
    def _shutting_down() -> NotStored:
        return ShuttingDown("The reading is not stored: the server is shutting down.", retry_after_s=5)

    @staticmethod
    def _unknown() -> OutcomeUnknown:
        return OutcomeUnknown("The database has not answered in time: the reading may be stored, or not.")
