"""The dashboards that Grafana reads are those of their source."""

from grafana.__main__ import FOLDER, texts


def test_the_dashboards_are_what_their_source_makes() -> None:
    """`python -m grafana` makes them; a dashboard without a source would never be changed again."""
    assert {path.name: path.read_text() for path in FOLDER.iterdir()} == texts()
