"""Keys of the advisory locks by which, of many processes on one database, one does what should be done once."""

MIGRATION_LOCK = 7_367_001
"""Held by migrations, and where a role is altered."""
PRUNE_LOCK = 7_367_002
"""The ledger is pruned."""
REFRESH_LOCK = 7_367_003
"""Aggregates are refreshed, and policies added."""
RECOVERY_LOCK = 7_367_004
"""The latest readings are looked up that a killed process had not written."""
RETENTION_LOCK = 7_367_005
"""Old readings are deleted where no policy does it."""
ADOPTION_LOCK = 7_367_020
"""The readings of the original SensorFlow are taken over."""
