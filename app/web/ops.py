"""/health, /ready and /metrics: what operators and their tools ask.

Promises:
    * A scrape shows the metrics of a moment after it was asked for.
    * However often they are asked for, without a key, making metrics takes a tenth of the event loop's time at most.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Protocol

import orjson
from fastapi import APIRouter, Security
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from pydantic import BaseModel
from starlette.responses import Response

from app.web.access import KEY_HEADER, key_bytes
from app.web.auth import ApiKeys

SCRAPE_PAUSE = 9.0
"""The pause after metrics were made, in times of how long that took: after 5 ms it is 45."""
MAX_SCRAPE_PAUSE_S = 1.0


class SharedScrapes:
    """Make metrics now and then, for all that have asked meanwhile.

    Args:
        scrape: makes them; its TimeoutError goes to all of those.
    """

    def __init__(self, scrape: Callable[[], Awaitable[bytes]]) -> None:
        self._scrape = scrape
        self._next: asyncio.Task[bytes] | None = None
        """That which has not begun, and so will be of a later moment than now."""
        self._turn = asyncio.Lock()
        self._not_before = 0.0

    async def __call__(self) -> bytes:
        """Return the metrics of a moment between the call and its end."""
        if self._next is None:
            self._next = asyncio.create_task(self._make())
            # When every caller has gone, asyncio would log that its error was never retrieved.
            self._next.add_done_callback(lambda made: made.cancelled() or made.exception())
        return await asyncio.shield(self._next)  # a caller who goes away does not end it for the others

    async def _make(self) -> bytes:
        clock = asyncio.get_running_loop().time
        async with self._turn:
            await asyncio.sleep(max(0.0, self._not_before - clock()))
            self._next = None
            began = clock()
            try:
                return await self._scrape()
            finally:
                ended = clock()
                self._not_before = ended + min(SCRAPE_PAUSE * (ended - began), MAX_SCRAPE_PAUSE_S)


class Readiness(BaseModel):
    """Whether readings are accepted, and if not, why."""

    ready: bool
    trouble: str | None
    """What is wrong, in words; null when all is well. The database's own words are for those who show a key."""
    edition: str | None
    """The database that answers; null until it has been reached."""
    durability_off: list[str]
    """PostgreSQL settings that let a crash lose committed readings: fsync, synchronous_commit, full_page_writes."""
    maintenance_late: list[str]
    """What of the database's maintenance has not been done for too long, in words: the disk may fill up. Readings are
    accepted all the same. Only for those who show a key."""


class LookAtReadiness(Protocol):
    """Report whether this process accepts readings. ``detailed`` for the holder of a key."""

    async def __call__(self, *, detailed: bool) -> Readiness: ...


def ops_router(
    *, version: str, readiness: LookAtReadiness, api_keys: ApiKeys, scrape: Callable[[], Awaitable[bytes]]
) -> APIRouter:
    """Return the routes. Both callables look at the server each time they are asked.

    Args:
        version: the server's, which /health shows.
        readiness: whether this process takes readings.
        api_keys: a holder of one may read the database's own words.
        scrape: the metrics of the whole server, in Prometheus' text format; TimeoutError if they can't be had.
    """
    router = APIRouter(tags=["operations"])
    shared_scrape = SharedScrapes(scrape)

    @router.get("/health", summary="The process is up")
    async def health() -> dict[str, str]:
        return {"status": "ok", "version": version}

    @router.get(
        "/ready",
        summary="Readings are accepted: the database is available and migrated, and the flusher runs",
        response_model=Readiness,
        responses={503: {"model": Readiness, "description": "Readings are rejected; trouble says why"}},
    )
    async def ready(key: Annotated[str | None, Security(KEY_HEADER)]) -> Any:
        state = await readiness(detailed=api_keys.knows(key_bytes(key)))
        return Response(orjson.dumps(state.model_dump()), 200 if state.ready else 503, media_type="application/json")

    @router.get("/metrics", summary="Prometheus metrics", response_class=Response)
    async def metrics() -> Response:
        try:
            return Response(await shared_scrape(), media_type=CONTENT_TYPE_LATEST)
        except TimeoutError:  # a scrape that failed is seen; sums that lack a part would look like a restart
            return Response("A worker did not send its metrics in time. Scrape again.\n", 503, media_type="text/plain")

    return router
