"""Plans that people can read: equal layers that do the same stand together.

Among equal layers the order of strategies often makes no difference, and the search takes any.
"""

from itertools import groupby

from galvatron_planner import families
from galvatron_planner.cost.prices import PriceList
from galvatron_planner.cost.step import price_step
from galvatron_planner.model import LayerSpec
from galvatron_planner.problem import PlanningProblem
from galvatron_planner.search.front import ROUNDING
from galvatron_planner.search.joint import Candidate
from galvatron_planner.strategy import LayerStrategy


def tidied(problem: PlanningProblem, prices: PriceList, candidate: Candidate) -> Candidate:
    """Bring equal strategies of equal layers together, where that costs neither time nor memory that is not there."""
    layers = families.layers(problem.model)
    stages, first = [], 0
    for stage in candidate.stages:
        stages.append(_grouped(layers[first : first + len(stage)], stage))
        first += len(stage)
    if tuple(stages) == candidate.stages:
        return candidate
    estimate = price_step(prices, problem, tuple(stages), candidate.split)
    is_as_fast = estimate.step_seconds <= candidate.estimate.step_seconds * (1 + ROUNDING)
    fits = estimate.peak_bytes <= problem.cluster.device_memory_bytes
    return Candidate(candidate.split, tuple(stages), estimate) if is_as_fast and fits else candidate


def _grouped(layers: tuple[LayerSpec, ...], stage: tuple[LayerStrategy, ...]) -> tuple[LayerStrategy, ...]:
    """Sort the strategies of every run of equal layers by layout, then by strategy, in order of appearance."""
    grouped: list[LayerStrategy] = []
    for _, run in groupby(zip(layers, stage, strict=True), key=lambda one: one[0]):
        strategies = [strategy for _, strategy in run]
        layouts = list(dict.fromkeys(strategy.layout for strategy in strategies))
        order = {strategy: index for index, strategy in enumerate(dict.fromkeys(strategies))}
        grouped += sorted(strategies, key=lambda one: (layouts.index(one.layout), order[one]))
    return tuple(grouped)
