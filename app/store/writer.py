"""Committing a batch: its ledger row, its rows by binary COPY, and COMMIT, in one transaction on one connection.

Promises:
    * ``write`` returns only after COMMIT has been confirmed and as many rows were copied as were given. (3)
    * The ledger row is in the flush's own transaction, so it is there exactly if the rows are. (4)

The ledger, and not pg_xact_status, is the proof: after a crash before the WAL was flushed, the same transaction id may
be given out again and then reads "committed" for somebody else's work.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import psycopg
import pyarrow as pa
from pgpq import ArrowToPostgresBinaryEncoder
from psycopg.pq import TransactionStatus

from app.errors import DatabaseAway, OutcomeUnknown, RejectedByDatabase
from app.ingest.batch import Batch, column
from app.store.copy import begin_copy, commit, copy_rows
from app.store.database import Connection, Database, first_line, own_errors
from app.store.names import NameIds

RESERVE_IDS = "SELECT nextval('reading_ids')"
ID_BLOCK_ROWS = 100_000
"""Ids that one nextval hands out: the increment of the sequence ``reading_ids``, and so the most rows of a flush."""

BEGIN_FLUSH = "BEGIN; INSERT INTO flushes (flush_id, rows) VALUES ({first_id:d}, {rows:d}); "
"""Goes out with COPY as one simple query; that kind takes several statements, but no parameters."""
COPY_READINGS = (
    "COPY readings (time, sensor_id, id, source_id, temperature, humidity, pressure) FROM STDIN (FORMAT BINARY)"
)
PROBE = "BEGIN; INSERT INTO flushes (flush_id, rows) VALUES (0, 0); ROLLBACK"
WAIT_FOR_LOST_FLUSH = """
INSERT INTO flushes (flush_id, rows) VALUES (%s, 0) ON CONFLICT DO NOTHING RETURNING flush_id
"""

WIRE_SCHEMA = pa.schema(
    [
        ("time", pa.timestamp("us", "UTC")),
        ("sensor_id", pa.int32()),
        ("id", pa.int64()),
        ("source_id", pa.int32()),
        ("temperature", pa.float64()),
        ("humidity", pa.float64()),
        ("pressure", pa.float64()),
    ]
)


CONTENT_SQLSTATE_CLASSES = frozenset({"22", "23", "44", "54", "P0"})
"""Data exceptions, integrity constraints, WITH CHECK OPTION, program limits, and what a trigger raises: the row is at
fault, not the server. Any other SQLSTATE may pass by itself or by an operator's hand: its rows are tried again."""


@contextmanager
def content_errors() -> Iterator[None]:
    """What PostgreSQL objects to in the rows becomes RejectedByDatabase, by SQLSTATE; other errors pass."""
    try:
        yield
    except psycopg.Error as error:
        if error.sqlstate is not None and error.sqlstate[:2] in CONTENT_SQLSTATE_CLASSES:
            raise RejectedByDatabase(first_line(error)) from error
        raise


