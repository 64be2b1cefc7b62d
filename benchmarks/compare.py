"""Compares this checkout's server with another checkout's, to measure the effect of a change.

    git worktree add ../before COMMIT
    python -m benchmarks.compare ../before --rounds 9

Each server has a database of its own, on the server at DATABASE_URL or else on the embedded one, and makes its own
schema there. The two servers take turns, every other round in the opposite order, so that a machine whose speed drifts
slows both. Each run ends with a count of the stored readings.
"""

import argparse
import os
import secrets
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import psycopg
from psycopg.conninfo import make_conninfo

from app.store.embedded import embedded_database
from benchmarks.__main__ import CONNECTIONS, MAX_SINGLES_PER_S, REQUESTS, SINGLE_SENSORS, start_ms
from benchmarks.load import HttpConnection, Sent, WrongAnswer, http_request, send_once_each, send_singly
from benchmarks.machine import description
from benchmarks.peers import SensorFlow
from benchmarks.readings import Format, bodies, make_readings
from benchmarks.report import GOAL_SHAPE, GOAL_SINGLE
from tests.support.server import REPOSITORY, running

SINGLE_SECONDS = 4

Workload = Callable[[SensorFlow], tuple[float, range]]
"""Sends readings; returns the answered readings per second, and the numbers that the database may hold now."""


def bulk() -> Workload:
    """Return the sender of the goals' bulk requests."""
    rows = GOAL_SHAPE.rows
    count = (CONNECTIONS + REQUESTS[rows]) * rows
    readings = make_readings(count, sensors=GOAL_SHAPE.sensors, start_ms=start_ms(count, GOAL_SHAPE.sensors))
    written = bodies(readings, Format.NDJSON, rows=rows)

    def send(server: SensorFlow) -> tuple[float, range]:
        target = server.bulk(Format.NDJSON)
        portions = [http_request(target, body) for body in written]
        connect = partial(HttpConnection, target)
        sent = send_once_each(portions, connect, connections=CONNECTIONS, warm_up=CONNECTIONS)
        return sent.requests * rows / sent.elapsed_s, range(count, count + 1)

    return send


def single(folder: Path) -> Workload:
    """Return the sender of the goals' single readings."""
    count = SINGLE_SENSORS + SINGLE_SECONDS * MAX_SINGLES_PER_S
    readings = make_readings(count, sensors=SINGLE_SENSORS, start_ms=start_ms(count, SINGLE_SENSORS))
    (first,) = bodies(readings.slice(0, SINGLE_SENSORS), Format.NDJSON, rows=SINGLE_SENSORS)
    (rest,) = bodies(readings.slice(SINGLE_SENSORS), Format.NDJSON, rows=count)
    file = folder / "singles"
    file.write_bytes(rest)
    connections = GOAL_SINGLE.connections

    def send(server: SensorFlow) -> tuple[float, range]:
        target = server.single()
        warm_up = [http_request(target, body) for body in first.splitlines()]
        send_once_each(warm_up, partial(HttpConnection, target), connections=connections, warm_up=0)
        sent: Sent = send_singly(target, file, connections=connections, seconds=SINGLE_SECONDS)
        answered = len(warm_up) + sent.requests
        return sent.requests / sent.elapsed_s, range(answered, answered + connections + 1)

    return send


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description="Two checkouts of the server.")
    parser.add_argument("before", type=Path, help="the folder of the other checkout")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--workers", type=int, default=1)
    chosen = parser.parse_args()
    print(f"{description()}.\n", flush=True)
    with TemporaryDirectory(prefix="benchmark-") as name, ExitStack() as stack:
        folder = Path(name)
        folder.chmod(0o711)
        url = os.environ.get("DATABASE_URL") or stack.enter_context(embedded_database(folder / "embedded"))
        checkouts = {"before": chosen.before.resolve(), "after": REPOSITORY}
        servers = {
            name: stack.enter_context(server_of(checkout, url, folder / name, workers=chosen.workers))
            for name, checkout in checkouts.items()
        }
        print("| | before, readings/s | after, readings/s | after / before |\n| --- | --- | --- | --- |")
        for what, workload in ((str(GOAL_SHAPE), bulk()), (str(GOAL_SINGLE), single(folder))):
            rates = in_turn(what, workload, servers, rounds=chosen.rounds)
            ratios = [after / before for before, after in zip(rates["before"], rates["after"], strict=True)]
            medians = " | ".join(f"{statistics.median(rates[name]):,.0f}" for name in checkouts)
            print(
                f"| {what} | {medians} | {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}) |",
                flush=True,
            )


def in_turn(
    what: str, workload: Workload, servers: Mapping[str, tuple[SensorFlow, psycopg.Connection]], *, rounds: int
) -> dict[str, list[float]]:
    """Return the rates of each server, by round."""
    rates: dict[str, list[float]] = {name: [] for name in servers}
    for number in range(rounds):
        for name in list(servers)[:: -1 if number % 2 else 1]:
            server, connection = servers[name]
            connection.execute("TRUNCATE readings")
            os.sync()
            rate, expected = workload(server)
            stored = (connection.execute("SELECT count(*) FROM readings").fetchone() or (0,))[0]
            if stored not in expected:
                raise WrongAnswer(f"{name} holds {stored:,} readings, and was sent {expected[0]:,}")
            connection.execute("TRUNCATE readings")
            rates[name].append(rate)
            print(f"{what}: round {number + 1}, {name}: {rate:,.0f}/s", file=sys.stderr)
    return rates


@contextmanager
def server_of(
    checkout: Path, admin_url: str, folder: Path, *, workers: int
) -> Iterator[tuple[SensorFlow, psycopg.Connection]]:
    """Start a checkout's server on a new database, and connect to that database."""
    database = f"benchmark_{secrets.token_hex(4)}"
    folder.mkdir()
    with psycopg.connect(admin_url, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {database}")
        url = make_conninfo(admin_url, dbname=database)
        try:
            with (
                running(folder, DATABASE_URL=url, WORKERS=str(workers), PYTHONPATH=str(checkout)) as server,
                psycopg.connect(url, autocommit=True) as connection,
            ):
                yield SensorFlow(server, workers), connection
        finally:
            admin.execute(f"DROP DATABASE {database} WITH (FORCE)")


if __name__ == "__main__":
    try:
        main()
    except WrongAnswer as error:
        sys.exit(f"The figures would mean nothing: {error}")
