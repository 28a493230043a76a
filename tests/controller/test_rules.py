"""What a failure leads to: the job's own rules, then the table."""

from datetime import UTC, datetime
from typing import Any

import pytest

from controller.bodies import job
from fakes.operation import begin, reason
from fakes.world import fails_with
from galvatron_operator.api import ConditionType, FailureReason, FailureRecord, JobStatus, ProgressStatus
from galvatron_operator.decide.rules import in_a_row, reaction_to
from galvatron_operator.failures import REACTIONS, Action, Failure, Reaction
from galvatron_planner.worker import ExitClass

NOW = datetime(2026, 1, 1, tzinfo=UTC)
USER, MEMORY, EVICTED = FailureReason.USER_ERROR, FailureReason.OUT_OF_DEVICE_MEMORY, FailureReason.EVICTED


def rule(name: str = "mine", *, action: str, **conditions: Any) -> dict[str, Any]:
    return {"name": name, "action": action, **conditions}


def codes(operator: str, *values: int) -> dict[str, Any]:
    return {"operator": operator, "values": list(values)}


def after(*failures: tuple[FailureReason, int | None, int], step: int = 0) -> JobStatus:
    """A job whose failures were (reason, exit code, step), newest first, and which has come to ``step`` since."""
    records = (
        FailureRecord(attempt=len(failures) - i, time=NOW, reason=reason, exit_code=code, step=at)
        for i, (reason, code, at) in enumerate(failures)
    )
    progress = ProgressStatus(step=step, total_steps=100, percent=step, last_update_time=NOW)
    return JobStatus(failures=tuple(records), progress=progress)


def reaction(
    *rules: dict[str, Any], reason: FailureReason = USER, code: int | None = 1, status: JobStatus | None = None
) -> Reaction:
    policy = job({"spec.failurePolicy": {"rules": list(rules)}}).spec.failure_policy
    return reaction_to(Failure(reason, "it broke", NOW, exit_code=code), status or after(), policy.rules)


@pytest.mark.parametrize("reason", list(FailureReason))
def test_without_a_rule_the_table_decides(reason: FailureReason) -> None:
    assert reaction(reason=reason) == REACTIONS[reason]


@pytest.mark.parametrize(
    ("action", "expected"),
    [
        ("RestartJob", Action.RESTART),
        ("RestartJobIgnoreLimit", Action.RESTART_UNCOUNTED),
        ("FailJob", Action.FAIL),
    ],
)
@pytest.mark.parametrize("reason", list(FailureReason))
def test_a_rule_comes_before_the_table(reason: FailureReason, action: str, expected: Action) -> None:
    chosen = reaction(rule(action=action, onReasons=[reason]), reason=reason)
    assert (chosen.action, chosen.rule, chosen.most) == (expected, "mine", None)
    assert "rule mine" in chosen.advice


def test_a_rule_for_another_reason_changes_nothing() -> None:
    assert reaction(rule(action="FailJob", onReasons=["Evicted"])) == REACTIONS[USER]


def test_the_first_rule_that_applies_wins() -> None:
    rules = (
        rule("other", action="FailJob", onReasons=["Evicted"]),
        rule("first", action="RestartJobIgnoreLimit", onReasons=["UserError", "Evicted"]),
        rule("second", action="FailJob", onReasons=["UserError"]),
    )
    assert reaction(*rules).rule == "first"
    assert reaction(*rules, reason=EVICTED).rule == "other"


@pytest.mark.parametrize(
    ("condition", "code", "holds"),
    [
        (codes("In", 64, 65), 64, True),
        (codes("In", 64, 65), 66, False),
        (codes("NotIn", 64, 65), 66, True),
        (codes("NotIn", 64, 65), 64, False),
        # What has no code has neither one of these nor another one.
        (codes("In", 64), None, False),
        (codes("NotIn", 64), None, False),
    ],
)
def test_exit_codes_are_in_the_values_or_not(condition: dict[str, Any], code: int | None, *, holds: bool) -> None:
    chosen = reaction(rule(action="FailJob", onExitCodes=condition), code=code)
    assert (chosen.rule == "mine") is holds


