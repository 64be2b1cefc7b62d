"""Demo data: a farm's sensors with three days of made-up weather, sent over HTTP to a server as its users would.

What is sent depends on the seed and on the time of day alone. One sensor has stopped, one has never sent, one has a
gap and an excursion beyond its limit.
"""

import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import httpx
import numpy as np
import pandas as pd

from tests.support.server import API_KEY

SEED = 20230712
STEP_S = 20
"""Three times as long, sensors count as online, so that the pictures must be drawn by then."""
LENGTH = timedelta(days=3)
METRICS = ["temperature", "humidity", "pressure"]
TIMEOUT_S = 60
Span = tuple[float, float]
"""Hours before now: from, to."""


@dataclass(frozen=True, slots=True)
class Demo:
    """A sensor: where it is, its limits, the climate that it measures, and when it did not send."""

    name: str
    label: str
    location: str
    temperature: float
    swing: float
    humidity: float
    limits: dict[str, dict[str, float]]
    gap: Span | None = None
    warmer: Span | None = None


OFFLINE, NEVER = (5.2, 0.0), (LENGTH / timedelta(hours=1), 0.0)
DETAIL = "greenhouse-1"
"""The sensor that Sensor detail shows."""
SENSORS = (
    Demo(
        "greenhouse-1", "Tomatoes", "Hall 1", 22, 5, 62, {"temperature": {"lower": 12, "upper": 32}}, (31, 28), (20, 17)
    ),
    Demo("greenhouse-2", "Cucumbers", "Hall 1", 23, 4, 71, {"temperature": {"lower": 14, "upper": 34}}),
    Demo("greenhouse-3", "Seedlings", "Hall 2", 20, 3, 68, {"humidity": {"upper": 90}}),
    Demo("greenhouse-4", "Herbs", "Hall 2", 21, 4, 55, {"temperature": {"upper": 34}}, OFFLINE),
    Demo("cold-store-1", "Apples", "Barn", 4, 0.6, 84, {"temperature": {"upper": 7}}, None, (0.4, 0)),
    Demo("field-north", "Weather mast", "Fields", 15, 7, 66, {}),
    Demo("field-south", "Frost warning", "Fields", 14, 7, 69, {"temperature": {"lower": 1}}),
    Demo("workshop", "Dehumidifier", "Barn", 18, 2, 48, {"humidity": {"upper": 65}}),
    Demo("pump-house", "Not mounted yet", "Fields", 12, 2, 70, {}, NEVER),
)


def readings(sensor: Demo, until: datetime) -> pd.DataFrame:
    """Return a sensor's readings up to a time, at its interval, in the server's columns."""
    times = pd.date_range(until - LENGTH, until, freq=f"{STEP_S}s", inclusive="right")
    random = np.random.default_rng([SEED, SENSORS.index(sensor)])
    hour = np.asarray(times.hour + times.minute / 60 + times.second / 3600)
    day = np.cos((hour - 15) / 24 * 2 * np.pi)
    slow, cloud, wind = (_smooth(random, len(times), minutes) for minutes in (900, 120, 8))
    warmth = sensor.swing * (day + 0.25 * slow + 0.15 * cloud) + 0.08 * wind
    temperature = sensor.temperature + warmth + 0.3 * random.normal(size=len(times))
    before_h = np.asarray((until - times) / timedelta(hours=1))
    if sensor.warmer:
        temperature += _bump(before_h, sensor.warmer) * (
            6 if sensor.warmer[1] == 0 else _lift(sensor, temperature, before_h)
        )
    humidity = np.clip(
        sensor.humidity - 1.8 * warmth + 2 * cloud + 0.2 * wind + 0.8 * random.normal(size=len(times)), 5, 99
    )
    pressure = (
        1014 + 5 * _smooth(np.random.default_rng(SEED), len(times), 1_800) + 0.05 * random.normal(size=len(times))
    )
    made = pd.DataFrame({"time": times, "temperature": temperature, "humidity": humidity, "pressure": pressure})
    if sensor.gap:
        made = made[(before_h > sensor.gap[0]) | (before_h < sensor.gap[1])]
    return made.round(dict.fromkeys(METRICS, 2))


def _smooth(random: np.random.Generator, length: int, minutes: float) -> np.ndarray:
    """Noise of unit size that changes within so many minutes."""
    knots = random.normal(size=int(length * STEP_S / 60 / minutes) + 4)
    at = np.arange(length) * STEP_S / 60 / minutes
    index = at.astype(int)
    share = (1 - np.cos((at - index) * np.pi)) / 2
    return np.asarray(knots[index] * (1 - share) + knots[index + 1] * share)


def _bump(before_h: np.ndarray, span: Span) -> np.ndarray:
    """Return 0 outside of a span and 1 in its middle. A span that lasts until now stays at 1."""
    start, end = span
    share = np.clip((start - before_h) / (start - end), 0, 1)
    return np.asarray(np.minimum(1, 4 * share) if end == 0 else np.sin(np.pi * share) ** 2)


def _lift(sensor: Demo, temperature: np.ndarray, before_h: np.ndarray) -> float:
    """Return how far to lift the middle of the excursion, so that it ends three degrees beyond the limit."""
    assert sensor.warmer
    middle = np.argmin(np.abs(before_h - sum(sensor.warmer) / 2))
    return float(sensor.limits["temperature"]["upper"] + 3 - temperature[middle])


class Farm:
    """The sensors as clients of a server."""

    def __init__(self, url: str) -> None:
        self._client = httpx.Client(base_url=url, headers={"X-API-Key": API_KEY}, timeout=TIMEOUT_S)
        self.stored = 0
        """How many readings the server has taken."""

    def register(self) -> None:
        """Set names, places and limits, as a user would before the sensors are mounted."""
        for sensor in SENSORS:
            facts = {"label": sensor.label, "location": sensor.location, "expected_interval_s": STEP_S}
            body = facts | {"limits": sensor.limits}
            self._client.patch(f"/api/sensors/{urllib.parse.quote(sensor.name)}", json=body).raise_for_status()

    def send_past(self) -> int:
        """Send all readings up to now, and return their number."""
        until = datetime.now(UTC)
        for sensor in SENSORS:
            self._send(sensor, readings(sensor, until))
        return self.stored

    def live(self, sleep: Callable[[float], None], seconds: int) -> None:
        """Go on for a while, a reading of each sensor that is on at its interval."""
        for _ in range(seconds // STEP_S):
            sleep(STEP_S)
            until = datetime.now(UTC)
            for sensor in SENSORS:
                if sensor.gap is None or sensor.gap[1] > 0:
                    self._send(sensor, readings(sensor, until).tail(1))

    def _send(self, sensor: Demo, made: pd.DataFrame) -> None:
        if made.empty:
            return
        body = made.assign(sensor_id=sensor.name).to_csv(index=False, date_format="%Y-%m-%dT%H:%M:%S.%fZ")
        answer = self._client.post(
            "/api/readings", params={"backfill": "true"}, content=body, headers={"Content-Type": "text/csv"}
        )
        answer.raise_for_status()
        self.stored += answer.json()["stored"]
