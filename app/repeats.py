"""Repeated messages: which of them are worth a line in the log. Pure."""

import re

INTERVAL_S = 60.0
_NUMBER = re.compile(r"\d+")


class Repeats:
    """Tells a message that is new, or that has held for a while, from one that has just been logged."""

    def __init__(self) -> None:
        self._last = ""
        self._logged_at = 0.0

    def is_due(self, message: str, now: float) -> bool:
        """Return whether to log a message at a time (seconds, monotonic). Messages that differ in numbers only are the
        same.
        """
        message = _NUMBER.sub("", message)
        if message == self._last and now - self._logged_at < INTERVAL_S:
            return False
        self._last, self._logged_at = message, now
        return True

    def forget(self) -> None:
        """Take the next message for a new one."""
        self._last = ""
