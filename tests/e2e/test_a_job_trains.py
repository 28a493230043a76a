"""From ``kubectl apply`` to ``Complete`` on two nodes, on real text."""

import pytest

from e2e.following import COMPONENT_LABEL, OF_ANY_JOB, MeasuredRun, children, follow
from e2e.kubectl import Kubectl, Manifest, condition, is_true, wait_until

pytestmark = [pytest.mark.k8s, pytest.mark.slow]


def test_a_job_profiles_and_trains_on_both_nodes(measured_run: MeasuredRun) -> None:
    nodes = measured_run.observation.nodes
    assert len(nodes["profiler"]) == 2
    assert len(nodes["trainer"]) == 2


def test_kubectl_wait_sees_the_end(measured_run: MeasuredRun, kubectl: Kubectl) -> None:
    kubectl("wait", "--for=condition=Complete", f"galvatronjob/{measured_run.name}", "--timeout=5s")
    assert condition(measured_run.job, "Complete")["reason"] == "TrainingFinished"
    assert not is_true(measured_run.job, "Failed")


def test_training_makes_the_loss_fall(measured_run: MeasuredRun) -> None:
    losses = measured_run.metrics.series("galvatron_train_loss", since=measured_run.observation.started)
    assert losses[-1].value < losses[0].value


def test_the_status_holds_the_plan_and_what_came_of_it(measured_run: MeasuredRun) -> None:
    status = measured_run.job["status"]
    assert status["plan"]["summary"].startswith("pp")
    assert status["plan"]["estimates"]["stepMilliseconds"] > 0
    assert status["progress"]["step"] == status["progress"]["totalSteps"]
    assert status["progress"]["stepMilliseconds"] > 0
    assert isinstance(status["progress"]["predictionErrorPercent"], int)
    assert status["attempt"] == 1
    assert status["restarts"]["total"] == 0


def test_a_finished_job_holds_no_pods(measured_run: MeasuredRun, kubectl: Kubectl) -> None:
    wait_until(
        "no pods", 60, lambda: not any(child.startswith("Pod/") for child in children(kubectl, measured_run.name))
    )


def test_the_same_job_again_uses_the_cached_profile(
    measured_run: MeasuredRun, kubectl: Kubectl, example: Manifest
) -> None:
    name = "the-same-again"
    kubectl.apply({**example, "metadata": {"name": name}})
    try:
        seen = follow(kubectl, name, until=lambda job: is_true(job, "PlanReady"), seconds=60)
        assert condition(seen.job, "ProfileReady")["reason"] == "CacheHit"
        assert seen.job["status"]["plan"]["summary"] == measured_run.job["status"]["plan"]["summary"]
        assert "profiler" not in seen.nodes
        assert not any(child.startswith("Job/") for child in children(kubectl, name))
    finally:
        kubectl("delete", "galvatronjob", name, "--wait=true")


@pytest.mark.usefixtures("measured_run")
def test_a_deleted_job_leaves_only_the_profile_cache(kubectl: Kubectl, example: Manifest) -> None:
    name = "to-be-deleted"
    kubectl.apply({**example, "metadata": {"name": name}})
    follow(kubectl, name, until=lambda job: is_true(job, "PlanReady"), seconds=60)
    kubectl("delete", "galvatronjob", name, "--wait=true")
    wait_until("nothing is left of the job", 90, lambda: not children(kubectl, name))
    kept = kubectl.items("configmaps", f"{OF_ANY_JOB},{COMPONENT_LABEL}=profile")
    assert len(kept) >= 1
