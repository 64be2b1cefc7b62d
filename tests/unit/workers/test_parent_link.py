"""The link to the parent, for a worker whose parent is silent or gone."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from app.errors import LiveUnavailable, TooManySubscribers
from app.live.hub import Hub
from app.live.mailbox import Mailbox
from app.workers.channel import Channel, ChannelStats
from app.workers.messages import (
    Control,
    Denied,
    ForwardingAck,
    Granted,
    Hello,
    Join,
    Leave,
    MessagesDropped,
    Receipts,
    Scrape,
    SetForwarding,
    Welcome,
)
from app.workers.parent_link import ParentLink
from tests.support.samples import receipt


class Parent:
    """The other end, which the test controls."""

    def __init__(self, channel: Channel, parent_link: ParentLink, hub: Hub) -> None:
        self.channel = channel
        self.parent_link = parent_link
        self.hub = hub
        self.heard: list[Control | Receipts] = []
        self.drains = 0

    async def until(self, message: Control) -> None:
        while message not in self.heard:
            await asyncio.sleep(0.001)

    def drain(self) -> None:
        self.drains += 1


@asynccontextmanager
async def connected() -> AsyncIterator[Parent]:
    """Open a worker's link and hub, welcomed by a parent."""
    below, above = socket.socketpair()
    parent_link = ParentLink(
        below,
        families=lambda: "[]",
        max_subscribers_per_key=2,
        mailbox=Mailbox(100, 10_000),
        stats=ChannelStats(),
    )
    hub = Hub(bus=parent_link, mailbox_messages=100, mailbox_bytes=10_000)
    channel = await Channel.open(above, mailbox=Mailbox(100, 10_000), stats=ChannelStats())
    parent = Parent(channel, parent_link, hub)
    running = asyncio.create_task(channel.run(parent.heard.append))
    opening = asyncio.create_task(parent_link.open(parent.drain))
    await parent.until(Hello())
    assert not opening.done()
    channel.send(Welcome(forwarding=False))
    await opening
    yield parent
    await parent_link.close()
    await channel.close()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_a_subscriber_begins_with_what_the_grant_says_and_then_hears_the_others() -> None:
    async with connected() as parent:
        subscribing = asyncio.create_task(parent.hub.subscribe("API_KEY", lambda: None))
        await parent.until(Join(1, "API_KEY"))
        parent.channel.send(Granted(1, receipt(7)))
        subscriber = await subscribing
        parent.channel.forward([receipt(8)])
        parent.channel.send(SetForwarding(forwarding=True, number=3))
        await parent.until(ForwardingAck(3, receipt(8)))
        assert [message.id for message in subscriber.take()] == [7, 8]
        parent.hub.publish([receipt(9)])
        parent.hub.unsubscribe(subscriber)
        await parent.until(Leave(1))
        assert [receipt(9)] in parent.heard
        parent.channel.send(SetForwarding(forwarding=False, number=4))
        parent.channel.send(MessagesDropped(receipt(10)))
        while parent.hub.latest != receipt(10):
            await asyncio.sleep(0.001)
        assert not parent.parent_link.forwarding


async def test_a_key_without_a_free_place_is_told_the_limit() -> None:
    async with connected() as parent:
        joining = asyncio.create_task(parent.parent_link.join("API_KEY"))
        await parent.until(Join(1, "API_KEY"))
        parent.channel.send(Denied(1))
        with pytest.raises(TooManySubscribers, match="already has 2"):
            await joining


async def test_whoever_gives_up_waiting_leaves_no_place_behind() -> None:
    async with connected() as parent:
        with pytest.raises(LiveUnavailable):
            await parent.parent_link.join("API_KEY")
        await parent.until(Leave(1))
        joining = asyncio.create_task(parent.parent_link.join("API_KEY"))
        await parent.until(Join(2, "API_KEY"))
        parent.channel.send(Granted(2, None))
        joining.cancel()
        with pytest.raises(asyncio.CancelledError):
            await joining
        await parent.until(Leave(2))


async def test_when_the_parent_is_gone_the_worker_drains_and_nobody_waits() -> None:
    async with connected() as parent:
        joining = asyncio.create_task(parent.parent_link.join("API_KEY"))
        scraping = asyncio.create_task(parent.parent_link.scrape())
        await parent.until(Scrape(2))
        await parent.channel.close()
        with pytest.raises(LiveUnavailable):
            await joining
        with pytest.raises(TimeoutError):
            await scraping
        with pytest.raises(LiveUnavailable):
            await parent.parent_link.join("API_KEY")
        assert parent.drains == 1
