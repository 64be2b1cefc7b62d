"""Bytes to readings, one file a format. Pure: no I/O and no clock; "now" comes in as an argument."""
