"""What keeps pods from starting: what they say themselves, and what is only told by events about them and their owner.

A pod that was never created has no status. Whoever refused it (a quota, Pod Security, a webhook) is told by an event of
the StatefulSet or Job that wanted it and nowhere else; a volume that cannot be mounted in an event of the pod. Pure.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from galvatron_operator import names
from galvatron_operator.failures import Pod, parse_time
from galvatron_operator.manifests.metadata import Manifest

KUEUE_GATES = f"{names.KUEUE_GROUP}/"
"""How the scheduling gates begin that Kueue takes off when there is quota."""
MOST_PODS = 3
"""Pods whose events are read: one that cannot start speaks for all."""


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why a pod has not started yet; it may still resolve itself.

    Attributes:
        reason: of the condition that tells it.
        message: which pod, what is wrong, what to do.
    """

    reason: str
    message: str


_IMAGE_PROBLEMS = frozenset({"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"})
_CONTAINER_PROBLEMS = frozenset({"CreateContainerConfigError", "CreateContainerError", "RunContainerError"})

_VOLUME_REMEDY = "create the claim, the ConfigMap or the Secret that it names, or correct the name in spec"
_REFUSALS: tuple[tuple[str, str, str], ...] = (
    (
        r"exceeded quota|failed quota",
        "QuotaExceeded",
        "raise the ResourceQuota, or ask for less in spec.budget and spec.runtime.resources",
    ),
    (
        r"violates PodSecurity",
        "PodsRefused",
        "take out of spec.runtime what the message names, or relax the Pod Security level of the namespace",
    ),
    (r"PriorityClass", "PodsRefused", "create the PriorityClass, or correct spec.scheduling.priorityClassName"),
    (r"admission webhook", "PodsRefused", "do what the message says, or ask whoever runs the webhook"),
    (r"", "PodsRefused", "correct what the message names"),
)
"""What the message of a pod's refusal says -> reason and remedy; the first row that matches."""

_FAILURES_OF_PODS = {
    "FailedMount": ("VolumeError", _VOLUME_REMEDY),
    "FailedAttachVolume": ("VolumeError", _VOLUME_REMEDY),
    "FailedMapVolume": ("VolumeError", _VOLUME_REMEDY),
    "FailedCreatePodSandBox": ("ContainerError", "check the network plug-in of the node"),
}
_REFUSED = "FailedCreate"
_RESOLVED = frozenset({"SuccessfulCreate", "SuccessfulAttachVolume"})
_EARLIEST = "0001-01-01T00:00:00Z"


def obstacle(pods: Iterable[Pod], events: Iterable[Manifest] = ()) -> Obstacle | None:
    """Tell what keeps pods from starting; the first with a reason speaks for all.

    Args:
        pods: those that exist.
        events: about them and about what makes them, in any order.
    """
    told = (found for pod in pods if (found := _obstacle_of(pod)) is not None)
    return next(told, None) or next(_told_by_events(events), None)


def quota_awaited(children: Sequence[Manifest]) -> Obstacle | None:
    """Tell which queue a job waits in; None when none of its pods is held back, or some have got past that.

    Args:
        children: objects of one job.
    """
    pods = [child for child in children if child["kind"] == "Pod" and "deletionTimestamp" not in child["metadata"]]
    if any(map(has_node, pods)):
        return None
    held_back = (child for child in children if child["kind"] == "Job" and _is_held_back(child))
    gated = (found for pod in pods if (found := _gate(pod)) is not None and found.reason == _WAITING_FOR_QUOTA)
    return next(map(_queued, held_back), None) or next(gated, None)


def has_node(pod: Pod) -> bool:
    """Tell whether a scheduler has placed a pod."""
    return bool(pod.get("spec", {}).get("nodeName"))


def placed_since(pod: Pod) -> datetime | None:
    """Tell since when a pod has a node; None while it has none, or nobody says."""
    condition = _scheduled(pod)
    if condition is None or condition["status"] != "True" or "lastTransitionTime" not in condition:
        return None
    return parse_time(condition["lastTransitionTime"])


def is_looked_at(pod: Pod) -> bool:
    """Tell whether a scheduler has placed a pod, or said why it cannot."""
    return has_node(pod) or _scheduled(pod) is not None


def unexplained(children: Sequence[Manifest]) -> tuple[Manifest, ...]:
    """Select the objects about which only events can tell: owners without all pods, pods that wait for no known reason.

    Args:
        children: objects of one job.
    """
    pods = [child for child in children if child["kind"] == "Pod"]
    owners = (child for child in children if child["kind"] in ("StatefulSet", "Job") and _lacks_pods(child, pods))
    waiting = [pod for pod in pods if _waits(pod) and _obstacle_of(pod) is None]
    return (*owners, *waiting[:MOST_PODS])


_WAITING_FOR_QUOTA = "WaitingForQuota"


