"""What people see at a glance: the phase, and one event for each change of state."""

import hashlib
from collections.abc import Iterator
from datetime import datetime

from galvatron_operator import names
from galvatron_operator.api import Condition, ConditionStatus, ConditionType, JobStatus, Phase
from galvatron_operator.api.status import rfc3339
from galvatron_operator.decide.observed import Event
from galvatron_operator.manifests.metadata import Manifest

_SUCCESSES = {
    ConditionType.PROFILE_READY: ConditionStatus.TRUE,
    ConditionType.PLAN_READY: ConditionStatus.TRUE,
    ConditionType.TRAINING: ConditionStatus.TRUE,
    ConditionType.COMPLETE: ConditionStatus.TRUE,
}
"""Conditions whose becoming true is news."""
_PROBLEMS = frozenset(
    {
        "Restarting",
        "Replanning",
        "Unschedulable",
        "ImagePullError",
        "ContainerError",
        "VolumeError",
        "QuotaExceeded",
        "WaitingForQuota",
        "WaitingForGang",
        "SchedulingGated",
        "PodsRefused",
        "FixedPlanMissing",
        "NodeLost",
    }
)
"""Reasons that are news when they appear in a condition that is not true."""


BETWEEN_ATTEMPTS = frozenset({"Restarting", "Rescaling"})
"""Reasons of the condition Training from the end of one attempt to the first step of the next."""
_NEWS = frozenset({"UserRequested", "Resumed", "Growing"})
"""Reasons that are news and no problem."""
_PLANNED = ("NewPlan", "SamePlan")
"""Good answers to a user who asks for another plan."""


def phase_of(status: JobStatus) -> Phase:
    """Sum up the conditions in one word."""
    for type_, phase in (
        (ConditionType.FAILED, Phase.FAILED),
        (ConditionType.COMPLETE, Phase.COMPLETE),
        (ConditionType.SUSPENDED, Phase.SUSPENDED),
        (ConditionType.TRAINING, Phase.TRAINING),
    ):
        if status.is_true(type_):
            return phase
    if status.is_true(ConditionType.PLAN_READY):
        training = status.find(ConditionType.TRAINING)
        return Phase.RESTARTING if training is not None and training.reason in BETWEEN_ATTEMPTS else Phase.STARTING
    if status.is_true(ConditionType.PROFILE_READY):
        return Phase.SEARCHING
    profile = status.find(ConditionType.PROFILE_READY)
    return Phase.PROFILING if profile is not None and profile.reason == "Profiling" else Phase.PENDING


def announce(before: JobStatus | None, after: JobStatus) -> Iterator[Event]:
    """Write an event for each condition that has changed in a way worth telling."""
    for condition in after.conditions:
        known = before.find(condition.type) if before is not None else None
        same = known is not None and (known.status, known.reason) == (condition.status, condition.reason)
        if not same and (event := _event(condition)) is not None:
            yield event
    answer = after.replan_request
    if answer is not None and answer != (before.replan_request if before is not None else None):
        yield Event(answer.result, answer.message, warning=answer.result not in _PLANNED)


def event_manifest(event: Event, body: Manifest, *, now: datetime) -> Manifest:
    """Write an event; its name follows from what it says, so that saying it twice makes one event."""
    metadata = body["metadata"]
    said = "\n".join((metadata["uid"], event.reason, event.message))
    time = rfc3339(now)
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {
            "name": f"{metadata['name']}.{hashlib.sha256(said.encode()).hexdigest()[:16]}",
            "namespace": metadata["namespace"],
        },
        "involvedObject": {
            "apiVersion": names.API_VERSION,
            "kind": names.KIND,
            "name": metadata["name"],
            "namespace": metadata["namespace"],
            "uid": metadata["uid"],
        },
        "type": "Warning" if event.warning else "Normal",
        "reason": event.reason,
        "message": event.message,
        "firstTimestamp": time,
        "lastTimestamp": time,
        "count": 1,
        "source": {"component": names.MANAGER},
        "reportingComponent": f"{names.API_GROUP}/operator",
    }


def _event(condition: Condition) -> Event | None:
    if condition.type is ConditionType.FAILED:
        failed = condition.status is ConditionStatus.TRUE
        return Event(condition.reason, condition.message, warning=True) if failed else None
    if _SUCCESSES.get(condition.type) is condition.status:
        return Event(condition.reason, condition.message, warning=False)
    if condition.reason in _PROBLEMS:
        return Event(condition.reason, condition.message, warning=True)
    if condition.reason in _NEWS:
        return Event(condition.reason, condition.message, warning=False)
    return None
