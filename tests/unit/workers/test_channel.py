"""The channel: order, and bounds for an end that does not read."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from app.ingest.result import CommittedReading
from app.live.mailbox import Mailbox
from app.workers.channel import MOST_CONTROLS, Channel, ChannelStats
from app.workers.messages import Collect, Control, Drain, Leave, MessagesDropped, Receipts
from tests.support.samples import receipt


@asynccontextmanager
async def channels(*, max_messages: int = 1_000, max_bytes: int = 1_000_000) -> AsyncIterator[tuple[Channel, Channel]]:
    """Both ends of a channel."""
    ends = [
        await Channel.open(end, mailbox=Mailbox(max_messages, max_bytes), stats=ChannelStats())
        for end in socket.socketpair()
    ]
    yield ends[0], ends[1]
    for end in ends:
        await end.close()


async def received(end: Channel, last: Control) -> list[Control | Receipts]:
    """Return what an end receives up to a certain message, with receipts one by one."""
    got: list[Control | Receipts] = []

    def receive(message: Control | Receipts) -> None:
        got.extend([each] for each in message) if isinstance(message, list) else got.append(message)

    running = asyncio.create_task(end.run(receive))
    while last not in got:
        await asyncio.sleep(0.001)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    return got


async def test_what_is_sent_before_a_message_arrives_before_it() -> None:
    async with channels() as (one, other):
        one.forward([receipt(1), receipt(2)])
        one.send(Leave(1))
        one.send(Leave(2))
        assert await received(other, Leave(2)) == [[receipt(1)], [receipt(2)], Leave(1), Leave(2)]
        other.send(Drain())
        assert await received(one, Drain()) == [Drain()]


async def test_an_end_that_does_not_read_is_told_the_latest_of_each_sensor() -> None:
    async with channels(max_messages=4) as (one, other):
        await clog(one)
        for number in range(1, 21):
            one.forward([receipt(number, sensor="ab"[number % 2])])
        one.send(Drain())
        got = await received(other, Drain())
        ids = [message[0].id for message in got if isinstance(message, list)]
        assert ids[1:] == sorted(ids[1:])
        assert set(ids[-2:]) == {19, 20}
        assert len(ids) - 1 <= 4
        assert one.stats.conflated == 20 - (len(ids) - 1)


async def test_readings_that_find_no_room_are_a_lapse_that_names_the_latest_and_the_rest_follows() -> None:
    async with channels(max_messages=4) as (one, other):
        await clog(one)
        one.forward([receipt(number, sensor=str(number), time_us=-number) for number in range(1, 6)])
        one.forward([receipt(7, sensor="7", time_us=-7)])
        one.report_dropped(receipt(8, time_us=-8))
        one.forward([receipt(9)])
        one.send(Drain())
        got = await received(other, Drain())
        assert got[1:] == [MessagesDropped(receipt(1, sensor="1", time_us=-1)), [receipt(9)], Drain()]
        assert one.stats.lapses == 2


async def test_the_other_end_hears_the_last_words_and_then_that_it_is_over() -> None:
    async with channels() as (one, other):
        got: list[Control | Receipts] = []
        running = asyncio.create_task(other.run(got.append))
        one.forward([receipt(1)])
        one.send(Drain())
        await one.close()
        await running
        assert got == [[receipt(1)], Drain()]
        other.send(Drain())  # into the void


async def test_an_end_that_takes_no_messages_for_ever_is_given_up() -> None:
    async with channels() as (one, _):
        await clog(one)
        running = asyncio.create_task(one.run(lambda _: None))
        for number in range(MOST_CONTROLS + 1):
            one.send(Collect(number))
        await running
        one.send(Drain())


async def clog(end: Channel) -> None:
    """Fill the buffers of the kernel and the transport, so that whatever comes next has to wait."""
    end.forward([CommittedReading(0, 0, "clog", b"x" * 900_000)])
    await asyncio.sleep(0.001)
