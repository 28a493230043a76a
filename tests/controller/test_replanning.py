"""A job that runs out of device memory: another plan with less memory, until there is none."""

from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as generate

import builders
from fakes.operation import KEY, SETTINGS, Operation, begin, body, message, plans_while_stopped, reason
from fakes.world import Act, InstantSearches, Scene, Script, World, all_goes_well
from galvatron_operator import names
from galvatron_operator.api import ConditionType, FailureReason, JobStatus, Replan, parse
from galvatron_operator.decide import Kind, SearchOrder, SearchOutcome, SearchProblem
from galvatron_operator.decide.profiling import request_of
from galvatron_operator.decide.replanning import MOST_REPLANS, smaller_limit
from galvatron_operator.failures import Failure
from galvatron_operator.reconcile import JobKey
from galvatron_planner.plan import Plan
from galvatron_planner.search.optimizer import search
from galvatron_planner.units import GIB, MIB
from galvatron_planner.worker import ExitClass, WorkerFailure, WorkerState

BUDGET = 4 * GIB
PREDICTED = 1 * GIB
"""What the plans of ``InstantSearches`` are expected to need."""


def runs_out_of_memory(*, on_attempts: range = range(1, 1000), peak_bytes: int | None = PREDICTED) -> Script:
    """Node 1 runs out of device memory in its second step, node 0 loses the connection."""

    def script(scene: Scene) -> Act:
        if scene.component != names.COMPONENT_TRAINER or scene.attempt not in on_attempts or scene.age < 2:
            return all_goes_well(scene)
        first = scene.node_rank == 1
        failure = WorkerFailure(
            reason=ExitClass.OUT_OF_DEVICE_MEMORY if first else ExitClass.COMMUNICATION,
            message="CUDA out of memory",
            rank=2 if first else 0,
            exit_code=1,
            time=1.0 if first else 5.0,
            peak_bytes=peak_bytes if first else None,
        )
        return Act(WorkerState.FAILED, step=25, failure=failure)

    return script


class FrugalSearches(InstantSearches):
    """Searches that find a plan as long as each device has some memory, and count what is asked."""

    def __init__(self, least_bytes: int = 0) -> None:
        super().__init__()
        self._least_bytes = least_bytes
        self.asked: list[int] = []

    def start(self, key: JobKey, order: SearchOrder) -> None:
        memory = order.problem.cluster.device_memory_bytes
        self.asked.append(memory)
        self._problem = SearchProblem.NO_FEASIBLE_PLAN if memory < self._least_bytes else None
        super().start(key, order)


class RealSearches(InstantSearches):
    """Searches as the operator makes them, but at once."""

    def start(self, key: JobKey, order: SearchOrder) -> None:
        found = search(order.problem)
        self._outcomes[key] = SearchOutcome(order.digest, 1.0, plan=found.plan, report=found.report.to_json())


def plans(operation: Operation) -> list[Plan]:
    """Every plan that was kept, the one with the most memory first."""
    texts = [
        found["data"][names.PLAN_KEY] for found in operation.all_of(Kind.CONFIG_MAP) if names.PLAN_KEY in found["data"]
    ]
    return sorted(map(Plan.from_json, texts), key=lambda plan: -plan.cluster.device_memory_bytes)


def until(operation: Operation, is_so: Callable[[JobStatus], bool]) -> JobStatus:
    """Let time pass until the status is as wanted."""
    for _ in range(100):
        if operation.status is not None and is_so(operation.status):
            return operation.status
        operation.rounds(1)
    raise AssertionError(operation.status)


def is_replanning(status: JobStatus) -> bool:
    return reason(status, ConditionType.PLAN_READY) == "Replanning"


def test_a_job_that_runs_out_of_memory_goes_on_under_a_plan_that_needs_less() -> None:
    operation = begin(runs_out_of_memory(on_attempts=range(1, 2)))
    status = operation.until_finished()
    assert (status.phase, status.attempt) == ("Complete", 2)
    assert [failure.reason for failure in status.failures] == ["CudaOutOfMemory"]
    # By hand: 95 % of the 1024 MiB that were predicted and seen is 972.8 MiB.
    assert status.replan == Replan(count=1, memory_per_gpu="972Mi", reason="CudaOutOfMemory", attempt=1)
    assert [plan.cluster.device_memory_bytes for plan in plans(operation)] == [BUDGET, 972 * MIB]
    assert status.plan is not None
    assert status.plan.hash == names.plan_hash(plans(operation)[1].digest())


def test_a_real_search_finds_a_smaller_plan_in_the_profile_that_is_there() -> None:
    operation = Operation(World(runs_out_of_memory(on_attempts=range(1, 3), peak_bytes=None)), RealSearches())
    wide = {"family": "gpt", "hiddenSize": 256, "numLayers": 2, "numAttentionHeads": 4, "sequenceLength": 128}
    batch = {"globalBatchSize": {"value": 64}, "steps": 100, "precision": "FP32"}
    operation.create(body(model=wide, training=batch, profiling={"policy": "Never", "device": "cpu-core"}))
    status = operation.until_finished()
    assert (status.phase, status.attempt) == ("Complete", 3)
    kept = plans(operation)
    assert len({plan.summary for plan in kept}) == 3
    for before, after in pairwise(kept):
        limit = before.estimate.peak_bytes * 95 // 100
        assert limit - MIB < after.cluster.device_memory_bytes <= limit
        assert after.estimate.peak_bytes <= limit


