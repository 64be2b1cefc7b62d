"""What a sender is told: the reading, to the last bit, with its date and time in the configured zone."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.ingest.batch import Reading
from app.ingest.result import receipt_encoder
from tests.unit.samples import T0_US, reading, readings

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
