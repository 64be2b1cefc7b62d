"""Who listens, and what waits for each: every subscriber has a bounded mailbox of its own.

Pure: no asyncio, no clock. A subscriber is woken through a callable.

Promises:
    * What is published is committed; order is the order of commits. (7)
    * ``publish`` never waits. A subscriber that lags behind gets its mailbox conflated to the latest reading of each
      sensor; if even that does not fit, it is dropped. Both are counted. (7)
    * The latest reading is the latest by event time, and of two at the same time the one with the higher id. (9)
    * Whoever subscribes gets the latest reading first and then every one that is committed later, none twice.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from operator import attrgetter

from app.errors import TooManySubscribers
from app.ingest.receipt import Receipt

_event_time = attrgetter("time_us", "id")


@dataclass(slots=True)
class HubTally:
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

    key_name: str
    wake: Callable[[], None]
    """Called whenever something is put into an empty mailbox, and when the subscriber is dropped."""
    max_messages: int
    max_bytes: int
    dropped: bool = False
    _messages: list[Receipt] = field(default_factory=list)
    _size_bytes: int = 0

    def take(self) -> Sequence[Receipt]:
        """Everything that waits, oldest first; the mailbox is empty afterwards."""
        messages, self._messages, self._size_bytes = self._messages, [], 0
        return messages

    def put(self, messages: Sequence[Receipt]) -> int:
        """Adds messages, conflating if they would not fit, and drops the subscriber if they still don't.

        Returns:
            How many messages were left out for newer ones.
        """
        was_empty = not self._messages
        self._messages.extend(messages)
        self._size_bytes += sum(len(message.payload) for message in messages)
        left_out = 0
        if self._overfull():
            left_out = self._conflate()
            self.dropped = self._overfull()
        if was_empty or self.dropped:
            self.wake()
        return left_out

    def _overfull(self) -> bool:
        return len(self._messages) > self.max_messages or self._size_bytes > self.max_bytes

    def _conflate(self) -> int:
        latest: dict[str, Receipt] = {}
        for message in self._messages:
            known = latest.pop(message.sensor, None)
            # Put in again even where it stays, so that the order is that of the last arrival of each sensor.
            latest[message.sensor] = message if known is None else later(known, message)
        left_out = len(self._messages) - len(latest)
        self._messages = list(latest.values())
        self._size_bytes = sum(len(message.payload) for message in self._messages)
        return left_out


def later(one: Receipt, other: Receipt) -> Receipt:
    """Of two readings the later by event time; at the same time, the one with the higher id."""
    return max(one, other, key=_event_time)


class Hub:
    """All subscribers of this process.

    Args:
        max_subscribers_per_key: how many one API key may have at a time.
        mailbox_messages, mailbox_bytes: bounds of each mailbox.
    """

    def __init__(self, *, max_subscribers_per_key: int, mailbox_messages: int, mailbox_bytes: int) -> None:
        self._max_subscribers_per_key = max_subscribers_per_key
        self._mailbox_messages = mailbox_messages
        self._mailbox_bytes = mailbox_bytes
        self._subscribers: set[Subscriber] = set()
        self._per_key: Counter[str] = Counter()
        self.latest: Receipt | None = None
        self.tally = HubTally()

    @property
    def subscribers(self) -> int:
        """How many listen now."""
        return len(self._subscribers)

    @property
    def is_listening(self) -> bool:
        """Whether anybody does."""
        return bool(self._subscribers)

    def subscribe(self, key_name: str, wake: Callable[[], None]) -> Subscriber:
        """A new subscriber, whose mailbox already holds the latest reading, if there is one.

        Raises:
            TooManySubscribers: this key has as many as it may.
        """
        if self._per_key[key_name] >= self._max_subscribers_per_key:
            raise TooManySubscribers(self._max_subscribers_per_key)
        subscriber = Subscriber(key_name, wake, self._mailbox_messages, self._mailbox_bytes)
        self._per_key[key_name] += 1
        self._subscribers.add(subscriber)
        if self.latest is not None:
            self._deliver(subscriber, [self.latest])
        return subscriber

    def drop(self, subscriber: Subscriber) -> None:
        """Gives up a subscriber that takes its messages too slowly; it is still to be unsubscribed."""
        if not subscriber.dropped:
            subscriber.dropped = True
            self.tally.dropped += 1

    def unsubscribe(self, subscriber: Subscriber) -> None:
        """Forgets a subscriber; one that was dropped too must be unsubscribed."""
        self._subscribers.remove(subscriber)
        self._per_key[subscriber.key_name] -= 1

    def remember(self, receipt: Receipt) -> None:
        """Takes note of a reading that was committed earlier, without publishing it."""
        self.latest = receipt if self.latest is None else later(self.latest, receipt)

    def publish(self, receipts: Sequence[Receipt]) -> None:
        """Puts committed readings, at least one, into every mailbox."""
        self.remember(max(receipts, key=_event_time))
        for subscriber in self._subscribers:
            if not subscriber.dropped:
                self._deliver(subscriber, receipts)

    def _deliver(self, subscriber: Subscriber, receipts: Sequence[Receipt]) -> None:
        self.tally.conflated += subscriber.put(receipts)
        self.tally.published += len(receipts)
        self.tally.dropped += subscriber.dropped
