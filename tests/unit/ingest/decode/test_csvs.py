"""CSVs that programs and loggers write, and where they may be cut."""

import csv
import io
import math
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.ingest.decode.csvs import decode_csv, end_of_records, records
from app.ingest.decode.dialect import CsvDialect
from app.ingest.decode.readings import Format, decode_readings
from tests.support.bodies import (
    WAYS,
    arrow_from,
    decode,
    json_array,
    many_rows,
    ndjson,
    options_of,
    places,
    rows_of,
)
from tests.support.reference import KNOWN

NAMES = ["sensor_id", "time", "temperature"]
COMMAS = CsvDialect()
NO_LIMIT = 1 << 30


@pytest.fixture(params=[way for way in WAYS if way != "of one shape"])
def each_way(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run a test once with each reader."""
    with arrow_from(*WAYS[request.param]):
        yield


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize(
    "stray",
    ['a,,"1', 'a",,1', '"a,,1', 'a,"2023,1', '"a,,1\nb,,2\nc,,"3', 'a,,"1\nb,,2\nc,,3"', '"a"b,,1'],
)
def test_stray_quotes(stray: str) -> None:
    """A stray quote costs the rows that it stands in, and none of those between, before or after."""
    rows = [*stray.split("\n"), "z,,9"]
    decoded = decode(f"sensor_id,time,temperature\ny,,8\n{stray}\nz,,9\n".encode(), Format.CSV)
    good = [row[0] for row in rows if '"' not in row]
    assert [row[0] for row in rows_of(decoded)] == ["y", *good]
    assert decoded.rejected == sum('"' in row for row in rows)
    assert [fault.value for fault in decoded.errors] == [row for row in rows if '"' in row]


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize("mark", ["NAN", "N/A", "#N/A", "None", "-nan", "n/a", "<NA>"])
def test_marks_for_missing(mark: str) -> None:
    """A usual mark for a missing value costs a row no other value."""
    decoded = decode(f"sensor_id,temperature,humidity\na,{mark},50\n".encode(), Format.CSV)
    assert [row[2:4] for row in rows_of(decoded)] == [(None, 50.0)]


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_separators(separator: str) -> None:
    """A file's separator and decimal comma are read, its marks of its own too, and 21.5 is then no number."""
    lines = ["sensor_id,temperature,humidity", '"a,",21#5,-1#25e1', "b,-9999,7", "c,21.5,7"]
    body = "\n".join(lines).replace(",", separator).replace("#", ",").encode()
    sent = decode_csv(body, options_of(dialect=CsvDialect(separator, decimal_comma=True, missing=frozenset(["-9999"]))))
    assert sent.columns["temperature"].to_pylist() == [21.5, None, None]
    assert sent.columns["humidity"].to_pylist() == [-12.5, 7.0, 7.0]
    assert list(sent.faults["temperature"]) == [2]
    assert sent.columns["sensor_id"].to_pylist() == [f"a{separator}", "b", "c"]


fields = st.lists(st.sampled_from([*'ab;"\n é', "\r\n"]), max_size=6).map("".join)
row = st.tuples(fields, st.just("2023-07-12"), st.just("1"))


def as_csv(rows: list[tuple[str, str, str]], line_end: str) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator=line_end).writerows(rows)
    return text.getvalue().encode()


@given(st.lists(row, max_size=12), st.sampled_from(["\n", "\r\n"]), st.integers(0, 200))
def test_whole_records(rows: list[tuple[str, str, str]], line_end: str, length: int) -> None:
    """A cut lies after the last record that is whole."""
    ends = [0]
    for each in rows:
        ends.append(ends[-1] + len(as_csv([each], line_end)))
    start = as_csv(rows, line_end)[:length]
    assert end_of_records(start, COMMAS, NAMES, max_bytes=NO_LIMIT) == max(end for end in ends if end <= len(start))


damaged = st.lists(
    st.sampled_from(['a,,"1', '"a,,1', "b,,2", '"c ""d""",,3', '"e\nf",,4', 'g",,5', '",', ""]), max_size=9
)


@given(damaged, st.integers(1, 40))
def test_cuts_of_a_damaged_csv(lines: list[str], size: int) -> None:
    """Stray quotes move no cut: the records are the same, however much is read at a time."""
    text = "".join(f"{line}\n" for line in lines).encode()
    found, rest = [], b""
    for start in range(0, len(text), size):
        rest += text[start : start + size]
        end = end_of_records(rest, COMMAS, NAMES, max_bytes=NO_LIMIT)
        found += fields_of(rest[:end])
        rest = rest[end:]
    assert found + fields_of(rest) == fields_of(text)


def fields_of(text: bytes) -> list[list[bytes] | None]:
    return [fields_ for fields_, _, _ in records(text, 0, COMMAS, NAMES)]


def test_a_quote_that_is_never_closed() -> None:
    """No more is read after a quote that isn't closed than the limit says."""
    text = b'b,,"1\n' + b"c,,2\n" * 100
    assert end_of_records(text, COMMAS, NAMES, max_bytes=1_000) == 0
    assert end_of_records(text, COMMAS, NAMES, max_bytes=100) == len(text)


def test_line_ends_of_old() -> None:
    """Lines may end with CR alone, also where a CR at the end of a block may be half of CR LF."""
    assert end_of_records(b"a,,1\rb,,2\rc,", COMMAS, NAMES, max_bytes=NO_LIMIT) == 10
    assert end_of_records(b"a,,1\rb,,2\r", COMMAS, NAMES, max_bytes=NO_LIMIT) == 5


@given(many_rows, st.sampled_from(["\n", "\r\n", "\n\n"]))
def test_renamed_fields(rows: list[dict[str, object]], newline: str) -> None:
    """Readings under other names are the same readings, and rejected for the same faults."""
    theirs = {name: f"{name} {number}" for number, name in enumerate(KNOWN)}
    terms = options_of(
        renames={name: ours for ours, name in theirs.items()} | {ours: f"{ours} of theirs" for ours in KNOWN}
    )
    renamed = [{theirs.get(name, name): value for name, value in row.items()} | {"time": math.nan} for row in rows]
    body = ndjson(renamed).replace(b"\n", newline.encode())
    expected, found = decode(ndjson(rows), Format.NDJSON), decode_readings(body, Format.NDJSON, terms)
    assert (rows_of(found), places(found)) == (rows_of(expected), places(expected))
    if rows:
        found = decode_readings(json_array(renamed), Format.JSON, terms)
        assert (rows_of(found), places(found)) == (rows_of(expected), places(expected))


def test_renamed_fields_of_json() -> None:
    """Fields of JSON are renamed by the decoder itself, whatever else is in their reading."""
    rows = b'{"s":"a","temp":1,"x":NaN}\n{"s":"b","temp":2,"sensor_id":"other","x":1e999}\n'
    terms = options_of(renames={"s": "sensor_id", "temp": "temperature", "sensor_id": "sensor_id of the file"})
    for form, body in (
        (Format.NDJSON, rows),
        (Format.JSON, b"[" + rows.strip().replace(b"\n", b",") + b"]"),
        (Format.JSON, b'{"s":["a","b"],"temp":[1,2],"sensor_id":[NaN,{}]}'),
    ):
        sent = decode_readings(body, form, terms)
        assert [each[:1] + each[2:3] for each in rows_of(sent)] == [("a", 1.0), ("b", 2.0)]
