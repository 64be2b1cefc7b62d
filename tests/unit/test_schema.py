"""Modules that name the metrics themselves, for a contract or for speed, have the order of ``app.schema``."""

from datetime import UTC

import orjson
import pytest

from app.ingest.batch import Reading
from app.ingest.decode.reading import EXAMPLE_BODY, ReadingBody, decode_reading
from app.ingest.decode.timestamps import TimeWindow
from app.ingest.result import receipt_encoder
from app.registry import LatestReading
from app.schema import EXAMPLE_METRIC, METRICS, OTHER_EXAMPLE_METRIC, qualified
from app.store.database import ORIGINAL_METRICS
from app.web.write_single import StoredReading
from tests.support.samples import SOURCE, T0_US

VALUES = {name: place - 1.5 for place, name in enumerate(METRICS)}


def test_reading_fields() -> None:
    """A Reading has a field for each metric between its sensor and its sender, and ``values`` are those."""
    assert Reading._fields == ("time_us", "sensor", *METRICS, "source")
    assert Reading._make((T0_US, "a", *VALUES.values(), SOURCE)).values == tuple(VALUES.values())


def test_decoded_reading() -> None:
    """Both ways of parsing one reading put each metric's value into the field of that metric."""
    for extra in ({}, {"unknown": [True]}):
        body = orjson.dumps({**dict(reversed(VALUES.items())), "sensor_id": "a", **extra})
        decoded = decode_reading(body, source=SOURCE, window=TimeWindow(1, 1), now_us=T0_US)
        assert {name: getattr(decoded, name) for name in METRICS} == VALUES


def test_receipt_values() -> None:
    """A receipt has each metric's value under its name."""
    committed = receipt_encoder(UTC)(Reading._make((T0_US, "a", *VALUES.values(), SOURCE)), 1)
    assert {name: value for name, value in orjson.loads(committed.payload).items() if name in METRICS} == VALUES
    assert list(orjson.loads(committed.payload)) == list(StoredReading.model_fields)


@pytest.mark.parametrize(
    "names",
    [ReadingBody.model_fields, EXAMPLE_BODY, StoredReading.model_fields, LatestReading.model_fields, ORIGINAL_METRICS],
)
def test_metrics_in_order(names: object) -> None:
    """Models and examples have all metrics, in their order."""
    assert [name for name in names if name in METRICS] == list(METRICS)  # type: ignore[attr-defined]


def test_examples_and_sql() -> None:
    """The example metrics are two, and a metric's name is SQL without quotes."""
    assert EXAMPLE_METRIC != OTHER_EXAMPLE_METRIC
    assert all(name.isidentifier() and name.islower() for name in METRICS)
    assert qualified("r", ("a", "b")) == "r.a, r.b"
