"""A worker's end of its channel: the bus of its hub, its part in the metrics, and its start and end.

Promises:
    * The worker commits nothing before the parent has welcomed it, and so nothing that the parent can't know of.
    * When the parent is gone the worker drains and ends, and refuses the subscriptions that wait for it.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from itertools import count
from socket import socket

from app.errors import LiveUnavailable, TooManySubscribers
from app.ingest.result import CommittedReading
from app.live.bus import LocalSubscribers
from app.live.mailbox import Mailbox
from app.workers.channel import Channel, ChannelStats
from app.workers.messages import (
    Collect,
    Control,
    Denied,
    Drain,
    Exposition,
    ForwardingAck,
    Granted,
    Hello,
    Join,
    Leave,
    MessagesDropped,
    MetricFamilies,
    Ready,
    Receipts,
    Scrape,
    SetForwarding,
    Welcome,
)

logger = logging.getLogger(__name__)

JOIN_TIMEOUT_S = 10.0
SCRAPE_TIMEOUT_S = 8.0


class ParentLink:
    """A Bus to the other workers, through the parent.

    Args:
        socket: this worker's end of the pair; it is opened by ``open``.
        families: this worker's metrics of the moment, as ``metric_families`` encodes them.
        max_subscribers_per_key: over all workers; the parent enforces it, and a refused subscriber is told it here.
        mailbox: holds the receipts that wait for the parent.
    """

    def __init__(
        self,
        socket: socket,
        *,
        families: Callable[[], str],
        max_subscribers_per_key: int,
        mailbox: Mailbox,
        stats: ChannelStats,
    ) -> None:
        self.forwarding = False
        self._socket = socket
        self._families = families
        self._max_subscribers_per_key = max_subscribers_per_key
        self._mailbox = mailbox
        self._stats = stats
        self._local_subscribers: LocalSubscribers | None = None
        self._channel: Channel | None = None
        self._running: asyncio.Task[None] | None = None
        self._welcomed = asyncio.Event()
        self._numbers = count(1)
        self._questions: dict[int, asyncio.Future[str]] = {}
        """By their numbers: joins, whose answer is empty, and scrapes."""
        self._drain: Callable[[], None] = lambda: None

    async def open(self, drain: Callable[[], None]) -> None:
        """Connect, and wait to be welcomed. ``drain`` is called when the worker should end."""
        self._drain = drain
        self._channel = await Channel.open(self._socket, mailbox=self._mailbox, stats=self._stats)
        self._running = asyncio.create_task(self._run(self._channel))
        self.send(Hello())
        await self._welcomed.wait()

    async def close(self) -> None:
        """Send the last committed readings, and close."""
        if self._channel is not None and self._running is not None:
            await self._channel.close()
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)

    def send(self, message: Control) -> None:
        """Send a message to the parent."""
        assert self._channel is not None, "the link to the parent is not open"
        self._channel.send(message)

    def ready(self, edition: str) -> None:
        """Tell the parent that this worker accepts readings."""
        assert self._local_subscribers is not None, "no hub has been attached"
        self.send(Ready(edition, self._local_subscribers.latest))

    def attach(self, local_subscribers: LocalSubscribers) -> None:
        """Attach the hub of this worker."""
        self._local_subscribers = local_subscribers

    async def join(self, key_name: str) -> int:
        """Get a slot over all workers. See Bus."""
        if self._running is None or self._running.done():
            raise LiveUnavailable
        slot = next(self._numbers)
        try:
            await self._ask(slot, Join(slot, key_name), JOIN_TIMEOUT_S)
        except TimeoutError:
            self.leave(slot)
            raise LiveUnavailable from None
        except asyncio.CancelledError:
            self.leave(slot)
            raise
        return slot

    def leave(self, slot: int) -> None:
        """Give a slot back."""
        self.send(Leave(slot))

    def forward(self, receipts: Sequence[CommittedReading]) -> None:
        """Forward receipts to the hubs of the other workers, through the parent."""
        assert self._channel is not None, "the link to the parent is not open"
        self._channel.forward(receipts)

    async def scrape(self) -> bytes:
        """Return the metrics of the whole server. Raises TimeoutError if a worker does not send its own."""
        number = next(self._numbers)
        return (await self._ask(number, Scrape(number), SCRAPE_TIMEOUT_S)).encode()

    async def _ask(self, number: int, question: Join | Scrape, timeout_s: float) -> str:
        """Return the parent's answer. Raises TimeoutError if there is none, or what the answer says."""
        answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._questions[number] = answer
        self.send(question)
        try:
            async with asyncio.timeout(timeout_s):
                return await answer
        finally:
            del self._questions[number]

    async def _run(self, channel: Channel) -> None:
        await channel.run(self._receive)
        logger.warning("the parent process has ended; this worker drains and ends")
        self._welcomed.set()
        self._drain()
        for number in self._questions:
            self._settle(number, TimeoutError())

    def _receive(self, message: Control | Receipts) -> None:
        assert self._local_subscribers is not None, "no hub has been attached"
        match message:
            case Welcome(forwarding):
                self.forwarding = forwarding
                self._welcomed.set()
            case SetForwarding(forwarding, number):
                self.forwarding = forwarding
                if forwarding:
                    self.send(ForwardingAck(number, self._local_subscribers.latest))
            case MessagesDropped(latest):
                self._local_subscribers.remember(latest)
                self._local_subscribers.drop_all()
            case Collect(number):
                self.send(MetricFamilies(number, self._families()))
            case Drain():
                self._drain()
            case Sequence():
                self._local_subscribers.deliver(message)
            case Granted(slot, latest):
                if latest is not None:
                    self._local_subscribers.remember(latest)
                self._settle(slot, "")
            case Denied(slot):
                self._settle(slot, TooManySubscribers(self._max_subscribers_per_key))
            case Exposition(number, text):
                self._settle(number, TimeoutError() if text is None else text)

    def _settle(self, number: int, answer: str | Exception) -> None:
        """Resolve a question, unless its caller has stopped waiting."""
        question = self._questions.get(number)
        if question is None or question.done():
            return
        if isinstance(answer, Exception):
            question.set_exception(answer)
        else:
            question.set_result(answer)
