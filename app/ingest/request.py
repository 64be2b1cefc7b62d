"""A request to store readings, as every transport and the import hand it to the core. Pure."""

from dataclasses import dataclass

from app.ingest.batch import Content
from app.ingest.decode.columns import Decoded
from app.ingest.idempotency import IdempotencyRecord


@dataclass(slots=True, eq=False)
class WriteRequest:
    """Readings to be stored together with the record of their request."""

    content: Content
    record: IdempotencyRecord | None = None
    """What makes sending it again harmless, if its sender asked for that."""
    is_awaited: bool = True
    """Whether a sender waits for the commit; if not, the request has no deadline."""
    decoded: Decoded | None = None
    """The readings that decoding rejected, for the result. None: the result is without them."""
