"""The search against every plan of small problems; ``benchmarks.oracle`` does the same ten thousand times."""

import pytest
from hypothesis import HealthCheck, given, settings

import builders
import generators
import oracles
from galvatron_planner.cost.prices import PriceList
from galvatron_planner.cost.step import BatchSplit, estimate
from galvatron_planner.errors import NoFeasiblePlan
from galvatron_planner.model import Precision
from galvatron_planner.problem import PlanningProblem, Schedule, SearchDimension, SearchLimits
from galvatron_planner.search.candidates import smallest_peak
from galvatron_planner.search.optimizer import search
from galvatron_planner.search.report import Solution

UNHURRIED = [HealthCheck.too_slow, HealthCheck.data_too_large]


def solved(problem: PlanningProblem) -> Solution | None:
    try:
        return search(problem)
    except NoFeasiblePlan:
        return None


def assert_optimal(problem: PlanningProblem) -> None:
    best, solution = oracles.optimum(problem), solved(problem)
    assert (solution is None) == (best is None)
    if solution is None or best is None:
        return
    plan, report = solution.plan, solution.report
    split = BatchSplit(plan.global_batch_size, plan.num_micro_batches)
    assert plan.estimate == estimate(problem, tuple(stage.layers for stage in plan.stages), split)
    assert plan.estimate.peak_bytes <= problem.cluster.device_memory_bytes
    assert report.lower_bound_seconds is not None
    per_sample = 1 / best.estimate.samples_per_second
    assert report.lower_bound_seconds / plan.global_batch_size <= per_sample * (1 + 1e-9)
    assert 1 / plan.estimate.samples_per_second == pytest.approx(per_sample, rel=1e-9, abs=0)


@settings(max_examples=25, suppress_health_check=UNHURRIED)
@given(generators.small_problems(max_plans=200))
def test_all_plans_at_once_are_all_plans_one_by_one(problem: PlanningProblem) -> None:
    expected = max((one.samples_per_second for _, _, one in oracles.fitting_plans(problem)), default=0.0)
    best = oracles.optimum(problem)
    assert (best.estimate.samples_per_second if best else 0.0) == pytest.approx(expected, rel=1e-12)


@settings(max_examples=15, suppress_health_check=UNHURRIED)
@given(generators.small_problems(max_plans=2_000))
def test_no_plan_is_faster(problem: PlanningProblem) -> None:
    assert_optimal(problem)


def test_a_plan_is_found_where_a_quick_look_finds_none() -> None:
    # Little fits, and what does changes its layout twice: fsdp2-tp2, tp4-ckpt, fsdp2-tp2.
    spec, on = builders.model(num_layers=1), builders.cluster(4, device_memory_bytes=167_228)
    gpipe = SearchLimits(schedule=Schedule.GPIPE)
    measured = builders.profile(spec, on, precision=Precision.BF16)
    problem = builders.problem(spec, on, batch=8, precision=Precision.BF16, limits=gpipe, measured=measured)
    assert oracles.optimum(problem) is not None
    assert_optimal(problem)


def test_a_plan_fits_only_with_sequence_parallelism() -> None:
    # Long texts and a small model: activations between the split matrices are what fills the memory.
    spec = builders.model(num_layers=2, sequence_length=256, vocabulary_size=64)
    on = builders.cluster(4, device_memory_bytes=700_000)
    plain = builders.problem(spec, on, batch=1, limits=SearchLimits(excluded=(SearchDimension.PP,)))
    wide = plain.model_copy(update={"limits": plain.limits.model_copy(update={"sequence_parallel": True})})
    assert oracles.optimum(plain) is None
    assert_optimal(plain)
    assert oracles.optimum(wide) is not None
    assert_optimal(wide)


@pytest.mark.parametrize("schedule", Schedule)
def test_gradients_that_come_late_leave_room_where_they_outweigh_activations(schedule: Schedule) -> None:
    # Few tokens a sample: what fits in the least memory is one micro-batch, gone before there are gradients.
    spec, on = builders.model(num_layers=4, sequence_length=2), builders.cluster(2)
    excluded = (SearchDimension.PP, SearchDimension.TP, SearchDimension.SDP, SearchDimension.CKPT)
    limits = SearchLimits(schedule=schedule, excluded=excluded)
    problem = builders.problem(spec, on, batch=4, limits=limits)
    assert_smallest_memory(problem)
    least = oracles.smallest_memory(problem)
    assert least is not None
    ((split, *_),) = oracles.fitting_plans(oracles.with_memory(problem, least))
    assert split.num_micro_batches == 1


@pytest.mark.slow
@settings(max_examples=60, suppress_health_check=UNHURRIED)
@given(generators.small_problems(max_plans=2_000))
def test_the_smallest_memory_is_known_and_enough(problem: PlanningProblem) -> None:
    assert_smallest_memory(problem)


def assert_smallest_memory(problem: PlanningProblem) -> None:
    least = oracles.smallest_memory(problem)
    assert smallest_peak(problem, PriceList.of(problem)) == least
    if least is not None:
        assert_optimal(oracles.with_memory(problem, least))
        assert solved(oracles.with_memory(problem, least - 1)) is None


@pytest.mark.slow
@settings(max_examples=300, suppress_health_check=UNHURRIED)
@given(generators.small_problems())
def test_no_plan_of_some_hundred_thousand_is_faster(problem: PlanningProblem) -> None:
    assert_optimal(problem)
