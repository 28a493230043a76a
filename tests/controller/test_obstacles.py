"""What keeps pods from starting, as pods and the cluster's events tell it."""

from typing import Any

import pytest

from galvatron_operator import names
from galvatron_operator.obstacles import MOST_PODS, is_looked_at, obstacle, placed_since, quota_awaited, unexplained

Object = dict[str, Any]


def pod(name: str = "small-0", owner: str = "owner", **status: Any) -> Object:
    metadata = {"name": name, "uid": name, "ownerReferences": [{"uid": owner}]}
    return {"kind": "Pod", "metadata": metadata, "spec": {"nodeName": "node-7"}, "status": status}


def event(reason: str, message: str = "", *, second: int = 0, uid: str = "owner") -> Object:
    return {
        "involvedObject": {"kind": "StatefulSet", "name": "small", "uid": uid},
        "reason": reason,
        "message": message,
        "lastTimestamp": f"2026-01-01T12:00:{second:02}Z",
    }


OBSTACLES = {
    "Unschedulable": pod(conditions=[{"type": "PodScheduled", "status": "False", "message": "0/2 nodes"}]),
    "ImagePullError": pod(containerStatuses=[{"state": {"waiting": {"reason": "ImagePullBackOff"}}}]),
    "ContainerError": pod(containerStatuses=[{"state": {"waiting": {"reason": "CreateContainerConfigError"}}}]),
}


@pytest.mark.parametrize("reason", OBSTACLES)
def test_what_keeps_a_pod_from_starting_is_told(reason: str) -> None:
    found = obstacle([pod(phase="Running"), OBSTACLES[reason]])
    assert found is not None
    assert found.reason == reason
    assert "small-0" in found.message


GATED = {"type": "PodScheduled", "status": "False", "reason": "SchedulingGated", "message": "non-empty gates"}


def gated(*gates: str, labels: Object | None = None) -> Object:
    held_back = pod(conditions=[GATED])
    held_back["metadata"]["labels"] = labels or {}
    held_back["spec"] = {"schedulingGates": [{"name": gate} for gate in gates]}
    return held_back


def test_a_pod_that_kueue_holds_back_names_its_queue() -> None:
    found = obstacle([gated("kueue.x-k8s.io/admission", labels={names.LABEL_QUEUE: "gpus"})])
    assert found is not None
    assert found.reason == "WaitingForQuota"
    assert "quota of queue gpus" in found.message


def test_a_pod_that_somebody_else_holds_back_names_the_gates() -> None:
    found = obstacle([gated("example.com/licence", "example.com/data")])
    assert found is not None
    assert found.reason == "SchedulingGated"
    assert "example.com/licence, example.com/data" in found.message


def test_what_gates_have_left_in_a_condition_is_no_obstacle() -> None:
    let_in = gated()
    assert obstacle([let_in]) is None
    assert not is_looked_at(let_in)
    assert placed_since(let_in) is None


QUEUED = {names.LABEL_QUEUE: "gpus"}
SUSPENDED = {"kind": "Job", "metadata": {"name": "small-profile", "labels": QUEUED}, "spec": {"suspend": True}}


@pytest.mark.parametrize(
    ("children", "waits"),
    [
        ([gated("kueue.x-k8s.io/admission")], True),
        ([SUSPENDED], True),
        ([gated("kueue.x-k8s.io/admission"), pod("small-1")], False),
        ([gated("example.com/licence")], False),
        ([{**SUSPENDED, "metadata": {"name": "small-profile"}}], False),
        ([{**SUSPENDED, "spec": {"suspend": False}}], False),
        ([], False),
    ],
    ids=["gated", "suspended", "partly let in", "another's gate", "without a queue", "let in", "nothing yet"],
)
def test_a_job_waits_for_quota_while_none_of_its_pods_is_let_in(children: list[Object], *, waits: bool) -> None:
    assert (quota_awaited(children) is not None) is waits


def test_pods_that_are_starting_normally_have_no_obstacle() -> None:
    starting = pod(containerStatuses=[{"state": {"waiting": {"reason": "ContainerCreating"}}}])
    assert obstacle([starting, pod(phase="Running")]) is None


def test_a_claim_that_is_absent_is_a_problem_of_volumes() -> None:
    # The message of kube-scheduler 1.34; such a pod never reaches a node.
    message = '0/2 nodes are available: persistentvolumeclaim "checkpoints" not found.'
    found = obstacle([pod(conditions=[{"type": "PodScheduled", "status": "False", "message": message}])])
    assert found is not None
    assert found.reason == "VolumeError"
    assert "create the claim" in found.message


