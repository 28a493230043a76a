"""The whole step under a plan: the one number by which plans are ranked, and the memory that they need."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

from galvatron_planner import families
from galvatron_planner.cost.pipeline import StageSeconds, finish_seconds, in_flight
from galvatron_planner.cost.prices import PriceList, StageCost, StagePosition
from galvatron_planner.model import LayerSpec
from galvatron_planner.plan import Estimate
from galvatron_planner.problem import PlanningProblem, Schedule
from galvatron_planner.strategy import LayerStrategy, Layout

StageStrategies = tuple[tuple[LayerStrategy, ...], ...]
"""The strategies of a whole model, stage by stage."""


@dataclass(frozen=True, slots=True)
class BatchSplit:
    """How the samples of a step cross the pipeline; the batch divides into its micro-batches."""

    global_batch_size: int
    num_micro_batches: int

    def __post_init__(self) -> None:
        if self.global_batch_size % self.num_micro_batches:
            raise ValueError(
                f"global batch {self.global_batch_size} does not divide into {self.num_micro_batches} micro-batches"
            )

    @property
    def micro_batch_size(self) -> int:
        """Samples of one micro-batch."""
        return self.global_batch_size // self.num_micro_batches


def estimate(problem: PlanningProblem, stages: StageStrategies, split: BatchSplit) -> Estimate:
    """Price any plan for a problem, also one that the search did not make.

    Raises:
        MissingMeasurement: when the profile lacks what the plan needs.
    """
    return price_step(PriceList.of(problem), problem, stages, split)


def price_step(prices: PriceList, problem: PlanningProblem, stages: StageStrategies, split: BatchSplit) -> Estimate:
    """Price a step with a price list that has been started.

    The step ends when every stage has ended its passes and its gradient reduction, and the slowest optimizer is done:
    the gradient norm makes all of them wait for each other in between.
    """
    costs = stage_costs(prices, problem, stages, split)
    hops = [0.0, *_hop_seconds(prices, problem, stages, split), 0.0]
    passes = [
        StageSeconds(cost.forward_seconds + hops[index], cost.backward_seconds + hops[index + 1])
        for index, cost in enumerate(costs)
    ]
    ends = finish_seconds(passes, num_micro_batches=split.num_micro_batches, schedule=problem.limits.schedule)
    reduced = max(end + cost.sync_seconds for end, cost in zip(ends, costs, strict=True))
    optimizer = max(cost.optimizer_seconds for cost in costs)
    step = reduced + optimizer + problem.profile.step_overhead_seconds
    busiest = split.num_micro_batches * max(stage.seconds for stage in passes)
    return Estimate(
        step_seconds=step,
        samples_per_second=split.global_batch_size / step,
        stage_seconds=tuple(stage.seconds for stage in passes),
        stage_peak_bytes=tuple(cost.peak_bytes + problem.profile.reserve_bytes for cost in costs),
        bubble_ratio=max(0.0, 1 - busiest / max(ends)),
        source=problem.profile.source,
    )


def stage_costs(
    prices: PriceList, problem: PlanningProblem, stages: StageStrategies, split: BatchSplit
) -> tuple[StageCost, ...]:
    """Price every stage of a plan by itself."""
    layers = iter(families.layers(problem.model))
    costs = []
    entry: Layout | None = None
    for index, strategies in enumerate(stages):
        stage_layers: tuple[LayerSpec, ...] = tuple(next(layers) for _ in strategies)
        position = stage_position(
            split, schedule=problem.limits.schedule, stage_index=index, num_stages=len(stages), entry=entry
        )
        cost = prices.stage(stage_layers, strategies, position)
        entry = cost.exit_layout
        costs.append(cost)
    return tuple(costs)


def _hop_seconds(
    prices: PriceList, problem: PlanningProblem, stages: StageStrategies, split: BatchSplit
) -> Iterator[float]:
    """Price one transfer between each stage and the next, which is the same in both directions."""
    layers = families.layers(problem.model)
    ends = accumulate(len(strategies) for strategies in stages[:-1])
    for index, (end, strategies) in enumerate(zip(ends, stages[:-1], strict=True)):
        moved = prices.leaving_bytes(layers[end - 1], split.micro_batch_size)
        yield prices.hop_seconds(strategies[-1].layout, moved, stage_index=index)


def stage_position(
    split: BatchSplit, *, schedule: Schedule, stage_index: int, num_stages: int, entry: Layout | None
) -> StagePosition:
    """Place a stage in a pipeline."""
    held = in_flight(
        schedule, stage_index=stage_index, num_stages=num_stages, num_micro_batches=split.num_micro_batches
    )
    return StagePosition(
        micro_batch_size=split.micro_batch_size,
        in_flight=held,
        holds_all=held == split.num_micro_batches,
        entry=entry,
        feeds_next=stage_index < num_stages - 1,
    )
