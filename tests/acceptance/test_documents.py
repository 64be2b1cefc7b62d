"""The pages for users: their commands work, and the API's page names everything that the server offers."""

import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import orjson
import psycopg
import pytest

from app.store.database import migrate
from tests.support.documents import DOCS, INLINE, blocks_of, run, section
from tests.support.server import API_KEY, REPOSITORY, Server, eventually, running

OF_THE_SERVER = {"id", "date_recorded", "time_recorded"}
"""What differs from one run to the next."""

BOARD = {
    "dht": "class DHT22:\n"
    "    def __init__(self, pin): pass\n"
    "    def measure(self): pass\n"
    "    def temperature(self): return 21.5\n"
    "    def humidity(self): return 48.5\n",
    "machine": "def unique_id(): return bytes(6)\n"
    "class Pin:\n"
    "    def __init__(self, number): pass\n"
    "class ADC:\n"
    "    def __init__(self, pin): pass\n"
    "    def read_uv(self): return 715_000\n",
    "network": "STA_IF = 0\n"
    "class WLAN:\n"
    "    def __init__(self, interface): pass\n"
    "    def active(self, on): pass\n"
    "    def connect(self, name, password): pass\n",
    "ntptime": "def settime(): pass\n",
}
"""The modules of a board, by name: a sensor at 21.5 °C on a network where the clock is right."""
OF_MICROPYTHON = {
    "sitecustomize": "import time\n"
    "time.ticks_ms = lambda: time.monotonic_ns() // 1_000_000 % 2**30\n"
    "time.ticks_diff = lambda end, start: (end - start + 2**29) % 2**30 - 2**29\n",
    "requests": "import httpx\n"
    "def get(url, **options): return httpx.get(url, **options)\n"
    "def post(url, data, **options): return httpx.post(url, content=data, **options)\n",
}
"""What MicroPython has, and Python has not."""


def commands_for(server: Server, commands: str) -> str:
    """Return commands of a page as they are for a server at another address, and this Python."""
    commands = commands.replace("http://127.0.0.1:8000", server.url)
    commands = commands.replace("ws://127.0.0.1:8000", server.url.replace("http", "ws", 1))
    return commands.replace(".venv/bin/python", sys.executable)


def test_api_examples(server: Server, tmp_path: Path) -> None:
    """Each command of docs/api.md works, and an answer that is shown below it is the answer."""
    blocks = blocks_of((DOCS / "api.md").read_text())
    commands = [index for index, (language, _) in enumerate(blocks) if language == "bash"]
    assert len(commands) >= 5
    compared = 0
    for index in commands:
        printed = run(commands_for(server, blocks[index][1]), tmp_path, KEY=API_KEY)
        assert not re.search(r"HTTP/1.1 (401|404|5\d\d)|Internal Server Error", printed)
        if index + 1 < len(blocks) and blocks[index + 1][0] == "json" and "..." not in blocks[index + 1][1]:
            answer = orjson.loads(printed.partition("\n\n")[2] or printed)
            shown = orjson.loads(blocks[index + 1][1])
            differing = {name for name in answer | shown if answer.get(name) != shown.get(name)}
            assert answer.keys() == shown.keys()
            assert differing <= OF_THE_SERVER, answer
            compared += 1
    assert compared >= 2


