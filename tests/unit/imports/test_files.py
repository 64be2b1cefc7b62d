"""A file's blocks hold everything in the file, and are cut at the ends of records."""

import gzip
import re
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import ConfigurationError
from app.imports.files import BLOCK_BYTES, Block, Cut, end_of_line, format_of, open_file
from app.imports.layout import ColumnMapping
from app.ingest.decode.readings import Format
from tests.support import bodies

HEADER = b"sensor_id,time,temperature\n"
lines = st.lists(st.text(st.sampled_from("ab{}\r "), max_size=5), max_size=12)


def compressed_by_zstd(text: bytes) -> bytes:
    return bytes(pa.compress(text, codec="zstd", asbytes=True))


def read(path: Path, layout: ColumnMapping | None = None) -> list[Block]:
    """Return all blocks of a file."""
    with open_file(path, layout or ColumnMapping()) as file:
        return list(iter(file.next_block, None))


@given(lines, st.integers(1, 30))
def test_cuts_between_lines(texts: list[str], size: int) -> None:
    """NDJSON is cut between lines and never within one."""
    text = "\n".join(texts).encode()
    pieces, rest = [], b""
    for start in range(0, len(text), size):
        rest += text[start : start + size]
        end = end_of_line(rest)
        pieces.append(rest[:end])
        rest = rest[end:]
    assert b"".join(pieces) + rest == text
    assert all(piece.endswith(b"\n") for piece in pieces if piece)
    assert b"\n" not in rest


def test_stray_quotes_move_no_cut(tmp_path: Path) -> None:
    """A stray quote moves no cut: every block but the last ends at the last line that fits, however large the file."""
    line = b'"a, ""b""\n",2013-01-01,1\n'
    rows = 2 * BLOCK_BYTES // len(line)
    for name, stray in (("none", line), ("one", b'"a,2013-01-01,1\n')):
        (tmp_path / f"{name}.csv").write_bytes(HEADER + line * 1_000 + stray + line * rows)
    sizes = [[len(block.content) for block in read(tmp_path / f"{name}.csv")] for name in ("none", "one")]
    assert len(sizes[0]) == len(sizes[1]) == 3
    for size in (*sizes[0][:-1], *sizes[1][:-1]):
        assert BLOCK_BYTES - 2 * len(line) - len(HEADER) < size < BLOCK_BYTES + 2 * len(line)


def test_a_quote_that_is_never_closed(tmp_path: Path) -> None:
    """A quote that is never closed costs no more memory than its bound, and no row but its own."""
    line = b"c,2013-01-01,1\n"
    rows = 3 * BLOCK_BYTES // len(line)
    (tmp_path / "a.csv").write_bytes(HEADER + b'"a,2013-01-01,1\n' + line * rows)
    blocks = read(tmp_path / "a.csv")
    assert max(len(block.content) for block in blocks) <= BLOCK_BYTES
    assert sum(block.content.count(b"\n") for block in blocks) == 1 + rows


def test_the_last_line_without_an_end_is_a_block_of_its_own(tmp_path: Path) -> None:
    """A line that may still be written is not mixed with those before it."""
    (tmp_path / "a.csv").write_bytes(HEADER + b"a,2013-01-01,1\nb,2013-01-01,2")
    assert [block.content for block in read(tmp_path / "a.csv")] == [b"a,2013-01-01,1\n", b"b,2013-01-01,2"]


