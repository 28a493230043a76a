"""A job on fewer nodes than it asks for: what it waits with for more, and how it grows when they are there."""

from functools import cache
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as generate

from fakes.elastic import DELAY, elastic, lose, pods, trains_on, until
from fakes.operation import Operation, message, reason
from galvatron_operator import names
from galvatron_operator.api import ConditionType, JobStatus
from galvatron_operator.decide import Kind
from galvatron_operator.manifests.metadata import Manifest


def test_a_job_grows_again_when_the_node_is_back() -> None:
    operation = elastic()
    until(operation, trains_on(4))
    lost = lose(operation, 1)
    before = until(operation, trains_on(2))
    operation.world.bring_back(lost)
    status = until(operation, trains_on(4))
    assert status.attempt == before.attempt + 1
    assert status.restarts == before.restarts.model_copy(
        update={"not_before": status.restarts.not_before, "furthest_step": status.restarts.furthest_step}
    )
    assert reason(status, ConditionType.PLAN_READY) == "PlanFound"
    assert pods(operation, names.COMPONENT_PLACEHOLDER) == []
    status = operation.until_finished()
    assert (status.phase, status.plan.gpus if status.plan else 0) == ("Complete", 4)
    assert operation.all_of(Kind.POD) == operation.all_of(Kind.STATEFUL_SET) == []
    events = [event["reason"] for event in operation.all_of(Kind.EVENT)]
    assert {"PlanReduced", "Growing", "Replanning"} <= set(events)


def test_placeholders_are_asked_for_only_after_the_delay_and_wait_for_room() -> None:
    operation = elastic()
    until(operation, trains_on(4))
    lose(operation, 1)
    status = until(operation, trains_on(2))
    assert status.rescale is not None
    while operation.world.now < status.rescale.not_before:
        assert pods(operation, names.COMPONENT_PLACEHOLDER) == []
        operation.rounds(1)
    operation.rounds(2)
    [placeholder] = pods(operation, names.COMPONENT_PLACEHOLDER)
    assert "nodeName" not in placeholder["spec"]
    [trainer] = pods(operation, names.COMPONENT_TRAINER)
    (asking,), (training,) = placeholder["spec"]["containers"], trainer["spec"]["containers"]
    assert asking["resources"] == training["resources"]
    assert asking["securityContext"] == training["securityContext"]
    assert [volume["name"] for volume in placeholder["spec"]["volumes"]] == ["checkpoints"]


def test_a_node_that_comes_and_goes_changes_the_plan_once_a_delay() -> None:
    operation = elastic()
    until(operation, trains_on(4))
    changes: list[float] = []
    lost, known = None, None
    for _ in range(120):
        if lost is None and trains_on(4)(operation.status or JobStatus()):
            lost = lose(operation, 1)
        elif lost is not None and trains_on(2)(operation.status or JobStatus()):
            operation.world.bring_back(lost)
            lost = None
        operation.rounds(1)
        status = operation.status
        assert status is not None
        if status.rescale is not None and status.rescale != known:
            known = status.rescale
            changes.append(operation.world.now.timestamp())
        if status.is_finished:
            break
    assert len(changes) > 3
    assert all(later - before >= DELAY for before, later in pairwise(changes))


