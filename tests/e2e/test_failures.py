"""What goes wrong in user code and around it, on a real cluster: reasons, the words of the rank, and a resumption."""

import pytest

from e2e.faulty_jobs import PERIOD_STEPS, Space
from e2e.following import children, follow, is_complete
from e2e.kubectl import Kubectl, Manifest, condition, is_true, wait_until

pytestmark = [pytest.mark.k8s, pytest.mark.slow]


def until_trained(kubectl: Kubectl, name: str, *, seconds: float = 150) -> Manifest:
    """Follow a job to its good end."""
    return follow(kubectl, name, until=is_complete, seconds=seconds).job


def until_failed(kubectl: Kubectl, name: str, *, seconds: float = 150) -> Manifest:
    """Wait for a job's bad end."""

    def failed() -> Manifest | None:
        job = kubectl.get("galvatronjob", name)
        return job if is_true(job, "Failed") else None

    return wait_until(f"{name} fails", seconds, failed)


def assert_resumed(job: Manifest, *, from_step: int) -> None:
    """No step was made twice but those after the newest training checkpoint before the fault."""
    status = job["status"]
    assert status["attempt"] == 2
    assert status["progress"]["step"] == status["progress"]["totalSteps"]
    assert 0 <= status["restarts"].get("lostSteps", 0) <= PERIOD_STEPS + from_step % PERIOD_STEPS


def test_an_exception_in_one_rank_is_told_in_its_own_words_and_training_goes_on(space: Space) -> None:
    kubectl, jobs = space
    jobs.start("raises", "raise:2:12")
    job = until_trained(kubectl, "raises", seconds=300)
    assert_resumed(job, from_step=12)
    (failure,) = job["status"]["failures"]
    assert (failure["reason"], failure["rank"], failure["pod"]) == ("UserError", 2, "raises-1")
    assert "RuntimeError: a fault on purpose" in failure["message"]
    assert "Traceback" in failure["message"]
    assert jobs.saved_steps("raises")[-1] == 60


def test_a_job_that_runs_out_of_device_memory_is_planned_anew_with_less(space: Space) -> None:
    kubectl, jobs = space
    jobs.start("shrinks", "device-memory:1:8")
    status = until_trained(kubectl, "shrinks")["status"]
    assert status["failures"][0]["reason"] == "CudaOutOfMemory"
    assert (status["attempt"], status["replan"]["count"]) == (2, 1)
    plans = [child for child in children(kubectl, "shrinks") if child.startswith("ConfigMap/shrinks-plan-")]
    assert len(plans) == 2
    assert f"ConfigMap/{status['plan']['configMapName']}" in plans


def test_a_code_that_says_the_data_are_wrong_ends_the_job(space: Space) -> None:
    kubectl, jobs = space
    jobs.start("exits", "exit:1:3")
    job = until_failed(kubectl, "exits")
    assert condition(job, "Failed")["reason"] == "DataError"
    assert job["status"]["failures"][0]["exitCode"] == 65
    assert job["status"]["attempt"] == 1


def test_a_rank_that_hangs_is_noticed_and_its_gang_starts_again(space: Space) -> None:
    kubectl, jobs = space
    jobs.start("hangs", "hang:3:7", failurePolicy={"progressDeadlineSeconds": 10})
    job = until_trained(kubectl, "hangs")
    assert_resumed(job, from_step=7)
    assert job["status"]["failures"][0]["reason"] == "Stalled"


def test_a_rank_that_outgrows_its_pod_is_told_as_lack_of_host_memory(space: Space) -> None:
    kubectl, jobs = space
    jobs.start("grows", "host-memory:1:7", memory_limit="1536Mi")
    job = until_trained(kubectl, "grows")
    assert_resumed(job, from_step=7)
    (failure,) = job["status"]["failures"]
    # On cgroup v1 the supervisor says so, on v2 the kubelet, whose container dies as a whole.
    assert (failure["reason"], failure["pod"], failure["exitCode"]) == ("HostOutOfMemory", "grows-0", 137)


def test_a_rule_ends_a_job_at_its_first_failure(space: Space) -> None:
    kubectl, jobs = space
    jobs.start(
        "stubborn",
        "raise:0:1",
        failurePolicy={"rules": [{"name": "at-once", "onReasons": ["UserError"], "action": "FailJob"}]},
    )
    job = until_failed(kubectl, "stubborn")
    assert condition(job, "Failed")["reason"] == "RuleFailJob"
    assert "a fault on purpose" in condition(job, "Failed")["message"]
