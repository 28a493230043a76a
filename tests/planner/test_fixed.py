"""Plans that users bring: priced under the problem's profile, or refused with what does not match."""

import pytest

import builders
from galvatron_planner.cost.step import BatchSplit, estimate
from galvatron_planner.errors import InvalidPlan, NoFeasiblePlan
from galvatron_planner.explain import explain
from galvatron_planner.model import Precision
from galvatron_planner.plan import Plan
from galvatron_planner.problem import Algorithm, Schedule, SearchDimension, SearchLimits
from galvatron_planner.search.fixed import price_fixed
from galvatron_planner.search.optimizer import search
from galvatron_planner.units import format_quantity


def test_a_plan_keeps_its_strategies_and_gets_the_estimates_of_this_profile() -> None:
    problem = builders.problem()
    brought = builders.plan("dp2 tp2-ckpt", "tp2 dp2", num_micro_batches=4, schedule=Schedule.GPIPE)
    solution = price_fixed(problem, brought)
    assert (solution.plan.stages, solution.plan.schedule) == (brought.stages, Schedule.GPIPE)
    gpipe = problem.model_copy(update={"limits": SearchLimits(schedule=Schedule.GPIPE)})
    stages = tuple(stage.layers for stage in brought.stages)
    assert solution.plan.estimate == estimate(gpipe, stages, BatchSplit(8, 4))
    assert solution.report.algorithm is Algorithm.FIXED
    assert solution.report.gap is None
    assert "nothing was searched" in explain(solution.plan, solution.report)
    assert solution.report.num_candidates == 1


def test_the_plan_that_a_search_finds_is_priced_as_the_search_priced_it() -> None:
    problem = builders.problem()
    found = search(problem).plan
    assert price_fixed(problem, found).plan.estimate == found.estimate


def test_limits_do_not_bind_a_plan_that_is_brought() -> None:
    problem = builders.problem(limits=SearchLimits(excluded=(SearchDimension.TP,)))
    assert price_fixed(problem, builders.plan("tp4")).plan.summary.endswith("tp4 x4")


def test_a_plan_that_is_brought_may_split_tokens_where_no_search_would() -> None:
    problem = builders.problem()
    assert not problem.limits.sequence_parallel
    solution = price_fixed(problem, builders.plan("dp4 sptp2-dp2 sptp2-dp2-ckpt sptp4"))
    assert solution.plan.summary == "pp1 m1: dp4, sptp2-dp2, sptp2-dp2-ckpt, sptp4"
    assert "sptp4" in explain(solution.plan, solution.report)


def test_other_nodes_of_as_many_devices_will_do() -> None:
    problem = builders.problem(on=builders.cluster(4, num_nodes=2))
    assert price_fixed(problem, builders.plan("dp4")).plan.cluster == problem.cluster


@pytest.mark.parametrize(
    ("brought", "difference"),
    [
        (builders.plan("dp4", spec=builders.model(num_layers=3)), "num_layers 3 instead of 2"),
        (builders.plan("dp4", precision=Precision.BF16), "BF16"),
        (builders.plan("dp2", on=builders.cluster(2)), "2 devices, the job has 4"),
        (builders.plan("dp4", global_batch_size=16), "global batch of 16, the job allows 8"),
    ],
)
def test_a_plan_for_something_else_is_refused_with_the_difference(brought: Plan, difference: str) -> None:
    with pytest.raises(InvalidPlan, match=difference):
        price_fixed(builders.problem(), brought)


def test_a_plan_that_does_not_fit_says_which_stage_needs_what() -> None:
    problem = builders.problem()
    brought = builders.plan("dp2 dp2 dp2", "dp2")
    peaks = price_fixed(problem, brought).plan.estimate.stage_peak_bytes
    fullest = peaks.index(max(peaks))
    short = builders.problem(on=builders.cluster(device_memory_bytes=max(peaks) - 1))
    with pytest.raises(NoFeasiblePlan, match=f"stage {fullest} needs {format_quantity(max(peaks))}"):
        price_fixed(short, brought)
    exact = builders.problem(on=builders.cluster(device_memory_bytes=max(peaks)))
    assert price_fixed(exact, brought).plan.estimate.peak_bytes == max(peaks)
