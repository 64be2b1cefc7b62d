"""Every format has the same rows, by the parsers of others."""

import csv
import io
import json
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.history.formats import HistoryFormat, encode, head, tail

SCHEMA = pa.schema(
    [
        ("time", pa.timestamp("us", "UTC")),
        ("sensor_id", pa.string()),
        ("count", pa.int64()),
        ("temperature", pa.float64()),
    ]
)
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "time": st.datetimes(datetime(1900, 1, 1), datetime(2261, 12, 31), timezones=st.just(UTC)),
            "sensor_id": st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1),
            "count": st.integers(0, 2**63 - 1),
            "temperature": st.none() | st.floats(allow_nan=False, allow_infinity=False),
        }
    )
)
Rows = list[dict[str, Any]]


def written(format_: HistoryFormat, rows: Rows) -> bytes:
    batch = pa.RecordBatch.from_pylist(rows, SCHEMA)
    return head(format_, SCHEMA) + bytes(encode(format_, batch)) + tail(format_)


def moment(text: str) -> datetime:
    assert text.endswith("Z")
    return datetime.fromisoformat(text)


@given(ROWS)
def test_ndjson_has_a_row_a_line_and_json_a_comma_after_each(rows: Rows) -> None:
    lines = written(HistoryFormat.NDJSON, rows).decode().split("\n")[:-1]
    assert [row | {"time": moment(row["time"])} for row in map(json.loads, lines)] == rows
    listed = json.loads(b"[" + written(HistoryFormat.JSON, rows)[:-1] + b"]")
    assert [row | {"time": moment(row["time"])} for row in listed] == rows


@given(ROWS)
def test_csv_has_a_header_quotes_names_and_leaves_empty_what_is_missing(rows: Rows) -> None:
    said = list(csv.DictReader(io.StringIO(written(HistoryFormat.CSV, rows).decode(), newline="")))
    assert [
        {
            "time": moment(row["time"]),
            "sensor_id": row["sensor_id"],
            "count": int(row["count"]),
            "temperature": float(row["temperature"]) if row["temperature"] else None,
        }
        for row in said
    ] == rows


@given(ROWS)
def test_an_arrow_stream_is_read_by_arrow(rows: Rows) -> None:
    table = pa.ipc.open_stream(written(HistoryFormat.ARROW, rows)).read_all()
    assert table.schema == SCHEMA
    assert table.to_pylist() == rows


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_no_number_in_json_is_null_as_text(value: float) -> None:
    row = {"time": datetime(2026, 1, 1, tzinfo=UTC), "sensor_id": "a", "count": 1, "temperature": value}
    assert json.loads(written(HistoryFormat.NDJSON, [row]))["temperature"] is None
    assert written(HistoryFormat.CSV, [row]).splitlines()[1].endswith(b",1,")
