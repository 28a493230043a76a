"""Jobs that may train on fewer nodes than they ask for: when they are planned for fewer, and when for more again.

Fewer, when pods have waited for a node too long, whatever took the node away. More, when placeholders run, which are
placed as trainers are. Either way the status says the new number of nodes, a plan counts only if it is for that many,
and another attempt goes on from the newest training checkpoint.
"""

from collections.abc import Iterable
from dataclasses import replace
from datetime import timedelta

from galvatron_operator import names
from galvatron_operator.api import ConditionType, ElasticityMode, ForceDeleteLostPods, Rescale, Resume
from galvatron_operator.decide.gang import Gang
from galvatron_operator.decide.lost import lost_pods
from galvatron_operator.decide.observed import Decision, reference
from galvatron_operator.decide.situation import (
    AT_ONCE_SECONDS,
    FALSE,
    Situation,
    begin,
    brief,
    missing,
    next_attempt,
    references,
)
from galvatron_operator.failures import parse_time
from galvatron_operator.manifests import placeholders
from galvatron_operator.manifests.metadata import Manifest
from galvatron_operator.obstacles import has_node, obstacle
from galvatron_planner.plan import Plan

LOST, RETURNED, IMPOSSIBLE = "CapacityLost", "CapacityReturned", "NoSmallerPlan"
"""Why the number of nodes has changed: the last is a change back, for want of a plan for fewer."""


def rescale(situation: Situation, plan: Plan, gang: Gang) -> Decision | None:
    """Change the number of nodes if it is time to; None while it stays.

    Only the status changes now, as with failures: the number of nodes makes another plan count, and the attempt's
    number makes pods stale. Stopped trainers save a training checkpoint.
    """
    if situation.job.spec.elasticity.mode is ElasticityMode.NONE or _is_too_early(situation):
        return None
    found = _fewer(situation, plan, gang) or _more(situation, plan)
    if found is None:
        return None
    changed = next_attempt(situation.with_status(rescale=found, plan=None))
    text = rescaling_text(changed, found)
    return begin(say_rescaling(changed, found), "Rescaling", text)


def take_back(situation: Situation, problem: str) -> Decision | None:
    """Wait for all nodes after all, because there is no plan for those that are left; None where that is no way out."""
    before, full = situation.status.rescale, situation.job.cluster.num_nodes
    if before is None or before.nodes >= full:
        return None
    # With even fewer devices each needs even more memory.
    least = min(2 * before.nodes, full)
    back = _rescale(situation, full, before.global_batch_size, (IMPOSSIBLE, brief(problem)), least_nodes=least)
    waiting = situation.with_status(rescale=back)
    text = rescaling_text(waiting, back)
    return waiting.say(ConditionType.TRAINING, FALSE, "Rescaling", text).decide(after_seconds=AT_ONCE_SECONDS)


def say_rescaling(situation: Situation, newest: Rescale) -> Situation:
    """Say why there is no plan now."""
    reason = "Growing" if newest.reason == RETURNED else "Replanning"
    return situation.say(ConditionType.PLAN_READY, FALSE, reason, rescaling_text(situation, newest))


def rescaling_text(situation: Situation, newest: Rescale) -> str:
    """Say for what a plan is needed, and why."""
    budget = situation.job.spec.budget
    devices = f"{newest.nodes * budget.gpus_per_node} of {budget.gpus} devices"
    return f"attempt {situation.status.attempt} trains on {devices}: {newest.message}"


def reduced_text(situation: Situation, plan: Plan) -> str | None:
    """Say that a plan is for fewer devices than the job asks for, why, and what has to happen; None if it is not."""
    job, newest = situation.job, situation.status.rescale
    if plan.cluster.num_nodes >= job.cluster.num_nodes:
        return None
    why = f" ({newest.message})" if newest is not None and newest.reason == LOST else ""
    text = f"for {plan.cluster.num_devices} of {job.spec.budget.gpus} devices{why}"
    return text if _resumes(situation) else f"{text}; for no more, because what was trained would be lost"


def rest(situation: Situation) -> Situation:
    """Give placeholders up for a while that run but are too few: others may need what they hold."""
    before = situation.status.rescale
    made = situation.seen.stateful_sets(names.COMPONENT_PLACEHOLDER)
    if before is None or not made or not _num_running(situation):
        return situation
    delay = situation.job.spec.elasticity.rescale_delay_seconds
    asked = parse_time(made[0]["metadata"]["creationTimestamp"])
    if situation.seconds_until(asked, plus_seconds=delay) > 0:
        return situation
    later = situation.now + timedelta(seconds=delay)
    return situation.with_status(rescale=before.model_copy(update={"not_before": later}))


def with_placeholders(decision: Decision, situation: Situation, plan: Plan, trainers: Manifest) -> Decision:
    """Ask for the nodes that are missing, or no more.

    Args:
        decision: without them.
        situation: of which it was decided.
        plan: for which trainers run.
        trainers: their StatefulSet, as we write it.
    """
    if _may_grow(situation, plan):
        replicas = situation.job.cluster.num_nodes - plan.cluster.num_nodes
        wanted = missing(situation.seen, placeholders.stateful_set(situation.job, trainers, replicas=replicas))
        # They do nothing, so nothing is lost by ending one that its machine still runs.
        lost = tuple(reference(pod) for pod in lost_pods(situation, names.COMPONENT_PLACEHOLDER))
        return replace(decision, apply=(*decision.apply, *wanted), force_delete=(*decision.force_delete, *lost))
    made = situation.seen.stateful_sets(names.COMPONENT_PLACEHOLDER)
    return replace(decision, delete=(*decision.delete, *references(made)))


def _is_too_early(situation: Situation) -> bool:
    newest = situation.status.rescale
    return newest is not None and situation.seconds_until(newest.not_before) > 0