def test_no_placeholder_competes_with_a_trainer_that_waits_for_a_node() -> None:
    operation = elastic()
    until(operation, trains_on(4))
    lose(operation, 1)
    until(operation, trains_on(2))
    until(operation, lambda _: bool(pods(operation, names.COMPONENT_PLACEHOLDER)))
    lost = lose(operation, 0)
    until(operation, lambda status: not status.is_true(ConditionType.TRAINING))
    operation.rounds(2)
    assert pods(operation, names.COMPONENT_PLACEHOLDER) == []
    operation.rounds(2 * DELAY // 10)
    assert pods(operation, names.COMPONENT_PLACEHOLDER) == []
    operation.world.bring_back(lost)
    until(operation, trains_on(2))


def test_a_placeholder_that_is_lost_with_its_node_asks_again() -> None:
    operation = elastic(4, failurePolicy={"nodeLostTimeoutSeconds": 20})
    until(operation, trains_on(8))
    lost = [lose(operation, ordinal) for ordinal in (2, 3)]
    until(operation, trains_on(4))
    for uid in {pod["metadata"]["uid"] for pod in operation.world.pods()} & operation.world.lost:
        operation.world.lost.remove(uid)
    operation.world.bring_back(lost[0])

    def runs() -> list[Manifest]:
        return [pod for pod in pods(operation, names.COMPONENT_PLACEHOLDER) if "nodeName" in pod["spec"]]

    until(operation, lambda _: bool(runs()))
    gone = runs()[0]["metadata"]
    operation.world.lose_node_of(gone["name"])
    operation.rounds(5)
    assert gone["uid"] not in {pod["metadata"]["uid"] for pod in operation.world.pods()}


def test_a_job_grows_by_as_many_nodes_as_there_are() -> None:
    operation = elastic(4)
    until(operation, trains_on(8))
    lost = [lose(operation, ordinal) for ordinal in (1, 2, 3)]
    until(operation, trains_on(2))
    operation.world.bring_back(lost[0])
    until(operation, trains_on(4))
    operation.world.bring_back(lost[1])
    operation.world.bring_back(lost[2])
    until(operation, trains_on(8))
    assert operation.until_finished().phase == "Complete"


def test_placeholders_that_are_too_few_give_back_what_they_hold() -> None:
    operation = elastic(4)
    until(operation, trains_on(8))
    lost = [lose(operation, ordinal) for ordinal in (2, 3)]
    until(operation, trains_on(4))
    operation.world.bring_back(lost[0])
    until(operation, lambda _: any("nodeName" in pod["spec"] for pod in pods(operation, names.COMPONENT_PLACEHOLDER)))
    until(operation, lambda _: not pods(operation, names.COMPONENT_PLACEHOLDER))
    assert operation.status is not None
    assert trains_on(4)(operation.status)
    until(operation, lambda _: bool(pods(operation, names.COMPONENT_PLACEHOLDER)))


def test_a_job_without_training_checkpoints_shrinks_and_does_not_grow() -> None:
    operation = elastic(checkpoint=None)
    del operation.job["spec"]["checkpoint"]
    until(operation, trains_on(4))
    lost = lose(operation, 1)
    status = until(operation, trains_on(2))
    assert "what was trained would be lost" in message(status, ConditionType.PLAN_READY)
    operation.world.bring_back(lost)
    status = operation.until_finished()
    assert (status.phase, status.plan.gpus if status.plan else 0) == ("Complete", 2)


def test_a_suspended_job_gives_its_placeholders_back_and_goes_on_small() -> None:
    operation = elastic()
    until(operation, trains_on(4))
    lost = lose(operation, 1)
    until(operation, trains_on(2))
    until(operation, lambda _: bool(pods(operation, names.COMPONENT_PLACEHOLDER)))
    operation.edit(suspend=True)
    operation.rounds(3)
    assert operation.all_of(Kind.POD) == operation.all_of(Kind.STATEFUL_SET) == []
    operation.edit(suspend=False)
    until(operation, trains_on(2))
    operation.world.bring_back(lost)
    until(operation, trains_on(4))


def test_placeholders_end_with_the_job_whatever_is_kept_for_its_logs() -> None:
    operation = elastic(lifecycle={"podRetentionSeconds": 3600})
    until(operation, trains_on(4))
    lose(operation, 1)
    until(operation, lambda status: status.is_finished, rounds=100)
    assert pods(operation, names.COMPONENT_PLACEHOLDER)
    operation.rounds(2)
    assert pods(operation, names.COMPONENT_PLACEHOLDER) == []
    assert pods(operation, names.COMPONENT_TRAINER)


@pytest.mark.parametrize("num_devices", [2, 4])
def test_a_lost_status_brings_back_the_plan_that_is_trained_under(num_devices: int) -> None:
    operation = elastic()
    until(operation, trains_on(4))
    lost = lose(operation, 1)
    until(operation, trains_on(2))
    if num_devices == 4:
        operation.world.bring_back(lost)
        until(operation, trains_on(4))
    del operation.job["status"]
    operation.round()
    assert operation.status is not None
    assert operation.status.plan is not None
    assert operation.status.plan.gpus == num_devices


def live(operation: Operation, writes: list[int]) -> JobStatus:
    """Lose a node when the job trains and bring it back when it trains on fewer; the operator is stopped at will."""
    lost, has_shrunk = None, False
    stops = iter(writes)
    for _ in range(200):
        status = operation.status or JobStatus()
        if lost is None and not has_shrunk and trains_on(4)(status):
            lost = lose(operation, 1)
        if lost is not None and not has_shrunk and trains_on(2)(status):
            operation.world.bring_back(lost)
            has_shrunk = True
        operation.world.step()
        operation.round(writes=next(stops, None))
        if status.is_finished:
            operation.rounds(3)
            return status
    raise AssertionError(operation.status)


@cache
def undisturbed() -> JobStatus:
    return live(elastic(), [])


def assert_ends_alike(operation: Operation, status: JobStatus) -> None:
    expected = undisturbed()
    assert (status.phase, status.attempt) == (expected.phase, expected.attempt) == ("Complete", 4)
    assert status.restarts.total == expected.restarts.total
    assert [failure.reason for failure in status.failures] == ["NodeLost"]
    assert status.plan == expected.plan
    assert operation.all_of(Kind.POD) == operation.all_of(Kind.STATEFUL_SET) == []


@pytest.mark.parametrize("writes", range(1, 6))
def test_an_operator_that_is_stopped_in_every_round_shrinks_and_grows_a_job_all_the_same(writes: int) -> None:
    operation = elastic()
    assert_ends_alike(operation, live(operation, [writes] * 60))


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(writes=generate.lists(generate.integers(0, 6), max_size=60))
def test_an_operator_that_is_stopped_after_any_write_shrinks_and_grows_a_job_all_the_same(writes: list[int]) -> None:
    operation = elastic()
    assert_ends_alike(operation, live(operation, writes))
