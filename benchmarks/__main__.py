"""How fast the server is, beside raw COPY, InfluxDB and VictoriaMetrics, in one run on one machine.

    python -m benchmarks                  all of it
    python -m benchmarks --only goals     what the goals need, in more rounds
    python -m benchmarks --quick          one short round of the goals: shows that it works, and no more

``--database embedded`` measures on the PostgreSQL that the server brings, ``--database url`` on a database of the
benchmark's own on the server at DATABASE_URL, of which it must be allowed to be superuser; the default is the second
where DATABASE_URL is set. Both may be named.

Every run begins with an empty store and ends with a count: a contestant that does not hold exactly what it was sent ends
the benchmark. Tables go to the standard output, in Markdown; progress goes to the other.
"""

import argparse
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import pyarrow as pa

from benchmarks import peers
from benchmarks.load import HttpConnection, Sent, Target, WrongAnswer, http_request, send_once_each, send_singly
from benchmarks.machine import description, sync_ms
from benchmarks.peers import Influx, Peer, Postgres, SensorFlow, Store, VictoriaMetrics
from benchmarks.readings import BULK_FORMATS, Format, Shape, bodies, copy_payloads, make_readings, sensor_name
from benchmarks.report import (
    BARE,
    GOAL_SHAPE,
    GOAL_SINGLE,
    SPARSE_SHAPE,
    Round,
    Single,
    Workload,
    goal_table,
    goals,
    raw_name,
    server_name,
    table,
)

CONNECTIONS = 4
"""Over which every bulk sender of HTTP sends."""
WORKERS = (1, 2)
REQUESTS = {1_000: 500, 10_000: 100}
"""Bulk requests of a run, by the readings in each."""
SPARSE_ROWS_PER_SENSOR = 10
"""With fewer rows of a sensor in a COPY the columnstore takes readings very slowly: raw COPY into it then sends a tenth."""
SINGLE_SENSORS = 1_000
MAX_SINGLES_PER_S = 100_000
"""So many readings are made ready for each second of wrk's."""
DAY_MS = 86_400_000
MARGIN_MS = 6 * 3_600_000

