"""The bus of one process only counts connections."""

import pytest

from app.errors import TooManySubscribers
from app.ingest.result import CommittedReading
from app.live.bus import ConnectionQuota, LocalBus
from app.live.hub import Hub
from tests.support.samples import at_once, receipt


def test_a_key_has_as_many_places_as_it_may_and_another_key_its_own() -> None:
    places = ConnectionQuota(2)
    places.take("a", "API_KEY")
    places.take("b", "API_KEY")
    with pytest.raises(TooManySubscribers, match="already has 2"):
        places.take("c", "API_KEY")
    assert "c" not in places
    places.take("c", "API_KEY_WS")
    places.give_back("a")
    places.take("d", "API_KEY")
    assert [place for place in "abcd" if place in places] == ["b", "c", "d"]


def test_in_one_process_a_place_is_had_at_once_and_nothing_is_forwarded() -> None:
    bus = LocalBus(1)
    hub = Hub(bus=bus, mailbox_messages=10, mailbox_bytes=1_000)
    subscriber = at_once(hub.subscribe("API_KEY", lambda: None))
    with pytest.raises(TooManySubscribers):
        at_once(bus.join("API_KEY"))
    hub.publish([receipt(1)])
    assert not bus.wanted
    assert [message.id for message in subscriber.take()] == [1]
    hub.unsubscribe(subscriber)
    assert at_once(bus.join("API_KEY"))


class Recorder(LocalBus):
    """A bus that remembers what it was to forward."""

    def __init__(self, *, wanted: bool) -> None:
        super().__init__(10)
        self.wanted = wanted
        self.forwarded: list[CommittedReading] = []

    def forward(self, receipts: object) -> None:
        assert isinstance(receipts, list)
        self.forwarded += receipts


@pytest.mark.parametrize("wanted", [False, True])
def test_what_is_committed_here_is_forwarded_if_it_is_wanted_and_what_comes_from_elsewhere_never(
    *, wanted: bool
) -> None:
    bus = Recorder(wanted=wanted)
    hub = Hub(bus=bus, mailbox_messages=10, mailbox_bytes=1_000)
    subscriber = at_once(hub.subscribe("API_KEY", lambda: None))
    hub.publish([receipt(1)])
    hub.deliver([receipt(2)])
    assert [message.id for message in subscriber.take()] == [1, 2]
    assert [message.id for message in bus.forwarded] == [1] * wanted


def test_a_lapse_drops_everybody_who_listens_and_nobody_who_comes_later() -> None:
    hub = Hub(bus=LocalBus(10), mailbox_messages=10, mailbox_bytes=1_000)
    wakes: list[str] = []
    subscriber = at_once(hub.subscribe("API_KEY", lambda: wakes.append("wake")))
    hub.lapse()
    assert (subscriber.dropped, wakes, hub.tally.dropped) == (True, ["wake"], 1)
    hub.unsubscribe(subscriber)
    later = at_once(hub.subscribe("API_KEY", lambda: None))
    hub.publish([receipt(1)])
    assert [message.id for message in later.take()] == [1]
