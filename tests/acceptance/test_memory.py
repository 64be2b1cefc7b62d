"""The memory of the server's process, as the system sees it."""

import asyncio
from pathlib import Path

import httpx
import orjson

from tests.support.server import API_KEY, Server, eventually, running

ROWS = 90_000
BODIES = 16
KEPT_MIB = 96
"""What bursts may leave behind: they left 140, and more with each, when freed memory was never returned."""


def rss_mib(server: Server) -> float:
    """Return the resident memory of the server, MiB."""
    return int(Path(f"/proc/{server.process.pid}/status").read_text().partition("VmRSS:")[2].split()[0]) / 1024


async def send(server: Server, body: bytes, count: int) -> set[int]:
    """Send a body a number of times at once and return the statuses."""
    headers = {"X-API-Key": API_KEY, "Content-Type": "application/x-ndjson"}
    async with httpx.AsyncClient(base_url=server.url, headers=headers, timeout=120) as client:
        answers = await asyncio.gather(*(client.post("/api/readings", content=body) for _ in range(count)))
        return {answer.status_code for answer in answers}


async def test_freed_memory_is_returned(embedded_database_url: str, tmp_path: Path) -> None:
    """After a burst of large bodies the process gives back what it has freed."""
    readings = [{"sensor_id": f"s{number % 1_000}", "temperature": 1.5, "note": "x" * 100} for number in range(ROWS)]
    body = b"\n".join(map(orjson.dumps, readings))
    with running(tmp_path, DATABASE_URL=embedded_database_url, BUFFER_MAX_BYTES="268435456") as server:
        for part in (body[:5_000], body[:1_000_000]):  # what is loaded and kept once
            await send(server, part[: part.rindex(b"\n")], 1)
        before = rss_mib(server)
        for _ in range(3):
            assert await send(server, body, BODIES) <= {201, 429}
        assert rss_mib(server) > before
        eventually(lambda: rss_mib(server) < before + KEPT_MIB, timeout_s=30)
