"""The answer has the reading to the last bit, with its date and time in the configured zone."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import orjson
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.ingest.batch import Reading
from app.ingest.decode.columns import RowError
from app.ingest.result import BatchResult, receipt_encoder
from tests.support.samples import T0_US, batch_of, decoded_of, reading, readings

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
DAY_US = 86_400_000_000


def test_the_payload_has_the_fields_of_the_older_server_in_their_order() -> None:
    receipt = receipt_encoder(ZoneInfo("UTC"))(reading("greenhouse-1"), 7)
    assert receipt.payload == (
        b'{"id":7,"temperature":23.5,"humidity":48.2,"pressure":1013.2,'
        b'"date_recorded":"2023-07-12","time_recorded":"14:30:45","sensor_id":"greenhouse-1","client_ip":"192.0.2.7"}'
    )
    assert (receipt.id, receipt.time_us, receipt.sensor) == (7, T0_US, "greenhouse-1")


@pytest.mark.parametrize(
    ("zone", "time_us", "expected"),
    [
        ("UTC", 0, "1970-01-01 00:00:00"),
        ("UTC", -1, "1969-12-31 23:59:59"),
        ("UTC", T0_US + 999_999, "2023-07-12 14:30:45"),
        ("Europe/Madrid", T0_US, "2023-07-12 16:30:45"),
        ("Europe/Madrid", T0_US + 180 * DAY_US, "2024-01-08 15:30:45"),
        ("Asia/Kathmandu", T0_US, "2023-07-12 20:15:45"),
        ("America/New_York", T0_US - 11 * 3_600_000_000, "2023-07-11 23:30:45"),
    ],
)
def test_date_and_time_are_those_of_the_zone_cut_to_whole_seconds(zone: str, time_us: int, expected: str) -> None:
    payload = orjson.loads(receipt_encoder(ZoneInfo(zone))(reading(time_us=time_us), 1).payload)
    assert f"{payload['date_recorded']} {payload['time_recorded']}" == expected


@given(readings, st.integers(1, 2**63 - 1), st.sampled_from(["UTC", "Europe/Madrid", "America/St_Johns"]))
def test_a_receipt_says_what_was_stored(sent: Reading, reading_id: int, zone: str) -> None:
    receipt = receipt_encoder(ZoneInfo(zone))(sent, reading_id)
    moment = (EPOCH + timedelta(microseconds=sent.time_us)).astimezone(ZoneInfo(zone))
    assert receipt[:3] == (reading_id, sent.time_us, sent.sensor)
    assert repr(orjson.loads(receipt.payload)) == repr(
        {
            "id": reading_id,
            "temperature": sent.temperature,
            "humidity": sent.humidity,
            "pressure": sent.pressure,
            "date_recorded": moment.strftime("%Y-%m-%d"),
            "time_recorded": moment.strftime("%H:%M:%S"),
            "sensor_id": sent.sensor,
            "client_ip": sent.source.client_ip,
        }
    )


def test_batch_result_as_json() -> None:
    """The stored form of a result has everything for the answer to a repetition."""
    result = BatchResult(
        2,
        rejected=2,
        rejected_rows="1,4",
        errors=[RowError(1, "time", "It is too old.", "2001-01-01"), RowError(4, None, "PostgreSQL refused it.", None)],
        unknown_columns=["co2"],
        hints=["Send times."],
        is_backfill_wanted=True,
    )
    assert BatchResult.from_json(result.to_json()) == result
    assert BatchResult(3).to_json() == b'{"stored":3}'
    assert BatchResult.from_json(b'{"stored":3}').stored == 3


@pytest.mark.parametrize("word", ["stored", "accepted"])
def test_batch_result_of_an_older_version(word: str) -> None:
    """Before the schema's revision 0007 the answer itself was stored."""
    answer = (
        b'{"%b":1,"rejected":1,"rejected_rows":"2","errors":[{"row":2,"column":"time","reason":"too old","value":7}],'
        b'"unknown_columns":["co2"],"hints":["Some readings are older than ACCEPT_PAST_DAYS."]}'
    ) % word.encode()
    assert BatchResult.from_json(answer) == BatchResult(
        1,
        rejected=1,
        rejected_rows="2",
        errors=[RowError(2, "time", "too old", 7)],
        unknown_columns=["co2"],
        hints=["Some readings are older than ACCEPT_PAST_DAYS."],
    )


def test_batch_result_of_refused_rows() -> None:
    """Rows that PostgreSQL refused are named beside those that decoding rejected, by their position in the body."""
    decoded = replace(
        decoded_of(batch_of([reading()] * 3)),
        rejected=2,
        errors=[RowError(2, "temperature", "It is no number.", "x")],
        rows=pa.array([1, 3, 5]),
        rejected_rows=pa.array([2, 4]),
        hints=["Send times."],
    )
    result = BatchResult.of(decoded, 1, {0: "too hot", 2: None, 1: "too cold"})
    assert (result.stored, result.rejected, result.rejected_rows) == (1, 4, "1-4")
    assert [(error.row, error.reason) for error in result.errors] == [
        (1, "too hot"),
        (2, "It is no number."),
        (3, "too cold"),
    ]
    assert result.hints == ["Send times."]
    assert BatchResult.of(decoded, 0).hints == ()
