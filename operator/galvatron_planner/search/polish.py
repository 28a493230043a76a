"""The last step of the search: what the stages' own optima leave open because stages wait for each other.

Stages are solved by their own seconds. In a pipeline some of them are hidden: the reduction of a late stage's gradients
behind the backward passes of earlier ones, a fast stage's work behind the slowest. Changing one strategy, or a run of
equal ones, against the exact step time picks that up.
"""

from collections.abc import Iterator, Mapping
from itertools import groupby

from galvatron_planner import families
from galvatron_planner.cost.prices import PriceList
from galvatron_planner.cost.step import StageStrategies, price_step
from galvatron_planner.model import LayerSpec
from galvatron_planner.problem import PlanningProblem
from galvatron_planner.search.partition import Candidate
from galvatron_planner.strategy import LayerStrategy

Choices = Mapping[LayerSpec, tuple[LayerStrategy, ...]]


def polish(problem: PlanningProblem, prices: PriceList, candidate: Candidate, choices: Choices) -> Candidate:
    """Change strategies one place at a time as long as the step gets shorter and fits."""
    if len(candidate.stages) == 1:
        return candidate
    improved: Candidate | None = candidate
    while improved is not None:
        candidate = improved
        improved = _first_improvement(problem, prices, candidate, choices)
    return candidate


def _first_improvement(
    problem: PlanningProblem, prices: PriceList, candidate: Candidate, choices: Choices
) -> Candidate | None:
    for stages in _changes(problem, candidate, choices):
        estimate = price_step(prices, problem, stages, candidate.split)
        # Less than a millionth is not worth a search that goes on.
        shorter = estimate.step_seconds < candidate.estimate.step_seconds * (1 - 1e-6)
        if shorter and estimate.peak_bytes <= problem.cluster.device_memory_bytes:
            return Candidate(candidate.split, stages, estimate)
    return None


def _changes(problem: PlanningProblem, candidate: Candidate, choices: Choices) -> Iterator[StageStrategies]:
    layers = families.layers(problem.model)
    first = 0
    for index, stage in enumerate(candidate.stages):
        for start, end in _places(stage):
            for strategy in choices[layers[first + start]]:
                fits = candidate.split.micro_batch_size % strategy.data_degree == 0
                admitted = all(strategy in choices[layer] for layer in layers[first + start : first + end])
                if fits and admitted and strategy != stage[start]:
                    changed = (*stage[:start], *[strategy] * (end - start), *stage[end:])
                    yield (*candidate.stages[:index], changed, *candidate.stages[index + 1 :])
        first += len(stage)


def _places(stage: tuple[LayerStrategy, ...]) -> Iterator[tuple[int, int]]:
    """Give every run of equal strategies, the ends of runs, and the whole stage: inner layers change nothing new."""
    start = 0
    places = {(0, len(stage)): None}
    for _, run in groupby(stage):
        end = start + len(tuple(run))
        places |= dict.fromkeys([(start, end), (start, start + 1), (end - 1, end)])
        start = end
    yield from places
