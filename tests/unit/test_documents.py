"""The pages for people name only things that exist."""

import re
from pathlib import Path

import pytest
import yaml

from app.web.error_responses import STATUSES

REPOSITORY = Path(__file__).parents[2]
DOCUMENTS = sorted([*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").glob("*.md")])
FILE = re.compile(r"`((?:app|alembic|benchmarks|docs|grafana|prometheus|tests)/[\w./-]*)`")
LINK = re.compile(r"\]\(([^)#\s]+)(#[^)\s]*)?\)")


def each_document() -> pytest.MarkDecorator:
    """Run a test once for each document."""
    return pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)


def test_statuses() -> None:
    """Each status has a row in the API's page, and the alert on requests that are not acceptable counts it."""
    rows = re.findall(r"^\| ([\d, ]+) \|", (REPOSITORY / "docs" / "api.md").read_text(), re.MULTILINE)
    on_page = {int(number) for row in rows for number in row.split(",")} | {404}
    assert set(STATUSES.values()) <= on_page
    rules = (REPOSITORY / "prometheus" / "rules.yml").read_text()
    [counted] = re.findall(r'status=~"(401[\d|]*)"', rules)
    try_again = {408, 429}
    assert {int(number) for number in counted.split("|")} == {
        status for status in STATUSES.values() if status < 500 and status not in {404, *try_again}
    }


@each_document()
def test_named_files_exist(document: Path) -> None:
    """A document names only files and folders that exist."""
    named = set(FILE.findall(document.read_text()))
    assert {name for name in named if not (REPOSITORY / name).exists()} == set()


@each_document()
def test_links_lead_somewhere(document: Path) -> None:
    """A link within the repository leads to a file, and to a heading that is in it."""
    for target, anchor in LINK.findall(document.read_text()):
        if "://" in target:
            continue
        file = document.parent / target
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text(), re.MULTILINE)
            anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor.removeprefix("#") in anchors, anchor


def test_every_alert_is_explained() -> None:
    """docs/operations.md has a row, with something to do, for each alert of Prometheus and Grafana, and no other."""
    page = (REPOSITORY / "docs" / "operations.md").read_text()
    rules = yaml.safe_load((REPOSITORY / "prometheus" / "rules.yml").read_text())["groups"]
    alerts = {f"`{rule['alert']}`" for group in rules for rule in group["rules"] if "alert" in rule}
    of_grafana = yaml.safe_load((REPOSITORY / "grafana/provisioning/alerting/rules.yml").read_text())["groups"]
    alerts |= {f"*{rule['title']}*" for group in of_grafana for rule in group["rules"]}
    rows = re.findall(r"^\| (`SensorFlow\w+`|\*[\w ]+\*) \| (.+) \| (.+) \|$", page, re.MULTILINE)
    assert {name for name, _, _ in rows} == alerts
    assert len(rows) == len(alerts)
