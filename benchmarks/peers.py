"""Starts the systems that are measured. Each has a store that is empty before a run, counted after it, and then idle.

All have their default durability: PostgreSQL and InfluxDB answer when the readings are on disk, VictoriaMetrics when
they are in memory.
"""

import os
import secrets
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, Protocol

import httpx
import psycopg
from psycopg.conninfo import make_conninfo

from app.store.embedded import embedded_database
from benchmarks.load import CopyConnection, Target, WrongAnswer
from benchmarks.machine import disk_bytes, family, family_cpu_s, memory_mb, memory_parts_mb, parent_of
from benchmarks.readings import CONTENT_TYPES, Format
from tests.support.server import API_KEY, Server, eventually, run_command, running

START_TIMEOUT_S = 30
SETTLE_TIMEOUT_S = 120
COPY = "COPY readings (time, sensor_id, id, source_id, temperature, humidity, pressure) FROM STDIN (FORMAT BINARY)"
SHOWN_SETTINGS = ("fsync", "synchronous_commit", "shared_buffers", "max_wal_size")
Into = Literal["rowstore", "columnstore"]


class Store(Protocol):
    """The store of a contestant. Between ``end`` and ``begin`` it is idle, so that it does not disturb the others."""

    def begin(self) -> None:
        """Make the store ready and empty."""

    def count(self) -> int:
        """Return the number of stored readings."""

    def stored_bytes(self) -> int:
        """Return the readings' bytes on disk, once all are there. Only ``end`` may follow."""

    def memory_mb(self) -> float | None:
        """Return the memory of its processes, MB, or None if it can't be read."""

    def end(self) -> None:
        """Remove all readings, and any work that is still to be done on them."""


class Postgres:
    """A database with the server's schema. The server and raw COPY write into the same table.

    Args:
        url: an empty database.
        folder: where commands run; it has no ``.env``.
        checkout: of the server that makes the schema, and later runs on it.

    Raises:
        WrongAnswer: the server could not make its schema.
    """

    def __init__(self, url: str, folder: Path, checkout: Path) -> None:
        self.url = url
        self.checkout = checkout
        status, output = run_command(folder, "migrate", DATABASE_URL=url, PYTHONPATH=str(checkout))
        if status:
            raise WrongAnswer(f"{checkout} can't make its schema: {output}")
        self._connection = psycopg.connect(url, autocommit=True)
        self.version, timescaledb, licence = self._row(
            "SELECT current_setting('server_version'), (SELECT extversion FROM pg_extension WHERE extname = "
            "'timescaledb'), current_setting('timescaledb.license', true)"
        )
        self.is_hypertable = timescaledb is not None
        self.has_columnstore = self.is_hypertable and licence == "timescale" and self._takes_direct_copy()
        self.name = f"PostgreSQL {self.version.split()[0]}"
        if self.is_hypertable:
            edition = "Community" if licence == "timescale" else "Apache"
            self.name = f"TimescaleDB {timescaledb} {edition} on {self.name}"
        self.settings = ", ".join(f"{name} {self._row(f'SHOW {name}')[0]}" for name in SHOWN_SETTINGS)

    def _row(self, query: str) -> tuple[str, ...]:
        row = self._connection.execute(query).fetchone()
        assert row is not None  # every query here returns a row
        return row

    def _takes_direct_copy(self) -> bool:
        """Set the table up for COPY straight into the columnstore. Return whether this database can."""
        (known,) = self._row(
            "SELECT count(*) FROM pg_settings WHERE name = 'timescaledb.enable_direct_compress_copy'",
        )
        (enabled,) = self._row(
            "SELECT compression_enabled FROM timescaledb_information.hypertables WHERE hypertable_name = 'readings'"
        )
        if known and not enabled:
            self._connection.execute(
                "ALTER TABLE readings SET (timescaledb.enable_columnstore, timescaledb.segmentby = 'sensor_id', "
                "timescaledb.orderby = 'time DESC')"
            )
        return bool(known)

    def sensor_ids(self, names: list[str]) -> list[int]:
        """Return the ids of sensors, and create those that are new."""
        self._connection.execute("INSERT INTO sensors (name) SELECT unnest(%s::text[]) ON CONFLICT DO NOTHING", [names])
        rows = self._connection.execute("SELECT name, id FROM sensors WHERE name = ANY(%s)", [names]).fetchall()
        ids: dict[str, int] = dict(rows)
        return [ids[name] for name in names]

    def source_id(self) -> int:
        """Return the id of a sender, for raw COPY."""
        self._connection.execute(
            "INSERT INTO sources (key_name, client_ip) VALUES ('benchmark', '') ON CONFLICT DO NOTHING"
        )
        return int(self._row("SELECT id FROM sources WHERE key_name = 'benchmark'")[0])

    def connect(self, into: Into) -> CopyConnection:
        """Open a connection for raw COPY."""
        settings = {"timescaledb.enable_direct_compress_copy": "on"} if into == "columnstore" else {}
        return CopyConnection(self.url, COPY, settings)

    def begin(self) -> None:
        self._connection.execute("TRUNCATE readings")

    def end(self) -> None:
        self._connection.execute("TRUNCATE readings")

    def count(self) -> int:
        return int(self._row("SELECT count(*) FROM readings")[0])

    def stored_bytes(self) -> int:
        size = "hypertable_size" if self.is_hypertable else "pg_total_relation_size"
        return int(self._row(f"SELECT {size}('readings')")[0])

    def postmaster(self) -> int | None:
        """Return the process that has all of PostgreSQL's processes as children, or None if it is elsewhere."""
        return parent_of(self._connection.info.backend_pid)

    def memory_mb(self) -> float | None:
        postmaster = self.postmaster()
        return None if postmaster is None else memory_mb(postmaster)

    def memory_parts_mb(self) -> tuple[float, float] | None:
        """Return its memory without and of the shared buffers, MB, or None if it can't be read."""
        postmaster = self.postmaster()
        return None if postmaster is None else memory_parts_mb(postmaster)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


