"""The whole logic of a job, pure: ``decide(body, seen, ...)`` says what to write, apply, delete and search.

    finished?   release pods, later delete the job           finishing.py
    suspended?  stop pods, keep documents                    finishing.py
    no profile  from the cache, a catalogue, or measured     profiling.py
    no plan     search it                                    searching.py
    plan        train: attempts of a gang                    training.py, gang.py
    failure     restart, plan anew with less memory, end     restarting.py, replanning.py
    nodes       plan anew for fewer, and for more again      rescaling.py
    annotation  another plan for a job that trains           requests.py

Level-triggered: every decision follows from what exists now, so that an operator that was away, or was stopped between
two actions, goes on as if it had never been away. Status is written before objects change; what a status says (the
attempt number above all) makes the next round change them.
"""

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from galvatron_operator import names
from galvatron_operator.api import CONTROLLER, ConditionType, Execution, JobStatus, ProfilingPolicy, parse, parse_status
from galvatron_operator.decide.announcing import announce, event_manifest, phase_of
from galvatron_operator.decide.finishing import after_the_end, check_deadline, check_start, refuse, suspend
from galvatron_operator.decide.keeping import copy_to_keep, profile_at_hand, say_profile_ready, say_what_comes_later
from galvatron_operator.decide.observed import (
    OWNED_KINDS,
    POD_GROUPS,
    Decision,
    Event,
    Kind,
    ObjectRef,
    Observed,
    SearchOrder,
    SearchOutcome,
    SearchProblem,
    kind_of,
    reference,
)
from galvatron_operator.decide.profiling import heed_reprofile, measure, request_of, without_profilers
from galvatron_operator.decide.queueing import pod_groups_of
from galvatron_operator.decide.requests import answer_request, asks_for_another_plan
from galvatron_operator.decide.searching import await_fixed_plan, brought_plan, existing_plan, say_plan_ready, search
from galvatron_operator.decide.situation import FALSE, TRUE, Situation, complete, references
from galvatron_operator.decide.training import has_finished_training, train
from galvatron_operator.manifests.metadata import Manifest
from galvatron_operator.obstacles import quota_awaited
from galvatron_operator.settings import Settings
from galvatron_planner.errors import GalvatronError, InvalidDocument, InvalidInput
from galvatron_planner.plan import Plan

__all__ = [
    "FORBIDDEN",
    "OWNED_KINDS",
    "POD_GROUPS",
    "SCHEDULER_MISSING",
    "Decision",
    "Event",
    "Kind",
    "ObjectRef",
    "Observed",
    "SearchOrder",
    "SearchOutcome",
    "SearchProblem",
    "decide",
    "event_manifest",
    "fixed_plan_to_look_up",
    "hinder",
    "is_ours",
    "kind_of",
    "pod_groups_to_look_up",
    "profiles_to_look_up",
    "reference",
    "reject",
]


VERSION_SKEW_SECONDS = 30.0
"""Between two looks at a job of another version."""


def decide(body: Mapping[str, Any], seen: Observed, *, now: datetime, settings: Settings) -> Decision:
    """Decide what to do about one job.

    Args:
        body: the GalvatronJob as the API has it.
        seen: everything that exists for it.
        now: the time.
        settings: of the installation.
    """
    if "deletionTimestamp" in body["metadata"]:
        # Its children are owned by it: the garbage collector ends them, with or without us.
        return Decision()
    before: JobStatus | None = None
    try:
        before = parse_status(body)
        situation = _situation(body, seen, before, now=now, settings=settings)
    except InvalidInput as error:
        return _finished(_misunderstood(body, seen, before, error, now=now), before)
    try:
        decision = _still_hindered(_spare_writes(_decide(situation), situation, before), seen, before)
    except InvalidInput as error:
        decision = refuse(body, seen, error, now=now, before=before)
    return _finished(decision, before)


def is_ours(body: Mapping[str, Any]) -> bool:
    """Tell whether a job is this operator's to work on; about others it does nothing and says nothing."""
    return bool((body.get("spec") or {}).get("managedBy", CONTROLLER) == CONTROLLER)


