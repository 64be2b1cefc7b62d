"""Who listens on which worker, and which workers must therefore forward what they commit.

Pure: no sockets, no loop, no clock. The parent tells it what workers say; it answers with orders, what is to be said to
whom, and the parent says it, on channels that keep the order.

Promises:
    * A key has no more places than it may, over all workers; a worker that is gone holds none.
    * A place is granted once every other worker has acknowledged that it forwards what it commits. What it committed
      before its acknowledgement is covered by the latest reading that comes with the grant, and what it commits after
      is routed to the subscriber's worker: nothing is missed, nothing comes twice.
    * A worker forwards only while somebody listens on another.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from app.errors import TooManySubscribers
from app.ingest.receipt import CommittedReading
from app.live.bus import ConnectionQuota
from app.live.mailbox import event_time, later
from app.workers.messages import Denied, Granted, SetForwarding, Welcome

Order = tuple[int, SetForwarding | Granted | Denied | Welcome]
"""A worker, and what it is to be told."""


@dataclass(slots=True, eq=False)
class _WorkerState:
    """What is known of one worker."""

    wanted: bool = False
    """Whether it has been told to forward."""
    told: int = 0
    """The number of the last interest that it was told."""
    heard: int = 0
    """The number of the last that it has acknowledged. Only those that want something are."""
    places: set[int] = field(default_factory=set)

    @property
    def forwards(self) -> bool:
        return self.wanted and self.heard == self.told


class SubscriptionRouter:
    """All workers of a server, by number.

    Args:
        max_subscribers_per_key: over all workers.
        horizon_us: the latest time that a reading may have now, microseconds since 1970 UTC.
    """

    def __init__(self, max_subscribers_per_key: int, horizon_us: Callable[[], float] = lambda: math.inf) -> None:
        self._horizon_us = horizon_us
        self._places = ConnectionQuota(max_subscribers_per_key)
        self._lines: dict[int, _WorkerState] = {}
        self._waiting: dict[tuple[int, int], None] = {}
        """Worker and place of those that are not granted yet, in the order in which they came."""
        self.latest: CommittedReading | None = None
        """The latest reading that has come by here."""

    @property
    def workers(self) -> Sequence[int]:
        """The workers that are here."""
        return tuple(self._lines)

    def connect(self, worker: int) -> Sequence[Order]:
        """A worker is here. It has committed nothing yet, and won't before it is welcomed."""
        line = self._lines[worker] = _WorkerState()
        line.wanted = self._is_wanted_from(worker)
        return [(worker, Welcome(line.wanted))]

    def disconnect(self, worker: int) -> Sequence[Order]:
        """A worker is gone, if it was here, with all its subscribers."""
        line = self._lines.pop(worker, None)
        if line is None:
            return []
        for place in line.places:
            self._places.give_back((worker, place))
            self._waiting.pop((worker, place), None)
        return [*self._say_interests(), *self._grants()]

    def join(self, worker: int, place: int, key_name: str) -> Sequence[Order]:
        """A subscriber of a worker wants a place."""
        try:
            self._places.take((worker, place), key_name)
        except TooManySubscribers:
            return [(worker, Denied(place))]
        # From here on it is routed to: what others forward from their acknowledgement on must not pass it by.
        self._lines[worker].places.add(place)
        self._waiting[worker, place] = None
        return [*self._say_interests(), *self._grants()]

    def leave(self, worker: int, place: int) -> Sequence[Order]:
        """A subscriber is gone; perhaps before it was granted, or although it was refused."""
        line = self._lines[worker]
        if place not in line.places:
            return []
        line.places.remove(place)
        self._places.give_back((worker, place))
        self._waiting.pop((worker, place), None)
        return [*self._say_interests(), *self._grants()]

    def recall(self, latest: CommittedReading) -> None:
        """A worker knows of a reading committed earlier, perhaps by one that is gone and could not tell."""
        self.latest = latest if self.latest is None else later(self.latest, latest, self._horizon_us())

    def heard(self, worker: int, number: int, latest: CommittedReading | None) -> Sequence[Order]:
        """A worker has acknowledged that it forwards, and says what was the latest reading before."""
        self._lines[worker].heard = number
        if latest is not None:
            self.recall(latest)
        return list(self._grants())

    def route(self, worker: int, receipts: Sequence[CommittedReading]) -> Sequence[int]:
        """The workers to which what a worker has committed, at least one reading, is to be taken."""
        self.recall(max(receipts, key=event_time))
        return [other for other, line in self._lines.items() if other != worker and line.places]

    def _is_wanted_from(self, worker: int) -> bool:
        return any(line.places for other, line in self._lines.items() if other != worker)

    def _say_interests(self) -> Iterator[Order]:
        """Tells those for whom it has changed whether they are to forward."""
        for worker, line in self._lines.items():
            wanted = self._is_wanted_from(worker)
            if wanted != line.wanted:
                line.wanted = wanted
                line.told += 1
                yield worker, SetForwarding(wanted, line.told)

    def _grants(self) -> Iterator[Order]:
        """Grants all places that wait for nobody any more."""
        silent = [worker for worker, line in self._lines.items() if not line.forwards]
        for worker, place in list(self._waiting):
            if not silent or silent == [worker]:
                del self._waiting[worker, place]
                yield worker, Granted(place, self.latest)
