"""The share of time that background work takes. Pure: the time is an argument."""

from collections import deque

IDLE_SHARE = 0.5
"""The share while the database has little else to do."""
IDLE_LOAD = 0.02
"""Part of a core that statements of others may take for the database to count as idle."""
LOAD_INTERVAL_S = 2.0
LOAD_WINDOW_S = 12.0
"""PostgreSQL reports what a session has done with a delay of up to ten seconds."""
LONGEST_DEBT_S = 300.0
"""Work that can't wait postpones the rest by so much at most."""


class Budget:
    """The share of time that work may take.

    Args:
        share: of one core, above zero. While the database is idle, it is IDLE_SHARE at least.
    """

    def __init__(self, share: float) -> None:
        self._share = share
        self._free_at = 0.0
        self._postponed_s = 0.0
        """How long work that can't wait has postponed the rest since that last had its turn."""
        self._idle_free_at = 0.0
        self._spent_s = 0.0
        self._loads: deque[tuple[float, float, float]] = deque()
        """When it was noted, with the database's active time and what had been spent by then, seconds."""

    @property
    def free_at(self) -> float:
        """When more may be spent."""
        return self._idle_free_at if self.is_idle else self._free_at

    def may_spend(self, now: float) -> bool:
        """Return whether more may be spent now."""
        return now >= self.free_at

    def spend(self, seconds: float, *, now: float, could_wait: bool) -> None:
        """Record work that took ``seconds`` and has just ended.

        Work that could wait is paid for in full. Other work postpones it by LONGEST_DEBT_S at most.
        """
        self._spent_s += seconds
        pause_s = seconds * (1 / self._share - 1)
        if could_wait:
            self._postponed_s = 0.0
        else:
            pause_s = min(pause_s, LONGEST_DEBT_S - self._postponed_s)
            self._postponed_s += pause_s
        self._free_at = max(self._free_at, now) + pause_s
        self._idle_free_at = now + seconds * max(0.0, 1 / max(IDLE_SHARE, self._share) - 1)

    def wants_load(self, now: float) -> bool:
        """Return whether the database's load should be noted again."""
        return not self._loads or now - self._loads[-1][0] >= LOAD_INTERVAL_S

    def note_load(self, active_s: float, *, now: float) -> None:
        """Note how much time all sessions of the database together have spent in statements, in seconds.

        NaN: it is unknown; for LOAD_WINDOW_S the database does not count as idle then.
        """
        self._loads.append((now, active_s, self._spent_s))
        while len(self._loads) > 1 and now - self._loads[1][0] >= LOAD_WINDOW_S:
            self._loads.popleft()

    @property
    def is_idle(self) -> bool:
        """Whether statements of others took little time of late. False until it is known."""
        if not self._loads:
            return False
        (began, active_before, spent_before), (now, active, spent) = self._loads[0], self._loads[-1]
        if now - began < LOAD_WINDOW_S:
            return False
        return (active - active_before) - (spent - spent_before) < IDLE_LOAD * (now - began)
