"""The numbers of every panel, computed by pandas from the readings and nothing else.

A function for each query. It knows what the panel's description promises and not how the query does it: which readings
are in which bucket, for one, is found here by rounding their times.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise, zip_longest
from typing import Any, NamedTuple

import pandas as pd

from grafana.panels import BLUE, GREEN, GREY, RED
from tests.grafana.data import DECIMALS, DEFAULT_OFFLINE_AFTER_S, METRICS, SENSORS, SYMBOLS
from tests.grafana.stored import LATE_RANGES, LEDGER, TIERS, Stored

WIDTHS_S = {"readings": 0, "readings_1m": 60, "readings_1h": 3_600, "readings_1d": 86_400}
NO_BREAK = chr(160)
REGISTERED = {sensor.name: sensor for sensor in SENSORS}

Rows = list[tuple[Any, ...]]


class Filters(NamedTuple):
    """The filters of a fleet's dashboard. An empty filter shows all sensors."""

    search: str = ""
    locations: tuple[str, ...] = ()
    states: tuple[str, ...] = ()

    @property
    def variables(self) -> dict[str, str | list[str]]:
        """Return the variables as Grafana passes them: All is one empty text."""
        return {"search": self.search, "location": list(self.locations or [""]), "state": list(self.states or [""])}


EVERY_SENSOR = Filters()


@dataclass(frozen=True, slots=True)
class Look:
    """A view of a dashboard: a range, the tier that suits it, and the choices of its variables."""

    stored: Stored
    start: pd.Timestamp
    end: pd.Timestamp
    tier: str
    interval_ms: int
    sensors: list[str]
    metric: str
    chosen: Filters = EVERY_SENSOR

    @property
    def sensor(self) -> str:
        """Return the sensor, if only one is chosen."""
        return self.sensors[0]


@dataclass(frozen=True, slots=True)
class Status:
    """A sensor at a moment."""

    name: str
    last_seen_at: pd.Timestamp | None
    age_s: float | None
    is_online: bool | None
    values: dict[str, float]

    @property
    def word(self) -> str:
        """Return the word that the panels show."""
        return "never seen" if self.is_online is None else "online" if self.is_online else "offline"


class Beyond(NamedTuple):
    """The furthest reading of a sensor beyond a limit of a metric."""

    value: float
    lower: float | None
    upper: float | None
    by: float
    time: pd.Timestamp


def buckets(look: Look, metric: str, sensors: list[str], now: pd.Timestamp) -> pd.DataFrame:
    """Return a row for each reading or bucket in the range, by time and sensor: width_s, count, sum, and so on.

    The bucket of now is not whole: in its place are the hours of a day, minutes of an hour, readings of a minute.
    """
    readings = look.stored.readings
    chosen = readings[readings["sensor"].isin(sensors)].dropna(subset=[metric]).sort_values("time", kind="stable")
    widths_s = {"readings_1h": [60, 3_600], "readings_1d": [60, 3_600, 86_400]}.get(look.tier, [WIDTHS_S[look.tier]])
    width_s = pd.Series(60 if 3_600 in widths_s else 0, index=chosen.index)
    for each_s in filter(None, widths_s):
        if each_s != 60 or look.tier == "readings_1m":
            width_s[chosen["time"] < now.floor(timedelta(seconds=each_s))] = each_s
    floors = {each_s: chosen["time"].dt.floor(timedelta(seconds=each_s)) for each_s in filter(None, widths_s)}
    starts = {each_s: look.start.floor(timedelta(seconds=each_s)) for each_s in floors}
    time, start = chosen["time"].copy(), pd.Series(look.start, index=chosen.index)
    for each_s, floor in floors.items():
        time = time.mask(width_s == each_s, floor)
        start = start.mask(width_s == each_s, starts[each_s])
    alone = pd.Series(chosen.index, index=chosen.index).where(width_s == 0, -1)
    chosen = chosen.assign(time=time, width_s=width_s, alone=alone)[(time >= start) & (time <= look.end)]
    by = ["time", "sensor", "width_s", "alone"]
    figures = chosen.groupby(by, sort=True)[metric].agg(["count", "sum", "min", "max", "first", "last"])
    return figures.reset_index(["time", "sensor", "width_s"])


