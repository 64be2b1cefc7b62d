"""/health, /ready and /metrics: what operators and their tools ask."""

from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Protocol

import orjson
from fastapi import APIRouter, Security
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from pydantic import BaseModel
from starlette.responses import Response

from app.web.access import KEY_HEADER
from app.web.auth import Keyring


class Readiness(BaseModel):
    """Whether readings are taken, and if not, why."""

    ready: bool
    trouble: str | None
    """What is wrong, in words; null when all is well. The database's own words are for those who show a key."""
    edition: str | None
    """The database that answers; null until it has been reached."""
    durability_off: list[str]
    """PostgreSQL settings that let a crash lose committed readings: fsync, synchronous_commit, full_page_writes."""


class LookAtReadiness(Protocol):
    """Says whether this process takes readings; ``detailed`` as a holder of a key may know it."""

    async def __call__(self, *, detailed: bool) -> Readiness: ...


def ops_router(*, readiness: LookAtReadiness, keyring: Keyring, scrape: Callable[[], Awaitable[bytes]]) -> APIRouter:
    """The routes. Both callables look at the server each time they are asked.

    Args:
        readiness: whether this process takes readings.
        keyring: who may read the database's own words.
        scrape: the metrics of the whole server, in Prometheus' text format; TimeoutError if they can't be had.
    """
    router = APIRouter(tags=["operations"])

    @router.get("/health", summary="The process is up")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @router.get(
        "/ready",
        summary="Readings are taken: the database is reached and migrated, and the flusher lives",
        response_model=Readiness,
        responses={503: {"model": Readiness, "description": "Readings are refused"}},
    )
    async def ready(key: Annotated[str | None, Security(KEY_HEADER)]) -> Any:
        state = await readiness(detailed=keyring.knows(key.encode() if key else None))
        return Response(orjson.dumps(state.model_dump()), 200 if state.ready else 503, media_type="application/json")

    @router.get("/metrics", summary="Prometheus metrics", response_class=Response)
    async def metrics() -> Response:
        try:
            return Response(await scrape(), media_type=CONTENT_TYPE_LATEST)
        except TimeoutError:  # a scrape that failed is seen; sums that lack a part would look like a restart
            return Response("A worker did not answer in time.\n", 503, media_type="text/plain")

    return router