def test_what_is_seen_while_the_job_is_planned_anew() -> None:
    operation = begin(runs_out_of_memory(on_attempts=range(1, 2)))
    status = until(operation, is_replanning)
    assert (status.phase, status.attempt, status.plan) == ("Searching", 2, None)
    assert message(status, ConditionType.PLAN_READY) == (
        "after CudaOutOfMemory in attempt 1: a plan is searched that needs at most 972Mi of each device"
    )
    operation.round()
    assert reason(operation.status, ConditionType.PLAN_READY) == "Replanning"
    # Nobody holds devices meanwhile.
    assert operation.all_of(Kind.STATEFUL_SET) == []
    operation.until_finished()
    events = [event["reason"] for event in operation.all_of(Kind.EVENT)]
    assert events.count("Replanning") == 1
    assert events.count("PlanFound") == 1  # of one text, and an event's name follows from its text


def test_trainers_of_the_new_plan_are_other_pods_under_its_hash() -> None:
    operation = begin(runs_out_of_memory(on_attempts=range(1, 2)))
    seen: dict[str, set[str]] = {}
    while operation.status is None or not operation.status.is_finished:
        operation.rounds(1)
        for pod in operation.all_of(Kind.POD):
            labels = pod["metadata"]["labels"]
            if labels[names.LABEL_COMPONENT] == names.COMPONENT_TRAINER:
                seen.setdefault(labels[names.LABEL_PLAN_HASH], set()).add(pod["metadata"]["uid"])
    first, second = (names.plan_hash(plan.digest()) for plan in plans(operation))
    assert seen.keys() == {first, second}
    assert not seen[first] & seen[second]


def test_nothing_is_measured_again() -> None:
    operation = begin(runs_out_of_memory(on_attempts=range(1, 3)))
    made: set[str] = set()
    while operation.status is None or not operation.status.is_finished:
        operation.rounds(1)
        made |= {found["metadata"]["uid"] for found in operation.all_of(Kind.JOB)}
    assert operation.status.phase == "Complete"
    assert len(made) == 1
    requests = [found for found in operation.all_of(Kind.CONFIG_MAP) if names.REQUEST_KEY in found["data"]]
    assert [found["metadata"]["name"] for found in requests] == [
        names.request_config_map(KEY.name, request_of(parse(operation.job), SETTINGS).digest())
    ]


def test_a_job_that_runs_out_of_memory_whatever_the_plan_fails_with_advice() -> None:
    operation = begin(runs_out_of_memory(), failurePolicy={"maxRestarts": 0})
    status = operation.until_finished()
    assert reason(status, ConditionType.FAILED) == "CudaOutOfMemory"
    assert status.attempt == 1 + MOST_REPLANS
    assert (status.restarts.total, status.restarts.counted_towards_max) == (MOST_REPLANS, 0)
    assert status.replan is not None
    assert status.replan.count == MOST_REPLANS
    limits = [plan.cluster.device_memory_bytes for plan in plans(operation)]
    assert limits == sorted(set(limits), reverse=True)
    assert len(limits) == 1 + MOST_REPLANS
    told = message(status, ConditionType.FAILED)
    for words in ("attempt 4", "small-1", "CUDA out of memory", "planned anew 3 times", "spec.budget.memoryPerGPU"):
        assert words in told
    assert operation.all_of(Kind.POD) == []


def test_a_job_for_which_there_is_no_smaller_plan_fails_over_its_memory() -> None:
    searches = FrugalSearches(least_bytes=980 * MIB)
    operation = Operation(World(runs_out_of_memory()), searches)
    operation.create(body())
    status = operation.until_finished()
    assert searches.asked == [BUDGET, 972 * MIB]
    assert reason(status, ConditionType.PLAN_READY) == "NoFeasiblePlan"
    assert reason(status, ConditionType.FAILED) == "CudaOutOfMemory"
    told = message(status, ConditionType.FAILED)
    for words in ("attempt 1", "at most 972Mi", "raise the budget"):
        assert words in told
    assert operation.all_of(Kind.POD) == []
    assert operation.all_of(Kind.STATEFUL_SET) == []


def test_a_plan_of_the_user_is_not_replaced() -> None:
    operation = begin(runs_out_of_memory(), search={"algorithm": "Fixed", "fixedPlanRef": {"name": "mine"}})
    wanted = parse(operation.job)
    operation.create(
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "mine", "namespace": KEY.namespace},
            "data": {"plan.json": builders.plan("dp4", spec=wanted.model, on=wanted.cluster).to_json()},
        }
    )
    status = operation.until_finished()
    assert reason(status, ConditionType.FAILED) == "CudaOutOfMemory"
    assert (status.attempt, status.replan) == (1, None)
    assert "bring a plan that needs less memory" in message(status, ConditionType.FAILED)


