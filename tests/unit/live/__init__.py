"""Committed readings on their way to subscribers, without a socket."""
