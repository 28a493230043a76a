"""Another plan for a job that trains, because its user asks for one by the annotation ``galvatron.io/replan``.

A value of the annotation is answered once. The search runs on the profile at hand while the job goes on; only a plan
that runs otherwise stops it, after a training checkpoint. The ConfigMap of the new plan comes first, and second the
status, which says that it counts: an operator that is stopped in between finds the job under the former plan, and asks
again.
"""

from dataclasses import replace

from galvatron_operator import names
from galvatron_operator.api import ConditionType, GalvatronJob, JobStatus, ReplanRequest
from galvatron_operator.api.status import MAX_MESSAGE
from galvatron_operator.decide.keeping import profile_at_hand
from galvatron_operator.decide.observed import Decision
from galvatron_operator.decide.profiling import request_of
from galvatron_operator.decide.searching import say_plan_ready, search_order
from galvatron_operator.decide.situation import AT_ONCE_SECONDS, Situation, begin, missing, next_attempt
from galvatron_operator.manifests import training
from galvatron_planner.plan import Plan
from galvatron_planner.problem import Algorithm

NEW_PLAN, SAME_PLAN, REFUSED = "NewPlan", "SamePlan", "ReplanRefused"


def asks_for_another_plan(job: GalvatronJob, status: JobStatus | None) -> bool:
    """Tell whether the annotation has a value that is not answered yet."""
    answered = status.replan_request.value if status is not None and status.replan_request is not None else None
    return job.replan is not None and job.replan != answered


def answer_request(situation: Situation, plan: Plan, going_on: Decision) -> Decision:
    """Bring the wish for another plan forward, if there is one.

    Args:
        situation: before this round's decision.
        plan: under which the job trains.
        going_on: how the job goes on without another plan.
    """
    status = going_on.status
    if status is None or status.is_finished or status.attempt != situation.status.attempt:
        # What ends the job, or the attempt, comes first.
        return going_on
    told = replace(situation, status=status)
    if not asks_for_another_plan(situation.job, status):
        return replace(going_on, status=_noted(told).status)
    if situation.job.spec.search.algorithm is Algorithm.FIXED:
        against = "the job brings its plan (spec.search.algorithm is Fixed); create it again with another one"
        return _answered(told, going_on, REFUSED, against)
    found = profile_at_hand(situation, request_of(situation.job, situation.settings))
    if found is None:
        against = "no profile is at hand that the job may use; let a job of its shape measure one, and ask again"
        return _answered(told, going_on, REFUSED, against)
    order = search_order(situation, found.profile)
    outcome = situation.seen.search
    if outcome is None or outcome.digest != order.digest:
        searching = _say(told, "another plan is searched")
        return replace(going_on, status=searching.status, search=order)
    if outcome.plan is None:
        return _answered(told, going_on, str(outcome.problem), f"there is no other plan: {outcome.message}")
    if run_alike(outcome.plan, plan):
        return _answered(told, going_on, SAME_PLAN, "the search finds the same plan, there is nothing to do")
    kept = missing(situation.seen, training.plan_config_map(situation.job, outcome.plan, report=outcome.report))
    if kept:
        return replace(going_on, apply=(*going_on.apply, *kept), requeue_after_seconds=AT_ONCE_SECONDS)
    return _begin(told, outcome.plan)


def run_alike(one: Plan, other: Plan) -> bool:
    """Tell whether two plans differ in nothing but what is expected of them."""
    return one.model_copy(update={"estimate": other.estimate, "problem_digest": other.problem_digest}) == other


def _begin(situation: Situation, plan: Plan) -> Decision:
    """Give up the attempt for one under another plan; pods that are told to end save a training checkpoint."""
    begun = next_attempt(_remember(say_plan_ready(situation, plan), NEW_PLAN, plan.summary))
    message = f"attempt {begun.status.attempt} is starting under another plan, which {names.ANNOTATION_REPLAN} asks for"
    return begin(begun, "Restarting", message)


def _answered(situation: Situation, going_on: Decision, result: str, message: str) -> Decision:
    return replace(going_on, status=_noted(_remember(situation, result, message)).status)


def _remember(situation: Situation, result: str, message: str) -> Situation:
    value = situation.job.replan or ""
    answer = ReplanRequest(value=value, result=result, message=message[:MAX_MESSAGE])
    return situation.with_status(replan_request=answer)


def _noted(situation: Situation) -> Situation:
    """Put the answer into the condition, as long as it explains why the plan is still the same."""
    answer = situation.status.replan_request
    if answer is None or answer.result == NEW_PLAN:
        return situation
    return _say(situation, answer.message)


def _say(situation: Situation, note: str) -> Situation:
    known = situation.status.find(ConditionType.PLAN_READY)
    if known is None:
        return situation
    message = f"{known.message}; annotation {names.ANNOTATION_REPLAN}: {note}"
    return situation.say(ConditionType.PLAN_READY, known.status, known.reason, message)
