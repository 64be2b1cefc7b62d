"""Times every HTTP request, outermost, under its route's template and never its raw path."""

from collections.abc import Callable

from prometheus_client import Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

UNKNOWN_ROUTE = "unknown"
KNOWN_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Measure:
    """ASGI middleware that observes each request's duration, from arrival to the end of its answer.

    Args:
        app: what answers.
        duration: a histogram in seconds with the labels route, method and status.
        clock: seconds.
    """

    def __init__(self, app: ASGIApp, *, duration: Histogram, clock: Callable[[], float]) -> None:
        self._app = app
        self._duration = duration
        self._clock = clock
        # Looking a child up by labels costs more than observing; there are few combinations.
        self._children: dict[tuple[str, str, int], Histogram] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hands on, and observes what comes of it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = self._clock()
        status = 500

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watch)
        finally:
            self._child(scope, status).observe(self._clock() - started)

    def _child(self, scope: Scope, status: int) -> Histogram:
        route = getattr(scope.get("route"), "path", UNKNOWN_ROUTE)
        method = scope["method"] if scope["method"] in KNOWN_METHODS else "other"
        key = (route, method, status)
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = self._duration.labels(*key)
        return child
