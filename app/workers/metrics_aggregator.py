"""The metrics of the whole server: every worker is asked for its own, and they become one exposition.

Promises:
    * A scrape shows what every worker counted at a moment after it was asked for, or fails.
    * What a worker had counted at its last scrape stays counted after its death.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence

from prometheus_client import generate_latest

from app.workers import metric_families
from app.workers.metric_families import Family

logger = logging.getLogger(__name__)

COLLECT_TIMEOUT_S = 5.0

MetricsCallback = Callable[[str | None], None]
"""Gets the exposition, or None if a worker did not send its metrics in time."""


class MetricsAggregator:
    """The scrapes under way, and the metrics that workers have sent.

    Args:
        collect: asks every worker for its families, under a number, and returns the workers that were asked.
        own: the parent's own metrics.
    """

    def __init__(self, *, collect: Callable[[int], Iterable[int]], own: Callable[[], Sequence[Family]]) -> None:
        self._collect = collect
        self._own = own
        self._asking: list[MetricsCallback] = []
        self._asked = asyncio.Event()
        self._number = 0
        """That of the last collection."""
        self._missing: set[int] = set()
        self._complete = asyncio.Event()
        self._of_workers: dict[int, Sequence[Family]] = {}
        """As of the last scrape."""
        self._of_the_dead: Sequence[Family] = ()

    def ask(self, answer: MetricsCallback) -> None:
        """Request the metrics. ``answer`` gets them."""
        self._asking.append(answer)
        self._asked.set()

    def take(self, worker: int, number: int, text: str) -> None:
        """Take a worker's families, if they were requested under the current number."""
        if number == self._number:
            self._of_workers[worker] = metric_families.decode(text)
            self._mark_answered(worker)

    def forget(self, worker: int) -> None:
        """Remove a worker, and keep its counters."""
        last_said = self._of_workers.pop(worker, ())
        self._of_the_dead = metric_families.merged(
            [self._of_the_dead, metric_families.counters_of_dead_workers(last_said)]
        )
        self._mark_answered(worker)

    async def run(self) -> None:
        """Run one collection at a time, until cancelled. A request during one is answered by the next."""
        while True:
            await self._asked.wait()
            self._asked.clear()
            asking, self._asking = self._asking, []
            text = await self._exposition()
            for answer in asking:
                answer(text)

    async def _exposition(self) -> str | None:
        self._number += 1
        self._complete.clear()
        self._missing = set(self._collect(self._number))
        try:
            async with asyncio.timeout(COLLECT_TIMEOUT_S):
                if self._missing:
                    await self._complete.wait()
        except TimeoutError:
            logger.warning("workers %s did not send their metrics in time", sorted(self._missing))
            return None
        parts = [*self._of_workers.values(), self._of_the_dead, self._own()]
        return generate_latest(metric_families.MergedMetrics(metric_families.merged(parts))).decode()

    def _mark_answered(self, worker: int) -> None:
        self._missing.discard(worker)
        if not self._missing:
            self._complete.set()
