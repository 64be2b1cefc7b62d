"""The order of a stop: the application ends, and it ends last, whatever connections do."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import uvicorn

from app.draining import UNFINISHED_S, DrainingServer

PATIENCE_S = 10


class Connection:
    """A connection that records its calls and their times."""

    def __init__(self, server: "Stopping", *, ends_at: str = "", fails: bool = False) -> None:
        self.told: list[tuple[str, float]] = []
        self.transport = self
        self._server = server
        self._ends_at = ends_at
        self._fails = fails

    def shutdown(self) -> None:
        self._hear("shutdown")

    def refuse_unfinished(self) -> None:
        self._hear("refuse_unfinished")

    def abort(self) -> None:
        self._hear("abort")

    def _hear(self, what: str) -> None:
        self.told.append((what, round(asyncio.get_running_loop().time(), 1)))
        if what == self._ends_at:
            self._server.alive.discard(self)
        if self._fails and what != "abort":
            raise AssertionError("a library did not expect this")


class Stopping(DrainingServer):
    """A server that has started, with connections of the test."""

    def __init__(self) -> None:
        async def application(*_: object) -> None: ...

        super().__init__(uvicorn.Config(application, timeout_graceful_shutdown=PATIENCE_S, log_config=None))
        self.servers = []
        self.ended_at: list[float] = []
        self.alive: set[Any] = self.server_state.connections
        self.lifespan: Any = self

    def connect(self, **how: Any) -> Connection:
        self.alive.add(connection := Connection(self, **how))
        return connection

    async def stop(self) -> float:
        """Stop the server, and return when the application was ended."""
        end: Callable[[], Any] = super().shutdown
        await end()
        (ended_at,) = self.ended_at
        return ended_at

    async def shutdown(self, sockets: Any = None) -> None:  # noqa: ARG002  # as the lifespan that it stands for
        self.ended_at.append(round(asyncio.get_running_loop().time(), 1))


async def test_idle_server_ends_at_once() -> None:
    """Without connections the application is ended without a wait."""
    assert await Stopping().stop() == 0


async def test_unfinished_requests_are_refused() -> None:
    """Incomplete requests are refused after a moment, and the stop waits for requests that are being answered."""
    server = Stopping()
    idle, slow = server.connect(ends_at="shutdown"), server.connect(ends_at="refuse_unfinished")
    ended_at = await server.stop()
    assert idle.told == [("shutdown", 0)]
    assert slow.told == [("shutdown", 0), ("refuse_unfinished", UNFINISHED_S)]
    assert UNFINISHED_S <= ended_at <= UNFINISHED_S + 0.2


async def test_patience_ends() -> None:
    """A connection that never ends does not keep the application from it, and its task is cancelled."""
    server = Stopping()
    server.connect()
    task = asyncio.create_task(asyncio.sleep(1_000))
    server.server_state.tasks.add(task)
    assert await server.stop() == PATIENCE_S
    await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled()


async def test_connection_that_fails() -> None:
    """A connection whose end raises is aborted, and neither the others nor the application are left out."""
    server = Stopping()
    failing = [server.connect(ends_at="abort", fails=True) for _ in range(3)]
    well = server.connect(ends_at="shutdown")
    assert await server.stop() <= 0.2
    assert [connection.told[-1] for connection in failing] == [("abort", 0)] * 3
    assert well.told == [("shutdown", 0)]


async def test_anything_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """The application ends whatever fails before."""
    server = Stopping()

    def fail(_: str) -> None:
        raise RuntimeError("nobody foresaw this")

    monkeypatch.setattr(server, "_tell_all", fail)
    assert await server.stop() == 0
