"""A year of readings: one sensor that sends every second, and a month of a few others that send every minute.

They come as from a gateway that was away for long: through the server, in Arrow, a day a request, the oldest first. The
last two days come in small requests, as they do from sensors that send now, and lie in the rowstore. The server
refreshes the aggregates. Then each of TimescaleDB's policies has its turn, and rests from there on.
"""

import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import psycopg
import pyarrow as pa
import pyarrow.compute as pc

from app.store.writer import MIN_COLUMNSTORE_ROWS
from benchmarks.load import HttpConnection, WrongAnswer, http_request, send_once_each
from benchmarks.peers import Postgres, SensorFlow, sensorflow
from benchmarks.readings import Format, bodies, make_readings
from benchmarks.report import History
from tests.server import eventually

DAY_S = 86_400
DAY_MS = 1_000 * DAY_S
OTHERS = 20
OTHERS_INTERVAL_S = 60
OTHERS_DAYS = 30
LIVE_DAYS = 2
"""Yesterday and today: the columnstore's policy leaves them alone."""
DAYS_AT_A_TIME = 20
CONNECTIONS = 2
REFRESH_TIMEOUT_S = 1_800
SETTINGS = {"ACCEPT_PAST_DAYS": "0", "COMMIT_TIMEOUT_S": "50", "DRAIN_TIMEOUT_S": "60"}

IS_REFRESHED = """
SELECT NOT EXISTS (SELECT FROM stale_ranges) AND EXISTS (SELECT FROM database_jobs WHERE job = 'policy_compression')
"""
POLICIES = "SELECT job_id FROM database_jobs WHERE job LIKE 'policy_%' ORDER BY job, job_id"
IS_AT_WORK = """
SELECT EXISTS (
    SELECT FROM timescaledb_information.job_stats JOIN database_jobs USING (job_id) WHERE job_status = 'Running'
)
"""
# As autovacuum does: it knows chunks, and never looks at what they are chunks of.
TABLES = """
SELECT oid::regclass::text FROM pg_class
WHERE relkind = 'r' AND relnamespace <> 'pg_catalog'::regnamespace
  AND NOT EXISTS (SELECT FROM pg_inherits WHERE inhparent = pg_class.oid)
"""
SIZES = "SELECT name, size_bytes FROM table_sizes"
LIMITS = """
INSERT INTO sensor_limits SELECT s.id, m.name, 0, 100 FROM sensors s CROSS JOIN metrics m WHERE m.name <> 'pressure'
"""


def make_history(store: Postgres, folder: Path, *, days: int) -> History:
    """Stores so many whole days and what there is of today; what the database then has to do is done.

    Raises:
        WrongAnswer: not all of it is there.
    """
    with psycopg.connect(store.url, autocommit=True) as own:

        def is_so(query: str) -> bool:
            return own.execute(query).fetchone() == (True,)

        with sensorflow(store, folder, workers=1, **SETTINGS) as server:
            readings, sending_s = send(server, days=days)
            began = time.monotonic()
            eventually(lambda: is_so(IS_REFRESHED), timeout_s=REFRESH_TIMEOUT_S)
            refreshing_s = time.monotonic() - began
        stored = store.count()
        if stored != readings:
            raise WrongAnswer(f"{stored:,} readings are stored, and {readings:,} were sent")
        began = time.monotonic()
        policies = own.execute(POLICIES).fetchall()
        for (job,) in policies:
            own.execute("SELECT alter_job(%s, scheduled => false)", [job])
        eventually(lambda: not is_so(IS_AT_WORK), timeout_s=REFRESH_TIMEOUT_S)
        for (job,) in policies:
            own.execute("CALL run_job(%s)", [job])
        own.execute(LIMITS)
        for (table,) in own.execute(TABLES).fetchall():
            own.execute(f"VACUUM (ANALYZE) {table}")
        own.execute("CHECKPOINT")
        policies_s = time.monotonic() - began
        sizes: dict[str, int] = dict(own.execute(SIZES).fetchall())
    return History(days, readings, sending_s, refreshing_s, policies_s, sizes)


def send(server: SensorFlow, *, days: int) -> tuple[int, float]:
    """Sends them; how many there were, and for how long the server was at it."""
    target = server.bulk(Format.ARROW)
    now_ms = int(time.time() * 1_000)
    today_ms = now_ms // DAY_MS * DAY_MS
    live_ms = today_ms - (LIVE_DAYS - 1) * DAY_MS
    starts = range(today_ms - days * DAY_MS, live_ms, DAYS_AT_A_TIME * DAY_MS)
    readings, elapsed_s = 0, 0.0
    for start_ms, end_ms in pairwise([*starts, live_ms, now_ms]):
        is_live = start_ms == live_ms
        tables = list(history(start_ms, end_ms, others_from_ms=today_ms - OTHERS_DAYS * DAY_MS))
        rows = MIN_COLUMNSTORE_ROWS - 1 if is_live else DAY_S
        requests = [http_request(target, body) for table in tables for body in bodies(table, Format.ARROW, rows=rows)]
        # Of two small requests at once the server would make one flush that goes into the columnstore.
        connections = 1 if is_live else CONNECTIONS
        elapsed_s += send_once_each(
            requests, lambda: HttpConnection(target), connections=connections, warm_up=0
        ).elapsed_s
        readings += sum(table.num_rows for table in tables)
        print(f"history: {readings:,} readings, {readings / elapsed_s:,.0f}/s", file=sys.stderr)
    return readings, elapsed_s


def history(start_ms: int, end_ms: int, *, others_from_ms: int) -> Iterator[pa.Table]:
    """The readings from one midnight to some other time, a table a day for the one sensor and one for the others.

    Every day has the same values.
    """
    one = make_readings(DAY_S, sensors=1, start_ms=0)
    others = make_readings(DAY_S // OTHERS_INTERVAL_S * (1 + OTHERS), sensors=1 + OTHERS, start_ms=0)
    others = others.filter(pc.greater(others["sensor"], 0))
    for day_ms in range(start_ms, end_ms, DAY_MS):
        for table, interval_s in ((one, 1), (others, OTHERS_INTERVAL_S)):
            times = pc.add(pc.multiply(table["time_ms"], interval_s), day_ms)
            of_day = table.set_column(1, "time_ms", times).filter(pc.less(times, end_ms))
            if of_day.num_rows and (table is one or day_ms >= others_from_ms):
                yield of_day
