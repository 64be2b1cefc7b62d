"""The Idempotency-Key header: what makes two requests the same, and the first answer given again. (5)

The header is that of the IETF's draft (draft-ietf-httpapi-idempotency-key-header), its value any ASCII text.
"""

import hashlib
from collections.abc import Awaitable, Callable

from app.errors import InvalidParameter, SensorFlowError
from app.ingest.claim import Replay, RequestIdentity, StoredResult

MAX_KEY_LENGTH = 255
IDEMPOTENCY_KEY = {
    "in": "header",
    "name": "Idempotency-Key",
    "schema": {"type": "string", "minLength": 1, "maxLength": MAX_KEY_LENGTH},
    "description": "Any ASCII text of the sender's, a UUID say. The same request sent again under it is answered as it "
    "was the first time, and nothing is stored twice.",
}
"""As the OpenAPI document shows it."""

Recall = Callable[[RequestIdentity], Awaitable[StoredResult | None]]
"""Finds what was committed under a request's Idempotency-Key, if anything was; DatabaseUnavailable if it can't ask, and
OutcomeUnknown if the database does not confirm what it has."""


def require_usable(key: str) -> None:
    """Check an Idempotency-Key. Raises InvalidParameter."""
    if not (0 < len(key) <= MAX_KEY_LENGTH and key.isascii() and key.isprintable()):
        raise InvalidParameter(f"Idempotency-Key should be 1 to {MAX_KEY_LENGTH} ASCII characters.")


def fingerprint(key: str, key_name: str, *content: bytes) -> RequestIdentity:
    """Return what identifies a request: the API key's name, its Idempotency-Key, and what decides what it stores."""
    digest = hashlib.sha256()
    for part in content:
        digest.update(b"%d:" % len(part))
        digest.update(part)
    return RequestIdentity(key_name, key, digest.digest())


OF_REJECTED = "\trejected"
"""Ends the key under which the rejected readings of a request are stored later. No sender's own can end so."""


def for_rejected(request: RequestIdentity) -> RequestIdentity:
    """Return the identity of a request's rejected readings, sent again under the same key."""
    return request._replace(key=request.key + OF_REJECTED)


async def answered_before(recall: Recall, request: RequestIdentity) -> Replay | None:
    """How this request was answered the first time, if it was.

    Raises:
        IdempotencyConflict: its key was used with another content.
        DatabaseUnavailable, OutcomeUnknown: that can't be known now.
    """
    kept = await recall(request)
    if kept is None:
        return None
    answer = kept.answer_to(request)
    if isinstance(answer, SensorFlowError):
        raise answer
    return answer
