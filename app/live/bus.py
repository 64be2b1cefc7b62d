"""Between the hubs of one server: the seam, and what stands there when the server is one process.

A hub serves the subscribers of its own process. What it asks of a bus is a slot for each, which counts against its
key's limit over all processes, and that readings committed in one process reach the hubs of the others. It does not
know how many processes there are, nor how they speak: ``app.workers.parent_link`` has the bus of a server with several.

Pure: a bus that has to wait does so behind ``join``, the only coroutine here.
"""

from collections import Counter
from collections.abc import Hashable, Sequence
from itertools import count
from typing import Protocol

from app.errors import TooManySubscribers
from app.ingest.result import CommittedReading


class LocalSubscribers(Protocol):
    """The hub, as the bus at its end sees it."""

    @property
    def latest(self) -> CommittedReading | None:
        """The latest reading that the hub knows of."""

    def deliver(self, receipts: Sequence[CommittedReading]) -> None:
        """Publish readings, at least one, that another process has committed. The hub has not had them yet."""

    def remember(self, receipt: CommittedReading) -> None:
        """Take a reading that was committed earlier, for later subscribers."""

    def drop_all(self) -> None:
        """Drop the subscribers: readings have been left out, and not for newer ones, so that there is a gap."""


class Bus(Protocol):
    """A bus, as a hub needs it."""

    forwarding: bool
    """Whether a subscriber listens in another process. If not, there is nothing to forward."""

    def attach(self, local_subscribers: LocalSubscribers) -> None:
        """Say, once and before anything else, which hub stands at this end."""

    async def join(self, key_name: str) -> int:
        """Reserve a slot for one subscriber of a key, and return its number, unique in this process.

        Once it returns, the hub has had, or remembers something later than, every reading that any process committed
        before it was called; and ``deliver`` gets each one that another process commits from now on, once.

        Raises:
            TooManySubscribers: this key has as many, over all processes, as it may.
            LiveUnavailable: the other processes can't be reached.
        """

    def leave(self, slot: int) -> None:
        """Give a slot back."""

    def forward(self, receipts: Sequence[CommittedReading]) -> None:
        """Take readings committed here to the other hubs, in this order. Never waits."""


class ConnectionQuota:
    """The slots that the subscribers of each key have taken, and the limit for each key.

    A slot may be anything that is hashable and not taken yet.
    """

    def __init__(self, max_per_key: int) -> None:
        self.max_per_key = max_per_key
        self._key_of: dict[Hashable, str] = {}
        self._per_key: Counter[str] = Counter()

    def __contains__(self, slot: Hashable) -> bool:
        return slot in self._key_of

    def take(self, slot: Hashable, key_name: str) -> None:
        """Take a slot.

        Raises:
            TooManySubscribers: this key has as many as it may.
        """
        if self._per_key[key_name] >= self.max_per_key:
            raise TooManySubscribers(self.max_per_key)
        self._key_of[slot] = key_name
        self._per_key[key_name] += 1

    def give_back(self, slot: Hashable) -> None:
        """Free a slot that was taken."""
        self._per_key[self._key_of.pop(slot)] -= 1


class LocalBus:
    """The bus of a server that is one process: it only counts."""

    forwarding = False

    def __init__(self, max_subscribers_per_key: int) -> None:
        self._quota = ConnectionQuota(max_subscribers_per_key)
        self._numbers = count(1)

    def attach(self, local_subscribers: LocalSubscribers) -> None:
        """Do nothing: there is no other process."""

    async def join(self, key_name: str) -> int:
        """Return a slot. See Bus. Never waits."""
        slot = next(self._numbers)
        self._quota.take(slot, key_name)
        return slot

    def leave(self, slot: int) -> None:
        """Give a slot back."""
        self._quota.give_back(slot)

    def forward(self, receipts: Sequence[CommittedReading]) -> None:
        """Do nothing: there is no other process."""
