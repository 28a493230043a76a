"""Restarts in place: pods that nothing has happened to stay for the next attempt, the others are made anew."""

from collections.abc import Callable
from typing import Any

import pytest

from fakes.operation import Operation, body
from fakes.world import Act, Scene, Script, World, all_goes_well
from galvatron_operator import names
from galvatron_operator.api import ConditionType
from galvatron_operator.decide import Kind
from galvatron_operator.manifests.metadata import Manifest
from galvatron_planner.worker import ExitClass, WorkerFailure, WorkerState


def fails_once(node_rank: int = 1, *, pod_status: dict[str, Any] | None = None) -> Script:
    """One trainer fails in the second step of the first attempt."""

    def script(scene: Scene) -> Act:
        if (scene.attempt, scene.node_rank) != (1, node_rank) or scene.age < 2:
            return all_goes_well(scene)
        failure = WorkerFailure(reason=ExitClass.USER_ERROR, message="it broke", rank=2, exit_code=1, time=1.0)
        return Act(WorkerState.FAILED, step=25, failure=failure, pod_status=pod_status)

    return script


def begin(script: Script) -> Operation:
    operation = Operation(World(script))
    operation.create(body())
    operation.until(ConditionType.TRAINING)
    return operation


def trainers(operation: Operation) -> dict[str, str]:
    """The uid of every trainer, by name."""
    pods = (pod for pod in operation.world.pods() if component(pod) == names.COMPONENT_TRAINER)
    return {pod["metadata"]["name"]: pod["metadata"]["uid"] for pod in pods}


def component(pod: Manifest) -> str:
    return str(pod["metadata"]["labels"][names.LABEL_COMPONENT])


def until_attempt(operation: Operation, attempt: int) -> None:
    """Let time pass until all trainers belong to an attempt and their number is right."""
    for _ in range(50):
        pods = [pod for pod in operation.world.pods() if component(pod) == names.COMPONENT_TRAINER]
        if [pod["metadata"]["annotations"][names.ANNOTATION_ATTEMPT] for pod in pods] == [str(attempt)] * 2:
            return
        operation.rounds(1)
    raise AssertionError(f"attempt {attempt} did not begin; the status is {operation.status}")


def test_pods_stay_when_a_command_fails() -> None:
    operation = begin(fails_once())
    before = trainers(operation)
    until_attempt(operation, 2)
    assert trainers(operation) == before
    assert operation.until_finished().attempt == 2


def test_a_pod_that_is_made_later_begins_with_the_attempt_that_is_on() -> None:
    operation = begin(fails_once())
    until_attempt(operation, 2)
    (stateful_set,) = operation.all_of(Kind.STATEFUL_SET)
    assert stateful_set["spec"]["template"]["metadata"]["annotations"][names.ANNOTATION_ATTEMPT] == "2"


RESTARTED = {"containerStatuses": [{"state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}, "restartCount": 1}]}
DRAINED = {"conditions": [{"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}]}


@pytest.mark.parametrize("pod_status", [RESTARTED, DRAINED], ids=["restarted", "drained"])
def test_a_pod_that_something_has_happened_to_is_made_anew_and_the_others_stay(pod_status: dict[str, Any]) -> None:
    operation = begin(fails_once(1, pod_status=pod_status))
    before = trainers(operation)
    until_attempt(operation, 2)
    after = trainers(operation)
    assert after["small-0"] == before["small-0"]
    assert after["small-1"] != before["small-1"]
    assert operation.until_finished().attempt == 2


def falls_silent(scene: Scene) -> Act:
    """Node 0 fails, and the supervisor of node 1 answers no more."""
    if scene.attempt == 1 and scene.age >= 2 and scene.node_rank == 1:
        return Act(None)
    return fails_once(0)(scene)


def test_a_pod_whose_supervisor_is_silent_is_made_anew() -> None:
    operation = begin(falls_silent)
    before = trainers(operation)
    until_attempt(operation, 2)
    after = trainers(operation)
    assert after["small-0"] == before["small-0"]
    assert after["small-1"] != before["small-1"]


def stopped_on_request(scene: Scene) -> Act:
    """The supervisor of node 1 was told to stop: it will not begin anything any more."""
    if (scene.attempt, scene.node_rank) != (1, 1) or scene.age < 2:
        return all_goes_well(scene)
    failure = WorkerFailure(reason=ExitClass.PREEMPTED, message="stopped", exit_code=75, time=1.0)
    return Act(WorkerState.FAILED, step=25, failure=failure)


def test_a_pod_that_was_told_to_stop_is_made_anew() -> None:
    operation = begin(stopped_on_request)
    before = trainers(operation)
    until_attempt(operation, 2)
    assert trainers(operation)["small-1"] != before["small-1"]


def forget_template(metadata: Manifest) -> None:
    """As versions before this one made them: with the attempt in the command."""
    del metadata["annotations"][names.ANNOTATION_TEMPLATE]


def change_template(metadata: Manifest) -> None:
    """As from another plan, image or version."""
    metadata["annotations"][names.ANNOTATION_TEMPLATE] = "another"


@pytest.mark.parametrize("change", [forget_template, change_template])
def test_pods_of_another_template_are_made_anew(change: Callable[[Manifest], None]) -> None:
    operation = begin(fails_once())
    before = trainers(operation)
    for pod in operation.world.pods():
        change(pod["metadata"])
    until_attempt(operation, 2)
    assert not set(trainers(operation).values()) & set(before.values())
    assert operation.until_finished().attempt == 2


def fails_always_at_once(scene: Scene) -> Act:
    if scene.component != names.COMPONENT_TRAINER or scene.age < 2:
        return all_goes_well(scene)
    failure = WorkerFailure(reason=ExitClass.COMMUNICATION, message="lost", exit_code=1, time=1.0)
    return Act(WorkerState.FAILED, step=25, failure=failure)


def test_a_job_that_backs_off_gives_its_pods_back() -> None:
    operation = begin(fails_always_at_once)
    first = trainers(operation)
    until_attempt(operation, 2)
    assert trainers(operation) == first
    # The third attempt waits for 10 s, no more than this world's pause between two rounds.
    until_attempt(operation, 4)
    assert not set(trainers(operation).values()) & set(first.values())


@pytest.mark.parametrize("writes", range(8))
def test_an_operator_that_is_stopped_while_it_restarts_in_place_keeps_the_pods(writes: int) -> None:
    operation = begin(fails_once())
    before = trainers(operation)
    for _ in range(50):
        if operation.status is not None and operation.status.attempt == 2:
            break
        operation.world.step()
        operation.round(writes=writes)
        operation.round()
    until_attempt(operation, 2)
    assert trainers(operation) == before
    assert operation.until_finished().attempt == 2
