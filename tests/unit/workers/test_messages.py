"""Every message that one end writes, the other reads."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.ingest.result import CommittedReading
from app.workers import messages
from app.workers.messages import Control
from tests.support.samples import names, times_us

RECEIPT = CommittedReading(7, -1, 'ü"\n', b'{"id": 7, "sensor_id": "\xc3\xbc\\"\\n"}')

receipts = st.builds(CommittedReading, st.integers(1, 2**63 - 1), times_us, names, st.binary(max_size=50))


def body_of(frame: bytes) -> bytes:
    length = int.from_bytes(frame[: messages.LENGTH_BYTES], "big")
    assert len(frame) == messages.LENGTH_BYTES + length
    return frame[messages.LENGTH_BYTES :]


@pytest.mark.parametrize(
    "message",
    [
        messages.Hello(),
        messages.Welcome(forwarding=True),
        messages.Started(),
        messages.Ready("PostgreSQL 18.6", RECEIPT),
        messages.Unusable("Set DATABASE_URL."),
        messages.Drain(),
        messages.Join(3, "API_KEY"),
        messages.Leave(3),
        messages.SetForwarding(forwarding=False, number=4),
        messages.ForwardingAck(4, None),
        messages.ForwardingAck(4, RECEIPT),
        messages.Granted(3, None),
        messages.Granted(3, RECEIPT),
        messages.Denied(3),
        messages.MessagesDropped(RECEIPT),
        messages.Scrape(9),
        messages.Collect(9),
        messages.MetricFamilies(9, '[["name", "help \\" and more", 1]]'),
        messages.Exposition(9, "# HELP x\n"),
        messages.Exposition(9, None),
    ],
    ids=repr,
)
def test_a_message_is_read_as_it_was_written(message: Control) -> None:
    assert messages.decode(body_of(messages.encode_control(message))) == message


@given(st.lists(receipts, min_size=1))
def test_receipts_are_read_as_they_were_written(written: list[CommittedReading]) -> None:
    read = messages.decode(body_of(messages.encode_receipts(written)))
    assert read == written
    assert isinstance(read, list)
    assert all(isinstance(receipt, CommittedReading) for receipt in read)
