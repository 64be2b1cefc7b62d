"""The importer with a pipeline that accepts everything, and without one."""

import asyncio
import gzip
import hashlib
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pytest

from app.errors import BufferFull, ConfigurationError
from app.imports.layout import ColumnMapping
from app.ingest.decode.timestamps import Precision
from app.ingest.idempotency import StoredResult
from app.ingest.request import WriteRequest
from app.ingest.result import WriteOutcome
from tests.support import bodies
from tests.support.importing import Taken, imported, importer

CSV = b"sensor_id,time,temperature\n"
OLD_KEY = "c16be58e0a83a77db2fa4078a0c3d34f6d286c437b8a84b98b3fefa7bafa544d:0:0"
"""The key of the file below as it was when all files were known by their whole content."""


def test_old_keys(tmp_path: Path) -> None:
    """A text that was imported when files were known by their whole content is still found."""
    (tmp_path / "a.csv").write_bytes(b"station,time,temperature\na,1000,212\n")
    layout = ColumnMapping({"sensor_id": "station"}, frozenset(["temperature"]), Precision.MS)
    taken = Taken()
    taken.kept[OLD_KEY] = StoredResult(b"1", b"", datetime(2023, 7, 12, tzinfo=UTC))
    assert (imported(tmp_path / "a.csv", layout, taken).found, taken.readings) == (1, [])


def test_keys_of_a_text(tmp_path: Path) -> None:
    """Records never expire: what changes their keys has every file stored again."""
    (tmp_path / "a.csv").write_bytes(CSV + b"a,1000000000,21\n")
    taken = Taken()
    imported(tmp_path / "a.csv", ColumnMapping(), taken)
    assert list(taken.kept) == ["51b68bcbb1bf12b1bc851fef278873d09239f8a4f7b1a80dd1c20d5ef2a8ec90:0:0"]


def test_keys_of_parquet(tmp_path: Path) -> None:
    """Files that don't grow are still recognised by their whole content."""
    table = pa.table({"sensor_id": ["a"], "time": [1_000_000_000], "temperature": [21.0]})
    (tmp_path / "a.parquet").write_bytes(bodies.parquet(table))
    layout, taken = ColumnMapping(precision=Precision.S), Taken()
    imported(tmp_path / "a.parquet", layout, taken)
    digest = hashlib.sha256((tmp_path / "a.parquet").read_bytes() + b"([], [], <Precision.S: 's'>)").hexdigest()
    assert list(taken.kept) == [f"{digest}:0:0"]


def row(number: int) -> bytes:
    return b"a,%d,%d\n" % (1_000_000_000 + number, number)


def test_wide_file(tmp_path: Path) -> None:
    """The bounds of a request's columns, and of their names in an answer, do not apply to files."""
    columns = {"sensor_id": ["a"], "time": [1_000_000_000], "temperature": [21.0]}
    table = pa.table(columns | {f"channel {number}": [1.0] for number in range(2_000)})
    (tmp_path / "a.parquet").write_bytes(bodies.parquet(table.replace_schema_metadata({"pandas": "x" * (1 << 20)})))
    outcome = imported(tmp_path / "a.parquet", ColumnMapping())
    assert (outcome.stored, outcome.rejected) == (1, 0)


@pytest.mark.parametrize("steps", [[3, 5, 5, 9], [0, 1, 2], [7, 7]])
def test_a_log_that_grows(tmp_path: Path, steps: list[int]) -> None:
    """A log continues where its import ended, even renamed or compressed, and nothing is stored twice."""
    taken, before = Taken(), 0
    for step, rows in enumerate(steps):
        text = CSV + b"".join(map(row, range(rows)))
        path = tmp_path / (f"{step}.csv.gz" if step % 2 else f"{step}.csv")
        path.write_bytes(gzip.compress(text) if step % 2 else text)
        outcome = imported(path, ColumnMapping(), taken)
        assert (outcome.stored, outcome.found) == (rows - before, before)
        before = rows
    assert [reading.temperature for reading in taken.readings] == list(range(steps[-1]))


def test_a_log_cut_within_a_line(tmp_path: Path) -> None:
    """A line that was imported before it was complete is stored once it is, and the output says so."""
    taken = Taken()
    (tmp_path / "a.csv").write_bytes(CSV + row(0) + b"a,1000000001,1")
    assert imported(tmp_path / "a.csv", ColumnMapping(), taken).stored == 2
    (tmp_path / "a.csv").write_bytes(CSV + row(0) + b"a,1000000001,17\n" + row(2))
    outcome = imported(tmp_path / "a.csv", ColumnMapping(), taken)
    assert (outcome.found, [reading.temperature for reading in taken.readings]) == (1, [0, 1, 17, 2])
    assert any("a,1000000001,1'" in note for note in outcome.notes)
    # It is as it was where only the end of the line was missing.
    (tmp_path / "b.csv").write_bytes(CSV + row(0) + row(1)[:-1])
    imported(tmp_path / "b.csv", ColumnMapping(), taken)
    (tmp_path / "b.csv").write_bytes(CSV + row(0) + row(1) + row(2))
    outcome = imported(tmp_path / "b.csv", ColumnMapping(), taken)
    assert (outcome.stored, outcome.found, outcome.notes) == (1, 2, [])


