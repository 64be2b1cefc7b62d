"""What a sender gets for a committed reading, and every subscriber sees: its JSON, encoded once for all of them.

Pure. The fields and their order are the contract of POST /api/temperature_reading and of /ws/sensor_updates.
"""

from collections.abc import Callable, Mapping
from datetime import datetime, tzinfo
from functools import lru_cache
from typing import NamedTuple

import orjson

from app.ingest.batch import Reading


class CommittedReading(NamedTuple):
    """A committed reading: its id in the table, and the JSON object of the 201 and of the WebSocket message."""

    id: int
    time_us: int
    sensor: str
    payload: bytes


class BatchResult(NamedTuple):
    """What became of a batch that was committed."""

    rows: int
    """How many are stored."""
    refused: Mapping[int, str | None]
    """The others by their place in the batch, and why PostgreSQL refused them; None where only another one of a batch
    that is whole is at fault."""


def receipt_encoder(timezone: tzinfo) -> Callable[[Reading, int], CommittedReading]:
    """Return a function from a reading and its id to its receipt, whose dates and times are in ``timezone``."""

    @lru_cache(maxsize=1_024)  # a second that others have brought makes a receipt 1.4 µs, a new one 3.7
    def date_and_time(second: int) -> tuple[str, str]:
        moment = datetime.fromtimestamp(second, timezone).isoformat()
        return moment[:10], moment[11:19]

    def encode(reading: Reading, reading_id: int) -> CommittedReading:
        date_recorded, time_recorded = date_and_time(reading.time_us // 1_000_000)
        # The metrics stand here by name: 0.35 µs, where an object put together from METRICS took 0.81.
        payload = orjson.dumps(
            {
                "id": reading_id,
                "temperature": reading.temperature,
                "humidity": reading.humidity,
                "pressure": reading.pressure,
                "date_recorded": date_recorded,
                "time_recorded": time_recorded,
                "sensor_id": reading.sensor,
                "client_ip": reading.source.client_ip,
            }
        )
        return CommittedReading(reading_id, reading.time_us, reading.sensor, payload)

    return encode
