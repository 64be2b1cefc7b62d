"""The way in to the core: every transport and the import of files write through this service.

A transport authenticates its sender, parses what was sent into a ``WriteRequest``, and renders the ``WriteResult``. A
request goes on to ``Pipeline.submit``, waits in the ``Buffer``, and is committed by the ``Writer`` with the others of
its flush.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

from app.errors import NotStored, SensorFlowError
from app.ingest.idempotency import RequestIdentity, StoredResult
from app.ingest.pipeline import Pipeline
from app.ingest.request import WriteRequest
from app.ingest.result import WriteOutcome, WriteResult

DECODING_FACTOR = 4
"""Bytes of memory that a byte of a body is counted as until it has become columns."""


class StoredRecords(Protocol):
    """The records of earlier requests: ``app.store.idempotency.IdempotencyRecords``."""

    async def find(self, identity: RequestIdentity) -> StoredResult | None:
        """Return what was committed under a request's Idempotency-Key. None: nothing.

        Raises:
            DatabaseUnavailable: the database can't be asked.
            OutcomeUnknown: something was committed, and is not known to be durable.
        """


class WriteService:
    """Stores readings, each request once.

    Args:
        pipeline: commits what is submitted.
        records: the requests that were committed before.
    """

    def __init__(self, pipeline: Pipeline[Any], records: StoredRecords) -> None:
        self._pipeline = pipeline
        self._records = records
        self._turn = asyncio.Lock()
        """Keeps the order of requests that wait for room."""

    def submit(self, request: WriteRequest, on_result: Callable[[WriteOutcome], None]) -> None:
        """Take a request in. ``on_result`` is called once, with its result or with why there is none.

        Raises:
            KeyOverShare, BufferFull, DatabaseUnavailable, ShuttingDown: nothing is taken, and ``on_result`` won't be
            called.
        """
        self._pipeline.submit(request, on_result)

    async def write(self, request: WriteRequest, *, waits_for_room: bool = False) -> WriteResult:
        """Take a request in, and return its result once it is committed.

        Args:
            request: the readings.
            waits_for_room: whether to wait, in the order of the calls, while nothing can be taken.

        Raises:
            NotStored: nothing of it is stored.
            OutcomeUnknown: it may be stored, or not.
            IdempotencyConflict: its key was used for another request.
            RejectedByDatabase: PostgreSQL refused it.
        """
        result: asyncio.Future[WriteResult] = asyncio.get_running_loop().create_future()

        def on_result(answer: WriteOutcome) -> None:
            if result.done():  # the caller was cancelled
                return
            if isinstance(answer, SensorFlowError):
                result.set_exception(answer)
            else:
                result.set_result(answer)

        if waits_for_room:
            async with self._turn:
                while True:
                    try:
                        self.submit(request, on_result)
                        break
                    except NotStored as error:
                        await asyncio.sleep(error.retry_after_s)
        else:
            self.submit(request, on_result)
        return await result

    async def find(self, identity: RequestIdentity) -> StoredResult | None:
        """Return what was committed under a request's Idempotency-Key, whatever its content was. None: nothing.

        Raises:
            DatabaseUnavailable, OutcomeUnknown: as ``StoredRecords.find``.
        """
        return await self._records.find(identity)

    async def replay(self, identity: RequestIdentity) -> StoredResult | None:
        """Return the result of the first time that a request was sent, if it was.

        Of two that come at once both may be told that neither was: the second commit finds the first.

        Raises:
            IdempotencyConflict: its key was used for another request.
            DatabaseUnavailable, OutcomeUnknown: whether it was can't be known now.
        """
        stored = await self._records.find(identity)
        return None if stored is None else stored.replay_to(identity)

    def batch_being_decoded(self) -> AbstractContextManager[None]:
        """Announce a batch that is being decoded and then submitted, so that a flush may wait for it."""
        return self._pipeline.batch_being_decoded()

    @contextmanager
    def room(self, key_name: str) -> Iterator[Callable[[int], None]]:
        """Hold room in the buffer for a body that is being received. Call the function that is yielded with its size.

        Raises:
            KeyOverShare, BufferFull, DatabaseUnavailable, ShuttingDown: there is no room for so many.
        """
        held = 0

        def grow_to(body_bytes: int) -> None:
            nonlocal held
            needed = body_bytes * DECODING_FACTOR
            if needed > held:
                self._pipeline.reserve(key_name, needed - held)
                held = needed

        try:
            yield grow_to
        finally:
            self._pipeline.reserve(key_name, -held)
