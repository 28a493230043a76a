"""Pipelines in which one plan is known to fit: no bound of such a pipeline or of its stages may exclude the plan.

That is the cheapest of oracles: it needs no search, and so the pipelines may be of any size.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import numpy as np
from hypothesis import assume
from hypothesis import strategies as generate

import instances
import oracles
from galvatron_planner import families, space
from galvatron_planner.cost.prices import PriceList, StageCost
from galvatron_planner.cost.step import BatchSplit, StageStrategies, price_step, stage_costs
from galvatron_planner.model import LayerSpec
from galvatron_planner.plan import Estimate
from galvatron_planner.problem import BatchRange, PlanningProblem, SearchLimits
from galvatron_planner.search.contents import Contents, Stages
from galvatron_planner.search.joint import Pipeline
from galvatron_planner.search.options import Floats, PipelineOptions
from galvatron_planner.search.places import Metric
from galvatron_planner.search.request import pipeline_degrees
from galvatron_planner.search.screen import Screen
from galvatron_planner.search.screening import ScreenedPipeline
from galvatron_planner.strategy import LayerStrategy, Layout
from tables import every_split

Picked = TypeVar("Picked")

ROUNDED = 1 + 1e-9
"""What a bound may exceed by, for sums are rounded."""


@dataclass(frozen=True, slots=True)
class Case:
    """A pipeline and a plan that fits it.

    Attributes:
        pipeline: the memory of its devices is just enough for the plan, or some more.
        options: what its layers may choose.
        plan: the strategies of its stages.
        estimate: what the plan takes.
    """

    pipeline: Pipeline
    options: PipelineOptions
    plan: StageStrategies
    estimate: Estimate

    @property
    def layers(self) -> tuple[LayerSpec, ...]:
        return families.layers(self.pipeline.problem.model)

    @property
    def screen(self) -> Screen:
        return Screen(self.options, self.pipeline.contents, self.pipeline.positions())

    @property
    def seconds(self) -> float:
        """Of a step of the plan, without overhead."""
        return self.estimate.step_seconds - self.pipeline.overhead_seconds

    def stages(self) -> list[Stages]:
        """List at every place the stages that leave a layer to every other place."""
        count, last = len(self.layers), self.pipeline.num_stages - 1
        start, end = np.nonzero(np.triu(np.ones((count + 1, count + 1), dtype=bool), k=1))
        return [
            Stages(start, end).among(
                (start == 0 if k == 0 else start >= k) & (end == count if k == last else end <= count - last + k)
            )
            for k in range(last + 1)
        ]

    def screened(self, steps_per_octave: int | None = None) -> ScreenedPipeline:
        return ScreenedPipeline(
            self.options,
            self.pipeline.contents,
            self.pipeline.positions(),
            self.stages(),
            schedule=self.pipeline.problem.limits.schedule,
            steps_per_octave=steps_per_octave,
        )

    def priced_stages(self) -> Iterator[tuple[int, int, int, Floats]]:
        """List the plan's stages: place, first layer, one past the last, and seconds by metric."""
        pipeline, entry, start = self.pipeline, None, 0
        for k, cost in enumerate(stage_costs(pipeline.prices, pipeline.problem, self.plan, pipeline.split)):
            end = start + len(self.plan[k])
            yield k, start, end, self.metrics(k, start, end, cost, entry)
            entry, start = cost.exit_layout, end

    def metrics(self, k: int, start: int, end: int, cost: StageCost, entry: Layout | None) -> Floats:
        """Weigh the seconds of a stage, transfers included, by metric."""
        prices, size, last = self.pipeline.prices, self.pipeline.split.micro_batch_size, self.pipeline.num_stages - 1
        there = back = 0.0
        if entry is not None:
            there = prices.hop_seconds(entry, prices.leaving_bytes(self.layers[start - 1], size), stage_index=k - 1)
        if k < last:
            back = prices.hop_seconds(cost.exit_layout, prices.leaving_bytes(self.layers[end - 1], size), stage_index=k)
        passes = cost.forward_seconds + there, cost.backward_seconds + back, cost.sync_seconds, cost.optimizer_seconds
        return np.array([self.pipeline.positions()[k].weights(metric) for metric in Metric]) @ passes


