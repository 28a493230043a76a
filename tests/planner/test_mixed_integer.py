"""The second oracle: a mixed-integer programme that was formulated from the prices and is solved by HiGHS."""

from random import Random

import pytest
from hypothesis import HealthCheck, given, settings

import generators
import instances
import mixed_integer
import oracles
from galvatron_planner.errors import NoFeasiblePlan
from galvatron_planner.problem import PlanningProblem
from galvatron_planner.search.optimizer import search

MEDIUM = ((6, 8), (8, 8), (10, 8), (14, 8), (14, 4), (30, 2))
"""Blocks and devices: far more plans than can be looked at."""


def medium_problem(seed: int) -> PlanningProblem:
    drawn = instances.small_problem(Random(seed).choice, shapes=MEDIUM, max_plans=10**60)  # noqa: S311
    return drawn.without_sequence_parallelism()


@pytest.mark.slow
@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(generators.small_problems(max_plans=20_000))
def test_both_oracles_agree(problem: PlanningProblem) -> None:
    best, formulated = oracles.optimum(problem), mixed_integer.formulate(problem)
    if best is None:
        assert formulated.optimum is None
        return
    per_sample = 1 / best.estimate.samples_per_second
    assert formulated.seconds_per_sample <= per_sample * (1 + mixed_integer.SOLVER_TOLERANCE)
    if formulated.optimum is not None:
        assert formulated.optimum.estimate.samples_per_second <= best.estimate.samples_per_second * (1 + 1e-9)
    if formulated.is_exact:
        assert formulated.optimum is not None
        found = formulated.optimum.estimate.samples_per_second
        assert found == pytest.approx(best.estimate.samples_per_second, rel=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(40))
def test_no_plan_of_many_layers_is_faster(seed: int) -> None:
    problem = medium_problem(seed)
    formulated = mixed_integer.formulate(problem, time_limit_seconds=20)
    try:
        solution = search(problem)
    except NoFeasiblePlan:
        assert formulated.optimum is None
        return
    found = 1 / solution.plan.estimate.samples_per_second
    assert found >= formulated.seconds_per_sample * (1 - mixed_integer.SOLVER_TOLERANCE)
    if formulated.optimum is not None:
        assert found <= (1 + 1e-9) / formulated.optimum.estimate.samples_per_second
    assert solution.report.lower_bound_seconds is not None
    bound = solution.report.lower_bound_seconds / solution.plan.global_batch_size
    assert bound <= found * (1 + 1e-9)
