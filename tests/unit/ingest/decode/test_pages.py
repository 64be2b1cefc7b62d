"""Parquet's footers and page headers: what they say is believed only as far as it adds up."""

import gzip
import io
from contextlib import suppress

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.errors import MalformedBody
from app.ingest.decode.columns import COLUMNS
from app.ingest.decode.pages import Pages, pages_of
from app.ingest.decode.readings import Format
from app.ingest.decode.thrift import STRUCT, CompactReader
from tests.attacks import bombs
from tests.unit.ingest.decode.bodies import decode, parquet

PAGE_HEADER_BYTES = 100
KNOWN = frozenset(COLUMNS)


def look_at(body: bytes) -> Pages:
    return pages_of(body, KNOWN)


@given(
    rows=st.integers(0, 3_000),
    distinct=st.integers(1, 3_000),
    options=st.fixed_dictionaries(
        {
            "compression": st.sampled_from(["none", "snappy", "gzip", "zstd", "brotli", "lz4"]),
            "data_page_version": st.sampled_from(["1.0", "2.0"]),
            "use_dictionary": st.booleans(),
            "data_page_size": st.sampled_from([100, 1_000, 1 << 20]),
            "row_group_size": st.sampled_from([100, 10_000]),
            "write_statistics": st.booleans(),
            "write_page_index": st.booleans(),
            "write_page_checksum": st.booleans(),
            "store_schema": st.booleans(),
        }
    ),
)
@settings(max_examples=50)
def test_pages_add_up_to_what_the_writer_counted(rows: int, distinct: int, options: dict[str, object]) -> None:
    """The pages add up to the writer's totals, headers included."""
    content = pa.table(
        {
            "unknown": [{"x": [1, 2], "y": "z"}] * rows,
            "sensor_id": [str(place % distinct) for place in range(rows)],
            "temperature": [place % distinct / 10 for place in range(rows)],
        },
        schema=pa.schema(
            {
                "unknown": pa.struct({"x": pa.list_(pa.int64()), "y": pa.string()}),
                "sensor_id": pa.string(),
                "temperature": pa.float64(),
            }
        ),
    )
    body = parquet(content, **options)
    pages, metadata = look_at(body), pq.read_metadata(io.BytesIO(body))
    assert (pages.rows, pages.names) == (rows, content.schema.names)
    for name, column in pages.columns.items():
        groups = [metadata.row_group(place).column(column.place) for place in range(metadata.num_row_groups)]
        assert {group.path_in_schema for group in groups} <= {name}
        counted = sum(group.total_uncompressed_size for group in groups)
        most_headers = sum(2 + group.total_compressed_size // 10 for group in groups)
        assert counted - PAGE_HEADER_BYTES * most_headers <= column.inflated_bytes <= counted
        assert column.values == rows


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"temperature": [[1.0]]}, "temperature should be flat"),
        ({"temperature": [{"x": 1.0}]}, "temperature should be flat"),
        ({"time.x": [1.0]}, "time.x should be flat"),
        ({"temperature": pa.array([b"x" * 33], pa.binary(33))}, "should not be of binary values of 33 bytes"),
    ],
)
def test_column_that_is_not_flat(columns: dict[str, object], said: str) -> None:
    """A nested column, or one of wide binary values, is refused by name."""
    with pytest.raises(MalformedBody, match=said):
        look_at(parquet(pa.table({"sensor_id": ["a"], **columns})))


def test_many_columns() -> None:
    """A thousand are taken, whether they are known or not, and no more."""
    names = ["sensor_id", "temperature", *map(str, range(998))]
    content = pa.table({name: ["a"] if name == "sensor_id" else [1.0] for name in names})
    assert decode(parquet(content), Format.PARQUET).batch.rows == 1
    with pytest.raises(MalformedBody, match="1,001 columns and may have 1,000"):
        look_at(parquet(content.append_column("more", [[1.0]])))
    with pytest.raises(MalformedBody, match="20,000 columns"):
        look_at(gzip.decompress(bombs.many_columns(20_000).body))
    with pytest.raises(MalformedBody, match="footer"):
        look_at(gzip.decompress(bombs.many_columns(100_000).body))


def test_many_row_groups() -> None:
    """More of them than pyarrow can read in bounds are refused."""
    content = pa.table({"sensor_id": ["a"] * 8_000, **{name: [1.0] * 8_000 for name in ("temperature", "humidity")}})
    with pytest.raises(MalformedBody, match=r"row groups|footer"):
        look_at(parquet(content, row_group_size=1, write_statistics=False, store_schema=False))


def test_page_that_is_larger_than_its_row_group_says() -> None:
    """The page's own header counts."""
    body = bombs.large_page(30 << 20).body
    assert pq.read_metadata(io.BytesIO(body)).row_group(0).total_byte_size == 1
    assert look_at(body).columns["sensor_id"].inflated_bytes > 30 << 20


@pytest.mark.parametrize("encoding", ["DELTA_LENGTH_BYTE_ARRAY", "DELTA_BYTE_ARRAY"])
def test_more_lengths_than_values(encoding: str) -> None:
    """Pyarrow makes room for as many as a page says it has."""
    content = pa.table({"sensor_id": ["a", "b"], "temperature": [1.0, 2.0]})
    body = parquet(
        content, compression="none", use_dictionary=False, column_encoding={"sensor_id": encoding}, store_schema=False
    )
    lengths = bytes([0x80, 1, 4])  # blocks of 128, each in four
    assert lengths + b"\2" in body
    assert decode(body, Format.PARQUET).batch.rows == 2
    with pytest.raises(MalformedBody, match="more lengths than values"):
        decode(body.replace(lengths + b"\2", lengths + b"\x7f"), Format.PARQUET)


@pytest.mark.parametrize(
    "written",
    [
        b"",
        b"\x15",
        b"\x15" + b"\xff" * 11,
        b"\x18\x7f",
        b"\x19\xfc\xff\x7f",
        b"\x1c" * 100,
        b"\x15\x02\x05\x02\x02",
        b"\x1b\x7f\x88",
        b"\x1d\0\0",
    ],
)
def test_thrift_that_is_none(written: bytes) -> None:
    """Thrift that is cut off, too wide, too deep or out of order is refused, and takes no more than its bytes."""
    with pytest.raises(ValueError, match=r"early|bits|deeply|twice|no type"):
        CompactReader(written, 0, len(written)).skip(STRUCT)


@given(st.data())
@settings(max_examples=300)
def test_damaged_footer(data: st.DataObject) -> None:
    """A damaged footer is read, or refused in one of two ways."""
    body = bytearray(parquet(pa.table({"sensor_id": ["a"] * 3, "temperature": [1.0] * 3}), store_schema=False))
    for _ in range(data.draw(st.integers(1, 3))):
        body[data.draw(st.integers(0, len(body) - 9))] = data.draw(st.integers(0, 255))
    with suppress(MalformedBody, ValueError):
        look_at(bytes(body))
