"""The metrics of a reading: their names and units, and their types in Arrow, in SQL and in a binary COPY.

Pure, and below all other modules. Whatever has a column for each metric derives it from METRICS, in that order: Arrow
schemas, SQL, decoders, limits, examples. A few modules name the metrics themselves, for a contract or for speed: a test
of the house rules (test_architecture.py) lists them with the reasons, and others (test_schema.py) compare them with
METRICS.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import pyarrow as pa

_FLOAT = pa.float64()


@dataclass(frozen=True, slots=True)
class Metric:
    """A value that a reading may have."""

    name: str
    """Its key in JSON and its column in each table. SQL has it without quotes."""
    unit: str
    example: float
    arrow_type: pa.DataType = _FLOAT
    sql_type: str = "float8"
    """PostgreSQL's short name of the type, with which the names of its functions begin."""
    struct_format: str = "d"
    """The type's binary form in a COPY, as ``struct`` writes it."""


METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("temperature", "°C", 23.5),
        Metric("humidity", "%", 48.2),
        Metric("pressure", "hPa", 1013.2),
    )
}
"""All metrics by name. Their order is that of columns everywhere."""

METRIC_NAMES = tuple(METRICS)
METRIC_TYPES: Mapping[str, pa.DataType] = {metric.name: metric.arrow_type for metric in METRICS.values()}
"""The Arrow type of each metric's column."""
METRIC_FIELDS = tuple(pa.field(name, arrow_type) for name, arrow_type in METRIC_TYPES.items())
"""The fields that end each Arrow schema of readings; null where a reading lacks the metric."""
METRIC_COLUMNS = ", ".join(METRICS)
"""The metrics' columns in SQL."""

EXAMPLE_METRIC, OTHER_EXAMPLE_METRIC, *_ = METRICS
"""The metrics that examples and hints name."""


def qualified(table: str, columns: Iterable[str] = METRICS) -> str:
    """Return the SQL of a table's columns, such as ``r.temperature, r.humidity``. By default those of the metrics."""
    return ", ".join(f"{table}.{column}" for column in columns)
