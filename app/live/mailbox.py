"""Readings that wait, within bounds, for a subscriber that takes them at its own pace.

Pure. Promise: what does not fit is conflated to the latest reading of each sensor, and whoever puts is told how many
were left out; what does not fit even then is the owner's to give up. (7)
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import attrgetter

from app.ingest.result import CommittedReading

event_time = attrgetter("time_us", "id")
"""The order of readings by event time; of two at the same time, by id. (9)"""


def later(one: CommittedReading, other: CommittedReading, horizon_us: float = math.inf) -> CommittedReading:
    """Return the later of two readings by event time. At the same time, the one with the higher id. One from beyond the
    horizon was stored while a clock was wrong: it is later than no other.
    """
    latest = max(one, other, key=event_time)
    if latest.time_us > horizon_us:
        return min(one, other, key=event_time) if min(one.time_us, other.time_us) <= horizon_us else latest
    return latest


@dataclass(slots=True, eq=False)
class Mailbox:
    """Messages in the order of their arrival."""

    max_messages: int
    max_bytes: int
    _messages: list[CommittedReading] = field(default_factory=list)
    _size_bytes: int = 0

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits."""
        return not self._messages

    @property
    def is_overfull(self) -> bool:
        """Whether more waits than may, after all that conflation could do."""
        return len(self._messages) > self.max_messages or self._size_bytes > self.max_bytes

    def take(self) -> Sequence[CommittedReading]:
        """Everything that waits, oldest first. The mailbox is empty afterwards."""
        messages, self._messages, self._size_bytes = self._messages, [], 0
        return messages

    def put(self, messages: Sequence[CommittedReading]) -> int:
        """Add messages, and conflate if they would not fit.

        Returns:
            How many messages were left out for newer ones.
        """
        self._messages.extend(messages)
        self._size_bytes += sum(len(message.payload) for message in messages)
        return self._conflate() if self.is_overfull else 0

    def _conflate(self) -> int:
        latest: dict[str, CommittedReading] = {}
        for message in self._messages:
            known = latest.pop(message.sensor, None)
            # Put in again even where it stays, so that the order is that of the last arrival of each sensor.
            latest[message.sensor] = message if known is None else later(known, message)
        left_out = len(self._messages) - len(latest)
        self._messages = list(latest.values())
        self._size_bytes = sum(len(message.payload) for message in self._messages)
        return left_out
