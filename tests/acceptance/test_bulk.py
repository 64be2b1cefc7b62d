"""POST /api/readings, as a client meets it."""

import asyncio
import csv
import io
import json
import math
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import psycopg
import pytest

from tests.acceptance.bulk import CODECS, FORMATS, NDJSON, PATH, Row, Site, encoded, row_of, rows, scalar, site
from tests.acceptance.scrapes import adds_up, samples
from tests.acceptance.test_http import connection_to
from tests.acceptance.test_websocket import listen, receive
from tests.conftest import new_database
from tests.proxy import Fault, faulty_proxy
from tests.server import API_KEY, API_KEY_WS, eventually
from tests.unit.ingest.decode import bodies

NOW = datetime.now(UTC).replace(microsecond=123_456)


@pytest.fixture(scope="module")
def shared(embedded_admin_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A server at its defaults; each test has sensors of its own."""
    with new_database(embedded_admin_url) as url, site(tmp_path_factory.mktemp("shared"), url) as shared:
        yield shared


def reading(sensor: str, *, ago: timedelta = timedelta(0), **fields: object) -> dict[str, object]:
    """A reading that nothing is wrong with."""
    return {"sensor_id": sensor, "time": (NOW - ago).isoformat(), "temperature": 21.5, **fields}


def some_readings(prefix: str, count: int) -> list[dict[str, object]]:
    """Readings of several sensors and days, in which each of the metrics is missing now and then."""
    return [
        {
            "sensor_id": f"{prefix}sensor {number % 7}, «é»",
            "time": (NOW - timedelta(hours=number, microseconds=number)).isoformat(),
            "temperature": number / 7 if number % 3 else None,
            "humidity": -number * 1e-5 if number % 4 else None,
            "pressure": 1_000.0 + number,
        }
        for number in range(count)
    ]


def test_the_same_readings_are_the_same_rows_whatever_they_are_sent_as(database: str, tmp_path: Path) -> None:
    with site(tmp_path, database) as there:
        for format_ in FORMATS:
            for codec in CODECS:
                sent = some_readings(f"{format_} {codec} ", 300)
                body, headers = encoded(sent, format_, codec)
                answer = there.client.post(PATH, content=body, headers=headers)
                assert (answer.status_code, answer.json()) == (201, {"stored": 300})
                assert Counter(rows(database, f"{format_} {codec} %")) == Counter(map(row_of, sent))
    assert scalar(database, "SELECT count(DISTINCT id) FROM readings") == 300 * len(FORMATS) * len(CODECS)
