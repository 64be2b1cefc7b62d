"""Small bodies that would become large, and the memory that each makes a server use above its idle state.

The bodies are made here, so that the repository has no binaries in it.
"""

import gzip
import io
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import httpx
import pyarrow as pa
import pyarrow.parquet as pq

from tests.attacks.report import Finding
from tests.support.clusters import cluster
from tests.support.databases import new_database
from tests.support.server import API_KEY, Server, running

MIB = 1 << 20
BOUND_MIB = 200.0
PATH = "/api/readings"
ARROW = "application/vnd.apache.arrow.stream"
PARQUET = "application/vnd.apache.parquet"


class Bomb(NamedTuple):
    """A body, and how many times it is sent at once."""

    body: bytes
    content_type: str
    times: int = 1
    encoding: str = "identity"


def findings() -> Iterator[Finding]:
    """Try each bomb on a server of its own."""
    with cluster("embedded") as admin_url:
        for name, make in BOMBS.items():
            with new_database(admin_url) as url, TemporaryDirectory() as folder:
                bomb = make()
                with running(Path(folder), DATABASE_URL=url) as server:
                    yield Finding(name, _cost_bytes(server, bomb) / MIB, "MiB", BOUND_MIB)


def _cost_bytes(server: Server, bomb: Bomb) -> int:
    """Return the server's peak memory while it gets a bomb, over its memory before."""
    headers = {"X-API-Key": API_KEY, "Content-Type": bomb.content_type, "Content-Encoding": bomb.encoding}
    with httpx.Client(base_url=server.url, headers=headers, timeout=120) as client:
        client.post(
            PATH, content=_stream(1, 1, "zstd"), headers={"Content-Type": ARROW, "Content-Encoding": "identity"}
        )
        process = Path(f"/proc/{server.process.pid}")
        process.joinpath("clear_refs").write_text("5")  # the peak begins anew
        idle = _status_bytes(process, "VmRSS")
        with ThreadPoolExecutor(bomb.times) as senders:
            answers = list(senders.map(lambda _: client.post(PATH, content=bomb.body), range(bomb.times)))
    # One that is answered 5xx for another reason than room has not gone off.
    assert all(answer.status_code in (201, 413, 422, 429, 503) for answer in answers), answers[0].text
    return _status_bytes(process, "VmHWM") - idle


def _status_bytes(process: Path, name: str) -> int:
    return int(process.joinpath("status").read_text().partition(f"{name}:")[2].split()[0]) * 1_024


def _parquet(*tables: pa.Table, **options: object) -> bytes:
    """Write a file with each table as a row group."""
    sink = io.BytesIO()
    with pq.ParquetWriter(sink, tables[0].schema, compression="zstd", **options) as writer:
        for table in tables:
            writer.write_table(table)
    return sink.getvalue()


def wide_values() -> Bomb:
    """Make a dictionary with a value of a megabyte, in 1,900 rows."""
    value = pa.FixedSizeBinaryArray.from_buffers(pa.binary(MIB), 20, [None, pa.py_buffer(bytes(20 * MIB))])
    table = pa.table({"sensor_id": ["a"] * 20, "temperature": value})
    return Bomb(_parquet(*[table] * 95), PARQUET)


def long_list() -> Bomb:
    """Fifty million numbers in one row."""
    numbers = pa.ListArray.from_arrays(
        [0, 50_000_000], pa.array([0.0]).take(pa.nulls(50_000_000, pa.int8()).fill_null(0))
    )
    return Bomb(_parquet(pa.table({"sensor_id": ["a"], "temperature": numbers})), PARQUET)


def large_page(size_bytes: int = 400 * MIB) -> Bomb:
    """Make a page of 400 MB in a row group that declares one byte."""
    table = pa.table({"sensor_id": [bytes(size_bytes)], "temperature": [1.0]})
    body = _parquet(table, use_dictionary=False, data_page_size=1 << 30, write_statistics=False)
    said = pq.read_metadata(io.BytesIO(body)).row_group(0).total_byte_size
    assert body.count(_varint(said)) == 1
    return Bomb(body.replace(_varint(said), _varint(1, len(_varint(said)))), PARQUET)


def _varint(number: int, width: int = 1) -> bytes:
    """Encode a number in zigzag, in at least a number of bytes."""
    return _unsigned(2 * number, width)


def _unsigned(number: int, width: int = 1) -> bytes:
    digits: list[int] = []
    while number or len(digits) < width:
        digits.append(number & 0x7F)
        number >>= 7
    return bytes([digit | 0x80 for digit in digits[:-1]] + digits[-1:])


def many_columns(count: int = 990_000) -> Bomb:
    """Make a footer with a number of columns and nothing else."""
    root = b"\x48\x01a\x15" + _varint(count) + b"\x00"
    column = bytes([0x15, 10, 0x25, 2, 0x18, 6])
    schema = (
        b"\x19\xfc" + _unsigned(count + 1) + root + b"".join(column + b"%06d\0" % number for number in range(count))
    )
    footer = b"\x15\x02" + schema + b"\x16\x00\x19\x0c\x00"
    body = b"PAR1" + footer + len(footer).to_bytes(4, "little") + b"PAR1"
    return Bomb(gzip.compress(body), PARQUET, encoding="gzip")


