"""Measures the server beside raw COPY, InfluxDB and VictoriaMetrics, in one run on one machine.

    python -m benchmarks                  everything
    python -m benchmarks --only goals     only what the goals need, in more rounds
    python -m benchmarks --only panels    dashboards and reading back, over a year of readings (--days)
    python -m benchmarks --only soak      a steady load (--rate, --sensors, --minutes), beside which the database works
    python -m benchmarks --only storage   bytes a reading at rest, by each way in (--rows)
    python -m benchmarks --quick          one short round of the goals, to show that the benchmark works

``--checkout FOLDER`` measures the server of another checkout.

``--database embedded`` measures on the PostgreSQL that the server brings. ``--database url`` makes a database on the
server at DATABASE_URL, as a superuser, and measures there. The default is ``url`` if DATABASE_URL is set. Both may be
named.

Every run begins with an empty store and ends with a count: if a contestant does not hold what it was sent, the
benchmark ends. Tables go to the standard output, in Markdown; progress goes to the standard error.
"""

import argparse
import os
import platform
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import pyarrow as pa

from benchmarks import peers
from benchmarks.history import make_history, read_back
from benchmarks.load import HttpConnection, Sent, Target, WrongAnswer, http_request, send_once_each, send_singly
from benchmarks.machine import description, sync_ms
from benchmarks.panels import ask_all
from benchmarks.peers import Influx, Into, Peer, Postgres, SensorFlow, Store, VictoriaMetrics
from benchmarks.readings import BULK_FORMATS, Format, Shape, bodies, copy_payloads, make_readings, sensor_name
from benchmarks.report import (
    BARE,
    GOAL_SHAPE,
    GOAL_SINGLE,
    SLOW_MS,
    SPARSE_SHAPE,
    Goal,
    Round,
    Single,
    Stored,
    Way,
    Workload,
    counted,
    goal_table,
    goals,
    panel_goals,
    panel_table,
    raw_name,
    read_table,
    server_name,
    soak_goals,
    soak_table,
    storage_table,
    table,
)
from benchmarks.soak import Load, run_soak
from benchmarks.storage import store_all, ways
from tests.support.server import REPOSITORY

CONNECTIONS = 4
"""Connections of every bulk sender over HTTP."""
WORKERS = (1, 2)
REQUESTS = {1_000: 500, 10_000: 100}
"""Bulk requests of a run, by the readings in each."""
SPARSE_ROWS_PER_SENSOR = 10
"""With fewer rows of a sensor in a COPY, the columnstore is slow: raw COPY then sends a tenth of the readings."""
SINGLE_SENSORS = 1_000
MAX_SINGLES_PER_S = 100_000
"""Readings that are prepared for each second of wrk."""

STORAGE_SENSORS = (1_000, 10_000, 100_000)

SENSOR_DETAIL = "Sensor detail"
"""The dashboard that has a goal of its own."""

PARTS = ("goals", "bulk", "single", "panels", "soak", "storage")

DatabaseKind = Literal["embedded", "url"]


@dataclass(frozen=True, slots=True)
class Plan:
    """The workloads to measure, and for how long."""

    workloads: Sequence[Workload]
    formats: Sequence[Format]
    rounds: int
    scale: float
    """Factor of REQUESTS."""
    seconds: int
    """Length of one run of single readings."""
    days: int
    """Days of readings for dashboards and reading back; 0 leaves both out."""
    load: Load | None
    """A steady load; None leaves it out."""
    rows: int
    """Readings that each way in stores; 0 leaves that out."""


@dataclass(frozen=True, slots=True)
class Run:
    """The readings that one run sent."""

    sent: Sent
    readings: int
    """Readings answered while the clock ran."""
    expected: range
    """Numbers of readings that the store may hold now."""


