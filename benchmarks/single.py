"""One reading a request, answered after its commit: requests per second and latency, by connections.

    python -m benchmarks.single [--rounds 3] [--seconds 5] [--connections 1 32 256]

Starts the server with its embedded PostgreSQL, or on DATABASE_URL, and beside it a bare uvicorn that stores nothing
(``benchmarks.bare``): what the HTTP server alone can do on this machine at this moment. Loads both in turn with wrk
(Debian's package ``wrk``), the numbers of connections interleaved; prints the medians of the rounds and their ratio.
Every answer must be 201, and the server must have committed as many readings as were answered.
"""

import argparse
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import httpx

from tests.server import API_KEY, eventually, running

SENSORS = 1_000
SCRIPT = f"""
wrk.method = "POST"
wrk.headers["X-API-Key"] = "{API_KEY}"
local number = 0
request = function()
  number = number + 1
  return wrk.format(nil, nil, nil, string.format(
    '{{"temperature": %.2f, "humidity": 48.2, "pressure": 1013.2, "sensor_id": "sensor-%d"}}',
    number % 40, number % {SENSORS}))
end
"""
UNITS_MS = {"us": 0.001, "ms": 1.0, "s": 1000.0}


class Round(NamedTuple):
    """What wrk saw."""

    requests: int
    requests_per_s: float
    p50_ms: float
    p99_ms: float


def load(url: str, script: Path, *, connections: int, seconds: int) -> Round:
    """One run of wrk; ends the benchmark if any answer was not 2xx."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}", "--latency", "-s", str(script), url]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    if "Non-2xx" in output or "Socket errors" in output:
        sys.exit(f"Not every request was answered 201:\n{output}")
    percentiles = {
        name: float(value) * UNITS_MS[unit] for name, value, unit in re.findall(r"(50|99)%\s+([\d.]+)(us|ms|s)", output)
    }
    (requests,) = re.findall(r"(\d+) requests in", output)
    (rate,) = re.findall(r"Requests/sec:\s+([\d.]+)", output)
    return Round(int(requests), float(rate), percentiles["50"], percentiles["99"])


@contextmanager
def bare_uvicorn() -> Iterator[str]:
    """Where a uvicorn listens that stores nothing."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ["--port", str(port), "--http", "httptools", "--loop", "uvloop", "--no-access-log", "--lifespan", "off"]
    process = subprocess.Popen(
        [sys.executable, "-m", "uvicorn", "benchmarks.bare:app", *options, "--log-level", "error"]
    )
    url = f"http://127.0.0.1:{port}/"
    try:
        eventually(lambda: answers(url))
        yield url
    finally:
        process.terminate()
        process.wait()


def answers(url: str) -> bool:
    """Whether somebody listens there."""
    try:
        return httpx.post(url).is_success
    except httpx.TransportError:
        return False


def sync_ms(folder: Path) -> float:
    """How long the disk takes to make 8 kB durable, milliseconds, median: every commit waits for that."""
    durations = []
    with (folder / "sync").open("wb", buffering=0) as file:
        for _ in range(100):
            file.write(bytes(8_192))
            started = time.perf_counter()
            os.fdatasync(file.fileno())
            durations.append(time.perf_counter() - started)
    return statistics.median(durations) * 1_000


def committed(url: str) -> int:
    """Readings that the server says it has committed."""
    (value,) = re.findall(
        r"^sensorflow_readings_committed_total (\S+)$", httpx.get(f"{url}/metrics").text, re.MULTILINE
    )
    return int(float(value))


def main() -> None:
    parser = argparse.ArgumentParser(description="One reading a request, answered after its commit.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=5)
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 32, 256])
    chosen = parser.parse_args()
    if shutil.which("wrk") is None:
        sys.exit("wrk is missing: apt-get install wrk")
    settings = {"DATABASE_URL": os.environ["DATABASE_URL"]} if "DATABASE_URL" in os.environ else {"API_KEY": API_KEY}
    rounds: defaultdict[int, list[Round]] = defaultdict(list)
    bare: defaultdict[int, list[float]] = defaultdict(list)
    with TemporaryDirectory() as folder, bare_uvicorn() as bare_url, running(Path(folder), **settings) as server:
        script = Path(folder) / "post.lua"
        script.write_text(SCRIPT)
        url = f"{server.url}/api/temperature_reading"
        disk_ms = sync_ms(Path(folder))
        warm_up = load(url, script, connections=32, seconds=2)
        for _ in range(chosen.rounds):
            for connections in chosen.connections:
                run = {"connections": connections, "seconds": chosen.seconds}
                rounds[connections].append(load(url, script, **run))
                bare[connections].append(load(bare_url, script, **run).requests_per_s)
        answered = warm_up.requests + sum(run.requests for runs in rounds.values() for run in runs)
        stored = committed(server.url)
        edition = httpx.get(f"{server.url}/ready").json()["edition"]
    # wrk hangs up at the end of its time: the last request of each connection may be stored and not counted.
    in_flight = 32 + chosen.rounds * sum(chosen.connections)
    if not answered <= stored <= answered + in_flight:
        sys.exit(f"{answered} requests were answered 201, {stored} readings stored")
    print(f"{edition}; {chosen.rounds} rounds of {chosen.seconds} s, medians; {stored:,} readings, all 201 stored;")
    print(f"fdatasync of 8 kB takes {disk_ms:.2f} ms\n")
    print("| connections | requests/s | p50 ms | p99 ms | bare uvicorn/s | ratio |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: |")
    for connections, runs in rounds.items():
        _, rate, p50, p99 = (statistics.median(column) for column in zip(*runs, strict=True))
        limit = statistics.median(bare[connections])
        print(f"| {connections} | {rate:,.0f} | {p50:.2f} | {p99:.2f} | {limit:,.0f} | {rate / limit:.2f} |")


if __name__ == "__main__":
    main()
