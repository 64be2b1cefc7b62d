"""The parent of the workers: starts them, hands them connections, and passes their messages on.

It accepts no reading and answers no request. It does little for each connection, and for each reading with subscribers
on another worker, and nothing for other readings.

Promises:
    * Connections go to the workers in turn, to those that accept readings if there are any, and never to a dead one.
    * While no worker takes connections, they wait in the kernel's queue.
    * A worker that ends unasked is replaced. What it had counted stays counted.
    * SIGTERM and SIGINT: no new connections, and every worker drains; a second SIGINT ends them at once.
    * When the parent ends, in whatever way, no worker outlives its own drain.
"""

import asyncio
import logging
import signal
import socket
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import count
from multiprocessing.process import BaseProcess

from prometheus_client.core import CounterMetricFamily

from app.errors import ConfigurationError
from app.live.mailbox import Mailbox
from app.metrics import Gauge, ProcessMetrics
from app.repeats import Repeats
from app.workers import metric_families
from app.workers.channel import Channel, ChannelStats
from app.workers.messages import (
    Collect,
    Control,
    Drain,
    Exposition,
    ForwardingAck,
    Hello,
    Join,
    Leave,
    MessagesDropped,
    MetricFamilies,
    Ready,
    Receipts,
    Scrape,
    Started,
    Unusable,
)
from app.workers.metric_families import Family
from app.workers.metrics_aggregator import MetricsAggregator
from app.workers.subscription_router import Order, SubscriptionRouter

logger = logging.getLogger(__name__)

Spawn = Callable[[int, socket.socket, socket.socket], BaseProcess]
"""Starts a worker of a number, given its ends of the channel and of the socket that brings connections."""

ACCEPTS_A_TURN = 64
ACCEPT_PAUSE_S = 1.0
"""After the machine has refused an accept, for want of descriptors perhaps."""
FULL_PAUSE_S = 0.05
"""After no worker has taken a connection, because each has some 280 before it."""
FIRST_RESTART_PAUSE_S = 0.1
LONGEST_RESTART_PAUSE_S = 5.0
STEADY_AFTER_S = 30.0
"""A worker that lived so long is replaced at once."""
END_TIMEOUT_S = 10.0
"""From the end of a worker's channel to the end of its process."""


@dataclass(slots=True, eq=False)
class _Worker:
    number: int
    process: BaseProcess
    channel: Channel
    connections: socket.socket
    started: bool = False
    ready: bool = False