@dataclass(frozen=True, slots=True)
class Contestant:
    """A system under test, and how to send it all readings. Without a store nothing is counted."""

    name: str
    store: Store | None
    send: Callable[[], Run]
    server: SensorFlow | None = None


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Measure the server beside its limit and peers."
    )
    parser.add_argument("--only", choices=PARTS, help="run only this part")
    parser.add_argument("--quick", action="store_true", help="run one short round of the goals")
    parser.add_argument("--rounds", type=int, help="rounds to run; default: 3, or 5 for the goals")
    parser.add_argument("--days", type=int, help="days of readings for dashboards; default: 365")
    for name, what in (("rate", "readings a second"), ("sensors", "sensors"), ("minutes", "minutes")):
        default = getattr(Load(), name)
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{what} of the soak; default: {default:,}")
    parser.add_argument("--rows", type=int, default=7_200_000, help="readings of each way in; default: 7200000")
    parser.add_argument("--checkout", type=Path, default=REPOSITORY, help="checkout to measure; default: this one")
    parser.add_argument(
        "--database",
        nargs="+",
        choices=["embedded", "url"],
        default=["url" if "DATABASE_URL" in os.environ else "embedded"],
    )
    chosen = parser.parse_args()
    try:
        load = Load(chosen.rate, chosen.sensors, chosen.minutes)
    except ValueError as error:
        parser.error(str(error))
    plan = make_plan(
        chosen.only, is_quick=chosen.quick, rounds=chosen.rounds, days=chosen.days, load=load, rows=chosen.rows
    )
    if "url" in chosen.database and "DATABASE_URL" not in os.environ:
        sys.exit("Set DATABASE_URL, or use --database embedded.")
    # SIGTERM raises an exception, so that every server that was started is stopped.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    started = time.monotonic()
    print(f"{description()}.")
    print(f"{time.strftime('%Y-%m-%d')}, Python {platform.python_version()}, uvicorn {version('uvicorn')}, ", end="")
    print(f"pyarrow {version('pyarrow')}", end="")
    print(f"; medians of {counted(plan.rounds, 'interleaved round')}." if plan.workloads else ".")
    for kind in chosen.database:
        with TemporaryDirectory(prefix="benchmark-") as folder:
            # Started by root, the embedded database runs as another account, which needs access through the folder.
            Path(folder).chmod(0o711)
            try:
                if plan.rows:
                    weigh(kind, plan, Path(folder))
                else:
                    measure(kind, plan, Path(folder), chosen.checkout.resolve())
            except WrongAnswer as error:
                sys.exit(f"The figures would mean nothing: {error}")
    print(f"\nIt took {(time.monotonic() - started) / 60:.0f} minutes.")


def make_plan(only: str | None, *, is_quick: bool, rounds: int | None, days: int | None, load: Load, rows: int) -> Plan:
    """Make the plan from the options of the command line."""
    bulk: list[Workload] = [Shape(sensors, rows) for rows in (10_000, 1_000) for sensors in (100, 1_000, 10_000)]
    single: list[Workload] = [Single(connections) for connections in (1, 32, 256)]
    if is_quick or only == "goals":
        bulk, single = [GOAL_SHAPE, SPARSE_SHAPE], [GOAL_SINGLE]
    return Plan(
        workloads=[
            *(bulk if only in {None, "goals", "bulk"} else []),
            *(single if only in {None, "goals", "single"} else []),
        ],
        formats=[Format.NDJSON] if only == "goals" else BULK_FORMATS,
        rounds=rounds or (1 if is_quick else 5 if only == "goals" else 3),
        scale=0.3 if is_quick else 1.0,
        seconds=2 if is_quick else 4,
        days=(days or (10 if is_quick else 365)) if only in {None, "panels"} else 0,
        load=load if only == "soak" else None,
        rows=rows if only == "storage" else 0,
    )


