"""Readings as bodies of POST /api/readings, and as the rows that they should become."""

import gzip
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pyarrow as pa

from tests.support import bodies
from tests.support.prometheus import samples
from tests.support.server import API_KEY, Server, running

PATH = "/api/readings"
NDJSON = "application/x-ndjson"
ROWS = """
SELECT s.name, r.time, r.temperature, r.humidity, r.pressure
FROM readings r JOIN sensors s ON s.id = r.sensor_id WHERE s.name LIKE %s
"""

Sent = Mapping[str, Any]
"""A reading with its time as text, ISO 8601."""
Row = tuple[str, datetime, float | None, float | None, float | None]


def _in_columns(readings: Sequence[Sent]) -> pa.Table:
    """Return the columns as a measuring program has them: times and not text."""
    table = bodies.table(readings)
    times = table["time"].cast(pa.timestamp("us", "UTC"))
    return table.set_column(table.schema.get_field_index("time"), "time", times)


FORMATS: Mapping[str, tuple[str, Callable[[Sequence[Sent]], bytes]]] = {
    "array": ("application/json", bodies.json_array),
    "columns": ("application/json", bodies.json_columns),
    "ndjson": (NDJSON, bodies.ndjson),
    "csv": ("text/csv", bodies.csv),
    "arrow": (
        "application/vnd.apache.arrow.stream",
        lambda sent: bodies.arrow_stream(_in_columns(sent), rows_a_batch=1_000),
    ),
    "parquet": ("application/vnd.apache.parquet", lambda sent: bodies.parquet(_in_columns(sent))),
}
"""By name: a Content-Type, and what makes such a body."""
CODECS: Mapping[str, Callable[[bytes], bytes]] = {
    "identity": lambda body: body,
    "gzip": gzip.compress,
    "zstd": lambda body: bytes(pa.compress(body, codec="zstd", asbytes=True)),
}
"""By Content-Encoding."""


def encoded(readings: Sequence[Sent], format_: str, codec: str) -> tuple[bytes, dict[str, str]]:
    """Return a body and its headers."""
    content_type, encode = FORMATS[format_]
    return CODECS[codec](encode(readings)), {"Content-Type": content_type, "Content-Encoding": codec}


def row_of(sent: Sent) -> Row:
    """Return the row that a reading should have in the table."""
    time = datetime.fromisoformat(sent["time"])
    return sent["sensor_id"], time, sent.get("temperature"), sent.get("humidity"), sent.get("pressure")


def rows(url: str, sensors: str = "%") -> list[Row]:
    """Return the rows of the sensors whose names are LIKE this."""
    with psycopg.connect(url) as connection:
        return connection.execute(ROWS, [sensors]).fetchall()


def scalar(url: str, query: str) -> Any:
    """Return the one value of a query."""
    with psycopg.connect(url) as connection:
        row = connection.execute(query).fetchone()
    assert row
    return row[0]


@dataclass(frozen=True, slots=True)
class Site:
    """A server, a client with the key for everything, and the database behind them."""

    server: Server
    client: httpx.Client
    url: str

    def post(self, body: bytes, content_type: str = NDJSON, *, query: str = "", **headers: str) -> httpx.Response:
        """Send a body. A header's name has _ where it should have -."""
        sent = {"Content-Type": content_type} | {name.replace("_", "-"): value for name, value in headers.items()}
        return self.client.post(f"{PATH}?{query}", content=body, headers=sent)

    def send(self, *readings: object, query: str = "", **headers: str) -> httpx.Response:
        """Send readings as NDJSON."""
        return self.post(bodies.ndjson(readings), query=query, **headers)

    def metrics(self) -> dict[str, float]:
        """Return every sample without labels."""
        return samples(self.client.get("/metrics"))


@contextmanager
def site(folder: Path, url: str, *, through: str | None = None, **settings: str) -> Iterator[Site]:
    """Start a server on a database, which it may reach ``through`` another connection string."""
    with (
        running(folder, DATABASE_URL=through or url, **settings) as server,
        httpx.Client(base_url=server.url, headers={"X-API-Key": API_KEY}, timeout=30) as client,
    ):
        yield Site(server, client, url)
