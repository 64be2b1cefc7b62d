"""Runs Prometheus as docker-compose does, with the repository's configuration but another target."""

import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.support.server import REPOSITORY, eventually

SCRAPE_INTERVAL_S = 1
STOP_TIMEOUT_S = 15

Series = Mapping[str, Any]
"""One series of an answer, as the HTTP API writes it."""


class Prometheus:
    """A running Prometheus, by its HTTP API."""

    def __init__(self, url: str) -> None:
        self._client = httpx.Client(base_url=url, timeout=15)

    @property
    def has_scraped(self) -> bool:
        """Return whether scrapes have begun, some five seconds after the start, which no option changes."""
        try:
            return self._client.get("/-/ready").is_success and bool(self.ask("up == 1"))
        except httpx.TransportError:
            return False

    def close(self) -> None:
        self._client.close()

    def get(self, path: str) -> Any:
        """Return the answer of a path of the API."""
        return self._data(self._client.get(f"/api/v1{path}"))

    def ask(self, expression: str) -> list[Series]:
        """Return the current series of an expression. An error or a warning fails the test."""
        return list(self._data(self._client.post("/api/v1/query", data={"query": expression}))["result"])

    def ask_range(self, expression: str, *, start: float, end: float) -> list[Series]:
        """Return the series of an expression over a time, at each scrape."""
        form = {"query": expression, "start": str(start), "end": str(end), "step": str(SCRAPE_INTERVAL_S)}
        return list(self._data(self._client.post("/api/v1/query_range", data=form))["result"])

    def value(self, expression: str) -> float:
        """Return the one current value of an expression."""
        [series] = self.ask(expression)
        return float(series["value"][1])

    @staticmethod
    def _data(answer: httpx.Response) -> Any:
        content = answer.json()
        assert content["status"] == "success", content
        assert not content.keys() & {"warnings", "infos"}, content
        return content["data"]


@contextmanager
def prometheus(folder: Path, *, target: str) -> Iterator[Prometheus]:
    """Run a Prometheus that scrapes ``target``, host and port, each second, or skip the test with the reason if there
    is none.
    """
    if shutil.which("prometheus") is None:
        pytest.skip("prometheus is not installed")
    shutil.copytree(REPOSITORY / "prometheus", folder, dirs_exist_ok=True)
    configuration = yaml.safe_load((folder / "prometheus.yml").read_text())
    interval = f"{SCRAPE_INTERVAL_S}s"
    configuration["global"] |= {
        "scrape_interval": interval,
        "scrape_timeout": interval,
        "evaluation_interval": interval,
    }
    for job in configuration["scrape_configs"]:
        job["static_configs"] = [{"targets": [target]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration))
    address = f"127.0.0.1:{_free_port()}"
    with (folder / "log").open("w+") as log:
        process = subprocess.Popen(
            [
                *("prometheus", f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"),
                *(f"--web.listen-address={address}", "--log.level=warn", "--scrape.discovery-reload-interval=100ms"),
            ],
            stdout=log,
            stderr=log,
        )
        server = Prometheus(f"http://{address}")
        try:
            eventually(lambda: process.poll() is not None or server.has_scraped)
            if process.poll() is not None:
                log.seek(0)
                pytest.fail(f"prometheus ended: {log.read()}")
            yield server
        finally:
            server.close()
            process.terminate()
            process.wait(STOP_TIMEOUT_S)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def samples(answer: httpx.Response) -> dict[str, float]:
    """Return every sample without labels, by name."""
    assert answer.status_code == 200
    families = text_string_to_metric_families(answer.text)
    return {sample.name: sample.value for family in families for sample in family.samples if not sample.labels}


def adds_up(said: dict[str, float]) -> bool:
    """Return whether every accepted reading is accounted for."""
    ends = sum(said[f"sensorflow_readings_{end}_total"] for end in ("committed", "rejected", "given_back"))
    return said["sensorflow_readings_accepted_total"] == ends + said["sensorflow_buffer_rows"]
