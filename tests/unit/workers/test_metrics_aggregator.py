"""A scrape has all workers' metrics or fails, and keeps the counters of dead workers."""

import asyncio

from prometheus_client import CollectorRegistry, Counter, Gauge

from app.workers import metric_families
from app.workers.metric_families import Family
from app.workers.metrics_aggregator import COLLECT_TIMEOUT_S, MetricsAggregator


def said_by_a_worker(readings: int) -> str:
    registry = CollectorRegistry()
    Counter("readings", "Readings.", registry=registry).inc(readings)
    return metric_families.encode(family for family in metric_families.families_of(registry.collect()))


class Workers:
    """Two workers, for which the test sends the messages."""

    def __init__(self) -> None:
        self.here = [1, 2]
        self.asked: list[int] = []
        self.answers: list[str | None] = []
        self.scrapes = MetricsAggregator(collect=self.collect, own=self.own)

    def collect(self, number: int) -> list[int]:
        self.asked.append(number)
        return self.here

    def own(self) -> list[Family]:
        registry = CollectorRegistry()
        Gauge("workers", "Workers.", registry=registry).set(len(self.here))
        return metric_families.families_of(registry.collect())

    def ask(self) -> None:
        self.scrapes.ask(self.answers.append)

    def say(self, worker: int, readings: int) -> None:
        self.scrapes.take(worker, self.asked[-1], said_by_a_worker(readings))


def readings_in(answer: str | None) -> float:
    assert answer is not None
    return float(answer.partition("\nreadings_total ")[2].split()[0])


async def test_a_scrape_is_the_sum_of_all_workers_and_whoever_asks_meanwhile_gets_the_next() -> None:
    workers = Workers()
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(workers.scrapes.run())
        workers.ask()
        await asyncio.sleep(0)
        workers.ask()
        workers.ask()
        workers.say(1, 3)
        await asyncio.sleep(0)
        assert workers.answers == []
        workers.say(2, 4)
        await asyncio.sleep(1)
        assert [readings_in(answer) for answer in workers.answers] == [7]
        assert "\nworkers 2.0" in str(workers.answers[0])
        workers.scrapes.take(1, workers.asked[0], said_by_a_worker(1))  # too late for the first
        workers.say(1, 10)
        workers.say(2, 10)
        await asyncio.sleep(1)
        assert [readings_in(answer) for answer in workers.answers] == [7, 20, 20]
        assert len(workers.asked) == 2
        running.cancel()


async def test_a_scrape_without_one_of_the_workers_fails_and_the_next_may_succeed() -> None:
    workers = Workers()
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(workers.scrapes.run())
        workers.ask()
        await asyncio.sleep(0)
        workers.say(1, 3)
        await asyncio.sleep(COLLECT_TIMEOUT_S + 1)
        assert workers.answers == [None]
        workers.ask()
        await asyncio.sleep(0)
        workers.say(1, 3)
        workers.say(2, 3)
        await asyncio.sleep(0)
        assert readings_in(workers.answers[1]) == 6
        running.cancel()


async def test_a_worker_that_dies_is_not_waited_for_and_what_it_last_said_still_counts() -> None:
    workers = Workers()
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(workers.scrapes.run())
        workers.ask()
        await asyncio.sleep(0)
        workers.say(1, 3)
        workers.say(2, 4)
        await asyncio.sleep(0)
        workers.ask()
        await asyncio.sleep(0)
        workers.say(1, 5)
        workers.scrapes.forget(2)
        await asyncio.sleep(0)
        assert [readings_in(answer) for answer in workers.answers] == [7, 9]
        running.cancel()
