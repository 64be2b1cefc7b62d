"""One end of the socket between the parent and a worker: messages in order, receipts within bounds.

Sending never waits, so the other end can't slow ingestion down. Receipts that the other end does not read are conflated
like a slow subscriber's. If even these do not fit they are dropped, and the other end is told. All other messages are
few: a channel on which MOST_CONTROLS of them wait unread is closed.

Promise: what was sent before a control message is received before it. (Receipts sent after it may come before it too.)
"""

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain

from app.ingest.result import CommittedReading
from app.live.mailbox import Mailbox, event_time
from app.workers import messages
from app.workers.messages import Control, MessagesDropped, Receipts

MOST_CONTROLS = 10_000
FAREWELL_TIMEOUT_S = 1.0


@dataclass(slots=True)
class ChannelStats:
    """Counters since the start, at this end."""

    forwarded: int = 0
    """Receipts written."""
    conflated: int = 0
    """Receipts left out because a newer one of the same sensor took their place."""
    lapses: int = 0
    """Times that receipts were left out for want of room."""


class Channel:
    """One end of the socket between the parent and a worker.

    Args:
        mailbox: holds the receipts that wait to be written.
        stats: where to count; channels may share one.
    """

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        mailbox: Mailbox,
        stats: ChannelStats,
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._receipts = mailbox
        self._lapsed: CommittedReading | None = None
        self._controls: list[bytes] = []
        self._news = asyncio.Event()
        self._written = asyncio.Event()
        """Set whenever what waited has been written; for whoever clears it first."""
        self.stats = stats
        self._writing = asyncio.create_task(self._write())

    @classmethod
    async def open(cls, socket_: socket.socket, *, mailbox: Mailbox, stats: ChannelStats) -> "Channel":
        """Open a channel on one end of a socket pair, and own that end from then on."""
        reader, writer = await asyncio.open_unix_connection(sock=socket_)
        return cls(reader, writer, mailbox=mailbox, stats=stats)

    def send(self, message: Control) -> None:
        """Send a message after all earlier ones. Drop it if the other end is gone."""
        if self._writing.done():
            return
        self._controls.append(messages.encode_control(message))
        self._news.set()
        if len(self._controls) > MOST_CONTROLS:
            self._writer.transport.abort()

    def forward(self, receipts: Receipts) -> None:
        """Send receipts, at least one. If too many wait, conflate them, and if that does not help, drop them."""
        self.stats.conflated += self._receipts.put(receipts)
        if self._receipts.is_overfull:
            self.report_dropped(max(self._receipts.take(), key=event_time))
        self._news.set()

    def report_dropped(self, latest: CommittedReading) -> None:
        """Tell the other end that receipts were dropped, up to ``latest``. Those that wait here are dropped too."""
        candidates = chain([latest], self._receipts.take(), [self._lapsed] if self._lapsed else [])
        self._lapsed = max(candidates, key=event_time)
        self.stats.lapses += 1
        self._news.set()

    async def run(self, receive: Callable[[Control | Receipts], None]) -> None:
        """Pass each received message on, until either end is closed."""
        try:
            while True:
                length = int.from_bytes(await self._reader.readexactly(messages.LENGTH_BYTES), "big")
                receive(messages.decode(await self._reader.readexactly(length)))
        except (asyncio.IncompleteReadError, ConnectionError):
            self._writer.transport.abort()

    async def close(self) -> None:
        """Write what still waits, for FAREWELL_TIMEOUT_S at most, and close."""
        with suppress(TimeoutError):
            async with asyncio.timeout(FAREWELL_TIMEOUT_S):
                if not self._writing.done():
                    self._written.clear()
                    self._news.set()
                    await self._written.wait()
        self._writing.cancel()
        await asyncio.gather(self._writing, return_exceptions=True)
        self._writer.close()

    async def _write(self) -> None:
        try:
            while True:
                await self._news.wait()
                self._writer.write(self._take())
                self._news.clear()
                await self._writer.drain()
                if not self._news.is_set():
                    self._written.set()
        except ConnectionError:
            self._written.set()  # the reading side has noticed, or will

    def _take(self) -> bytes:
        frames: list[bytes] = []
        if self._lapsed is not None:
            frames.append(messages.encode_control(MessagesDropped(self._lapsed)))
            self._lapsed = None
        if receipts := self._receipts.take():
            frames.append(messages.encode_receipts(receipts))
            self.stats.forwarded += len(receipts)
        frames += self._controls
        self._controls.clear()
        return b"".join(frames)