class Supervisor:
    """The parent process of several workers.

    Args:
        workers: how many.
        spawn: starts one.
        listener: where connections arrive; closed when the server stops.
        max_subscribers_per_key: over all workers.
        new_mailbox: makes what holds the receipts that wait for a worker.
        stop_timeout_s: how long a worker may take to drain.
        horizon_us: the latest time that a reading may have now, microseconds since 1970 UTC.
        announce: is told the database's edition once every worker accepts readings.
    """

    def __init__(
        self,
        *,
        workers: int,
        spawn: Spawn,
        listener: socket.socket,
        max_subscribers_per_key: int,
        new_mailbox: Callable[[], Mailbox],
        stop_timeout_s: float,
        horizon_us: Callable[[], float],
        announce: Callable[[str], None],
    ) -> None:
        self._size = workers
        self._spawn = spawn
        self._listener = listener
        self._new_mailbox = new_mailbox
        self._stop_timeout_s = stop_timeout_s
        self._announce = announce
        self._announced = False
        self._router = SubscriptionRouter(max_subscribers_per_key, horizon_us)
        self._workers: dict[int, _Worker] = {}
        self._numbers = count(1)
        self._takers: list[_Worker] = []
        self._turn = 0
        self._accepting = False
        self._in_hand: socket.socket | None = None
        """A connection that no worker took; it is the next to be handed over."""
        self._repeats = Repeats()
        self._stopping = asyncio.Event()
        self._signals: list[int] = []
        self._unusable: str | None = None
        self._stats = ChannelStats()
        self._restarts = 0
        self._scrapes = MetricsAggregator(collect=self._collect, own=self._own_families)

    async def run(self) -> signal.Signals | None:
        """Serve until a signal arrives, and return it.

        Raises:
            ConfigurationError: no worker can start like this.
        """
        loop = asyncio.get_running_loop()
        for signal_ in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signal_, self._on_signal, signal_)
        self._listener.setblocking(False)
        scrapes = asyncio.create_task(self._scrapes.run())
        keeping = [asyncio.create_task(self._keep_running()) for _ in range(self._size)]
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            # One that ends unasked has met an unforeseen error.
            await asyncio.wait([stopping, *keeping], return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._stopping.set()
            self._stop_accepting()
            for worker in self._workers.values():
                worker.channel.send(Drain())
            _, late = await asyncio.wait(keeping, timeout=self._stop_timeout_s)
            if late:
                logger.error("%d workers did not end in time; killing them", len(late))
                self._kill_all()
            outcomes = await asyncio.gather(*keeping, return_exceptions=True)
            scrapes.cancel()
            await asyncio.gather(scrapes, return_exceptions=True)
        if self._unusable is not None:
            raise ConfigurationError(self._unusable)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
        return signal.Signals(self._signals[0]) if self._signals else None

    async def _keep_running(self) -> None:
        """Keep one worker running, and replace it when it ends, until the server stops."""
        loop = asyncio.get_running_loop()
        pause_s = FIRST_RESTART_PAUSE_S
        while not self._stopping.is_set():
            began = loop.time()
            try:
                worker = await self._start()
            except OSError as error:
                logger.error("can't start a worker: %s", error.strerror)
                await _until(self._stopping, timeout_s=LONGEST_RESTART_PAUSE_S)
                continue
            try:
                await worker.channel.run(partial(self._receive, worker))
            finally:
                self._forget(worker)
                await self._end(worker)
            if self._stopping.is_set():
                return
            self._restarts += 1
            logger.error("worker %d ended (%s); starting another", worker.number, _exit_reason(worker.process))
            pause_s = FIRST_RESTART_PAUSE_S if loop.time() - began > STEADY_AFTER_S else 2 * pause_s
            await _until(self._stopping, timeout_s=min(pause_s, LONGEST_RESTART_PAUSE_S))

    async def _start(self) -> _Worker:
        number = next(self._numbers)
        channel_here, channel_there = socket.socketpair()
        connections_here, connections_there = socket.socketpair()
        connections_here.setblocking(False)
        with channel_there, connections_there, ExitStack() as undo:
            undo.callback(channel_here.close)
            undo.callback(connections_here.close)
            # The worker must not hear a terminal's SIGINT, not even before it has a handler.
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            try:
                process = self._spawn(number, channel_there, connections_there)
            finally:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
            undo.pop_all()
        channel = await Channel.open(channel_here, mailbox=self._new_mailbox(), stats=self._stats)
        worker = self._workers[number] = _Worker(number, process, channel, connections_here)
        logger.info("worker %d is process %d", number, process.pid)
        if self._stopping.is_set():
            channel.send(Drain())
        return worker

    def _forget(self, worker: _Worker) -> None:
        """Remove a worker that has ended or is about to."""
        worker.started = worker.ready = False
        self._choose_takers()
        self._send_all(self._router.disconnect(worker.number))
        self._scrapes.forget(worker.number)
        del self._workers[worker.number]
        worker.connections.close()

    async def _end(self, worker: _Worker) -> None:
        """Wait for the end of the process, and kill it after END_TIMEOUT_S."""
        await worker.channel.close()
        ended = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_reader(worker.process.sentinel, ended.set)
        try:
            if not await _until(ended, timeout_s=END_TIMEOUT_S):
                worker.process.kill()
                await ended.wait()
        finally:
            loop.remove_reader(worker.process.sentinel)
        worker.process.join()

    def _kill_all(self) -> None:
        for worker in self._workers.values():
            worker.process.kill()

    def _on_signal(self, signal_: int) -> None:
        if self._stopping.is_set() and signal_ == signal.SIGINT:
            self._kill_all()
        self._signals.append(signal_)
        self._stopping.set()

    def _choose_takers(self) -> None:
        """Choose the workers that accept readings. If there are none, those that can at least answer 503."""
        workers = self._workers.values()
        self._takers = [worker for worker in workers if worker.ready] or [
            worker for worker in workers if worker.started
        ]
        should_accept = bool(self._takers) and not self._stopping.is_set()
        if should_accept != self._accepting:
            self._accepting = should_accept
            loop = asyncio.get_running_loop()
            if should_accept:
                loop.add_reader(self._listener, self._accept)
                if self._in_hand is not None:
                    self._accept()
            else:
                loop.remove_reader(self._listener)

    def _stop_accepting(self) -> None:
        if self._accepting:
            self._accepting = False
            asyncio.get_running_loop().remove_reader(self._listener)
        self._takers = []
        self._listener.close()
        if self._in_hand is not None:
            self._in_hand.close()

    def _accept(self) -> None:
        for _ in range(ACCEPTS_A_TURN):
            try:
                connection = self._in_hand or self._listener.accept()[0]
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if self._repeats.is_due(str(error), asyncio.get_running_loop().time()):
                    logger.error("can't accept connections: %s", error.strerror)
                self._pause_accepting(ACCEPT_PAUSE_S)
                return
            if not self._hand_over(connection):
                self._in_hand = connection
                self._pause_accepting(FULL_PAUSE_S)
                return
            self._in_hand = None
            connection.close()

    def _pause_accepting(self, pause_s: float) -> None:
        """Leave connections in the kernel's queue for a while."""
        loop = asyncio.get_running_loop()
        self._accepting = False
        loop.remove_reader(self._listener)
        loop.call_later(pause_s, self._choose_takers)

    def _hand_over(self, connection: socket.socket) -> bool:
        """Hand a connection to the next worker that takes it. Return whether one did."""
        for _ in range(len(self._takers)):
            self._turn = (self._turn + 1) % len(self._takers)
            try:
                socket.send_fds(self._takers[self._turn].connections, [b"\0"], [connection.fileno()])
            except OSError:  # dead, or takes nothing: the next one
                continue
            return True
        return False

    def _receive(self, worker: _Worker, message: Control | Receipts) -> None:
        router = self._router
        match message:
            case Hello():
                self._send_all(router.connect(worker.number))
            case Join(slot, key_name):
                self._send_all(router.join(worker.number, slot, key_name))
            case Leave(slot):
                self._send_all(router.leave(worker.number, slot))
            case ForwardingAck(number, latest):
                self._send_all(router.acknowledge(worker.number, number, latest))
            case MessagesDropped(latest):
                for listener in router.route(worker.number, [latest]):
                    self._workers[listener].channel.report_dropped(latest)
            case Sequence():
                for listener in router.route(worker.number, message):
                    self._workers[listener].channel.forward(message)
            case _:
                self._handle(worker, message)

    def _handle(self, worker: _Worker, message: Control) -> None:
        """Handle a message that is not about subscribers."""
        match message:
            case Started():
                worker.started = True
                self._choose_takers()
            case Ready(edition, latest):
                worker.ready = True
                if latest is not None:
                    self._router.note_latest(latest)
                self._choose_takers()
                if not self._announced and sum(each.ready for each in self._workers.values()) == self._size:
                    self._announced = True
                    self._announce(edition)
            case Unusable(reason):
                self._unusable = self._unusable or reason
                self._stopping.set()
            case Scrape(number):
                self._scrapes.ask(lambda text: worker.channel.send(Exposition(number, text)))
            case MetricFamilies(number, text):
                self._scrapes.take(worker.number, number, text)

    def _send_all(self, orders: Sequence[Order]) -> None:
        for number, message in orders:
            self._workers[number].channel.send(message)

    def _collect(self, number: int) -> Sequence[int]:
        for worker in self._router.workers:
            self._workers[worker].channel.send(Collect(number))
        return self._router.workers

    def _own_families(self) -> Sequence[Family]:
        return metric_families.families_of(
            [
                *metric_families.ChannelCollector(self._stats).collect(),
                CounterMetricFamily("sensorflow_worker_restarts", "Workers that ended unasked.", value=self._restarts),
                Gauge("sensorflow_workers", "Worker processes.", len(self._workers), "sum"),
                *ProcessMetrics().collect(),
            ]
        )


def _exit_reason(process: BaseProcess) -> str:
    code = process.exitcode or 0
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"status {code}"


async def _until(event: asyncio.Event, *, timeout_s: float) -> bool:
    """Wait for an event, and return whether it happened in time."""
    try:
        async with asyncio.timeout(timeout_s):
            return await event.wait()
    except TimeoutError:
        return False
