"""The dashboards and alert rules that Grafana reads are those of their source."""

from grafana import alerts
from grafana.__main__ import ALERTS, FOLDER, texts


def test_the_dashboards_are_what_their_source_makes() -> None:
    """The dashboards are what `python -m grafana` makes, because one without a source would never change again."""
    assert {path.name: path.read_text() for path in FOLDER.iterdir()} == texts()


def test_alert_rules_are_what_their_source_makes() -> None:
    """Alert rules are what their source makes, so that a rule follows its panel's number."""
    assert {path.name: path.read_text() for path in ALERTS.parent.iterdir()} == {ALERTS.name: alerts.text()}
