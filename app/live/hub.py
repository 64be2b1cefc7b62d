"""The subscribers, and what waits for each: every subscriber has a bounded mailbox of its own.

Pure: no asyncio, no clock. A subscriber is woken through a callable. What other processes commit comes over a bus; how
many there are, and whether there are any, is not known here.

Promises:
    * What is published is committed; order is the order of commits, of each process. (7)
    * ``publish`` never waits. A subscriber that lags behind gets its mailbox conflated to the latest reading of each
      sensor; if even that does not fit, it is dropped. Both are counted. (7)
    * The latest reading is the latest by event time, and of two at the same time the one with the higher id; one from
      beyond the horizon, stored while a clock was wrong, gives way to any other. (9)
    * Whoever subscribes gets the latest reading first and then every one that is committed later, none twice.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from app.ingest.result import CommittedReading
from app.live.bus import Bus
from app.live.mailbox import Mailbox, event_time, later


@dataclass(slots=True)
class HubStats:
    """Since the start."""

    published: int = 0
    """Messages put into mailboxes."""
    conflated: int = 0
    """Messages left out because a newer one of the same sensor took their place."""
    dropped: int = 0
    """Subscribers that could not keep up."""


@dataclass(slots=True, eq=False)
class Subscriber:
    """One listener and its mailbox."""

    slot: int
    """Where the bus counts it."""
    wake: Callable[[], None]
    """Called whenever something is put into an empty mailbox, and when the subscriber is dropped."""
    mailbox: Mailbox
    dropped: bool = False

    def take(self) -> Sequence[CommittedReading]:
        """Everything that waits, oldest first. The mailbox is empty afterwards."""
        return self.mailbox.take()

    def put(self, messages: Sequence[CommittedReading]) -> int:
        """Add messages, conflate if they would not fit, and drop the subscriber if they still don't.

        Returns:
            How many messages were left out for newer ones.
        """
        was_empty = self.mailbox.is_empty
        left_out = self.mailbox.put(messages)
        self.dropped = self.mailbox.is_overfull
        if was_empty or self.dropped:
            self.wake()
        return left_out


class Hub:
    """All subscribers of this process.

    Args:
        bus: the way to the hubs of the other processes, and the limit of each key.
        mailbox_messages, mailbox_bytes: bounds of each mailbox.
        horizon_us: the latest time that a reading may have now, microseconds since 1970 UTC.
    """

    def __init__(
        self,
        *,
        bus: Bus,
        mailbox_messages: int,
        mailbox_bytes: int,
        horizon_us: Callable[[], float] = lambda: math.inf,
    ) -> None:
        self._bus = bus
        self._horizon_us = horizon_us
        self._mailbox_messages = mailbox_messages
        self._mailbox_bytes = mailbox_bytes
        self._subscribers: set[Subscriber] = set()
        self.latest: CommittedReading | None = None
        self.stats = HubStats()
        bus.attach(self)

    @property
    def subscribers(self) -> int:
        """The number of subscribers now."""
        return len(self._subscribers)

    @property
    def is_listening(self) -> bool:
        """Whether a subscriber does, here or elsewhere."""
        return bool(self._subscribers) or self._bus.forwarding

    async def subscribe(self, key_name: str, wake: Callable[[], None]) -> Subscriber:
        """Return a new subscriber, whose mailbox already holds the latest reading, if there is one.

        Raises:
            TooManySubscribers: this key has as many as it may.
            LiveUnavailable: what other processes commit can't be had now.
        """
        slot = await self._bus.join(key_name)
        # What has reached this hub by now is in `latest`, and what reaches it from now on is delivered; the bus sees
        # to it that there is nothing else. So nothing may be waited for below.
        subscriber = Subscriber(slot, wake, Mailbox(self._mailbox_messages, self._mailbox_bytes))
        self._subscribers.add(subscriber)
        if self.latest is not None:
            self._put(subscriber, [self.latest])
        return subscriber

    def drop(self, subscriber: Subscriber) -> None:
        """Give up a subscriber that takes its messages too slowly. The caller still unsubscribes it."""
        if not subscriber.dropped:
            subscriber.dropped = True
            self.stats.dropped += 1

    def unsubscribe(self, subscriber: Subscriber) -> None:
        """Forget a subscriber. One that was dropped too must be unsubscribed."""
        self._subscribers.remove(subscriber)
        self._bus.leave(subscriber.slot)

    def remember(self, receipt: CommittedReading) -> None:
        """Note a reading that was committed earlier, without publishing it."""
        self.latest = receipt if self.latest is None else later(self.latest, receipt, self._horizon_us())

    def publish(self, receipts: Sequence[CommittedReading]) -> None:
        """Put readings, at least one, that this process has committed into every mailbox, here and elsewhere."""
        self.deliver(receipts)
        if self._bus.forwarding:
            self._bus.forward(receipts)

    def deliver(self, receipts: Sequence[CommittedReading]) -> None:
        """Put committed readings, at least one, into every mailbox of this process."""
        self.remember(max(receipts, key=event_time))
        for subscriber in self._subscribers:
            if not subscriber.dropped:
                self._put(subscriber, receipts)

    def drop_all(self) -> None:
        """Drop all subscribers: readings of another process were lost on their way, and each gap must be noticed."""
        for subscriber in self._subscribers:
            self.drop(subscriber)
            subscriber.wake()

    def _put(self, subscriber: Subscriber, receipts: Sequence[CommittedReading]) -> None:
        self.stats.conflated += subscriber.put(receipts)
        self.stats.published += len(receipts)
        self.stats.dropped += subscriber.dropped
