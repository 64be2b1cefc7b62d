"""Every error that SensorFlow raises on purpose. No HTTP here: ``web.error_responses`` has what each becomes.

::

    SensorFlowError
    ├── ConfigurationError     the server can't start like this; the message says what to change
    ├── Unauthorized           no key, or an unknown one
    ├── Forbidden              a key that may not do this
    ├── PermanentError         nothing is stored, and sending the same again can't cure it
    │   ├── InvalidReading         the content; ``details`` names each fault
    │   ├── MalformedBody          no reading can be told from another in it: not JSON, no header, not Parquet
    │   ├── TooManyRows            more readings than one request may bring
    │   ├── BodyTooLarge
    │   ├── UnsupportedEncoding
    │   ├── UnsupportedFormat
    │   ├── InvalidParameter       in the query or a header
    │   ├── InvalidSensor          what a sensor can't become
    │   ├── NotFound               no such sensor, or nothing of it
    │   ├── IdempotencyConflict    the Idempotency-Key was used before, for another request
    │   └── RejectedByDatabase     valid by our checks, but PostgreSQL rejected it
    ├── NotStored              nothing is stored; send again after ``retry_after_s``
    │   ├── BodyStalled            the rest of the body did not come
    │   ├── BufferFull
    │   ├── KeyOverShare           the buffer has room, but not for more of this key's
    │   ├── DatabaseUnavailable
    │   │   └── DatabaseLocked     another session's lock is in the way; ``ingest.blocked.Blocked``: of a part
    │   ├── TooManyReads           the limit of concurrent reads is reached
    │   └── ShuttingDown
    ├── OutcomeUnknown         COMMIT was under way and no answer came: it may be stored, or not
    ├── TooManySubscribers     a key's WebSocket connections are used up
    └── LiveUnavailable        readings from the server's other processes can't be received now
"""

from collections.abc import Sequence
from typing import TypedDict


class SensorFlowError(Exception):
    """The root of the tree."""


class ConfigurationError(SensorFlowError):
    """A setting is missing or unusable. The message names it and says what to do."""


class Unauthorized(SensorFlowError):
    """The key is missing or unknown."""


class Forbidden(SensorFlowError):
    """The key is known, and lacks the scope that the request needs."""


class PermanentError(SensorFlowError):
    """Permanent: nothing is stored, and the same content will be refused again."""


class Fault(TypedDict):
    """One thing wrong with a request, in the form that FastAPI gives validation errors."""

    type: str
    loc: Sequence[str | int]
    msg: str
    input: object


class InvalidReading(PermanentError):
    """The content is not a reading. ``details`` has one entry a fault."""

    def __init__(self, details: Sequence[Fault]) -> None:
        super().__init__("; ".join(fault["msg"] for fault in details))
        self.details = details


class MalformedBody(PermanentError):
    """The body can't be read at all. The message says what to do."""


class TooManyRows(PermanentError):
    """The body has more readings, or values in them, than one request may bring."""

    def __init__(self, count: int, limit: int, what: str = "readings") -> None:
        super().__init__(f"The body has {count:,} {what}. A request may have {limit:,}: split it.")


class BodyTooLarge(PermanentError):
    """The body is over the bound. The rest of it was not read."""

    def __init__(self, limit_bytes: int, *, inflated: bool = False) -> None:
        super().__init__(f"The body is larger than {limit_bytes:,} bytes{' when inflated' if inflated else ''}.")


class UnsupportedEncoding(PermanentError):
    """The body's Content-Encoding is not supported."""


class UnsupportedFormat(PermanentError):
    """The body's Content-Type is not supported."""


class InvalidParameter(PermanentError):
    """A parameter in the query or in a header is invalid. The message names it."""


class InvalidSensor(PermanentError):
    """A sensor can't become what the request says. The message says why."""


class NotFound(PermanentError):
    """There is no such sensor, or nothing of it. The message names it."""


class IdempotencyConflict(PermanentError):
    """The Idempotency-Key stands for another body, which is stored."""


class RejectedByDatabase(PermanentError):
    """PostgreSQL refused this very row. Its neighbours in the flush were stored."""


class NotStored(SensorFlowError):
    """Temporary: nothing is stored. ``retry_after_s`` is a whole number of seconds, at least 1."""

    def __init__(self, message: str, *, retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.retry_after_s = max(1, retry_after_s)


class BodyStalled(NotStored):
    """The body stopped coming in the middle, and its room in the buffer was given back."""


class BufferFull(NotStored):
    """The buffer has reached its limit of rows or bytes."""


class KeyOverShare(NotStored):
    """The key has reached its share of the buffer's bytes."""


class DatabaseUnavailable(NotStored):
    """The database can't be reached, or did not commit in time. Nothing of this was committed.

    Its message may hold names of hosts and users. ``public`` is the message without them, for clients.
    """

    def __init__(
        self,
        message: str,
        *,
        retry_after_s: int = 1,
        public: str = "The database can't be reached, or refuses the server's connection.",
    ) -> None:
        super().__init__(message, retry_after_s=retry_after_s)
        self.public = public


class DatabaseLocked(DatabaseUnavailable):
    """Another session holds or awaits a lock and did not make way in time. Nothing of this was committed. ``holders``
    names those sessions, once known.
    """

    holders = ""

    def __str__(self) -> str:
        return f"{super().__str__()}{self.holders and f' ({self.holders})'}"


class TooManyReads(NotStored):
    """The limit of concurrent requests for the history is reached."""

    def __init__(self) -> None:
        super().__init__("Too many requests are reading the history. Try again in five seconds.", retry_after_s=5)


class ShuttingDown(NotStored):
    """The server is draining and takes nothing new."""


class OutcomeUnknown(SensorFlowError):
    """COMMIT was not confirmed. The reading may be stored; only the ledger can tell."""


class TooManySubscribers(SensorFlowError):
    """The key has reached its limit of WebSocket connections."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"This key already has {limit} connections.")


class LiveUnavailable(SensorFlowError):
    """The server's other processes can't be reached, so that a subscriber would miss readings."""

    def __init__(self) -> None:
        super().__init__("Live readings are unavailable. Connect again in a few seconds.")
