"""What a pod or its supervisor reports -> why it failed -> what to do about it. Pure.

Pods tell what their supervisor no longer can: that it was killed for memory, evicted, or never came back from its node.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

from galvatron_operator.api import FailureReason
from galvatron_planner.worker import ExitClass, WorkerFailure, WorkerState, WorkerStatus

Pod = Mapping[str, Any]

OUT_OF_MEMORY = "OOMKilled"
"""What the kubelet calls it when a container had no more host memory."""
SETTLE_SECONDS = 15.0
"""How long a lost connection waits for its cause: the kubelet reports a killed peer seconds after its partners."""


class Action(StrEnum):
    """What follows a failure."""

    RESTART = "Restart"
    """A new attempt that counts towards ``spec.failurePolicy.maxRestarts``."""
    RESTART_UNCOUNTED = "RestartUncounted"
    """A new attempt, however often: the cluster took something away, the job is not at fault."""
    REPLAN = "Replan"
    """A new attempt under another plan, which needs less memory; so often as ``decide/replanning.py`` says."""
    FAIL = "Fail"
    """The next attempt would fail in the same way."""


@dataclass(frozen=True, slots=True)
class Reaction:
    """One row of the table.

    Attributes:
        action: what follows.
        advice: what a person can do when it keeps happening.
        most: counted failures of this reason before the job fails, whatever ``maxRestarts`` says; None for no limit.
        repeated: failures of this reason in a row, none of which came further, that fail the job; None for no limit.
        rule: of the job's failure policy that says so, instead of the table.
    """

    action: Action
    advice: str
    most: int | None = None
    repeated: int | None = None
    rule: str | None = None


REACTIONS: dict[FailureReason, Reaction] = {
    FailureReason.USER_ERROR: Reaction(Action.RESTART, "read the whole message in status.failures", repeated=3),
    FailureReason.DATA_ERROR: Reaction(Action.FAIL, "correct spec.training.dataset"),
    FailureReason.BAD_PLAN: Reaction(Action.FAIL, "create the job again, so that it is planned anew"),
    FailureReason.OUT_OF_DEVICE_MEMORY: Reaction(
        Action.REPLAN, "lower spec.budget.memoryPerGPU, so that the search leaves more room"
    ),
    FailureReason.COMMUNICATION: Reaction(Action.RESTART, "check the network between the nodes"),
    FailureReason.PREEMPTED: Reaction(Action.RESTART_UNCOUNTED, "give the job a higher priority"),
    FailureReason.UNKNOWN: Reaction(Action.RESTART, "read the log of the pod; keep it with podRetentionSeconds"),
    FailureReason.OUT_OF_HOST_MEMORY: Reaction(Action.RESTART, "raise spec.runtime.resources.limits.memory", most=1),
    FailureReason.EVICTED: Reaction(Action.RESTART_UNCOUNTED, "raise spec.runtime.resources.requests"),
    FailureReason.NODE_LOST: Reaction(Action.RESTART_UNCOUNTED, "check the node"),
    FailureReason.POD_LOST: Reaction(Action.RESTART_UNCOUNTED, "find out who deletes the pods"),
    FailureReason.SUPERVISOR_EXITED: Reaction(Action.RESTART, "read the log of the pod's previous container"),
    FailureReason.STALLED: Reaction(
        Action.RESTART, "look at the pods' logs, or raise spec.failurePolicy.progressDeadlineSeconds"
    ),
    # Some of the pods hold devices meanwhile, which another gang may wait for that holds the rest.
    FailureReason.GANG_INCOMPLETE: Reaction(
        Action.RESTART_UNCOUNTED, "make room for all pods, see condition PodsReady"
    ),
}


@dataclass(frozen=True, slots=True)
class Failure:
    """What went wrong in one pod, or in the gang as a whole.

    Attributes:
        reason: class of the failure.
        message: what happened, for people.
        time: when it happened; the earliest failure is the cause of the others.
        pod: name of the pod, absent for the whole gang.
        node: where the pod ran.
        rank: global rank that failed first in the pod.
        exit_code: of the rank that failed first, of the command if none said anything, or of the container.
        peak_bytes: peak device memory of that rank, where it is known.
    """

    reason: FailureReason
    message: str
    time: datetime
    pod: str | None = None
    node: str | None = None
    rank: int | None = None
    exit_code: int | None = None
    peak_bytes: int | None = None


def failure_of(pod: Pod, report: WorkerStatus | None, *, now: datetime) -> Failure | None:
    """Tell why a pod cannot go on, or None when it can.

    Args:
        pod: the pod object.
        report: what its supervisor says, None when it is silent.
        now: time of failures that carry none of their own.
    """
    if report is not None and report.state is WorkerState.SUCCEEDED:
        return None
    if (taken := taken_away(pod, report, now=now)) is not None and _only_stopped(pod, report):
        return taken
    # A killed supervisor starts again in the same pod, and what it says then hides what killed it.
    if (killed := _killed(pod, now)) is not None:
        return killed
    if report is not None and report.failure is not None:
        return _reported(pod, report.failure)
    return taken or _ended(pod, now)


def taken_away(pod: Pod, report: WorkerStatus | None, *, now: datetime) -> Failure | None:
    """Tell who takes a pod away, or None when nobody does."""
    disrupted = _disrupted(pod, now)
    if disrupted is not None and disrupted.reason is FailureReason.NODE_LOST and report is not None:
        # Nobody has lost a node whose pods answer: it was tainted, and its kubelet ends them with their grace period.
        return replace(disrupted, reason=FailureReason.EVICTED)
    return disrupted or _unreachable(pod, report, now) or _deleted(pod, now)


def is_on_lost_node(pod: Pod) -> bool:
    """Tell whether Kubernetes takes a pod away because it has lost contact with the node, or was told to empty it."""
    found = _disrupted(pod, datetime.min.replace(tzinfo=UTC))
    return found is not None and found.reason is FailureReason.NODE_LOST


def asked_to_end(pod: Pod) -> datetime:
    """Tell when a pod that is being deleted was asked to end: Kubernetes writes down when its grace period does."""
    metadata = pod["metadata"]
    return parse_time(metadata["deletionTimestamp"]) - timedelta(seconds=metadata.get("deletionGracePeriodSeconds", 0))


def may_still_save(pod: Pod, report: WorkerStatus | None, *, now: datetime) -> bool:
    """Tell whether a pod is taken away whose ranks have time left to save their work, and have not ended.

    They do it together with those of the other pods, so nobody may end these meanwhile.
    """
    taken = taken_away(pod, report, now=now)
    if taken is None or taken.reason is FailureReason.NODE_LOST:
        return False
    end = pod["metadata"].get("deletionTimestamp")
    containers = pod.get("status", {}).get("containerStatuses", ())
    runs = any("running" in container.get("state", {}) for container in containers)
    has_ended = report is not None and report.state in (WorkerState.SUCCEEDED, WorkerState.FAILED)
    return runs and not has_ended and (end is None or parse_time(end) > now)


def cause(failures: Iterable[Failure], *, now: datetime, all_have_spoken: bool = False) -> Failure | None:
    """Choose the failure that led to the others, or None while it may still have to show itself.

    A lost connection is usually the echo of something else, so it stands only when nothing else is heard for a while.

    Args:
        failures: at most one per pod.
        now: the time.
        all_have_spoken: whether no pod is left that could say something else.
    """
    ranked = sorted(failures, key=lambda failure: (failure.reason is FailureReason.COMMUNICATION, failure.time))
    first = next(iter(ranked), None)
    if first is None or first.reason is not FailureReason.COMMUNICATION or all_have_spoken:
        return first
    return first if now - first.time >= timedelta(seconds=SETTLE_SECONDS) else None


def parse_time(text: str) -> datetime:
    """Read a time as the API writes it."""
    return datetime.fromisoformat(text).astimezone(UTC)


def _only_stopped(pod: Pod, report: WorkerStatus | None) -> bool:
    """Tell whether a pod has ended, if it has, as it does on request: what that was is known better elsewhere."""
    if report is not None and report.failure is not None and report.failure.reason is not ExitClass.PREEMPTED:
        return False
    containers = pod.get("status", {}).get("containerStatuses", ())
    if any("terminated" in container.get("lastState", {}) for container in containers):
        return False
    ended = (container.get("state", {}).get("terminated", {}) for container in containers)
    return all(each.get("reason") != OUT_OF_MEMORY for each in ended)


def _reported(pod: Pod, failure: WorkerFailure) -> Failure:
    return Failure(
        reason=FailureReason(failure.reason.value),
        message=failure.message,
        time=datetime.fromtimestamp(failure.time, UTC),
        pod=pod["metadata"]["name"],
        node=pod.get("spec", {}).get("nodeName"),
        rank=failure.rank,
        exit_code=failure.exit_code,
        peak_bytes=failure.peak_bytes,
    )


_DISRUPTIONS = {
    "PreemptionByScheduler": FailureReason.PREEMPTED,
    "DeletionByTaintManager": FailureReason.NODE_LOST,
    "DeletionByPodGC": FailureReason.NODE_LOST,
    "EvictionByEvictionAPI": FailureReason.EVICTED,
    "TerminationByKubelet": FailureReason.EVICTED,
}


def _disrupted(pod: Pod, now: datetime) -> Failure | None:
    """Read the condition that Kubernetes sets before it takes a pod away."""
    for condition in pod.get("status", {}).get("conditions", ()):
        if condition["type"] == "DisruptionTarget" and condition["status"] == "True":
            reason = _DISRUPTIONS.get(condition.get("reason", ""), FailureReason.EVICTED)
            time = condition.get("lastTransitionTime")
            return _of_pod(pod, reason, condition.get("message", ""), parse_time(time) if time else now)
    return None


def _killed(pod: Pod, now: datetime) -> Failure | None:
    """Find a supervisor that ended: it parks whatever happens to its command, so it was killed or has crashed."""
    for container in pod.get("status", {}).get("containerStatuses", ()):
        ended = container.get("state", {}).get("terminated") or container.get("lastState", {}).get("terminated")
        if ended is None:
            continue
        out_of_memory = ended.get("reason") == OUT_OF_MEMORY
        reason = FailureReason.OUT_OF_HOST_MEMORY if out_of_memory else FailureReason.SUPERVISOR_EXITED
        code = ended.get("exitCode")
        message = ended.get("message") or f"the container ended with code {code} ({ended.get('reason', 'no reason')})"
        time = ended.get("finishedAt")
        return _of_pod(pod, reason, message, parse_time(time) if time else now, exit_code=code)
    return None


def _unreachable(pod: Pod, report: WorkerStatus | None, now: datetime) -> Failure | None:
    """Find a pod whose node has been given up, also before the pod is deleted."""
    if report is not None or pod.get("status", {}).get("reason") != "NodeLost":
        return None
    return _of_pod(pod, FailureReason.NODE_LOST, pod["status"].get("message", "the node is gone"), now)


def _deleted(pod: Pod, now: datetime) -> Failure | None:
    if "deletionTimestamp" not in pod["metadata"]:
        return None
    return _of_pod(pod, FailureReason.POD_LOST, "the pod is being deleted", min(asked_to_end(pod), now))


def _ended(pod: Pod, now: datetime) -> Failure | None:
    """Find a pod that the kubelet gave up before its containers had a state: evicted, refused or shut down."""
    status = pod.get("status", {})
    if status.get("phase") != "Failed":
        return None
    message = f"{status.get('reason', 'Failed')}: {status.get('message', '')}"
    return _of_pod(pod, FailureReason.EVICTED, message, now)


def _of_pod(pod: Pod, reason: FailureReason, message: str, time: datetime, *, exit_code: int | None = None) -> Failure:
    node = pod.get("spec", {}).get("nodeName")
    return Failure(reason, message, time, pod=pod["metadata"]["name"], node=node, exit_code=exit_code)
