"""The tables that the migrations make have the columns that the code's schema says."""

import psycopg
import pytest

from app.schema import METRICS
from app.store.latest import SCHEMA as LATEST_SCHEMA
from app.store.tiers import TIERS
from app.store.wire import WIRE_SCHEMA

COLUMNS = """
SELECT column_name, udt_name FROM information_schema.columns WHERE table_schema = current_schema AND table_name = %s
ORDER BY ordinal_position
"""


def columns(url: str, table: str) -> dict[str, str]:
    """Return a table's columns in their order, with PostgreSQL's short names of their types."""
    with psycopg.connect(url) as connection:
        return dict(connection.execute(COLUMNS, [table]).fetchall())


@pytest.mark.parametrize(
    ("table", "names"), [("readings", WIRE_SCHEMA.names), ("latest_readings", LATEST_SCHEMA.names)]
)
def test_columns_of_tables(database: str, table: str, names: list[str]) -> None:
    """A table has the schema's columns and no others, those of the metrics in their types."""
    found = columns(database, table)
    assert found.keys() == {*names}
    assert {name: found[name] for name in METRICS} == {metric.name: metric.sql_type for metric in METRICS.values()}


@pytest.mark.parametrize("tier", [tier.name for tier in TIERS])
def test_columns_of_tiers(database: str, tier: str) -> None:
    """Each aggregate has its figures of every metric."""
    figures = {f"{metric}_{figure}" for metric in METRICS for figure in ("count", "sum", "min", "max", "first", "last")}
    assert columns(database, tier).keys() == {"bucket", "sensor_id", "count"} | figures


def test_metrics_table(database: str) -> None:
    """The table of metrics, to which limits refer, has all of them."""
    with psycopg.connect(database) as connection:
        assert {name for (name,) in connection.execute("SELECT name FROM metrics").fetchall()} == METRICS.keys()