def _misunderstood(
    body: Mapping[str, Any], seen: Observed, before: JobStatus | None, error: InvalidInput, *, now: datetime
) -> Decision:
    """Refuse a job, but leave one alone that was understood before: the CRD may be ahead of this operator."""
    if before is None or before.is_finished or not before.is_true(ConditionType.ACCEPTED):
        return refuse(body, seen, error, now=now, before=before)
    generation = int(body["metadata"].get("generation", 1))
    message = f"{error}; the job goes on unattended until an operator of the CRD's version runs"
    status = before.with_condition(ConditionType.ACCEPTED, TRUE, "VersionSkew", message, generation=generation, now=now)
    return Decision(status=status, requeue_after_seconds=VERSION_SKEW_SECONDS)


def reject(body: Mapping[str, Any], seen: Observed, error: GalvatronError, *, now: datetime) -> Decision:
    """Decide what to do about a job for which the cluster refuses an object."""
    before = parse_status(body)
    return _finished(refuse(body, seen, error, now=now, before=before), before)


def hinder(body: Mapping[str, Any], reason: str, error: GalvatronError, *, now: datetime) -> Decision:
    """Say that an object cannot be written (yet), in the condition that waits for it, if any does.

    Args:
        body: the GalvatronJob as the API has it.
        reason: one of ``HINDRANCES``.
        error: what the cluster says.
        now: the time.
    """
    before = parse_status(body)
    waiting = () if before is None else (one for one in _WAITING if not before.is_true(one))
    type_ = next(iter(waiting), None)
    if before is None or type_ is None:
        return Decision()
    generation = int(body["metadata"].get("generation", 1))
    status = before.with_condition(type_, FALSE, reason, str(error), generation=generation, now=now)
    return _finished(Decision(status=status), before)


def profiles_to_look_up(
    body: Mapping[str, Any],
    children: tuple[Manifest, ...],
    *,
    settings: Settings,
    fixed_plan: Manifest | None = None,
) -> tuple[ObjectRef, ...]:
    """Name the ConfigMaps in which the job's profile may be cached; none where no profile is needed (yet, any more).

    What its own namespace has comes first: others have no say in it.

    Args:
        body: the GalvatronJob as the API has it.
        children: objects of the job.
        settings: of the installation.
        fixed_plan: the ConfigMap of :func:`fixed_plan_to_look_up`, if it is there.
    """
    try:
        job, status = parse(body), parse_status(body)
        if existing_plan(status, children) is not None and not asks_for_another_plan(job, status):
            return ()
        brought = brought_plan(job, fixed_plan)
    except (InvalidInput, InvalidDocument):
        # ``decide`` says so.
        return ()
    if job.spec.profiling.policy is ProfilingPolicy.NEVER:
        return ()
    name = names.profile_config_map(request_of(job, settings, brought).digest())
    shared = () if settings.profile_cache is None else (settings.profile_cache.namespace,)
    return tuple(ObjectRef(Kind.CONFIG_MAP, namespace, name) for namespace in dict.fromkeys((job.namespace, *shared)))


def pod_groups_to_look_up(body: Mapping[str, Any], children: tuple[Manifest, ...]) -> tuple[ObjectRef, ...]:
    """Name the PodGroups that the job's next decision rests on; mostly none."""
    try:
        return pod_groups_of(parse(body), parse_status(body), children)
    except InvalidInput:
        # ``decide`` says so.
        return ()


def fixed_plan_to_look_up(body: Mapping[str, Any], children: tuple[Manifest, ...]) -> ObjectRef | None:
    """Name the ConfigMap in which the user brings a plan; None where none is needed (any more)."""
    if any(names.PLAN_KEY in child.get("data", {}) for child in children):
        return None
    try:
        job = parse(body)
    except InvalidInput:
        # ``decide`` says so.
        return None
    ref = job.spec.search.fixed_plan_ref
    return None if ref is None else ObjectRef(Kind.CONFIG_MAP, job.namespace, ref.name)


def _situation(
    body: Mapping[str, Any], seen: Observed, before: JobStatus | None, *, now: datetime, settings: Settings
) -> Situation:
    """Read the job, and set every condition.

    Raises:
        InvalidInput: when it cannot be meant.
    """
    job = parse(body).with_image_pull_secrets(settings.image_pull_secrets)
    job.check_for_cluster()
    generation = job.metadata.generation
    status = (before or JobStatus.first(generation=generation, now=now)).with_missing_conditions(
        generation=generation, now=now
    )
    situation = Situation(job, seen, status.model_copy(update={"observed_generation": generation}), now, settings)
    return situation.say(ConditionType.ACCEPTED, TRUE, "Valid")


