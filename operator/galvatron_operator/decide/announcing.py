"""What people see at a glance: the phase, and one event for each change of state."""

from collections.abc import Iterator

from galvatron_operator.api import Condition, ConditionStatus, ConditionType, JobStatus, Phase
from galvatron_operator.decide.observed import Event

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
        return Phase.RESTARTING if training is not None and training.reason == "Restarting" else Phase.STARTING
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


def _event(condition: Condition) -> Event | None:
    if condition.type is ConditionType.FAILED:
        failed = condition.status is ConditionStatus.TRUE
        return Event(condition.reason, condition.message, warning=True) if failed else None
    if _SUCCESSES.get(condition.type) is condition.status:
        return Event(condition.reason, condition.message, warning=False)
    if condition.reason in _PROBLEMS:
        return Event(condition.reason, condition.message, warning=True)
    if condition.type is ConditionType.SUSPENDED and condition.reason in ("UserRequested", "Resumed"):
        return Event(condition.reason, condition.message, warning=False)
    return None
