"""The chart's alerts: what fires, what stays quiet, and what a person reads, by Prometheus' own unit tests."""

import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest
import yaml

from charts.queries import METRIC
from charts.rendering import MONITORING, ROOT, Manifest, render, the_only, without
from charts.test_dashboard import exported

pytestmark = pytest.mark.helm

CASES = Path(__file__).parent / "alerts.yaml"
RUNBOOKS = ROOT / "docs" / "alerts.md"


@cache
def rules() -> Manifest:
    """The rules as Prometheus reads them, with the thresholds of the values' defaults."""
    settings = {"enabled": True, "runbookURL": "https://runbooks.example.com/alerts.md"}
    manifests = render({"metrics": {"prometheusRule": settings}}, apis=MONITORING)
    spec: Manifest = the_only(manifests, "PrometheusRule")["spec"]
    return spec


def alerts() -> tuple[Manifest, ...]:
    """Every alert of every group."""
    return tuple(rule for group in rules()["groups"] for rule in group["rules"])


def promtool(*arguments: str, directory: Path) -> subprocess.CompletedProcess[str]:
    """Run promtool beside the rendered rules."""
    binary = shutil.which("promtool")
    if not binary:
        without("no promtool: install Debian's package prometheus")
    (directory / "rules.yaml").write_text(yaml.safe_dump(rules()))
    return subprocess.run(
        [binary, *arguments], cwd=directory, capture_output=True, text=True, check=False, timeout=60
    )  # fmt: skip


def test_prometheus_can_load_the_rules(tmp_path: Path) -> None:
    result = promtool("check", "rules", "--lint=all", "--lint-fatal", "rules.yaml", directory=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("case", yaml.safe_load(CASES.read_text())["tests"], ids=lambda case: case["name"])
def test_alerts_fire_when_they_should(case: Manifest, tmp_path: Path) -> None:
    document = yaml.safe_load(CASES.read_text()) | {"tests": [case]}
    (tmp_path / "cases.yaml").write_text(yaml.safe_dump(document))
    result = promtool("test", "rules", "cases.yaml", directory=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr


def test_every_alert_is_tested_firing_and_quiet() -> None:
    checks = [check for case in yaml.safe_load(CASES.read_text())["tests"] for check in case["alert_rule_test"]]
    names = {alert["alert"] for alert in alerts()}
    assert {check["alertname"] for check in checks if check["exp_alerts"]} == names
    assert {check["alertname"] for check in checks if not check["exp_alerts"]} == names


def test_alerts_ask_only_for_metrics_that_exist() -> None:
    for alert in alerts():
        named = set(METRIC.findall(alert["expr"]))
        assert named, alert["alert"]
        assert named <= exported(), alert["alert"]


def test_every_alert_tells_a_person_what_it_is_how_bad_it_is_and_where_to_read_on() -> None:
    headings = {heading.lower() for heading in re.findall(r"^## (\w+)$", RUNBOOKS.read_text(), re.MULTILINE)}
    for alert in alerts():
        assert alert["labels"]["severity"] in {"warning", "critical"}
        assert set(alert["annotations"]) == {"summary", "description", "runbook_url"}
        assert alert["annotations"]["runbook_url"].partition("#")[2] == alert["alert"].lower()
    assert headings == {alert["alert"].lower() for alert in alerts()}


def test_thresholds_are_those_of_the_values() -> None:
    settings = {
        "enabled": True,
        "stalledSeconds": 1200345,
        "slowerThanPredictedRatio": 1.75,
        "memoryHeadroomRatio": 0.875,
        "restartsPerHour": 17,
        "reconcileErrors": 23,
        "labels": {"release": "stack"},
    }
    rule = the_only(render({"metrics": {"prometheusRule": settings}}, apis=MONITORING), "PrometheusRule")
    text = yaml.safe_dump(rule["spec"])
    for threshold in ("1200345", "> 1.75", "> 0.875", ">= 17", "> 23"):
        assert threshold in text
    assert "runbook_url" not in text
    assert rule["metadata"]["labels"]["release"] == "stack"