def test_logs_with_one_beginning(tmp_path: Path) -> None:
    """Two logs that begin alike each have their own rest stored."""
    taken = Taken()
    for rest in (b"b,1000000000,1\n", b"c,1000000000,1\n", b"b,1000000000,1\n"):
        (tmp_path / "a.csv").write_bytes(CSV + row(0))
        imported(tmp_path / "a.csv", ColumnMapping(), taken)
        (tmp_path / "a.csv").write_bytes(CSV + row(0) + rest)
        imported(tmp_path / "a.csv", ColumnMapping(), taken)
    assert [reading.sensor for reading in taken.readings] == ["a", "b", "c"]


@pytest.mark.parametrize("name", ["a.csv", "a.ndjson", "a.parquet", "a.json"])
def test_what_was_forgotten_is_stored_again(tmp_path: Path, name: str) -> None:
    """After forget, a file of any format counts as never imported. Other files are still known."""
    reading = {"sensor_id": "a", "time": 1_000_000_000, "temperature": 21.0}
    contents = {
        "a.csv": CSV + row(0),
        "a.ndjson": bodies.ndjson([reading]),
        "a.parquet": bodies.parquet(pa.Table.from_pylist([reading])),
        "a.json": bodies.json_array([reading]),
    }
    taken = Taken()
    for each, content in contents.items():
        (tmp_path / each).write_bytes(content)
        assert imported(tmp_path / each, ColumnMapping(), taken).stored == 1
    assert asyncio.run(importer(ColumnMapping(), taken).forget(tmp_path / name))
    assert not asyncio.run(importer(ColumnMapping(), taken).forget(tmp_path / name))
    for each in contents:
        outcome = imported(tmp_path / each, ColumnMapping(), taken)
        assert (outcome.stored, outcome.found) == ((1, 0) if each == name else (0, 1))


def test_what_options_make_another_file(tmp_path: Path) -> None:
    """Options that decide what is stored are part of what a file is known by."""
    (tmp_path / "a.csv").write_bytes(b"time,temperature\n2013-07-12T12:00:00,21\n")
    taken = Taken()
    for layout in (
        ColumnMapping(sensor_name="a"),
        ColumnMapping(sensor_name="b"),
        ColumnMapping(sensor_name="a", time_zone="Europe/Madrid"),
        ColumnMapping(sensor_name="a", time_format="%Y-%m-%dT%H:%M:%S"),
        ColumnMapping(sensor_name="a", fahrenheit=frozenset(["temperature"])),
    ):
        assert imported(tmp_path / "a.csv", layout, taken).stored == 1
        assert imported(tmp_path / "a.csv", layout, taken).found == 1
    for layout in (
        ColumnMapping(sensor_name="a", missing=frozenset(["-9"])),
        ColumnMapping(sensor_name="a", separator=",", has_decimal_comma=True, skip_lines=0),
    ):
        assert imported(tmp_path / "a.csv", layout, taken).found == 1


def test_rows_that_are_no_longer_rejected(tmp_path: Path) -> None:
    """Rows that an option would now accept are not stored from the same file, but from the file of rejected rows."""
    text = b"sensor_id,time,temperature,humidity\na,1000000000,1,50\na,1000000001,--,51\n"
    (tmp_path / "a.csv").write_bytes(text)
    taken, layout = Taken(), ColumnMapping(missing=frozenset(["--"]))
    assert imported(tmp_path / "a.csv", ColumnMapping(), taken).rejected == 1
    with pytest.raises(ConfigurationError, match="nothing was stored twice"):
        imported(tmp_path / "a.csv", layout, taken)


@pytest.mark.parametrize("line", [b"a,x,%d\n", b"a,,\n", b'a,1,"\n'])
def test_a_tail_of_nothing_but_rejected_rows(tmp_path: Path, line: bytes) -> None:
    """Rows added after a rejected tail are stored once."""
    taken = Taken()
    tail = line % 7 if b"%d" in line else line
    (tmp_path / "a.csv").write_bytes(CSV + tail)
    assert imported(tmp_path / "a.csv", ColumnMapping(), taken).rejected == 1
    for _ in range(2):
        (tmp_path / "a.csv").write_bytes(CSV + tail + row(1) + row(2))
        assert imported(tmp_path / "a.csv", ColumnMapping(), taken).rejected == 1
    assert [reading.temperature for reading in taken.readings] == [1, 2]


class Full(Taken):
    """A pipeline that has no room at first, and then takes one part of another block before it has again."""

    def __init__(self) -> None:
        super().__init__()
        self.refusals = 1

    def submit(
        self,
        request: WriteRequest,
        on_result: Callable[[WriteOutcome], None],
    ) -> None:
        if self.refusals:
            self.refusals -= 1
            raise BufferFull("full")
        super().submit(request, on_result)


def test_a_full_buffer_keeps_the_order(tmp_path: Path) -> None:
    """A part that did not fit is stored before the parts that follow it in the file."""
    (tmp_path / "a.csv").write_bytes(CSV + b"".join(map(row, range(3))) + row(3)[:-1])
    taken = Full()
    assert imported(tmp_path / "a.csv", ColumnMapping(), taken).stored == 4
    assert [reading.temperature for reading in taken.readings] == [0, 1, 2, 3]
