"""``kubectl galvatron`` on a real job: kubectl finds the plugin by its name, and hands it the user's cluster."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from e2e.following import MeasuredRun
from e2e.kubectl import Kubectl

pytestmark = [pytest.mark.k8s, pytest.mark.slow]


def plugin(kubectl: Kubectl, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run ``kubectl galvatron`` in the namespace of the tests."""
    path = os.pathsep.join((str(Path(sys.executable).parent), kubectl.environment["PATH"]))
    return subprocess.run(
        ["kubectl", "galvatron", *arguments, "--namespace", kubectl.namespace],
        env={**kubectl.environment, "PATH": path, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_a_finished_job_is_explained_and_listed(kubectl: Kubectl, measured_run: MeasuredRun, tmp_path: Path) -> None:
    explained = plugin(kubectl, "explain", measured_run.name, "--timeline", str(tmp_path / "step.html"))
    assert explained.returncode == 0, explained.stderr
    assert measured_run.job["status"]["plan"]["summary"] in explained.stdout
    assert (tmp_path / "step.html").read_text().startswith("<!doctype html>")

    listed = plugin(kubectl, "top")
    assert listed.returncode == 0, listed.stderr
    assert measured_run.name in listed.stdout
    assert "Complete" in listed.stdout


def test_other_budgets_are_asked_of_what_was_measured(kubectl: Kubectl, measured_run: MeasuredRun) -> None:
    asked = plugin(kubectl, "plan", measured_run.name, "--memory", "96Mi,256Mi")
    assert asked.returncode == 0, asked.stderr
    assert "96Mi" in asked.stdout.replace(" ", "")
    assert "256Mi" in asked.stdout.replace(" ", "")


def test_what_is_not_there_is_told_in_words(kubectl: Kubectl, measured_run: MeasuredRun) -> None:
    missing = plugin(kubectl, "explain", "no-such-job")
    assert (missing.returncode, "not found" in missing.stderr) == (1, True)
    # Its pods were released at its end.
    silent = plugin(kubectl, "logs", measured_run.name)
    assert (silent.returncode, "podRetentionSeconds" in silent.stderr) == (1, True)
