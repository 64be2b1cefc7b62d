"""Aggregates and latest readings hold every reading that was answered 201, even after a kill."""

import signal
import time
from pathlib import Path

from tests.support.aggregating import COUNTS
from tests.support.bulk import Site, scalar, site
from tests.support.clusters import cluster
from tests.support.databases import new_database
from tests.support.server import eventually

HOUR = 3_600
LATEST = """
SELECT NOT EXISTS (
    SELECT sensor_id, max(time) FROM readings GROUP BY 1 EXCEPT SELECT sensor_id, time FROM latest_readings
)
"""


def send(to: Site, now_s: float) -> None:
    """Send readings of now, of an hour that a policy refreshes, and of long ago, from the latest back."""
    ages_s = [*range(0, HOUR, 60), *range(5 * HOUR, 6 * HOUR, 60), *range(2_000 * HOUR, 2_001 * HOUR, 60)]
    sent = [{"sensor_id": f"s{age % 7}", "time": now_s - age, "temperature": 20.5} for age in ages_s]
    assert to.send(*sent, query="backfill=true").json() == {"stored": len(ages_s)}


def test_a_killed_server_leaves_no_hole_in_the_aggregates(tmp_path: Path) -> None:
    """A server that is killed before or during a refresh of late readings leaves no hole in the aggregates."""
    with cluster("community") as admin_url, new_database(admin_url) as url:
        now_s = time.time()
        for life in range(3):
            with site(tmp_path, url) as to:
                for part in range(4):
                    send(to, now_s - 13 * part - life)
                time.sleep(life)
                to.server.stop(signal.SIGKILL)
        with site(tmp_path, url):
            eventually(lambda: bool(scalar(url, COUNTS)), timeout_s=60)
            eventually(lambda: bool(scalar(url, LATEST)))
        assert scalar(url, "SELECT count(*) FROM readings") == 3 * 4 * 180
