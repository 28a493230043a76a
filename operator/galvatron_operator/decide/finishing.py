"""The ends of a job: what a finished one releases, what a suspended one keeps, when a deadline strikes."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from galvatron_operator import names
from galvatron_operator.api import ConditionType, Execution, JobStatus
from galvatron_operator.decide.observed import POD_GROUPS, Decision, Kind, Observed
from galvatron_operator.decide.situation import (
    FALSE,
    TRUE,
    Situation,
    fail,
    job_reference,
    references,
)
from galvatron_operator.manifests.metadata import Manifest
from galvatron_planner.errors import GalvatronError

_RELEASED_KINDS = (*POD_GROUPS, Kind.STATEFUL_SET, Kind.JOB, Kind.SERVICE)
"""What holds pods, or serves them. ConfigMaps stay: they are the record of what was planned.

PodGroups are looked up as long as something holds pods, so they go first."""


def held(seen: Observed) -> tuple[Manifest, ...]:
    """List what a job must give back when it ends."""
    return tuple(child for kind in _RELEASED_KINDS for child in seen.of_kind(kind))


def after_the_end(situation: Situation) -> Decision:
    """Release pods after their retention, and the job itself after its time to live."""
    lifecycle, ended = situation.job.spec.lifecycle, situation.status.completion_time
    until_deletion = (
        situation.seconds_until(ended, plus_seconds=lifecycle.ttl_seconds_after_finished)
        if lifecycle.ttl_seconds_after_finished is not None
        else None
    )
    if until_deletion is not None and until_deletion <= 0:
        return Decision(delete=(job_reference(situation.job),))
    until_release = situation.seconds_until(ended, plus_seconds=lifecycle.pod_retention_seconds)
    if until_release > 0 and held(situation.seen):
        useless = references(situation.seen.stateful_sets(names.COMPONENT_PLACEHOLDER))
        return situation.decide(delete=useless, after_seconds=_sooner(until_release, until_deletion))
    released = _released(situation)
    return released.decide(delete=references(held(situation.seen)), after_seconds=until_deletion)


def suspend(situation: Situation) -> Decision:
    """Stop everything, keeping documents; SIGTERM makes trainers save a training checkpoint."""
    pods = situation.seen.of_kind(Kind.POD)
    reason, message = ("Checkpointing", "pods are ending") if pods else ("UserRequested", "spec.suspend is true")
    # Without a start time: the deadline counts from the resumption, as with batch/v1 Jobs.
    stopped = _released(situation).say(ConditionType.SUSPENDED, TRUE, reason, message).with_status(start_time=None)
    holders = tuple(child for child in held(situation.seen) if child["kind"] != Kind.SERVICE)
    return stopped.decide(delete=references(holders))


def check_deadline(situation: Situation) -> Decision | None:
    """Fail a job that has been active for too long."""
    seconds = situation.job.spec.lifecycle.active_deadline_seconds
    started = situation.status.start_time
    if seconds is None or started is None or situation.seconds_until(started, plus_seconds=seconds) > 0:
        return None
    return fail(
        situation,
        "DeadlineExceeded",
        f"the job has been active for {seconds} s; raise spec.lifecycle.activeDeadlineSeconds, or ask for less",
    )


def check_start(situation: Situation, decision: Decision) -> Decision:
    """Fail a job that has not trained in time, unless ``decision`` has just found that it does."""
    seconds, status = situation.job.spec.lifecycle.start_deadline_seconds, decision.status
    if seconds is None or status is None or status.is_finished or status.furthest_step > 0:
        return decision
    if situation.job.spec.execution is Execution.PLAN or status.start_time is None:
        return decision
    if situation.seconds_until(status.start_time, plus_seconds=seconds) > 0:
        return decision
    return fail(
        replace(situation, status=status),
        "StartDeadlineExceeded",
        f"no step was finished within {seconds} s{_hindrance(status)}; remove what keeps the job from training,"
        " or raise spec.lifecycle.startDeadlineSeconds",
    )


def _hindrance(status: JobStatus) -> str:
    """Say what a job waits for: a failure that it has restarted from, or the first condition that does not hold."""
    training = status.find(ConditionType.TRAINING)
    types = (ConditionType.PROFILE_READY, ConditionType.PLAN_READY, ConditionType.PODS_READY, ConditionType.TRAINING)
    waiting = [c for type_ in types if (c := status.find(type_)) is not None and c.status is not TRUE]
    first = training if training is not None and training.reason == "Restarting" else next(iter(waiting), None)
    return f" ({first.reason}: {first.message})" if first is not None else ""


def refuse(
    body: Mapping[str, Any], seen: Observed, error: GalvatronError, *, now: datetime, before: JobStatus | None
) -> Decision:
    """End a job that cannot be meant, and whatever runs of it since it was last understood."""
    release = references(held(seen))
    if before is not None and before.is_finished:
        # What has ended stays as it ended, whatever a later version thinks of it.
        return Decision(delete=release)
    generation = int(body["metadata"].get("generation", 1))
    status = (before or JobStatus.first(generation=generation, now=now)).model_copy(
        update={"observed_generation": generation, "completion_time": now}
    )
    for type_, value, reason in (
        (ConditionType.ACCEPTED, FALSE, "InvalidSpec"),
        (ConditionType.FAILED, TRUE, "InvalidSpec"),
        (ConditionType.COMPLETE, FALSE, "DidNotComplete"),
    ):
        status = status.with_condition(type_, value, reason, str(error), generation=generation, now=now)
    return Decision(status=status, delete=release)


def _released(situation: Situation) -> Situation:
    """Say that no pods are wanted."""
    said = situation
    if situation.status.attempt:
        said = said.say(ConditionType.PODS_READY, FALSE, "Released", "no pods are wanted")
        finished = situation.status.is_true(ConditionType.COMPLETE)
        said = said.say(ConditionType.TRAINING, FALSE, "Finished" if finished else "Stopped")
    return said.with_status(nodes=said.status.nodes.model_copy(update={"desired": 0, "ready": 0}))


def _sooner(first: float, second: float | None) -> float:
    return first if second is None else min(first, second)
