"""Fixtures that reach a real database, one run of each test an edition; the summary says which editions there were."""

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from app.store.database import migrate
from tests.support.clusters import EDITIONS, cluster
from tests.support.databases import WASM, new_database
from tests.support.wasm import wasm_cluster

_reached: dict[str, str] = {}


@pytest.fixture(scope="session", params=EDITIONS)
def edition_and_admin_url(request: pytest.FixtureRequest) -> Iterator[tuple[str, str]]:
    """An edition's name, and a superuser's connection string on a cluster of it."""
    with wasm_cluster(request.config) if request.param == WASM else cluster(request.param) as url:
        with psycopg.connect(url) as connection:
            _reached[request.param] = f"PostgreSQL {connection.info.server_version // 10_000}"
        yield request.param, url


@pytest.fixture
def edition(edition_and_admin_url: tuple[str, str]) -> str:
    """The edition that the test runs on."""
    return edition_and_admin_url[0]


@pytest.fixture
def empty_database(edition_and_admin_url: tuple[str, str]) -> Iterator[str]:
    """The connection string of a new, empty database."""
    with new_database(edition_and_admin_url[1]) as url:
        yield url


@pytest.fixture
def database(empty_database: str) -> str:
    """The connection string of a new database with the schema in it."""
    migrate(empty_database)
    return empty_database


@pytest.fixture(scope="session")
def embedded_admin_url() -> Iterator[str]:
    """A superuser's connection string on an embedded PostgreSQL."""
    with cluster("embedded") as url:
        yield url


@pytest.fixture
def embedded_database_url(embedded_admin_url: str) -> Iterator[str]:
    """A new, empty database on the embedded PostgreSQL, for tests that are about the server and not the edition."""
    with new_database(embedded_admin_url) as url:
        yield url


@pytest.fixture(scope="session")
def community_admin_url() -> Iterator[str]:
    """A superuser's connection string on TimescaleDB Community."""
    with cluster("community") as url:
        yield url


@pytest.fixture
def community_database(community_admin_url: str) -> Iterator[str]:
    """A new database there, with the schema in it."""
    with new_database(community_admin_url) as url:
        migrate(url)
        yield url


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A process among several says which editions it met to the one that sums up."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["reached"] = _reached


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Hears it."""
    _reached.update(getattr(node, "workeroutput", {}).get("reached", {}))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says which editions of the database the run met."""
    if _reached:
        reached = ", ".join(f"{name} ({version})" for name, version in _reached.items())
        terminalreporter.write_line(f"Database editions tested: {reached}")
