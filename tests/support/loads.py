"""Senders that keep account of each reading and its answer, while a server is disturbed."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import psycopg

from tests.support.server import API_KEY, Server

PATH = "/api/temperature_reading"


SENDERS = 16


class Load:
    """Many connections, each sending one reading after the other, every one of them unlike any other."""

    def __init__(self) -> None:
        self.statuses: Counter[int | str] = Counter()
        self.acknowledged: set[float] = set()
        self._numbers = iter(range(1, 100_000_000))

    @asynccontextmanager
    async def on(self, server: Server) -> AsyncIterator[None]:
        """Send to a server until the block ends. A broken connection ends its sender."""
        limits = httpx.Limits(max_connections=SENDERS)
        async with httpx.AsyncClient(headers={"X-API-Key": API_KEY}, limits=limits, timeout=30) as client:
            senders = [asyncio.create_task(self._send(client, server.url + PATH)) for _ in range(SENDERS)]
            try:
                yield
            finally:
                for sender in senders:
                    sender.cancel()
                await asyncio.gather(*senders, return_exceptions=True)

    def has_acknowledged(self, readings: int) -> bool:
        """Return whether a number of readings have been answered 201."""
        return len(self.acknowledged) >= readings

    async def _send(self, client: httpx.AsyncClient, url: str) -> None:
        while True:
            number = float(next(self._numbers))
            body = {"temperature": number, "humidity": 50, "pressure": 1000, "sensor_id": f"s{number % 50:g}"}
            try:
                answer = await client.post(url, json=body)
            except httpx.TransportError as error:
                self.statuses[type(error).__name__] += 1
                return
            self.statuses[answer.status_code] += 1
            if answer.status_code == 201:
                self.acknowledged.add(number)


def stored(url: str) -> Counter[float]:
    with psycopg.connect(url) as connection:
        return Counter(number for (number,) in connection.execute("SELECT temperature FROM readings"))
