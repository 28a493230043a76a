"""Plans in which all layers share one strategy: every one of them, and the fastest or smallest found by pricing few.

Only cuts into stages are not listed: of every plan, the cut whose slowest stage is fastest is taken, among those whose
stages fit. Legend: L layers.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise

import numpy as np

from galvatron_planner import families, space
from galvatron_planner.cost.pipeline import in_flight
from galvatron_planner.cost.prices import PriceList
from galvatron_planner.cost.step import BatchSplit, StageStrategies, price_step, stage_costs
from galvatron_planner.dimensions import refusal
from galvatron_planner.model import LayerSpec
from galvatron_planner.problem import PlanningProblem, Schedule, SearchLimits
from galvatron_planner.search.cuts import Cut, between, lightest_cut
from galvatron_planner.search.joint import Candidate
from galvatron_planner.search.options import Floats
from galvatron_planner.search.ranges import degrees, seconds_per_sample, splits
from galvatron_planner.strategy import Axis, Dimension, LayerStrategy


@dataclass(frozen=True, slots=True)
class UniformPlan:
    """One strategy for all layers of all stages; where it checkpoints, those layers do that can."""

    num_stages: int
    strategy: LayerStrategy
    split: BatchSplit


@dataclass(frozen=True, slots=True)
class _Costs:
    """All layers under one strategy and micro-batch size: running sums over the layers (L + 1,), or per layer (L,).

    Attributes:
        pass_seconds: running sum of forward and backward of one micro-batch.
        once_seconds: running sum of gradient reduction and optimizer.
        state_bytes: running sum of what is held for the whole run.
        activation_bytes: running sum of what is held per micro-batch in flight.
        reused_bytes: running sum of the activations whose room the gradients of a step take over.
        working_bytes: per layer, needed above that while it computes.
        exit_bytes: per layer, its output of one micro-batch on one device.
    """

    pass_seconds: Floats
    once_seconds: Floats
    state_bytes: Floats
    activation_bytes: Floats
    reused_bytes: Floats
    working_bytes: Floats
    exit_bytes: Floats


@dataclass(frozen=True, slots=True)
class _Memory:
    """Peak memory of stages by where they start and before which layer they end, each array (L + 1, L + 1).

    Attributes:
        fixed: what does not depend on the number of micro-batches in flight; infinite where there is no layer.
        per_micro_batch: activations of each micro-batch in flight.
        reused: of the activations, what counts as gradients already where all micro-batches are in flight.
        handed_on: per end, what leaves with each micro-batch and waits for its gradient, (L + 1,).
        counts: micro-batches in flight, per stage.
        num_micro_batches: of the step.
    """

    fixed: Floats
    per_micro_batch: Floats
    reused: Floats
    handed_on: Floats
    counts: tuple[int, ...]
    num_micro_batches: int

    def stages(self) -> Iterator[Floats]:
        """Give the peak of each stage."""
        return (self._stage(index, slice(None)) for index in range(len(self.counts)))

    def fits(self, room: float) -> bool:
        """Tell whether all layers have a place when every stage takes as many as it has room for."""
        start, num_layers, num_stages = 0, len(self.handed_on) - 1, len(self.counts)
        for index in range(num_stages):
            ends = slice(start + 1, num_layers - (num_stages - 1 - index) + 1)
            taken = int(np.searchsorted(self._stage(index, start)[ends], room, side="right"))
            if taken == 0:
                return False
            start += taken
        return start == num_layers

    def _stage(self, index: int, starts: int | slice) -> Floats:
        peak = self.fixed[starts] + self.counts[index] * self.per_micro_batch[starts]
        if self.counts[index] == self.num_micro_batches:
            peak = peak - self.reused[starts]
        if index < len(self.counts) - 1:
            # One for each micro-batch in flight, and one gradient.
            peak = peak + (self.counts[index] + 1) * self.handed_on
        return np.asarray(peak)


def uniform_plans(problem: PlanningProblem) -> Iterator[tuple[UniformPlan, ...]]:
    """List every uniform plan that the problem's limits admit: all batch splits of one strategy at a time."""
    layers = tuple(dict.fromkeys(families.layers(problem.model)))
    for num_stages in degrees(problem):
        for strategy in _strategies(problem.cluster.num_devices // num_stages):
            if all(_admitted(problem.limits, layer, _on(layer, strategy)) for layer in layers):
                fitting = (split for split in splits(problem) if split.micro_batch_size % strategy.data_degree == 0)
                if plans := tuple(UniformPlan(num_stages, strategy, split) for split in fitting):
                    yield plans


class UniformSearch:
    """Finds uniform plans of one problem; it has state because spaces share plans, and plans the costs of layers."""

    def __init__(self, problem: PlanningProblem, prices: PriceList) -> None:
        self._problem = problem
        self._prices = prices
        self._layers = families.layers(problem.model)
        self._distinct = tuple(dict.fromkeys(self._layers))
        self._kinds = [self._distinct.index(layer) for layer in self._layers]
        self._costs: dict[tuple[LayerStrategy, int], _Costs] = {}
        self._fitted: dict[UniformPlan, Candidate | None] = {}

    def fastest(self, plans: Iterable[UniformPlan]) -> Candidate | None:
        """Find the plan with the highest throughput among those that fit."""
        best, seconds = None, float("inf")
        for bound, plan in sorted(((self._least_seconds(plan), plan) for plan in plans), key=lambda one: one[0]):
            if bound >= seconds:
                break
            found = self._fit(plan)
            if found is not None and seconds_per_sample(found) < seconds:
                best, seconds = found, seconds_per_sample(found)
        return best

    def smallest_peak(self, groups: Iterable[Sequence[UniformPlan]]) -> int | None:
        """Find the least device memory, reserve included, with which a plan fits; every group has one strategy."""
        frugal = chain.from_iterable(_frugal(group, self._problem.limits.schedule) for group in groups)
        least: int | None = None
        for bound, plan in sorted(((self._least_bytes(plan), plan) for plan in frugal), key=lambda one: one[0]):
            if least is not None and bound >= least:
                break
            memory = self._memory_of(plan)
            if least is not None and not memory.fits(least - 1):
                continue
            cut = lightest_cut(memory.stages())
            if cut is not None:
                costs = stage_costs(self._prices, self._problem, self._stages(plan, cut), plan.split)
                peak = max(cost.peak_bytes for cost in costs)
                least = peak if least is None else min(least, peak)
        return None if least is None else least + self._problem.profile.reserve_bytes

    def _fit(self, plan: UniformPlan) -> Candidate | None:
        if plan not in self._fitted:
            self._fitted[plan] = self._fastest_cut(plan)
        return self._fitted[plan]

    def _fastest_cut(self, plan: UniformPlan) -> Candidate | None:
        budget = self._problem.cluster.device_memory_bytes
        room = budget - self._problem.profile.reserve_bytes
        if self._least_bytes(plan) > room:
            return None
        memory = self._memory_of(plan)
        if not memory.fits(room):
            return None
        costs, m = self._costs_of(plan), plan.split.num_micro_batches
        seconds = between(m * costs.pass_seconds + costs.once_seconds)
        cut = lightest_cut(np.where(stage <= room, seconds, np.inf) for stage in memory.stages())
        if cut is None:
            return None
        stages = self._stages(plan, cut)
        priced = price_step(self._prices, self._problem, stages, plan.split)
        return Candidate(plan.split, stages, priced) if priced.peak_bytes <= budget else None

    def _stages(self, plan: UniformPlan, cut: Cut) -> StageStrategies:
        chosen = [_on(layer, plan.strategy) for layer in self._layers]
        return tuple(tuple(chosen[start:end]) for start, end in pairwise(cut))

    def _least_seconds(self, plan: UniformPlan) -> float:
        """Bound seconds per sample: a stage does its share of all passes, and a micro-batch makes them all."""
        passes = float(self._costs_of(plan).pass_seconds[-1])
        share = passes * max(1.0, plan.split.num_micro_batches / plan.num_stages) * (1 - 1e-12)
        return (share + self._problem.profile.step_overhead_seconds) / plan.split.global_batch_size

    def _least_bytes(self, plan: UniformPlan) -> float:
        """Bound the peak: a stage holds its share of all state, and activations of one micro-batch."""
        costs = self._costs_of(plan)
        kept = costs.state_bytes[-1] + costs.activation_bytes[-1]
        if plan.split.num_micro_batches == 1:
            kept -= costs.reused_bytes[-1]
        working = costs.working_bytes.max() if plan.num_stages == 1 else costs.working_bytes.min()
        return float(kept) / plan.num_stages + float(working)

    def _memory_of(self, plan: UniformPlan) -> "_Memory":
        costs = self._costs_of(plan)
        num_layers = len(self._layers)
        working = np.triu(np.broadcast_to(costs.working_bytes, (num_layers, num_layers)))
        working = np.pad(np.maximum.accumulate(working, axis=1), ((0, 1), (1, 0)))
        handed_on = np.concatenate([[0.0], costs.exit_bytes])
        counts = (
            in_flight(
                self._problem.limits.schedule,
                stage_index=index,
                num_stages=plan.num_stages,
                num_micro_batches=plan.split.num_micro_batches,
            )
            for index in range(plan.num_stages)
        )
        return _Memory(
            fixed=between(costs.state_bytes) + working + handed_on[:, None],
            per_micro_batch=costs.activation_bytes[None, :] - costs.activation_bytes[:, None],
            reused=costs.reused_bytes[None, :] - costs.reused_bytes[:, None],
            handed_on=handed_on,
            counts=tuple(counts),
            num_micro_batches=plan.split.num_micro_batches,
        )

    def _costs_of(self, plan: UniformPlan) -> _Costs:
        key = plan.strategy, plan.split.micro_batch_size
        if key not in self._costs:
            self._costs[key] = self._add_up(*key)
        return self._costs[key]

    def _add_up(self, strategy: LayerStrategy, micro_batch_size: int) -> _Costs:
        costs = {layer: self._prices.layer(layer, _on(layer, strategy), micro_batch_size) for layer in self._distinct}
        num_slices = strategy.layout.num_slices
        leaving = {layer: self._prices.leaving_bytes(layer, micro_batch_size) // num_slices for layer in costs}
        each = np.array(
            [
                (
                    cost.forward_seconds + cost.backward_seconds,
                    cost.sync_seconds + cost.optimizer_seconds,
                    cost.state_bytes,
                    cost.activation_bytes,
                    cost.reused_bytes,
                    cost.transient_bytes,
                    cost.gathered_bytes,
                    leaving[layer],
                )
                for layer, cost in costs.items()
            ],
            dtype=np.float64,
        )[self._kinds]
        sums = np.concatenate([np.zeros((1, 5)), np.cumsum(each[:, :5], axis=0)])
        ahead = np.concatenate([[0.0], each[:-1, 6]])
        passes, once, states, activations, reused = sums.T
        return _Costs(passes, once, states, activations, reused, each[:, 5] + ahead, each[:, 7])


def _strategies(num_devices: int) -> Iterator[LayerStrategy]:
    """List the strategies of at most one data and one tensor axis, in both orders, with and without checkpointing."""
    for exponent in range(num_devices.bit_length()):
        degrees = (num_devices >> exponent, 1 << exponent)
        for data in (Dimension.DATA, Dimension.SHARDED_GRADIENTS, Dimension.SHARDED_DATA):
            axes = [Axis(one, n) for one, n in zip((data, Dimension.TENSOR), degrees, strict=True) if n > 1]
            if degrees[0] == 1 and data is not Dimension.DATA:
                continue
            for ordered in dict.fromkeys((tuple(axes), tuple(reversed(axes)))):
                yield from (LayerStrategy(ordered, checkpoint) for checkpoint in (False, True))


def _on(layer: LayerSpec, strategy: LayerStrategy) -> LayerStrategy:
    """Leave out checkpointing where the layer refuses it."""
    return strategy if refusal(layer, strategy) is None else LayerStrategy(strategy.axes)


def _admitted(limits: SearchLimits, layer: LayerSpec, strategy: LayerStrategy) -> bool:
    return not any(rule.removes(layer, strategy, limits) for rule in space.PRUNING_RULES)


def _frugal(plans: Sequence[UniformPlan], schedule: Schedule) -> Iterator[UniformPlan]:
    """Leave out plans of one strategy where another has smaller micro-batches, or as small ones, and no more of them.

    Larger ones are worth a look only where fewer are in flight for it, or none is left to come when gradients do.
    """
    fewest: int | None = None
    for plan in sorted(plans, key=lambda one: (one.split.micro_batch_size, one.split.num_micro_batches)):
        number = plan.split.num_micro_batches
        is_queueing = schedule is Schedule.ONE_F_ONE_B and number > plan.num_stages
        if fewest is None or (number < fewest and not is_queueing):
            fewest = number
            yield plan