@contextmanager
def postgres(url: str | None, folder: Path, checkout: Path) -> Iterator[Postgres]:
    """Make a database on a server or, without a URL, on the embedded one, and remove it at the end.

    The server of that checkout makes the schema.
    """
    if url is None:
        with embedded_database(folder / "embedded") as embedded_url:
            store = Postgres(embedded_url, folder, checkout)
            try:
                yield store
            finally:
                store.close()
        return
    name = f"benchmark_{secrets.token_hex(4)}"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
        try:
            store = Postgres(make_conninfo(url, dbname=name), folder, checkout)
            try:
                yield store
            finally:
                store.close()
        finally:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


class SensorFlow:
    """The server, with a number of workers."""

    def __init__(self, server: Server, workers: int) -> None:
        self._server = server
        self.workers = workers
        self.port = int(server.url.rpartition(":")[2])

    @property
    def has_workers(self) -> bool:
        """Return whether the server runs as many processes as WORKERS says."""
        return self.workers == 1 or len(family(self._server.process.pid)) > self.workers

    def bulk(self, format_: Format) -> Target:
        """Return the target of bulk requests."""
        headers = {"X-API-Key": API_KEY, "Content-Type": CONTENT_TYPES[format_]}
        return Target(self.port, "/api/readings", headers, 201)

    def single(self) -> Target:
        """Return the target of single readings."""
        headers = {"X-API-Key": API_KEY, "Content-Type": CONTENT_TYPES[Format.JSON]}
        return Target(self.port, "/api/temperature_reading", headers, 201)

    def memory_mb(self) -> float | None:
        """Return the memory of all its processes without the database's, MB."""
        return memory_mb(self._server.process.pid)

    def cpu_s(self) -> float:
        """Return the processor time of all its processes without the database's, seconds."""
        return family_cpu_s(self._server.process.pid)


@contextmanager
def sensorflow(store: Postgres, folder: Path, *, workers: int, **settings: str) -> Iterator[SensorFlow]:
    """Start the server that has made the schema of that database."""
    folder.mkdir(parents=True)
    settings |= {"DATABASE_URL": store.url, "PYTHONPATH": str(store.checkout)}
    with running(folder, WORKERS=str(workers), **settings) as server:
        yield SensorFlow(server, workers)


INFLUX_CONFIG = """
reporting-disabled = true
bind-address = "127.0.0.1:{rpc_port}"
[meta]
  dir = "{folder}/meta"
[data]
  dir = "{folder}/data"
  wal-dir = "{folder}/wal"
  # Its only departure from the default, 10m: a second after the last write the log becomes a data file, so that what
  # readings occupy can be seen.
  cache-snapshot-write-cold-duration = "1s"
[monitor]
  store-enabled = false
[http]
  bind-address = "127.0.0.1:{port}"
  log-enabled = false
"""


