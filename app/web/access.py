"""The key that a route wants, as FastAPI checks and documents it."""

from typing import Annotated, Any

from fastapi import Depends, Security
from fastapi.params import Depends as Dependency
from fastapi.security import APIKeyHeader

from app.web.auth import ALLOWS, ApiKeys, Scope
from app.web.error_responses import Problem

KEY_HEADER = APIKeyHeader(name="X-API-Key", auto_error=False)
"""As the OpenAPI document shows it; ApiKeys says what is missing or wrong."""


def key_bytes(header: str | None) -> bytes | None:
    """Return a key as it came over the wire: Starlette reads headers as Latin-1."""
    return header.encode("latin-1") if header else None


def requires(api_keys: ApiKeys, scope: Scope) -> Dependency:
    """Return a route's dependency: a key for ``scope``. It raises Unauthorized or Forbidden before more is
    checked.
    """

    def check(key: Annotated[str | None, Security(KEY_HEADER)]) -> None:
        api_keys.authorize(key_bytes(key), scope)

    dependency: Dependency = Depends(check)
    return dependency


def refusals(scope: Scope) -> dict[int | str, dict[str, Any]]:
    """Return the answers to a key that may not be used for ``scope``, as the OpenAPI document shows them."""
    return {
        401: {"model": Problem, "description": "The API key is missing or unknown"},
        403: {"model": Problem, "description": f"The API key may not {ALLOWS[scope]}"},
    }
