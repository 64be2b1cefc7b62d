"""The number of connections that a process holds, and which one gives way to a new one.

Each connection takes a file descriptor, even before it has shown a key. Without any left the kernel's queue fills, and
no new connection gets in. So there is a limit below that: at the limit, a new connection replaces the one that has been
silent longest without a key.
"""

import logging
from collections.abc import Callable
from itertools import islice
from typing import Protocol

from app.repeats import Repeats

logger = logging.getLogger(__name__)

MAX_LOOKED_AT = 100
"""So many of the oldest are looked at for one that is owed no answer; more would be a long turn."""


class Connection(Protocol):
    """A connection, as far as the limit needs to know it."""

    @property
    def is_owed(self) -> bool:
        """Whether an answer is being made for it."""

    def drop(self) -> None:
        """End it at once, without an answer."""


class ConnectionLimit:
    """The limit of one process's connections.

    Args:
        most: connections at a time.
        clock: seconds, monotonic.
    """

    def __init__(self, most: int, *, clock: Callable[[], float]) -> None:
        self._most = most
        self._clock = clock
        self._keyless: dict[Connection, None] = {}
        self._repeats = Repeats()

    def admit(self, connection: Connection, *, count: int) -> bool:
        """Admit a connection, the ``count``-th, if need be by dropping another. Return False if none gives way."""
        if count > self._most:
            if self._repeats.is_due("all in use", self._clock()):
                logger.warning(
                    "all %d connections are in use: each new one closes the oldest idle one that has shown no API key. "
                    "Raise MAX_CONNECTIONS or the limit of open files (ulimit -n)",
                    self._most,
                )
            looked_at = islice(self._keyless, MAX_LOOKED_AT)
            oldest = next((each for each in looked_at if not each.is_owed), None)
            if oldest is None:
                return False
            self.forget(oldest)
            oldest.drop()
        self._keyless[connection] = None
        return True

    def forget(self, connection: Connection) -> None:
        """Forget a connection that has shown a key or is gone, so that it can't be dropped for another."""
        self._keyless.pop(connection, None)
