"""Two replicas: one dies, the next is stopped and wakes up too late. Never do two act, and the job does not notice."""

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from e2e import audit
from e2e.audit import time_of
from e2e.following import follow
from e2e.installation import RELEASE
from e2e.kubectl import Kubectl, Manifest, is_true, progress, wait_until
from e2e.processes import first_process, is_alive

pytestmark = [pytest.mark.k8s, pytest.mark.slow]

DEPLOYMENT = f"{RELEASE}-operator"
OPERATOR = "app.kubernetes.io/component=operator"
FAIL_OVER_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Leader:
    """An operator that holds the Lease.

    Attributes:
        identity: of the process.
        pod: its pod.
        process: its number on the host.
    """

    identity: str
    pod: Manifest
    process: int

    @property
    def address(self) -> str:
        """Of the pod."""
        return str(self.pod["status"]["podIP"])


@pytest.fixture
def two(operator: Kubectl) -> Iterator[Kubectl]:
    """The operator's namespace with a second replica in it."""
    if os.environ.get("GALVATRON_KUBECONFIG"):
        pytest.skip("processes and the audit log are out of reach in a cluster of one's own")
    operator("scale", "deployment", DEPLOYMENT, "--replicas=2")
    operator("rollout", "status", f"deployment/{DEPLOYMENT}", "--timeout=60s")
    yield operator
    operator("scale", "deployment", DEPLOYMENT, "--replicas=1")


@pytest.fixture
def job(kubectl: Kubectl, example: Manifest) -> Iterator[str]:
    """The name of a job that trains, for longer than the test takes."""
    spec = example["spec"]
    name = "led-by-two"
    kubectl.apply(
        {**example, "metadata": {"name": name}, "spec": spec | {"training": spec["training"] | {"steps": 9000}}}
    )
    follow(kubectl, name, until=lambda job: progress(job).get("step", 0) > 0, seconds=240)
    yield name
    kubectl("delete", "galvatronjobs", name)


def test_another_operator_takes_over_from_one_that_dies_and_from_one_that_is_stopped(
    two: Kubectl, kubectl: Kubectl, job: str
) -> None:
    created = time_of((kubectl.get("galvatronjobs", job) or {})["metadata"]["creationTimestamp"])
    first = leader(two)
    os.kill(first.process, signal.SIGKILL)
    second = successor(two, first, since=time.time())
    wait_for_progress(kubectl, job)

    wait_until("both are ready", 60, lambda: len(ready(two)) == 2)
    os.kill(second.process, signal.SIGSTOP)
    third = successor(two, second, since=time.time())
    wait_for_progress(kubectl, job)

    woken = time.time()
    os.kill(second.process, signal.SIGCONT)
    wait_until("the one that was stopped has ended", 10, lambda: not is_alive(second.process))
    wait_until("its last words are there", 30, lambda: "the lease is lost" in last_line(two, second))

    seen = audit.writes(since=created)
    assert [write for write in seen if write.time > woken and write.address == second.address] == []
    assert audit.turns(seen) == (first.address, second.address, third.address)
    status = (kubectl.get("galvatronjobs", job) or {})["status"]
    assert (status["attempt"], status["restarts"]["total"]) == (1, 0)


def leader(operator: Kubectl) -> Leader:
    """Who holds the Lease."""
    lease = operator.get("lease", DEPLOYMENT)
    assert lease is not None
    identity = lease["spec"]["holderIdentity"]
    pod = operator.get("pod", identity.rpartition("_")[0])
    assert pod is not None
    return Leader(identity, pod, first_process(pod))


def successor(operator: Kubectl, former: Leader, *, since: float) -> Leader:
    """Wait for another leader, and hold that it comes in time."""

    def identity() -> str | None:
        holder = (operator.get("lease", DEPLOYMENT) or {})["spec"].get("holderIdentity")
        return holder if holder not in (None, former.identity) else None

    wait_until("another leads", FAIL_OVER_SECONDS, identity)
    print(f"another leads after {time.time() - since:.1f} s")
    return leader(operator)


def ready(operator: Kubectl) -> list[Manifest]:
    """Pods of the operator that answer their probes."""
    return [pod for pod in operator.items("pods", OPERATOR) if is_true(pod, "Ready")]


def last_line(operator: Kubectl, ended: Leader) -> str:
    """What a process wrote last before its container started again."""
    result = operator.run("logs", ended.pod["metadata"]["name"], "--previous", "--tail=1")
    return result.stdout if result.returncode == 0 else ""


def wait_for_progress(kubectl: Kubectl, job: str) -> None:
    """Wait until an operator has written that the job has gone further."""
    before = progress(kubectl.get("galvatronjobs", job)).get("step", 0)
    follow(kubectl, job, until=lambda job: progress(job).get("step", 0) > before, seconds=60)
