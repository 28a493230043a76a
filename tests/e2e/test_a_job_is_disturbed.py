"""One job that is evicted, preempted, suspended, planned anew and deleted: each time it saves its work, and goes on.

It saves at no other time, so every training checkpoint is one that was written because the job was told to stop.
"""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from e2e.faulty_jobs import FaultyJobs, Space
from e2e.following import COMPONENT_LABEL, JOB_LABEL, children, follow
from e2e.kubectl import Kubectl, Manifest, is_true, progress, wait_until
from galvatron_planner.profiles import Profile

pytestmark = [pytest.mark.k8s, pytest.mark.slow]

NAME = "disturbed"
NEVER_BY_ITSELF = 100_000
PRIORITY = "e2e-urgent"
REPLAN = "galvatron.io/replan"


@dataclass(slots=True)
class Disturbed:
    """The job between two disturbances.

    Attributes:
        kubectl: of its namespace.
        jobs: where its training checkpoints are.
        first_loss: near the start.
        step: of the newest training checkpoint, 0 before the first.
        attempt: that trains.
    """

    kubectl: Kubectl
    jobs: FaultyJobs
    first_loss: float
    step: int = 0
    attempt: int = 1

    def goes_on(self) -> Manifest:
        """Wait until the next attempt has made steps behind a new training checkpoint, and its loss is no new job's."""
        self.attempt += 1
        status = follow(self.kubectl, NAME, until=self._trains_again, seconds=120).job["status"]
        saved = self.jobs.saved_steps(NAME)[-1]
        assert saved > self.step
        self.step = saved
        job = follow(self.kubectl, NAME, until=lambda job: progress(job).get("step", 0) > saved, seconds=60).job
        assert float(progress(job)["loss"]) < self.first_loss
        assert progress(job)["lastCheckpointStep"] == saved
        return {**status, "progress": progress(job)}

    def _trains_again(self, job: Manifest) -> bool:
        return bool(job["status"]["attempt"] == self.attempt and is_true(job, "Training"))


