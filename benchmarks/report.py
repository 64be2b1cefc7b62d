"""Turns the results of the rounds into medians, tables in Markdown, and the goals' verdicts.

Pure.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median

from benchmarks.readings import Format, Shape


@dataclass(frozen=True, slots=True)
class Round:
    """The results of one contestant in one round."""

    rate: float
    """Readings stored per second."""
    p50_ms: float
    p99_ms: float
    server_mb: float | None = None
    database_mb: float | None = None
    bytes_per_reading: float | None = None


@dataclass(frozen=True, slots=True)
class Single:
    """The workload of one reading a request, over a number of connections."""

    connections: int

    def __str__(self) -> str:
        return f"One reading a request, {counted(self.connections, 'connection')}"


Workload = Shape | Single
Rounds = Mapping[str, Sequence[Round]]
"""Results of one workload, by the contestants' names."""

INFLUX = "InfluxDB"
VICTORIA_METRICS = "VictoriaMetrics"
BARE = "bare uvicorn, stores nothing"
GOAL_SHAPE = Shape(sensors=1_000, rows=10_000)
SPARSE_SHAPE = Shape(sensors=10_000, rows=10_000)
GOAL_SINGLE = Single(connections=32)


def server_name(workers: int, format_: Format | None = None) -> str:
    """Return the heading of a row of this server."""
    return f"SensorFlow, {processes(workers)}" + (f", {format_}" if format_ else "")


def raw_name(into: str, connections: int) -> str:
    """Return the heading of a row of raw COPY."""
    return f"raw COPY, {into}, {counted(connections, 'connection')}"


def processes(count: int) -> str:
    """Return a number of processes, in words."""
    return counted(count, "process", "processes")


def counted(count: int, one: str, many: str | None = None) -> str:
    """Return a number with its noun."""
    return f"{count} {one if count == 1 else many or f'{one}s'}"


def rate(rounds: Rounds, name: str) -> float | None:
    """Return a contestant's median rate, or None if it did not take part."""
    return median(round_.rate for round_ in rounds[name]) if name in rounds else None


def best_rate(rounds: Rounds, prefix: str) -> float | None:
    """Return the best median rate of the contestants whose names begin with ``prefix``."""
    return max(
        (median(round_.rate for round_ in rounds[name]) for name in rounds if name.startswith(prefix)), default=None
    )


