"""The labels under which requests are counted: no path, file or method that a client invents makes a new one."""

import asyncio

import httpx
import pytest
from fastapi import FastAPI

from app.web import methods
from app.web.docs import docs_router
from app.web.measure import RequestMetricsMiddleware
from app.web.names import WholePaths


async def labels_of(method: str, path: str) -> tuple[str, str, int]:
    """Return route, method and status under which a server that has only its documentation counts a request."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    app.add_exception_handler(405, methods.respond)
    app.include_router(docs_router(title="SensorFlow"))
    seen: list[tuple[str, str, int]] = []
    counted = RequestMetricsMiddleware(
        WholePaths(app),
        observe=lambda route, method, status, _: seen.append((route, method, status)),
        clock=lambda: 0.0,
    )
    async with httpx.AsyncClient(transport=httpx.ASGITransport(counted), base_url="http://server") as client:
        await client.request(method, path)
    (labels,) = seen
    return labels


@pytest.mark.parametrize(
    ("method", "path", "labels"),
    [
        ("GET", "/docs", ("/docs", "GET", 200)),
        ("GET", "/openapi.json", ("/openapi.json", "GET", 200)),
        ("HEAD", "/openapi.json", ("/openapi.json", "HEAD", 200)),
        ("POST", "/openapi.json", ("/openapi.json", "POST", 405)),
        ("GET", "/docs/swagger-ui.css", ("/docs/{name}", "GET", 200)),
        ("GET", "/docs/favicon.png", ("/docs/{name}", "GET", 200)),
        ("GET", "/docs/no-such-file.js", ("/docs/{name}", "GET", 404)),
        ("GET", "/docs/redoc.standalone.js", ("/docs/{name}", "GET", 404)),
        ("GET", "/docs/..%2Findex.html", ("unknown", "GET", 404)),
        ("GET", "/no/such/path", ("unknown", "GET", 404)),
        ("GET", "/docs%0a", ("unknown", "GET", 404)),
        ("INVENTED", "/docs", ("/docs", "other", 405)),
        ("INVENTED", "/no/such/path", ("unknown", "other", 404)),
    ],
)
def test_labels(method: str, path: str, labels: tuple[str, str, int]) -> None:
    """A request is counted under its route's template, or "unknown", and an unusual method as "other"."""
    assert (
        asyncio.run(labels_of(method, path)) == labels
    )  # files are read in threads, of which virtual time knows nothing
