"""Tests of what may be asked of the history, and how it is written."""
