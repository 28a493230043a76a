"""Galvatron as published in 2022: DP, SDP, TP and PP, stages of equally many layers, no activation checkpointing.

Source: Miao et al., PVLDB 16(3), arXiv 2211.13878, and its code. What had to differ here: docs/adr/0013.
"""

from galvatron_planner.cost.prices import PriceList
from galvatron_planner.problem import PlanningProblem, SearchDimension
from galvatron_planner.search.candidates import Outcome
from galvatron_planner.search.cuts import Cut
from galvatron_planner.search.published.stages import Pipeline, StageSolver
from galvatron_planner.search.published.sweep import sweep


def explore(problem: PlanningProblem, prices: PriceList) -> Outcome:
    """Search as the paper does."""
    return sweep(in_its_space(problem), prices, _solve)


def in_its_space(problem: PlanningProblem) -> PlanningProblem:
    """Pose the problem in the paper's space."""
    return problem.without(SearchDimension.ZERO2, SearchDimension.CKPT).without_sequence_parallelism()


def even_cut(num_layers: int, num_stages: int) -> Cut:
    """Cut into stages of equally many layers, or one more where they do not divide.

    The paper divides the blocks; what stands before the first and behind the last of them goes with it. Models of fewer
    blocks than stages are divided layer by layer.
    """
    inner = num_layers - 2
    if inner < num_stages:
        return tuple(index * num_layers // num_stages for index in range(num_stages + 1))
    between = (1 + index * inner // num_stages for index in range(1, num_stages))
    return (0, *between, num_layers)


def _solve(solver: StageSolver) -> Pipeline | None:
    if solver.num_stages == 1 and solver.split.num_micro_batches > 1:
        # Micro-batches are for pipelines: the authors' code splits no batch without one.
        return None
    return solver.solve(even_cut(len(solver.layers), solver.num_stages))
