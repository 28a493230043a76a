"""From a profile to a plan: searched by a process of the operator, then kept in an immutable ConfigMap."""

from itertools import groupby

from galvatron_operator import names
from galvatron_operator.api import (
    ConditionType,
    Estimates,
    GalvatronJob,
    LayerGroup,
    PipelineStatus,
    PlanStatus,
    ProfilingPolicy,
)
from galvatron_operator.api.job import PIPELINE_SCHEDULES
from galvatron_operator.api.status import MAX_LAYER_GROUPS
from galvatron_operator.decide.observed import Decision, Kind, SearchOrder, SearchOutcome, SearchProblem
from galvatron_operator.decide.situation import AT_ONCE_SECONDS, FALSE, POLL_SECONDS, TRUE, Situation, fail
from galvatron_operator.manifests import training
from galvatron_operator.manifests.metadata import Manifest
from galvatron_planner.errors import InvalidDocument
from galvatron_planner.plan import Plan
from galvatron_planner.problem import Algorithm, PlanningProblem
from galvatron_planner.profiles import Profile
from galvatron_planner.units import format_quantity

FIXED_PLAN_SECONDS = 30.0
"""Between two looks for a plan that its user has not brought yet: ConfigMaps of users are not watched."""


def existing_plan(situation: Situation) -> Plan | None:
    """Read the plan that was made for this job.

    It is kept whatever becomes of the profile it rests on: a job trains under one plan.

    Raises:
        InvalidDocument: when this version cannot read it.
    """
    known = situation.status.plan
    texts = {
        config_map["metadata"]["name"]: config_map["data"][names.PLAN_KEY]
        for config_map in situation.seen.of_kind(Kind.CONFIG_MAP)
        if names.PLAN_KEY in config_map.get("data", {})
    }
    if not texts:
        return None
    name = known.config_map_name if known is not None and known.config_map_name in texts else min(texts)
    return Plan.from_json(texts[name])


def say_plan_ready(situation: Situation, plan: Plan) -> Situation:
    """Say what the plan is and what is expected of it."""
    name = names.plan_config_map(situation.job.name, plan.digest())
    known = situation.status.plan
    if known is None or known.config_map_name != name:
        known = _plan_status(situation.job, plan, name, situation.seen.search)
    reason = "FixedPlan" if situation.job.spec.search.algorithm is Algorithm.FIXED else "PlanFound"
    ready = situation.with_status(plan=known).say(ConditionType.PLAN_READY, TRUE, reason, plan.summary)
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


def search(situation: Situation, profile: Profile) -> Decision:
    """Have the plan searched, or the user's own priced, and keep it when that is done."""
    job = situation.job
    problem = PlanningProblem(
        model=job.model,
        precision=job.precision,
        cluster=job.cluster,
        batch=job.batch,
        limits=job.limits,
        profile=profile,
    )
    order = SearchOrder(
        problem,
        timeout_seconds=job.spec.search.timeout_seconds,
        fixed_plan=brought_plan(job, situation.seen.fixed_plan),
    )
    outcome = situation.seen.search
    if outcome is None or outcome.digest != order.digest:
        searching = situation.say(ConditionType.PLAN_READY, FALSE, "Searching")
        return searching.decide(search=order, after_seconds=POLL_SECONDS)
    if outcome.plan is None:
        reason = str(outcome.problem)
        message = outcome.message + (job.kept_free if outcome.problem is SearchProblem.NO_FEASIBLE_PLAN else "")
        return fail(situation.say(ConditionType.PLAN_READY, FALSE, reason, message), reason, message)
    keep = training.plan_config_map(job, outcome.plan, report=outcome.report)
    return situation.decide(apply=(keep,), after_seconds=AT_ONCE_SECONDS)


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
            gpu_hours=f"{gpu_hours:.2f}",
            cost=None if price is None else f"{gpu_hours * float(price):.2f}",
        ),
        search_milliseconds=round(searched_seconds * 1e3),
    )
