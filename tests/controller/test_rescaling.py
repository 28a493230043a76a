"""A job whose node stays away: planned for those that are left, as far as it may be."""

from dataclasses import replace

import pytest

from controller.bodies import ONLY_PLANNED, job
from fakes.elastic import DELAY, begin_with, elastic, lose, pods, trains_on, until
from fakes.operation import SETTINGS, message, reason
from fakes.world import InstantSearches
from galvatron_operator import names
from galvatron_operator.api import ConditionType, JobStatus
from galvatron_operator.decide import Kind, SearchOrder, SearchOutcome, SearchProblem
from galvatron_operator.decide.keeping import profile_from_catalogue
from galvatron_operator.decide.profiling import request_of
from galvatron_operator.reconcile import JobKey
from galvatron_planner.plan import Plan
from galvatron_planner.problem import BatchRange
from galvatron_planner.search.optimizer import search


def test_a_job_that_loses_a_node_for_long_is_planned_for_those_that_are_left() -> None:
    operation = elastic()
    until(operation, trains_on(4))
    lost = lose(operation, 1)
    status = until(operation, trains_on(2))
    assert [failure.reason for failure in status.failures] == ["NodeLost"]
    assert (status.nodes.desired, status.rescale.nodes if status.rescale else 0) == (1, 1)
    assert reason(status, ConditionType.PLAN_READY) == "PlanReduced"
    told = message(status, ConditionType.PLAN_READY)
    assert f"for 2 of 4 devices (no node for small-1 in 20 s, after NodeLost on {lost})" in told
    assert len(pods(operation, names.COMPONENT_TRAINER)) == 1
    # Waiting for a node and for the plan is no failure of the job.
    assert (status.restarts.total, status.restarts.counted_towards_max) == (1, 0)


def test_the_plan_for_fewer_nodes_rests_on_the_profile_that_is_there() -> None:
    operation = elastic()
    until(operation, trains_on(4))
    lose(operation, 1)
    made: set[str] = set()
    while not trains_on(2)(operation.status or JobStatus()):
        operation.rounds(1)
        made |= {found["metadata"]["uid"] for found in operation.all_of(Kind.JOB)}
    assert made == set()


def test_a_job_without_elasticity_waits_for_its_node() -> None:
    budget = {"gpus": 4, "gpusPerNode": 2, "resourceName": "cpu", "memoryPerGPU": "4Gi"}
    operation = elastic(elasticity={}, budget=budget)
    until(operation, trains_on(4))
    lost = lose(operation, 1)
    operation.rounds(60)
    assert operation.status is not None
    assert operation.status.rescale is None
    assert reason(operation.status, ConditionType.PODS_READY) == "Unschedulable"
    operation.world.bring_back(lost)
    assert operation.until_finished().phase == "Complete"


def test_a_spare_node_is_used_before_anything_shrinks() -> None:
    operation = elastic(failurePolicy={"nodeLostTimeoutSeconds": 40, "forceDeleteLostPods": "AfterTimeout"})
    assert operation.world.machines is not None
    until(operation, trains_on(4))
    operation.world.machines.append("spare")
    lose(operation, 1)
    status = until(operation, lambda status: status.attempt == 2 and trains_on(4)(status))
    assert status.rescale is None


def test_a_job_that_has_never_trained_waits_for_all_of_its_nodes() -> None:
    operation = elastic()
    assert operation.world.machines is not None
    operation.until(ConditionType.PROFILE_READY)
    operation.world.machines.pop()
    operation.rounds(60)
    assert reason(operation.status, ConditionType.PODS_READY) == "Unschedulable"
    assert operation.status is not None
    assert operation.status.rescale is None


def test_pods_that_a_queue_holds_back_do_not_shrink_a_job() -> None:
    operation = elastic()
    until(operation, trains_on(4))
    lose(operation, 1)
    until(operation, lambda _: any("nodeName" not in pod["spec"] for pod in pods(operation, names.COMPONENT_TRAINER)))
    for pod in pods(operation, names.COMPONENT_TRAINER):
        pod["spec"]["schedulingGates"] = [{"name": "kueue.x-k8s.io/admission"}]
    operation.rounds(60)
    assert operation.status is not None
    assert operation.status.rescale is None


def test_a_job_goes_no_lower_than_it_may() -> None:
    operation = elastic(4, least=2)
    until(operation, trains_on(8))
    for ordinal in (2, 3):
        lose(operation, ordinal)
    assert until(operation, trains_on(4)).nodes.desired == 2
    lose(operation, 0)
    operation.rounds(60)
    assert operation.status is not None
    assert operation.status.plan is not None
    assert operation.status.plan.gpus == 4


