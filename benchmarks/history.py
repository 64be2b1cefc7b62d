"""A year of readings: one sensor that sends every second, and a month of a few others that send every minute.

They come as from a gateway that was offline for long: through the server, in Arrow, a day a request, the oldest first.
The last days come in small requests, as from sensors that send now, and are stored in the rowstore. The server
refreshes the aggregates. Then the chunks that it would convert to the columnstore in time are converted at once, and
the tables are vacuumed and analyzed as autovacuum would do it.

Then the readings are read back through GET /api/readings.
"""

import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import httpx
import orjson
import psycopg
import pyarrow as pa
import pyarrow.compute as pc

from app.store.columnstore import CONVERT
from app.store.tiers import TIERS
from app.store.writer import MIN_COLUMNSTORE_ROWS
from app.web.query import MAX_LIMIT
from benchmarks.load import HttpConnection, WrongAnswer, http_request, send_once_each
from benchmarks.peers import Postgres, SensorFlow, sensorflow
from benchmarks.readings import Format, bodies, make_readings, sensor_name
from benchmarks.report import History, ReadBack
from tests.support.server import API_KEY, eventually

DAY_S = 86_400
DAY_MS = 1_000 * DAY_S
OTHERS = 20
OTHERS_INTERVAL_S = 60
OTHERS_DAYS = 30
LIVE_DAYS = 2
"""Days that come in small requests: today and yesterday."""
DAYS_AT_A_TIME = 20
CONNECTIONS = 2
REFRESH_TIMEOUT_S = 1_800
RAW_DAYS = 10
COUNTS: dict[str, Callable[[bytes], int]] = {
    "json": lambda body: len(orjson.loads(body)["readings"]),
    "ndjson": lambda body: body.count(b"\n"),
    "csv": lambda body: body.count(b"\n") - 1,
    "arrow": lambda body: pa.ipc.open_stream(body).read_all().num_rows,
}
"""The formats, and the number of rows in a body."""
SETTINGS = {"ACCEPT_PAST_DAYS": "0", "COMMIT_TIMEOUT_S": "50", "DRAIN_TIMEOUT_S": "60"}

IS_REFRESHED = """
SELECT NOT EXISTS (SELECT FROM stale_ranges) AND EXISTS (SELECT FROM maintenance WHERE work = 'late' AND runs > 0)
"""
CHUNKS = "SELECT show_chunks(%s, older_than => now() - %s)"
# Autovacuum works on chunks, never on the hypertable itself.
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
    """Store a number of whole days and today until now, and let the database finish its jobs.

    Raises:
        WrongAnswer: readings are missing.
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
        for table, age in {"readings": timedelta(0), **{tier.name: tier.columnstore_after for tier in TIERS}}.items():
            for (chunk,) in own.execute(CHUNKS, [table, age]).fetchall():
                own.execute(CONVERT, [chunk])
        own.execute(LIMITS)
        for (table,) in own.execute(TABLES).fetchall():
            own.execute(f"VACUUM (ANALYZE) {table}")
        own.execute("CHECKPOINT")
        converting_s = time.monotonic() - began
        sizes: dict[str, int] = dict(own.execute(SIZES).fetchall())
    return History(days, readings, sending_s, refreshing_s, converting_s, sizes)


def send(server: SensorFlow, *, days: int) -> tuple[int, float]:
    """Send the readings, and return their number and the seconds that the server took."""
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
        # Two small requests at once would become one flush, which goes into the columnstore.
        connections = 1 if is_live else CONNECTIONS
        elapsed_s += send_once_each(
            requests, lambda: HttpConnection(target), connections=connections, warm_up=0
        ).elapsed_s
        readings += sum(table.num_rows for table in tables)
        print(f"history: {readings:,} readings, {readings / elapsed_s:,.0f}/s", file=sys.stderr)
    return readings, elapsed_s


def read_back(store: Postgres, folder: Path, *, days: int) -> list[ReadBack]:
    """Read some days of the one sensor from the middle of its history, and the minutes of all of it.

    Raises:
        WrongAnswer: the number of rows differs from what was stored.
    """
    now_s = int(time.time())
    today_s = now_s // DAY_S * DAY_S
    raw_days = min(RAW_DAYS, days)
    raw_from_s = today_s - (days + raw_days) // 2 * DAY_S
    spans = {
        "raw": (raw_from_s, raw_from_s + raw_days * DAY_S, raw_days * DAY_S),
        "1m": (today_s - days * DAY_S, today_s, days * 1_440),
    }
    answers = []
    with sensorflow(store, folder, workers=1) as server:
        url = f"http://127.0.0.1:{server.port}/api/readings"
        # The first answer after a start takes half a second longer.
        _read(url, {"sensor_id": sensor_name(0), "limit": 1})
        for bucket, (from_s, to_s, stored) in spans.items():
            for format_, count in COUNTS.items():
                asked: dict[str, str | int] = {"sensor_id": sensor_name(0), "from": from_s, "to": to_s}
                asked |= {"bucket": bucket, "format": format_}
                if format_ == "json":
                    asked["limit"] = MAX_LIMIT
                answer, body = _read(url, asked)
                rows = count(body)
                expected = min(stored, MAX_LIMIT) if format_ == "json" else stored
                if rows != expected:
                    raise WrongAnswer(f"{rows:,} rows of {bucket} came as {format_}, and there are {expected:,}")
                answers.append(ReadBack(bucket, format_, rows, len(body), *answer))
    return answers


def _read(url: str, asked: dict[str, str | int]) -> tuple[tuple[float, float], bytes]:
    """Read an answer. Return the milliseconds until its first byte, the seconds until its last, and its body."""
    body = bytearray()
    began = time.perf_counter()
    with httpx.stream("GET", url, params=asked, headers={"X-API-Key": API_KEY}, timeout=60) as response:
        if response.status_code != 200:
            raise WrongAnswer(f"{response.status_code} to {asked}: {response.read()[:500]!r}")
        first_s = 0.0
        for part in response.iter_raw():
            first_s = first_s or time.perf_counter() - began
            body += part
    return (1_000 * first_s, time.perf_counter() - began), bytes(body)


def history(start_ms: int, end_ms: int, *, others_from_ms: int) -> Iterator[pa.Table]:
    """Yield the readings from a midnight to a later time: for each day a table of the one sensor and one of the others.

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