def statuses(stored: Stored, now: pd.Timestamp) -> list[Status]:
    """Return every registered sensor, by name."""
    latest = stored.readings.sort_values("time", kind="stable").groupby("sensor").tail(1).set_index("sensor")
    found = []
    for sensor in SENSORS:
        if sensor.name not in latest.index:
            found.append(Status(sensor.name, None, None, None, {}))
            continue
        row = latest.loc[sensor.name]
        age_s = (now - row["time"]).total_seconds()
        allowed_s = 3 * sensor.expected_interval_s if sensor.expected_interval_s else DEFAULT_OFFLINE_AFTER_S
        values = {metric: row[metric] for metric in METRICS if pd.notna(row[metric])}
        found.append(Status(sensor.name, row["time"], age_s, age_s < allowed_s, values))
    return found


def violations(stored: Stored, now: pd.Timestamp) -> dict[tuple[str, str], Beyond]:
    """Return violations by sensor and metric, from the last hour and the latest readings that are not too old."""
    seen = [(each.sensor, each.metric, each.value, time) for each, time in stored.logged if each.arrived_s_ago < 3_600]
    for status in statuses(stored, now):
        if status.age_s is not None and status.age_s < max(
            3_600, 3 * (REGISTERED[status.name].expected_interval_s or 0)
        ):
            seen += [(status.name, metric, value, status.last_seen_at) for metric, value in status.values.items()]
    found: dict[tuple[str, str], Beyond] = {}
    for sensor, metric, value, time in seen:
        for limited, lower, upper in REGISTERED[sensor].limits:
            by = max(-math.inf if lower is None else lower - value, -math.inf if upper is None else value - upper)
            if limited == metric and by > 0:
                found[sensor, metric] = max(
                    [Beyond(value, lower, upper, by, time), *filter(None, [found.get((sensor, metric))])],
                    key=lambda each: each.by,
                )
    return found


def flushes(stored: Stored, now: pd.Timestamp) -> list[tuple[int, float]]:
    """Return the rows and the age in seconds of every flush."""
    return [*LEDGER, *((rows, (now - committed_at).total_seconds()) for rows, committed_at in stored.flushes)]


def fleet_sensors(look: Look, now: pd.Timestamp) -> Rows:
    words = [status.word for status in statuses(look.stored, now)]
    return [tuple(words.count(word) for word in ("online", "offline", "never seen"))]


def fleet_rate(look: Look, now: pd.Timestamp) -> Rows:
    return [(sum(rows for rows, age_s in flushes(look.stored, now) if age_s < 60) / 60,)]


def fleet_out_of_limits(look: Look, now: pd.Timestamp) -> Rows:
    out = {sensor for sensor, _ in violations(look.stored, now)}
    held = [
        status
        for status in statuses(look.stored, now)
        if status.name in out
        or (
            status.age_s is not None
            and status.age_s < max(3_600, 3 * (REGISTERED[status.name].expected_interval_s or 0))
        )
    ]
    return [(NO_BREAK.join([str(len(out)), "of", str(len(held))]), len(out) / len(held))]


def looked_for(look: Look, now: pd.Timestamp) -> list[Status]:
    """Return the sensors that the filters leave, by name."""
    search, locations, states = look.chosen
    out = {sensor for sensor, _ in violations(look.stored, now)}
    found = []
    for status in statuses(look.stored, now):
        sensor = REGISTERED[status.name]
        texts = [text.lower() for text in (sensor.name, sensor.label, sensor.location) if text]
        is_in_state = status.word in states or (status.name in out and "out of limits" in states)
        if (
            any(search.lower() in text for text in texts)
            and (not locations or sensor.location in locations)
            and (not states or is_in_state)
        ):
            found.append(status)
    return found


def fleet_listed(look: Look, now: pd.Timestamp) -> Rows:
    count = len(looked_for(look, now))
    return [(count, count)]


def fleet_newest(look: Look, now: pd.Timestamp) -> Rows:
    return [((now - look.stored.readings["time"].max()).total_seconds(),)]