def test_a_job_that_is_suspended_while_it_is_planned_anew_goes_on_with_that() -> None:
    operation = begin(runs_out_of_memory(on_attempts=range(1, 2)))
    until(operation, is_replanning)
    operation.edit(suspend=True)
    operation.rounds(3)
    assert operation.all_of(Kind.POD) == []
    assert operation.status is not None
    assert operation.status.phase == "Suspended"
    operation.edit(suspend=False)
    status = operation.until_finished()
    assert (status.phase, status.attempt) == ("Complete", 2)
    assert len(plans(operation)) == 2


def test_a_lost_status_does_not_bring_the_larger_plan_back() -> None:
    operation = begin(runs_out_of_memory(on_attempts=range(1, 2)))
    until(operation, lambda status: status.attempt == 2 and status.is_true(ConditionType.TRAINING))
    del operation.job["status"]
    operation.round()
    assert operation.status is not None
    assert operation.status.plan is not None
    assert operation.status.plan.hash == names.plan_hash(plans(operation)[1].digest())
    assert operation.status.attempt == 2


def test_a_limit_that_nobody_can_read_ends_the_job_with_the_field() -> None:
    operation = begin(runs_out_of_memory(on_attempts=range(1, 2)))
    until(operation, is_replanning)
    operation.job["status"]["replan"]["memoryPerGPU"] = "much"
    operation.round()
    assert reason(operation.status, ConditionType.FAILED) == "InvalidSpec"
    assert (
        "status.replan.memoryPerGPU" in message(operation.status, ConditionType.FAILED) if operation.status else False
    )


def out_of_memory(peak_bytes: int | None) -> Failure:
    return Failure(FailureReason.OUT_OF_DEVICE_MEMORY, "?", datetime(2026, 1, 1, tzinfo=UTC), peak_bytes=peak_bytes)


@pytest.mark.parametrize(
    ("peak_bytes", "limit_mib"),
    [
        # 95 % of the smallest: what was seen, or what was predicted where more or nothing was seen.
        (500 * MIB, 475),
        (5 * GIB, 972),
        (None, 972),
        (0, 0),
    ],
)
def test_the_next_plan_may_use_less_than_was_seen_and_than_was_predicted(
    peak_bytes: int | None, limit_mib: int
) -> None:
    assert smaller_limit(builders.plan("dp4"), out_of_memory(peak_bytes)) == limit_mib * MIB


@given(
    predicted=generate.integers(1, 1 << 45),
    memory=generate.integers(1, 1 << 45),
    peak_bytes=generate.none() | generate.integers(0, 1 << 45),
)
def test_a_limit_always_excludes_the_plan_that_failed(predicted: int, memory: int, peak_bytes: int | None) -> None:
    estimate = builders.some_estimate().model_copy(update={"stage_peak_bytes": (predicted,)})
    plan = builders.plan("dp4", on=builders.cluster(device_memory_bytes=memory), estimate=estimate)
    limit = smaller_limit(plan, out_of_memory(peak_bytes))
    assert limit < predicted
    assert limit < memory


def test_a_device_that_had_nothing_for_the_job_ends_it() -> None:
    status = begin(runs_out_of_memory(peak_bytes=0)).until_finished()
    assert reason(status, ConditionType.FAILED) == "CudaOutOfMemory"
    assert "devices with more free memory" in message(status, ConditionType.FAILED)


SCRIPTS = {"once": runs_out_of_memory(on_attempts=range(1, 2)), "always": runs_out_of_memory()}


@cache
def undisturbed_end(script: str) -> JobStatus:
    return begin(SCRIPTS[script]).until_finished()


def assert_ends_alike(operation: Operation, undisturbed: JobStatus) -> None:
    status = operation.until_finished()
    assert (status.phase, status.attempt) == (undisturbed.phase, undisturbed.attempt)
    assert status.replan == undisturbed.replan
    assert status.restarts.total == undisturbed.restarts.total
    assert [failure.reason for failure in status.failures] == [failure.reason for failure in undisturbed.failures]
    assert operation.all_of(Kind.POD) == []


@pytest.mark.parametrize("script", sorted(SCRIPTS))
@pytest.mark.parametrize("writes", range(6))
def test_an_operator_that_is_stopped_in_every_round_plans_anew_all_the_same(script: str, writes: int) -> None:
    operation = begin(SCRIPTS[script])
    until(operation, lambda status: status.is_true(ConditionType.TRAINING))
    trained = plans_while_stopped(operation, writes=writes)
    # No pod of a former plan is taken into an attempt under another one.
    assert all(len(hashes) == 1 for hashes in trained.values())
    assert_ends_alike(operation, undisturbed_end(script))


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(script=generate.sampled_from(sorted(SCRIPTS)), writes=generate.lists(generate.integers(0, 6), max_size=20))
def test_an_operator_that_is_stopped_after_any_write_plans_anew_all_the_same(script: str, writes: list[int]) -> None:
    operation = begin(SCRIPTS[script])
    for number in writes:
        operation.round(writes=number)
        operation.world.step()
    assert_ends_alike(operation, undisturbed_end(script))