def _fewer(situation: Situation, plan: Plan, gang: Gang) -> Rescale | None:
    """Plan for the nodes that carry trainers, when the others have been awaited in vain."""
    if situation.status.furthest_step == 0:
        # It may never have been able to run; its start deadline bounds the wait, and profiles need all nodes.
        return None
    waiting, blocked = _unplaced(situation, gang), _blocked(situation)
    num_placed = sum(_is_placed(pod) for pod in gang.pods)
    newest = situation.status.rescale
    least = max(situation.job.spec.budget.min_nodes, newest.least_nodes if newest is not None else 1)
    nodes = plan.cluster.num_nodes // 2
    while nodes > num_placed:
        nodes //= 2
    # Trainers are numbered from 0, so a lost one that keeps its name stands in the way unless its number is beyond.
    if not (waiting or blocked) or nodes < least or any(_ordinal(pod) < nodes for pod in blocked):
        return None
    return _rescale(situation, nodes, plan.global_batch_size, (LOST, _loss_text(situation, waiting, blocked)))


def _more(situation: Situation, plan: Plan) -> Rescale | None:
    """Plan for more nodes, when placeholders run on them."""
    if not _may_grow(situation, plan):
        return None
    running, nodes = _num_running(situation), plan.cluster.num_nodes
    while 2 * nodes <= min(plan.cluster.num_nodes + running, situation.job.cluster.num_nodes):
        nodes *= 2
    if nodes == plan.cluster.num_nodes:
        return None
    message = f"there is room for more pods: {running}"
    return _rescale(situation, nodes, plan.global_batch_size, (RETURNED, message))


def _may_grow(situation: Situation, plan: Plan) -> bool:
    """Tell whether room for more trainers is of use now.

    Not while trainers wait themselves, for whose node placeholders would compete.
    """
    return (
        situation.job.spec.elasticity.mode is ElasticityMode.REPLAN
        and plan.cluster.num_nodes < situation.job.cluster.num_nodes
        and situation.status.is_true(ConditionType.TRAINING)
        and _resumes(situation)
        and not _is_too_early(situation)
        and not any("deletionTimestamp" in pod["metadata"] for pod in situation.seen.pods(names.COMPONENT_TRAINER))
    )


def _resumes(situation: Situation) -> bool:
    """Tell whether another attempt goes on where this one stops."""
    checkpoint = situation.job.spec.checkpoint
    return checkpoint is not None and checkpoint.resume is Resume.LATEST


def _rescale(
    situation: Situation, nodes: int, batch: int, why: tuple[str, str], *, least_nodes: int | None = None
) -> Rescale:
    before, (reason, message) = situation.status.rescale, why
    delay = timedelta(seconds=situation.job.spec.elasticity.rescale_delay_seconds)
    return Rescale(
        nodes=nodes,
        reason=reason,
        message=message,
        attempt=situation.status.attempt,
        global_batch_size=batch,
        least_nodes=least_nodes or (before.least_nodes if before is not None else 1),
        not_before=situation.now + delay,
    )


def _patience_seconds(situation: Situation) -> int:
    """Tell how long pods may wait for a node; after the second of the two they are made anew, and wait from then on."""
    policy = situation.job.spec.failure_policy
    return min(policy.node_lost_timeout_seconds, policy.progress_deadline_seconds)


def _unplaced(situation: Situation, gang: Gang) -> tuple[Manifest, ...]:
    """Select pods that the scheduler has found no node for, for too long."""
    patience = _patience_seconds(situation)
    since = ((pod, parse_time(pod["metadata"]["creationTimestamp"])) for pod in gang.pods)
    long = (pod for pod, time in since if situation.seconds_until(time, plus_seconds=patience) <= 0)
    found = ((pod, obstacle((pod,))) for pod in long if "deletionTimestamp" not in pod["metadata"])
    return tuple(pod for pod, why in found if why is not None and why.reason == "Unschedulable")


def _blocked(situation: Situation) -> tuple[Manifest, ...]:
    """Select lost pods whose names stay taken, because they are not deleted by force."""
    policy = situation.job.spec.failure_policy.force_delete_lost_pods
    return () if policy is ForceDeleteLostPods.AFTER_TIMEOUT else lost_pods(situation, names.COMPONENT_TRAINER)


def _loss_text(situation: Situation, waiting: tuple[Manifest, ...], blocked: tuple[Manifest, ...]) -> str:
    places = [f"{_name(pod)} is lost with {pod['spec'].get('nodeName', 'its node')}" for pod in blocked]
    found = (
        [f"no node for {', '.join(_few(map(_name, waiting)))} in {_patience_seconds(situation)} s"] if waiting else []
    )
    failure = next(iter(situation.status.failures), None)
    where = f" on {failure.node}" if failure is not None and failure.node is not None else ""
    after = f", after {failure.reason}{where}" if failure is not None else ""
    return "; ".join((*_few(places), *found)) + after


def _few(texts: Iterable[str]) -> list[str]:
    known = list(texts)
    return known if len(known) <= 3 else [*known[:3], f"{len(known) - 3} more"]


def _num_running(situation: Situation) -> int:
    pods = situation.seen.pods(names.COMPONENT_PLACEHOLDER)
    return sum(_is_placed(pod) and pod.get("status", {}).get("phase") == "Running" for pod in pods)


def _is_placed(pod: Manifest) -> bool:
    return has_node(pod) and "deletionTimestamp" not in pod["metadata"]


def _name(pod: Manifest) -> str:
    return str(pod["metadata"]["name"])


def _ordinal(pod: Manifest) -> int:
    return int(pod["metadata"].get("labels", {}).get(names.LABEL_POD_INDEX, 0))
