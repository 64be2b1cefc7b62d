"""The report has rejected rows as they stand in the file, and can be imported itself."""

import csv
from pathlib import Path

import pyarrow as pa
import pytest

from app.imports.layout import ColumnMapping
from app.imports.rejects import report_path
from tests.support import bodies
from tests.support.importing import Taken, imported

LAYOUT = ColumnMapping({"sensor_id": "station", "time": "when"})
ROWS: list[dict[str, object]] = [
    {"station": "a", "when": "2013-01-01", "temperature": 1.5, "note": "x"},
    {"station": 'b "c", d', "when": "2013-01-02", "temperature": None, "note": "line\nbreak"},
    {"station": "e", "when": "yesterday", "temperature": 2.5, "note": None},
]
FILES = {
    "a.csv": b"station,when,temperature,note\na,2013-01-01,1.5,x\n"
    b'"b ""c"", d",2013-01-02,,"line\nbreak"\ne,yesterday,2.5,\n',
    "a.ndjson": bodies.ndjson(ROWS),
    "a.json": bodies.json_array(ROWS),
    "a.parquet": bodies.parquet(pa.Table.from_pylist(ROWS)),
    "a.arrow": bodies.arrow_stream(pa.Table.from_pylist(ROWS), rows_a_batch=2),
}


def report_of(path: Path) -> list[dict[str, str]]:
    with report_path(path).open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("name", FILES)
def test_rows_as_the_file_has_them(tmp_path: Path, name: str) -> None:
    """Rejected rows keep the file's own columns, with number and reason, and are imported once corrected."""
    (tmp_path / name).write_bytes(FILES[name])
    intake = Taken()
    assert imported(tmp_path / name, LAYOUT, intake).rejected == 2
    report = report_of(tmp_path / name)
    originals = [{column: "" if value is None else str(value) for column, value in row.items()} for row in ROWS[1:]]
    assert [{column: row[column] for column in ROWS[0]} for row in report] == originals
    assert [(row["rejected_row"], row["rejected_text"]) for row in report] == [("2", ""), ("3", "")]
    assert report[1]["rejected_reason"].startswith("time should be")

    corrected = report_path(tmp_path / name)
    corrected.write_text(corrected.read_text().replace("yesterday", "2013-01-03"))
    outcome = imported(corrected, LAYOUT, intake)
    assert (outcome.stored, outcome.rejected, list(outcome.unknown_columns)) == (1, 1, ["note"])
    assert [reading.sensor for reading in intake.readings] == ["a", "e"]
    assert list(report_of(corrected)[0]) == [*ROWS[0], "rejected_row", "rejected_reason", "rejected_text"]


@pytest.mark.parametrize(
    ("name", "lines", "texts"),
    [
        ("a.csv", ["station,when,temperature", "a,2013-01-01", 'b,2013-01-01,"1'], ["a,2013-01-01", 'b,2013-01-01,"1']),
        (
            "a.ndjson",
            ['{"station":"a","when":"2013-01-01","temperature":1}', "nothing", "[1]"],
            ["nothing", "[1]"],
        ),
    ],
)
def test_rows_without_columns(tmp_path: Path, name: str, lines: list[str], texts: list[str]) -> None:
    """Rows that have no columns are reported as they are."""
    (tmp_path / name).write_text("\n".join(lines))
    imported(tmp_path / name, LAYOUT)
    assert [(row["rejected_text"], row["station"]) for row in report_of(tmp_path / name)] == [
        (text, "") for text in texts
    ]


def test_fields_that_came_late(tmp_path: Path) -> None:
    """A row of NDJSON with fields that the first ones had not is shown whole."""
    rows = [{"station": "a", "when": "2013-01-01", "temperature": 1}] * 80_000
    late = {"station": "a", "when": "x", "temperature": 1, "late": [1, None]}
    (tmp_path / "a.ndjson").write_bytes(bodies.ndjson([*rows, late]))
    imported(tmp_path / "a.ndjson", LAYOUT)
    (row,) = report_of(tmp_path / "a.ndjson")
    assert (row["rejected_row"], row["when"], row["rejected_text"]) == (
        *("80001", "x"),
        '{"station": "a", "when": "x", "temperature": 1, "late": [1, null]}',
    )
