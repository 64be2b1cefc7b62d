"""Readings, batches and receipts to test with, one at a time or as hypothesis draws them."""

from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

import pyarrow as pa
from hypothesis import strategies as st

from app.ingest.batch import BATCH_SCHEMA, Batch, Reading, Sender
from app.ingest.decode.columns import Decoded
from app.ingest.decode.timestamps import EARLIEST_US, LATEST_US
from app.ingest.idempotency import IdempotencyRecord, RequestIdentity
from app.ingest.result import CommittedReading

Result = TypeVar("Result")

T0_US = 1_689_172_245_000_000
"""2023-07-12T14:30:45Z"""
SOURCE = Sender("API_KEY", "192.0.2.7")

times_us = st.integers(EARLIEST_US, LATEST_US - 1)
names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=255).filter(
    str.strip
)
measures = st.floats(allow_nan=False, allow_infinity=False)
sources = st.builds(Sender, st.sampled_from(["API_KEY", "API_KEY_WS"]), st.ip_addresses().map(str))
maybe = st.none() | measures
readings = st.builds(Reading, times_us, names, maybe, maybe, maybe, sources).filter(
    lambda reading: any(value is not None for value in reading[2:5])
)


def reading(sensor: str = "greenhouse-1", *, time_us: int = T0_US, source: Sender = SOURCE) -> Reading:
    """Return a valid reading."""
    return Reading(time_us, sensor, 23.5, 48.2, 1013.2, source)


def batch_of(readings: Sequence[Reading], *, source: Sender = SOURCE, is_atomic: bool = False) -> Batch:
    """Return these readings in their order as one request from ``source``."""
    sensors = list(dict.fromkeys(each.sensor for each in readings))
    columns = [
        [each.time_us for each in readings],
        [sensors.index(each.sensor) for each in readings],
        *([each[place] for each in readings] for place in (2, 3, 4)),
    ]
    arrays = [pa.array(values, field.type) for values, field in zip(columns, BATCH_SCHEMA, strict=True)]
    return Batch(
        pa.array(sensors, pa.string()), pa.RecordBatch.from_arrays(arrays, schema=BATCH_SCHEMA), source, is_atomic
    )


def decoded_of(batch: Batch) -> Decoded:
    """Return a batch as it was decoded from a body without bad readings."""
    return Decoded(batch, 0, (), (), pa.arange(1, batch.rows + 1), pa.array([], pa.int64()))


def record(
    key: str = "k1", *, key_name: str = "API_KEY", content: bytes = b"content", expires: bool = True
) -> IdempotencyRecord:
    """Return a record that is stored with the result of its request."""
    return IdempotencyRecord(RequestIdentity(key_name, key, content), expires=expires)


def receipt(
    reading_id: int = 1, *, sensor: str = "greenhouse-1", time_us: int = T0_US, size_bytes: int = 10
) -> CommittedReading:
    """Return a receipt whose payload only has a size."""
    return CommittedReading(reading_id, time_us, sensor, b"x" * size_bytes)


def at_once(coroutine: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine that waits for nothing, without an event loop, and return its result."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]
    raise AssertionError("it waits for something")
