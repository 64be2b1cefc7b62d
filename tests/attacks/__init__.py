"""Attacks on a running server, and what each may cost. ``python -m tests.attacks`` runs them; pytest does not."""
