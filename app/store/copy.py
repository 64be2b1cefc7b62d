"""The conversation of one flush, spoken straight to libpq: three round trips where the driver's own calls take five.

psycopg's ``Cursor.copy`` wants a COPY to be a message of its own. PostgreSQL does not: BEGIN, the ledger's row and COPY
travel as one simple query. For a flush of 16 rows that brought the whole write from 760 to 610 µs of CPU, and CPU is
what bounds one reading a request. The generators here run under ``AsyncConnection.wait``, psycopg's own way to talk
without blocking.
"""

from collections.abc import Iterable

from psycopg import errors
from psycopg.abc import PQGen
from psycopg.generators import fetch_many, send
from psycopg.pq import ExecStatus
from psycopg.pq.abc import PGconn, PGresult

CHUNK_BYTES = 262_144
"""libpq takes any size, but grows its buffer to hold it; chunks keep that buffer small and the socket busy."""

FAILED = frozenset({ExecStatus.FATAL_ERROR, ExecStatus.BAD_RESPONSE})


def begin_copy(connection: PGconn, statements: bytes) -> PQGen[None]:
    """Send statements that end with COPY … FROM STDIN, and wait until PostgreSQL is ready for the rows.

    Nothing is committed by it: the statements begin with BEGIN and have no COMMIT.

    Raises:
        psycopg.Error: what PostgreSQL answered; OperationalError if the connection is lost.
    """
    connection.send_query(statements)
    yield from send(connection)
    _check((yield from fetch_many(connection)), ExecStatus.COPY_IN)


def copy_rows(connection: PGconn, pieces: Iterable[bytes]) -> PQGen[int]:
    """Send the rows, in pieces of any size, and return how many PostgreSQL took.

    Raises:
        psycopg.Error: as for ``begin_copy``, or PostgreSQL refused the rows.
    """
    for piece in pieces:
        view = memoryview(piece)
        for start in range(0, len(view), CHUNK_BYTES):
            connection.put_copy_data(view[start : start + CHUNK_BYTES])
            yield from send(connection)
    connection.put_copy_end(None)
    yield from send(connection)
    result = _check((yield from fetch_many(connection)), ExecStatus.COMMAND_OK)
    return result.command_tuples or 0


def commit(connection: PGconn) -> PQGen[str]:
    """Send COMMIT and return the command tag of the answer, which is ROLLBACK after an unhandled error.

    Raises:
        psycopg.Error: as for ``begin_copy``.
    """
    connection.send_query(b"COMMIT")
    yield from send(connection)
    result = _check((yield from fetch_many(connection)), ExecStatus.COMMAND_OK)
    return (result.command_status or b"").decode()


def _check(results: list[PGresult], expected: ExecStatus) -> PGresult:
    """Return the last result if it has the expected status and no result is an error."""
    for result in results:
        if result.status in FAILED:
            raise errors.error_from_result(result)
    if not results or results[-1].status != expected:
        raise errors.OperationalError(f"unexpected answer from PostgreSQL: expected {expected.name}")
    return results[-1]
