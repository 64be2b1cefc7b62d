"""Databases to test on: the embedded one, and every local PostgreSQL that offers TimescaleDB, in both its editions."""

import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp

import pytest

from app.store.embedded import embedded_database

EDITIONS = ("embedded", "community", "apache", *(("given",) if os.environ.get("TEST_DATABASE_URL") else ()))
"""What tests run on. ``given`` is the server at TEST_DATABASE_URL, whatever it is."""
BIN_FOLDERS = (
    "/usr/lib/postgresql/*/bin",
    "/usr/pgsql-*/bin",
    "/usr/local/pgsql/bin",
    "/opt/homebrew/opt/postgresql@*/bin",
)


@contextmanager
def cluster(edition: str) -> Iterator[str]:
    """Run a cluster of an edition and return a superuser's connection string, or skip the test with the reason."""
    if edition == "given":
        yield os.environ["TEST_DATABASE_URL"]
        return
    folder = Path(mkdtemp(prefix="sensorflow-test-"))
    try:
        if edition == "embedded":
            with embedded_database(folder) as url:
                yield url
        else:
            with _local_timescaledb(folder, licence={"community": "timescale", "apache": "apache"}[edition]) as url:
                yield url
    finally:
        shutil.rmtree(folder)


@contextmanager
def _local_timescaledb(folder: Path, *, licence: str) -> Iterator[str]:
    binaries = _timescaledb_binaries()
    if binaries is None:
        pytest.skip("no local PostgreSQL offers the timescaledb extension")
    user = None
    if os.geteuid() == 0:
        user = next((account.pw_name for account in pwd.getpwall() if account.pw_name == "postgres"), "nobody")
        shutil.chown(folder, user)
    data = folder / "data"
    options = (
        f"-c listen_addresses='' -c unix_socket_directories={folder} -c shared_preload_libraries=timescaledb "
        f"-c timescaledb.license={licence} -c timescaledb.telemetry_level=off"
    )

    def run(*command: str | Path) -> None:
        with (folder / "output").open("w+") as output:
            if subprocess.run(command, stdout=output, stderr=output, user=user, cwd="/", check=False).returncode:
                output.seek(0)
                pytest.fail(f"{command[0]} failed: {output.read()}")

    run(binaries / "initdb", "-D", data, "-U", "tester", "--auth=trust", "--encoding=UTF8", "--no-locale")
    run(binaries / "pg_ctl", "start", "-w", "-D", data, "-l", folder / "log", "-o", options)
    try:
        yield f"postgresql://tester@/postgres?host={folder}"
    finally:
        if (data / "postmaster.pid").exists():  # a test may have stopped it
            run(binaries / "pg_ctl", "stop", "-w", "-m", "fast", "-D", data)


def _timescaledb_binaries() -> Path | None:
    """Find the newest local PostgreSQL that has the extension, by pg_config and the usual folders."""
    found = [Path(path).parent for path in [shutil.which("pg_config")] if path]
    found += sorted((path for pattern in BIN_FOLDERS for path in Path("/").glob(pattern[1:])), reverse=True)
    return next((folder for folder in found if _has_timescaledb(folder)), None)


def _has_timescaledb(binaries: Path) -> bool:
    config = binaries / "pg_config"
    if not config.exists() or not (binaries / "initdb").exists():
        return False
    shared = subprocess.run([config, "--sharedir"], capture_output=True, text=True, check=True).stdout.strip()
    return (Path(shared) / "extension" / "timescaledb.control").exists()
