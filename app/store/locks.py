"""Keys of the advisory locks by which, of many processes on one database, one does what should be done once."""

MIGRATION_LOCK = 7_367_001
"""Held by migrations, and where a role is altered."""
MAINTENANCE_LOCK = 7_367_002
"""Held by the process that maintains the database, as long as it does."""
REFRESH_LOCK = 7_367_003
"""Aggregates are refreshed, by the maintenance or by ``python -m app refresh``."""
RECOVERY_LOCK = 7_367_004
"""The latest readings are looked up that a killed process had not written."""
ADOPTION_LOCK = 7_367_020
"""The readings of the original SensorFlow are taken over."""

LOCK_TIMEOUT_S = 0.1
"""How long the maintenance waits for the lock of a table: flushes wait behind it."""
SHORT_WAIT = f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT_S * 1_000:.0f}ms'"
"""In the transaction of each statement that keeps flushes out: behind a pooler, the session has no timeout."""


class Busy(Exception):
    """Something that the work needs is in use. Nothing is done; the work may be tried again soon."""
