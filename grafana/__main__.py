"""Writes every dashboard to ``grafana/dashboards``, and the alert rules beside them: ``python -m grafana``."""

import json
from pathlib import Path

from grafana import alerts, compare, database, fleet, ingest, sensor

FOLDER = Path(__file__).parent / "dashboards"
ALERTS = Path(__file__).parent / "provisioning" / "alerting" / "rules.yml"


def texts() -> dict[str, str]:
    """Return each dashboard's JSON by the name of its file."""
    dashboards = {
        "fleet-overview.json": fleet.DASHBOARD,
        "sensor-detail.json": sensor.DASHBOARD,
        "compare-sensors.json": compare.DASHBOARD,
        "ingest-and-server.json": ingest.DASHBOARD,
        "database.json": database.DASHBOARD,
    }
    return {name: json.dumps(dashboard, indent=2, ensure_ascii=False) + "\n" for name, dashboard in dashboards.items()}


if __name__ == "__main__":
    for name, text in texts().items():
        (FOLDER / name).write_text(text)
    ALERTS.write_text(alerts.text())
