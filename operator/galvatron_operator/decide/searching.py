"""From a profile to a plan: searched by a process of the operator, then kept in an immutable ConfigMap."""

from collections.abc import Iterable
from functools import lru_cache
from itertools import groupby

from galvatron_operator import names
from galvatron_operator.api import (
    ConditionType,
    Estimates,
    GalvatronJob,
    JobStatus,
    LayerGroup,
    PipelineStatus,
    PlanStatus,
    ProfilingPolicy,
)
from galvatron_operator.api.job import PIPELINE_SCHEDULES
from galvatron_operator.api.status import MAX_LAYER_GROUPS
from galvatron_operator.decide.observed import Decision, Kind, SearchOrder, SearchOutcome, SearchProblem
from galvatron_operator.decide.replanning import memory_limit, planned_cluster, replanning_text, say_replanning
from galvatron_operator.decide.rescaling import reduced_text, say_rescaling, take_back
from galvatron_operator.decide.situation import AT_ONCE_SECONDS, FALSE, POLL_SECONDS, TRUE, Situation, fail
from galvatron_operator.manifests import training
from galvatron_operator.manifests.metadata import Manifest
from galvatron_planner.errors import InvalidDocument
from galvatron_planner.plan import Plan
from galvatron_planner.problem import Algorithm, BatchRange
from galvatron_planner.profiles import Profile
from galvatron_planner.units import format_quantity

FIXED_PLAN_SECONDS = 30.0
"""Between two looks for a plan that its user has not brought yet: ConfigMaps of users are not watched."""

_EXACT_BELOW = 1e15
"""Amounts that are written to the hundredth: a float holds no more of them."""


def existing_plan(status: JobStatus | None, children: Iterable[Manifest]) -> Plan | None:
    """Read the plan under which a job trains, if there is one.

    It is kept whatever becomes of the profile it rests on. Once a job was planned anew, only a plan counts that was
    made under its present limit, and for its present number of nodes.

    Args:
        status: what is known of the job.
        children: objects of the job.

    Raises:
        InvalidDocument: when this version cannot read a plan.
        InvalidInput: when somebody else wrote the status.
    """
    children = tuple(children)
    maps = (child for child in children if child["kind"] == Kind.CONFIG_MAP and names.PLAN_KEY in child.get("data", {}))
    # The newest first.
    ordered = sorted(maps, key=lambda found: found["metadata"].get("creationTimestamp", ""), reverse=True)
    plans = {found["metadata"]["name"]: _read_plan(found["data"][names.PLAN_KEY]) for found in ordered}
    limit = memory_limit(status) if status is not None else None
    if limit is not None:
        plans = {name: plan for name, plan in plans.items() if plan.cluster.device_memory_bytes == limit}
    if status is not None and status.rescale is not None:
        plans = {name: plan for name, plan in plans.items() if plan.cluster.num_nodes == status.rescale.nodes}
    if not plans:
        return None
    known = status.plan.config_map_name if status is not None and status.plan is not None else None
    return plans.get(known or "") or _newest(plans.values(), children)


def _newest(plans: Iterable[Plan], children: Iterable[Manifest]) -> Plan:
    """Tell under which plan the job trains when its status does not: the trainers' own, or that of the least memory."""
    sets = (child["metadata"] for child in children if child["kind"] == Kind.STATEFUL_SET)
    hashes = {metadata.get("labels", {}).get(names.LABEL_PLAN_HASH) for metadata in sets}
    return min(
        plans,
        key=lambda plan: (
            names.plan_hash(plan.digest()) not in hashes,
            plan.cluster.device_memory_bytes,
            -plan.cluster.num_nodes,
        ),
    )


# Kept, because every round reads the plan, and a job that was planned anew has several.
@lru_cache(maxsize=128)
def _read_plan(text: str) -> Plan:
    return Plan.from_json(text)


def say_plan_ready(situation: Situation, plan: Plan) -> Situation:
    """Say what the plan is and what is expected of it."""
    name = names.plan_config_map(situation.job.name, plan.digest())
    known = situation.status.plan
    if known is None or known.config_map_name != name:
        known = _plan_status(situation.job, plan, name, situation.seen.search)
    reason = "FixedPlan" if situation.job.spec.search.algorithm is Algorithm.FIXED else "PlanFound"
    message = plan.summary
    if (reduced := reduced_text(situation, plan)) is not None:
        reason, message = "PlanReduced", f"{plan.summary}, {reduced}"
    ready = situation.with_status(plan=known).say(ConditionType.PLAN_READY, TRUE, reason, message)
    if ready.status.is_true(ConditionType.PROFILE_READY):
        return ready
    # The status that said so was lost; the plan is proof that there was a profile.
    never = situation.job.spec.profiling.policy is ProfilingPolicy.NEVER
    source = "AnalyticModel" if never else "Profiled"
    return ready.say(ConditionType.PROFILE_READY, TRUE, source, f"the profile behind ConfigMap {name}")


def await_fixed_plan(situation: Situation) -> Decision | None:
    """Wait for the plan that the job names, or end the job over one that cannot be read; None when all is well."""
    ref = situation.job.spec.search.fixed_plan_ref
    if ref is None:
        return None
    text = _fixed_plan_text(situation.job, situation.seen.fixed_plan)
    if text is None:
        there = situation.seen.fixed_plan is not None
        problem = f"ConfigMap {ref.name} has no key {ref.key}" if there else f"ConfigMap {ref.name} does not exist"
        message = f"{problem}; create it: kubectl create configmap {ref.name} --from-file={ref.key}=plan.json"
        waiting = situation.say(ConditionType.PLAN_READY, FALSE, "FixedPlanMissing", message)
        return waiting.decide(after_seconds=FIXED_PLAN_SECONDS)
    try:
        Plan.from_json(text)
    except InvalidDocument as error:
        reason, message = SearchProblem.INVALID_PLAN.value, f"ConfigMap {ref.name}, key {ref.key}: {error}"
        return fail(situation.say(ConditionType.PLAN_READY, FALSE, reason, message), reason, message)
    return None