def measure(kind: DatabaseKind, plan: Plan, folder: Path, checkout: Path) -> None:
    """Run the plan on one database with the server of one checkout, and print the results."""
    url = os.environ["DATABASE_URL"] if kind == "url" else None
    with peers.postgres(url, folder, checkout) as store:
        race = Race(plan, store)
        print(heading(kind, store, folder), end="")
        for peer in (Influx, VictoriaMetrics) if plan.workloads else ():
            if (package := peers.version(peer)) is None:
                race.leave_out(f"{peer.name}: it is not installed")
            else:
                print(f" {peer.name} {package}.", end="")
        print(flush=True)
        found: list[Goal] = []
        if plan.load:
            found += endure(store, folder, plan.load)
        results = {}
        for number, workload in enumerate(plan.workloads):
            if isinstance(workload, Single) and shutil.which("wrk") is None:
                race.leave_out("one reading a request: wrk is not installed")
                continue
            results[workload] = race.run(workload, folder / str(number))
            print(f"\n### {workload}\n\n{table(workload, results[workload])}", flush=True)
    if plan.workloads:
        found += goals(results, has_columnstore=store.has_columnstore, is_embedded=kind == "embedded")
    if plan.days and store.has_columnstore:
        with peers.postgres(url, folder, checkout) as store:
            found += look_back(store, folder, days=plan.days)
    elif plan.days:
        race.leave_out("dashboards: without TimescaleDB Community aggregates are as slow as the readings below them")
    if found:
        print(f"\n### Goals\n\n{goal_table(found)}")
    if race.sender_ms:
        print(
            f"\nThe sender of bulk took {min(race.sender_ms):.2f} to {max(race.sender_ms):.2f} ms of processor time a "
            f"request, at most {max(race.sender_shares):.0%} of a processor."
        )
    for what in race.left_out:
        print(f"\nLeft out: {what}.")


def heading(kind: DatabaseKind, store: Postgres, folder: Path) -> str:
    """Write what is measured on."""
    where = "the embedded" if kind == "embedded" else "DATABASE_URL:"
    return f"\n## On {where} {store.name}\n\n{store.settings}; fdatasync of 8 kB takes {sync_ms(folder):.2f} ms."


def weigh(kind: DatabaseKind, plan: Plan, folder: Path) -> None:
    """Store readings in each way, each in a database of its own, and print what they take."""
    url = os.environ["DATABASE_URL"] if kind == "url" else None
    found: dict[Way, Stored] = {}
    for way in [way for sensors in STORAGE_SENSORS for way in ways(sensors)]:
        with peers.postgres(url, folder, REPOSITORY) as store:
            if not store.has_columnstore:
                print("\nLeft out: without TimescaleDB Community readings stay as they are written.")
                return
            if not found:
                print(heading(kind, store, folder), flush=True)
            found[way] = store_all(store, way, rows=plan.rows)
    print(f"\n### Bytes at rest\n\n{storage_table(found)}", flush=True)


def look_back(store: Postgres, folder: Path, *, days: int) -> list[Goal]:
    """Store a history, read it through dashboards and the API, and print the results."""
    stored = make_history(store, folder / "history", days=days)
    print(f"\n### Dashboards\n\n{stored}", flush=True)
    asked = ask_all(store.url, days=days)
    print(f"\n{panel_table(asked)}")
    slow = "; ".join(str(each) for each in asked if each.is_slow)
    print(f"\nOver {SLOW_MS} ms: {slow or 'none'}.", flush=True)
    print(f"\n### GET /api/readings\n\n{read_table(read_back(store, folder / 'reads', days=days))}", flush=True)
    return panel_goals(asked, dashboard=SENSOR_DETAIL)


def endure(store: Postgres, folder: Path, load: Load) -> list[Goal]:
    """Keep up a steady load, and print the results."""
    soak = run_soak(store, folder / "soak", load)
    heading = f"{counted(load.minutes, 'minute')} of {load.rate:,} rows/s from {load.sensors:,} sensors"
    print(f"\n### {heading}\n\n{soak_table(soak)}", flush=True)
    return soak_goals(soak)


