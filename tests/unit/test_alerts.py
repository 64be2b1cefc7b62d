"""Prometheus' alerts: their texts, and promtool's tests of when they fire."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

REPOSITORY = Path(__file__).parents[2]
RULES = REPOSITORY / "prometheus" / "rules.yml"
CASES = Path(__file__).parent / "alerts.yml"

ALERTS: list[dict[str, Any]] = [
    rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"] if "alert" in rule
]
needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")


def promtool(*arguments: str | Path) -> None:
    """Run promtool, and fail with its output."""
    result = subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("alert", ALERTS, ids=[alert["alert"] for alert in ALERTS])
def test_an_alert_says_how_bad_it_is_what_has_happened_and_what_to_do(alert: dict[str, Any]) -> None:
    """An alert has a severity, a summary, a description of what to do, and a waiting time."""
    assert alert["for"] != "0s"
    assert alert["labels"].keys() == {"severity"}
    assert alert["labels"]["severity"] in {"critical", "warning"}
    assert alert["annotations"].keys() == {"summary", "description"}
    assert all(text.endswith(".") for text in alert["annotations"].values())


def test_every_alert_is_made_to_fire() -> None:
    """By name, in an expectation of promtool's tests."""
    expected = [
        sample["labels"]
        for case in yaml.safe_load(CASES.read_text())["tests"]
        for question in case["promql_expr_test"]
        for sample in question["exp_samples"]
    ]
    fired = set(re.findall(r'alertname="(\w+)"', " ".join(expected)))
    assert fired == {alert["alert"] for alert in ALERTS}


@needs_promtool
def test_promtool_finds_no_fault_in_the_rules() -> None:
    """The program promtool finds neither faults nor warnings in the rules."""
    promtool("check", "rules", "--lint-fatal", RULES)


@needs_promtool
def test_alerts_fire_when_they_should_and_not_otherwise() -> None:
    """Each alert fires after its time, and none fires at a fresh start, when counters start again, or at night."""
    promtool("test", "rules", CASES)
