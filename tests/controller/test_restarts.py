"""Attempts of a gang: how long the next one waits, which pods belong to it, and what becomes of lost nodes."""

from itertools import pairwise

import pytest

from fakes.operation import KEY, Operation, begin, reason
from fakes.world import Act, Scene, all_goes_well, fails_with
from galvatron_operator import names
from galvatron_operator.api import ConditionType
from galvatron_operator.decide import Kind
from galvatron_operator.decide.situation import brief
from galvatron_planner.worker import ExitClass, WorkerFailure, WorkerState


def starts(operation: Operation) -> list[float]:
    """Run the job to its end; give the seconds between the starts of its attempts, in steps of the world."""
    seen: dict[int, float] = {}
    for _ in range(200):
        operation.rounds(1)
        for pod in operation.world.pods():
            attempt = int(pod["metadata"].get("annotations", {}).get(names.ANNOTATION_ATTEMPT, 0))
            seen.setdefault(attempt, operation.world.now.timestamp())
        if operation.status is not None and operation.status.is_finished:
            break
    times = [seen[attempt] for attempt in sorted(seen) if attempt]
    return [after - before for before, after in pairwise(times)]


def test_restarts_without_progress_come_at_ever_longer_intervals() -> None:
    operation = begin(fails_with(ExitClass.PREEMPTED, on_attempts=range(1, 10)))
    intervals = starts(operation)
    # In this world an attempt takes 20 s to fail and 10 s to be seen; then 0, 10, 20, 40, ... and no more than 300 s.
    assert len(intervals) == 9
    assert intervals[0] <= 40
    assert [after > before for before, after in pairwise(intervals[1:6])] == [True] * 4
    assert 300 <= intervals[-1] <= 340


def test_a_restart_after_progress_comes_at_once() -> None:
    def script(scene: Scene) -> Act:
        if scene.component != names.COMPONENT_TRAINER or scene.attempt > 4 or scene.age < 2:
            return all_goes_well(scene)
        failure = WorkerFailure(reason=ExitClass.PREEMPTED, message="gone", exit_code=1, time=1.0)
        return Act(WorkerState.FAILED, step=10 * scene.attempt, failure=failure)

    operation = begin(script)
    assert max(starts(operation)) <= 40
    assert operation.status is not None
    assert operation.status.restarts.without_progress == 1


def test_a_job_that_backs_off_holds_no_pods_and_says_when_it_goes_on() -> None:
    operation = begin(fails_with(ExitClass.PREEMPTED, on_attempts=range(1, 5)))
    while operation.status is None or operation.status.attempt < 5:
        operation.rounds(1)
    operation.rounds(2)
    assert operation.all_of(Kind.POD) == []
    status = operation.status
    assert status.restarts.not_before is not None
    said = {condition.type: condition.message for condition in status.conditions}
    moment = f"attempt 5 begins at {status.restarts.not_before:%Y-%m-%dT%H:%M:%SZ}"
    assert moment in said[ConditionType.TRAINING]
    assert moment in said[ConditionType.PODS_READY]
    assert reason(status, ConditionType.PODS_READY) == "BackOff"


def test_a_resumed_job_does_not_wait_for_the_end_of_a_back_off() -> None:
    operation = begin(fails_with(ExitClass.PREEMPTED, on_attempts=range(1, 7)))
    while operation.status is None or operation.status.attempt < 6:
        operation.rounds(1)
    operation.edit(suspend=True)
    operation.rounds(2)
    operation.edit(suspend=False)
    operation.rounds(3)
    assert len(operation.all_of(Kind.POD)) == 2


def test_a_deleted_trainer_restarts_the_gang() -> None:
    operation = begin()
    operation.until(ConditionType.TRAINING)
    operation.world.cluster.remove((Kind.POD, KEY.namespace, "small-1"))
    operation.round()
    assert operation.status is not None
    assert operation.status.attempt == 2
    assert operation.status.failures[0].reason == "PodLost"


def test_a_replaced_trainer_is_noticed_although_nobody_saw_it_go() -> None:
    operation = begin(lambda scene: Act(WorkerState.RUNNING, step=1) if scene.attempt else all_goes_well(scene))
    operation.until(ConditionType.TRAINING)
    operation.world.cluster.remove((Kind.POD, KEY.namespace, "small-1"))
    operation.world.step()
    operation.round()
    assert operation.status is not None
    assert [(failure.reason, failure.pod) for failure in operation.status.failures] == [("PodLost", "small-1")]


