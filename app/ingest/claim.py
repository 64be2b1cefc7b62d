"""A request that may be sent again: its Idempotency-Key, what it holds, and how it was answered the first time.

Pure. A claim is stored in the transaction of the readings that it speaks for, so that it is there exactly if they are;
a repetition finds it and is given the same answer, and another content under the same key finds that it is another.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from app.errors import IdempotencyConflict
from app.ingest.receipt import BatchResult, CommittedReading


class Replay(NamedTuple):
    """The answer that a request got the first time."""

    status: int
    body: bytes


class RequestIdentity(NamedTuple):
    """What makes two requests the same."""

    key_name: str
    """Whose key it is: two API keys may use the same."""
    key: str
    """The Idempotency-Key."""
    content_hash: bytes
    """The digest of all that decides what is stored and answered."""

    @property
    def name(self) -> tuple[str, str]:
        """What it is unique by."""
        return self.key_name, self.key


class StoredResult(NamedTuple):
    """What is left of a claim once it has been committed."""

    content_hash: bytes
    replay: Replay

    def answer_to(self, fingerprint: RequestIdentity) -> Replay | IdempotencyConflict:
        """Return the first answer if this request is the same, otherwise the conflict."""
        if fingerprint.content_hash == self.content_hash:
            return self.replay
        return IdempotencyConflict("This Idempotency-Key was used for another request: use a new key for new readings.")


class DatedClaim(NamedTuple):
    """A claim that has been committed, as it is looked up before its readings are sent again."""

    content_hash: bytes
    answer: bytes
    at: datetime


@dataclass(frozen=True, slots=True, eq=False)
class Claim:
    """A request whose repetition is to be recognised."""

    fingerprint: RequestIdentity
    answer: Callable[[CommittedReading | BatchResult], Replay]
    """What the sender will be told, given what became of its readings."""
    expires: bool = True
    """Whether it may be forgotten once the window of the settings has passed."""

    @property
    def name(self) -> tuple[str, str]:
        """The fingerprint's."""
        return self.fingerprint.name


StoredResults = Mapping[tuple[str, str], StoredResult]


class DuplicateRequest(Exception):
    """Some claims of a flush were committed before, so none of it is stored now. ``kept`` holds at least those."""

    def __init__(self, kept: StoredResults) -> None:
        super().__init__(f"{len(kept)} claims were committed before")
        self.kept = kept
