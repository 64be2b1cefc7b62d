"""The Idempotency-Key header: what makes two requests the same. (5)

The header is that of the IETF's draft (draft-ietf-httpapi-idempotency-key-header), its value any ASCII text.
"""

import hashlib

from app.errors import InvalidParameter
from app.ingest.idempotency import RequestIdentity

MAX_KEY_LENGTH = 255
IDEMPOTENCY_KEY = {
    "in": "header",
    "name": "Idempotency-Key",
    "schema": {"type": "string", "minLength": 1, "maxLength": MAX_KEY_LENGTH},
    "description": "Any ASCII text that the sender chooses, such as a UUID. The same request sent again with it gets "
    "its first answer, and nothing is stored twice.",
}
"""As the OpenAPI document shows it."""


def require_usable(key: str) -> None:
    """Check an Idempotency-Key. Raises InvalidParameter."""
    if not (0 < len(key) <= MAX_KEY_LENGTH and key.isascii() and key.isprintable()):
        raise InvalidParameter(
            f"Idempotency-Key has {len(key)} characters. It should be 1 to {MAX_KEY_LENGTH} printable ASCII characters."
        )


def fingerprint(key: str, key_name: str, *content: bytes) -> RequestIdentity:
    """Return what identifies a request: the API key's name, its Idempotency-Key, and what decides what it stores."""
    digest = hashlib.sha256()
    for part in content:
        digest.update(b"%d:" % len(part))
        digest.update(part)
    return RequestIdentity(key_name, key, digest.digest())


OF_REJECTED = "\trejected"
"""Ends the key under which the rejected readings of a request are stored later. No sender's own can end so."""