@pytest.mark.parametrize("num_steps", [0, 1], ids=["gone", "replaced"])
def test_a_lost_trainer_is_the_cause_of_what_its_peers_complain_of(num_steps: int) -> None:
    operation = begin()
    operation.until(ConditionType.TRAINING)
    operation.world.cluster.remove((Kind.POD, KEY.namespace, "small-1"))

    def complains(scene: Scene) -> Act:
        if scene.attempt != 1 or scene.node_rank != 0:
            return all_goes_well(scene)
        failure = WorkerFailure(reason=ExitClass.COMMUNICATION, message="closed by peer", exit_code=1, time=1.0)
        return Act(WorkerState.FAILED, step=25, failure=failure)

    operation.world.script = complains
    for _ in range(num_steps):
        operation.world.step()
    operation.round()
    assert operation.status is not None
    assert [failure.reason for failure in operation.status.failures] == ["PodLost"]


def test_a_pod_that_is_replaced_before_all_have_run_can_still_join() -> None:
    def waits(scene: Scene) -> Act:
        if scene.component != names.COMPONENT_TRAINER or scene.node_rank != 0 or scene.age > 3:
            return all_goes_well(scene)
        return Act(None, pod_status={"containerStatuses": [{"state": {"waiting": {"reason": "ContainerCreating"}}}]})

    operation = begin(waits)
    while (Kind.POD, KEY.namespace, "small-1") not in operation.world.cluster.objects:
        operation.rounds(1)
    operation.world.cluster.remove((Kind.POD, KEY.namespace, "small-1"))
    operation.rounds(1)
    assert operation.status is not None
    assert operation.status.failures == ()


def test_the_pods_of_a_gang_are_kept_in_few_characters() -> None:
    operation = begin()
    operation.until(ConditionType.TRAINING)
    assert operation.status is not None
    assert operation.status.nodes.members is not None
    assert len(operation.status.nodes.members) == 16


def test_a_lost_node_is_told_with_what_a_person_can_do() -> None:
    operation = begin()
    operation.until(ConditionType.TRAINING)
    [node] = [pod["spec"]["nodeName"] for pod in operation.world.pods() if pod["metadata"]["name"] == "small-1"]
    operation.world.lose_node_of("small-1")
    operation.rounds(16)
    status = operation.status
    assert status is not None
    assert [(failure.reason, failure.node) for failure in status.failures] == [("NodeLost", node)]
    assert (status.attempt, status.restarts.counted_towards_max) == (2, 0)
    assert reason(status, ConditionType.PODS_READY) == "NodeLost"
    message = next(c.message for c in status.conditions if c.type is ConditionType.PODS_READY)
    for word in ("small-1", node, "delete", "node.kubernetes.io/out-of-service", "forceDeleteLostPods"):
        assert word in message
    # Whoever deletes the Node object takes its pods away.
    operation.world.cluster.remove((Kind.POD, KEY.namespace, "small-1"))
    assert operation.until_finished().phase == "Complete"


def test_lost_pods_are_deleted_by_force_only_where_the_job_asks_for_it_and_after_its_timeout() -> None:
    operation = begin(failurePolicy={"forceDeleteLostPods": "AfterTimeout", "nodeLostTimeoutSeconds": 60})
    operation.until(ConditionType.TRAINING)
    operation.world.lose_node_of("small-1")
    operation.rounds(5)
    assert operation.world.lost <= {pod["metadata"]["uid"] for pod in operation.world.pods()}
    status = operation.until_finished()
    assert status.phase == "Complete"
    assert [failure.reason for failure in status.failures] == ["NodeLost"]


def test_the_grace_period_of_a_pod_whose_kubelet_is_away_is_not_waited_for() -> None:
    policy = {"forceDeleteLostPods": "AfterTimeout", "nodeLostTimeoutSeconds": 15}
    operation = begin(failurePolicy=policy, lifecycle={"terminationGracePeriodSeconds": 600})
    operation.until(ConditionType.TRAINING)
    operation.world.lose_node_of("small-1", grace_seconds=600)
    operation.rounds(1)
    assert operation.world.lost <= {pod["metadata"]["uid"] for pod in operation.world.pods()}
    operation.rounds(1)
    assert not operation.world.lost & {pod["metadata"]["uid"] for pod in operation.world.pods()}


def test_the_next_look_at_a_lost_node_is_when_its_timeout_is_over() -> None:
    operation = begin(failurePolicy={"forceDeleteLostPods": "AfterTimeout", "nodeLostTimeoutSeconds": 13})
    operation.until(ConditionType.TRAINING)
    operation.world.lose_node_of("small-1", grace_seconds=600)
    operation.rounds(1)
    operation.round()  # the first round has begun the next attempt
    # By hand: 10 of the 13 seconds are over.
    assert operation.decision.requeue_after_seconds == 3