def table(workload: Workload, rounds: Rounds) -> str:
    """Write a table of all contestants in one workload, with their ratios to the limit and to the peers."""
    rivals = {f"× {name}": rate(rounds, name) for name in (INFLUX, VICTORIA_METRICS)}
    if isinstance(workload, Shape):
        references = {"of raw COPY": best_rate(rounds, "raw COPY"), **rivals}
        unit = "readings/s"
    else:
        references = {"of bare uvicorn": rate(rounds, BARE), **rivals}
        unit = "requests/s"
    headings = ["", unit, *references, "p50 ms", "p99 ms", "bytes/reading", "server MB", "database MB"]
    lines = [f"| {' | '.join(headings)} |", "| --- |" + " ---: |" * (len(headings) - 1)]
    for name, seen in rounds.items():
        own = median(round_.rate for round_ in seen)
        cells = [
            name,
            f"{own:,.0f}",
            *(ratio(own, reference) for reference in references.values()),
            f"{median(round_.p50_ms for round_ in seen):.2f}",
            f"{median(round_.p99_ms for round_ in seen):.2f}",
            _last([round_.bytes_per_reading for round_ in seen]),
            _last([round_.server_mb for round_ in seen]),
            _last([round_.database_mb for round_ in seen]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def ratio(own: float | None, reference: float | None) -> str:
    """Write a ratio with two decimals, or a dash if either rate is missing."""
    return "–" if own is None or not reference else f"{own / reference:.2f}"


def _last(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{known[-1]:,.0f}" if known else "–"


@dataclass(frozen=True, slots=True)
class Goal:
    """A goal and the result. ``measured`` is None if a contestant that it needs is missing."""

    text: str
    measured: float | None
    threshold: float
    is_ceiling: bool = False

    @property
    def verdict(self) -> str:
        """Return whether the goal is met, not met, or not measured."""
        if self.measured is None:
            return "not measured"
        is_met = self.measured <= self.threshold if self.is_ceiling else self.measured >= self.threshold
        return "met" if is_met else "**not met**"


def goals(results: Mapping[Workload, Rounds], *, has_columnstore: bool, is_embedded: bool) -> list[Goal]:
    """Return the goals for this kind of database, with what was measured."""
    dense = results.get(GOAL_SHAPE, {})
    sparse = results.get(SPARSE_SHAPE, {})
    single = results.get(GOAL_SINGLE, {})
    found: list[Goal] = []

    def compare(text: str, own: float | None, reference: float | None, threshold: float) -> None:
        found.append(Goal(text, None if own is None or not reference else own / reference, threshold))

    def own(rounds: Rounds, workers: int, format_: Format | None = Format.NDJSON) -> float | None:
        return rate(rounds, server_name(workers, format_))

    where = f"{GOAL_SHAPE}, NDJSON"
    if has_columnstore:
        direct = best_rate(dense, "raw COPY, columnstore")
        compare(f"{where}, 2 processes: of the best raw COPY into the columnstore", own(dense, 2), direct, 0.6)
        compare(f"{where}, 2 processes: × InfluxDB", own(dense, 2), rate(dense, INFLUX), 1.4)
        compare(f"{where}, 2 processes: × VictoriaMetrics (stretch)", own(dense, 2), rate(dense, VICTORIA_METRICS), 1.0)
    if is_embedded:
        raw = rate(dense, raw_name("rowstore", 1))
        compare(f"{where}, 1 process: of raw COPY by 1 connection", own(dense, 1), raw, 0.85)
    for workers in (1, 2):
        compare(
            f"{SPARSE_SHAPE}, NDJSON, {processes(workers)}: of raw COPY into the rowstore, as many connections",
            own(sparse, workers),
            rate(sparse, raw_name("rowstore", workers)),
            0.8,
        )
    for workers, threshold in ((1, 0.55), (2, 0.8)):
        name = server_name(workers)
        compare(f"{GOAL_SINGLE}, {processes(workers)}: × InfluxDB", rate(single, name), rate(single, INFLUX), threshold)
        p99 = median(round_.p99_ms for round_ in single[name]) if name in single else None
        found.append(Goal(f"{GOAL_SINGLE}, {processes(workers)}: p99, ms", p99, 30, is_ceiling=True))
    return found


def goal_table(found: Sequence[Goal]) -> str:
    """Write a table of the goals."""
    lines = ["| goal | measured | threshold | |", "| --- | ---: | ---: | --- |"]
    for goal in found:
        measured = "–" if goal.measured is None else f"{goal.measured:.2f}"
        lines.append(
            f"| {goal.text} | {measured} | {'≤' if goal.is_ceiling else '≥'} {goal.threshold:g} | {goal.verdict} |"
        )
    return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class History:
    """The readings stored for the dashboards, and how long that took."""

    days: int
    readings: int
    sending_s: float
    refreshing_s: float
    """Time from the last answer until the server had refreshed the aggregates."""
    converting_s: float
    """Time of moving the rest to the columnstore, and of statistics, after that."""
    sizes: Mapping[str, int]
    """Bytes on disk of each table."""

    def __str__(self) -> str:
        total_s = self.sending_s + self.refreshing_s + self.converting_s
        sizes = ", ".join(f"{name} {size / self.readings:.2f}" for name, size in self.sizes.items())
        return (
            f"{self.days} days, {self.readings:,} readings: ready after {total_s:,.0f} s, of which sending took "
            f"{self.sending_s:,.0f} s ({self.readings / self.sending_s:,.0f}/s), the rest of the refresh "
            f"{self.refreshing_s:,.0f} s, columnstore and statistics {self.converting_s:,.0f} s. "
            f"Bytes on disk a reading: {sizes}."
        )


SLOW_MS = 200
"""Longest time that a dashboard's query may take."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A query of a dashboard over one range."""

    dashboard: str
    place: str
    range_: str
    """Empty if the query does not use it."""
    reads: str
    """Readings or one of the aggregates; empty if the query has no range."""
    rows: int
    first_ms: float
    median_ms: float

    @property
    def is_slow(self) -> bool:
        """Return whether a viewer has to wait for the query."""
        return max(self.first_ms, self.median_ms) > SLOW_MS

    def __str__(self) -> str:
        return " ".join(filter(None, (f"{self.dashboard}: {self.place}", self.range_)))


def panel_table(asked: Sequence[Asked]) -> str:
    """Write a table of the queries. Queries without a range share a row for each dashboard, with the slowest times."""
    lines = ["| dashboard | panel | range | reads | rows | first ms | median ms |"]
    lines.append("| --- | --- | --- | --- | ---: | ---: | ---: |")

    def add(cells: Sequence[str], of: Sequence[Asked]) -> None:
        slowest_ms = (max(each.first_ms for each in of), max(each.median_ms for each in of))
        lines.append(f"| {' | '.join([*cells, *(f'{ms:.0f}' for ms in slowest_ms)])} |")

    for dashboard in dict.fromkeys(each.dashboard for each in asked):
        mine = [each for each in asked if each.dashboard == dashboard]
        for each in mine:
            if each.range_:
                add([dashboard, each.place, each.range_, each.reads, f"{each.rows:,}"], [each])
        if others := [each for each in mine if not each.range_]:
            text = f"the slowest of {counted(len(others), 'query', 'queries')} without a range"
            add([dashboard, text, "", "", ""], others)
    return "\n".join(lines)


def panel_goals(asked: Sequence[Asked], *, dashboard: str) -> list[Goal]:
    """Return the goals that no query of this dashboard, and no query at all, is slow."""
    goals = []
    for text, which in (
        (dashboard, [each for each in asked if each.dashboard == dashboard]),
        ("All dashboards", asked),
    ):
        slowest_ms = max((max(each.first_ms, each.median_ms) for each in which), default=None)
        goals.append(Goal(f"{text}: the slowest query, ms", slowest_ms, SLOW_MS, is_ceiling=True))
    return goals


@dataclass(frozen=True, slots=True)
class ReadBack:
    """The size and times of an answer of GET /api/readings."""

    bucket: str
    format_: str
    rows: int
    body_bytes: int
    first_ms: float
    """Time until the first byte of the body."""
    elapsed_s: float


def read_table(answers: Sequence[ReadBack]) -> str:
    """Write a table of the answers."""
    lines = ["| bucket | format | rows | rows/s | MB/s | first byte ms |", "| --- | --- | ---: | ---: | ---: | ---: |"]
    for each in answers:
        rate, megabytes = each.rows / each.elapsed_s, each.body_bytes / each.elapsed_s / 1e6
        cells = [
            each.bucket,
            each.format_,
            f"{each.rows:,}",
            f"{rate:,.0f}",
            f"{megabytes:.1f}",
            f"{each.first_ms:.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Way:
    """A way in which readings come."""

    name: str
    sensors: int
    flush_rows: int
    interval_s: int = 1
    """Time between two readings of a sensor."""
    late: float = 0.0
    """Part of the readings that are late."""


@dataclass(frozen=True, slots=True)
class Stored:
    """The time and the space that readings took which came in one way."""

    rows: int
    writing_s: float
    converting_s: float
    """Time that conversions took, those while the readings were written included."""
    written_bytes: int
    """Bytes of the readings on disk, after the last was written."""
    rest_bytes: int
    """The same when nothing was left to do."""
    batches: int
    """Batches of the columnstore at that time."""
    minutes: int
    """Rows of the 1-minute aggregates."""
    minutes_bytes: int


def storage_table(found: Mapping[Way, Stored]) -> str:
    """Write a table of the bytes that readings took on disk."""
    headings = ["", "sensors", "readings", "in a flush", "writing, readings/s", "conversion, µs a reading"]
    headings += ["bytes a reading: written", "at rest", "readings a batch", "bytes of minutes: a reading", "a minute"]
    lines = [f"| {' | '.join(headings)} |", "| --- |" + " ---: |" * (len(headings) - 1)]
    for way, stored in found.items():
        cells = [
            way.name,
            f"{way.sensors:,}",
            f"{stored.rows:,}",
            f"{way.flush_rows:,}",
            f"{stored.rows / stored.writing_s:,.0f}",
            f"{1e6 * stored.converting_s / stored.rows:.2f}",
            f"{stored.written_bytes / stored.rows:.1f}",
            f"{stored.rest_bytes / stored.rows:.1f}",
            f"{stored.rows / stored.batches:,.0f}" if stored.batches else "–",
            f"{stored.minutes_bytes / stored.rows:.1f}",
            f"{stored.minutes_bytes / stored.minutes:.0f}" if stored.minutes else "–",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


MAX_MAINTENANCE_CORES = 0.15
MAX_DISTANCE = 0.25
"""How far a minute's median may lie from the median of all minutes, as a part of that."""
MAX_GROWTH = 0.1
"""How much memory may grow from the second quarter to the last, as a part of that of the second."""


@dataclass(frozen=True, slots=True)
class Minute:
    """A minute of a soak. Memory and processor time are None where they can't be read."""

    elapsed_s: float
    rows: int
    """Rows in requests that were answered 201."""
    post_ms: Sequence[float]
    get_minutes_ms: Sequence[float]
    get_raw_ms: Sequence[float]
    """Times of reads of the last readings."""
    get_past_ms: Sequence[float]
    """Times of reads of readings of any minute since the start."""
    server_mb: float | None
    database_mb: float | None
    """Memory of the database's processes without what they share."""
    shared_mb: float | None
    """Above all the shared buffers, which fill until they have their size."""
    limited_mb: float | None
    """Memory of the cgroup that the database is held in, cached files included."""
    read_mb: float | None
    """What the database has read from disks."""
    maintenance_cores: float | None
    """Processor time of the maintenance over the time that passed."""
    database_cores: float | None
    """The same of the whole database, maintenance included."""
    server_cores: float
    others_cores: float | None
    """The same of everything that does not belong to the soak."""
    stale_ranges: int
    late_lag_s: float
    """How long the oldest late reading has waited to be in the aggregates."""
    lag_s: float
    database_bytes: int
    rowstore_bytes: int
    columnstore_bytes: int
    chunks: int
    errors: int

    @property
    def rate(self) -> float:
        """Return the rows committed per second."""
        return self.rows / self.elapsed_s


@dataclass(frozen=True, slots=True)
class Soak:
    """A steady load, minute by minute, and the count at its end."""

    minutes: Sequence[Minute]
    stored: int
    missing: int
    """Rows that were answered 201 and are not stored."""
    unanswered: int
    """Rows that were due and were not answered 201."""

    @property
    def errors(self) -> int:
        """Return the requests that failed and the rows that are missing."""
        return self.missing + sum(minute.errors for minute in self.minutes)


def soak_table(soak: Soak) -> str:
    """Write a table of the minutes, with the means of what is not a state, and the counts."""
    headings = ["minute", "rows/s", "POST p50 ms", "p99 ms", "GET minutes p50 ms", "GET raw p50 ms", "GET past p50 ms"]
    headings += ["server MiB", "database MiB", "shared buffers MiB", "cgroup MiB", "disk reads MiB/s"]
    headings += [f"{what}, % of a core" for what in ("maintenance", "database", "server", "others")]
    headings += ["stale ranges", "late lag s", "lag s"]
    headings += [f"{what} MiB" for what in ("database on disk", "rowstore", "columnstore")]
    headings += ["chunks", "errors"]
    means = [_mean(column) for column in zip(*map(_measured, soak.minutes), strict=True)]
    errors = sum(minute.errors for minute in soak.minutes)
    lines = [f"| {' | '.join(headings)} |", "| --- |" + " ---: |" * (len(headings) - 1)]
    lines += [minute_row(number, minute) for number, minute in enumerate(soak.minutes, 1)]
    lines += [_row(["mean", *_cells(means), *[""] * 7, f"{errors:,}"]), ""]
    lines.append(
        f"At the end {soak.stored:,} rows were stored; {soak.missing:,} that were answered 201 were missing. "
        f"{soak.unanswered:,} that were due were not answered 201."
    )
    return "\n".join(lines)


def minute_row(number: int, minute: Minute) -> str:
    """Write the row of a minute."""
    sizes = (minute.database_bytes, minute.rowstore_bytes, minute.columnstore_bytes)
    states = [f"{minute.stale_ranges:,}", f"{minute.late_lag_s:,.0f}", f"{minute.lag_s:,.0f}"]
    states += [*(f"{size / 1_048_576:,.0f}" for size in sizes), f"{minute.chunks:,}"]
    return _row([str(number), *_cells(_measured(minute)), *states, f"{minute.errors:,}"])


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cells(measured: Sequence[float | None]) -> list[str]:
    decimals = [0, 1, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1, 1, 1]
    return ["–" if value is None else f"{value:,.{digits}f}" for value, digits in zip(measured, decimals, strict=True)]


def soak_goals(soak: Soak) -> list[Goal]:
    """Return the goals of a soak, with what was measured."""
    minutes = soak.minutes
    level = "from minute 2 on, the largest distance from the median"
    growth = "growth from the second quarter to the last"
    measured = [
        ("maintenance, cores", _mean([minute.maintenance_cores for minute in minutes]), MAX_MAINTENANCE_CORES),
        (f"rows/s {level}", _distance([minute.rate for minute in minutes]), MAX_DISTANCE),
        (f"POST p50 {level}", _distance([_percentile(minute.post_ms) for minute in minutes]), MAX_DISTANCE),
        (
            f"GET minutes p50 {level}",
            _distance([_percentile(minute.get_minutes_ms) for minute in minutes]),
            MAX_DISTANCE,
        ),
        (f"GET raw p50 {level}", _distance([_percentile(minute.get_raw_ms) for minute in minutes]), MAX_DISTANCE),
        (f"GET past p50 {level}", _distance([_percentile(minute.get_past_ms) for minute in minutes]), MAX_DISTANCE),
        (f"memory of the server, {growth}", _growth([minute.server_mb for minute in minutes]), MAX_GROWTH),
        (
            f"memory of the database without shared buffers, {growth}",
            _growth([minute.database_mb for minute in minutes]),
            MAX_GROWTH,
        ),
        ("errors", soak.errors, 0),
    ]
    return [Goal(f"Soak: {text}", value, threshold, is_ceiling=True) for text, value, threshold in measured]


def _measured(minute: Minute) -> list[float | None]:
    cores = (minute.maintenance_cores, minute.database_cores, minute.server_cores, minute.others_cores)
    return [
        minute.rate,
        _percentile(minute.post_ms),
        _percentile(minute.post_ms, 0.99),
        _percentile(minute.get_minutes_ms),
        _percentile(minute.get_raw_ms),
        _percentile(minute.get_past_ms),
        minute.server_mb,
        minute.database_mb,
        minute.shared_mb,
        minute.limited_mb,
        None if minute.read_mb is None else minute.read_mb / minute.elapsed_s,
        *(None if part is None else 100 * part for part in cores),
    ]


def _percentile(values: Sequence[float], part: float = 0.5) -> float | None:
    return sorted(values)[int(len(values) * part)] if values else None


def _mean(values: Sequence[float | None]) -> float | None:
    """Return the mean, or None if a value is missing."""
    known = [value for value in values if value is not None]
    return fmean(known) if known and len(known) == len(values) else None


def _distance(medians: Sequence[float | None]) -> float | None:
    """Return how far any but the first lies from their median, as a part of it. None if one is missing."""
    known = [value for value in medians[1:] if value is not None]
    if not known or len(known) < len(medians) - 1:
        return None
    middle = median(known)
    return max(abs(value / middle - 1) for value in known)


def _growth(values: Sequence[float | None]) -> float | None:
    """Return how much the lowest value grew from the second quarter to the last, as a part. None if one is missing.

    A piece of work that happens to run when the memory is read is no growth, so the lowest value counts.
    """
    quarter = len(values) // 4
    known = [value for value in values if value is not None]
    if not quarter or len(known) < len(values):
        return None
    return min(known[-quarter:]) / min(known[quarter : 2 * quarter]) - 1
