"""uvicorn without a listening socket: the parent accepts its connections and hands them over, one by one.

A listening socket that processes share gives most connections to whichever wakes first, and SO_REUSEPORT spreads them
by a hash of their addresses; few connections that live long end up on one process. Handed over in turn, they don't.
"""

import asyncio
import logging
import signal
import socket
from collections.abc import Callable, Generator
from contextlib import contextmanager

import uvicorn

from app.draining import DrainingServer
from app.errors import ConfigurationError
from app.repeats import Repeats
from app.workers.messages import Started, Unusable
from app.workers.parent_link import ParentLink

logger = logging.getLogger(__name__)

MAX_TAKING_OVER = 16
"""Most connections that are taken over at a time. Each has a descriptor before the connection limit can close another
for it: with 64 in each turn of the event loop, a burst used up the process's descriptors.
"""


class WorkerServer(DrainingServer):
    """A server for connections that come over a socket.

    Args:
        config: uvicorn's.
        parent_link: to the parent; opened before the application starts, and closed after it has ended.
        connections: a Unix stream socket on which each byte brings the descriptor of one connection.
    """

    def __init__(self, config: uvicorn.Config, *, parent_link: ParentLink, connections: socket.socket) -> None:
        super().__init__(config)
        self._parent_link = parent_link
        self._connections = connections
        self._taking_over: set[asyncio.Task[object]] = set()
        self._repeats = Repeats()

    def stop(self) -> None:
        """Drain, and end."""
        self.should_exit = True

    def fail(self, error: BaseException) -> None:
        """Drain and end, because of an error. Tell the parent if no worker can start like this."""
        if isinstance(error, ConfigurationError):
            self._parent_link.send(Unusable(str(error)))
        super().fail(error)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the application, then take connections over."""
        await self._parent_link.open(self.stop)
        await super().startup(sockets=sockets or [])
        self._connections.setblocking(False)
        asyncio.get_running_loop().add_reader(self._connections, self._take_over)
        self._parent_link.send(Started())

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no more connections over, drain, and close the link to the parent."""
        self._stop_accepting()
        await super().shutdown(sockets=sockets)
        await self._parent_link.close()

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Drain on SIGTERM. Ignore a terminal's SIGINT, which also reaches the parent."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, self.handle_exit)
        yield

    def _take_over(self) -> None:
        while len(self._taking_over) < MAX_TAKING_OVER:
            try:
                byte, descriptors, _, _ = socket.recv_fds(self._connections, 1, 1)
            except BlockingIOError:
                return
            except OSError:
                byte, descriptors = b"", []
            if not byte:
                self._stop_accepting()  # the parent is gone; the link drains
                return
            # The kernel dropped a connection on its way here.
            if not descriptors and self._repeats.is_due("lost", asyncio.get_running_loop().time()):
                logger.error("can't take over a connection: all file descriptors are in use. Raise ulimit -n")
            for descriptor in descriptors:
                self._serve_on(socket.socket(fileno=descriptor))

    def _serve_on(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        loop = asyncio.get_running_loop()
        task = loop.create_task(loop.connect_accepted_socket(self._protocol, connection))
        self._taking_over.add(task)
        task.add_done_callback(self._taken_over)

    def _taken_over(self, task: "asyncio.Task[object]") -> None:
        self._taking_over.discard(task)
        if not task.cancelled():
            task.exception()  # mark it as seen: a peer may be gone again

    def _protocol(self) -> asyncio.Protocol:
        make: Callable[..., asyncio.Protocol] = self.config.http_protocol_class
        return make(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)

    def _stop_accepting(self) -> None:
        if self._connections.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._connections)
            self._connections.close()
