"""The data of the dashboards' tests: a year of real weather, and readings of some sensors until now.

The weather is the file of tests/acceptance/test_weather.py, as pandas reads it. Of the others, one keeps within its
limits and was silent for two hours, one is out of them, one fell silent, and one never sent.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd

from tests.support.weather import weather_file

METRICS = {
    "temperature": ("Temperature", "celsius"),
    "humidity": ("Humidity", "percent"),
    "pressure": ("Pressure", "pressurehpa"),
}
"""Title and unit of each."""
SYMBOLS = {"temperature": " °C", "humidity": "%", "pressure": " hPa"}
DECIMALS = {"temperature": 2, "humidity": 1, "pressure": 1}
"""The width of its figures."""
COLUMNS = ["sensor", "time", *METRICS]
DEFAULT_OFFLINE_AFTER_S = 300


@dataclass(frozen=True, slots=True)
class Sensor:
    """The registered data of a sensor. ``limits`` are lower and upper ones by metric."""

    name: str
    label: str | None = None
    location: str | None = None
    latitude: float | None = None
    longitude: float | None = None
    expected_interval_s: float | None = None
    limits: tuple[tuple[str, float | None, float | None], ...] = ()


SENSORS = (
    Sensor("Attic", "Never sent", "House", expected_interval_s=60),
    Sensor(
        "Cellar", None, "House", expected_interval_s=1_800, limits=(("temperature", -90, 90), ("pressure", 900, None))
    ),
    Sensor("EWR", "Newark", "New York", 40.6895, -74.1745, limits=(("temperature", -20, 40),)),
    Sensor("Greenhouse", "O'Hara's", None, 52.52, 13.405, 3_600, (("temperature", -90, 90), ("humidity", -90, 90))),
    Sensor("JFK", "Kennedy", "New York", 40.6413, -73.7781, limits=(("humidity", None, 0),)),
    Sensor("LGA", None, "New York", 40.7769, -73.8740, limits=(("humidity", None, 20),)),
    Sensor("Roof", None, "House", expected_interval_s=60, limits=(("humidity", 0, 1), ("temperature", 100, 101))),
)


@dataclass(frozen=True, slots=True)
class Violation:
    """A row of the log: readings that were beyond a limit, how long ago they came, and the time of the furthest."""

    sensor: str
    metric: str
    is_above: bool
    readings: int
    value: float
    bound: float
    arrived_s_ago: float
    time: datetime | None = None
    """None: when it came. The others are from ten minutes before to five after."""


IN_2013 = datetime(2013, 12, 20, 12, 1, tzinfo=UTC)
LOGGED = (
    Violation("Cellar", "temperature", True, 19, 95.5, 90, 600),
    Violation("Cellar", "temperature", True, 1, 97.5, 90, 5_000),
    Violation("Cellar", "temperature", False, 7, -91.5, -90, 700),
    Violation("Cellar", "pressure", False, 2, 899.5, 900, 800),
    Violation("Greenhouse", "humidity", True, 3, 50.5, 40, 500),
    Violation("LGA", "humidity", True, 5, 20.5, 20, 300, IN_2013),
    Violation("EWR", "temperature", False, 5, -21.5, -20, 9_000, IN_2013),
)
"""The limit of the Greenhouse has been corrected since."""
REAL, MADE = ["EWR", "JFK", "LGA"], ["Attic", "Cellar", "Greenhouse", "Roof"]


def weather() -> pd.DataFrame:
    """Return the file's rows that have a value."""
    file = pd.read_csv(weather_file(), usecols=["origin", "time_hour", "temp", "humid", "pressure"])
    rows = pd.DataFrame(
        {
            "sensor": file["origin"],
            "time": pd.to_datetime(file["time_hour"], utc=True),
            "temperature": (file["temp"] - 32) / 1.8,
            "humidity": file["humid"],
            "pressure": file["pressure"],
        }
    )
    return rows.dropna(subset=list(METRICS), how="all", ignore_index=True)


def as_weather(readings: pd.DataFrame) -> pd.DataFrame:
    """Return readings with the columns and units of that file."""
    names = {"sensor": "origin", "time": "time_hour", "temperature": "temp", "humidity": "humid"}
    return readings.assign(temperature=readings["temperature"] * 1.8 + 32).rename(columns=names)


def recent(until: datetime) -> pd.DataFrame:
    """Return the readings of the last three days, up to ``until``."""
    greenhouse = _sent("Greenhouse", until - timedelta(days=3), until, step_s=30)
    silent = (greenhouse["time"] > until - timedelta(hours=6)) & (greenhouse["time"] < until - timedelta(hours=4))
    cellar = _sent("Cellar", until - timedelta(hours=26), until, step_s=20).assign(humidity=None)
    roof = _sent("Roof", until - timedelta(days=2), until - timedelta(minutes=40), step_s=60).assign(pressure=None)
    return pd.concat([greenhouse[~silent], cellar, roof], ignore_index=True).astype(dict.fromkeys(METRICS, float))


def _sent(sensor: str, start: datetime, end: datetime, *, step_s: int) -> pd.DataFrame:
    times = pd.date_range(start, end, freq=f"{step_s}s")
    random = np.random.default_rng(len(times))
    noise = random.normal(size=(len(METRICS), len(times)))
    values = {metric: 20 + 10 * row.cumsum() / np.sqrt(len(times)) for metric, row in zip(METRICS, noise, strict=True)}
    return pd.DataFrame({"sensor": sensor, "time": times, **values})
