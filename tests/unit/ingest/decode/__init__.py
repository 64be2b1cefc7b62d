"""Bytes to readings, or to the faults in them."""