DatabaseKind = Literal["embedded", "url"]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured, and for how long."""

    workloads: Sequence[Workload]
    formats: Sequence[Format]
    rounds: int
    scale: float
    """Times REQUESTS."""
    seconds: int
    """Of one run of single readings."""


@dataclass(frozen=True, slots=True)
class Contestant:
    """Somebody who stores readings: ``send`` sends them all and gives back how many it must hold now, at least and at
    most; without a store nothing is counted.
    """

    name: str
    store: Store | None
    send: Callable[[], tuple[Sent, int, range]]
    server: SensorFlow | None = None


@dataclass(slots=True)
class Findings:
    """What has come out so far."""

    results: dict[Workload, dict[str, list[Round]]] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    sender_ms: list[float] = field(default_factory=list)
    """Processor time of our own sender a request, milliseconds, of each bulk run over HTTP."""
    sender_shares: list[float] = field(default_factory=list)
    """Likewise, as a share of the time that passed."""

    def leave_out(self, what: str) -> None:
        """Notes it, once."""
        if what not in self.left_out:
            self.left_out.append(what)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="The server beside its limit and peers.")
    parser.add_argument("--only", choices=["goals", "bulk", "single"], help="a part of it")
    parser.add_argument("--quick", action="store_true", help="one short round of the goals")
    parser.add_argument("--rounds", type=int, help="3 unless told, 5 for the goals")
    parser.add_argument(
        "--database",
        nargs="+",
        choices=["embedded", "url"],
        default=["url" if "DATABASE_URL" in os.environ else "embedded"],
    )
    chosen = parser.parse_args()
    plan = make_plan(chosen.only, is_quick=chosen.quick, rounds=chosen.rounds)
    if "url" in chosen.database and "DATABASE_URL" not in os.environ:
        sys.exit("Set DATABASE_URL, or take --database embedded.")
    started = time.monotonic()
    print(f"{description()}.")
    print(f"{time.strftime('%Y-%m-%d')}, Python {platform.python_version()}, uvicorn {version('uvicorn')}, ", end="")
    print(f"pyarrow {version('pyarrow')}; medians of {plan.rounds} interleaved round{'s' * (plan.rounds > 1)}.")
    for kind in chosen.database:
        with TemporaryDirectory(prefix="benchmark-") as folder:
            try:
                measure(kind, plan, Path(folder))
            except WrongAnswer as error:
                sys.exit(f"The figures would mean nothing: {error}")
    print(f"\nIt took {(time.monotonic() - started) / 60:.0f} minutes.")


def make_plan(only: str | None, *, is_quick: bool, rounds: int | None) -> Plan:
    """The plan for what was asked on the command line."""
    bulk: list[Workload] = [Shape(sensors, rows) for rows in (10_000, 1_000) for sensors in (100, 1_000, 10_000)]
    single: list[Workload] = [Single(connections) for connections in (1, 32, 256)]
    if is_quick or only == "goals":
        bulk, single = [GOAL_SHAPE, SPARSE_SHAPE], [GOAL_SINGLE]
    return Plan(
        workloads=[*(bulk if only != "single" else []), *(single if only != "bulk" else [])],
        formats=[Format.NDJSON] if only == "goals" else BULK_FORMATS,
        rounds=rounds or (1 if is_quick else 5 if only == "goals" else 3),
        scale=0.3 if is_quick else 1.5 if only == "goals" else 1.0,
        seconds=2 if is_quick else 4,
    )


def measure(kind: DatabaseKind, plan: Plan, folder: Path) -> None:
    """Runs the plan on one database and prints what came out."""
    findings = Findings()
    url = os.environ["DATABASE_URL"] if kind == "url" else None
    # Embedded by root, the database runs as another account, who must pass.
    folder.chmod(0o711)
    with peers.postgres(url, folder) as store:
        where = "the embedded" if kind == "embedded" else "DATABASE_URL:"
        print(f"\n## On {where} {store.name}\n\nfdatasync of 8 kB takes {sync_ms(folder):.2f} ms.", end="")
        for peer in (Influx, VictoriaMetrics):
            if (package := peers.version(peer)) is None:
                findings.leave_out(f"{peer.name} is not installed")
            else:
                print(f" {peer.name} {package}.", end="")
        print(flush=True)
        for number, workload in enumerate(plan.workloads):
            with ExitStack() as stack:
                place = folder / str(number)
                if isinstance(workload, Shape):
                    contestants = bulk_contestants(workload, plan, store, place, stack, findings)
                elif shutil.which("wrk") is None:
                    findings.leave_out("one reading a request: wrk is not installed")
                    continue
                else:
                    contestants = single_contestants(workload, plan, store, place, stack, findings)
                findings.results[workload] = race(workload, contestants, plan.rounds, findings)
            print(f"\n### {workload}\n\n{table(workload, findings.results[workload])}", flush=True)
        found = goals(findings.results, has_columnstore=store.has_columnstore, is_embedded=kind == "embedded")
    print(f"\n### Goals\n\n{goal_table(found)}")
    if findings.sender_ms:
        print(
            f"\nOur own sender of bulk took {min(findings.sender_ms):.2f} to {max(findings.sender_ms):.2f} ms of processor "
            f"time a request, at most {max(findings.sender_shares):.0%} of a processor."
        )
    for what in findings.left_out:
        print(f"\nLeft out: {what}.")


def race(
    workload: Workload, contestants: Sequence[Contestant], rounds: int, findings: Findings
) -> dict[str, list[Round]]:
    """Everybody in turn, as often as there are rounds, every other round in the opposite order."""
    seen: dict[str, list[Round]] = {contestant.name: [] for contestant in contestants}
    for number in range(rounds):
        for contestant in contestants[:: -1 if number % 2 else 1]:
            round_ = one_run(contestant, findings, is_last=number == rounds - 1)
            seen[contestant.name].append(round_)
            print(f"{workload}: round {number + 1}, {contestant.name}: {round_.rate:,.0f}/s", file=sys.stderr)
    return seen


def one_run(contestant: Contestant, findings: Findings, *, is_last: bool) -> Round:
    """One contestant once, from an empty store to a count of what it holds."""
    if contestant.store is not None:
        contestant.store.empty()
    os.sync()  # nobody waits for what somebody else has left to be written
    try:
        sent, readings, expected = contestant.send()
    except WrongAnswer as error:
        raise WrongAnswer(f"{contestant.name}: {error}") from error
    server_mb = bytes_per_reading = database_mb = None
    if contestant.store is not None:
        database_mb = contestant.store.memory_mb()
        stored = contestant.store.count()
        if stored not in expected:
            raise WrongAnswer(f"{contestant.name} holds {stored:,} readings, not {expected[0]:,} to {expected[-1]:,}")
        if is_last:
            bytes_per_reading = contestant.store.stored_bytes() / stored
    if contestant.server is not None:
        server_mb = contestant.server.memory_mb()
    elif isinstance(contestant.store, Influx | VictoriaMetrics):
        server_mb, database_mb = database_mb, None
    if sent.sender_cpu_s and contestant.name.startswith("SensorFlow"):
        findings.sender_ms.append(1_000 * sent.sender_cpu_s / sent.requests)
        findings.sender_shares.append(sent.sender_cpu_s / sent.elapsed_s)
    return Round(readings / sent.elapsed_s, sent.p50_ms, sent.p99_ms, server_mb, database_mb, bytes_per_reading)


@contextmanager
def running_peers(folder: Path) -> Iterator[list[Peer]]:
    """The peers that are installed."""
    running: list[Peer] = []
    try:
        for peer in (Influx, VictoriaMetrics):
            if peers.version(peer) is not None:
                running.append(peer(folder / peer.package))
        yield running
    finally:
        for started in running:
            started.stop()


def running_servers(store: Postgres, folder: Path, stack: ExitStack, findings: Findings) -> list[SensorFlow]:
    """This server, once for each number of processes."""
    servers = []
    for workers in WORKERS:
        server = stack.enter_context(peers.sensorflow(store, folder / f"workers-{workers}", workers=workers))
        if server.has_workers:
            servers.append(server)
        else:
            findings.leave_out(f"SensorFlow with {workers} processes: it has no setting WORKERS")
    return servers


def bulk_contestants(
    shape: Shape, plan: Plan, store: Postgres, folder: Path, stack: ExitStack, findings: Findings
) -> list[Contestant]:
    """Everybody who takes many readings at once, with their requests made."""
    warm_up = max(CONNECTIONS, -(-shape.sensors // shape.rows))
    requests = warm_up + round(REQUESTS[shape.rows] * plan.scale)
    readings = make_readings(requests * shape.rows, sensors=shape.sensors, start_ms=start_ms())
    contestants = []

    def over_http(
        name: str, target: Callable[[], Target], format_: Format, store: Store, server: SensorFlow | None
    ) -> None:
        written = written_bodies[format_]

        def send() -> tuple[Sent, int, range]:
            now = target()
            portions = [http_request(now, body) for body in written]
            sent = send_once_each(portions, lambda: HttpConnection(now), connections=CONNECTIONS, warm_up=warm_up)
            return sent, sent.requests * shape.rows, range(requests * shape.rows, requests * shape.rows + 1)

        contestants.append(Contestant(name, store, send, server))

    written_bodies = {format_: bodies(readings, format_, rows=shape.rows) for format_ in (*plan.formats, Format.LINES)}
    for server in running_servers(store, folder, stack, findings):
        if not server.takes_bulk:
            findings.leave_out("bulk by SensorFlow: it has no POST /api/readings")
            continue
        for format_ in plan.formats:
            name = server_name(server.workers, format_)
            over_http(name, lambda server=server, format_=format_: server.bulk(format_), format_, store, server)
    for peer in stack.enter_context(running_peers(folder)):
        over_http(peer.name, lambda peer=peer: peer.target, Format.LINES, peer, None)
    contestants += raw_contestants(shape, readings, store, warm_up)
    return contestants


def raw_contestants(shape: Shape, readings: pa.Table, store: Postgres, warm_up: int) -> list[Contestant]:
    """COPY of the same readings, encoded before the clock starts."""
    ids = store.sensor_ids([sensor_name(sensor) for sensor in range(shape.sensors)])
    payloads = copy_payloads(readings, rows=shape.rows, sensor_ids=ids, source_id=store.source_id())
    contestants = []

    def by_copy(into: peers.Into, connections: int) -> None:
        is_sparse = into == "columnstore" and shape.rows_per_sensor < SPARSE_ROWS_PER_SENSOR
        portions = payloads[: warm_up + (len(payloads) - warm_up) // 10] if is_sparse else payloads
        stored = len(portions) * shape.rows

        def send() -> tuple[Sent, int, range]:
            sent = send_once_each(portions, lambda: store.connect(into), connections=connections, warm_up=warm_up)
            return sent, sent.requests * shape.rows, range(stored, stored + 1)

        contestants.append(Contestant(raw_name(into, connections), store, send))

    for connections in WORKERS:
        if store.has_columnstore:
            by_copy("columnstore", connections)
        by_copy("rowstore", connections)
    return contestants


def single_contestants(
    single: Single, plan: Plan, store: Postgres, folder: Path, stack: ExitStack, findings: Findings
) -> list[Contestant]:
    """Everybody who takes one reading a request."""
    count = SINGLE_SENSORS + plan.seconds * MAX_SINGLES_PER_S
    readings = make_readings(count, sensors=SINGLE_SENSORS, start_ms=start_ms())
    contestants = []
    folder.mkdir()
    files = {}
    firsts = {}
    for format_ in (Format.NDJSON, Format.LINES):
        (text,) = bodies(readings, format_, rows=count)
        lines = text.splitlines(keepends=True)
        # Every sensor's first reading goes before wrk and off its clock, so that all sensors are known.
        firsts[format_] = [line.rstrip() for line in lines[:SINGLE_SENSORS]]
        files[format_] = folder / format_.name
        files[format_].write_bytes(b"".join(lines[SINGLE_SENSORS:]))

    def by_wrk(
        name: str, target: Callable[[], Target], format_: Format, store: Store | None, server: SensorFlow | None
    ) -> None:
        def send() -> tuple[Sent, int, range]:
            now = target()
            first = [http_request(now, body) for body in firsts[format_]]
            send_once_each(first, lambda: HttpConnection(now), connections=single.connections, warm_up=0)
            sent = send_singly(now, files[format_], connections=single.connections, seconds=plan.seconds)
            answered = len(first) + sent.requests
            return sent, sent.requests, range(answered, answered + single.connections + 1)

        contestants.append(Contestant(name, store, send, server))

    for server in running_servers(store, folder, stack, findings):
        by_wrk(server_name(server.workers), server.single, Format.NDJSON, store, server)
    for peer in stack.enter_context(running_peers(folder)):
        by_wrk(peer.name, lambda peer=peer: peer.target, Format.LINES, peer, None)
    bare = stack.enter_context(peers.bare_uvicorn(folder / "bare"))
    by_wrk(BARE, lambda: bare, Format.NDJSON, None, None)
    return contestants


def start_ms() -> int:
    """The last midnight, UTC, after which all readings of a run fit in before now: on one chunk, and in the window of
    times that the server takes.
    """
    return (int(time.time() * 1_000) - MARGIN_MS) // DAY_MS * DAY_MS


if __name__ == "__main__":
    main()
