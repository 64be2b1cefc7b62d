"""Attacks on a running server, with bounds for their cost. ``python -m tests.attacks`` runs them; pytest does not."""
