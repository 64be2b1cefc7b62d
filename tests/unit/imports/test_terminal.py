"""What is printed of an import."""

import asyncio
from pathlib import Path

import pytest

from app.imports.files import Layout
from app.imports.terminal import import_file
from app.ingest.decode.timestamps import TimeWindow
from tests.unit.samples import T0_US


def printed(path: Path, capsys: pytest.CaptureFixture[str], layout: Layout | None = None) -> list[str]:
    """The lines about a file that is only checked; in real time, since it is read in threads."""
    window = TimeWindow.of(past_days=0, future_minutes=0)
    asyncio.run(import_file(path, intake=None, layout=layout or Layout(), window=window, now_us=lambda: T0_US))
    return capsys.readouterr().out.splitlines()


def test_columns_that_are_not_stored_are_named_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.csv").write_text("sensor_id,time,temperature,temp,dewp\na,2023-07-12,1,2,3\nb,2023-07-12,1,2,3\n")
    _, last = printed(tmp_path / "a.csv", capsys, Layout({"temperature": "temp"}))
    assert last == "a.csv: columns not stored: 'temperature of the file', 'dewp'"
    (tmp_path / "a.csv").write_text("sensor_id,time,temperature\na,2023-07-12,1\nb,2023-07-12,1\n")
    assert len(printed(tmp_path / "a.csv", capsys)) == 1


@pytest.mark.parametrize(("count", "said"), [(0, "0 readings "), (1, "1 reading "), (2, "2 readings ")])
def test_one_is_a_reading_and_others_are_readings(
    count: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.csv").write_text("sensor_id,time,temperature\n" + "a,2023-07-12,1\n" * count)
    assert printed(tmp_path / "a.csv", capsys)[0].startswith(f"a.csv: {said}")