def brought_plan(job: GalvatronJob, config_map: Manifest | None) -> Plan | None:
    """Read the plan that the user brings, if it is there.

    Raises:
        InvalidDocument: when it is none.
    """
    text = _fixed_plan_text(job, config_map)
    return None if text is None else Plan.from_json(text)


def search_order(situation: Situation, profile: Profile) -> SearchOrder:
    """Write down what is to be planned, or priced."""
    job = situation.job
    problem = job.problem(profile, planned_cluster(situation))
    if (rescale := situation.status.rescale) is not None:
        # Of a range, another size in the middle of a training would be another training.
        only = BatchRange(minimum=rescale.global_batch_size, maximum=rescale.global_batch_size)
        problem = problem.model_copy(update={"batch": only})
    return SearchOrder(
        problem,
        timeout_seconds=job.spec.search.timeout_seconds,
        fixed_plan=brought_plan(job, situation.seen.fixed_plan),
    )


def search(situation: Situation, profile: Profile) -> Decision:
    """Have the plan searched, or the user's own priced, and keep it when that is done."""
    order = search_order(situation, profile)
    outcome = situation.seen.search
    if outcome is None or outcome.digest != order.digest:
        return _say_searching(situation).decide(search=order, after_seconds=POLL_SECONDS)
    if outcome.plan is None:
        return _without_plan(situation, outcome)
    keep = training.plan_config_map(situation.job, outcome.plan, report=outcome.report)
    return situation.decide(apply=(keep,), after_seconds=AT_ONCE_SECONDS)


def _say_searching(situation: Situation) -> Situation:
    replan, rescale = situation.status.replan, situation.status.rescale
    if rescale is not None and (replan is None or replan.attempt <= rescale.attempt):
        return say_rescaling(situation, rescale)
    if replan is not None:
        return say_replanning(situation, replan)
    return situation.say(ConditionType.PLAN_READY, FALSE, "Searching")


def _without_plan(situation: Situation, outcome: SearchOutcome) -> Decision:
    """End the job, over what made another plan necessary if it had one; or wait for all of its nodes."""
    if (taken_back := take_back(situation, outcome.message)) is not None:
        return taken_back
    reason, replan, unfit = str(outcome.problem), situation.status.replan, SearchProblem.NO_FEASIBLE_PLAN
    message = outcome.message + (situation.job.kept_free if outcome.problem is unfit else "")
    told = situation.say(ConditionType.PLAN_READY, FALSE, reason, message)
    if replan is None or outcome.problem is not unfit:
        return fail(told, reason, message)
    return fail(told, replan.reason, f"{replanning_text(replan)}, but there is none: {message}")


def _fixed_plan_text(job: GalvatronJob, config_map: Manifest | None) -> str | None:
    ref = job.spec.search.fixed_plan_ref
    if ref is None or config_map is None:
        return None
    text: str | None = config_map.get("data", {}).get(ref.key)
    return text


def _layer_groups(plan: Plan) -> tuple[LayerGroup, ...]:
    """Write the strategies of all layers run-length encoded, whichever stages they are on."""
    strategies = [str(strategy) for stage in plan.stages for strategy in stage.layers]
    groups, first = [], 0
    for strategy, run in groupby(strategies):
        last = first + len(tuple(run)) - 1
        groups.append(LayerGroup(layers=f"{first}-{last}" if last > first else str(first), strategy=strategy))
        first = last + 1
    return tuple(groups[:MAX_LAYER_GROUPS])


def _plan_status(job: GalvatronJob, plan: Plan, name: str, outcome: SearchOutcome | None) -> PlanStatus:
    searched_seconds = outcome.seconds if outcome is not None and outcome.plan == plan else 0.0
    gpu_hours = job.spec.training.steps * plan.estimate.step_seconds * plan.cluster.num_devices / 3600
    price = job.spec.budget.cost_per_gpu_hour
    return PlanStatus(
        hash=names.plan_hash(plan.digest()),
        config_map_name=name,
        gpus=plan.cluster.num_devices,
        global_batch_size=plan.global_batch_size,
        micro_batches=plan.num_micro_batches,
        summary=plan.summary,
        pipeline=PipelineStatus(
            degree=len(plan.stages),
            division=tuple(len(stage.layers) for stage in plan.stages),
            schedule=PIPELINE_SCHEDULES[plan.schedule].value,
        ),
        layer_groups=_layer_groups(plan),
        estimates=Estimates(
            step_milliseconds=round(plan.estimate.step_seconds * 1e3),
            tokens_per_second=round(plan.tokens_per_second),
            peak_memory_per_gpu=format_quantity(plan.estimate.peak_bytes),
            bubble_percent=round(plan.estimate.bubble_ratio * 100),
            gpu_hours=_amount(gpu_hours),
            cost=None if price is None else _amount(gpu_hours * float(price)),
        ),
        search_milliseconds=round(searched_seconds * 1e3),
    )


def _amount(value: float) -> str:
    """Write hours or money; a huge amount in few digits, because the text in the status is bounded."""
    return f"{value:.2f}" if value < _EXACT_BELOW else f"{value:.3e}"
