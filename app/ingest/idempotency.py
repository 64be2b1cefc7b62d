"""A request that may be sent again: its Idempotency-Key, what it holds, and the result of the first time.

Pure. A record is stored in the transaction of the readings that it speaks for, so that it is there exactly if they are;
a repetition finds it and has the same result, and another content under the same key finds that it is another.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple, Self

from app.errors import IdempotencyConflict


class RequestIdentity(NamedTuple):
    """The identity of a request. A repetition has the same."""

    key_name: str
    """Whose key it is: two API keys may use the same."""
    key: str
    """The Idempotency-Key."""
    content_hash: bytes
    """The digest of all that decides what is stored and answered."""

    @property
    def name(self) -> tuple[str, str]:
        """The names by which it is unique."""
        return self.key_name, self.key


@dataclass(frozen=True, slots=True)
class StoredResult:
    """A record that has been committed: the result of the request that brought it, and of its repetitions."""

    content_hash: bytes
    result: bytes
    """As JSON: what ``to_json`` of a WriteResult wrote, or what the record brought with it."""
    at: datetime | None = field(default=None, compare=False)
    """When it was committed, if the database has said so."""

    def to_json(self) -> bytes:
        """Return the result."""
        return self.result

    def replay_to(self, identity: RequestIdentity) -> Self:
        """Return this result if the request is the same.

        Raises:
            IdempotencyConflict: it is another.
        """
        if identity.content_hash != self.content_hash:
            raise IdempotencyConflict(
                "This Idempotency-Key was used for another request: use a new key for new readings."
            )
        return self


@dataclass(frozen=True, slots=True, eq=False)
class IdempotencyRecord:
    """A request whose repetition is to be recognised."""

    identity: RequestIdentity
    result: bytes | None = None
    """What is stored with it, as JSON; None: the result of the write."""
    expires: bool = True
    """Whether it may be deleted once the window of the settings has passed."""

    @property
    def name(self) -> tuple[str, str]:
        """The identity's."""
        return self.identity.name


Records = Mapping[IdempotencyRecord, bytes]
"""Records to be stored, each with its result as JSON."""
StoredResults = Mapping[tuple[str, str], StoredResult]
"""Records that have been committed, by name."""


class DuplicateRequest(Exception):
    """Some requests of a flush were committed before, so none of it is stored now. ``results`` has at least those."""

    def __init__(self, results: StoredResults) -> None:
        super().__init__(f"{len(results)} requests were committed before")
        self.results = results
