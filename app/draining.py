"""uvicorn's server, which drains whatever its connections do.

Order of a stop: nothing more is accepted; requests that have come whole are answered, and those still coming have a
moment for it; then the application ends, which flushes what it holds. That last step comes in any case. (8)
"""

import asyncio
import logging
import socket
from typing import Any

import uvicorn

logger = logging.getLogger(__name__)

UNFINISHED_S = 2.0
"""So long, and half of the patience at most, a request may still be coming when the server stops."""


class DrainingServer(uvicorn.Server):
    """A server of connections that have ``shutdown`` and ``refuse_unfinished``."""

    failure: BaseException | None = None
    """The error that ended it."""

    def fail(self, error: BaseException) -> None:
        """Drain and end, because of an error."""
        self.failure = error
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept nothing more, answer what came whole, and end the application."""
        try:
            for server in self.servers:
                server.close()
            for socket_ in sockets or []:
                socket_.close()
            self._tell_all("shutdown")
            await self._answer_all()
        except Exception as error:
            logger.error("unexpected error while closing connections", exc_info=error)
        finally:
            if not self.force_exit:
                await self.lifespan.shutdown()

    async def _answer_all(self) -> None:
        patience_s = float(self.config.timeout_graceful_shutdown or 0)
        unfinished_s = min(UNFINISHED_S, patience_s / 2)
        if await self._all_ended(unfinished_s):
            return
        self._tell_all("refuse_unfinished")
        if await self._all_ended(patience_s - unfinished_s):
            return
        logger.error("stopping with %d requests unanswered", len(self.server_state.tasks))
        for task in list(self.server_state.tasks):
            task.cancel()

    async def _all_ended(self, timeout_s: float) -> bool:
        """Wait until all connections and tasks have ended. Return whether they did in time."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._wait_tasks_to_complete()
        except TimeoutError:
            return False
        return True

    def _tell_all(self, method: str) -> None:
        connection: Any
        for connection in list(self.server_state.connections):
            try:
                getattr(connection, method)()
            except Exception as error:
                logger.error("unexpected error while closing a connection", exc_info=error)
                connection.transport.abort()
