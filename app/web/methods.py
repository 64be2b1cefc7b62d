"""Answers to methods that a path does not support: 405 with the supported ones in Allow, and 204 to OPTIONS.

Starlette looks at a path's first route only, so that ``/api/readings`` claimed to allow POST and nothing else.
"""

from fastapi import Request
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.routing import Match

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")


async def respond(request: Request, error: Exception) -> Response:
    """Answer a request whose path has routes, but none for its method."""
    assert isinstance(error, HTTPException)  # it is registered for 405
    routes = request.app.router.routes
    found = [
        method
        for method in METHODS
        if any(route.matches({**request.scope, "method": method})[0] is Match.FULL for route in routes)
    ]
    allow = ", ".join([*found, "OPTIONS"])
    if request.method == "OPTIONS":
        return Response(status_code=204, headers={"Allow": allow})
    detail = f"{request.method[:20]} is not allowed here. Allowed: {allow}."
    return JSONResponse({"detail": detail}, 405, {"Allow": allow})
