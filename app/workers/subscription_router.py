"""The workers that have subscribers, and those that must therefore forward what they commit.

Pure: no sockets, no loop, no clock. The parent passes the workers' messages in, and sends the orders that come back, on
channels that keep their order.

Promises:
    * A key has no more slots than it may, over all workers; a worker that is gone holds none.
    * A slot is granted once every other worker has acknowledged that it forwards what it commits. What it committed
      before its acknowledgement is covered by the latest reading that comes with the grant, and what it commits after
      is routed to the subscriber's worker: nothing is missed, nothing comes twice.
    * A worker forwards only while another has subscribers.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from app.errors import TooManySubscribers
from app.ingest.result import CommittedReading
from app.live.bus import ConnectionQuota
from app.live.mailbox import event_time, later
from app.workers.messages import Denied, Granted, SetForwarding, Welcome

Order = tuple[int, SetForwarding | Granted | Denied | Welcome]
"""A worker, and the message to send to it."""


@dataclass(slots=True, eq=False)
class _WorkerState:
    """The state of one worker."""

    forwarding: bool = False
    """Whether it has been told to forward."""
    requested: int = 0
    """The number of the last SetForwarding that was sent to it."""
    acknowledged: int = 0
    """The number of the last one that it has acknowledged. Only those with ``forwarding`` are acknowledged."""
    slots: set[int] = field(default_factory=set)

    @property
    def forwards(self) -> bool:
        return self.forwarding and self.acknowledged == self.requested


class SubscriptionRouter:
    """All workers of a server, by number.

    Args:
        max_subscribers_per_key: over all workers.
        horizon_us: the latest time that a reading may have now, microseconds since 1970 UTC.
    """

    def __init__(self, max_subscribers_per_key: int, horizon_us: Callable[[], float] = lambda: math.inf) -> None:
        self._horizon_us = horizon_us
        self._quota = ConnectionQuota(max_subscribers_per_key)
        self._states: dict[int, _WorkerState] = {}
        self._waiting: dict[tuple[int, int], None] = {}
        """Worker and slot of those that are not granted yet, in the order in which they came."""
        self.latest: CommittedReading | None = None
        """The latest reading that has come by here."""

    @property
    def workers(self) -> Sequence[int]:
        """The workers that are here."""
        return tuple(self._states)

    def connect(self, worker: int) -> Sequence[Order]:
        """Add a worker, which commits nothing before Welcome."""
        state = self._states[worker] = _WorkerState()
        state.forwarding = self._should_forward(worker)
        return [(worker, Welcome(state.forwarding))]

    def disconnect(self, worker: int) -> Sequence[Order]:
        """Remove a worker, if it is known, with all its subscribers."""
        state = self._states.pop(worker, None)
        if state is None:
            return []
        for slot in state.slots:
            self._quota.give_back((worker, slot))
            self._waiting.pop((worker, slot), None)
        return [*self._set_forwarding(), *self._grants()]

    def join(self, worker: int, slot: int, key_name: str) -> Sequence[Order]:
        """Request a slot for a subscriber of a worker."""
        try:
            self._quota.take((worker, slot), key_name)
        except TooManySubscribers:
            return [(worker, Denied(slot))]
        # From here on it is routed to: what others forward from their acknowledgement on must not pass it by.
        self._states[worker].slots.add(slot)
        self._waiting[worker, slot] = None
        return [*self._set_forwarding(), *self._grants()]

    def leave(self, worker: int, slot: int) -> Sequence[Order]:
        """Remove a subscriber, also one that was not granted yet, or was refused."""
        state = self._states[worker]
        if slot not in state.slots:
            return []
        state.slots.remove(slot)
        self._quota.give_back((worker, slot))
        self._waiting.pop((worker, slot), None)
        return [*self._set_forwarding(), *self._grants()]

    def note_latest(self, latest: CommittedReading) -> None:
        """Note the latest reading that a worker knows, perhaps one that a dead worker committed."""
        self.latest = latest if self.latest is None else later(self.latest, latest, self._horizon_us())

    def acknowledge(self, worker: int, number: int, latest: CommittedReading | None) -> Sequence[Order]:
        """Record that a worker forwards, and note the latest reading before that."""
        self._states[worker].acknowledged = number
        if latest is not None:
            self.note_latest(latest)
        return list(self._grants())

    def route(self, worker: int, receipts: Sequence[CommittedReading]) -> Sequence[int]:
        """Return the workers that get a worker's committed readings, at least one."""
        self.note_latest(max(receipts, key=event_time))
        return [other for other, state in self._states.items() if other != worker and state.slots]

    def _should_forward(self, worker: int) -> bool:
        return any(state.slots for other, state in self._states.items() if other != worker)

    def _set_forwarding(self) -> Iterator[Order]:
        """Tell each worker whether to forward, if that has changed."""
        for worker, state in self._states.items():
            forwarding = self._should_forward(worker)
            if forwarding != state.forwarding:
                state.forwarding = forwarding
                state.requested += 1
                yield worker, SetForwarding(forwarding, state.requested)

    def _grants(self) -> Iterator[Order]:
        """Grant each slot for which all other workers forward."""
        silent = [worker for worker, state in self._states.items() if not state.forwards]
        for worker, slot in list(self._waiting):
            if not silent or silent == [worker]:
                del self._waiting[worker, slot]
                yield worker, Granted(slot, self.latest)