def _gate(pod: Pod) -> Obstacle | None:
    """Read what others have put on a pod so that no scheduler looks at it."""
    gates = [gate["name"] for gate in pod.get("spec", {}).get("schedulingGates", ())]
    if not gates:
        return None
    if any(gate.startswith(KUEUE_GATES) for gate in gates):
        return _queued(pod)
    return Obstacle(
        "SchedulingGated", f"{pod['metadata']['name']}: waits until its scheduling gates go: {', '.join(gates)}"
    )


def _is_held_back(job: Manifest) -> bool:
    """Tell whether a Job waits for quota: Kueue suspends what has a queue; nobody else suspends Jobs of ours."""
    labels = job["metadata"].get("labels", {})
    return (
        names.LABEL_QUEUE in labels and bool(job["spec"].get("suspend")) and "deletionTimestamp" not in job["metadata"]
    )


def _queued(waiting: Manifest | Pod) -> Obstacle:
    metadata = waiting["metadata"]
    # Kueue puts the label on a pod some moments after the gate.
    queue = metadata.get("labels", {}).get(names.LABEL_QUEUE)
    whose = f"queue {queue}" if queue else "its queue"
    message = f"{metadata['name']}: waits for quota of {whose}; see its Workload (kubectl get workloads)"
    return Obstacle(_WAITING_FOR_QUOTA, message)


def _obstacle_of(pod: Pod) -> Obstacle | None:
    if (gate := _gate(pod)) is not None:
        return gate
    name, status = pod["metadata"]["name"], pod.get("status", {})
    condition = _scheduled(pod)
    if condition is not None and condition["status"] == "False":
        return _unscheduled(f"{name}: {condition.get('message') or condition.get('reason', '')}")
    for container in status.get("containerStatuses", ()):
        waiting = container.get("state", {}).get("waiting") or {}
        message = f"{name}: {waiting.get('reason')}: {waiting.get('message', '')}"
        if waiting.get("reason") in _IMAGE_PROBLEMS:
            return Obstacle("ImagePullError", message)
        if waiting.get("reason") in _CONTAINER_PROBLEMS:
            return Obstacle("ContainerError", message)
    return None


def _scheduled(pod: Pod) -> Mapping[str, Any] | None:
    """Find what a scheduler has said; of gates, which stay in the condition for a moment, only ``_gate`` tells."""
    conditions: Iterable[Mapping[str, Any]] = pod.get("status", {}).get("conditions", ())
    told = (one for one in conditions if one["type"] == "PodScheduled" and one.get("reason") != "SchedulingGated")
    return next(told, None)


def _unscheduled(message: str) -> Obstacle:
    # A pod with an absent or unbound claim reaches no node, so that nobody tries to mount it.
    if "persistentvolumeclaim" in message.lower():
        return Obstacle("VolumeError", f"{message}; {_VOLUME_REMEDY}")
    return Obstacle("Unschedulable", message)


def _lacks_pods(owner: Manifest, pods: Sequence[Manifest]) -> bool:
    if "deletionTimestamp" in owner["metadata"]:
        return False
    wanted = owner["spec"].get("replicas") or owner["spec"].get("completions") or 0
    uid = owner["metadata"].get("uid")
    own = [p for p in pods if any(o.get("uid") == uid for o in p["metadata"].get("ownerReferences", ()))]
    return len(own) < int(wanted)


def _waits(pod: Pod) -> bool:
    """Tell whether a pod has a node and none of its containers has started there."""
    ending = "deletionTimestamp" in pod["metadata"]
    return not ending and has_node(pod) and pod.get("status", {}).get("phase") == "Pending"


def _told_by_events(events: Iterable[Manifest]) -> Iterator[Obstacle]:
    """Read the newest event about each object, if it is a problem: what has been resolved is told by a newer one."""
    known = (e for e in events if e.get("reason") in {_REFUSED, *_FAILURES_OF_PODS, *_RESOLVED})
    # Of one second, in which some pods of an owner may have been made, the problem counts.
    in_order = sorted(known, key=lambda event: (_time(event), event["reason"] not in _RESOLVED))
    newest = {event["involvedObject"].get("uid"): event for event in in_order}
    for event in newest.values():
        involved, message = event["involvedObject"], event.get("message", "")
        where = f"{involved.get('kind')} {involved.get('name')}"
        if event["reason"] == _REFUSED:
            reason, remedy = next((r, a) for pattern, r, a in _REFUSALS if re.search(pattern, message))
            yield Obstacle(reason, f"{where}: {message}; {remedy}")
        elif event["reason"] in _FAILURES_OF_PODS:
            reason, remedy = _FAILURES_OF_PODS[event["reason"]]
            yield Obstacle(reason, f"{where}: {event['reason']}: {message}; {remedy}")


def _time(event: Manifest) -> datetime:
    """When an event happened last; the two APIs for events write it in different places."""
    series = event.get("series") or {}
    time = series.get("lastObservedTime") or event.get("lastTimestamp") or event.get("eventTime")
    return parse_time(time or event["metadata"].get("creationTimestamp") or _EARLIEST)