def _decide(situation: Situation) -> Decision:
    if situation.status.is_finished:
        return after_the_end(situation)
    if (failed := check_deadline(situation)) is not None:
        return failed
    plan = existing_plan(situation.status, situation.seen.children)
    if situation.job.spec.suspend and not (plan is not None and has_finished_training(situation, plan)):
        return suspend(situation)
    # As with batch/v1 Jobs, deadlines count from the moment at which a queue lets a job in.
    waits = quota_awaited(situation.seen.children) is not None
    started = situation.with_status(start_time=None if waits else situation.status.start_time or situation.now)
    return check_start(situation, _advance(started, plan))


def _advance(situation: Situation, plan: Plan | None) -> Decision:
    """Take the step that is next."""
    if plan is None:
        planned = _plan(heed_reprofile(_resume(situation)))
        # Those of a former plan would hold devices meanwhile.
        return replace(planned, delete=(*planned.delete, *references(situation.seen.of_kind(Kind.STATEFUL_SET))))
    ready = say_what_comes_later(say_plan_ready(situation, plan))
    if situation.job.spec.execution is Execution.PLAN:
        return complete(_resume(ready), "PlanOnly", plan.summary)
    return without_profilers(answer_request(ready, plan, train(ready, plan)), situation.seen)


def _resume(situation: Situation) -> Situation:
    """Say that a suspension is over, where there is no gang whose attempt it ends."""
    if not situation.status.is_true(ConditionType.SUSPENDED):
        return situation
    return situation.say(ConditionType.SUSPENDED, FALSE, "Resumed")


def _plan(situation: Situation) -> Decision:
    """Find the profile, then the plan; not the profile for a plan that is not there."""
    if (unready := await_fixed_plan(situation)) is not None:
        return unready
    brought = brought_plan(situation.job, situation.seen.fixed_plan)
    request = request_of(situation.job, situation.settings, brought)
    found = profile_at_hand(situation, request)
    if found is None:
        return measure(situation, request)
    planned = search(say_profile_ready(situation, found), found.profile)
    return without_profilers(replace(planned, apply=(*copy_to_keep(situation, found), *planned.apply)), situation.seen)


_WAITING = (ConditionType.PROFILE_READY, ConditionType.PLAN_READY, ConditionType.PODS_READY)
"""Conditions that wait for objects, in their order."""
FORBIDDEN = "Forbidden"
SCHEDULER_MISSING = "GangSchedulerMissing"
HINDRANCES = frozenset({FORBIDDEN, SCHEDULER_MISSING})
"""Reasons for which an object is not written until somebody else has done something."""


def _still_hindered(decision: Decision, seen: Observed, before: JobStatus | None) -> Decision:
    """Go on saying that an object must not be written as long as it is wanted and does not exist."""
    existing = {(child["kind"], child["metadata"]["name"]) for child in seen.children}
    awaited = any((wanted["kind"], wanted["metadata"]["name"]) not in existing for wanted in decision.apply)
    if before is None or decision.status is None or not awaited:
        return decision
    status = decision.status
    for former in before.conditions:
        if former.reason in HINDRANCES and not status.is_true(former.type):
            status = status.with_condition(
                former.type,
                former.status,
                former.reason,
                former.message,
                generation=status.observed_generation,
                now=former.last_transition_time,
            )
    return replace(decision, status=status)


def _spare_writes(decision: Decision, situation: Situation, before: JobStatus | None) -> Decision:
    """Leave progress as it was written last, when nothing else changes and that was not long ago."""
    if before is None or before.progress is None or decision.status is None:
        return decision
    period_seconds = situation.job.spec.observability.status_period_seconds
    if situation.seconds_until(before.progress.last_update_time, plus_seconds=period_seconds) <= 0:
        return decision
    status = decision.status.model_copy(update={"progress": before.progress})
    return replace(decision, status=status) if status == before else decision


def _finished(decision: Decision, before: JobStatus | None) -> Decision:
    """Sum up the status, announce what changed, and leave out a status that says nothing new."""
    if decision.status is None:
        return decision
    status = decision.status.model_copy(update={"phase": phase_of(decision.status).value})
    if status == before:
        return replace(decision, status=None)
    return replace(decision, status=status, events=tuple(announce(before, status)))
