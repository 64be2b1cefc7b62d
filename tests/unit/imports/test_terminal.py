"""The output of an import."""

import asyncio
from pathlib import Path

import pytest

from app.imports.layout import ColumnMapping
from app.imports.terminal import import_file
from tests.support.importing import importer


def printed(path: Path, capsys: pytest.CaptureFixture[str], layout: ColumnMapping | None = None) -> list[str]:
    """Return the output about a file that is only checked, in real time, since threads read it."""
    asyncio.run(import_file(path, importer(layout or ColumnMapping(), None), store_again=False))
    return capsys.readouterr().out.splitlines()


def test_columns_that_are_not_stored_are_named_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.csv").write_text("sensor_id,time,temperature,temp,dewp\na,1373639445,1,2,3\nb,1373639445,1,2,3\n")
    *_, last = printed(tmp_path / "a.csv", capsys, ColumnMapping({"temperature": "temp"}))
    assert last == "a.csv: columns not stored: 'temperature of the file', 'dewp'"
    (tmp_path / "a.csv").write_text("sensor_id,time,temperature\na,1373639445,1\nb,1373639445,1\n")
    assert len(printed(tmp_path / "a.csv", capsys)) == 2


@pytest.mark.parametrize(("count", "said"), [(0, "0 readings "), (1, "1 reading "), (2, "2 readings ")])
def test_one_is_a_reading_and_others_are_readings(
    count: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.csv").write_text("sensor_id,time,temperature\n" + "a,1373639445,1\n" * count)
    assert printed(tmp_path / "a.csv", capsys)[0].startswith(f"a.csv: {said}")


def test_first_and_last_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The span of what is stored is shown, without the rows that are rejected."""
    times = ["2023-07-12T14:30:45.5Z", "2013-01-01 00:00", "1973-01-01", "2013-06-01"]
    lines = [f"a,{time},{'x' if time < '2000' else 1}\n" for time in times]
    (tmp_path / "a.csv").write_text("sensor_id,time,temperature\n" + "".join(lines))
    assert "a.csv: times from 2013-01-01T00:00:00Z to 2023-07-12T14:30:45.500000Z" in printed(
        tmp_path / "a.csv", capsys
    )


def test_why_rows_are_rejected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The commonest reason is shown with an example, and what would help where no time can be read."""
    (tmp_path / "a.csv").write_text("sensor_id,time,temperature\n,1,1\n" + "a,12.07.2023,1\n" * 2)
    *_, reason, advice = printed(tmp_path / "a.csv", capsys)
    assert reason.startswith("a.csv: most often rejected because time should be ISO 8601")
    assert reason.endswith("(2 rows, first row 2: '12.07.2023')")
    assert advice == "a.csv: give the format of the file's times with --time-format"


def test_a_reason_without_a_value(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An example is shown by its value only where there is one."""
    (tmp_path / "a.csv").write_text("sensor_id,time,temperature\na,2013-01-01,\n")
    assert printed(tmp_path / "a.csv", capsys)[-1] == (
        "a.csv: most often rejected because one of temperature, humidity, pressure should be there (1 row, first row 1)"
    )


def test_what_was_detected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The summary shows what was detected, and the zone of the times."""
    (tmp_path / "a.csv").write_text(
        "exported\nsensor_id;time;temperature\na;2023-10-29 02:30;21,5\na;2023-10-29 03:30;1\na;2023-03-26 02:30;1\n"
    )
    said = printed(tmp_path / "a.csv", capsys, ColumnMapping(time_zone="Europe/Berlin"))
    assert said[1:] == [
        "a.csv: fields are separated by semicolons",
        "a.csv: 1 line before the header skipped",
        "a.csv: numbers have a decimal comma",
        "a.csv: times from 2023-10-29T00:30:00Z to 2023-10-29T02:30:00Z",
        "a.csv: 2 times without an offset are taken to be in Europe/Berlin",
        "a.csv: 1 of them comes twice there, when clocks were put back (first in row 1): "
        "the earlier of the two is taken",
        "a.csv: most often rejected because time does not exist in Europe/Berlin: the clocks were put forward "
        "(1 row, first row 3: '2023-03-26 02:30')",
    ]
