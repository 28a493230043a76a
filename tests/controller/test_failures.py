"""What pods and supervisors report, and what it means."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from galvatron_operator.api import FailureReason
from galvatron_operator.failures import (
    REACTIONS,
    Failure,
    cause,
    failure_of,
)
from galvatron_planner.worker import ExitClass, WorkerFailure, WorkerState, WorkerStatus

NOW = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)
ENDED = "2026-01-01T11:59:00Z"


def pod(metadata: dict[str, Any] | None = None, **status: Any) -> dict[str, Any]:
    return {"metadata": {"name": "small-0"} | (metadata or {}), "spec": {"nodeName": "node-7"}, "status": status}


def report(state: WorkerState, failure: WorkerFailure | None = None) -> WorkerStatus:
    return WorkerStatus(attempt=1, node_rank=0, state=state, failure=failure)


def terminated(**fields: Any) -> dict[str, Any]:
    return {"containerStatuses": [{"restartCount": 1, "state": {"running": {}}, "lastState": {"terminated": fields}}]}


def condition(reason: str) -> dict[str, Any]:
    return {"conditions": [{"type": "DisruptionTarget", "status": "True", "reason": reason}]}


FAILED_PODS = {
    "a container that was killed for memory": (
        pod(**terminated(reason="OOMKilled", exitCode=137, finishedAt=ENDED)),
        FailureReason.OUT_OF_HOST_MEMORY,
    ),
    "a supervisor that crashed": (
        pod(**terminated(reason="Error", exitCode=1, finishedAt=ENDED)),
        FailureReason.SUPERVISOR_EXITED,
    ),
    "a pod that was drained": (pod(**condition("EvictionByEvictionAPI")), FailureReason.EVICTED),
    "a pod that gave way to another": (pod(**condition("PreemptionByScheduler")), FailureReason.PREEMPTED),
    "a pod on a node that is gone": (pod(**condition("DeletionByTaintManager")), FailureReason.NODE_LOST),
    "a pod whose node is given up": (pod(phase="Running", reason="NodeLost"), FailureReason.NODE_LOST),
    "a pod that a kubelet evicted": (pod(phase="Failed", reason="Evicted"), FailureReason.EVICTED),
    "a pod that somebody deletes": (pod({"deletionTimestamp": ENDED}), FailureReason.POD_LOST),
    "a pod that is deleted with its node": (
        pod({"deletionTimestamp": ENDED}, reason="NodeLost"),
        FailureReason.NODE_LOST,
    ),
}


@pytest.mark.parametrize("what", FAILED_PODS)
def test_a_pod_that_cannot_go_on_tells_why(what: str) -> None:
    seen, expected = FAILED_PODS[what]
    failure = failure_of(seen, None, now=NOW)
    assert failure is not None
    assert failure.reason is expected
    assert (failure.pod, failure.node) == ("small-0", "node-7")


def test_a_pod_that_runs_has_not_failed() -> None:
    assert failure_of(pod(phase="Running"), report(WorkerState.RUNNING), now=NOW) is None
    assert failure_of(pod(phase="Pending"), None, now=NOW) is None


def test_a_pod_that_answers_is_not_lost_whatever_is_thought_of_its_node() -> None:
    assert failure_of(pod(phase="Running", reason="NodeLost"), report(WorkerState.RUNNING), now=NOW) is None


def test_a_pod_that_answers_is_not_lost_when_its_node_is_emptied_by_a_taint() -> None:
    failure = failure_of(pod(**condition("DeletionByTaintManager")), report(WorkerState.RUNNING), now=NOW)
    assert failure is not None
    assert failure.reason is FailureReason.EVICTED


def test_a_pod_whose_command_succeeded_has_not_failed_whatever_becomes_of_it() -> None:
    assert failure_of(pod({"deletionTimestamp": ENDED}), report(WorkerState.SUCCEEDED), now=NOW) is None


def test_what_killed_a_supervisor_weighs_more_than_what_it_says_afterwards() -> None:
    said = report(WorkerState.FAILED, WorkerFailure(reason=ExitClass.UNKNOWN, message="?", exit_code=1, time=1.0))
    failure = failure_of(pod(**terminated(reason="OOMKilled", exitCode=137, finishedAt=ENDED)), said, now=NOW)
    assert failure is not None
    assert failure.reason is FailureReason.OUT_OF_HOST_MEMORY


TERMINATED = {
    "containerStatuses": [{"state": {"terminated": {"exitCode": 75, "reason": "Error", "finishedAt": ENDED}}}]
}


@pytest.mark.parametrize(
    ("seen", "reason"),
    [
        (pod({"deletionTimestamp": ENDED}, **TERMINATED, **condition("EvictionByEvictionAPI")), FailureReason.EVICTED),
        (pod({"deletionTimestamp": ENDED}, **TERMINATED), FailureReason.POD_LOST),
    ],
    ids=["evicted", "deleted"],
)
def test_a_supervisor_that_ends_because_its_pod_is_taken_away_is_not_the_failure(
    seen: dict[str, Any], reason: FailureReason
) -> None:
    failure = failure_of(seen, None, now=NOW)
    assert failure is not None
    assert failure.reason is reason


def test_a_deleted_pod_has_failed_when_somebody_asked_and_not_when_its_grace_period_ends() -> None:
    later = "2026-01-01T12:01:00Z"
    failure = failure_of(pod({"deletionTimestamp": later, "deletionGracePeriodSeconds": 90}), None, now=NOW)
    assert failure is not None
    assert failure.time == NOW - timedelta(seconds=30)


@pytest.mark.parametrize("exit_class", list(ExitClass))
def test_every_exit_class_of_a_supervisor_is_understood(exit_class: ExitClass) -> None:
    said = report(WorkerState.FAILED, WorkerFailure(reason=exit_class, message="x", rank=3, exit_code=1, time=1.0))
    failure = failure_of(pod(phase="Running"), said, now=NOW)
    assert failure is not None
    assert failure.reason.value == exit_class.value
    assert failure.rank == 3


def test_every_reason_has_a_reaction_with_advice() -> None:
    assert set(REACTIONS) == set(FailureReason)
    assert all(reaction.advice for reaction in REACTIONS.values())


def failed(reason: FailureReason, seconds_ago: float) -> Failure:
    return Failure(reason, "it broke", NOW - timedelta(seconds=seconds_ago))


def test_the_earliest_failure_is_the_cause() -> None:
    early, late = failed(FailureReason.USER_ERROR, 20), failed(FailureReason.PREEMPTED, 10)
    assert cause([late, early], now=NOW) is early


def test_a_lost_connection_is_not_the_cause_of_what_came_later() -> None:
    echo, killed = failed(FailureReason.COMMUNICATION, 20), failed(FailureReason.OUT_OF_HOST_MEMORY, 10)
    assert cause([echo, killed], now=NOW) is killed


def test_a_lost_connection_waits_for_its_cause_before_it_stands() -> None:
    assert cause([failed(FailureReason.COMMUNICATION, 5)], now=NOW) is None
    old = failed(FailureReason.COMMUNICATION, 60)
    assert cause([old], now=NOW) is old


def test_a_lost_connection_stands_at_once_when_no_pod_is_left_to_say_more() -> None:
    fresh = failed(FailureReason.COMMUNICATION, 1)
    assert cause([fresh], now=NOW, all_have_spoken=True) is fresh
