"""Readings out of limits, from bytes on a socket to the alert's query."""

import signal
import time
from pathlib import Path

from tests.support.bulk import scalar, site
from tests.support.server import eventually

LIMITS = {"limits": {"temperature": {"upper": 21}}}
ALERTED = "SELECT count(*) FROM limit_violations WHERE metric = 'temperature' AND value = 95"
LOGGED = "SELECT coalesce(sum(readings), 0)::int FROM limit_violation_log"


def test_hourly_batch_alerts(tmp_path: Path, embedded_database_url: str) -> None:
    """A batch of 60 with 19 readings beyond a limit alerts though its last is fine and the server is killed after its
    answer.
    """
    with site(tmp_path, embedded_database_url) as to:
        now_s = time.time()
        assert to.send({"sensor_id": "a", "temperature": 20}).status_code == 201
        assert to.client.patch("/api/sensors/a", json=LIMITS).status_code == 200
        sent = [
            {"sensor_id": "a", "time": now_s - 3_600 + 60 * place, "temperature": 95 if 30 <= place < 49 else 20}
            for place in range(60)
        ]
        assert to.send(*sent).json() == {"stored": 60}
        to.server.stop(signal.SIGKILL)
    assert scalar(embedded_database_url, LOGGED) == 19
    assert scalar(embedded_database_url, ALERTED) == 1


def test_limit_holds_in_every_worker(tmp_path: Path, embedded_database_url: str) -> None:
    """A limit that one worker was told reaches the others within seconds."""
    with site(tmp_path, embedded_database_url, WORKERS="2") as to:
        assert to.send({"sensor_id": "a", "temperature": 20}).status_code == 201
        assert to.client.patch("/api/sensors/a", json=LIMITS).status_code == 200
        before = scalar(embedded_database_url, LOGGED)

        def all_count() -> bool:
            first = scalar(embedded_database_url, LOGGED)
            for _ in range(4):  # connections go to the workers in turn
                answer = to.send({"sensor_id": "a", "temperature": 95}, Connection="close")
                assert answer.status_code == 201
            return bool(scalar(embedded_database_url, LOGGED) == first + 4)

        eventually(all_count)
        assert scalar(embedded_database_url, LOGGED) > before
