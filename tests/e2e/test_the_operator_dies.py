"""The operator is killed in every phase of one job, without a chance to say goodbye, and the job does not notice."""

import pytest

from e2e.following import Observation, follow, is_complete
from e2e.kubectl import Kubectl, Manifest, is_true, progress, wait_until

pytestmark = [pytest.mark.k8s, pytest.mark.slow]

OPERATOR = "app.kubernetes.io/component=operator"


def test_a_job_completes_although_the_operator_dies_in_each_phase(
    kubectl: Kubectl, operator: Kubectl, example: Manifest
) -> None:
    job = of_a_fresh_shape(example)
    name = job["metadata"]["name"]
    kubectl.apply(job)

    seen = follow(kubectl, name, until=lambda _: bool(kubectl.items("pods", profiling_pods(name))), seconds=60)
    kill(operator)
    assert not is_true(seen.job, "ProfileReady")

    follow(kubectl, name, until=lambda job: is_true(job, "ProfileReady"), seconds=240, seen=seen)
    kill(operator)

    follow(kubectl, name, until=lambda job: progress(job).get("step", 0) > 0, seconds=120, seen=seen)
    kill(operator)
    assert not is_complete(seen.job)

    follow(kubectl, name, until=is_complete, seconds=180, seen=seen)
    assert_undisturbed(seen)


def of_a_fresh_shape(example: Manifest) -> Manifest:
    """A job whose layers nobody has measured, so that it goes through every phase, and that trains for a while."""
    spec = example["spec"]
    model = {**spec["model"], "feedForwardSize": spec["model"]["hiddenSize"] * 2}
    training = {**spec["training"], "steps": 400}
    return {**example, "metadata": {"name": "unshaken"}, "spec": {**spec, "model": model, "training": training}}


def profiling_pods(name: str) -> str:
    """Label selector of a job's profiling pods."""
    return f"galvatron.io/job-name={name},app.kubernetes.io/component=profiler"


def kill(operator: Kubectl) -> None:
    """Let the operator's process vanish, and wait for the next one to be ready."""
    (before,) = operator.items("pods", OPERATOR)
    operator("delete", "pod", before["metadata"]["name"], "--grace-period=0", "--force")
    wait_until("another operator is ready", 90, lambda: is_ready(operator, other_than=before["metadata"]["uid"]))


def is_ready(operator: Kubectl, *, other_than: str) -> bool:
    """Tell whether a pod of the operator that is not this one is ready."""
    return any(
        is_true(pod, "Ready") for pod in operator.items("pods", OPERATOR) if pod["metadata"]["uid"] != other_than
    )


def assert_undisturbed(seen: Observation) -> None:
    """No restart of the gang, no second profile: the first attempt went all the way."""
    assert seen.job["status"]["attempt"] == 1
    assert seen.job["status"]["restarts"]["total"] == 0
    assert seen.job["status"]["profile"]["source"] == "Measured"
