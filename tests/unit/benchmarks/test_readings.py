"""The contestants get the same readings in every format, as sensors would send them."""

import io
import json
import struct
from collections import Counter
from itertools import pairwise

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from benchmarks.readings import BULK_FORMATS, COLUMNS, Format, bodies, copy_payloads, make_readings, sensor_name

START_MS = 1_760_000_000_000
Row = tuple[str, int, float, float, float]
COPY_HEADER_BYTES = 19
YEAR_2000_MS = 946_684_800_000
COPY_ROW = struct.Struct("!h iq ii iq ii id id id")


def read_json(body: bytes) -> list[Row]:
    return [(row["sensor_id"], row["time"], *(row[name] for name in COLUMNS)) for row in json.loads(body)]


def read_ndjson(body: bytes) -> list[Row]:
    return read_json(b"[" + b",".join(body.splitlines()) + b"]")


def read_table(table: pa.Table) -> list[Row]:
    times = table["time"].cast(pa.int64())
    columns = [table["sensor_id"], times, *(table[name] for name in COLUMNS)]
    return list(zip(*(column.to_pylist() for column in columns), strict=True))


def read_lines(body: bytes) -> list[Row]:
    rows: list[Row] = []
    for line in body.decode().splitlines():
        key, fields, time = line.split(" ")
        values = dict(field.split("=") for field in fields.split(","))
        sensor = key.removeprefix("reading,sensor_id=")
        temperature, humidity, pressure = (float(values[name]) for name in COLUMNS)
        rows.append((sensor, int(time), temperature, humidity, pressure))
    return rows


READERS = {
    Format.JSON: read_json,
    Format.NDJSON: read_ndjson,
    Format.CSV: lambda body: read_table(pa.csv.read_csv(io.BytesIO(body))),
    Format.ARROW: lambda body: read_table(pa.ipc.open_stream(body).read_all()),
    Format.PARQUET: lambda body: read_table(pq.read_table(io.BytesIO(body))),
    Format.LINES: read_lines,
}


def written_rows(readings: pa.Table) -> list[Row]:
    sensors, times, *values = (readings[name].to_pylist() for name in ("sensor", "time_ms", *COLUMNS))
    return list(zip(map(sensor_name, sensors), times, *values, strict=True))


@pytest.mark.parametrize("format_", Format)
def test_every_format_says_the_same_in_as_many_requests(format_: Format) -> None:
    readings = make_readings(25, sensors=7, start_ms=START_MS)
    requests = bodies(readings, format_, rows=10)
    rows = [READERS[format_](body) for body in requests]
    assert [len(part) for part in rows] == [10, 10, 5]
    assert [row for part in rows for row in part] == written_rows(readings)


def test_the_formats_of_bulk_are_all_but_the_peers() -> None:
    assert set(BULK_FORMATS) == set(Format) - {Format.LINES}


def test_raw_copy_takes_the_same_readings_by_sensor_the_newest_first() -> None:
    readings = make_readings(25, sensors=7, start_ms=START_MS)
    payloads = copy_payloads(readings, rows=10, sensor_ids=list(range(100, 107)), source_id=3)
    found = []
    for payload in payloads:
        part = []
        for start in range(COPY_HEADER_BYTES, len(payload) - 2, COPY_ROW.size):
            # How many values, and then each after its length.
            _, *lengths_and_values = COPY_ROW.unpack_from(payload, start)
            time_us, sensor, _, source, *values = lengths_and_values[1::2]
            assert source == 3
            part.append((sensor, time_us // 1_000 + YEAR_2000_MS, *values))
        assert part == sorted(part, key=lambda row: (row[0], -row[1]))
        found += part
    sent = [(int(name.removeprefix("sensor-")) + 100, *rest) for name, *rest in written_rows(readings)]
    assert sorted(found) == sorted(sent)


def test_each_sensor_sends_once_a_second_and_drifts_a_little() -> None:
    readings = make_readings(1_000, sensors=10, start_ms=START_MS)
    rows = written_rows(readings)
    assert set(Counter((sensor, time) for sensor, time, *_ in rows).values()) == {1}
    first = [row for row in rows if row[0] == sensor_name(0)]
    assert [time for _, time, *_ in first] == [START_MS + 1_000 * second for second in range(100)]
    temperatures = [temperature for _, _, temperature, *_ in first]
    assert len(set(temperatures)) > 10
    assert all(abs(after - before) < 0.051 for before, after in pairwise(temperatures))


def test_the_readings_are_the_same_every_time() -> None:
    assert make_readings(50, sensors=7, start_ms=START_MS) == make_readings(50, sensors=7, start_ms=START_MS)