@pytest.mark.parametrize("name", ["a.csv", "a.CSV.GZ", "a.ndjson", "a.jsonl.Zst"])
def test_an_earlier_cut_comes_again(tmp_path: Path, name: str) -> None:
    """A block that began and ended here before is read again as it was, if it is still there."""
    codecs: dict[str, Callable[[bytes], bytes]] = {"gz": gzip.compress, "zst": compressed_by_zstd}
    codec = codecs.get(name.lower().rpartition(".")[2], bytes)
    rows = [b'{"sensor_id":"a","time":"2013-01-01","temperature":%d}\n' % number for number in range(3)]
    header = b"" if "json" in name else HEADER
    if header:
        rows = [b"a,2013-01-01,%d\n" % number for number in range(3)]
    (tmp_path / name).write_bytes(codec(header + b"".join(rows)))
    with open_file(tmp_path / name, ColumnMapping()) as file:
        first = file.next_block([Cut.of(rows[1]), Cut(9, b""), Cut.of(rows[0]), Cut(1 << 20, b"")])
        second = file.next_block([Cut.of(rows[0])])
        assert first is not None
        assert second is not None
        assert (first.content, second.content) == (rows[0], rows[1] + rows[2])
        assert file.next_block([]) is None


@pytest.mark.parametrize(
    ("name", "format_"),
    [
        ("a.csv", Format.CSV),
        ("a.b.CSV.gz", Format.CSV),
        ("a.csv.zst", Format.CSV),
        ("a.ndjson", Format.NDJSON),
        ("a.jsonl.gz", Format.NDJSON),
        ("a.b.csv.GZ", Format.CSV),
        ("a.tsv", Format.CSV),
        ("a.json.gz", Format.JSON),
        ("a.arrow", Format.ARROW_STREAM),
        ("a.feather", Format.ARROW_STREAM),
        ("a.parquet", Format.PARQUET),
    ],
)
def test_the_name_tells_the_format(name: str, format_: Format) -> None:
    assert format_of(Path(name)) is format_


@pytest.mark.parametrize("name", ["a", "a.txt", "a.gz", "a.csv.bz2", "a.parquet.gz", ".csv", "a.arrow.zst", "gz.gz"])
def test_a_name_that_tells_no_format_is_refused_with_those_that_do(name: str) -> None:
    with pytest.raises(ConfigurationError, match=r"\.csv"):
        format_of(Path(name))


def test_a_column_of_the_file_gets_our_name_and_one_in_its_place_another() -> None:
    layout = ColumnMapping({"sensor_id": "origin", "time": "sensor_id"})
    assert [layout.renames.get(name, name) for name in ("origin", "sensor_id", "time", "temperature")] == [
        *("sensor_id", "time", "time of the file", "temperature")
    ]


RECORDS = [{"origin": "EWR", "time": 0}, {"origin": "JFK", "time": 0, "temp": 39.02}]
IN_EVERY_FORMAT = {
    "a.csv": b" origin ,time,temp\nEWR,0,\nJFK,0,39.02\n",
    "a.ndjson": b"nothing\n" + bodies.ndjson(RECORDS),
    "a.parquet": bodies.parquet(pa.Table.from_pylist(RECORDS[::-1])),
}


@pytest.mark.parametrize(
    ("layout", "said"),
    [
        (ColumnMapping({"sensor_id": "orign"}), "no column 'orign', which --sensor orign names"),
        (ColumnMapping({"time": "nope"}), "no column 'nope', which --time nope names"),
        (
            ColumnMapping({"sensor_id": "origin", "temperature": "temq"}),
            "no column 'temq', which --column temperature=temq names",
        ),
        (
            ColumnMapping({"sensor_id": "origin"}, frozenset(["temperature"])),
            "no column 'temperature', which --fahrenheit temperature names",
        ),
    ],
)
@pytest.mark.parametrize("name", IN_EVERY_FORMAT)
def test_an_option_that_names_no_column_of_the_file_ends_it_before_the_first_block(
    tmp_path: Path, name: str, layout: ColumnMapping, said: str
) -> None:
    (tmp_path / name).write_bytes(IN_EVERY_FORMAT[name])
    with pytest.raises(ConfigurationError) as raised:
        read(tmp_path / name, layout)
    assert said in str(raised.value)
    _, _, columns = str(raised.value).partition("Its columns: ")
    assert sorted(re.findall(r"\w+", columns)) == ["origin", "temp", "time"]


