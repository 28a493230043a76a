"""The rest of Kubernetes in memory: controllers that make pods, a kubelet that runs them, supervisors that answer.

Time passes in steps. What a pod's command does is a script: a function of the pod's component, attempt, node rank and
age (in steps during which its gang was complete), so that tests say in one line what goes wrong.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import builders
from fakes.cluster import FakeCluster
from galvatron_operator import names
from galvatron_operator.decide import Kind, SearchOrder, SearchOutcome, SearchProblem
from galvatron_operator.manifests.metadata import Manifest
from galvatron_operator.reconcile import JobKey
from galvatron_planner.profiles import ProfileRequest
from galvatron_planner.worker import ExitClass, Progress, WorkerFailure, WorkerState, WorkerStatus

STEP_SECONDS = 10


@dataclass(frozen=True, slots=True)
class Act:
    """What happens in one pod now.

    Attributes:
        state: of the supervised command; None for a supervisor that does not answer.
        step: finished training steps.
        failure: with the state ``Failed``.
        pod_status: changes to the pod's status, for what supervisors cannot say.
    """

    state: WorkerState | None = WorkerState.RUNNING
    step: int = 0
    failure: WorkerFailure | None = None
    pod_status: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Scene:
    """Which pod, when."""

    component: str
    attempt: int
    node_rank: int
    age: int


Script = Callable[[Scene], Act]


def all_goes_well(scene: Scene) -> Act:
    """Profilers measure for two steps, trainers train for four."""
    if scene.component == names.COMPONENT_PROFILER:
        return Act(WorkerState.SUCCEEDED if scene.age >= 2 else WorkerState.RUNNING)
    return Act(WorkerState.SUCCEEDED if scene.age >= 4 else WorkerState.RUNNING, step=25 * min(scene.age, 4))


def fails_with(reason_: ExitClass, *, on_attempts: range = range(1, 1000)) -> Script:
    """Node 1 fails in its second step, node 0 loses the connection."""

    def script(scene: Scene) -> Act:
        if scene.component != names.COMPONENT_TRAINER or scene.attempt not in on_attempts or scene.age < 2:
            return all_goes_well(scene)
        own = reason_ if scene.node_rank == 1 else ExitClass.COMMUNICATION
        failure = WorkerFailure(
            reason=own, message="it broke", rank=2, exit_code=1, time=1.0 + 5 * (1 - scene.node_rank)
        )
        return Act(WorkerState.FAILED, step=25, failure=failure)

    return script


@dataclass(slots=True)
class World:
    """Everything around the operator, and the ports to it."""

    script: Script = all_goes_well
    cluster: FakeCluster = field(default_factory=FakeCluster)
    now: datetime = datetime(2026, 1, 1, tzinfo=UTC)
    ages: dict[tuple[str, str], int] = field(default_factory=dict)
    lost: set[str] = field(default_factory=set)
    image_digest: str = "sha256:" + "0" * 64
    machines: list[str] | None = None
    """Nodes with room for one pod each; None for one for every pod."""
    num_placed: int = 0

    def lose_node_of(self, name: str, *, grace_seconds: int = 0) -> None:
        """Take away the machine under a pod: it stays as an object that is being deleted, and says nothing any more."""
        pod = next(pod for pod in self.pods() if pod["metadata"]["name"] == name)
        self.lost.add(pod["metadata"]["uid"])
        if self.machines is not None:
            self.machines.remove(pod["spec"]["nodeName"])
        pod["metadata"]["deletionTimestamp"] = _text(self.now + timedelta(seconds=grace_seconds))
        pod["metadata"]["deletionGracePeriodSeconds"] = grace_seconds
        reason = {"type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager"}
        pod["status"]["conditions"] = [reason, {"type": "Ready", "status": "False"}]

    def bring_back(self, machine: str) -> None:
        """Start a machine again: it has room, and its kubelet ends what was there."""
        assert self.machines is not None
        self.machines.append(machine)
        self.lost -= {pod["metadata"]["uid"] for pod in self.pods() if pod["spec"].get("nodeName") == machine}

    def take_away(self, name: str, reason: str | None, *, grace_seconds: int = 120) -> None:
        """Delete a pod with a grace period, as an eviction does: its ranks go on until the next step of the world."""
        pod = next(pod for pod in self.pods() if pod["metadata"]["name"] == name)
        pod["metadata"]["deletionTimestamp"] = _text(self.now + timedelta(seconds=grace_seconds))
        pod["metadata"]["deletionGracePeriodSeconds"] = grace_seconds
        if reason is not None:
            time = {"lastTransitionTime": _text(self.now)}
            pod["status"]["conditions"] = [{"type": "DisruptionTarget", "status": "True", "reason": reason} | time]

    def step(self) -> None:
        """Let time pass: controllers act, pods grow older."""
        self.now += timedelta(seconds=STEP_SECONDS)
        self.cluster.now = _text(self.now)
        self.cluster.collect_garbage()
        self._end_pods()
        for (kind, _, _), owner in tuple(self.cluster.objects.items()):
            if kind is Kind.STATEFUL_SET:
                self._run_stateful_set(owner)
            if kind is Kind.JOB:
                self._run_job(owner)
        for pod in self.pods():
            self._place(pod)
        for pod in self.pods():
            self._run_pod(pod)

    def pods(self) -> tuple[Manifest, ...]:
        """Every pod, whatever becomes of it."""
        return tuple(found for (kind, _, _), found in sorted(self.cluster.objects.items()) if kind is Kind.POD)

    async def status(self, address: str, port: int) -> WorkerStatus | None:
        """The port ``Workers``."""
        pod = self._at(address, port)
        if pod is None or pod["metadata"]["uid"] in self.lost:
            return None
        scene = self._scene(pod)
        act = self.script(scene)
        if act.state is None:
            return None
        progress = Progress(activity="training", step=act.step, total_steps=100, loss=2.5, step_seconds=1.0)
        return WorkerStatus(
            attempt=scene.attempt,
            node_rank=scene.node_rank,
            state=act.state,
            progress=progress,
            failure=act.failure,
        )

    async def result(self, address: str, port: int) -> str | None:
        """The port ``Workers``: every profiler finds the same plausible machine."""
        pod = self._at(address, port)
        if pod is None:
            return None
        owner = pod["metadata"]["labels"][names.LABEL_JOB_UID]
        requests = (
            found["data"][names.REQUEST_KEY]
            for (kind, _, _), found in self.cluster.objects.items()
            if kind is Kind.CONFIG_MAP
            and found["metadata"].get("labels", {}).get(names.LABEL_JOB_UID) == owner
            and names.REQUEST_KEY in found["data"]
        )
        request = ProfileRequest.from_json(next(requests))
        devices = builders.cluster(request.num_nodes * request.devices_per_node, num_nodes=request.num_nodes)
        profile = builders.profile(builders.model(), devices)
        return profile.model_copy(update={"request_digest": request.digest()}).to_json()

    def _at(self, address: str, port: int) -> Manifest | None:
        pod = next((pod for pod in self.pods() if pod.get("status", {}).get("podIP") == address), None)
        assert pod is None or port == pod["spec"]["containers"][0]["ports"][0]["containerPort"]
        return pod

    def _end_pods(self) -> None:
        for pod in self.pods():
            if "deletionTimestamp" in pod["metadata"] and pod["metadata"]["uid"] not in self.lost:
                self.cluster.remove((Kind.POD, pod["metadata"]["namespace"], pod["metadata"]["name"]))

    def _run_stateful_set(self, owner: Manifest) -> None:
        for pod in self.pods():
            beyond = int(pod["metadata"]["labels"].get(names.LABEL_POD_INDEX, -1)) >= owner["spec"]["replicas"]
            if beyond and pod["metadata"]["ownerReferences"][0]["uid"] == owner["metadata"]["uid"]:
                pod["metadata"].setdefault("deletionTimestamp", _text(self.now))
        for node_rank in range(owner["spec"]["replicas"]):
            name = f"{owner['metadata']['name']}-{node_rank}"
            labels = {names.LABEL_POD_INDEX: str(node_rank)}
            self._make_pod(owner, name, labels=labels, annotations={})

    def _run_job(self, owner: Manifest) -> None:
        status = owner.setdefault("status", {"startTime": _text(self.now)})
        deadline = owner["spec"].get("activeDeadlineSeconds")
        started = datetime.fromisoformat(status["startTime"])
        if deadline is not None and self.now >= started + timedelta(seconds=deadline):
            status["conditions"] = [{"type": "Failed", "status": "True", "reason": "DeadlineExceeded"}]
            for pod in self.pods():
                if pod["metadata"]["ownerReferences"][0]["uid"] == owner["metadata"]["uid"]:
                    pod["metadata"].setdefault("deletionTimestamp", _text(self.now))
            return
        for index in range(owner["spec"]["completions"]):
            # The end of a pod's name is random; it only has to differ between two Jobs of one name.
            name = f"{owner['metadata']['name']}-{index}-{owner['metadata']['uid'][:5]}"
            self._make_pod(owner, name, labels={}, annotations={names.ANNOTATION_COMPLETION_INDEX: str(index)})

    def _make_pod(self, owner: Manifest, name: str, *, labels: dict[str, str], annotations: dict[str, str]) -> None:
        key = (Kind.POD, owner["metadata"]["namespace"], name)
        if key in self.cluster.objects:
            return
        template = copy.deepcopy(owner["spec"]["template"])
        uid = str(uuid4())
        self.ages[uid, template["metadata"].get("annotations", {}).get(names.ANNOTATION_ATTEMPT, "0")] = 0
        self.cluster.objects[key] = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": name,
                "namespace": owner["metadata"]["namespace"],
                "uid": uid,
                "creationTimestamp": _text(self.now),
                "labels": template["metadata"]["labels"] | labels,
                "annotations": template["metadata"].get("annotations", {}) | annotations,
                "ownerReferences": [{"uid": owner["metadata"]["uid"], "controller": True}],
            },
            "spec": template["spec"],
            "status": {"phase": "Pending"},
        }

    def _place(self, pod: Manifest) -> None:
        """Be the scheduler, and the kubelet that starts what came to it."""
        if "nodeName" in pod["spec"] or "deletionTimestamp" in pod["metadata"]:
            return
        taken = {other["spec"].get("nodeName") for other in self.pods()}
        free = (
            [f"node-{self.num_placed + 1}"]
            if self.machines is None
            else [one for one in self.machines if one not in taken]
        )
        if not free:
            waits = {
                "type": "PodScheduled",
                "status": "False",
                "reason": "Unschedulable",
                "message": "0/2 nodes: no cpu",
            }
            pod["status"]["conditions"] = [waits]
            return
        self.num_placed += 1
        pod["spec"]["nodeName"] = free[0]
        pod["status"] = {
            "phase": "Running",
            "podIP": f"10.0.0.{self.num_placed}",
            "conditions": [{"type": "Ready", "status": "True"}],
            "containerStatuses": [
                {
                    "name": pod["spec"]["containers"][0]["name"],
                    "state": {"running": {"startedAt": _text(self.now)}},
                    "imageID": f"registry/runtime@{self.image_digest}",
                }
            ],
        }

    def _run_pod(self, pod: Manifest) -> None:
        if pod["metadata"]["uid"] in self.lost or "nodeName" not in pod["spec"]:
            return
        # A rank waits for all others before its command gets anywhere.
        if self._is_complete(pod):
            self.ages[_life(pod)] = self.ages.get(_life(pod), 0) + 1
        pod["status"] |= self.script(self._scene(pod)).pod_status or {}

    def _is_complete(self, pod: Manifest) -> bool:
        owner_uid = pod["metadata"]["ownerReferences"][0]["uid"]
        owner = next((o for o in self.cluster.objects.values() if o["metadata"]["uid"] == owner_uid), None)
        if owner is None:
            return False
        attempt = pod["metadata"]["annotations"].get(names.ANNOTATION_ATTEMPT)
        peers = [
            peer
            for peer in self.pods()
            if peer["metadata"]["ownerReferences"][0]["uid"] == owner_uid
            and peer["metadata"]["annotations"].get(names.ANNOTATION_ATTEMPT) == attempt
            and "deletionTimestamp" not in peer["metadata"]
            and "nodeName" in peer["spec"]
        ]
        return len(peers) == int(owner["spec"].get("replicas", owner["spec"].get("completions")))

    def _scene(self, pod: Manifest) -> Scene:
        labels, annotations = pod["metadata"]["labels"], pod["metadata"]["annotations"]
        node_rank = labels.get(names.LABEL_POD_INDEX) or annotations[names.ANNOTATION_COMPLETION_INDEX]
        return Scene(
            component=labels[names.LABEL_COMPONENT],
            attempt=int(annotations.get(names.ANNOTATION_ATTEMPT, 0)),
            node_rank=int(node_rank),
            age=self.ages.get(_life(pod), 0),
        )


class InstantSearches:
    """The port ``Searches`` without processes: every problem has the plan that uses all devices as replicas."""

    def __init__(self, problem: SearchProblem | None = None) -> None:
        self._problem = problem
        self._outcomes: dict[JobKey, SearchOutcome] = {}

    def start(self, key: JobKey, order: SearchOrder) -> None:
        problem, digest = order.problem, order.digest
        if problem.batch.minimum % problem.cluster.num_devices:
            message = "the batch cannot be split over all devices; use a multiple of their number"
            self._outcomes[key] = SearchOutcome(digest, 1.0, problem=SearchProblem.NO_FEASIBLE_PLAN, message=message)
            return
        plan = order.fixed_plan or builders.plan(
            f"dp{problem.cluster.num_devices}",
            spec=problem.model,
            on=problem.cluster,
            global_batch_size=problem.batch.minimum,
        )
        plan = plan.model_copy(update={"problem_digest": problem.digest()})
        if self._problem is not None:
            self._outcomes[key] = SearchOutcome(digest, 1.0, problem=self._problem, message="raise the budget")
        else:
            self._outcomes[key] = SearchOutcome(digest, 1.0, plan=plan, report="{}")

    def outcome(self, key: JobKey) -> SearchOutcome | None:
        return self._outcomes.get(key)

    def forget(self, key: JobKey) -> None:
        self._outcomes.pop(key, None)


def _life(pod: Manifest) -> tuple[str, str]:
    """One attempt in one pod: a pod that stays begins anew."""
    return pod["metadata"]["uid"], pod["metadata"]["annotations"].get(names.ANNOTATION_ATTEMPT, "0")


def _text(time: datetime) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ")
