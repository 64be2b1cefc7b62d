"""Metrics that many clients request at a time."""

import asyncio

import pytest

from app.web.ops import MAX_SCRAPE_PAUSE_S, SharedScrapes

COST_S = 0.005


class Metrics:
    """Something that takes its time to be made, and says when it was begun."""

    def __init__(self, *, cost_s: float = COST_S, fails: bool = False) -> None:
        self.begun: list[float] = []
        self._cost_s = cost_s
        self._fails = fails

    async def __call__(self) -> bytes:
        """Return the moment of the beginning."""
        moment = asyncio.get_running_loop().time()
        self.begun.append(moment)
        await asyncio.sleep(self._cost_s)
        if self._fails:
            raise TimeoutError
        return repr(moment).encode()


async def test_flood_takes_a_tenth_of_the_time() -> None:
    """Ten seconds of ten thousand requests take a second at most, and none is shown what is older than its request."""
    metrics = Metrics()

    async def ask(scrape: SharedScrapes, at_s: float) -> None:
        await asyncio.sleep(at_s)
        assert float(await scrape()) >= at_s - 1e-9

    scrape = SharedScrapes(metrics)
    await asyncio.gather(*(ask(scrape, number / 1_000) for number in range(10_000)))
    assert len(metrics.begun) * COST_S <= 1.05
    assert len(metrics.begun) > 100


async def test_single_scrape_does_not_wait() -> None:
    """A rare scrape is answered at once."""
    metrics = Metrics()
    scrape = SharedScrapes(metrics)
    for number in range(5):
        await asyncio.sleep(15)
        assert float(await scrape()) == pytest.approx(15 * (number + 1) + COST_S * number)


async def test_slow_scrape_delays_the_next_a_second_at_most() -> None:
    """A worker that hangs does not keep metrics away for longer than it must."""
    metrics = Metrics(cost_s=5.0)
    scrape = SharedScrapes(metrics)
    await scrape()
    await scrape()
    assert metrics.begun == [0, pytest.approx(5 + MAX_SCRAPE_PAUSE_S)]


async def test_error_reaches_all_who_asked() -> None:
    """A failed scrape fails for all who wait for it, and the next one tries again."""
    scrape = SharedScrapes(Metrics(fails=True))
    for _ in range(2):
        answers = await asyncio.gather(*(scrape() for _ in range(3)), return_exceptions=True)
        assert [type(answer) for answer in answers] == [TimeoutError] * 3


async def test_one_who_goes_away_ends_it_for_nobody() -> None:
    """A request that is cancelled does not cancel what others wait for."""
    scrape = SharedScrapes(Metrics())
    first = asyncio.create_task(scrape())
    second = asyncio.create_task(scrape())
    await asyncio.sleep(0)
    first.cancel()
    assert float(await second) == 0
