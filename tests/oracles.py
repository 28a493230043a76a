"""Exhaustive enumeration: slow and obviously right, for instances of a few layers and devices."""

from collections.abc import Iterator
from itertools import combinations, pairwise, product

from galvatron_planner import families, space
from galvatron_planner.cost.prices import PriceList
from galvatron_planner.cost.step import BatchSplit, StageStrategies, price_step
from galvatron_planner.plan import Estimate
from galvatron_planner.problem import PlanningProblem
from galvatron_planner.search.request import pipeline_degrees


def fitting_plans(problem: PlanningProblem) -> Iterator[tuple[BatchSplit, StageStrategies, Estimate]]:
    """Every plan of a problem that fits: all batch sizes, splits, pipeline degrees, cuts and strategies."""
    prices = PriceList.of(problem)
    for split, stages in every_plan(problem):
        estimate = price_step(prices, problem, stages, split)
        if estimate.peak_bytes <= problem.cluster.device_memory_bytes:
            yield split, stages, estimate


def every_plan(problem: PlanningProblem) -> Iterator[tuple[BatchSplit, StageStrategies]]:
    """Every plan of a problem, whether it fits or not."""
    layers = families.layers(problem.model)
    for degree in pipeline_degrees(problem.cluster, problem.limits, len(layers)):
        allowed = [
            space.strategies(problem.cluster.num_devices // degree, problem.limits, x).strategies for x in layers
        ]
        for split in _splits(problem):
            fitting = [[s for s in some if split.micro_batch_size % s.data_degree == 0] for some in allowed]
            for chosen in product(*fitting):
                for inner in combinations(range(1, len(layers)), degree - 1):
                    yield split, tuple(chosen[i:j] for i, j in pairwise((0, *inner, len(layers))))


def _splits(problem: PlanningProblem) -> Iterator[BatchSplit]:
    for size in problem.batch.sizes:
        for number in range(1, size + 1):
            if size % number == 0:
                yield BatchSplit(size, number)
