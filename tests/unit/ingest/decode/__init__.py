"""Tests from bytes to readings, or to their faults."""
