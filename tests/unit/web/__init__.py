"""Tests of the web modules without a socket."""
