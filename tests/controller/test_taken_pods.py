"""Pods that are taken away with a grace period: the ranks of all pods save together before the next attempt begins."""

from typing import Any

import pytest

from fakes.operation import Operation, begin, known
from fakes.world import Act, Scene, all_goes_well
from galvatron_operator import names
from galvatron_operator.api import ConditionType
from galvatron_operator.decide import Kind
from galvatron_planner.worker import ExitClass, WorkerFailure, WorkerState

REASONS = {"EvictionByEvictionAPI": "Evicted", "PreemptionByScheduler": "Preempted", None: "PodLost"}
"""Why Kubernetes deletes a pod, as the pod's condition says it -> the reason of the failure."""


def trains_on(scene: Scene) -> Act:
    if scene.component == names.COMPONENT_TRAINER and scene.attempt == 1:
        return Act(WorkerState.RUNNING, step=min(scene.age, 50))
    return all_goes_well(scene)


def training(script: Any = trains_on) -> Operation:
    operation = begin(script)
    operation.until(ConditionType.TRAINING)
    return operation


def attempts(operation: Operation) -> set[str]:
    return {pod["metadata"]["annotations"][names.ANNOTATION_ATTEMPT] for pod in operation.all_of(Kind.POD)}


@pytest.mark.parametrize("reason", REASONS)
def test_no_attempt_begins_while_ranks_may_save(reason: str | None) -> None:
    operation = training()
    operation.world.take_away("small-1", reason)
    for _ in range(3):
        operation.round()
    assert known(operation).attempt == 1
    assert attempts(operation) == {"1"}
    (failure,) = known(operation).failures
    assert (failure.reason, failure.pod) == (REASONS[reason], "small-1")


@pytest.mark.parametrize("reason", REASONS)
def test_the_next_attempt_names_who_took_the_pod_although_it_is_gone(reason: str | None) -> None:
    operation = training()
    operation.world.take_away("small-1", reason)
    operation.round()
    operation.world.step()  # the pod ends, another one takes its place
    operation.round()
    assert known(operation).attempt == 2
    assert [failure.reason for failure in known(operation).failures] == [REASONS[reason]]
    restarts = known(operation).restarts
    assert (restarts.total, restarts.counted_towards_max) == (1, 0)
    assert operation.until_finished().attempt == 2


def stopped(scene: Scene) -> Act:
    """All ranks have saved and ended, as one of them was asked to."""
    if scene.component != names.COMPONENT_TRAINER or scene.attempt != 1 or scene.age < 3:
        return trains_on(scene)
    failure = WorkerFailure(reason=ExitClass.PREEMPTED, message="stopped on request", exit_code=75, time=1.0)
    return Act(WorkerState.FAILED, step=50, failure=failure)


def test_the_next_attempt_begins_as_soon_as_the_ranks_have_ended() -> None:
    operation = training(stopped)
    operation.world.take_away("small-1", "EvictionByEvictionAPI")
    operation.round()
    assert known(operation).attempt == 1
    for pod in operation.world.pods():
        operation.world.ages[pod["metadata"]["uid"], "1"] = 3
    operation.round()
    assert known(operation).attempt == 2
    assert known(operation).failures[0].reason == "Evicted"


def test_ranks_that_do_not_end_are_given_up_with_their_grace_period() -> None:
    operation = training()
    operation.world.take_away("small-1", "EvictionByEvictionAPI", grace_seconds=0)
    operation.round()
    assert known(operation).attempt == 2


def test_ranks_that_have_failed_by_themselves_are_not_waited_for() -> None:
    operation = training(stopped)
    operation.world.take_away("small-1", "EvictionByEvictionAPI")

    def raises(scene: Scene) -> Act:
        if scene.attempt != 1 or scene.node_rank != 0:
            return trains_on(scene)
        failure = WorkerFailure(reason=ExitClass.USER_ERROR, message="it broke", exit_code=1, time=1.0)
        return Act(WorkerState.FAILED, step=50, failure=failure)

    operation.world.script = raises
    operation.round()
    assert known(operation).attempt == 2
    assert known(operation).failures[0].reason == "UserError"


def test_a_pod_that_stays_after_all_leaves_no_failure_behind() -> None:
    operation = training()
    operation.world.take_away("small-1", "PreemptionByScheduler")
    operation.round()
    pod = next(pod for pod in operation.world.pods() if pod["metadata"]["name"] == "small-1")
    del pod["metadata"]["deletionTimestamp"]
    pod["status"]["conditions"] = [{"type": "Ready", "status": "True"}]
    operation.round()
    assert known(operation).attempt == 1
    assert known(operation).failures == ()