def fleet_table(look: Look, now: pd.Timestamp) -> Rows:
    rows = []
    for status in looked_for(look, now):
        sensor = REGISTERED[status.name]
        out = sorted(METRICS[metric][0] for name, metric in violations(look.stored, now) if name == status.name)
        values = (status.values.get(metric) for metric in METRICS)
        about = (look.stored.ids[sensor.name], sensor.name, sensor.label, sensor.location, status.word, status.age_s)
        order = not out, ["offline", "online", "never seen"].index(status.word), sensor.name
        rows.append((order, (*about, *values, ", ".join(out) or "none")))
    return [row for _, row in sorted(rows, key=lambda each: each[0])]


def fleet_violations(look: Look, now: pd.Timestamp) -> Rows:
    names = {status.name for status in looked_for(look, now)}
    rows = []
    for (sensor, metric), beyond in violations(look.stored, now).items():
        if sensor in names:
            side, limit = side_and_limit(beyond)
            about = (look.stored.ids[sensor], sensor, METRICS[metric][0])
            rows.append((*about, beyond.value, side, limit, beyond.by, beyond.time))
    return sorted(rows, key=lambda row: -row[6])


def side_and_limit(beyond: Beyond) -> tuple[str, float | None]:
    """Return the side and the limit that the reading is beyond."""
    is_above = beyond.upper is not None and beyond.value > beyond.upper
    return ("above", beyond.upper) if is_above else ("below", beyond.lower)


def fleet_places(look: Look, now: pd.Timestamp) -> Rows:
    found = []
    for status in looked_for(look, now):
        sensor = REGISTERED[status.name]
        if sensor.latitude is not None:
            place = (sensor.location, sensor.latitude, sensor.longitude)
            found.append((look.stored.ids[sensor.name], sensor.name, *place, status.word))
    return found


def choice_of_locations(look: Look, now: pd.Timestamp) -> Rows:  # noqa: ARG001
    return [(location, location) for location in sorted({sensor.location for sensor in SENSORS if sensor.location})]


def fleet_over_time(look: Look, now: pd.Timestamp) -> Rows:
    tier = "readings_1m" if look.tier == "readings" else look.tier
    width = timedelta(seconds=WIDTHS_S[tier])
    times = look.stored.readings["time"]
    ends_at = now
    if tier == "readings_1d":
        whole_hours_until = (look.end - timedelta(hours=1)).floor("1h")
        times, ends_at = times[times < whole_hours_until], min(now, whole_hours_until)
    times = times.dt.floor(width)
    times = times[(times >= look.start.floor(width)) & (times <= look.end)]
    elapsed_s = {time: min(width, max(ends_at - time, timedelta(seconds=1))).total_seconds() for time in times.unique()}
    return [(time, count / elapsed_s[time]) for time, count in sorted(times.value_counts().items())]


