"""/health, /ready and /metrics: what operators and their tools ask."""

from collections.abc import Awaitable, Callable
from typing import Any

import orjson
from fastapi import APIRouter
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from pydantic import BaseModel
from starlette.responses import Response


class Readiness(BaseModel):
    """Whether readings are taken, and if not, why."""

    ready: bool
    trouble: str | None
    """What is wrong, in words; null when all is well."""
    edition: str | None
    """The database that answers; null until it has been reached."""
    durability_off: list[str]
    """PostgreSQL settings that let a crash lose committed readings: fsync, synchronous_commit, full_page_writes."""


def ops_router(*, readiness: Callable[[], Awaitable[Readiness]], scrape: Callable[[], Awaitable[bytes]]) -> APIRouter:
    """The routes. Both callables look at the server each time they are asked.

    Args:
        readiness: whether this process takes readings.
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
    async def ready() -> Any:
        state = await readiness()
        return Response(orjson.dumps(state.model_dump()), 200 if state.ready else 503, media_type="application/json")

    @router.get("/metrics", summary="Prometheus metrics", response_class=Response)
    async def metrics() -> Response:
        try:
            return Response(await scrape(), media_type=CONTENT_TYPE_LATEST)
        except TimeoutError:  # a scrape that failed is seen; sums that lack a part would look like a restart
            return Response("A worker did not answer in time.\n", 503, media_type="text/plain")

    return router