@pytest.mark.parametrize("name", IN_EVERY_FORMAT)
def test_a_column_may_be_in_some_readings_only_and_in_fahrenheit_under_its_own_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(IN_EVERY_FORMAT[name])
    layout = ColumnMapping({"sensor_id": "origin", "temperature": "temp"}, frozenset(["temperature"]))
    assert read(tmp_path / name, layout)


def test_columns_that_a_message_leaves_out_are_marked(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(",".join(f"c{number}" for number in range(31)) + "\n")
    with pytest.raises(ConfigurationError, match="'c29', …"):
        read(tmp_path / "a.csv", ColumnMapping({"time": "nope"}))


def test_a_byte_order_mark_and_blank_lines_hide_no_column_of_ndjson(tmp_path: Path) -> None:
    text = b'\xef\xbb\xbf\n \n{"station": "a", "time": 0, "temperature": 1}\n'
    (tmp_path / "a.ndjson").write_bytes(text)
    (block,) = read(tmp_path / "a.ndjson", ColumnMapping({"sensor_id": "station"}))
    assert block.content == text


TABLE = {"sensor_id": ["a"], "temperature": [21.0]}
TIMELESS = {
    "a.csv": "sensor_id,{},temperature\na,1,21\n",
    "a.tsv": "sensor_id\t{}\ttemperature\na\t1\t21\n",
    "a.ndjson": '{{"sensor_id": "a", "{}": 1, "temperature": 21}}\n',
    "a.json": '{{"sensor_id": ["a"], "{}": [1], "temperature": [21]}}',
}


@pytest.mark.parametrize("name", ["timestamp", "ts", "datetime", "Time", "_time", "Date Time"])
@pytest.mark.parametrize("file", [*TIMELESS, "a.parquet", "a.arrow"])
def test_time_by_another_name(tmp_path: Path, file: str, name: str) -> None:
    """Without a column of times nothing is stored. The message names a likely column and the option for it."""
    if file in TIMELESS:
        (tmp_path / file).write_text(TIMELESS[file].format(name))
    else:
        table = pa.table({**TABLE, name: [1]})
        (tmp_path / file).write_bytes((bodies.parquet if "parquet" in file else bodies.arrow_stream)(table))
    with pytest.raises(ConfigurationError) as raised:
        read(tmp_path / file)
    assert f"has no column 'time': if {name!r} is it, give --time " in str(raised.value)
    assert read(tmp_path / file, ColumnMapping({"time": name}))


def test_columns_that_no_reading_is_without(tmp_path: Path) -> None:
    """A file without sensors, times or values is refused, with the options that would help."""
    for header, said in (
        ("Station,time,temperature", "no column 'sensor_id': if 'Station' is it, give --sensor Station"),
        ("x,time,temperature", "no column 'sensor_id': name it with --sensor COLUMN, or its only sensor with"),
        ("sensor_id,x,temperature", "no column 'time': name it with --time COLUMN"),
        ("sensor_id,time,temp", "none of temperature, humidity, pressure: name at least one"),
    ):
        (tmp_path / "a.csv").write_text(f"{header}\na,b,1\n")
        with pytest.raises(ConfigurationError, match=said):
            read(tmp_path / "a.csv")
    (tmp_path / "a.csv").write_text("sensor_id,time,temperature\n")
    with pytest.raises(ConfigurationError, match="leave --sensor-name out"):
        read(tmp_path / "a.csv", ColumnMapping(sensor_name="a"))


def test_lines_in_a_json_file(tmp_path: Path) -> None:
    """A .json that has a reading a line, as many programs write it, is read so."""
    row = b'{"sensor_id": "a", "time": 1, "temperature": 21}'
    for content, format_ in ((row + b"\n" + row, Format.NDJSON), (b"[" + row + b"]", Format.JSON), (row, Format.JSON)):
        (tmp_path / "a.json").write_bytes(content)
        assert next(block.format for block in read(tmp_path / "a.json")) is format_
