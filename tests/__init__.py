"""Unit tests mirror app/, integration tests use real databases, and acceptance tests use the server from outside."""
