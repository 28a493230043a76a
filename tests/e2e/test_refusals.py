"""What cannot work is refused before any training pod exists, and the refusal says what to change."""

import json
import re
from typing import Any

import pytest

from e2e.following import children
from e2e.kubectl import Kubectl, Manifest, condition, wait_until

pytestmark = [pytest.mark.k8s, pytest.mark.slow]


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        ("spec.budget.gpus", 3, "gpusPerNode"),
        ("spec.budget.memoryPerGPU", None, "spec.budget.memoryPerGPU"),
        ("spec.model.family", "resnet", "spec.model.family"),
        ("spec.model.numAttentionHeads", 7, "numAttentionHeads"),
        ("spec.training.steps", 0, "spec.training.steps"),
        ("spec.runtime", {"env": [{"name": "RANK", "value": "0"}]}, "spec.runtime.env"),
        ("spec.budgets", {"gpus": 4}, "spec.budgets"),
    ],
)
def test_the_api_server_refuses_a_wrong_spec_and_names_the_field(
    kubectl: Kubectl, example: Manifest, path: str, value: Any, named: str
) -> None:
    wrong = {**changed(example, path, value), "metadata": {"name": "wrong"}}
    result = kubectl.run("apply", "--filename", "-", stdin=json.dumps(wrong))
    assert result.returncode != 0, f"{path}={value} was accepted"
    assert named in result.stderr


@pytest.mark.usefixtures("measured_run")
def test_a_job_that_cannot_fit_says_what_would(kubectl: Kubectl, example: Manifest) -> None:
    name = "too-large"
    kubectl.apply({**changed(example, "spec.budget.memoryPerGPU", "5Mi"), "metadata": {"name": name}})
    refused = wait_until("the plan is refused", 180, lambda: refusal_of(kubectl, name))
    assert refused["reason"] == "NoFeasiblePlan"
    assert re.search(r"the smallest needs .* use devices with \d+Mi of memory", refused["message"])
    # The pods that measured end within their grace period; nothing takes their place.
    wait_until("no pod is left", 90, lambda: not has_pods(kubectl, name))


def has_pods(kubectl: Kubectl, name: str) -> bool:
    """Whether pods of the job, or what would make new ones, exist."""
    return any(child.startswith(("Pod/", "StatefulSet/")) for child in children(kubectl, name))


def refusal_of(kubectl: Kubectl, name: str) -> Manifest | None:
    """The condition PlanReady once it is decided against the job."""
    found = condition(kubectl.get("galvatronjob", name), "PlanReady")
    return found if found.get("reason") == "NoFeasiblePlan" else None


def changed(job: Manifest, path: str, value: Any) -> Manifest:
    """A copy with one field set; ``None`` takes it out."""
    key, _, rest = path.partition(".")
    if rest:
        return {**job, key: changed(job[key], rest, value)}
    return {name: old for name, old in job.items() if name != key} | ({} if value is None else {key: value})
