"""API keys and their scopes. Pure.

A key is compared in constant time, with every key there is, so that neither its content nor which key it resembles can
be told from the time an answer takes.
"""

import hmac
from dataclasses import dataclass
from enum import Enum

from app.errors import Forbidden, Unauthorized


class Scope(Enum):
    """A use that a key may have."""

    INGEST = "ingest"
    LISTEN = "listen"
    READ = "read"


ALLOWS = {
    Scope.INGEST: "write readings",
    Scope.LISTEN: "listen to live readings",
    Scope.READ: "read readings and sensors",
}
"""What each allows, in words."""


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key, the name under which it appears in tables, logs and limits, and what it may do."""

    name: str
    secret: str
    scopes: frozenset[Scope]

    def __repr__(self) -> str:
        return f"ApiKey({self.name!r})"


class ApiKeys:
    """The keys that this server knows."""

    def __init__(self, *keys: ApiKey) -> None:
        self._keys = [(key.secret.encode(), key) for key in keys]

    def knows(self, secret: bytes | None) -> bool:
        """Return whether this is one of the keys, for whatever use."""
        found = False
        for known, _ in self._keys:
            found |= bool(known) and hmac.compare_digest(known, secret or b"")
        return found

    def authorize(self, secret: bytes | None, scope: Scope) -> str:
        """Return the name of the key that was sent, if it may be used for ``scope``.

        Args:
            secret: its bytes as they came; a key with letters beyond ASCII is its UTF-8.
            scope: what for.

        Raises:
            Unauthorized: it is missing or unknown.
            Forbidden: it is known, and may not be used for ``scope``.
        """
        if not secret:
            raise Unauthorized("An API key is missing: send it as X-API-Key, or to a WebSocket as ?api-key=.")
        found = None
        for known, key in self._keys:
            if hmac.compare_digest(known, secret) and (found is None or scope in key.scopes):
                found = key
        if found is None:
            raise Unauthorized("This API key is unknown. Send one that the server was started with.")
        if scope not in found.scopes:
            allowed = ", ".join(ALLOWS[each] for each in Scope if each in found.scopes)
            raise Forbidden(f"This API key, {found.name}, may not {ALLOWS[scope]}. It may {allowed or 'do nothing'}.")
        return found.name