@pytest.fixture
def urgent(space: Space) -> Iterator[None]:
    """A priority above that of every job."""
    kubectl, _ = space
    body = {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": PRIORITY}}
    kubectl.apply({**body, "value": 1000})
    yield
    kubectl("delete", "priorityclass", PRIORITY)


@pytest.mark.usefixtures("urgent")
def test_a_job_that_is_disturbed_saves_its_work_and_goes_on(
    space: Space, record_property: Callable[[str, object], None]
) -> None:
    kubectl, jobs = space
    checkpoint = {"volume": {"claimName": "checkpoints"}, "directory": NAME, "periodSteps": NEVER_BY_ITSELF}
    jobs.start(NAME, steps=NEVER_BY_ITSELF, checkpoint=checkpoint)
    first = follow(kubectl, NAME, until=lambda job: progress(job).get("step", 0) > 0, seconds=240).job
    follow(kubectl, NAME, until=lambda job: progress(job)["step"] > 20, seconds=60)
    job = Disturbed(kubectl, jobs, first_loss=float(progress(first)["loss"]))
    for disturb in (evict, preempt, suspend, plan_anew):
        begun = time.monotonic()
        disturb(job)
        seconds = round(time.monotonic() - begun, 1)
        record_property(f"seconds_{disturb.__name__}", seconds)
        print(f"{disturb.__name__}: {seconds} s")
    delete(job)


def evict(job: Disturbed) -> None:
    """As ``kubectl drain`` does."""
    metadata = {"name": f"{NAME}-1", "namespace": job.kubectl.namespace}
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": metadata}
    path = f"/api/v1/namespaces/{job.kubectl.namespace}/pods/{NAME}-1/eviction"
    job.kubectl("create", "--raw", path, "--filename", "-", stdin=json.dumps(eviction))
    status = job.goes_on()
    assert (status["failures"][0]["reason"], status["failures"][0]["pod"]) == ("Evicted", f"{NAME}-1")
    assert (status["restarts"]["total"], status["restarts"]["countedTowardsMax"]) == (1, 0)
    assert status["restarts"].get("lostSteps", 0) == 0


def preempt(job: Disturbed) -> None:
    """Ask for so much of a trainer's node that only the trainer can make room."""
    victim = trainers(job.kubectl)[1]
    job.kubectl.apply(preemptor(job.kubectl, victim))
    try:
        status = job.goes_on()
    finally:
        job.kubectl("delete", "pod", "urgent", "--grace-period=0", "--force")
    assert (status["failures"][0]["reason"], status["failures"][0]["node"]) == ("Preempted", victim["spec"]["nodeName"])
    assert (status["restarts"]["total"], status["restarts"]["countedTowardsMax"]) == (2, 0)
    assert status["restarts"].get("lostSteps", 0) == 0


def suspend(job: Disturbed) -> None:
    """And resume."""
    patch(job.kubectl, '{"spec": {"suspend": true}}')
    wait_until("no pod is left", 60, lambda: not trainers(job.kubectl))
    assert is_true(job.kubectl.get("galvatronjob", NAME), "Suspended")
    patch(job.kubectl, '{"spec": {"suspend": false}}')
    status = job.goes_on()
    assert status["restarts"]["total"] == 2


def plan_anew(job: Disturbed) -> None:
    """Ask for another plan: there is none, until the network is measured to be another one."""
    before = job.kubectl.get("galvatronjob", NAME) or {}
    ask(job.kubectl, "once")
    answer = wait_until("the wish is answered", 60, lambda: answer_to(job.kubectl, "once"))
    assert answer["result"] == "SamePlan", answer
    assert (job.kubectl.get("galvatronjob", NAME) or {})["status"]["attempt"] == job.attempt

    # Where messages cost nothing, no pipeline is best; where they cost all there is, the longest is.
    factor = 1e-3 if before["status"]["plan"]["summary"].startswith("pp4") else 1e3
    cached, text = change_links(job.kubectl, before["status"]["profile"]["configMapName"], factor)
    try:
        ask(job.kubectl, "twice")
        answer = wait_until("the wish is answered", 60, lambda: answer_to(job.kubectl, "twice"))
        assert answer["result"] == "NewPlan", (answer, before["status"]["plan"]["summary"])
        status = job.goes_on()
    finally:
        job.kubectl("patch", "configmap", cached, "--type", "merge", "--patch", json.dumps({"data": text}))
    assert status["plan"]["hash"] != before["status"]["plan"]["hash"]
    assert status["restarts"]["total"] == 2
    hashes = {pod["metadata"]["labels"]["galvatron.io/plan-hash"] for pod in trainers(job.kubectl)}
    assert hashes == {status["plan"]["hash"]}


def delete(job: Disturbed) -> None:
    """Delete the job while it trains."""
    job.kubectl("delete", "galvatronjob", NAME, "--wait=true")
    wait_until("nothing is left of the job", 90, lambda: not children(job.kubectl, NAME))
    assert job.jobs.saved_steps(NAME)[-1] > job.step


def trainers(kubectl: Kubectl) -> tuple[Manifest, ...]:
    """The job's pods."""
    return kubectl.items("pods", f"{JOB_LABEL}={NAME},{COMPONENT_LABEL}=trainer")


def patch(kubectl: Kubectl, change: str) -> None:
    """Change fields of the job, as its user."""
    kubectl("patch", "galvatronjob", NAME, "--type", "merge", "--patch", change)


def ask(kubectl: Kubectl, value: str) -> None:
    """Ask for another plan."""
    kubectl("annotate", "--overwrite", "galvatronjob", NAME, f"{REPLAN}={value}")


def answer_to(kubectl: Kubectl, value: str) -> Manifest | None:
    """What the operator says to it, once it does."""
    job = kubectl.get("galvatronjob", NAME) or {}
    answer: Manifest = job["status"].get("replanRequest", {})
    assert not is_true(job, "Failed")
    return answer if answer.get("value") == value else None


def change_links(kubectl: Kubectl, name: str, factor: float) -> tuple[str, dict[str, str]]:
    """Have the profile say that every message takes so many times as long; its ConfigMap, and what was in it."""
    text: dict[str, str] = (kubectl.get("configmap", name) or {})["data"]
    profile = Profile.from_json(text["profile.json"])
    links = tuple(
        link.model_copy(
            update={"samples": tuple(s.model_copy(update={"seconds": s.seconds * factor}) for s in link.samples)}
        )
        for link in profile.links
    )
    changed = {**text, "profile.json": profile.model_copy(update={"links": links}).to_json()}
    kubectl("patch", "configmap", name, "--type", "merge", "--patch", json.dumps({"data": changed}))
    return name, text


def preemptor(kubectl: Kubectl, victim: Manifest) -> Manifest:
    """A pod that fits on the victim's node only in its place."""
    node = kubectl.get("node", victim["spec"]["nodeName"]) or {}
    everywhere = json.loads(kubectl("get", "pods", "--all-namespaces", "--output", "json"))["items"]
    others = [
        pod
        for pod in everywhere
        if pod["spec"].get("nodeName") == victim["spec"]["nodeName"]
        and pod["metadata"]["uid"] != victim["metadata"]["uid"]
        and pod["status"]["phase"] in ("Pending", "Running")
    ]
    free = milli_cpu(node["status"]["allocatable"]["cpu"]) - sum(map(requested_milli_cpu, others))
    container = {
        "name": "urgent",
        "image": victim["spec"]["containers"][0]["image"],
        "command": ["sleep", "600"],
        "resources": {"requests": {"cpu": f"{free}m"}},
    }
    spec = {
        "priorityClassName": PRIORITY,
        "nodeSelector": {"kubernetes.io/hostname": victim["spec"]["nodeName"]},
        "terminationGracePeriodSeconds": 0,
        "containers": [container],
    }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "urgent"}, "spec": spec}


def requested_milli_cpu(pod: Manifest) -> int:
    """What the scheduler counts of a pod."""
    requests = (container.get("resources", {}).get("requests", {}) for container in pod["spec"]["containers"])
    return sum(milli_cpu(each.get("cpu", "0")) for each in requests)


def milli_cpu(quantity: str) -> int:
    """Read ``2`` and ``250m``."""
    return int(quantity[:-1]) if quantity.endswith("m") else int(float(quantity) * 1000)