def fleet_states(look: Look, now: pd.Timestamp) -> Rows:
    """Return the changes of each sensor's state. All sensors are shown, as there are fewer than the most."""
    tier = "readings_1m" if look.tier == "readings" else look.tier
    width = timedelta(seconds=WIDTHS_S[tier])
    ends_at = min(look.end, now)
    rows: Rows = []
    for status in looked_for(look, now):
        sent = look.stored.readings.loc[look.stored.readings["sensor"] == status.name, "time"].dt.floor(width)
        spans = sorted(sent[(sent >= look.start.floor(width)) & (sent <= look.end)].unique())
        out = {
            moment.floor(width)
            for each, time in look.stored.logged
            for moment in (time - timedelta(minutes=10), time, time + timedelta(minutes=5))
            if each.sensor == status.name
            and time + timedelta(minutes=5) >= look.start
            and time - timedelta(minutes=10) <= look.end
        }
        steps = sorted(later - earlier for earlier, later in pairwise(spans))
        usual = steps[(len(steps) - 1) // 2] if steps else timedelta(0)
        expected_s = REGISTERED[status.name].expected_interval_s
        usually = max(timedelta(seconds=300), 3 * usual)
        silence = max(width if spans else timedelta(0), timedelta(seconds=3 * expected_s) if expected_s else usually)
        states = {}
        if not spans or spans[0] > look.start + silence:
            states[look.start] = "never seen" if status.last_seen_at is None else "offline"
        for span, later in zip_longest(spans, spans[1:], fillvalue=ends_at):
            states[span] = "out of limits" if span in out else "online"
            if span + silence < later:
                states[span + silence] = "offline"
        before = None
        for time, state in sorted(states.items()):
            if state != before:
                rows.append((time, status.name, state))
            before = state
    return rows


def fleet_trends(look: Look, now: pd.Timestamp) -> Rows:
    """Return the trends of every sensor that matches: there are fewer than are shown at most."""
    tier = "readings_1m" if look.tier == "readings" else look.tier
    width = timedelta(seconds=WIDTHS_S[tier])
    rows: Rows = []
    for status in looked_for(look, now):
        sent = look.stored.readings[look.stored.readings["sensor"] == status.name]
        times = sent["time"].dt.floor(width)
        is_in_range = (times >= look.start.floor(width)) & (times <= look.end)
        for metric, (title, _) in METRICS.items():
            means = sent[metric][is_in_range].dropna().groupby(times).mean()
            about = (look.stored.ids[status.name], status.name, f"{title}, {SYMBOLS[metric].strip()}")
            rows += [(time, *about, mean) for time, mean in means.items()]
    return rows


def sensor_latest(look: Look, now: pd.Timestamp) -> Rows:
    (status,) = (each for each in statuses(look.stored, now) if each.name == look.sensor)
    out = {metric for sensor, metric in violations(look.stored, now) if sensor == look.sensor}
    limited = {metric for metric, *_ in REGISTERED[look.sensor].limits}

    def color(metric: str) -> str:
        if metric in out:
            return RED
        return GREY if not status.is_online else GREEN if metric in limited else BLUE

    rows = [
        (METRICS[metric][0], value, METRICS[metric][1], DECIMALS[metric], color(metric))
        for metric, value in status.values.items()
    ]
    return sorted(rows)


def limits_in_words(look: Look) -> str | None:
    """Write each metric's limits, also those with one side only."""
    found = []
    for metric, lower, upper in sorted(REGISTERED[look.sensor].limits):
        title, symbol = METRICS[metric][0], SYMBOLS[metric]
        if upper is None:
            found.append(f"{title} from {lower:g}{symbol}")
        else:
            found.append(
                f"{title} up to {upper:g}{symbol}" if lower is None else f"{title} {lower:g} to {upper:g}{symbol}"
            )
    return ", ".join(found) or None


def sensor_registered(look: Look, now: pd.Timestamp) -> Rows:
    (status,) = (each for each in statuses(look.stored, now) if each.name == look.sensor)
    sensor, seen = REGISTERED[look.sensor], status.last_seen_at
    about = (sensor.name, sensor.label, sensor.location, status.word, seen, status.age_s, sensor.expected_interval_s)
    length = look.end - look.start
    around = [None, None] if seen is None else [seen - 0.95 * length, seen + 0.05 * length]
    links = (moment and str(math.floor(moment.timestamp() * 1_000)) for moment in around)
    return [(*about, limits_in_words(look), *links)]


def sensor_violations(look: Look, now: pd.Timestamp) -> Rows:  # noqa: ARG001
    found = []
    for each, time in look.stored.logged:
        first, last = time - timedelta(minutes=10), time + timedelta(minutes=5)
        if each.sensor == look.sensor and last >= look.start and first <= look.end:
            found.append(
                ((METRICS[each.metric][0], "above" if each.is_above else "below", each.bound), each, first, last)
            )
    rows = []
    for key in {key for key, *_ in found}:
        logged, firsts, lasts = zip(*(rest for of, *rest in found if of == key), strict=True)
        values = [each.value for each in logged]
        furthest = max(values) if key[1] == "above" else min(values)
        rows.append((*key, sum(each.readings for each in logged), furthest, min(firsts), max(lasts)))
    return sorted(rows, key=lambda row: row[6], reverse=True)


def thinned(look: Look, found: pd.DataFrame) -> pd.DataFrame:
    """Merge the rows of two Grafana intervals into one. Rows that replace the current bucket stay, except readings."""
    two_intervals_s, tier_s = look.interval_ms / 500, WIDTHS_S[look.tier]
    bins_s = {0: min(two_intervals_s, 4), 60: 60, 3_600: 3_600} | (
        {tier_s: max(tier_s, two_intervals_s)} if tier_s else {}
    )
    parts = []
    for width_s, of_width in found.groupby("width_s"):
        floored = of_width["time"].dt.floor(timedelta(seconds=bins_s[width_s]))
        first = floored if width_s else of_width["time"]
        sized = of_width.assign(time=first, width_s=width_s and bins_s[width_s])
        how = {
            "time": "min",
            "sensor": "first",
            "width_s": "first",
            "count": "sum",
            "sum": "sum",
            "min": "min",
            "max": "max",
        }
        parts.append(sized.groupby(floored.to_numpy()).agg(how))
    return pd.concat(parts).sort_values("time") if parts else found


def curve(sensor: str, points: pd.DataFrame, width_s: float) -> Iterator[tuple[Any, ...]]:
    """Return time, sensor, mean, min and max of points, and after the last one before a gap a row without
    values.
    """
    found = list(points.itertuples())
    steps = sorted(later.time - earlier.time for earlier, later in pairwise(found) if earlier.width_s == width_s)
    usual = steps[(len(steps) - 1) // 2] if steps else timedelta(0)
    expected_s = REGISTERED[sensor].expected_interval_s
    for each, later in zip_longest(found, found[1:]):
        width = timedelta(seconds=each.width_s)
        if expected_s:
            allowed = max(width, timedelta(seconds=3 * expected_s))
        elif usual == width:  # its interval is shorter than a bucket
            allowed = width
        else:
            allowed = max(width, 3 * usual)
        yield each.time, sensor, each.sum / each.count, each.min, each.max
        if later and later.time - each.time > allowed:
            yield each.time + timedelta(milliseconds=1), sensor, None, None, None


def sensor_curve(look: Look, now: pd.Timestamp) -> Rows:
    found = buckets(look, look.metric, [look.sensor], now)
    return [(time, None, *values) for time, _, *values in curve(look.sensor, found, WIDTHS_S[look.tier])]


def sensor_limits(look: Look, now: pd.Timestamp) -> Rows:  # noqa: ARG001
    return [
        (time, f"{name} limit {value:g}{SYMBOLS[metric]}", value)
        for time in (look.start, look.end)
        for metric, lower, upper in REGISTERED[look.sensor].limits
        for name, value in (("lower", lower), ("upper", upper))
        if metric == look.metric and value is not None
    ]


def limits_of(look: Look) -> tuple[float, float] | None:
    """Lower and upper limit of the metric of now, without bounds where one is open."""
    for metric, lower, upper in REGISTERED[look.sensor].limits:
        if metric == look.metric:
            return (-math.inf if lower is None else lower, math.inf if upper is None else upper)
    return None


def sensor_figures(look: Look, now: pd.Timestamp) -> Rows:
    found, limits = buckets(look, look.metric, [look.sensor], now), limits_of(look)
    beyond_s = None
    if limits:
        beyond = found[(found["min"] < limits[0]) | (found["max"] > limits[1])]
        widths_s = beyond["width_s"].clip(lower=60)
        spans = {(floored(time, width_s), width_s) for time, width_s in zip(beyond["time"], widths_s, strict=True)}
        beyond_s = sum(width_s for _, width_s in spans)
    if found.empty:
        return [(0, *[None] * 4, beyond_s)]
    mean = found["sum"].sum() / found["count"].sum()
    return [
        (
            found["count"].sum(),
            found["min"].min(),
            mean,
            found["max"].max(),
            found["last"].iloc[-1],
            beyond_s,
        )
    ]


def floored(time: pd.Timestamp, width_s: float) -> float:
    """Return the start of the span that a time is in, seconds since 1970."""
    return math.floor(float(time.timestamp()) / width_s) * width_s


def sensor_states(look: Look, now: pd.Timestamp) -> Rows:
    """Return the changes of state between spans of four points, or of a bucket if that is longer."""
    found, (lower, upper) = buckets(look, look.metric, [look.sensor], now), limits_of(look) or (-math.inf, math.inf)
    span_s = max(look.interval_ms / 250, WIDTHS_S[look.tier])
    is_out: dict[float, bool] = {}
    for each in found.itertuples():
        span = floored(each.time, span_s)
        is_out[span] = is_out.get(span, False) or each.min < lower or each.max > upper
    spans, ends_at = sorted(is_out), min(look.end, now).timestamp()
    steps = sorted(later - earlier for earlier, later in pairwise(spans))
    usual_s = steps[(len(steps) - 1) // 2] if steps else 0
    expected_s = REGISTERED[look.sensor].expected_interval_s
    silence_s = max(span_s, 3 * expected_s if expected_s else max(300, 3 * usual_s))
    states = {}
    start = look.start.timestamp()
    if look.sensor not in set(look.stored.readings["sensor"]):
        states[start] = "never seen"
    elif start + silence_s < (spans or [ends_at])[0]:
        states[start] = "offline"
    for span, later in zip_longest(spans, spans[1:], fillvalue=ends_at):
        states[span] = "out of limits" if is_out[span] else "online"
        if span + silence_s < later:
            states[span + silence_s] = "offline"
    rows, before = [], None
    for seconds, state in sorted(states.items()):
        if state != before:
            rows.append((pd.Timestamp(seconds, unit="s", tz="UTC").round("us"), state))
        before = state
    return rows


def sensor_quality(look: Look, now: pd.Timestamp) -> Rows:
    """Whole buckets, and what lies between them or at either end."""
    width_s, expected_s = WIDTHS_S[look.tier], REGISTERED[look.sensor].expected_interval_s
    readings = look.stored.readings
    times = readings[readings["sensor"] == look.sensor]["time"]
    start, end = look.start, look.end
    if width_s:
        width = timedelta(seconds=width_s)
        times, start, end = times.dt.floor(width), start.floor(width), end.floor(width) + width
    end = min(end, now)
    times = times[(times >= start) & (times <= look.end)]
    if not expected_s or look.sensor not in set(readings["sensor"]):
        return [(len(times), None, None, None)]
    spans = [(start, 0), *((time, width_s) for time in sorted(set(times))), (end, 0)]
    missing = [
        (later - time).total_seconds() - of_time_s
        for (time, of_time_s), (later, _) in pairwise(spans)
        if (later - time).total_seconds() > max(of_time_s, 3 * expected_s)
    ]
    share = len(times) * expected_s / (end - start).total_seconds()
    return [(len(times), share, len(missing), max(missing, default=0))]


def sensor_days(look: Look, now: pd.Timestamp) -> Rows:  # noqa: ARG001
    if look.end - look.start < timedelta(days=2):
        return []
    readings = look.stored.readings
    its_own = readings[readings["sensor"] == look.sensor].dropna(subset=[look.metric])
    hours = its_own["time"].dt.floor("1h")
    its_own = its_own[(hours >= look.start.floor("1h")) & (hours <= look.end)]
    means = its_own.groupby([its_own["time"].dt.floor("1D"), its_own["time"].dt.hour])[look.metric].mean()
    days = sorted({day for day, _ in means.index})
    return [(f"{day:%Y-%m-%d}", *(means.get((day, hour)) for hour in range(24))) for day in days[:-367:-1]]


def compare_curves(look: Look, now: pd.Timestamp) -> Rows:
    before = look.start - timedelta(days=1)
    width_s = WIDTHS_S[look.tier] and max(WIDTHS_S[look.tier], look.interval_ms / 500)
    rows: Rows = []
    for sensor in look.sensors:
        found = thinned(look, buckets(look, look.metric, [sensor], now))
        rows += [(before, sensor, None), *(row[:3] for row in curve(sensor, found, width_s))]
    return rows


def compare_figures(look: Look, now: pd.Timestamp) -> Rows:
    found = buckets(look, look.metric, look.sensors, now)
    mean_of_all = found["sum"].sum() / found["count"].sum()
    rows = []
    for name, of_one in found.groupby("sensor", sort=True):
        readings, mean = of_one["count"].sum(), of_one["sum"].sum() / of_one["count"].sum()
        lowest, highest, last = of_one["min"].min(), of_one["max"].max(), of_one["last"].iloc[-1]
        rows.append((look.stored.ids[str(name)], name, readings, lowest, mean, mean - mean_of_all, highest, last))
    return rows


def unit(look: Look, now: pd.Timestamp) -> Rows:  # noqa: ARG001
    return [(METRICS[look.metric][1],)]


def unit_and_decimals(look: Look, now: pd.Timestamp) -> Rows:  # noqa: ARG001
    return [(METRICS[look.metric][1], DECIMALS[look.metric])]


def choice_of_sensors(look: Look, now: pd.Timestamp) -> Rows:  # noqa: ARG001
    return [(sensor.name, look.stored.ids[sensor.name]) for sensor in SENSORS]


def choice_of_compared(look: Look, now: pd.Timestamp) -> Rows:
    return [("First 5 by name", "0"), *choice_of_sensors(look, now)]


def choice_of_metrics(look: Look, now: pd.Timestamp) -> Rows:  # noqa: ARG001
    return sorted((title, metric) for metric, (title, _) in METRICS.items())


def choice_of_its_metrics(look: Look, now: pd.Timestamp) -> Rows:
    readings = look.stored.readings
    its_own = readings[readings["sensor"] == look.sensor]
    newest = its_own["time"].max()
    day, hour = now - timedelta(days=1), newest - timedelta(hours=1)
    looked_at = its_own[(its_own["time"] == newest) | (its_own["time"] > max(day, hour))]
    limited = {metric for metric, *_ in REGISTERED[look.sensor].limits}
    has = (metric for metric in METRICS if metric in limited or looked_at[metric].notna().any())
    return sorted((METRICS[metric][0], metric) for metric in has)


def database_late_ranges(look: Look, now: pd.Timestamp) -> Rows:  # noqa: ARG001
    return [(LATE_RANGES,)]


def database_lag(look: Look, now: pd.Timestamp) -> Rows:
    stored = look.stored
    lag_s = (now - stored.until).total_seconds()
    return [(tier, stored.materialized_until[tier], lag_s) for tier in sorted(TIERS, reverse=True)]


def database_ledger(look: Look, now: pd.Timestamp) -> Rows:
    found = flushes(look.stored, now)
    readings = sum(rows for rows, _ in found)
    return [(len(found), readings, readings / len(found), min(age_s for _, age_s in found))]


def offline(look: Look, now: pd.Timestamp) -> list[Status]:
    return [status for status in statuses(look.stored, now) if status.word == "offline"]


def alert_age(look: Look, now: pd.Timestamp) -> Rows:
    return [(status.name, look.stored.ids[status.name], status.age_s) for status in offline(look, now)]


def alert_expected(look: Look, now: pd.Timestamp) -> Rows:
    return [
        (status.name, look.stored.ids[status.name], REGISTERED[status.name].expected_interval_s or 0)
        for status in offline(look, now)
    ]


def alert_violations(look: Look, now: pd.Timestamp) -> list[tuple[tuple[str, ...], Beyond]]:
    """Return the labels of each alert, with its values."""
    symbols = {"temperature": "°C", "humidity": "%", "pressure": "hPa"}
    return sorted(
        ((sensor, look.stored.ids[sensor], metric, METRICS[metric][0], symbols[metric]), beyond)
        for (sensor, metric), beyond in violations(look.stored, now).items()
    )


def alert_value(look: Look, now: pd.Timestamp) -> Rows:
    return [(*labels, beyond.value) for labels, beyond in alert_violations(look, now)]


def alert_limit(look: Look, now: pd.Timestamp) -> Rows:
    return [(*labels, side_and_limit(beyond)[1]) for labels, beyond in alert_violations(look, now)]


def alert_nothing(look: Look, now: pd.Timestamp) -> Rows:
    online = sum(status.is_online or False for status in statuses(look.stored, now))
    return [(online + sum(age_s < 300 for _, age_s in flushes(look.stored, now)),)]


def alert_lag(look: Look, now: pd.Timestamp) -> Rows:
    return [(max(lag_s for *_, lag_s in database_lag(look, now)),)]


FIRST_STARTED = "SELECT first_started_at FROM maintenance WHERE work = 'retention'"


def alert_late_maintenance(look: Look, now: pd.Timestamp) -> Rows:
    ((first_started_at,),) = look.stored.ask(FIRST_STARTED).rows
    return [("retention", (now - pd.Timestamp(first_started_at)).total_seconds())]


EXPECTED: dict[str, Callable[[Look, pd.Timestamp], Rows]] = {
    "sensorflow-fleet: Sensors": fleet_sensors,
    "sensorflow-fleet: Readings per second": fleet_rate,
    "sensorflow-fleet: Out of limits": fleet_out_of_limits,
    "sensorflow-fleet: Newest reading": fleet_newest,
    "sensorflow-fleet: Sensors and their latest readings": fleet_table,
    "sensorflow-fleet: Limit violations now": fleet_violations,
    "sensorflow-fleet: Where the sensors are": fleet_places,
    "sensorflow-fleet: Readings by their own time": fleet_over_time,
    "sensorflow-fleet: States of 20 sensors": fleet_states,
    "sensorflow-fleet: Trends of 20 sensors": fleet_trends,
    "sensorflow-fleet: Listed below": fleet_listed,
    "sensorflow-fleet: variable location": choice_of_locations,
    "sensorflow-sensor: Latest reading": sensor_latest,
    "sensorflow-sensor: Sensor": sensor_registered,
    "sensorflow-sensor: Readings out of limits in this range": sensor_violations,
    "sensorflow-sensor: $metric": sensor_curve,
    "sensorflow-sensor: $metric limits": sensor_limits,
    "sensorflow-sensor: $metric unit": unit_and_decimals,
    "sensorflow-sensor: $metric in this range": sensor_figures,
    "sensorflow-sensor: $metric in this range unit": unit_and_decimals,
    "sensorflow-sensor: Completeness in this range": sensor_quality,
    "sensorflow-sensor: $metric: mean of each hour": sensor_days,
    "sensorflow-sensor: $metric: state in this range": sensor_states,
    "sensorflow-sensor: variable sensor": choice_of_sensors,
    "sensorflow-sensor: variable metric": choice_of_its_metrics,
    "sensorflow-compare: $metric by sensor, 50 at most": compare_curves,
    "sensorflow-compare: $metric by sensor, 50 at most unit": unit,
    "sensorflow-compare: $metric in this range, 50 sensors at most": compare_figures,
    "sensorflow-compare: $metric in this range, 50 sensors at most unit": unit_and_decimals,
    "sensorflow-compare: variable sensor": choice_of_compared,
    "sensorflow-compare: variable metric": choice_of_metrics,
    "sensorflow-database: Late ranges to refresh": database_late_ranges,
    "sensorflow-database: Aggregate lag": database_lag,
    "sensorflow-database: Ledger of flushes": database_ledger,
    "alerting: alert Sensor offline age": alert_age,
    "alerting: alert Sensor offline expected": alert_expected,
    "alerting: alert Reading out of limits value": alert_value,
    "alerting: alert Reading out of limits limit": alert_limit,
    "alerting: alert Nothing ingested signs": alert_nothing,
    "alerting: alert Aggregate lag lag": alert_lag,
    "alerting: alert Maintenance failing age": alert_late_maintenance,
}
"""By the query's text in the tests' names."""
OF_POSTGRESQL = {
    "sensorflow-database: Database size",
    "sensorflow-database: Compression ratio",
    "sensorflow-database: Connections",
    "sensorflow-database: Tables and aggregates",
    "sensorflow-database: Background jobs",
    "sensorflow-database: Connections by user",
    "sensorflow-database: Activity",
}
"""What PostgreSQL knows of itself: there is nothing to compute it from."""
