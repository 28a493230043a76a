"""From ``kubectl apply`` to ``Complete`` on two nodes, on real text."""

import pytest

from e2e.following import COMPONENT_LABEL, OF_ANY_JOB, MeasuredRun, Observation, children, follow
from e2e.kubectl import Kubectl, Manifest, condition, is_true, wait_until

pytestmark = [pytest.mark.k8s, pytest.mark.slow]


@pytest.fixture(scope="module")
def second_run(measured_run: MeasuredRun, kubectl: Kubectl, example: Manifest) -> Observation:
    """The same job once more under another name, followed into its training."""
    again = {"name": f"{measured_run.name}-again"}
    kubectl.apply({**example, "metadata": again})
    return follow(kubectl, again["name"], until=lambda job: is_true(job, "Training"), seconds=120)


def test_a_job_profiles_and_trains_on_both_nodes(measured_run: MeasuredRun) -> None:
    nodes = measured_run.observation.nodes
    assert len(nodes["profiler"]) == 2
    assert len(nodes["trainer"]) == 2


def test_kubectl_wait_sees_the_end(measured_run: MeasuredRun, kubectl: Kubectl) -> None:
    kubectl("wait", "--for=condition=Complete", f"galvatronjob/{measured_run.name}", "--timeout=5s")
    assert condition(measured_run.job, "Complete")["reason"] == "TrainingFinished"
    assert not is_true(measured_run.job, "Failed")


def test_training_makes_the_loss_fall(measured_run: MeasuredRun) -> None:
    losses = measured_run.losses()
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


def test_the_same_job_again_uses_the_cached_profile(second_run: Observation, measured_run: MeasuredRun) -> None:
    assert condition(second_run.job, "ProfileReady")["reason"] == "CacheHit"
    assert "profiler" not in second_run.nodes
    assert second_run.job["status"]["plan"]["summary"] == measured_run.job["status"]["plan"]["summary"]


def test_a_job_deleted_while_it_trains_leaves_only_the_profile_cache(second_run: Observation, kubectl: Kubectl) -> None:
    name = second_run.job["metadata"]["name"]
    kubectl("delete", "galvatronjob", name, "--wait=true")
    wait_until("nothing is left of the job", 90, lambda: not children(kubectl, name))
    assert kubectl.items("configmaps", f"{OF_ANY_JOB},{COMPONENT_LABEL}=profile")
