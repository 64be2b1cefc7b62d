"""New databases on a cluster, and locks that another session holds in one."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from psycopg.conninfo import make_conninfo

WASM = "wasm"
"""An edition for tests that ask for it by its name, and make do with one connection: see tests/support/wasm.py."""


_numbers = itertools.count(1)


@contextmanager
def new_database(admin_url: str) -> Iterator[str]:
    """Make a new, empty database on a cluster and return its connection string."""
    name = f"test_{next(_numbers)}"
    with psycopg.connect(admin_url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
        yield make_conninfo(admin_url, dbname=name)
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@contextmanager
def holding(url: str, *statements: str) -> Iterator[None]:
    """Run statements in a transaction that stays open until the block ends."""
    with psycopg.connect(url) as connection:
        for statement in statements:
            connection.execute(statement)
        yield
        connection.rollback()
