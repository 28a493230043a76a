"""Jobs in a queue of Kueue: what they wait for, what they never ask its webhook for, and when they give quota back."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from controller.bodies import job
from controller.objects import profilers, trainers
from fakes.kueue import QueueingWorld
from fakes.operation import KEY, Operation, body, reason
from fakes.world import Act, Scene, Script, all_goes_well, fails_with
from galvatron_operator import names
from galvatron_operator.api import ConditionType
from galvatron_operator.decide import Kind
from galvatron_operator.manifests.metadata import Manifest
from galvatron_planner.worker import ExitClass, WorkerFailure, WorkerState

QUEUE = {names.LABEL_QUEUE: "gpus", names.LABEL_QUEUE_PRIORITY: "high"}


def queued(script: Script = all_goes_well, *, quota: bool = True, **spec: Any) -> tuple[Operation, QueueingWorld]:
    """Create a job with a queue, in a world with Kueue."""
    world = QueueingWorld(script, quota=quota)
    operation = Operation(world)
    wanted = body(**spec)
    wanted["metadata"]["labels"] = dict(QUEUE)
    operation.create(wanted)
    return operation, world


def said(operation: Operation, type_: ConditionType) -> tuple[str, str]:
    assert operation.status is not None
    condition = operation.status.find(type_)
    assert condition is not None
    return condition.reason, condition.message


def in_the_queue_for_training(**spec: Any) -> tuple[Operation, QueueingWorld]:
    """Let a job measure, and wait with its trainers."""
    operation, world = queued(**spec)
    operation.until(ConditionType.PROFILE_READY)
    world.quota = False
    operation.rounds(5)
    return operation, world


def fails_in(attempt: int, then: Callable[[Scene], Act] = all_goes_well) -> Script:
    def script(scene: Scene) -> Act:
        if scene.component != names.COMPONENT_TRAINER or scene.attempt != attempt or scene.age < 2:
            return then(scene)
        failure = WorkerFailure(reason=ExitClass.USER_ERROR, message="it broke", rank=2, exit_code=1, time=1.0)
        return Act(WorkerState.FAILED, step=25, failure=failure)

    return script


@pytest.mark.parametrize("make", [trainers, profilers])
def test_whatever_makes_pods_carries_the_labels_of_the_queue(make: Callable[..., Manifest]) -> None:
    labels = make(job({"metadata.labels": QUEUE | {"team": "vision"}}))["metadata"]["labels"]
    assert labels.items() >= QUEUE.items()
    assert "team" not in labels
    assert not any(key.startswith(names.KUEUE_GROUP) for key in make(job())["metadata"]["labels"])


def test_a_priority_without_a_queue_says_nothing_to_kueue() -> None:
    labels = trainers(job({"metadata.labels": {names.LABEL_QUEUE_PRIORITY: "high"}}))["metadata"]["labels"]
    assert names.LABEL_QUEUE_PRIORITY not in labels


def test_a_job_with_quota_runs_to_its_end_and_gives_it_back() -> None:
    operation, world = queued()
    assert operation.until_finished().phase == "Complete"
    assert operation.all_of(Kind.STATEFUL_SET) == []
    assert operation.all_of(Kind.JOB) == []
    assert world.cluster.refused == []


def test_profilers_in_a_queue_say_which() -> None:
    operation, world = queued(quota=False)
    operation.rounds(5)
    message = said(operation, ConditionType.PROFILE_READY)[1]
    assert "WaitingForQuota" in message
    assert "queue gpus" in message
    world.quota = True
    assert operation.until_finished().phase == "Complete"


def test_trainers_in_a_queue_say_which() -> None:
    operation, world = in_the_queue_for_training()
    waiting, message = said(operation, ConditionType.PODS_READY)
    assert waiting == "WaitingForQuota"
    assert "queue gpus" in message
    world.quota = True
    assert operation.until_finished().phase == "Complete"


@pytest.mark.parametrize("deadline", ["startDeadlineSeconds", "activeDeadlineSeconds"])
def test_deadlines_do_not_run_in_a_queue(deadline: str) -> None:
    operation, world = in_the_queue_for_training(lifecycle={deadline: 120})
    operation.rounds(60)
    assert operation.status is not None
    assert operation.status.start_time is None
    assert not operation.status.is_finished
    world.quota = True
    assert operation.until_finished().phase == "Complete"
    assert operation.status.start_time is not None


def test_a_start_deadline_begins_when_a_queue_lets_a_job_in() -> None:
    def never(scene: Scene) -> Act:
        return all_goes_well(scene) if scene.component == names.COMPONENT_PROFILER else Act(WorkerState.RUNNING)

    operation, world = in_the_queue_for_training(script=never, lifecycle={"startDeadlineSeconds": 120})
    operation.rounds(60)
    let_in = world.now
    world.quota = True
    status = operation.until_finished()
    assert reason(status, ConditionType.FAILED) == "StartDeadlineExceeded"
    assert status.completion_time is not None
    assert timedelta(seconds=120) <= status.completion_time - let_in <= timedelta(seconds=150)


def test_a_failed_command_restarts_in_place_and_keeps_its_quota() -> None:
    operation, world = queued(fails_in(1))
    operation.until(ConditionType.TRAINING)
    (before,) = operation.all_of(Kind.STATEFUL_SET)
    uid = before["metadata"]["uid"]
    world.quota = False
    for _ in range(4):
        operation.rounds(1)
    (after,) = operation.all_of(Kind.STATEFUL_SET)
    assert after["metadata"]["uid"] == uid
    assert operation.until_finished().phase == "Complete"
    assert operation.status is not None
    assert operation.status.attempt == 2
    assert world.cluster.refused == []


def test_an_attempt_that_needs_a_new_pod_is_another_stateful_set() -> None:
    died = {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}

    def kills(scene: Scene) -> Act:
        if (scene.component, scene.attempt, scene.node_rank) != (names.COMPONENT_TRAINER, 1, 1) or scene.age < 2:
            return all_goes_well(scene)
        return Act(pod_status={"containerStatuses": [{"restartCount": 1, "state": {"running": {}}, "lastState": died}]})

    operation, world = queued(kills)
    operation.until(ConditionType.TRAINING)
    (before,) = operation.all_of(Kind.STATEFUL_SET)
    operation.rounds(5)
    (after,) = operation.all_of(Kind.STATEFUL_SET)
    assert operation.status is not None
    assert operation.status.attempt == 2
    assert after["metadata"]["uid"] != before["metadata"]["uid"]
    assert operation.until_finished().phase == "Complete"
    assert world.cluster.refused == []


def test_a_back_off_holds_no_quota() -> None:
    operation, world = queued(fails_with(ExitClass.PREEMPTED, on_attempts=range(1, 5)))
    while operation.status is None or operation.status.attempt < 5:
        operation.rounds(1)
    operation.rounds(2)
    assert reason(operation.status, ConditionType.PODS_READY) == "BackOff"
    assert operation.all_of(Kind.STATEFUL_SET) == []
    assert operation.until_finished().phase == "Complete"
    assert world.cluster.refused == []


def test_an_evicted_job_waits_in_the_queue_however_long() -> None:
    def goes_on(scene: Scene) -> Act:
        return all_goes_well(scene) if scene.attempt != 1 or scene.age < 2 else Act(WorkerState.RUNNING, step=25)

    operation, world = queued(goes_on, failurePolicy={"maxRestarts": 0, "progressDeadlineSeconds": 60})
    operation.until(ConditionType.TRAINING)
    world.evict()
    operation.rounds(100)
    assert operation.status is not None
    assert operation.status.attempt == 2
    assert [failure.reason for failure in operation.status.failures] == ["PodLost"]
    assert reason(operation.status, ConditionType.PODS_READY) == "WaitingForQuota"
    world.quota = True
    assert operation.until_finished().phase == "Complete"
    assert operation.status.restarts.counted_towards_max == 0


def test_pods_that_a_queue_has_let_in_late_have_as_long_to_start_as_others() -> None:
    placed: list[str] = []

    def pulls_its_image(scene: Scene) -> Act:
        if scene.component != names.COMPONENT_TRAINER or scene.attempt == 1:
            return all_goes_well(scene)
        placed.append(world.cluster.now)
        condition = {"type": "PodScheduled", "status": "True", "lastTransitionTime": placed[0]}
        return Act(state=None, pod_status={"phase": "Pending", "containerStatuses": [], "conditions": [condition]})

    operation, world = queued(failurePolicy={"progressDeadlineSeconds": 120})
    operation.until(ConditionType.TRAINING)
    world.evict()
    operation.rounds(100)
    world.script, world.quota = pulls_its_image, True
    operation.rounds(10)
    assert operation.status is not None
    assert [failure.reason for failure in operation.status.failures] == ["PodLost"]
    operation.rounds(10)
    assert [failure.reason for failure in operation.status.failures] == ["GangIncomplete", "PodLost"]


def test_no_stateful_set_is_made_while_a_pod_of_the_former_one_is_left() -> None:
    operation, world = queued()
    operation.until(ConditionType.TRAINING)
    world.lose_node_of("small-1")
    operation.rounds(5)
    assert operation.status is not None
    assert operation.status.attempt == 2
    assert [pod["metadata"]["name"] for pod in world.pods()] == ["small-1"]
    assert operation.all_of(Kind.STATEFUL_SET) == []
    world.cluster.remove((Kind.POD, KEY.namespace, "small-1"))
    assert operation.until_finished().phase == "Complete"


def test_evicted_profilers_measure_again_when_they_are_let_in_again() -> None:
    operation, world = queued()
    while not operation.all_of(Kind.POD):
        operation.rounds(1)
    world.evict()
    operation.rounds(20)
    assert "WaitingForQuota" in said(operation, ConditionType.PROFILE_READY)[1]
    world.quota = True
    assert operation.until_finished().phase == "Complete"


def test_a_pod_that_its_stateful_set_replaces_joins_the_others_and_the_quota_stays() -> None:
    operation, world = queued()
    operation.until(ConditionType.TRAINING)
    (before,) = operation.all_of(Kind.STATEFUL_SET)
    world.cluster.remove((Kind.POD, KEY.namespace, "small-1"))
    operation.round()
    world.quota = False
    operation.rounds(2)
    (after,) = operation.all_of(Kind.STATEFUL_SET)
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    assert operation.until_finished().phase == "Complete"
    assert world.cluster.refused == []


@pytest.mark.parametrize("writes", range(6))
def test_an_operator_that_is_stopped_in_every_round_asks_the_webhook_for_nothing_forbidden(writes: int) -> None:
    operation, world = queued(fails_with(ExitClass.PREEMPTED, on_attempts=range(1, 3)))
    operation.until(ConditionType.TRAINING)
    for _ in range(20):
        operation.round(writes=writes)
        operation.rounds(1)
    assert operation.until_finished().phase == "Complete"
    assert world.cluster.refused == []


@pytest.mark.parametrize("labels", [{names.LABEL_QUEUE: "other"}, {}], ids=["another", "none"])
def test_a_job_that_changes_its_queue_does_so_with_its_next_pods(labels: dict[str, str]) -> None:
    operation, world = queued(fails_in(1))
    operation.until(ConditionType.TRAINING)
    operation.job["metadata"]["labels"] = labels
    assert operation.until_finished().phase == "Complete"
    assert operation.status is not None
    assert operation.status.attempt == 2
    assert world.cluster.refused == []