@generate.composite
def problems(draw: generate.DrawFn, shapes: Sequence[tuple[int, int]]) -> PlanningProblem:
    """Problems that are hard on purpose, of any size."""

    def pick(some: Sequence[Picked]) -> Picked:
        return draw(generate.sampled_from(some))

    return instances.small_problem(pick, shapes=shapes, max_plans=1 << 200)


@generate.composite
def wide_problems(draw: generate.DrawFn) -> PlanningProblem:
    """Problems of stages with many devices, on which layers have many strategies."""
    problem = draw(problems(((1, 8), (2, 8), (4, 8), (2, 16), (4, 16))))
    limits = SearchLimits(schedule=problem.limits.schedule, sequence_parallel=problem.limits.sequence_parallel)
    return problem.model_copy(update={"limits": limits, "batch": BatchRange(minimum=16, maximum=16)})


SMALL = problems(((1, 1), (2, 1), (1, 2), (2, 2), (3, 2), (1, 4), (2, 4), (4, 4), (2, 8)))
DEEP = problems(((3, 4), (6, 4), (6, 8), (10, 8), (7, 16)))
WIDE = wide_problems()


@generate.composite
def cases(
    draw: generate.DrawFn, asked: generate.SearchStrategy[PlanningProblem], *, num_stages: Sequence[int] = (1, 2, 4, 8)
) -> Case:
    problem = draw(asked)
    layers, prices = families.layers(problem.model), PriceList.of(problem)
    every = [(degree, split) for degree, split in _pipelines(problem) if degree in num_stages]
    assume(every)
    degree, split = draw(generate.sampled_from(every))
    strategies = _strategies(problem, degree)
    options = PipelineOptions.of(prices, layers, strategies, micro_batch_size=split.micro_batch_size)
    chosen = [draw(generate.sampled_from(options.layers[kind].strategies)) for kind in options.kinds]
    inner = sorted(draw(generate.permutations(range(1, len(layers))))[: degree - 1])
    plan = tuple(tuple(chosen[i:j]) for i, j in pairwise((0, *inner, len(layers))))
    estimate = price_step(prices, problem, plan, split)
    memory = estimate.peak_bytes * draw(generate.sampled_from((1, 1, 2))) + draw(generate.sampled_from((0, 1)))
    pipeline = Pipeline(oracles.with_memory(problem, memory), prices, Contents(options.kinds), split, degree)
    return Case(pipeline, options, plan, estimate)


def _pipelines(problem: PlanningProblem) -> Iterator[tuple[int, BatchSplit]]:
    """List the degrees and splits for which every layer has a strategy."""
    for degree in pipeline_degrees(problem.cluster, problem.limits, len(families.layers(problem.model))):
        least = [min((s.data_degree for s in some), default=0) for some in _strategies(problem, degree).values()]
        for split in every_split(problem.batch):
            # Degrees are powers of two: what the least divides is divided by one strategy at least.
            if all(one and split.micro_batch_size % one == 0 for one in least):
                yield degree, split


def _strategies(problem: PlanningProblem, degree: int) -> dict[LayerSpec, tuple[LayerStrategy, ...]]:
    num_devices = problem.cluster.num_devices // degree
    return {
        layer: space.strategies(num_devices, problem.limits, layer).strategies
        for layer in families.layers(problem.model)
    }


def posed(problem: PlanningProblem, *plan: str, num_micro_batches: int = 1) -> Case:
    """Pose a plan, a text a stage, for a problem as it is."""
    layers, prices = families.layers(problem.model), PriceList.of(problem)
    split = BatchSplit(problem.batch.maximum, num_micro_batches)
    stages = tuple(tuple(LayerStrategy.parse(text) for text in stage.split()) for stage in plan)
    options = PipelineOptions.of(
        prices, layers, _strategies(problem, len(plan)), micro_batch_size=split.micro_batch_size
    )
    pipeline = Pipeline(problem, prices, Contents(options.kinds), split, len(plan))
    return Case(pipeline, options, stages, price_step(prices, problem, stages, split))