def test_all_conditions_of_a_rule_must_hold() -> None:
    both = rule(action="FailJob", onReasons=["UserError"], onExitCodes=codes("In", 64))
    assert reaction(both, code=64).rule == "mine"
    assert reaction(both, code=1).rule is None
    assert reaction(both, code=64, reason=EVICTED).rule is None


def test_a_rule_may_wait_for_failures_in_a_row() -> None:
    third = rule(action="FailJob", onReasons=["CudaOutOfMemory"], afterFailures=3)
    once, twice = after((MEMORY, 1, 0)), after((MEMORY, 1, 0), (MEMORY, 1, 0))
    assert reaction(third, reason=MEMORY, status=once).rule is None
    assert reaction(third, reason=MEMORY, status=twice).rule == "mine"


def test_failures_are_in_a_row_until_one_is_of_another_kind_or_has_come_less_far() -> None:
    def like(reason: str, _: int | None) -> bool:
        return reason == USER

    assert in_a_row(after(), like) == 1
    assert in_a_row(after((USER, 1, 7), (USER, 1, 7), step=7), like) == 3
    assert in_a_row(after((USER, 1, 7), (EVICTED, None, 7), (USER, 1, 7), step=7), like) == 2
    # The job has finished step 7 since the elder failure at step 6.
    assert in_a_row(after((USER, 1, 7), (USER, 1, 6), step=7), like) == 2
    assert in_a_row(after((USER, 1, 7), step=8), like) == 1


def test_the_same_user_error_three_times_without_progress_fails_the_job() -> None:
    twice = after((USER, 1, 5), (USER, 1, 5), step=5)
    chosen = reaction(status=twice)
    assert chosen.action is Action.FAIL
    assert "3 attempts in a row failed so" in chosen.advice
    assert reaction(status=after((USER, 1, 5), (USER, 1, 4), step=5)) == REACTIONS[USER]
    # Whoever knows better says so.
    assert reaction(rule(action="RestartJob", onReasons=["UserError"]), status=twice).action is Action.RESTART


def only_rule(action: str, *reasons: str) -> dict[str, object]:
    return {"rules": [{"name": "mine", "onReasons": list(reasons), "action": action}]}


def test_a_rule_may_fail_the_job_at_once() -> None:
    operation = begin(fails_with(ExitClass.PREEMPTED), failurePolicy=only_rule("FailJob", "Preempted"))
    status = operation.until_finished()
    assert (reason(status, ConditionType.FAILED), status.attempt) == ("RuleFailJob", 1)
    failed = status.find(ConditionType.FAILED)
    assert failed is not None
    assert "rule mine" in failed.message


def test_a_rule_may_start_again_what_usually_fails() -> None:
    script = fails_with(ExitClass.OUT_OF_DEVICE_MEMORY, on_attempts=range(1, 3))
    status = begin(script, failurePolicy=only_rule("RestartJob", "CudaOutOfMemory")).until_finished()
    assert (status.phase, status.restarts.counted_towards_max) == ("Complete", 2)


def test_a_rule_may_leave_failures_uncounted() -> None:
    policy = only_rule("RestartJobIgnoreLimit", "UserError") | {"maxRestarts": 0}
    status = begin(fails_with(ExitClass.USER_ERROR, on_attempts=range(1, 6)), failurePolicy=policy).until_finished()
    assert (status.phase, status.restarts.total, status.restarts.counted_towards_max) == ("Complete", 5, 0)


def test_a_user_error_that_repeats_without_progress_ends_before_the_restarts_do() -> None:
    status = begin(fails_with(ExitClass.USER_ERROR), failurePolicy={"maxRestarts": 10}).until_finished()
    assert (reason(status, ConditionType.FAILED), status.attempt) == ("UserError", 3)