class Race:
    """Runs workloads on one database and on the peers.

    Attributes:
        left_out: measurements that were not possible, with the reason.
        sender_ms: the sender's processor time for a request, milliseconds, of each bulk run over HTTP.
        sender_shares: the sender's processor time in each of these runs, as a share of the time that passed.
    """

    def __init__(self, plan: Plan, store: Postgres) -> None:
        self._plan = plan
        self._store = store
        self.left_out: list[str] = []
        self.sender_ms: list[float] = []
        self.sender_shares: list[float] = []

    def leave_out(self, what: str) -> None:
        """Record what could not be measured, once."""
        if what not in self.left_out:
            self.left_out.append(what)

    def run(self, workload: Workload, folder: Path) -> dict[str, list[Round]]:
        """Run all contestants in turn in each round, every other round in the opposite order."""
        with ExitStack() as stack:
            contestants = (
                self._bulk(workload, folder, stack)
                if isinstance(workload, Shape)
                else self._single(workload, folder, stack)
            )
            seen: dict[str, list[Round]] = {contestant.name: [] for contestant in contestants}
            for number in range(self._plan.rounds):
                for contestant in contestants[:: -1 if number % 2 else 1]:
                    round_ = self._run_one(contestant, is_last=number == self._plan.rounds - 1)
                    seen[contestant.name].append(round_)
                    print(f"{workload}: round {number + 1}, {contestant.name}: {round_.rate:,.0f}/s", file=sys.stderr)
        return seen

    def _run_one(self, contestant: Contestant, *, is_last: bool) -> Round:
        """Run one contestant once, from an empty store to a count of its readings."""
        store, server = contestant.store, contestant.server
        if store is not None:
            store.begin()
        os.sync()  # so that no contestant waits for another's unwritten pages
        try:
            run = contestant.send()
        except WrongAnswer as error:
            raise WrongAnswer(f"{contestant.name}: {error}") from error
        sent = run.sent
        if server is not None and sent.sender_cpu_s:
            self.sender_ms.append(1_000 * sent.sender_cpu_s / sent.requests)
            self.sender_shares.append(sent.sender_cpu_s / sent.elapsed_s)
        store_mb = bytes_per_reading = None
        if store is not None:
            store_mb = store.memory_mb()
            stored = store.count()
            if stored not in run.expected:
                expected = f"{run.expected[0]:,} to {run.expected[-1]:,}"
                raise WrongAnswer(f"{contestant.name} holds {stored:,} readings, and was sent {expected}")
            if is_last:
                bytes_per_reading = store.stored_bytes() / stored
            store.end()
        is_database = isinstance(store, Postgres)
        return Round(
            rate=run.readings / sent.elapsed_s,
            p50_ms=sent.p50_ms,
            p99_ms=sent.p99_ms,
            server_mb=server.memory_mb() if server else None if is_database else store_mb,
            database_mb=store_mb if is_database else None,
            bytes_per_reading=bytes_per_reading,
        )

    def _bulk(self, shape: Shape, folder: Path, stack: ExitStack) -> list[Contestant]:
        """Return the contestants that take many readings in a request, with their requests prepared."""
        warm_up = max(CONNECTIONS, -(-shape.sensors // shape.rows))
        requests = warm_up + round(REQUESTS[shape.rows] * self._plan.scale)
        count = requests * shape.rows
        readings = make_readings(count, sensors=shape.sensors, start_ms=start_ms(count, shape.sensors))
        formats = (*self._plan.formats, Format.LINES)
        written = {format_: bodies(readings, format_, rows=shape.rows) for format_ in formats}

        def send(target: Callable[[], Target], format_: Format) -> Run:
            now = target()
            portions = [http_request(now, body) for body in written[format_]]
            sent = send_once_each(portions, lambda: HttpConnection(now), connections=CONNECTIONS, warm_up=warm_up)
            return Run(sent, sent.requests * shape.rows, range(readings.num_rows, readings.num_rows + 1))

        contestants = []
        for server in self._servers(folder, stack):
            for format_ in self._plan.formats:
                name = server_name(server.workers, format_)
                sender = partial(send, partial(server.bulk, format_), format_)
                contestants.append(Contestant(name, self._store, sender, server))
        for peer in stack.enter_context(running_peers(folder)):
            contestants.append(Contestant(peer.name, peer, partial(send, peer.target, Format.LINES)))
        return contestants + self._raw(shape, readings, warm_up)

    def _raw(self, shape: Shape, readings: pa.Table, warm_up: int) -> list[Contestant]:
        """Return the contestants that COPY the same readings, encoded before the clock starts."""
        ids = self._store.sensor_ids([sensor_name(sensor) for sensor in range(shape.sensors)])
        payloads = copy_payloads(readings, rows=shape.rows, sensor_ids=ids, source_id=self._store.source_id())

        def send(into: Into, connections: int) -> Run:
            is_sparse = into == "columnstore" and shape.rows_per_sensor < SPARSE_ROWS_PER_SENSOR
            portions = payloads[: warm_up + (len(payloads) - warm_up) // 10] if is_sparse else payloads
            connect = partial(self._store.connect, into)
            sent = send_once_each(portions, connect, connections=connections, warm_up=warm_up)
            stored = len(portions) * shape.rows
            return Run(sent, sent.requests * shape.rows, range(stored, stored + 1))

        tables: list[Into] = ["columnstore", "rowstore"] if self._store.has_columnstore else ["rowstore"]
        return [
            Contestant(raw_name(into, connections), self._store, partial(send, into, connections))
            for into in tables
            for connections in WORKERS
        ]

    def _single(self, single: Single, folder: Path, stack: ExitStack) -> list[Contestant]:
        """Return the contestants that take one reading a request."""
        count = SINGLE_SENSORS + self._plan.seconds * MAX_SINGLES_PER_S
        readings = make_readings(count, sensors=SINGLE_SENSORS, start_ms=start_ms(count, SINGLE_SENSORS))
        folder.mkdir()
        firsts, files = {}, {}
        for format_ in (Format.NDJSON, Format.LINES):
            # Every sensor's first reading is sent before wrk starts, so that all sensors are known.
            (first,) = bodies(readings.slice(0, SINGLE_SENSORS), format_, rows=SINGLE_SENSORS)
            (rest,) = bodies(readings.slice(SINGLE_SENSORS), format_, rows=count)
            firsts[format_] = first.splitlines()
            files[format_] = folder / format_.name
            files[format_].write_bytes(rest)

        def send(target: Callable[[], Target], format_: Format) -> Run:
            now = target()
            first = [http_request(now, body) for body in firsts[format_]]
            send_once_each(first, lambda: HttpConnection(now), connections=single.connections, warm_up=0)
            sent = send_singly(now, files[format_], connections=single.connections, seconds=self._plan.seconds)
            answered = len(first) + sent.requests
            return Run(sent, sent.requests, range(answered, answered + single.connections + 1))

        contestants = []
        for server in self._servers(folder, stack):
            sender = partial(send, server.single, Format.NDJSON)
            contestants.append(Contestant(server_name(server.workers), self._store, sender, server))
        for peer in stack.enter_context(running_peers(folder)):
            contestants.append(Contestant(peer.name, peer, partial(send, peer.target, Format.LINES)))
        bare = stack.enter_context(peers.bare_uvicorn(folder / "bare"))
        contestants.append(Contestant(BARE, None, partial(send, lambda: bare, Format.NDJSON)))
        return contestants

    def _servers(self, folder: Path, stack: ExitStack) -> list[SensorFlow]:
        """Start the server, once for each number of processes."""
        servers = []
        for workers in WORKERS:
            running = peers.sensorflow(self._store, folder / f"workers-{workers}", workers=workers)
            server = stack.enter_context(running)
            if server.has_workers:
                servers.append(server)
            else:
                self.leave_out(f"SensorFlow with {workers} processes: it has no setting WORKERS")
        return servers


@contextmanager
def running_peers(folder: Path) -> Iterator[list[Peer]]:
    """Start the peers that are installed."""
    running: list[Peer] = []
    try:
        for peer in (Influx, VictoriaMetrics):
            if peers.version(peer) is not None:
                running.append(peer(folder / peer.package))
        yield running
    finally:
        for started in running:
            started.stop()


def start_ms(count: int, sensors: int) -> int:
    """Return the time of the first reading, so that the last of them is of now.

    Readings of this morning would be late, and the server would refresh their aggregates at once.
    """
    return (int(time.time()) - -(-count // sensors)) * 1_000


if __name__ == "__main__":
    main()
