"""Readings and receipts to test with, one at a time or as hypothesis draws them."""

from collections.abc import Coroutine
from typing import Any, TypeVar

from hypothesis import strategies as st

from app.ingest.batch import Reading, Source
from app.ingest.decode.timestamps import EARLIEST_US, LATEST_US
from app.ingest.receipt import Receipt

Result = TypeVar("Result")

T0_US = 1_689_172_245_000_000
"""2023-07-12T14:30:45Z"""
SOURCE = Source("API_KEY", "192.0.2.7")

times_us = st.integers(EARLIEST_US, LATEST_US - 1)
names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=255).filter(
    str.strip
)
measures = st.floats(allow_nan=False, allow_infinity=False)
sources = st.builds(Source, st.sampled_from(["API_KEY", "API_KEY_WS"]), st.ip_addresses().map(str))
readings = st.builds(Reading, times_us, names, measures, measures, measures, sources)


def reading(sensor: str = "greenhouse-1", *, time_us: int = T0_US) -> Reading:
    """A reading that nothing is wrong with."""
    return Reading(time_us, sensor, 23.5, 48.2, 1013.2, SOURCE)


def receipt(
    reading_id: int = 1, *, sensor: str = "greenhouse-1", time_us: int = T0_US, size_bytes: int = 10
) -> Receipt:
    """A receipt whose payload only has a size."""
    return Receipt(reading_id, time_us, sensor, b"x" * size_bytes)


def at_once(coroutine: Coroutine[Any, Any, Result]) -> Result:
    """The result of a coroutine that waits for nothing, without an event loop."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]
    raise AssertionError("it waits for something")