def long_prefixes() -> Bomb:
    """Make 10,000 rows with a text of 900 KB, each the same as the one before except for its end."""
    text = "x" * 900_000
    group = pa.table({"sensor_id": [text] * 50, "temperature": [1.0] * 50})
    encodings: dict[str, object] = {"use_dictionary": False, "column_encoding": {"sensor_id": "DELTA_BYTE_ARRAY"}}
    return Bomb(_parquet(*[group] * 200, **encodings), PARQUET)


def _stream(rows: int, name_bytes: int, compression: str | None) -> bytes:
    """Make a stream of one batch."""
    ends = pa.array(range(0, (rows + 1) * name_bytes, name_bytes), pa.int32())
    names = pa.StringArray.from_buffers(rows, ends.buffers()[1], pa.py_buffer(b"x" * (rows * name_bytes)))
    values = pa.nulls(rows, pa.float64()).fill_null(0.0)
    table = pa.table({"sensor_id": names, "temperature": values})
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_table(table)
    return sink.getvalue()


def inflating_streams() -> Bomb:
    """Eight streams at once, each of 250 MB."""
    return Bomb(_stream(1_000_000, 240, "zstd"), ARROW, times=8)


def inflating_streams_that_are_taken() -> Bomb:
    """Eight streams at once, each as large as one may be."""
    return Bomb(_stream(90_000, 240, "zstd"), ARROW, times=8)


def growing_dictionary() -> Bomb:
    """Make a dictionary to which 400 batches add 50 KB each, and of which each batch could have a copy."""
    sink = io.BytesIO()
    words = [f"{number:>050000}" for number in range(400)]
    schema = pa.schema({"sensor_id": pa.dictionary(pa.int32(), pa.string()), "temperature": pa.float64()})
    options = pa.ipc.IpcWriteOptions(compression="zstd", emit_dictionary_deltas=True)
    with pa.ipc.new_stream(sink, schema, options=options) as writer:
        for count in range(1, len(words) + 1):
            names = pa.DictionaryArray.from_arrays(pa.array([count - 1], pa.int32()), words[:count])
            writer.write_batch(pa.record_batch([names, pa.array([1.0])], schema=schema))
    return Bomb(sink.getvalue(), ARROW)


def shared_dictionary(batches: int = 90) -> Bomb:
    """Make a dictionary of 10 MB that every batch has, of a type that is converted."""
    words = pa.array([f"{number:>01000}" for number in range(10_000)], pa.large_string())
    sink = io.BytesIO()
    schema = pa.schema({"sensor_id": pa.dictionary(pa.int32(), pa.large_string()), "temperature": pa.float64()})
    with pa.ipc.new_stream(sink, schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        for number in range(batches):
            names = pa.DictionaryArray.from_arrays(pa.array([number], pa.int32()), words)
            writer.write_batch(pa.record_batch([names, pa.array([1.0])], schema=schema))
    return Bomb(sink.getvalue(), ARROW)


def shared_dictionary_of_many() -> Bomb:
    """Return an Arrow stream whose dictionary is shared by as many batches as are allowed."""
    return shared_dictionary(5_000)


def views_of_one_text() -> Bomb:
    """Make 10,000 rows with a text of 900 KB, all of them the same bytes."""
    text = b"x" * 900_000
    view = len(text).to_bytes(4, "little") + text[:4] + bytes(8)
    names = pa.Array.from_buffers(pa.string_view(), 10_000, [None, pa.py_buffer(view * 10_000), pa.py_buffer(text)])
    table = pa.table({"sensor_id": names, "temperature": [1.0] * 10_000})
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return Bomb(sink.getvalue(), ARROW)


def tiny_batches() -> Bomb:
    """Make as many batches of one row as fit into a body."""
    table = pa.table({"sensor_id": ["a"], "temperature": [1.0]})
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        for _ in range(50_000):
            writer.write_table(table)
    return Bomb(gzip.compress(sink.getvalue(), 1), ARROW, encoding="gzip")


BOMBS: Mapping[str, Callable[[], Bomb]] = {
    "Parquet: a binary value of 1 MB in a dictionary, 1,900 rows": wide_values,
    "Parquet: a list of 50 M numbers in one row": long_list,
    "Parquet: a page of 400 MB, said to have 1 byte": large_page,
    "Parquet: a footer with 990,000 columns": many_columns,
    "Parquet: a text of 900 KB in 10,000 rows, as prefixes": long_prefixes,
    "Arrow: 8 streams at once that inflate to 250 MB each": inflating_streams,
    "Arrow: 8 streams at once, as large as they may be": inflating_streams_that_are_taken,
    "Arrow: a dictionary that grows with each of 400 batches": growing_dictionary,
    "Arrow: a dictionary of 10 MB that 90 batches share": shared_dictionary,
    "Arrow: a dictionary of 10 MB that 5,000 batches share": shared_dictionary_of_many,
    "Arrow: 10,000 views of a text of 900 KB": views_of_one_text,
    "Arrow: 50,000 batches of one row": tiny_batches,
}
