"""Parquet's footers and page headers are trusted only as far as they are consistent."""

import gzip
import io
import struct
from contextlib import suppress

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import MalformedBody
from app.ingest.decode.columns import COLUMNS
from app.ingest.decode.pages import Pages, pages_of
from app.ingest.decode.readings import Format
from app.ingest.decode.thrift import STRUCT, CompactReader
from tests.attacks import bombs
from tests.support.bodies import decode, parquet
from tests.support.examples import examples
from tests.unit.ingest.decode import handmade

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
@examples(50)
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
        groups = [metadata.row_group(place).column(column.index) for place in range(metadata.num_row_groups)]
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


NUMBERS = handmade.Leaf(b"temperature", handmade.DOUBLE, handmade.page(struct.pack("<dd", 1.0, 2.0), values=2))
LARGE_BYTES = 30 << 20
LARGE = handmade.page(
    pa.compress(struct.pack("<I", LARGE_BYTES) + bytes(LARGE_BYTES), codec="zstd", asbytes=True),
    values=1,
    inflated_bytes=LARGE_BYTES + 4,
)
A_NAME = pa.compress(b"\1\0\0\0a", codec="zstd", asbytes=True)


def names(*pages: bytes) -> handmade.Leaf:
    return handmade.Leaf(b"sensor_id", handmade.BYTE_ARRAY, b"".join(pages), handmade.ZSTD)


def test_page_that_counts_twice() -> None:
    """A page has as many values as pyarrow sees in it: else the pages behind it would not be seen here."""
    other = handmade.fields(*[handmade.i32(number, 2) for number in range(1, 7)])
    first = handmade.page(A_NAME, values=1, inflated_bytes=5, more=[(8, handmade.STRUCT, other)])
    body = handmade.written([names(first, LARGE), NUMBERS], rows=2)
    assert pq.read_table(io.BytesIO(body), columns=["sensor_id"]).nbytes > LARGE_BYTES
    assert look_at(body).columns["sensor_id"].inflated_bytes > LARGE_BYTES


def test_field_that_comes_again() -> None:
    """No field is read twice, be it by a number that has 16 bits in other readers."""
    again = handmade.page(A_NAME, values=2, inflated_bytes=5, more=[(5, handmade.STRUCT, handmade.of_values(1))])
    body = handmade.written([names(again, LARGE), NUMBERS], rows=2)
    assert pq.read_table(io.BytesIO(body), columns=["sensor_id"]).nbytes > LARGE_BYTES
    with pytest.raises(ValueError, match="beyond all numbers"):
        look_at(body)


def test_column_without_a_type() -> None:
    """A column without a type is refused: pyarrow skips it, and the check would look at other columns than it reads."""
    body = handmade.written([NUMBERS], rows=2, before=handmade.element(b"empty", children=0))
    assert pq.read_schema(io.BytesIO(body)).names == ["empty", "temperature"]
    with pytest.raises(ValueError, match="without a type"):
        look_at(body)


def test_row_group_of_many_columns() -> None:
    """A row group has as many as the schema: pyarrow took a kilobyte for each of 240,000."""
    with pytest.raises(ValueError, match="other columns"):
        look_at(handmade.written([NUMBERS], rows=2, more_chunks=100))


def test_pages_that_overlap() -> None:
    """No page is read for two chunks, and no long header at all: 20 chunks of one of a megabyte took 3 s."""
    text = handmade.page(struct.pack("<I", 10_000) + bytes(10_000), values=1)
    leaf = handmade.Leaf(b"sensor_id", handmade.BYTE_ARRAY, text)
    assert look_at(handmade.written([leaf], rows=1)).rows == 1
    with pytest.raises(ValueError, match="overlap"):
        look_at(handmade.written([leaf], rows=1, groups=20))
    filler = 100, handmade.BINARY, b"\x80\x80\x01" + bytes(16_384)
    long_header = handmade.page(struct.pack("<dd", 1.0, 2.0), values=2, more=[filler])
    with pytest.raises(ValueError, match="early"):
        look_at(handmade.written([NUMBERS._replace(pages=long_header)], rows=2))


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


def test_compression_that_a_page_denies() -> None:
    """If a file names an old pyarrow as its writer, pyarrow inflates such a page, so its lengths differ."""
    lengths = bytes([0x80, 1, 4]) + b"\xff\xff\x7f" + bytes(94)  # two million, to who inflates them
    as_they_are = bytes([len(lengths), 20]) + lengths[:6] + bytes(2 * 94)  # 128, as they are
    assert pa.decompress(as_they_are, decompressed_size=len(lengths), codec="snappy", asbytes=True) == lengths
    with pytest.raises(ValueError, match="says it is not"):
        look_at(_in_delta_encoding(as_they_are, len(lengths)))
    assert look_at(_in_delta_encoding(lengths[:3] + bytes(97), 100)).rows == 200


def _in_delta_encoding(content: bytes, inflated_bytes: int) -> bytes:
    numbers = [handmade.i32(number, value) for number, value in enumerate((200, 0, 200, 6, 0, 0), 1)]
    own = handmade.fields(*numbers, (7, 2, b""))
    sizes = [handmade.i32(number, value) for number, value in enumerate((3, inflated_bytes, len(content)), 1)]
    pages = handmade.fields(*sizes, (8, handmade.STRUCT, own)) + content
    return handmade.written([handmade.Leaf(b"sensor_id", handmade.BYTE_ARRAY, pages, codec=1)], rows=200)


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
@examples(300)
def test_damaged_footer(data: st.DataObject) -> None:
    """A damaged footer is read, or refused in one of two ways."""
    body = bytearray(parquet(pa.table({"sensor_id": ["a"] * 3, "temperature": [1.0] * 3}), store_schema=False))
    for _ in range(data.draw(st.integers(1, 3))):
        body[data.draw(st.integers(0, len(body) - 9))] = data.draw(st.integers(0, 255))
    with suppress(MalformedBody, ValueError):
        look_at(bytes(body))
