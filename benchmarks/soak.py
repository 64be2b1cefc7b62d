"""A steady load, as of a fleet that never pauses: shows whether the work after COMMIT keeps up, and slows no client.

A hundredth of the readings is up to five hours late. Meanwhile one client reads once a second. Each minute becomes a
row of a table: rates, times, memory, processor time, backlog and sizes.

Bodies are Arrow streams, which cost the sender least: 0.4 ms each. Their times must be of now, so each connection makes
its next body while it waits for the moment to send it. A request's time counts from that moment, even if no connection
was free then: a server that stalls can't hide how long its clients wait.
"""

import random
import sys
import threading
import time
from collections.abc import Hashable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import httpx
import psycopg
import pyarrow as pa
import pyarrow.compute as pc

from benchmarks.load import HttpConnection, Send, Target, WrongAnswer, http_request
from benchmarks.machine import busy_s, cpu_s, family_cpu_s, limited_mb, read_mb
from benchmarks.peers import Postgres, SensorFlow, sensorflow
from benchmarks.readings import INTERVAL_MS, SEED, Format, bodies, make_readings, sensor_name
from benchmarks.report import Minute, Soak, minute_row
from tests.support.server import API_KEY

ROWS = 4_000
"""Readings in a request: few of each sensor, so that the server chooses the rowstore, as for sensors that send now."""
LATE_ROWS = ROWS // 100
MAX_LATE_MS = 5 * 3_600_000
CONNECTIONS = 4
MINUTES_SPAN_S = 3_600
RAW_SPAN_S = 60
RAW_ROWS = 1_000
READ_TIMEOUT_S = 60
FINISH_TIMEOUT_S = 10
"""Wait for the answers that are due at the end. What has not been sent by then is left unsent."""
LOOK_INTERVAL_S = 0.25
"""Processes that start and end between two looks are missed."""

Read = Literal["minutes", "raw", "past"]

# A worker of a parallel query works for its leader.
MAINTENANCE = r"""
SELECT a.pid, a.backend_start
FROM pg_stat_activity a
LEFT JOIN pg_stat_activity leader ON leader.pid = a.leader_pid
WHERE a.datname = current_database()
    AND (coalesce(leader.application_name, a.application_name) ~ '^sensorflow (aggregates|maintenance)'
         OR coalesce(leader.backend_type, a.backend_type) ~ '^TimescaleDB|\[\d+\]$')
"""
# An older checkout's table may not have the column.
STATE = """
SELECT (SELECT count(*) FROM stale_ranges),
       (SELECT coalesce(extract(epoch FROM now() - min((to_jsonb(s) ->> 'recorded_at')::timestamptz)), 0)
               ::double precision FROM stale_ranges s),
       (SELECT coalesce(max(lag_s), 0) FROM aggregate_lag),
       pg_database_size(current_database()), size_bytes, chunks
FROM table_sizes WHERE name = 'readings'
"""
CHUNK_SIZES = """
SELECT rowstore, hypertable_size('readings') - rowstore
FROM (SELECT coalesce(sum(pg_total_relation_size(chunk)), 0)::bigint AS rowstore FROM show_chunks('readings') chunk) c
"""


