"""Times every HTTP request, under its route's template and never its raw path, and logs those that are refused."""

from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.web.refusals import is_refusal, log_refusal, reason_in

UNKNOWN_ROUTE = "unknown"
KNOWN_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


Observe = Callable[[str, str, int, float], None]
"""Is told route, method, status and duration in seconds of an answered request."""


class RequestMetricsMiddleware:
    """ASGI middleware that observes each request's duration, from arrival to the end of its answer.

    Args:
        app: what answers.
        observe: is told of each request.
        clock: seconds.
    """

    def __init__(self, app: ASGIApp, *, observe: Observe, clock: Callable[[], float]) -> None:
        self._app = app
        self._observe = observe
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, observe its result, and log a refusal."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = self._clock()
        status, body = 500, b""

        async def watch(message: Message) -> None:
            nonlocal status, body
            if message["type"] == "http.response.start":
                status = message["status"]
            elif is_refusal(status):
                body = body or message.get("body", b"")
            await send(message)

        try:
            await self._app(scope, receive, watch)
        finally:
            route = getattr(scope.get("route"), "path", UNKNOWN_ROUTE)
            method = scope["method"] if scope["method"] in KNOWN_METHODS else "other"
            self._observe(route, method, status, self._clock() - started)
            if is_refusal(status):
                sender = scope["client"][0] if scope["client"] else ""
                log_refusal(f"{method} {scope['path']}", sender, status, reason_in(body))
