"""Galvatron-BMW as published in 2024: with activation checkpointing, and stages balanced between memory and time.

Source: Wang et al., TKDE 2024, arXiv 2307.02031. What had to differ here: docs/adr/0013.
"""

from collections import deque
from collections.abc import Iterable, Iterator

import numpy as np

from galvatron_planner.cost.prices import PriceList
from galvatron_planner.problem import PlanningProblem, SearchDimension
from galvatron_planner.search.candidates import Outcome
from galvatron_planner.search.cuts import Cut, between, lightest_cut
from galvatron_planner.search.published.grid import Floats
from galvatron_planner.search.published.stages import Pipeline, StageSolver
from galvatron_planner.search.published.sweep import sweep


def explore(problem: PlanningProblem, prices: PriceList) -> Outcome:
    """Search as the paper does."""
    return sweep(in_its_space(problem), prices, balance)


def in_its_space(problem: PlanningProblem) -> PlanningProblem:
    """Pose the problem in the paper's space."""
    return problem.without(SearchDimension.ZERO2).without_sequence_parallelism()


def balance(solver: StageSolver) -> Pipeline | None:
    """Start from the memory-balanced cut and move boundary layers off the slowest stage; keep the best cut seen.

    A move is followed when the stages that it changes stay below the slowest one before it, when memory fits, and when
    the cut stays between the memory-balanced and the time-balanced one: its fullest stage no fuller than the latter's,
    its slowest stage no slower than the former's.
    """
    seconds = np.broadcast_to(solver.layer_seconds(), (solver.num_stages, len(solver.layers)))
    memory = solver.layer_bytes()
    start, end = balanced_cut(memory), balanced_cut(seconds)
    most_bytes, most_seconds = _heaviest(memory, end), _heaviest(seconds, start)
    best: Pipeline | None = None
    queue, seen = deque([start]), {start}
    while queue:
        cut = queue.popleft()
        current = solver.solve(cut)
        if current is None:
            continue
        if best is None or current.step_seconds < best.step_seconds:
            best = current
        for moved in _relieved(cut, current):
            between = _heaviest(memory, moved) <= most_bytes and _heaviest(seconds, moved) <= most_seconds
            changed = [
                stage for stage in range(solver.num_stages) if moved[stage : stage + 2] != cut[stage : stage + 2]
            ]
            if moved not in seen and between and _relieves(solver.solve(moved), changed, current):
                queue.append(moved)
                seen.add(moved)
    return best


def balanced_cut(weights: Floats) -> Cut:
    """Cut layers into stages so that the heaviest stage is as light as possible; of several cuts, the first.

    Args:
        weights: of every layer on every stage, (stages, layers).
    """
    running = np.pad(np.cumsum(weights, axis=1), ((0, 0), (1, 0)))
    cut = lightest_cut(between(stage) for stage in running)
    if cut is None:
        raise ValueError("there are more stages than layers")
    return cut


def _heaviest(weights: Floats, cut: Cut) -> float:
    return max(float(row[start:end].sum()) for row, start, end in zip(weights, cut, cut[1:], strict=False))


def _relieved(cut: Cut, pipeline: Pipeline) -> Iterator[Cut]:
    """Give the cuts in which the slowest stage hands its first or its last layer to its neighbour."""
    slowest = max(range(len(pipeline.pass_seconds)), key=pipeline.pass_seconds.__getitem__)
    if cut[slowest + 1] - cut[slowest] == 1:
        return
    if slowest > 0:
        yield (*cut[:slowest], cut[slowest] + 1, *cut[slowest + 1 :])
    if slowest < len(cut) - 2:
        yield (*cut[: slowest + 1], cut[slowest + 1] - 1, *cut[slowest + 2 :])


def _relieves(moved: Pipeline | None, changed: Iterable[int], before: Pipeline) -> bool:
    """Tell whether a move fits, and leaves the stages that it changes below the slowest one before it."""
    if moved is None:
        return False
    slowest = max(before.pass_seconds)
    return max(moved.pass_seconds) <= slowest and all(moved.pass_seconds[stage] < slowest for stage in changed)
