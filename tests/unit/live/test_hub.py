"""The hub sends each reading once, conflates, or disconnects, and no subscriber suffers for another."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import TooManySubscribers
from app.ingest.result import CommittedReading
from app.live.bus import LocalBus
from app.live.hub import Hub, Subscriber
from app.live.mailbox import later
from tests.support.samples import at_once, receipt


def hub(*, subscribers: int = 10, messages: int = 100, size_bytes: int = 10_000) -> Hub:
    return Hub(bus=LocalBus(subscribers), mailbox_messages=messages, mailbox_bytes=size_bytes)


def listen(to: Hub, key_name: str = "API_KEY", wake: Callable[[], None] = lambda: None) -> Subscriber:
    return at_once(to.subscribe(key_name, wake))


def test_a_subscriber_gets_the_latest_first_and_then_each_once() -> None:
    house = hub()
    house.remember(receipt(1))
    house.publish([receipt(2), receipt(3)])
    subscriber = listen(house)
    house.publish([receipt(4), receipt(5)])
    assert [message.id for message in subscriber.take()] == [3, 4, 5]
    house.publish([receipt(6)])
    assert [message.id for message in subscriber.take()] == [6]
    assert list(subscriber.take()) == []


def test_latest_gives_way_when_ahead() -> None:
    """A reading that was stored while a clock was a year ahead is not the latest for a year."""
    house = Hub(bus=LocalBus(1), mailbox_messages=9, mailbox_bytes=999, horizon_us=lambda: 1_000)
    for reading_id, time_us, latest_id in ((1, 5_000, 1), (2, 6_000, 2), (3, 10, 3), (4, 7_000, 3), (5, 1_000, 5)):
        house.publish([receipt(reading_id, time_us=time_us)])
        assert house.latest is not None
        assert house.latest.id == latest_id


def test_it_is_listening_while_anybody_does() -> None:
    house = hub()
    assert not house.is_listening
    subscriber = listen(house)
    assert house.is_listening
    house.unsubscribe(subscriber)
    assert not house.is_listening


def test_where_nothing_was_ever_stored_a_subscriber_waits_for_the_first() -> None:
    house = hub()
    subscriber = listen(house)
    assert list(subscriber.take()) == []
    house.publish([receipt(1)])
    assert [message.id for message in subscriber.take()] == [1]


@pytest.mark.parametrize(
    ("known", "comes", "latest_id"),
    [
        ((1, 100), (2, 200), 2),
        ((1, 200), (2, 100), 1),
        ((1, 100), (2, 100), 2),
        ((2, 100), (1, 100), 2),
    ],
)
def test_the_latest_is_the_latest_by_event_time_and_then_by_id(
    known: tuple[int, int], comes: tuple[int, int], latest_id: int
) -> None:
    one, other = (receipt(reading_id, time_us=time_us) for reading_id, time_us in (known, comes))
    assert later(one, other).id == latest_id
    house = hub()
    house.remember(one)
    house.publish([other])
    assert [message.id for message in listen(house).take()] == [latest_id]


def test_a_subscriber_is_woken_when_mail_comes_into_an_empty_box() -> None:
    wakes: list[str] = []
    house = hub()
    subscriber = listen(house, wake=lambda: wakes.append("wake"))
    assert wakes == []
    house.publish([receipt(1)])
    house.publish([receipt(2)])
    assert len(wakes) == 1
    subscriber.take()
    house.publish([receipt(3)])
    assert len(wakes) == 2
    listen(house, wake=lambda: wakes.append("latest"))
    assert wakes[2:] == ["latest"]


def test_an_emptied_mailbox_has_all_its_room_again() -> None:
    house = hub(messages=3, size_bytes=30)
    subscriber = listen(house)
    for _ in range(3):
        house.publish([receipt(1), receipt(2), receipt(3)])
        assert [message.id for message in subscriber.take()] == [1, 2, 3]
    assert house.stats.conflated == 0


def test_a_key_has_no_more_subscribers_than_it_may_and_gets_its_places_back() -> None:
    house = hub(subscribers=2)
    first, _ = listen(house), listen(house)
    with pytest.raises(TooManySubscribers, match="already has 2"):
        listen(house)
    listen(house, "API_KEY_WS")
    assert house.subscribers == 3
    house.unsubscribe(first)
    house.publish([receipt(1)])
    assert list(first.take()) == []
    listen(house)
    assert house.subscribers == 3


@pytest.mark.parametrize(("messages", "size_bytes"), [(4, 10_000), (100, 49)])
def test_a_slow_subscriber_is_conflated_then_dropped_and_nobody_else_is(messages: int, size_bytes: int) -> None:
    house = hub(messages=messages, size_bytes=size_bytes)
    wakes: list[str] = []
    slow, fast = listen(house, wake=lambda: wakes.append("slow")), listen(house)
    seen: list[int] = []
    for reading_id in range(1, 13):
        house.publish([receipt(reading_id, sensor="ab"[reading_id % 2])])
        seen += [message.id for message in fast.take()]
    assert not slow.dropped
    assert house.stats.conflated > 0
    wakes.clear()
    for reading_id in range(13, 18):
        house.publish([receipt(reading_id, sensor=str(reading_id))])
        seen += [message.id for message in fast.take()]
    assert slow.dropped
    assert wakes == ["slow"], "it must hear that it is dropped"
    assert seen == list(range(1, 18))
    assert not fast.dropped
    assert house.stats.dropped == 1
    house.unsubscribe(slow)
    assert house.subscribers == 1


def test_a_subscriber_that_is_given_up_is_counted_once_and_gets_nothing_more() -> None:
    house = hub()
    slow, other = listen(house), listen(house)
    house.drop(slow)
    house.drop(slow)
    house.publish([receipt(1)])
    assert slow.dropped
    assert list(slow.take()) == []
    assert len(other.take()) == house.stats.dropped == 1
    house.unsubscribe(slow)
    assert house.subscribers == 1


MESSAGES = st.lists(
    st.builds(
        receipt,
        st.integers(1, 10**6),
        sensor=st.sampled_from("abc"),
        time_us=st.integers(0, 5),
        size_bytes=st.integers(0, 12),
    ),
    unique_by=lambda message: message.id,
    max_size=40,
)


def conflated(messages: list[CommittedReading]) -> list[CommittedReading]:
    """Return the latest message of each sensor, in the order of the last messages, slowly and obviously."""
    last_heard_first = dict.fromkeys(message.sensor for message in reversed(messages))
    return [
        max((each for each in messages if each.sensor == sensor), key=lambda each: (each.time_us, each.id))
        for sensor in reversed(last_heard_first)
    ]


@given(MESSAGES, st.integers(1, 8), st.integers(0, 60), st.data())
def test_conflation_keeps_exactly_the_latest_of_each_sensor(
    messages: list[CommittedReading], max_messages: int, max_bytes: int, data: st.DataObject
) -> None:
    def overfull() -> bool:
        return len(expected) > max_messages or sum(len(message.payload) for message in expected) > max_bytes

    house = hub(messages=max_messages, size_bytes=max_bytes)
    subscriber = listen(house)
    expected: list[CommittedReading] = []
    published = left_out = 0
    while messages and not subscriber.dropped:
        count = data.draw(st.integers(1, len(messages)), "published at once")
        flush, messages = messages[:count], messages[count:]
        house.publish(flush)
        published += count
        expected += flush
        if overfull():
            left_out += len(expected) - len(conflated(expected))
            expected = conflated(expected)
        assert subscriber.dropped == overfull()
        assert (house.stats.published, house.stats.conflated) == (published, left_out)
        if data.draw(st.booleans(), "read"):
            assert list(subscriber.take()) == expected
            expected = []
    assert list(subscriber.take()) == expected
    assert house.stats.dropped == subscriber.dropped
