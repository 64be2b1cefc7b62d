"""A file's blocks hold what the file holds, wherever it is cut: at the end of a record."""

import csv
import io
import re
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import ConfigurationError
from app.imports.files import MAX_RECORD_BYTES, Layout, blocks, end_of_csv_record, end_of_line, format_of
from app.ingest.decode.readings import Format
from tests.unit.ingest.decode import bodies

fields = st.lists(st.sampled_from([*'ab,"\n é', "\r\n"]), max_size=6).map("".join)
records = st.lists(st.lists(fields, min_size=2, max_size=3), max_size=12)
lines = st.lists(st.text(st.sampled_from("ab{}\r "), max_size=5), max_size=12)


def as_csv(rows: list[list[str]], line_end: str) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator=line_end).writerows(rows)
    return text.getvalue().encode()


def read(text: bytes) -> list[list[str]]:
    return list(csv.reader(io.StringIO(text.decode(), newline="")))


def pieces_of(text: bytes, size: int, end_of_record: Callable[[bytes], int]) -> list[bytes]:
    """A text as it is cut when it is read ``size`` bytes at a time."""
    pieces, rest = [], b""
    for start in range(0, len(text), size):
        rest += text[start : start + size]
        end = end_of_record(rest)
        pieces.append(rest[:end])
        rest = rest[end:]
    return [*pieces, rest]


@given(records, st.sampled_from(["\n", "\r\n"]), st.integers(1, 30))
def test_a_csv_is_cut_between_records_and_never_within_one(rows: list[list[str]], line_end: str, size: int) -> None:
    text = as_csv(rows, line_end)
    pieces = pieces_of(text, size, end_of_csv_record)
    assert b"".join(pieces) == text
    assert [record for piece in pieces for record in read(piece)] == read(text) == rows


@given(records, st.integers(0, 200))
def test_as_much_of_a_csv_is_taken_as_has_whole_records(rows: list[list[str]], length: int) -> None:
    whole = [as_csv([row], "\n") for row in rows]
    start = b"".join(whole)[:length]
    ends = [0]
    for record in whole:
        ends.append(ends[-1] + len(record))
    assert end_of_csv_record(start) == max(end for end in ends if end <= len(start))


def test_a_quote_that_is_never_closed_costs_no_more_memory_than_its_bound() -> None:
    text = b'a,"b\n' + b"c,d\n" * (MAX_RECORD_BYTES // 4)
    assert end_of_csv_record(text[:MAX_RECORD_BYTES]) == 0
    assert end_of_csv_record(text) == len(text)


@given(lines, st.integers(1, 30))
def test_lines_are_cut_between_lines(texts: list[str], size: int) -> None:
    text = "\n".join(texts).encode()
    pieces = pieces_of(text, size, end_of_line)
    assert b"".join(pieces) == text
    assert all(piece.endswith(b"\n") for piece in pieces[:-1] if piece)
    assert b"\n" not in pieces[-1]


@pytest.mark.parametrize(
    ("name", "format_"),
    [
        ("a.csv", Format.CSV),
        ("a.b.CSV.gz", Format.CSV),
        ("a.csv.zst", Format.CSV),
        ("a.ndjson", Format.NDJSON),
        ("a.jsonl.gz", Format.NDJSON),
        ("a.parquet", Format.PARQUET),
    ],
)
def test_the_name_tells_the_format(name: str, format_: Format) -> None:
    assert format_of(Path(name)) is format_


@pytest.mark.parametrize("name", ["a", "a.txt", "a.gz", "a.csv.bz2", "a.parquet.gz", ".csv", "a.json"])
def test_a_name_that_tells_no_format_is_refused_with_those_that_do(name: str) -> None:
    with pytest.raises(ConfigurationError, match=r"\.csv"):
        format_of(Path(name))


def test_a_column_of_the_file_gets_our_name_and_one_in_its_place_another() -> None:
    layout = Layout({"sensor_id": "origin", "time": "sensor_id"})
    assert [layout.ours(name) for name in ("origin", "sensor_id", "time", "temperature")] == [
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
        (Layout({"sensor_id": "orign"}), "no column 'orign', which --sensor orign names"),
        (Layout({"time": "nope"}), "no column 'nope', which --time nope names"),
        (
            Layout({"sensor_id": "origin", "temperature": "temq"}),
            "no column 'temq', which --column temperature=temq names",
        ),
        (
            Layout({"sensor_id": "origin"}, frozenset(["temperature"])),
            "no column 'temperature', which --fahrenheit temperature names",
        ),
    ],
)
@pytest.mark.parametrize("name", IN_EVERY_FORMAT)
def test_an_option_that_names_no_column_of_the_file_ends_it_before_the_first_block(
    tmp_path: Path, name: str, layout: Layout, said: str
) -> None:
    (tmp_path / name).write_bytes(IN_EVERY_FORMAT[name])
    with pytest.raises(ConfigurationError) as raised:
        next(blocks(tmp_path / name, layout))
    assert said in str(raised.value)
    _, _, columns = str(raised.value).partition("Its columns: ")
    assert sorted(re.findall(r"\w+", columns)) == ["origin", "temp", "time"]


@pytest.mark.parametrize("name", IN_EVERY_FORMAT)
def test_a_column_may_be_in_some_readings_only_and_in_fahrenheit_under_its_own_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(IN_EVERY_FORMAT[name])
    layout = Layout({"sensor_id": "origin", "temperature": "temp"}, frozenset(["temperature"]))
    assert list(blocks(tmp_path / name, layout))


def test_columns_that_a_message_leaves_out_are_marked(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(",".join(f"c{number}" for number in range(31)) + "\n")
    with pytest.raises(ConfigurationError, match="'c29', …"):
        next(blocks(tmp_path / "a.csv", Layout({"time": "nope"})))


def test_a_byte_order_mark_and_blank_lines_hide_no_column_of_ndjson(tmp_path: Path) -> None:
    (tmp_path / "a.ndjson").write_bytes(b'\xef\xbb\xbf\n \n{"station": "a", "temperature": 1}\n')
    (block,) = blocks(tmp_path / "a.ndjson", Layout({"sensor_id": "station"}))
    assert block.body.split() == [b'{"sensor_id":"a","temperature":1}']
