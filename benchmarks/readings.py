"""Makes the readings that every contestant is sent, and their bytes in each format.

Pure, and the same for the same arguments: every contestant of a round gets the same readings in the same requests, only
in another format. All text formats carry times as milliseconds since 1970.

Values drift as a sensor's do, in steps of a hundredth: a constant would flatter a contestant that compresses, and noise
would put it at a disadvantage.
"""

import random
from dataclasses import dataclass
from enum import StrEnum
from itertools import accumulate, chain

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pgpq import ArrowToPostgresBinaryEncoder

SEED = 20_260_101
STEPS = range(-5, 6)
"""Largest change of a value from one second to the next, in hundredths of its unit."""
INTERVAL_MS = 1_000
COLUMNS = ("temperature", "humidity", "pressure")
STARTS = {"temperature": range(1_500, 2_500), "humidity": range(4_000, 6_000), "pressure": range(99_000, 102_000)}
"""Range in which each value starts, in hundredths of its unit."""


class Format(StrEnum):
    """The format of a request's readings."""

    JSON = "JSON array"
    NDJSON = "NDJSON"
    CSV = "CSV"
    ARROW = "Arrow stream"
    PARQUET = "Parquet"
    LINES = "line protocol"
    """The peers' format: the sensor as a tag, the values as three fields."""


CONTENT_TYPES = {
    Format.JSON: "application/json",
    Format.NDJSON: "application/x-ndjson",
    Format.CSV: "text/csv",
    Format.ARROW: "application/vnd.apache.arrow.stream",
    Format.PARQUET: "application/vnd.apache.parquet",
    Format.LINES: "text/plain",
}
BULK_FORMATS = tuple(CONTENT_TYPES)[:-1]
"""Formats that POST /api/readings takes."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The number of sensors, and of readings in a request."""

    sensors: int
    rows: int

    def __str__(self) -> str:
        return f"{self.sensors:,} sensors, {self.rows:,} readings a request"

    @property
    def rows_per_sensor(self) -> float:
        """Return the readings of one sensor in a request."""
        return self.rows / self.sensors


def make_readings(count: int, *, sensors: int, start_ms: int) -> pa.Table:
    """Make readings in the order in which they are sent: one of every sensor for each second.

    Columns: sensor (int32, from 0), time_ms (int64), and the values as float64.
    """
    chance = random.Random(SEED)
    seconds = -(-count // sensors)
    steps = list(STEPS)
    columns = {
        "sensor": pa.array(chain.from_iterable([range(sensors)] * seconds), pa.int32()),
        "time_ms": pa.array(
            chain.from_iterable([start_ms + second * INTERVAL_MS] * sensors for second in range(seconds)), pa.int64()
        ),
    }
    for name in COLUMNS:
        walks = [
            accumulate(chance.choices(steps, k=seconds - 1), initial=chance.choice(STARTS[name]))
            for _ in range(sensors)
        ]
        hundredths = pa.array(chain.from_iterable(zip(*walks, strict=True)), pa.int64())
        columns[name] = pc.divide(pc.cast(hundredths, pa.float64()), 100.0)
    return pa.table(columns).slice(0, count).combine_chunks()


def sensor_name(sensor: int) -> str:
    """Return the name of a sensor, the same in every format."""
    return f"sensor-{sensor}"


def bodies(readings: pa.Table, format_: Format, *, rows: int) -> list[bytes]:
    """Return the bodies of the requests that send these readings, ``rows`` in each."""
    readings = _named(readings)
    if format_ in {Format.ARROW, Format.PARQUET}:
        write = _arrow_stream if format_ is Format.ARROW else _parquet
        table = pa.table(
            {
                "sensor_id": readings["sensor_id"],
                "time": readings["time_ms"].cast(pa.timestamp("ms", "UTC")),
                **{name: readings[name] for name in COLUMNS},
            }
        ).combine_chunks()
        return [write(table.slice(start, rows)) for start in range(0, table.num_rows, rows)]
    before, between, after = {
        Format.JSON: ("[", ",", "]"),
        Format.NDJSON: ("", "\n", "\n"),
        Format.CSV: (f"sensor_id,time,{','.join(COLUMNS)}\n", "\n", "\n"),
        Format.LINES: ("", "\n", "\n"),
    }[format_]
    texts = _written(readings, format_)
    offsets = [*range(0, len(texts), rows), len(texts)]
    requests = pc.binary_join(pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), texts), between)
    return [f"{before}{request}{after}".encode() for request in requests.to_pylist()]


def copy_payloads(readings: pa.Table, *, rows: int, sensor_ids: list[int], source_id: int) -> list[bytes]:
    """Return the same portions in the format of binary COPY, sorted by sensor, the newest reading first."""
    ids = pa.array(sensor_ids, pa.int32()).take(readings["sensor"].combine_chunks())
    count = readings.num_rows
    table = pa.table(
        {
            "time": readings["time_ms"].cast(pa.timestamp("ms", "UTC")).cast(pa.timestamp("us", "UTC")),
            "sensor_id": ids,
            "id": pa.array(range(1, count + 1), pa.int64()),
            "source_id": pa.array([source_id] * count, pa.int32()),
            **{name: readings[name] for name in COLUMNS},
        }
    ).combine_chunks()
    order = [("sensor_id", "ascending"), ("time", "descending")]
    return [_binary_copy(table.slice(start, rows).sort_by(order)) for start in range(0, count, rows)]


def _named(readings: pa.Table) -> pa.Table:
    """Replace the sensors' numbers by their names."""
    sensors = readings["sensor"].combine_chunks()
    names = pa.array([sensor_name(sensor) for sensor in range(pc.max(sensors).as_py() + 1)])
    return readings.set_column(0, "sensor_id", names.take(sensors))


def _written(readings: pa.Table, format_: Format) -> pa.Array:
    """Return each reading as text."""
    names: tuple[str, ...] = ("sensor_id", "time_ms", *COLUMNS)
    pieces = ('{"sensor_id":"', '","time":', ',"temperature":', ',"humidity":', ',"pressure":', "}")
    if format_ is Format.CSV:
        pieces = ("", ",", ",", ",", ",", "")
    elif format_ is Format.LINES:
        names = ("sensor_id", *COLUMNS, "time_ms")
        pieces = ("reading,sensor_id=", " temperature=", ",humidity=", ",pressure=", " ", "")
    *openings, closing = pieces
    columns = [readings[name].combine_chunks().cast(pa.string()) for name in names]
    alternating = chain.from_iterable(zip(openings, columns, strict=True))
    return pc.binary_join_element_wise(*alternating, closing, "")


def _arrow_stream(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return bytes(sink.getvalue())


def _parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return bytes(sink.getvalue())


def _binary_copy(table: pa.Table) -> bytes:
    encoder = ArrowToPostgresBinaryEncoder(table.schema)
    batches = table.combine_chunks().to_batches()
    return b"".join([encoder.write_header(), *map(encoder.write_batch, batches), encoder.finish()])