class Influx:
    """InfluxDB 1."""

    name = "InfluxDB"
    program = "influxd"
    package = "influxdb"

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._folder = folder
        self._port = free_port()
        config = folder / "influxdb.conf"
        config.write_text(INFLUX_CONFIG.format(folder=folder, port=self._port, rpc_port=free_port()))
        command = ["influxd", "run", "-config", str(config)]
        self._process = _start(command, folder, f"http://127.0.0.1:{self._port}/ping")

    def target(self) -> Target:
        """Return the target of requests in line protocol."""
        return Target(
            self._port, "/write?db=benchmark&precision=ms", {"Content-Type": CONTENT_TYPES[Format.LINES]}, 204
        )

    def _query(self, query: str) -> httpx.Response:
        url = f"http://127.0.0.1:{self._port}/query"
        return httpx.post(url, params={"db": "benchmark", "q": query}, timeout=120).raise_for_status()

    def begin(self) -> None:
        self._query("CREATE DATABASE benchmark")

    def end(self) -> None:
        self._query("DROP DATABASE benchmark")

    def count(self) -> int:
        (result,) = self._query("SELECT count(*) FROM reading").json()["results"]
        counts = result["series"][0]["values"][0][1:]
        return int(min(counts)) if len(counts) == 3 else 0

    def stored_bytes(self) -> int:
        wal = self._folder / "wal" / "benchmark"
        eventually(lambda: disk_bytes(wal) == 0, timeout_s=SETTLE_TIMEOUT_S)
        return disk_bytes(self._folder / "data" / "benchmark")

    def memory_mb(self) -> float | None:
        return memory_mb(self._process.pid)

    def stop(self) -> None:
        """Stop the server."""
        _stop(self._process)


class VictoriaMetrics:
    """VictoriaMetrics, single node. It has no databases to drop, so each run starts it in an empty folder."""

    name = "VictoriaMetrics"
    program = "victoria-metrics"
    package = "victoria-metrics"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port = 0
        self._process: subprocess.Popen[bytes] | None = None

    def target(self) -> Target:
        """Return the target of requests in line protocol."""
        return Target(self._port, "/write?precision=ms", {"Content-Type": CONTENT_TYPES[Format.LINES]}, 204)

    def begin(self) -> None:
        self._folder.mkdir(parents=True)
        self._port = free_port()
        options = [f"-storageDataPath={self._folder}/storage", f"-httpListenAddr=127.0.0.1:{self._port}"]
        url = f"http://127.0.0.1:{self._port}/health"
        self._process = _start(["victoria-metrics", *options], self._folder, url)

    def end(self) -> None:
        self.stop()
        shutil.rmtree(self._folder)

    def stop(self) -> None:
        """Stop the server, which writes its memory to disk."""
        if self._process is not None:
            _stop(self._process)
            self._process = None

    def count(self) -> int:
        url = f"http://127.0.0.1:{self._port}"
        httpx.get(f"{url}/internal/force_flush", timeout=120).raise_for_status()
        counts = []
        for field in ("temperature", "humidity", "pressure"):
            query = f"sum(count_over_time(reading_{field}[2d]))"
            answer = httpx.get(f"{url}/api/v1/query", params={"query": query, "nocache": "1"}, timeout=120)
            result = answer.raise_for_status().json()["data"]["result"]
            counts.append(int(result[0]["value"][1]) if result else 0)
        return min(counts)

    def stored_bytes(self) -> int:
        self.stop()
        return sum(disk_bytes(self._folder / "storage" / part) for part in ("data", "indexdb"))

    def memory_mb(self) -> float | None:
        return None if self._process is None else memory_mb(self._process.pid)


Peer = Influx | VictoriaMetrics


@contextmanager
def bare_uvicorn(folder: Path) -> Iterator[Target]:
    """Start a uvicorn that stores nothing, to measure what the HTTP server alone can do on this machine now."""
    folder.mkdir(parents=True)
    port = free_port()
    options = ["--port", str(port), "--http", "httptools", "--loop", "uvloop", "--no-access-log", "--lifespan", "off"]
    command = [sys.executable, "-m", "uvicorn", "benchmarks.bare:app", *options, "--log-level", "error"]
    process = _start(command, folder, f"http://127.0.0.1:{port}/")
    try:
        yield Target(port, "/", {"Content-Type": CONTENT_TYPES[Format.JSON]}, 201)
    finally:
        _stop(process)


def version(peer: type[Peer]) -> str | None:
    """Return the version of a peer's package, or None if its program is not installed."""
    if shutil.which(peer.program) is None:
        return None
    if shutil.which("dpkg-query") is None:
        return "of unknown version"
    command = ["dpkg-query", "--showformat", "${Version}", "--show", peer.package]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.stdout or "of unknown version"


def free_port() -> int:
    """Return a free port of the loopback interface."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _start(command: list[str], folder: Path, url: str) -> "subprocess.Popen[bytes]":
    """Start a server and wait until it answers. Its output goes to a file in its folder."""
    with (folder / "output").open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=os.environ)

    def answers() -> bool:
        assert process.poll() is None, (folder / "output").read_text()
        try:
            return httpx.get(url).is_success
        except httpx.TransportError:
            return False

    try:
        eventually(answers, timeout_s=START_TIMEOUT_S)
    except BaseException:
        _stop(process)
        raise
    return process


def _stop(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    process.wait(SETTLE_TIMEOUT_S)
