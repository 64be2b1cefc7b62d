"""Tests of the history's queries and formats."""
