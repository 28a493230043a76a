"""From a profile to a plan: searched by a process of the operator, then kept in an immutable ConfigMap."""

from galvatron_operator import names
from galvatron_operator.api import ConditionType, Estimates, PlanStatus
from galvatron_operator.decide.observed import Decision, Kind, SearchOrder, SearchOutcome
from galvatron_operator.decide.situation import AT_ONCE_SECONDS, FALSE, POLL_SECONDS, TRUE, Situation, fail
from galvatron_operator.manifests import training
from galvatron_planner.plan import Plan
from galvatron_planner.problem import PlanningProblem
from galvatron_planner.profiles import Profile
from galvatron_planner.units import format_quantity


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
        known = _plan_status(plan, name, situation.seen.search)
    ready = situation.with_status(plan=known).say(ConditionType.PLAN_READY, TRUE, "PlanFound", plan.summary)
    if ready.status.is_true(ConditionType.PROFILE_READY):
        return ready
    # The status that said so was lost; the plan is proof that there was a profile.
    return ready.say(ConditionType.PROFILE_READY, TRUE, "Profiled", f"the profile behind ConfigMap {name}")


def search(situation: Situation, profile: Profile) -> Decision:
    """Have the plan searched, and keep it when it is found."""
    job = situation.job
    problem = PlanningProblem(
        model=job.model,
        precision=job.precision,
        cluster=job.cluster,
        batch=job.batch,
        limits=job.limits,
        profile=profile,
    )
    outcome = situation.seen.search
    if outcome is None or outcome.problem_digest != problem.digest():
        searching = situation.say(ConditionType.PLAN_READY, FALSE, "Searching")
        order = SearchOrder(problem, timeout_seconds=job.spec.search.timeout_seconds)
        return searching.decide(search=order, after_seconds=POLL_SECONDS)
    if outcome.plan is None:
        reason = str(outcome.problem)
        return fail(situation.say(ConditionType.PLAN_READY, FALSE, reason, outcome.message), reason, outcome.message)
    keep = training.plan_config_map(job, outcome.plan, report=outcome.report)
    return situation.decide(apply=(keep,), after_seconds=AT_ONCE_SECONDS)


def _plan_status(plan: Plan, name: str, outcome: SearchOutcome | None) -> PlanStatus:
    searched_seconds = outcome.seconds if outcome is not None and outcome.plan == plan else 0.0
    return PlanStatus(
        hash=names.plan_hash(plan.digest()),
        config_map_name=name,
        gpus=plan.cluster.num_devices,
        global_batch_size=plan.global_batch_size,
        micro_batches=plan.num_micro_batches,
        summary=plan.summary,
        estimates=Estimates(
            step_milliseconds=round(plan.estimate.step_seconds * 1e3),
            tokens_per_second=round(plan.tokens_per_second),
            peak_memory_per_gpu=format_quantity(plan.estimate.peak_bytes),
            bubble_percent=round(plan.estimate.bubble_ratio * 100),
        ),
        search_milliseconds=round(searched_seconds * 1e3),
    )