REFUSALS = {
    'create Pod small-0 in StatefulSet small failed error: pods "small-0" is forbidden: exceeded quota: team,'
    " requested: pods=1, used: pods=0, limited: pods=0": ("QuotaExceeded", "raise the ResourceQuota"),
    'pods "small-0" is forbidden: failed quota: team: must specify limits.memory': (
        "QuotaExceeded",
        "spec.runtime.resources",
    ),
    'pods "small-0" is forbidden: violates PodSecurity "restricted:latest": allowPrivilegeEscalation != false': (
        "PodsRefused",
        "Pod Security level of the namespace",
    ),
    'pods "small-0" is forbidden: no PriorityClass with name high was found': (
        "PodsRefused",
        "spec.scheduling.priorityClassName",
    ),
    'admission webhook "policy.example.com" denied the request: no': ("PodsRefused", "whoever runs the webhook"),
    "Internal error occurred": ("PodsRefused", "correct what the message names"),
}


@pytest.mark.parametrize("message", REFUSALS)
def test_who_refuses_a_pod_is_told_with_what_to_do(message: str) -> None:
    reason, remedy = REFUSALS[message]
    found = obstacle([], [event("FailedCreate", message)])
    assert found is not None
    assert found.reason == reason
    assert found.message.startswith(f"StatefulSet small: {message}; ")
    assert remedy in found.message


def test_a_volume_that_cannot_be_mounted_is_told_by_the_pods_event() -> None:
    message = 'MountVolume.SetUp failed for volume "data" : configmap "corpus" not found'
    found = obstacle([pod(phase="Pending")], [event("FailedMount", message, uid="small-0")])
    assert found is not None
    assert found.reason == "VolumeError"
    assert message in found.message


def test_what_has_been_resolved_since_is_no_obstacle() -> None:
    refused, made = event("FailedCreate", "exceeded quota", second=1), event("SuccessfulCreate", second=2)
    assert obstacle([], [made, refused]) is None
    again = event("FailedCreate", "exceeded quota", second=3)
    assert obstacle([], [again, made, refused]) is not None


def test_of_one_second_the_problem_counts() -> None:
    events = [event("FailedCreate", "exceeded quota"), event("SuccessfulCreate")]
    assert obstacle([], events) == obstacle([], events[::-1]) != None  # noqa: E711 -- compared as one chain


def test_events_that_tell_no_problem_are_left_out() -> None:
    assert obstacle([], [event("Pulling"), event("BackOff", "restarting")]) is None


def test_what_a_pod_says_itself_comes_before_events() -> None:
    found = obstacle([OBSTACLES["ImagePullError"]], [event("FailedCreate", "exceeded quota")])
    assert found is not None
    assert found.reason == "ImagePullError"


@pytest.mark.parametrize(
    "time",
    [
        {"lastTimestamp": None, "eventTime": "2026-01-01T12:00:30.000000Z"},
        {"lastTimestamp": None, "series": {"count": 2, "lastObservedTime": "2026-01-01T12:00:30.000000Z"}},
        {"lastTimestamp": None, "metadata": {"creationTimestamp": "2026-01-01T12:00:30Z"}},
    ],
)
def test_the_time_of_an_event_is_read_wherever_it_is_written(time: Object) -> None:
    refused = event("FailedCreate", "exceeded quota") | time
    assert obstacle([], [event("SuccessfulCreate", second=29), refused]) is not None
    assert obstacle([], [event("SuccessfulCreate", second=31), refused]) is None


def owner(kind: str = "StatefulSet", **spec: Any) -> Object:
    return {"kind": kind, "metadata": {"name": "small", "uid": "owner"}, "spec": spec}


def test_an_owner_is_asked_about_as_long_as_it_lacks_pods() -> None:
    for wanted in (owner(replicas=2), owner("Job", completions=2)):
        assert unexplained([wanted, pod(phase="Running")]) == (wanted,)
        assert unexplained([wanted, pod(phase="Running"), pod("small-1", phase="Running")]) == ()
        # A pod of a former owner of the name does not count.
        assert unexplained([wanted, pod(phase="Running"), pod("small-1", owner="former", phase="Running")]) == (wanted,)


def test_an_owner_that_ends_is_not_asked_about() -> None:
    ending = owner(replicas=2)
    ending["metadata"]["deletionTimestamp"] = "2026-01-01T12:00:00Z"
    assert unexplained([ending]) == ()


def test_a_few_pods_that_wait_on_their_nodes_for_no_known_reason_are_asked_about() -> None:
    waiting = [pod(f"small-{i}", phase="Pending") for i in range(10)]
    assert unexplained(waiting) == tuple(waiting[:MOST_PODS])
    assert unexplained([{**waiting[0], "spec": {}}]) == ()
    assert unexplained([OBSTACLES["ImagePullError"] | {"kind": "Pod"}]) == ()
