"""The stages of a pipeline in the published searches, solved one after another, and the papers' time of a step.

Prices come from the price list, as in every other search; what is published is how they are combined.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from galvatron_planner import families
from galvatron_planner.cost.layer import LayerCost
from galvatron_planner.cost.prices import PriceList, StageCost, StagePosition
from galvatron_planner.cost.step import BatchSplit, StageStrategies, stage_position
from galvatron_planner.model import LayerSpec
from galvatron_planner.problem import PlanningProblem
from galvatron_planner.search.candidates import candidate_strategies
from galvatron_planner.search.cuts import Cut
from galvatron_planner.search.published.grid import Floats, Menu, Moves, StageTask, fastest_choice
from galvatron_planner.strategy import LayerStrategy, Layout


@dataclass(frozen=True, slots=True)
class Pipeline:
    """Stages with their strategies, as the papers see them.

    Attributes:
        stages: strategies, stage by stage.
        pass_seconds: forward and backward of one micro-batch, per stage.
        step_seconds: of the whole step, by the papers' formula.
    """

    stages: StageStrategies
    pass_seconds: tuple[float, ...]
    step_seconds: float


def pipeline_seconds(pass_seconds: Sequence[float], once_seconds: Sequence[float], *, num_micro_batches: int) -> float:
    """Time of a step: one micro-batch crosses every stage, the others queue behind the slowest.

    Args:
        pass_seconds: forward and backward of one micro-batch, per stage.
        once_seconds: what a stage does once a step, after its last micro-batch.
        num_micro_batches: micro-batches per step, at least 1.

    Source: Galvatron-BMW (arXiv 2307.02031), cost of a pipeline; for equal stages it is that of Galvatron's code.
    """
    return sum(pass_seconds) + sum(once_seconds) + (num_micro_batches - 1) * max(pass_seconds)


class StageSolver:
    """The stages of one batch split and pipeline degree; it has state because cuts share their stages."""

    def __init__(self, problem: PlanningProblem, prices: PriceList, split: BatchSplit, num_stages: int) -> None:
        self.problem = problem
        self.split = split
        self.num_stages = num_stages
        self.layers = families.layers(problem.model)
        self._prices = prices
        size = split.micro_batch_size
        self._strategies = {
            layer: tuple(one for one in offered if size % one.data_degree == 0)
            for layer, offered in candidate_strategies(problem, num_stages).items()
        }
        self._costs: dict[LayerSpec, tuple[LayerCost, ...]] = {
            layer: tuple(prices.layer(layer, one, size) for one in offered)
            for layer, offered in self._strategies.items()
        }
        self._layouts = sorted({one.layout for offered in self._strategies.values() for one in offered})
        self._menus: dict[tuple[LayerSpec, int], Menu] = {}
        self._moves: dict[int, Moves] = {}
        self._solved: dict[tuple[Sequence[LayerSpec], StagePosition], tuple[LayerStrategy, ...] | None] = {}

    @property
    def has_choices(self) -> bool:
        """Tell whether every layer can run in some way, whatever memory says."""
        return all(self._strategies.values())

    def solve(self, cut: Cut) -> Pipeline | None:
        """Solve the stages of a cut, first to last; None when one of them does not fit."""
        stages: list[tuple[LayerStrategy, ...]] = []
        costs: list[StageCost] = []
        for index, (start, end) in enumerate(pairwise(cut)):
            entry = costs[-1].exit_layout if costs else None
            position = self._position(index, entry)
            strategies = self._strategies_of(self.layers[start:end], position)
            if strategies is None:
                return None
            stages.append(strategies)
            costs.append(self._prices.stage(self.layers[start:end], strategies, position))
        passes = tuple(cost.forward_seconds + cost.backward_seconds for cost in costs)
        once = tuple(cost.sync_seconds + cost.optimizer_seconds for cost in costs)
        seconds = pipeline_seconds(passes, once, num_micro_batches=self.split.num_micro_batches)
        return Pipeline(tuple(stages), passes, seconds)

    def least_seconds(self) -> float:
        """Bound the papers' step time of every cut: all layers at their fastest, and no stage slower than the mean."""
        passes = sum(min(map(_pass_seconds, self._costs[layer])) for layer in self.layers)
        once = sum(
            min(cost.sync_seconds + cost.optimizer_seconds for cost in self._costs[layer]) for layer in self.layers
        )
        return passes * self._passes_per_stage + once

    def layer_seconds(self) -> Floats:
        """Give the least seconds of every layer, (layers,)."""
        return np.array([min(map(self._seconds, self._costs[layer])) for layer in self.layers])

    def layer_bytes(self) -> Floats:
        """Give the least bytes that every layer keeps on every stage, (stages, layers)."""
        positions = [self._position(index, None) for index in range(self.num_stages)]
        menus = [[self._menu(layer, position) for layer in self.layers] for position in positions]
        return np.array([[menu.kept_bytes.min() for menu in row] for row in menus], dtype=np.float64)

    @property
    def _passes_per_stage(self) -> float:
        """How often a pass of the mean stage counts in the papers' formula, divided among the stages."""
        return (self.num_stages + self.split.num_micro_batches - 1) / self.num_stages

    def _seconds(self, cost: LayerCost) -> float:
        """What a layer adds to the step when its stage is like the others."""
        return self._passes_per_stage * _pass_seconds(cost) + cost.sync_seconds + cost.optimizer_seconds

    def _position(self, stage_index: int, entry: Layout | None) -> StagePosition:
        schedule = self.problem.limits.schedule
        return stage_position(
            self.split, schedule=schedule, stage_index=stage_index, num_stages=self.num_stages, entry=entry
        )

    def _strategies_of(self, layers: Sequence[LayerSpec], position: StagePosition) -> tuple[LayerStrategy, ...] | None:
        key = layers, position
        if key not in self._solved:
            choice = fastest_choice(self._task(layers, position))
            self._solved[key] = None if choice is None else self._named(layers, choice)
        return self._solved[key]

    def _named(self, layers: Sequence[LayerSpec], choice: Sequence[int]) -> tuple[LayerStrategy, ...]:
        return tuple(self._strategies[layer][option] for layer, option in zip(layers, choice, strict=True))

    def _task(self, layers: Sequence[LayerSpec], position: StagePosition) -> StageTask:
        size = self.split.micro_batch_size
        arriving = [self._prices.arriving_bytes(layer, size) for layer in layers]
        leaving = self._prices.leaving_bytes(layers[-1], size)
        menus = [self._menu(layer, position) for layer in layers]
        entry_bytes = [self._prices.entry_bytes(position, first, arriving[0]) for first in self._layouts]
        first = menus[0]
        menus[0] = replace(first, kept_bytes=first.kept_bytes + np.array(entry_bytes, dtype=np.int64)[first.layout])
        moves = [self._moves_of(payload) for payload in arriving]
        if position.entry is None:
            moves[0] = Moves(np.zeros_like(moves[0].seconds), np.zeros_like(moves[0].working_bytes))
        exits = [self._prices.exit_bytes(position, last, leaving) for last in self._layouts]
        return StageTask(
            menus=menus,
            moves=moves,
            entry=0 if position.entry is None else self._layouts.index(position.entry),
            exit_bytes=np.array(exits, dtype=np.int64),
            budget_bytes=self.problem.cluster.device_memory_bytes - self.problem.profile.reserve_bytes,
        )

    def _menu(self, layer: LayerSpec, position: StagePosition) -> Menu:
        # With one batch split, the number in flight tells whether those are all.
        key = layer, position.in_flight
        if key not in self._menus:
            costs = self._costs[layer]
            self._menus[key] = Menu(
                layout=np.array([self._layouts.index(one.layout) for one in self._strategies[layer]], dtype=np.int64),
                seconds=np.array([self._seconds(cost) for cost in costs]),
                kept_bytes=np.array(
                    [cost.kept_bytes(position.in_flight, holds_all=position.holds_all) for cost in costs],
                    dtype=np.int64,
                ),
                working_bytes=np.array([cost.transient_bytes for cost in costs], dtype=np.int64),
                ahead_bytes=np.array([cost.gathered_bytes for cost in costs], dtype=np.int64),
            )
        return self._menus[key]

    def _moves_of(self, micro_batch_bytes: int) -> Moves:
        if micro_batch_bytes not in self._moves:
            moves = [
                [self._prices.transition(before, after, micro_batch_bytes) for after in self._layouts]
                for before in self._layouts
            ]
            seconds = [[self._passes_per_stage * move.seconds for move in row] for row in moves]
            working = [[move.transient_bytes for move in row] for row in moves]
            self._moves[micro_batch_bytes] = Moves(np.array(seconds), np.array(working, dtype=np.int64))
        return self._moves[micro_batch_bytes]


def _pass_seconds(cost: LayerCost) -> float:
    return cost.forward_seconds + cost.backward_seconds
