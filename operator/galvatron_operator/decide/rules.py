"""What a failure leads to: the job's own rules come first, then the table of reactions."""

from collections.abc import Callable
from dataclasses import replace
from typing import assert_never

from galvatron_operator.api import FailureRule, JobStatus, RuleAction
from galvatron_operator.failures import REACTIONS, Action, Failure, Reaction


def reaction_to(failure: Failure, status: JobStatus, rules: tuple[FailureRule, ...]) -> Reaction:
    """Choose the reaction to a failure.

    Args:
        failure: of the current attempt, not yet among ``status.failures``.
        status: with the failures before it.
        rules: of ``spec.failurePolicy``; the first that applies wins.
    """
    usual = REACTIONS[failure.reason]
    for rule in rules:
        if rule.matches(failure.reason, failure.exit_code) and in_a_row(status, rule.matches) >= rule.after_failures:
            return Reaction(_action_of(rule.action), f"rule {rule.name} asks for it; {usual.advice}", rule=rule.name)
    if usual.repeated is not None and in_a_row(status, lambda reason, _: reason == failure.reason) >= usual.repeated:
        told = f"{usual.repeated} attempts in a row failed so, none of them further than those before"
        return replace(usual, action=Action.FAIL, advice=f"{told}; {usual.advice}")
    return usual


def in_a_row(status: JobStatus, is_like: Callable[[str, int | None], bool]) -> int:
    """Count the current failure and those right before it that are like it, as long as none of them came further.

    Args:
        status: with the failures before the current one, and with the progress of the current attempt.
        is_like: tells by reason and exit code whether a failure counts.
    """
    count, step = 1, status.progress.step if status.progress is not None else 0
    for before in status.failures:
        if not is_like(before.reason, before.exit_code) or (before.step or 0) < step:
            return count
        count += 1
    return count


def _action_of(action: RuleAction) -> Action:
    match action:
        case RuleAction.RESTART_JOB:
            return Action.RESTART
        case RuleAction.RESTART_JOB_IGNORE_LIMIT:
            return Action.RESTART_UNCOUNTED
        case RuleAction.FAIL_JOB:
            return Action.FAIL
        case _:
            assert_never(action)
