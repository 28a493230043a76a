"""A node is really lost, with its kubelet and containers: a job goes on with one, and with both when it is back."""

import os
import time
from collections.abc import Callable, Iterator

import pytest

from e2e.faulty_jobs import PERIOD_STEPS, Space
from e2e.following import COMPONENT_LABEL, JOB_LABEL, follow
from e2e.installation import script
from e2e.kubectl import Kubectl, Manifest, condition, is_true, progress, wait_until

pytestmark = [
    pytest.mark.k8s,
    pytest.mark.slow,
    pytest.mark.skipif(bool(os.environ.get("GALVATRON_KUBECONFIG")), reason="takes a node of the test cluster away"),
]

NAME = "loses-a-node"
LOST, LEFT = "1", "node-0"
OPERATOR = "app.kubernetes.io/component=operator"
ENDLESS = 100_000
"""Steps: how fast they are differs from machine to machine."""
MORE_THAN_HALF = "1100m"
"""Of a node's two cores: two trainers must not meet on one."""


@pytest.fixture
def node_to_lose(operator: Kubectl) -> Iterator[str]:
    """Index of a node without the operator, which comes back at the end."""
    lost = f"node-{LOST}"
    operator("cordon", lost)
    for pod in operator.items("pods", OPERATOR):
        if pod["spec"].get("nodeName") == lost:
            operator("delete", "pod", pod["metadata"]["name"], "--wait=true")
    wait_until("the operator runs on the other node", 90, lambda: runs_on(operator, LEFT))
    operator("uncordon", lost)
    try:
        yield LOST
    finally:
        script("start-node", LOST)


def runs_on(operator: Kubectl, node: str) -> bool:
    """Whether every pod of the operator is ready there."""
    pods = operator.items("pods", OPERATOR)
    return bool(pods) and all(is_true(pod, "Ready") and pod["spec"].get("nodeName") == node for pod in pods)


def trainer_nodes(kubectl: Kubectl) -> dict[str, str]:
    """Where the trainers are that nobody deletes."""
    pods = kubectl.items("pods", f"{JOB_LABEL}={NAME},{COMPONENT_LABEL}=trainer")
    return {
        pod["metadata"]["name"]: pod["spec"].get("nodeName", "")
        for pod in pods
        if "deletionTimestamp" not in pod["metadata"]
    }


def placeholders(kubectl: Kubectl) -> tuple[Manifest, ...]:
    """Pods that wait for room."""
    return kubectl.items("pods", f"{JOB_LABEL}={NAME},{COMPONENT_LABEL}=placeholder")


def trains_on(num_devices: int) -> Callable[[Manifest], bool]:
    """Tell whether a job makes steps on so many devices."""

    def is_so(job: Manifest) -> bool:
        planned = job["status"].get("plan", {}).get("gpus") == num_devices
        return bool(planned and is_true(job, "Training"))

    return is_so


def test_a_job_outlives_the_loss_of_a_node_on_fewer_devices_and_grows_again(
    space: Space, node_to_lose: str, record_property: Callable[[str, object], None]
) -> None:
    kubectl, jobs = space
    began = time.monotonic()

    def told(what: str) -> None:
        record_property(what, round(time.monotonic() - began, 1))
        print(f"{what} after {time.monotonic() - began:.1f} s")

    jobs.start(
        NAME,
        steps=ENDLESS,
        cpu=MORE_THAN_HALF,
        budget={"gpus": 4, "minGPUs": 2, "gpusPerNode": 2, "resourceName": "cpu", "memoryPerGPU": "64Mi"},
        elasticity={"mode": "Replan", "rescaleDelaySeconds": 10},
        failurePolicy={"nodeLostTimeoutSeconds": 10, "forceDeleteLostPods": "AfterTimeout"},
        lifecycle={"terminationGracePeriodSeconds": 30},
    )
    seen = follow(kubectl, NAME, until=lambda job: progress(job).get("step", 0) > 2 * PERIOD_STEPS, seconds=300)
    assert sorted(trainer_nodes(kubectl).values()) == ["node-0", "node-1"]

    told("the node is lost")
    stopped = script("stop-node", node_to_lose, check=False)
    if stopped.returncode:
        pytest.skip(f"this machine does not let go of the node: {stopped.stderr[-300:]}")
    follow(kubectl, NAME, until=lambda job: job["status"]["attempt"] == 2, seconds=180, seen=seen)
    told("the loss is noticed")
    saved = jobs.saved_steps(NAME)[-1]
    job = follow(kubectl, NAME, until=trains_on(2), seconds=180, seen=seen).job
    told("training goes on with half of the devices")
    status = job["status"]
    assert set(trainer_nodes(kubectl).values()) == {LEFT}
    assert (status["failures"][0]["reason"], status["failures"][0]["node"]) == ("NodeLost", f"node-{node_to_lose}")
    assert (status["nodes"]["desired"], status["restarts"]["countedTowardsMax"]) == (1, 0)
    assert "for 2 of 4 devices" in condition(job, "PlanReady")["message"]
    assert status["progress"]["step"] >= saved > 0

    wait_until("placeholders ask for room", 60, lambda: placeholders(kubectl))
    script("start-node", node_to_lose)
    told("the node is back")
    job = follow(kubectl, NAME, until=trains_on(4), seconds=120, seen=seen).job
    told("training goes on with all devices")
    assert job["status"]["progress"]["step"] >= status["progress"]["step"]
    assert sorted(trainer_nodes(kubectl).values()) == ["node-0", "node-1"]
    assert not placeholders(kubectl)
    regained = jobs.saved_steps(NAME)[-1]
    wait_until("all devices save what they train", 60, lambda: jobs.saved_steps(NAME)[-1] > regained)
    # Only the loss of the node has cost steps.
    assert job["status"]["restarts"]["total"] == 1
    assert job["status"]["restarts"].get("lostSteps", 0) <= PERIOD_STEPS
    kubectl("delete", "galvatronjob", NAME, "--wait=true")