def test_profilers_on_a_lost_node_are_told_and_deleted_by_force_alike() -> None:
    operation = begin(failurePolicy={"forceDeleteLostPods": "AfterTimeout", "nodeLostTimeoutSeconds": 60})
    operation.rounds(2)
    operation.world.lose_node_of(operation.world.pods()[1]["metadata"]["name"])
    operation.rounds(5)
    assert operation.all_of(Kind.JOB) == []
    assert operation.until_finished().phase == "Complete"


def test_a_gang_that_cannot_become_whole_again_is_not_waited_for_in_silence() -> None:
    operation = begin(failurePolicy={"progressDeadlineSeconds": 60, "maxRestarts": 0})
    operation.until(ConditionType.TRAINING)
    operation.world.lose_node_of("small-1")
    operation.rounds(20)
    assert operation.status is not None
    newest = operation.status.failures[0]
    assert (newest.attempt, newest.reason) == (2, "GangIncomplete")
    assert "1 of 2 pods run" in newest.message
    assert operation.status.restarts.counted_towards_max == 0
    assert not operation.status.is_finished


@pytest.mark.parametrize("writes", range(6))
def test_an_operator_that_is_stopped_in_every_round_brings_a_gang_back_from_a_lost_node(writes: int) -> None:
    operation = begin(failurePolicy={"forceDeleteLostPods": "AfterTimeout", "nodeLostTimeoutSeconds": 30})
    operation.until(ConditionType.TRAINING)
    operation.world.lose_node_of("small-1")
    for _ in range(10):
        operation.round(writes=writes)
        operation.world.step()
    status = operation.until_finished()
    assert (status.phase, status.attempt) == ("Complete", 2)
    assert [failure.reason for failure in status.failures] == ["NodeLost"]


def never_starts(scene: Scene) -> Act:
    if scene.component != names.COMPONENT_TRAINER:
        return all_goes_well(scene)
    waiting = {"state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}}
    return Act(None, pod_status={"conditions": [], "containerStatuses": [waiting]})


def test_a_job_that_does_not_begin_to_train_in_time_fails_with_what_keeps_it() -> None:
    operation = begin(never_starts, lifecycle={"startDeadlineSeconds": 150})
    operation.rounds(14)
    assert reason(operation.status, ConditionType.PODS_READY) == "ImagePullError"
    status = operation.until_finished()
    assert reason(status, ConditionType.FAILED) == "StartDeadlineExceeded"
    failed = status.find(ConditionType.FAILED)
    assert failed is not None
    assert "150 s" in failed.message
    assert "ImagePullError: small-0: ImagePullBackOff: no such image" in failed.message
    assert operation.all_of(Kind.POD) == []


def test_measuring_is_part_of_the_time_to_begin() -> None:
    operation = begin(lambda _scene: Act(WorkerState.RUNNING), lifecycle={"startDeadlineSeconds": 60})
    status = operation.until_finished()
    assert reason(status, ConditionType.FAILED) == "StartDeadlineExceeded"


def test_a_job_that_has_trained_once_has_begun_in_time() -> None:
    operation = begin(fails_with(ExitClass.PREEMPTED, on_attempts=range(1, 5)), lifecycle={"startDeadlineSeconds": 100})
    while operation.all_of(Kind.STATEFUL_SET) == []:
        operation.rounds(1)
    # It begins to train while nobody looks.
    for _ in range(6):
        operation.world.step()
    assert operation.until_finished().phase == "Complete"


def test_the_time_to_begin_may_be_set_while_a_job_waits_and_counts_from_a_resumption() -> None:
    operation = begin(never_starts)
    operation.rounds(30)
    operation.edit(suspend=True)
    operation.rounds(3)
    operation.edit(suspend=False, lifecycle={"startDeadlineSeconds": 100})
    operation.rounds(5)
    assert operation.status is not None
    assert not operation.status.is_finished
    assert reason(operation.until_finished(), ConditionType.FAILED) == "StartDeadlineExceeded"


def test_a_long_traceback_is_shortened_to_what_it_comes_to() -> None:
    long = "Traceback (most recent call last):\n" + "  File x\n" * 100 + "RuntimeError: the cause"
    assert brief(long).endswith("RuntimeError: the cause")
    assert brief("no plan fits, " * 100).startswith("no plan fits")
    assert brief("short") == "short"