@dataclass(frozen=True, slots=True)
class Load:
    """The rate, the sensors and the duration of a soak.

    Args:
        rate: readings a second.
        sensors: how many there are. Each has as many readings a second.
        minutes: how long it is sent.

    Raises:
        ValueError: the rate can't be shared evenly by the sensors, or by whole requests.
    """

    rate: int = 32_000
    sensors: int = 1_000
    minutes: int = 20

    def __post_init__(self) -> None:
        if self.rate % self.sensors or self.rate % ROWS:
            raise ValueError(
                f"The rate should be a multiple of the number of sensors and of {ROWS:,}. It is {self.rate:,}, of "
                f"{self.sensors:,} sensors."
            )

    @property
    def requests(self) -> int:
        """Return how many requests are sent."""
        return self.minutes * 60 * self.rate // ROWS

    @property
    def first_requests(self) -> int:
        """Return how many requests have readings of all sensors."""
        return -(-self.sensors // ROWS)

    @property
    def speed(self) -> int:
        """Return the readings of a sensor in a second."""
        return self.rate // self.sensors

    def due_s(self, number: int) -> float:
        """Return when a request is due, in seconds since the start: when its last reading has been measured."""
        return (number + 1) * ROWS / self.rate

    def make_readings(self) -> pa.Table:
        """Make the readings of a minute. Their values come again each minute, at later times."""
        return make_readings(60 * self.rate, sensors=self.sensors, start_ms=0)


@dataclass(frozen=True, slots=True)
class Pace:
    """The clock of a soak, and its end before time."""

    began_s: float = field(default_factory=time.monotonic)
    stop: threading.Event = field(default_factory=threading.Event)

    def wait_until(self, due_s: float) -> bool:
        """Wait until a number of seconds after the start. Return False if the soak has been stopped."""
        return not self.stop.wait(max(0.0, self.began_s + due_s - time.monotonic()))

    def late_ms(self, due_s: float) -> float:
        """Return how long ago that moment was, milliseconds."""
        return 1_000 * (time.monotonic() - self.began_s - due_s)


@dataclass(slots=True)
class Seen:
    """The answers of a minute."""

    rows: int = 0
    errors: int = 0
    post_ms: list[float] = field(default_factory=list)
    get_ms: dict[Read, list[float]] = field(default_factory=lambda: {"minutes": [], "raw": [], "past": []})


class Tally:
    """Collects the answers that several threads get."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen = Seen()

    def add_post(self, rows: int, ms: float) -> None:
        """Add a request whose rows are committed."""
        with self._lock:
            self._seen.rows += rows
            self._seen.post_ms.append(ms)

    def add_read(self, read: Read, ms: float) -> None:
        """Add an answer to a read."""
        with self._lock:
            self._seen.get_ms[read].append(ms)

    def add_error(self, error: Exception) -> None:
        """Add a request that failed, and print why."""
        with self._lock:
            self._seen.errors += 1
        print(f"soak: {type(error).__name__}: {error}", file=sys.stderr)

    def take(self) -> Seen:
        """Return the answers since the last call."""
        with self._lock:
            seen, self._seen = self._seen, Seen()
        return seen


class ProcessorTime:
    """Adds up the processor time of processes that come and go.

    A process counts from the first look, or from its own start if that was later, to the last look that found it.

    Attributes:
        total_s: the sum so far, seconds.
    """

    def __init__(self, first: Mapping[Hashable, float]) -> None:
        self._last = dict(first)
        self.total_s = 0.0

    def look(self, now: Mapping[Hashable, float]) -> None:
        """Take the processor time of each process that there is now, seconds."""
        self.total_s += sum(seconds - self._last.get(process, 0.0) for process, seconds in now.items())
        self._last.update(now)


def run_soak(store: Postgres, folder: Path, load: Load) -> Soak:
    """Send to an empty store and read from it. Count its readings at the end.

    Raises:
        WrongAnswer: the first request failed, or more readings are stored than were sent.
    """
    store.begin()
    made = load.make_readings()
    with (
        sensorflow(store, folder, workers=1) as server,
        psycopg.connect(store.url, autocommit=True, application_name="benchmark") as connection,
    ):
        target = server.bulk(Format.ARROW)
        start_ms = int(time.time() * 1_000)
        with HttpConnection(target) as send:  # before the clock starts, so that all sensors are known
            for number in range(load.first_requests):
                send(http_request(target, body(load, made, number, start_ms=start_ms)))
        pace, tally, numbers = Pace(), Tally(), iter(range(load.first_requests, load.requests))
        watch = Watch(store, server, connection)
        seen: list[Minute] = []
        with ThreadPoolExecutor(CONNECTIONS + 1) as pool:
            try:
                work = [
                    pool.submit(send_all, target, load, made, numbers, start_ms=start_ms, pace=pace, tally=tally)
                    for _ in range(CONNECTIONS)
                ]
                work.append(pool.submit(read_all, server.port, load, start_ms=start_ms, pace=pace, tally=tally))
                for number in range(1, load.minutes + 1):
                    watch.wait_until(60 * number, pace)
                    if number == load.minutes:
                        wait(work, FINISH_TIMEOUT_S)
                        pace.stop.set()
                    for each in work:
                        if number == load.minutes or each.done():
                            each.result()
                    seen.append(watch.minute(tally))
                    print(f"soak: {minute_row(number, seen[-1])}", file=sys.stderr)
            finally:
                pace.stop.set()
    stored, due = store.count(), load.requests * ROWS
    answered = load.first_requests * ROWS + sum(minute.rows for minute in seen)
    if stored > due:
        raise WrongAnswer(f"{stored:,} readings are stored, and {due:,} were sent")
    store.end()
    return Soak(seen, stored=stored, missing=max(0, answered - stored), unanswered=due - answered)


def send_all(
    target: Target, load: Load, made: pa.Table, numbers: Iterator[int], *, start_ms: int, pace: Pace, tally: Tally
) -> None:
    """Send requests, each at its time, over one connection. After an error, send the next one over a new connection."""
    with ExitStack() as stack:
        send: Send | None = None
        for number in numbers:
            request = http_request(target, body(load, made, number, start_ms=start_ms))
            due_s = load.due_s(number)
            if not pace.wait_until(due_s):
                return
            try:
                if send is None:
                    send = stack.enter_context(HttpConnection(target))
                send(request)
            except (WrongAnswer, OSError) as error:
                tally.add_error(error)
                stack.close()
                send = None
            else:
                tally.add_post(ROWS, pace.late_ms(due_s))


def read_all(port: int, load: Load, *, start_ms: int, pace: Pace, tally: Tally) -> None:
    """Ask each second for the minutes of a sensor's last hour, and for readings of its last minute and of any minute.

    The last is a minute since the start, uniformly distributed: memory may no longer have its readings.
    """
    chance = random.Random(SEED)
    start_s = start_ms // 1_000
    headers = {"X-API-Key": API_KEY}
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=READ_TIMEOUT_S) as client:
        for second in range(60 * load.minutes):
            if not pace.wait_until(second):
                return
            now_s = int(time.time())
            past_s = chance.randint(start_s, max(start_s, now_s - RAW_SPAN_S))
            spans: dict[Read, tuple[str, int, int]] = {
                "minutes": ("1m", now_s - MINUTES_SPAN_S, now_s),
                "raw": ("raw", now_s - RAW_SPAN_S, now_s),
                "past": ("raw", past_s, past_s + RAW_SPAN_S),
            }
            sensor = sensor_name(chance.randrange(load.sensors))
            for read, (bucket, from_s, to_s) in spans.items():
                asked: dict[str, str | int] = {"sensor_id": sensor, "bucket": bucket, "from": from_s, "to": to_s}
                asked["limit"] = RAW_ROWS
                began_s = time.perf_counter()
                try:
                    client.get("/api/readings", params=asked).raise_for_status()
                except httpx.HTTPError as error:
                    tally.add_error(error)
                else:
                    tally.add_read(read, 1_000 * (time.perf_counter() - began_s))


def body(load: Load, made: pa.Table, number: int, *, start_ms: int) -> bytes:
    """Return the body of a request: the readings since the one before, some of them late."""
    (written,) = bodies(portion(load, made, number, start_ms=start_ms), Format.ARROW, rows=ROWS)
    return written


def portion(load: Load, made: pa.Table, number: int, *, start_ms: int) -> pa.Table:
    """Return the readings of a request, at the load's rate, with LATE_ROWS of them late. The same every time.

    The sensors of the late readings, and how late they are, are uniformly distributed.
    """
    chance = random.Random(number)
    turn, first = divmod(number * ROWS, made.num_rows)
    readings = made.slice(first, ROWS)
    # The readings were made for one a second.
    seconds = pc.divide(readings["time_ms"], INTERVAL_MS)
    delays = [0] * ROWS
    for row in chance.sample(range(ROWS), LATE_ROWS):
        delays[row] = chance.randint(1, MAX_LATE_MS)
    offsets = pc.divide(pc.multiply(pc.add(seconds, turn * made.num_rows // load.sensors), 1_000), load.speed)
    times = pc.subtract(pc.add(offsets, start_ms), pa.array(delays, pa.int64()))
    return readings.set_column(1, "time_ms", times)


class Watch:
    """Looks at the database and at the processes while the soak runs."""

    def __init__(self, store: Postgres, server: SensorFlow, connection: psycopg.Connection) -> None:
        self._store = store
        self._server = server
        self._connection = connection
        self._postmaster = store.postmaster()
        self._maintenance = ProcessorTime(self._look())
        self._counted_s = self._times_s()
        self._read_mb = self._reads_mb()

    def wait_until(self, due_s: float, pace: Pace) -> None:
        """Look at the processes of maintenance again and again until that moment."""
        next_s = time.monotonic() - pace.began_s
        while next_s < due_s and pace.wait_until(next_s):
            self._maintenance.look(self._look())
            next_s = max(next_s + LOOK_INTERVAL_S, time.monotonic() - pace.began_s)
        pace.wait_until(due_s)

    def minute(self, tally: Tally) -> Minute:
        """Return what has happened since the last call."""
        seen = tally.take()
        self._maintenance.look(self._look())
        before_s, self._counted_s = self._counted_s, self._times_s()
        elapsed_s, maintenance_s, database_s, server_s, sender_s, all_s = (
            after - before for after, before in zip(self._counted_s, before_s, strict=True)
        )
        before_mb, self._read_mb = self._read_mb, self._reads_mb()
        others_s = max(0.0, all_s - database_s - server_s - sender_s)
        database_mb, shared_mb = self._store.memory_parts_mb() or (None, None)
        row = self._connection.execute(STATE).fetchone()
        assert row is not None  # every edition has a row for the readings
        stale_ranges, late_lag_s, lag_s, database_bytes, rowstore_bytes, chunks = row
        columnstore_bytes = 0
        if self._store.is_hypertable:
            ((rowstore_bytes, columnstore_bytes),) = self._connection.execute(CHUNK_SIZES).fetchall()
        is_local = self._postmaster is not None
        return Minute(
            elapsed_s=elapsed_s,
            rows=seen.rows,
            post_ms=seen.post_ms,
            get_minutes_ms=seen.get_ms["minutes"],
            get_raw_ms=seen.get_ms["raw"],
            get_past_ms=seen.get_ms["past"],
            server_mb=self._server.memory_mb(),
            database_mb=database_mb,
            shared_mb=shared_mb,
            limited_mb=limited_mb(self._postmaster) if self._postmaster else None,
            read_mb=None if before_mb is None or self._read_mb is None else self._read_mb - before_mb,
            maintenance_cores=maintenance_s / elapsed_s if is_local else None,
            database_cores=database_s / elapsed_s if is_local else None,
            server_cores=server_s / elapsed_s,
            others_cores=others_s / elapsed_s if is_local else None,
            stale_ranges=stale_ranges,
            late_lag_s=late_lag_s,
            lag_s=lag_s,
            database_bytes=database_bytes,
            rowstore_bytes=rowstore_bytes,
            columnstore_bytes=columnstore_bytes,
            chunks=chunks,
            errors=seen.errors,
        )

    def _look(self) -> dict[Hashable, float]:
        """Return the processor time of each process of maintenance, seconds."""
        processes = self._connection.execute(MAINTENANCE).fetchall() if self._postmaster else []
        times_s = {process: cpu_s(process[0]) for process in processes}
        return {process: seconds for process, seconds in times_s.items() if seconds is not None}

    def _times_s(self) -> tuple[float, ...]:
        """Return the time, and the processor time of maintenance, database, server, this process and all, seconds."""
        database_s = family_cpu_s(self._postmaster) if self._postmaster else 0.0
        own_s = time.process_time()
        return time.monotonic(), self._maintenance.total_s, database_s, self._server.cpu_s(), own_s, busy_s()

    def _reads_mb(self) -> float | None:
        """Return what the database has read from disks, MB."""
        return read_mb(self._postmaster) if self._postmaster else None
