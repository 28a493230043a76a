"""What must hold of every search: more room never hurts, equal problems have equal answers, nothing crashes."""

import os
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as generate

import builders
import generators
import oracles
from galvatron_planner.cost.step import BatchSplit, estimate
from galvatron_planner.errors import NoFeasiblePlan
from galvatron_planner.model import ModelSpec
from galvatron_planner.problem import BatchRange, PlanningProblem, SearchDimension, SearchLimits
from galvatron_planner.profiles import Profile
from galvatron_planner.search.optimizer import search
from galvatron_planner.search.report import Solution

SOME = settings(max_examples=10, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
MANY = settings(SOME, max_examples=60)
PROBLEMS = generators.small_problems(max_plans=20_000)


def solved(problem: PlanningProblem) -> Solution | None:
    try:
        return search(problem)
    except NoFeasiblePlan:
        return None


def assert_not_slower(wider: PlanningProblem, narrower: PlanningProblem, *, factor: float = 1) -> None:
    """Every plan of the narrower problem is one of the wider: only an uncertified gap may cost anything."""
    plain, wide = solved(narrower), solved(wider)
    if plain is None:
        return
    assert wide is not None
    assert wide.report.gap is not None
    throughput = plain.plan.estimate.samples_per_second * factor
    assert wide.plan.estimate.samples_per_second * (1 + wide.report.gap + 1e-9) >= throughput


def with_limits(problem: PlanningProblem, **changes: object) -> PlanningProblem:
    return problem.model_copy(update={"limits": problem.limits.model_copy(update=changes)})


@SOME
@given(PROBLEMS, generate.sampled_from([1.0001, 1.01, 1.2, 2.0, 100.0]))
def test_more_memory_is_never_slower(problem: PlanningProblem, factor: float) -> None:
    memory = problem.cluster.device_memory_bytes
    assert_not_slower(oracles.with_memory(problem, max(memory + 1, int(memory * factor))), problem)


@SOME
@given(PROBLEMS)
def test_fewer_exclusions_are_never_slower(problem: PlanningProblem) -> None:
    for dimension in problem.limits.excluded:
        rest = tuple(other for other in problem.limits.excluded if other is not dimension)
        assert_not_slower(with_limits(problem, excluded=rest), problem)


@SOME
@given(PROBLEMS, generate.sampled_from(SearchDimension))
def test_an_exclusion_is_never_faster(problem: PlanningProblem, dimension: SearchDimension) -> None:
    excluded = tuple(dict.fromkeys((*problem.limits.excluded, dimension)))
    assert_not_slower(problem, with_limits(problem, excluded=excluded))


@SOME
@given(PROBLEMS)
def test_sequence_parallelism_is_never_slower(problem: PlanningProblem) -> None:
    plain, wide = (with_limits(problem, sequence_parallel=asked) for asked in (False, True))
    assert_not_slower(wide, plain)


@SOME
@given(PROBLEMS)
def test_larger_degrees_are_never_slower(problem: PlanningProblem) -> None:
    for degree in ("max_tensor_degree", "max_pipeline_degree"):
        assert_not_slower(with_limits(problem, **{degree: 1 << 30}), with_limits(problem, **{degree: 1}))


@SOME
@given(PROBLEMS, generate.integers(0, 3), generate.integers(0, 3))
def test_a_wider_range_of_batch_sizes_is_never_slower(problem: PlanningProblem, below: int, above: int) -> None:
    batch = problem.batch
    fewest = max(batch.minimum % batch.step or batch.step, batch.minimum - below * batch.step)
    wider = BatchRange(minimum=fewest, maximum=batch.maximum + above * batch.step, step=batch.step)
    assert_not_slower(problem.model_copy(update={"batch": wider}), problem)


@SOME
@given(generators.MODELS, generate.sampled_from([1, 2, 3, 4]), generate.sampled_from([1, 2, 4]))
def test_twice_the_devices_with_free_links_train_twice_the_batch_as_fast(
    spec: ModelSpec, batch: int, num_devices: int
) -> None:
    # Splitting costs as soon as links do: then two devices can be slower than one, for all of them have to work.
    small, large = builders.cluster(num_devices), builders.cluster(2 * num_devices)
    measured = free_links(builders.profile(spec, large))
    limits = SearchLimits()
    assert_not_slower(
        builders.problem(spec, large, batch=2 * batch, limits=limits, measured=measured),
        builders.problem(spec, small, batch=batch, limits=limits, measured=measured),
        factor=2,
    )


def free_links(profile: Profile) -> Profile:
    links = tuple(
        link.model_copy(update={"samples": tuple(s.model_copy(update={"seconds": 0.0}) for s in link.samples)})
        for link in profile.links
    )
    return profile.model_copy(update={"links": links})


@pytest.mark.slow
@MANY
@given(PROBLEMS)
def test_a_plan_is_priced_as_the_cost_model_prices_it(problem: PlanningProblem) -> None:
    solution = solved(problem)
    if solution:
        plan = solution.plan
        split = BatchSplit(plan.global_batch_size, plan.num_micro_batches)
        assert estimate(problem, tuple(stage.layers for stage in plan.stages), split) == plan.estimate


@pytest.mark.slow
@MANY
@given(PROBLEMS)
def test_a_plan_keeps_to_memory_limits_and_batch(problem: PlanningProblem) -> None:
    solution = solved(problem)
    if solution:
        plan, limits = solution.plan, problem.limits
        strategies = [strategy for stage in plan.stages for strategy in stage.layers]
        assert plan.estimate.peak_bytes <= problem.cluster.device_memory_bytes
        assert plan.global_batch_size in problem.batch.sizes
        assert plan.num_micro_batches * plan.micro_batch_size == plan.global_batch_size
        assert len(plan.stages) <= (limits.max_pipeline_degree if limits.allows(SearchDimension.PP) else 1)
        assert max(strategy.tensor_degree for strategy in strategies) <= limits.max_tensor_degree
        assert limits.allows(SearchDimension.CKPT) or not any(strategy.checkpoint for strategy in strategies)


@SOME
@given(PROBLEMS)
def test_a_gap_of_zero_means_that_the_bound_is_reached(problem: PlanningProblem) -> None:
    solution = solved(problem)
    if solution:
        report, step = solution.report, solution.plan.estimate.step_seconds
        assert report.lower_bound_seconds is not None
        assert report.lower_bound_seconds <= step
        assert report.gap == pytest.approx(step / report.lower_bound_seconds - 1, abs=1e-12)


@SOME
@given(PROBLEMS)
def test_equal_problems_have_equal_bytes(problem: PlanningProblem) -> None:
    again = PlanningProblem.from_json(problem.to_json())
    assert answer(problem) == answer(again)


ANSWER = """
import sys
from galvatron_planner.problem import PlanningProblem
from galvatron_planner.search.optimizer import search
solution = search(PlanningProblem.from_json(sys.stdin.read()))
sys.stdout.write(solution.plan.to_json() + solution.report.to_json())
"""


@pytest.mark.slow
def test_another_interpreter_gives_the_same_bytes() -> None:
    problem = builders.problem(builders.model(num_layers=6), builders.cluster(8, device_memory_bytes=500_000), batch=8)
    answers = {
        subprocess.run(
            [sys.executable, "-c", ANSWER],
            input=problem.to_json(),
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            env=os.environ | {"PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert answers == {answer(problem)}


def answer(problem: PlanningProblem) -> str:
    try:
        solution = search(problem)
    except NoFeasiblePlan as refused:
        return str(refused)
    return solution.plan.to_json() + solution.report.to_json()


@pytest.mark.slow
@settings(MANY, max_examples=100)
@given(generators.odd_problems())
def test_whatever_is_asked_there_is_a_plan_or_a_remedy(problem: PlanningProblem) -> None:
    try:
        peak = search(problem).plan.estimate.peak_bytes
    except NoFeasiblePlan as refused:
        problem_and_remedy = (refused.problem, refused.remedy)
    else:
        problem_and_remedy = ("fits", "none needed")
        assert peak <= problem.cluster.device_memory_bytes
    assert all(problem_and_remedy)
