"""A node is really lost, with its kubelet and containers: the job goes on where it was, on the node that is left."""

import os
import time
from collections.abc import Callable, Iterator

import pytest

from e2e.faulty_jobs import PERIOD_STEPS, Space
from e2e.following import COMPONENT_LABEL, JOB_LABEL, follow, is_complete
from e2e.installation import script
from e2e.kubectl import Kubectl, Manifest, is_true, progress, wait_until

pytestmark = [
    pytest.mark.k8s,
    pytest.mark.slow,
    pytest.mark.skipif(bool(os.environ.get("GALVATRON_KUBECONFIG")), reason="takes a node of the test cluster away"),
]

NAME = "loses-a-node"
LOST, LEFT = "1", "node-0"
OPERATOR = "app.kubernetes.io/component=operator"


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


def test_a_job_survives_the_loss_of_a_node(
    space: Space, node_to_lose: str, record_property: Callable[[str, object], None]
) -> None:
    kubectl, jobs = space
    policy = {"nodeLostTimeoutSeconds": 10, "forceDeleteLostPods": "AfterTimeout"}
    lifecycle = {"terminationGracePeriodSeconds": 30}
    jobs.start(NAME, steps=400, failurePolicy=policy, lifecycle=lifecycle)
    seen = follow(kubectl, NAME, until=lambda job: progress(job).get("step", 0) > 2 * PERIOD_STEPS, seconds=300)
    assert sorted(trainer_nodes(kubectl).values()) == ["node-0", "node-1"]

    lost_at = time.time()
    stopped = script("stop-node", node_to_lose, check=False)
    if stopped.returncode:
        pytest.skip(f"this machine does not let go of the node: {stopped.stderr[-300:]}")
    follow(kubectl, NAME, until=lambda job: job["status"]["attempt"] == 2, seconds=180, seen=seen)
    noticed_at = time.time()
    follow(kubectl, NAME, until=trains_again, seconds=180, seen=seen)
    trained_at = time.time()
    record_property("seconds_until_noticed", round(noticed_at - lost_at, 1))
    record_property("seconds_from_notice_to_first_step", round(trained_at - noticed_at, 1))
    print(f"noticed after {noticed_at - lost_at:.1f} s, trained again {trained_at - noticed_at:.1f} s later")

    assert set(trainer_nodes(kubectl).values()) == {LEFT}
    job = follow(kubectl, NAME, until=is_complete, seconds=240, seen=seen).job
    status = job["status"]
    assert status["failures"][0]["reason"] == "NodeLost"
    assert status["failures"][0]["node"] == f"node-{node_to_lose}"
    assert status["restarts"]["countedTowardsMax"] == 0
    assert status["restarts"]["lostSteps"] < status["progress"]["totalSteps"] / 2


def trains_again(job: Manifest) -> bool:
    """Tell whether the second attempt makes steps."""
    return bool(job["status"]["attempt"] == 2 and is_true(job, "Training"))