class Writer:
    """The flusher's connection, and what is remembered along with it. One coroutine at a time uses it.

    Args:
        database: where to connect.
        flush_timeout_s: how long one step may take before its connection is given up for dead.
    """

    def __init__(self, database: Database, *, flush_timeout_s: float) -> None:
        self._database = database
        self._flush_timeout_s = flush_timeout_s
        self._connection: Connection | None = None
        self._sensors = NameIds("sensors", ["name"])
        self._sources = NameIds("sources", ["key_name", "client_ip"])
        self._next_id = 0
        self._ids_left = 0

    async def connect(self) -> None:
        """Makes sure of a connection that can write: a live one is tried, a dead one replaced. Raises DatabaseAway."""
        async with self._step() as connection:
            await connection.execute(PROBE, prepare=False)

    async def close(self) -> None:
        """Gives up the connection; whatever it was doing is rolled back by PostgreSQL."""
        if self._connection is not None:
            await self._connection.close()
            self._connection = None

    async def reserve_ids(self, count: int) -> int:
        """The first of ``count`` consecutive ids, at most ID_BLOCK_ROWS. The rest of a block too short is let go."""
        if count > self._ids_left:
            async with self._step() as connection:
                row = await (await connection.execute(RESERVE_IDS)).fetchone()
            assert row is not None  # nextval has a row
            self._next_id, self._ids_left = row[0], ID_BLOCK_ROWS
        first_id = self._next_id
        self._next_id += count
        self._ids_left -= count
        return first_id

    async def write(self, batch: Batch, *, first_id: int) -> None:
        """Commits a batch whose rows have the ids from ``first_id`` on; the ledger knows it by that id.

        Raises:
            DatabaseAway: nothing of it is committed.
            RejectedByDatabase: likewise; PostgreSQL objects to the content.
            OutcomeUnknown: the connection died, or went silent, after COMMIT was sent.
        """
        rows = batch.columns.num_rows
        commit_is_out = False
        try:
            async with self._step() as connection:
                rows_on_the_wire = await self._encode(connection, batch, first_id)
                statements = BEGIN_FLUSH.format(first_id=first_id, rows=rows) + COPY_READINGS
                await connection.wait(begin_copy(connection.pgconn, statements.encode()))
                with content_errors():
                    taken = await connection.wait(copy_rows(connection.pgconn, rows_on_the_wire))
                # A trigger that returns NULL leaves its row out, and PostgreSQL calls that success.
                if taken != rows:
                    raise RejectedByDatabase(f"PostgreSQL took {taken} of {rows} rows without an error")
                commit_is_out = True
                try:
                    with content_errors():
                        tag = await connection.wait(commit(connection.pgconn))
                finally:
                    # An error that PostgreSQL itself sends in answer to COMMIT leaves the connection idle: rolled back.
                    commit_is_out = connection.info.transaction_status != TransactionStatus.IDLE
                if tag != "COMMIT":
                    raise DatabaseAway(f"COMMIT was answered with {tag}")
        except (DatabaseAway, RejectedByDatabase) as error:
            if commit_is_out:
                raise OutcomeUnknown(str(error)) from error
            raise

    async def was_committed(self, first_id: int) -> bool:
        """Whether the flush of that id is in the ledger. Waits until a lost transaction that writes it has ended.

        Raises:
            DatabaseAway: the ledger can't be asked now, or the lost transaction has not ended in time.
        """
        async with self._step() as connection, connection.transaction(force_rollback=True):
            row = await (await connection.execute(WAIT_FOR_LOST_FLUSH, [first_id])).fetchone()
        return row is None

    async def _encode(self, connection: Connection, batch: Batch, first_id: int) -> bytes:
        """The batch in PostgreSQL's binary COPY format, names replaced by ids."""
        sensor_ids = await self._sensors.resolve(connection, [(name,) for name in batch.sensors])
        source_ids = await self._sources.resolve(connection, batch.sources)
        time, sensor, source, *measures = batch.columns.columns
        columns = [
            time,
            column(sensor_ids, pa.int32()).take(sensor),
            column(range(first_id, first_id + batch.columns.num_rows), pa.int64()),
            column(source_ids, pa.int32()).take(source),
            *measures,
        ]
        wire = pa.RecordBatch.from_arrays(columns, schema=WIRE_SCHEMA)
        encoder = ArrowToPostgresBinaryEncoder(WIRE_SCHEMA)
        return encoder.write_header() + encoder.write_batch(wire) + encoder.finish()

    @asynccontextmanager
    async def _step(self) -> AsyncIterator[Connection]:
        """A live connection for one step, within the timeout. After a failure none of the step is left behind."""
        if self._connection is None:
            self._connection = await self._database.connect("sensorflow flusher")
            # What was remembered is another server's, if this one took over after a failover.
            self._sensors.forget()
            self._sources.forget()
            self._ids_left = 0
        connection = self._connection
        try:
            with own_errors():
                async with asyncio.timeout(self._flush_timeout_s):
                    yield connection
        except RejectedByDatabase:
            try:
                async with asyncio.timeout(self._flush_timeout_s):
                    await connection.rollback()
            except (psycopg.Error, TimeoutError):
                await self.close()
            raise
        except DatabaseAway:
            await self.close()
            raise
