"""Tests of files and their decoding."""
