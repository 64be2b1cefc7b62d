"""Tests of the benchmark's own rules."""
