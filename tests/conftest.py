"""Fixtures with a real database: each test runs once on each edition, and the summary names the editions.

A run of one file uses one process, without the start of others, and imports alembic and pandas only for a database:
together they take a second. With CI set, Hypothesis draws all its examples.
"""

import os
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from hypothesis import settings

from tests.support.clusters import EDITIONS, cluster
from tests.support.databases import WASM, new_database
from tests.support.examples import FAST, FULL

PROCESSES = 2
"""How many run the tests of several files."""

settings.register_profile("full", deadline=None, max_examples=FULL)
settings.register_profile("fast", deadline=None, max_examples=FAST)
settings.load_profile("full" if os.environ.get("CI") else "fast")

_reached: dict[str, str] = {}


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Return the number of processes: none beside this one for a single file (a hook of pytest-xdist)."""
    if len(config.args) == 1 and config.args[0].partition("::")[0].endswith(".py"):
        config.option.dist = "no"
        return 0
    return PROCESSES


@pytest.fixture(scope="session", params=EDITIONS)
def edition_and_admin_url(request: pytest.FixtureRequest) -> Iterator[tuple[str, str]]:
    """Return an edition's name and a superuser's connection string on a cluster of it."""
    from tests.support.wasm import wasm_cluster  # noqa: PLC0415

    with wasm_cluster(request.config) if request.param == WASM else cluster(request.param) as url:
        with psycopg.connect(url) as connection:
            _reached[request.param] = f"PostgreSQL {connection.info.server_version // 10_000}"
        yield request.param, url


@pytest.fixture
def edition(edition_and_admin_url: tuple[str, str]) -> str:
    """Return the edition that the test runs on."""
    return edition_and_admin_url[0]


@pytest.fixture
def empty_database(edition_and_admin_url: tuple[str, str]) -> Iterator[str]:
    """Return the connection string of a new, empty database."""
    with new_database(edition_and_admin_url[1]) as url:
        yield url


@pytest.fixture
def database(empty_database: str) -> str:
    """Return the connection string of a new database with the schema in it."""
    from app.store.database import migrate  # noqa: PLC0415

    migrate(empty_database)
    return empty_database


@pytest.fixture(scope="session")
def embedded_admin_url() -> Iterator[str]:
    """Return a superuser's connection string on an embedded PostgreSQL."""
    with cluster("embedded") as url:
        yield url


@pytest.fixture
def embedded_database_url(embedded_admin_url: str) -> Iterator[str]:
    """Return a new, empty database on the embedded PostgreSQL, for tests of the server and not of the edition."""
    with new_database(embedded_admin_url) as url:
        yield url


@pytest.fixture(scope="session")
def community_admin_url() -> Iterator[str]:
    """Return a superuser's connection string on TimescaleDB Community."""
    with cluster("community") as url:
        yield url


@pytest.fixture
def community_database(community_admin_url: str) -> Iterator[str]:
    """Return a new database on TimescaleDB Community, with the schema in it."""
    from app.store.database import migrate  # noqa: PLC0415

    with new_database(community_admin_url) as url:
        migrate(url)
        yield url


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Report the editions that this process has tested to the process that prints the summary."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["reached"] = _reached


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take the editions that another process reports."""
    _reached.update(getattr(node, "workeroutput", {}).get("reached", {}))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the editions of the database that the run tested."""
    if _reached:
        reached = ", ".join(f"{name} ({version})" for name, version in _reached.items())
        terminalreporter.write_line(f"Database editions tested: {reached}")
