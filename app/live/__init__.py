"""Committed readings on their way to subscribers. Nothing here can slow the ingest down."""
