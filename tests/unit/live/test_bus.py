"""The bus of one process only counts connections."""

import pytest

from app.errors import TooManySubscribers
from app.ingest.result import CommittedReading
from app.live.bus import ConnectionQuota, LocalBus
from app.live.hub import Hub
from tests.support.samples import at_once, receipt


def test_a_key_has_as_many_places_as_it_may_and_another_key_its_own() -> None:
    slots = ConnectionQuota(2)
    slots.take("a", "API_KEY")
    slots.take("b", "API_KEY")
    with pytest.raises(TooManySubscribers, match="already has 2"):
        slots.take("c", "API_KEY")
    assert "c" not in slots
    slots.take("c", "API_KEY_WS")
    slots.give_back("a")
    slots.take("d", "API_KEY")
    assert [slot for slot in "abcd" if slot in slots] == ["b", "c", "d"]


def test_in_one_process_a_place_is_had_at_once_and_nothing_is_forwarded() -> None:
    bus = LocalBus(1)
    hub = Hub(bus=bus, mailbox_messages=10, mailbox_bytes=1_000)
    subscriber = at_once(hub.subscribe("API_KEY", lambda: None))
    with pytest.raises(TooManySubscribers):
        at_once(bus.join("API_KEY"))
    hub.publish([receipt(1)])
    assert not bus.forwarding
    assert [message.id for message in subscriber.take()] == [1]
    hub.unsubscribe(subscriber)
    assert at_once(bus.join("API_KEY"))


class Recorder(LocalBus):
    """A bus that remembers what it was to forward."""

    def __init__(self, *, forwarding: bool) -> None:
        super().__init__(10)
        self.forwarding = forwarding
        self.forwarded: list[CommittedReading] = []

    def forward(self, receipts: object) -> None:
        assert isinstance(receipts, list)
        self.forwarded += receipts


@pytest.mark.parametrize("forwarding", [False, True])
def test_what_is_committed_here_is_forwarded_if_it_is_requested_and_what_comes_from_elsewhere_never(
    *, forwarding: bool
) -> None:
    bus = Recorder(forwarding=forwarding)
    hub = Hub(bus=bus, mailbox_messages=10, mailbox_bytes=1_000)
    subscriber = at_once(hub.subscribe("API_KEY", lambda: None))
    hub.publish([receipt(1)])
    hub.deliver([receipt(2)])
    assert [message.id for message in subscriber.take()] == [1, 2]
    assert [message.id for message in bus.forwarded] == [1] * forwarding


def test_a_lapse_drops_everybody_who_listens_and_nobody_who_comes_later() -> None:
    hub = Hub(bus=LocalBus(10), mailbox_messages=10, mailbox_bytes=1_000)
    wakes: list[str] = []
    subscriber = at_once(hub.subscribe("API_KEY", lambda: wakes.append("wake")))
    hub.drop_all()
    assert (subscriber.dropped, wakes, hub.stats.dropped) == (True, ["wake"], 1)
    hub.unsubscribe(subscriber)
    later = at_once(hub.subscribe("API_KEY", lambda: None))
    hub.publish([receipt(1)])
    assert [message.id for message in later.take()] == [1]
