"""Times every HTTP request, under its route's template and never its raw path."""

from collections.abc import Callable

from prometheus_client import Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

UNKNOWN_ROUTE = "unknown"
KNOWN_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class RequestDurations:
    """What has been observed, on a histogram in seconds with the labels route, method and status."""

    def __init__(self, histogram: Histogram) -> None:
        self._histogram = histogram
        # Looking a child up by its labels costs more than observing; there are few combinations.
        self._children: dict[tuple[str, str, int], Histogram] = {}

    def observe(self, route: str, method: str, status: int, duration_s: float) -> None:
        """Counts one answered request."""
        labels = (route, method, status)
        child = self._children.get(labels)
        if child is None:
            child = self._children[labels] = self._histogram.labels(*labels)
        child.observe(duration_s)


class Measure:
    """ASGI middleware that observes each request's duration, from arrival to the end of its answer.

    Args:
        app: what answers.
        durations: is told of each request.
        clock: seconds.
    """

    def __init__(self, app: ASGIApp, *, durations: RequestDurations, clock: Callable[[], float]) -> None:
        self._app = app
        self._durations = durations
        self._clock = clock

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
            route = getattr(scope.get("route"), "path", UNKNOWN_ROUTE)
            method = scope["method"] if scope["method"] in KNOWN_METHODS else "other"
            self._durations.observe(route, method, status, self._clock() - started)
