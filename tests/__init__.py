"""Unit tests mirror app/; integration tests meet real databases; acceptance tests meet the server from outside."""
