"""Tests of the parts of several workers."""
