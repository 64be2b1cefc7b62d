"""Detection of a CSV's header and form."""

import pytest

from app.errors import MalformedBody
from app.imports.headers import find_header
from app.imports.layout import ColumnMapping

NAMES = ["sensor_id", "time", "temperature"]
ROWS = "a,2013-01-01,{}\n"


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("before", ["", "\ufeff", "Logger 5, Hall 2; north\n\n", "a,b,c,d,e\n;;;;;\n", "\n\r\n"])
def test_separators(separator: str, before: str) -> None:
    """The header is found below a preamble, whatever separates its fields."""
    lines = ",".join(NAMES) + "\n" + ROWS.format("21.5")
    text = (before + lines.replace(",", separator)).encode()
    found = find_header(text, ColumnMapping())
    assert (found.names, found.dialect.separator) == (NAMES, separator)
    assert text[found.end :].startswith(b"a")
    assert ("semicolons" in " ".join(found.notes)) == (separator == ";")


def test_commas_in_names() -> None:
    """The separator that finds the needed columns is chosen, or of several the one that finds most."""
    found = find_header(b"Lufttemperatur, innen;time;sensor_id\n21,5;1;a\n", ColumnMapping())
    assert found.names == ["Lufttemperatur, innen", "time", "sensor_id"]
    found = find_header(b'sensor_id;x,time,temperature,"a;b"\n', ColumnMapping({"sensor_id": "sensor_id;x"}))
    assert found.names == ["sensor_id;x", "time", "temperature", "a;b"]


def test_a_line_break_in_a_name() -> None:
    """A name in quotes may have a line break."""
    found = find_header(b'sensor_id,time,"temperature\n\xc2\xb0C"\na,1,2\n', ColumnMapping())
    assert (found.names[2], found.notes) == ("temperature\n°C", [])


@pytest.mark.parametrize(
    ("values", "has_comma"),
    [(["1,5", "2"], True), (["1.5", "2"], False), (["1", "NA"], False), (["NAN", "-1,5e3"], True)],
)
def test_decimal_comma(values: list[str], has_comma: bool) -> None:
    """Numbers tell whether they have a decimal comma."""
    text = ";".join(NAMES) + "\n" + "".join(f"a;2013-01-01 00:00:00,5;{value}\n" for value in values)
    found = find_header(text.encode(), ColumnMapping())
    assert found.dialect.decimal_comma is has_comma
    assert ("numbers have a decimal comma" in found.notes) is has_comma


def test_points_and_commas() -> None:
    """A file that has numbers with commas and with points needs an option."""
    text = b"sensor_id;time;temperature\na;1;1,5\na;1;1.5\n"
    with pytest.raises(MalformedBody, match=r"'1,5' and like '1\.5'\. Choose with --decimal comma or --decimal point"):
        find_header(text, ColumnMapping())
    assert find_header(text, ColumnMapping(has_decimal_comma=True)).dialect.decimal_comma


def test_lines_that_are_skipped() -> None:
    """The option for skipped lines holds. A logger's units are skipped, and a possible reading never is."""
    text = b"x\nsensor_id,time,temperature\n,,C\n,,Avg\na,b,c\n"
    found = find_header(text, ColumnMapping())
    assert (text[found.end :], found.notes) == (
        b"a,b,c\n",
        ["1 line before the header skipped", "2 lines of units after the header skipped"],
    )
    assert find_header(text, ColumnMapping(skip_lines=1)).end == found.end
    assert find_header(text, ColumnMapping(skip_lines=0)).names == ["x"]
    assert find_header(text[2:], ColumnMapping()).notes == []  # without a preamble, these are rows
    with pytest.raises(MalformedBody, match="--skip-lines 9"):
        find_header(text, ColumnMapping(skip_lines=9))


def test_a_header_by_other_names() -> None:
    """A missing column's message shows the names of the line with a time, not those of the preamble."""
    found = find_header(b'"TOA5","CR1000","roof"\n"TIMESTAMP","RECORD"\n"TS","RN"\n', ColumnMapping())
    assert found.names == ["TIMESTAMP", "RECORD"]
