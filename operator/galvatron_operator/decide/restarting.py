"""After a failure: another attempt, now or after a back-off, or the end of the job."""

from datetime import datetime, timedelta

from galvatron_operator.api import ConditionType, FailureReason, JobStatus, Nodes, Restarts
from galvatron_operator.api.status import rfc3339
from galvatron_operator.decide.observed import Decision
from galvatron_operator.decide.replanning import objection, replan, smaller_limit
from galvatron_operator.decide.rules import reaction_to
from galvatron_operator.decide.situation import AT_ONCE_SECONDS, FALSE, Situation, brief, fail, record
from galvatron_operator.failures import Action, Failure
from galvatron_planner.plan import Plan

FIRST_BACK_OFF_SECONDS = 10.0
LONGEST_BACK_OFF_SECONDS = 300.0


def react(situation: Situation, plan: Plan, failure: Failure) -> Decision:
    """Record a failure of an attempt under ``plan``, and begin another attempt unless there have been enough.

    Only the status changes now. The next time round its attempt number makes the old pods stale and the StatefulSet
    outdated, and its memory limit the plan, so nothing is lost when the operator ends in between.
    """
    status, policy = situation.status, situation.job.spec.failure_policy
    reaction = reaction_to(failure, status, policy.rules)
    recorded = situation.with_status(failures=status.with_failure(record(situation, failure)).failures)
    problem = f"attempt {status.attempt}: {failure.reason}{_place(failure)}: {brief(failure.message)}"
    if reaction.action is Action.FAIL:
        return fail(recorded, "RuleFailJob" if reaction.rule else failure.reason, f"{problem}; {reaction.advice}")
    limit = smaller_limit(plan, failure)
    if reaction.action is Action.REPLAN and (against := objection(situation, limit)) is not None:
        return fail(recorded, failure.reason, f"{problem}; {against}")
    counts = reaction.action is Action.RESTART
    counted = status.restarts.counted_towards_max
    same = sum(record.reason == failure.reason for record in status.failures)
    if counts and (counted >= policy.max_restarts or (reaction.most is not None and same >= reaction.most)):
        return fail(recorded, "MaxRestartsExceeded", f"{problem} (after {counted} restarts); {reaction.advice}")
    restarts = status.restarts.with_one(failure.reason, counts=counts, lost_steps=_lost_steps(status))
    counted_so = recorded.with_status(restarts=restarts)
    return _again(replan(counted_so, failure, limit) if reaction.action is Action.REPLAN else counted_so, problem)


def noted_sign(situation: Situation) -> Failure | None:
    """Read what was written down about the current attempt before its ranks had ended; they may have saved since."""
    newest = next(iter(situation.status.failures), None)
    if newest is None or newest.attempt != situation.status.attempt:
        return None
    return Failure(FailureReason(newest.reason), newest.message, newest.time, pod=newest.pod, node=newest.node)


def without_sign(situation: Situation) -> Situation:
    """Take back what :func:`noted_sign` reads."""
    if noted_sign(situation) is None:
        return situation
    return situation.with_status(failures=situation.status.failures[1:])


def back_off_seconds(restarts_without_progress: int) -> float:
    """Tell how long the next restart waits: not at all after progress, then ever longer.

    Restarts that do not count have no limit in number, so this is what keeps them from being a hot loop.
    """
    if restarts_without_progress == 0:
        return 0.0
    # Beyond 32 doublings make no difference, and float overflow would.
    doubled = FIRST_BACK_OFF_SECONDS * 2.0 ** min(restarts_without_progress - 1, 32)
    return min(doubled, LONGEST_BACK_OFF_SECONDS)


def seconds_to_wait(situation: Situation) -> float:
    """Tell how much of the current attempt's back-off is left; 0 when the attempt may begin."""
    return max(situation.seconds_until(situation.status.restarts.not_before), 0.0)


def beginning(attempt: int, moment: datetime) -> str:
    """Say when an attempt begins."""
    return f"attempt {attempt} begins at {rfc3339(moment)}"


def back_off(restarts: Restarts, *, furthest_step: int, now: datetime) -> Restarts:
    """Set the time before which nothing begins, by how often in a row nothing came of it."""
    without = 0 if furthest_step > restarts.furthest_step else restarts.without_progress
    moment = now + timedelta(seconds=back_off_seconds(without))
    changes = {"without_progress": without + 1, "furthest_step": furthest_step, "not_before": moment}
    return restarts.model_copy(update=changes)


def _lost_steps(status: JobStatus) -> int:
    """Steps of this attempt that the next one has to make again; 0 when none was seen."""
    progress = status.progress
    # Until the new attempt makes a step, what is known of progress is the former attempt's.
    if progress is None or not status.is_true(ConditionType.TRAINING):
        return 0
    return max(progress.step - progress.last_checkpoint_step, 0)


def _again(situation: Situation, problem: str) -> Decision:
    status = situation.status
    restarts = back_off(status.restarts, furthest_step=status.furthest_step, now=situation.now)
    attempt = status.attempt + 1
    begun = situation.with_status(attempt=attempt, restarts=restarts, nodes=Nodes(desired=status.nodes.desired))
    moment = restarts.not_before
    if moment is None or moment <= situation.now:
        reason, when = "Starting", f"attempt {attempt} is starting"
    else:
        reason, when = "BackOff", beginning(attempt, moment)
    return (
        begun.say(ConditionType.TRAINING, FALSE, "Restarting", f"{when}, after {problem}")
        .say(ConditionType.PODS_READY, FALSE, reason, when)
        .decide(after_seconds=AT_ONCE_SECONDS)
    )


def _place(failure: Failure) -> str:
    where = f"{failure.pod} on {failure.node}" if failure.pod and failure.node else failure.pod
    parts = ([where] if where else []) + ([f"rank {failure.rank}"] if failure.rank is not None else [])
    return f" ({', '.join(parts)})" if parts else ""
