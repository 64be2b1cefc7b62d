"""Fixtures with running servers."""

from collections.abc import Iterator
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp

import httpx
import pytest

from tests.support.server import API_KEY, Server, running


@pytest.fixture
def folder() -> Iterator[Path]:
    """Make a folder for an embedded database. pytest's own would be closed to other accounts at every run."""
    path = Path(mkdtemp(prefix="sensorflow-test-"))
    yield path
    rmtree(path)


@pytest.fixture
def server(embedded_database_url: str, tmp_path: Path) -> Iterator[Server]:
    """Start a server on a new database."""
    with running(tmp_path, DATABASE_URL=embedded_database_url) as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    """Open an HTTP client of that server, with the key for everything."""
    with httpx.Client(base_url=server.url, headers={"X-API-Key": API_KEY}, timeout=15) as client:
        yield client