def test_the_largest_power_of_two_of_the_nodes_that_are_left_is_used() -> None:
    operation = elastic(4)
    until(operation, trains_on(8))
    for ordinal in (1, 2, 3):
        lose(operation, ordinal)
    status = until(operation, lambda status: status.rescale is not None)
    assert status.rescale is not None
    assert status.rescale.nodes == 1
    assert until(operation, trains_on(2)).nodes.desired == 1


def test_a_lost_pod_that_keeps_its_name_does_not_stand_in_the_way_of_fewer() -> None:
    operation = elastic(failurePolicy={"nodeLostTimeoutSeconds": 20})
    until(operation, trains_on(4))
    lost = lose(operation, 1)
    status = until(operation, trains_on(2))
    assert f"small-1 is lost with {lost}" in message(status, ConditionType.PLAN_READY)
    # Nor is there room for others as long as nobody knows what its machine does.
    operation.rounds(2 * DELAY // 10)
    assert pods(operation, names.COMPONENT_PLACEHOLDER) == []
    operation.world.bring_back(lost)
    until(operation, trains_on(4))


def test_a_lost_first_pod_that_keeps_its_name_is_told_to_a_person() -> None:
    operation = elastic(failurePolicy={"nodeLostTimeoutSeconds": 20})
    until(operation, trains_on(4))
    lose(operation, 0)
    operation.rounds(20)
    assert reason(operation.status, ConditionType.PODS_READY) == "NodeLost"
    assert operation.status is not None
    assert operation.status.rescale is None


class OnlyLargePlans(InstantSearches):
    """Searches that find nothing for a single node."""

    def start(self, key: JobKey, order: SearchOrder) -> None:
        if order.problem.cluster.num_nodes > 1:
            super().start(key, order)
        else:
            problem = SearchProblem.NO_FEASIBLE_PLAN
            self._outcomes[key] = SearchOutcome(order.digest, 1.0, problem=problem, message="raise the budget")


def test_a_job_for_which_there_is_no_smaller_plan_waits_for_all_of_its_nodes() -> None:
    operation = begin_with(OnlyLargePlans())
    until(operation, trains_on(4))
    lost = lose(operation, 1)
    status = until(operation, lambda status: status.rescale is not None and status.rescale.nodes == 2)
    assert status.rescale is not None
    assert (status.rescale.reason, status.rescale.least_nodes) == ("NoSmallerPlan", 2)
    attempt = status.attempt
    operation.rounds(3 * DELAY // 10)
    assert reason(operation.status, ConditionType.PLAN_READY) == "PlanFound"
    assert operation.status is not None
    assert operation.status.attempt == attempt
    operation.world.bring_back(lost)
    assert operation.until_finished().phase == "Complete"


class LargestBatches(InstantSearches):
    """Searches that take the largest batch on many nodes, and the smallest on one."""

    def start(self, key: JobKey, order: SearchOrder) -> None:
        batch, nodes = order.problem.batch, order.problem.cluster.num_nodes
        only = BatchRange(minimum=batch.maximum, maximum=batch.maximum) if nodes > 1 else batch
        problem = order.problem.model_copy(update={"batch": only})
        super().start(key, replace(order, problem=problem))
        answer = self._outcomes[key]
        self._outcomes[key] = replace(answer, digest=order.digest)


def test_of_a_range_the_batch_size_stays() -> None:
    batch = {"globalBatchSize": {"min": 8, "max": 32, "step": 8}, "steps": 100, "precision": "FP32"}
    operation = begin_with(LargestBatches(), training=batch)
    until(operation, trains_on(4))
    lose(operation, 1)
    until(operation, trains_on(2))
    texts = [found["data"].get(names.PLAN_KEY) for found in operation.all_of(Kind.CONFIG_MAP)]
    assert [Plan.from_json(text).global_batch_size for text in texts if text] == [32, 32]


@pytest.mark.parametrize(
    "limits",
    [
        {},
        {"excludedDimensions": ["PP"]},
        {"excludedDimensions": ["DP", "ZERO2", "SDP"]},
        {"maxDegrees": {"tensor": 2, "pipeline": 2}},
        {"sequenceParallelism": True},
        {"algorithm": "GalvatronBMW"},
    ],
    ids=str,
)
@pytest.mark.parametrize("num_nodes", [2, 1])
def test_a_profile_of_all_nodes_has_what_a_search_for_fewer_asks_for(num_nodes: int, limits: dict[str, object]) -> None:
    all_nodes = job({**ONLY_PLANNED, "spec.budget.gpus": 8, "spec.search": limits})
    # Worked out for the request, so it holds what was asked for and nothing else.
    profile = profile_from_catalogue(all_nodes, request_of(all_nodes, SETTINGS))
    fewer = all_nodes.cluster.model_copy(update={"num_nodes": num_nodes})
    found = search(all_nodes.problem(profile, fewer)).plan
    assert found.cluster.num_devices == 2 * num_nodes