def test_first_commands(server: Server, tmp_path: Path) -> None:
    """README's first commands store readings one by one and many at once, and read them back."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "api_key").write_text(API_KEY)
    (first, second) = [code for _, code in blocks_of(section(REPOSITORY / "README.md", "## Send and read back"))]
    key = first.partition("\n")[0]
    assert "201 Created" in run(commands_for(server, first), tmp_path)
    printed = run(commands_for(server, f"{key}\n{second}"), tmp_path)
    assert '{"stored":2}' in printed
    assert {"greenhouse-1", "greenhouse-2"} <= set(re.findall(r"greenhouse-\d", printed))


@pytest.mark.parametrize("kind", ["routes", "statuses", "media types", "query parameters"])
def test_api_page_is_complete(client: httpx.Client, kind: str) -> None:
    """docs/api.md names every route, status, media type and query parameter that the server documents."""
    page = (DOCS / "api.md").read_text()
    paths = client.get("/openapi.json").json()["paths"]
    operations = {(path, method): how for path, methods in paths.items() for method, how in methods.items()}
    named = {
        "routes": {f"{method.upper()} {path}" for path, method in operations},
        "statuses": {status for how in operations.values() for status in how["responses"]},
        "media types": {
            type_ for how in operations.values() for type_ in how.get("requestBody", {}).get("content", {})
        },
        "query parameters": {
            parameter["name"]
            for how in operations.values()
            for parameter in how.get("parameters", [])
            if parameter["in"] == "query"
        },
    }[kind]
    assert named
    assert {name for name in named if not re.search(rf"(?<!\w){re.escape(name)}(?!\w)", page)} == set()


@contextmanager
def device(heading: str, folder: Path, server: Server, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """Run the program below a heading of docs/devices.md as it stands there, except names and the pause."""
    program = blocks_of(section(DOCS / "devices.md", f"## {heading}"))[0][1]
    program = re.sub(r'^URL = "http://[\d.:]+', f'URL = "{server.url}', program, flags=re.MULTILINE)
    program = re.sub(r"^KEY = \".*\"$", f'KEY = "{API_KEY}"', program, flags=re.MULTILINE)
    program = re.sub(r"^(EVERY_S, \w+) = \d+", r"\1 = 0.1", program, flags=re.MULTILINE)
    (folder / "main.py").write_text(program)
    for name, text in (BOARD | OF_MICROPYTHON).items():
        (folder / f"{name}.py").write_text(text)
    process = subprocess.Popen(
        [sys.executable, "main.py"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder), "NO_PROXY": "*", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
        assert process.poll() is None
    finally:
        process.kill()
        print(process.communicate()[0])


def readings_of(client: httpx.Client, sensor: str) -> list[dict[str, Any]]:
    """Return a sensor's readings, none while the sensor is unknown."""
    answer = client.get("/api/readings", params={"sensor_id": sensor, "bucket": "raw"})
    return [] if answer.status_code == 404 else answer.raise_for_status().json()["readings"]


@pytest.mark.parametrize(
    ("heading", "sensor"), [("An ESP32 with MicroPython", "esp32-000000000000"), ("A device without NTP", "tank-3")]
)
def test_board(heading: str, sensor: str, server: Server, client: httpx.Client, tmp_path: Path) -> None:
    """A board's program stores what it measures, each value once and with its time."""
    with device(heading, tmp_path, server):
        eventually(lambda: len(readings_of(client, sensor)) >= 5)
    found = readings_of(client, sensor)
    times = [datetime.fromisoformat(reading["time"]) for reading in found]
    assert {reading["temperature"] for reading in found} == {21.5}
    assert times == sorted(times)
    assert abs(datetime.now(UTC) - times[-1]) < timedelta(seconds=10)


def test_pi_that_was_offline(embedded_database_url: str, tmp_path: Path) -> None:
    """Readings that the Pi measures without a server, and before it is killed, are stored once the server is back."""
    (tmp_path / "sensor").write_text("48312\n")
    (tmp_path / "server").mkdir()
    heading = "A Raspberry Pi that was offline"
    pi = {"API_KEY": API_KEY, "SENSOR": str(tmp_path / "sensor")}

    def kept() -> int:
        with closing(sqlite3.connect(tmp_path / "outbox.db", timeout=30)) as outbox:
            if not outbox.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'outbox'").fetchone()[0]:
                return 0
            return int(outbox.execute("SELECT count(*) FROM outbox").fetchone()[0])

    with running(tmp_path / "server", DATABASE_URL=embedded_database_url) as server:
        port = server.url.rpartition(":")[2]
    with device(heading, tmp_path, server, SENSORFLOW_URL=server.url, **pi):
        eventually(lambda: kept() >= 5)
    measured = kept()
    with (
        running(tmp_path / "server", DATABASE_URL=embedded_database_url, PORT=port) as server,
        httpx.Client(base_url=server.url, headers={"X-API-Key": API_KEY}, timeout=15) as client,
        device(heading, tmp_path, server, SENSORFLOW_URL=server.url, **pi),
    ):
        eventually(lambda: len(readings_of(client, "pi-1")) >= measured)
        eventually(lambda: kept() <= 100)
        found = readings_of(client, "pi-1")
    assert len({reading["time"] for reading in found}) == len(found)
    assert {reading["temperature"] for reading in found} == {48.312}


def test_every_table_is_explained(embedded_database_url: str) -> None:
    """docs/architecture.md says of each table what a row is and when it is written."""
    migrate(embedded_database_url)
    with psycopg.connect(embedded_database_url) as connection:
        found = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = current_schema").fetchall()
    rows = re.findall(r"^\| (`.+?) \| .+ \| .+ \|$", section(DOCS / "architecture.md", "## Processes and tables"), re.M)
    assert {name for row in rows for name in INLINE.findall(row)} == {name for (name,) in found} - {"alembic_version"}
