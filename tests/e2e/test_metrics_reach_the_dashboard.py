"""A Prometheus that follows the chart's monitors has what the chart's dashboards ask for."""

import math
import os
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from charts.queries import Query, documented, queries
from e2e.following import MeasuredRun, follow, is_complete
from e2e.installation import OPERATOR_NAMESPACE
from e2e.kubectl import Kubectl, Manifest, progress, wait_until
from e2e.picture import PICTURED, draw
from e2e.prometheus import Sample

pytestmark = [pytest.mark.k8s, pytest.mark.slow]

ABSENT = {
    "Model FLOPs utilization": "the peak speed of a CPU is in no table",
    "Duration of training checkpoints": "the example keeps none",
    "Restarts by reason": "nothing fails in this run; it does in the next",
    "Which jobs have made no step yet, and for how long?": "all have, unless other tests' jobs have not",
}
"""Panels that may stay empty in an undisturbed run on CPUs, and why."""
PICTURE = "GALVATRON_PICTURE"
"""Environment variable with the path of a file into which the interrupted run is drawn; docs/monitoring.svg was."""


@pytest.fixture(scope="module")
def interrupted_run(measured_run: MeasuredRun, kubectl: Kubectl, example: Manifest) -> MeasuredRun:
    """The example once more, longer; one of its trainers is deleted while it trains."""
    name = "gpt"
    training = {**example["spec"]["training"], "steps": 400}
    kubectl.apply({**example, "metadata": {"name": name}, "spec": {**example["spec"], "training": training}})
    seen = follow(kubectl, name, until=lambda job: progress(job).get("step", 0) > 0, seconds=180)
    kubectl("delete", "pod", f"{name}-1", "--wait=false")
    follow(kubectl, name, until=is_complete, seconds=300, seen=seen)
    return MeasuredRun(seen, measured_run.metrics)


@pytest.mark.parametrize("query", queries() + documented(), ids=str)
def test_a_query_of_a_dashboard_or_of_the_documentation_returns_data(
    query: Query, measured_run: MeasuredRun, kubectl: Kubectl
) -> None:
    asked = query.with_variables(variables(measured_run, kubectl))
    # Pods show a run until it ends; what the operator counts of it may be there only then.
    moments = (measured_run.last_step_time(), time.time())
    samples = [sample for moment in moments for sample in numbers(measured_run.metrics.at(asked, moment))]
    assert samples or query.panel in ABSENT


def test_both_training_pods_and_the_operator_were_scraped(measured_run: MeasuredRun, kubectl: Kubectl) -> None:
    up = measured_run.metrics.at("up == 1", measured_run.last_step_time())
    scraped = {(sample.labels["namespace"], sample.labels["pod"]) for sample in up}
    assert {(kubectl.namespace, f"{measured_run.name}-{ordinal}") for ordinal in (0, 1)} <= scraped
    assert OPERATOR_NAMESPACE in {namespace for namespace, _ in scraped}


@pytest.mark.parametrize("dashboard", ["galvatron-job.json", "galvatron-fleet.json"])
@pytest.mark.parametrize("panel", ["Restarts by reason", "Steps lost"])
def test_a_restart_reaches_the_dashboards(
    dashboard: str, panel: str, interrupted_run: MeasuredRun, kubectl: Kubectl
) -> None:
    (query,) = (query for query in queries() if (query.dashboard, query.panel) == (dashboard, panel))
    asked = query.with_variables(variables(interrupted_run, kubectl))

    def shown() -> tuple[Sample, ...]:
        return tuple(sample for sample in interrupted_run.metrics.at(asked, time.time()) if sample.value > 0)

    wait_until(f"{panel} shows the restart", 30, shown)


def test_the_dashboards_can_be_drawn_from_a_run(interrupted_run: MeasuredRun, kubectl: Kubectl, tmp_path: Path) -> None:
    picture = draw(
        interrupted_run.metrics,
        variables(interrupted_run, kubectl),
        since=interrupted_run.observation.started,
        until=interrupted_run.last_step_time(),
        title="A run of docs/examples/gpt-2-node-cpu.yaml with 400 steps, one of its pods deleted on the way",
    )
    Path(os.environ.get(PICTURE, tmp_path / "run.svg")).write_text(picture)
    assert "no data" not in picture
    assert all(panel in picture for _, panel in PICTURED)


def variables(run: MeasuredRun, kubectl: Kubectl) -> Mapping[str, str]:
    """What Grafana would fill in."""
    return {
        "namespace": kubectl.namespace,
        "galvatronjob": run.name,
        "__rate_interval": "30s",
        "__range": "15m",
    }


def numbers(samples: tuple[Sample, ...]) -> tuple[Sample, ...]:
    """Without those that say that there is nothing to compute from."""
    return tuple(sample for sample in samples if not math.isnan(sample.value))
