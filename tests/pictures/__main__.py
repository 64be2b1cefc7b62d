"""Draws the README's pictures: ``python -m tests.pictures``.

A database and a server are started, demo data is sent over HTTP, each panel's queries are run as Grafana would, and
Chromium draws the answers with Grafana's published components, in our image's version. No Grafana server takes part.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import psycopg
import pytest

from tests.grafana.dashboards import DASHBOARDS, REPOSITORY
from tests.grafana.schema import image_version
from tests.pictures.asking import Asker, Picture
from tests.pictures.demo import DETAIL, LENGTH, Farm
from tests.support.clusters import cluster
from tests.support.npm import install
from tests.support.server import eventually, running

SOURCE = Path(__file__).parent
IMAGES = REPOSITORY / "docs" / "images"
CACHE = REPOSITORY / ".pytest_cache" / "d" / "pictures"
GRAFANA = [f"@grafana/{name}@{image_version()}" for name in ("data", "schema", "ui")]
OTHERS = ["react@18.3.1", "react-dom@18.3.1", "rxjs@7.8.2", "esbuild@0.28.2", "playwright-core@1.65.1"]
BROWSERS = "chromium", "chromium-browser", "google-chrome"
BUNDLE = (
    *("--bundle", "--format=iife", "--jsx=automatic", "--log-level=error", "--define:global=window"),
    '--define:process.env.NODE_ENV="production"',
    *(f"--loader:.{kind}=dataurl" for kind in ("svg", "png", "woff", "woff2", "ttf")),
)
WIDTH_PX = 1366
CELL = {"columns": 24, "height": 38, "gap": 8, "header": 48}
"""Grafana's grid: rows of 30 pixels with gaps of 8."""
MOST_BYTES = 400_000
LIVE_S = 80
"""Longer than the minute whose rate is shown."""
SETTLE_S = 35
"""Sensors that are on count as offline after 60, and the pictures would show them so."""
SETTLED = """
SELECT (SELECT sum(count) FROM readings_1h) = %(stored)s AND (SELECT sum(count) FROM readings_1m) = %(stored)s
   AND (SELECT max(time) - min(time) FROM latest_readings WHERE time > now() - INTERVAL '1 hour') < INTERVAL '5 seconds'
"""
"""The aggregates have all that is stored, and of every sensor that is on, the last reading is the latest one."""

READINGS = "Readings by their own time"
PICTURES = (
    Picture("fleet-overview", timedelta(hours=24), "Last 24 hours", {}, {READINGS}, WIDTH_PX),
    Picture(
        "sensor-detail",
        timedelta(days=2),
        "Last 2 days",
        {"sensor": [DETAIL], "metric": ["Temperature"]},
        (),
        WIDTH_PX,
    ),
)


def say(text: str) -> None:
    """Print what is being done."""
    print(text, flush=True)


@contextmanager
def database() -> Iterator[str]:
    """Return a superuser's connection string, on TimescaleDB Community or else on the embedded PostgreSQL."""
    with ExitStack() as stack:
        try:
            url = stack.enter_context(cluster("community"))
            say("The database is TimescaleDB Community.")
        except pytest.skip.Exception as reason:
            url = stack.enter_context(cluster("embedded"))
            say(f"The database is the embedded PostgreSQL: {reason.msg}.")
        yield url


def bundled() -> Path:
    """Build the page that draws, from Grafana's packages and ours, and return its folder."""
    CACHE.mkdir(parents=True, exist_ok=True)
    folder = install(CACHE, *GRAFANA, *OTHERS)
    shutil.copy(SOURCE / "shoot.mjs", folder)  # Node looks for packages beside the script
    modules = folder / "node_modules"
    bundler = modules / ".bin" / "esbuild"
    subprocess.run(
        [bundler, SOURCE / "page.jsx", f"--outfile={folder / 'page.js'}", *BUNDLE],
        env=os.environ | {"NODE_PATH": str(modules)},
        check=True,
    )
    return folder


def draw(connection: psycopg.Connection, picture: Picture, browser: str, folder: Path) -> int:
    """Write the picture of a dashboard as it is now, and return its size in bytes."""
    dashboard = DASHBOARDS[f"{picture.dashboard}.json"]
    asker = Asker(connection, dashboard, picture)
    panels, lacking = asker.panels()
    for panel in lacking:
        say(f"  left out: {panel}")
    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels)
    page = {
        "title": dashboard["title"],
        "labels": asker.labels,
        "from_ms": asker.start.timestamp() * 1_000,
        "to_ms": asker.end.timestamp() * 1_000,
        "range": picture.range_text,
        "panels": panels,
        "cell": {**CELL, "width": (picture.width_px - CELL["gap"]) / CELL["columns"]},
    }
    image = IMAGES / f"{picture.dashboard}.png"
    height_px = CELL["header"] + rows * CELL["height"]
    with TemporaryDirectory(prefix="sensorflow-test-") as temporary:
        data = Path(temporary) / "dashboard.json"
        data.write_text(json.dumps(page))
        arguments = (browser, folder, data, image, str(picture.width_px), str(height_px))
        subprocess.run(["node", folder / "shoot.mjs", *arguments], check=True)
    size = image.stat().st_size
    say(f"{image.relative_to(REPOSITORY)}: {picture.width_px} x {height_px} pixels, {size:,} bytes")
    return size


def wait_until_settled(connection: psycopg.Connection, stored: int) -> None:
    """Wait for aggregates and latest readings of all that is stored."""
    try:
        eventually(lambda: connection.execute(SETTLED, {"stored": stored}).fetchone() == (True,), timeout_s=SETTLE_S)
    except AssertionError:
        pytest.fail(f"aggregates and latest readings were not up to date within {SETTLE_S} s")


def main() -> int:
    """Draw all pictures, and return the exit status."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        say(f"There is no {' or '.join(BROWSERS)} here: install Chromium.")
        return 1
    IMAGES.mkdir(parents=True, exist_ok=True)
    try:
        with ExitStack() as stack:
            folder = bundled()
            say(f"Grafana's packages are of version {image_version()}, the browser is {browser}.")
            url = stack.enter_context(database())
            temporary = stack.enter_context(TemporaryDirectory(prefix="sensorflow-test-"))
            farm = Farm(stack.enter_context(running(Path(temporary), DATABASE_URL=url)).url)
            farm.register()
            say(f"{farm.send_past():,} readings of {LENGTH.days} days are stored; {LIVE_S} s of live ones follow.")
            connection = stack.enter_context(psycopg.connect(url, autocommit=True))
            farm.live(time.sleep, LIVE_S)
            wait_until_settled(connection, farm.stored)
            size = sum(draw(connection, picture, browser, folder) for picture in PICTURES)
    except (pytest.skip.Exception, pytest.fail.Exception) as reason:
        say(f"The pictures can't be drawn: {reason.msg}.")
        return 1
    except subprocess.CalledProcessError as error:
        say(f"The pictures can't be drawn: {Path(error.cmd[0]).name} ended with status {error.returncode}, see above.")
        return 1
    if size > MOST_BYTES:
        say(f"The pictures have {size:,} bytes together, more than {MOST_BYTES:,}: draw less, or smaller.")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
