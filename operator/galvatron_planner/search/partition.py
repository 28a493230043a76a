"""Layers to stages: which cuts of the model are worth solving, and the best plan of one pipeline degree.

A *skeleton* fixes where the model is cut and in which layout each stage leaves; the stages are then independent and
solved exactly. Where skeletons are few, all whose bound is low enough are solved. Otherwise the search starts from the
memory-balanced, the time-balanced and the bound's own cut and moves one boundary layer at a time.

Source of the balanced starts and the moves: Galvatron-BMW (arXiv 2307.02031), section 4.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, pairwise, product
from math import comb

import numpy as np

from galvatron_planner.cost.pipeline import in_flight
from galvatron_planner.cost.prices import PriceList
from galvatron_planner.cost.step import BatchSplit, StageStrategies, price_step
from galvatron_planner.plan import Estimate
from galvatron_planner.problem import PlanningProblem
from galvatron_planner.search.front import ROUNDING
from galvatron_planner.search.graph import StageTask
from galvatron_planner.search.options import Floats, PipelineOptions
from galvatron_planner.search.stage import StageSearch
from galvatron_planner.strategy import Layout

MAX_SKELETONS = 300
"""Up to this many are all considered."""
MAX_EXITS = 16
"""Up to this many combinations of layouts between stages are considered for one cut while moving."""

INFINITE = float("inf")

Cut = tuple[int, ...]
"""Indices at which the model is cut: first layer of every stage, and the number of layers at the end."""


@dataclass(frozen=True, slots=True)
class Skeleton:
    """Where the model is cut, and how each stage leaves (None on the last)."""

    cut: Cut
    exits: tuple[Layout | None, ...]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A complete choice for one batch split and pipeline degree."""

    split: BatchSplit
    stages: StageStrategies
    estimate: Estimate


class PartitionSearch:
    """The best plan of one pipeline degree and batch split; it has state because cuts share their stages."""

    def __init__(
        self,
        problem: PlanningProblem,
        prices: PriceList,
        options: PipelineOptions,
        *,
        split: BatchSplit,
        num_stages: int,
    ) -> None:
        self._problem = problem
        self._prices = prices
        self._options = options
        self._split = split
        self._num_stages = num_stages
        self._num_layers = len(options.kinds)
        self._searches: dict[StageTask, StageSearch] = {}
        self._tried: dict[Skeleton, Candidate | None] = {}
        self._ahead = _WorkAhead(options)

    @property
    def is_exhaustive(self) -> bool:
        """Tell whether every skeleton is considered, not only those that moves reach."""
        exits = len(self._options.distinct_layouts) ** (self._num_stages - 1)
        num_skeletons: int = comb(self._num_layers - 1, self._num_stages - 1) * exits
        return num_skeletons <= MAX_SKELETONS

    def lower_bound_seconds(self) -> float:
        """Bound the step of every plan of this degree and split from below; infinite where none can fit."""
        return self._promising[0] + self._problem.profile.step_overhead_seconds

    @cached_property
    def _promising(self) -> tuple[float, Skeleton | None]:
        return self._best_skeleton(self._bound)

    def best(self, cutoff_seconds: float) -> Candidate | None:
        """Find the fastest plan, if there is one that is faster than the cutoff."""
        if not self.is_exhaustive:
            return self._best_by_moves(cutoff_seconds)
        best = None
        for bound, skeleton in self._all_skeletons():
            if bound + self._problem.profile.step_overhead_seconds >= cutoff_seconds:
                break
            solved = self._solve(skeleton)
            if solved is not None and solved.estimate.step_seconds < cutoff_seconds:
                best, cutoff_seconds = solved, solved.estimate.step_seconds
        return best

    def smallest_peak(self) -> int | None:
        """Find the least device memory with which some cut fits, without the reserve."""

        def peak(stage_index: int, entry: Layout | None, start: int, end: int) -> Floats:
            search = self._search(stage_index, entry)
            kinds = self._options.kinds[start:end]
            found = [search.smallest_peak(kinds, exit_layout) for exit_layout in search.exits]
            return np.array([INFINITE if one is None else float(one) for one in found])

        smallest = self._best_skeleton(peak)[0]
        return None if smallest == INFINITE else int(smallest)

    def _search(self, stage_index: int, entry: Layout | None) -> StageSearch:
        task = StageTask(
            in_flight=in_flight(
                self._problem.limits.schedule,
                stage_index=stage_index,
                num_stages=self._num_stages,
                num_micro_batches=self._split.num_micro_batches,
            ),
            budget_bytes=self._problem.cluster.device_memory_bytes - self._problem.profile.reserve_bytes,
            entry=entry,
            feeds_next=stage_index < self._num_stages - 1,
        )
        if task not in self._searches:
            self._searches[task] = StageSearch(self._options, task)
        return self._searches[task]

    def _bound(self, stage_index: int, entry: Layout | None, start: int, end: int) -> Floats:
        stage = self._search(stage_index, entry).lower_bounds(self._options.kinds[start:end])
        return self._ahead.bound(stage, start, end)

    def _exits_of(self, stage_index: int) -> tuple[Layout | None, ...]:
        return (None,) if stage_index == self._num_stages - 1 else self._options.distinct_layouts

    def _best_skeleton(
        self, price: Callable[[int, Layout | None, int, int], Floats], cut: Cut | None = None
    ) -> tuple[float, Skeleton | None]:
        """Minimise the largest price of a stage, then the sum, over all cuts (or one) and layouts between stages."""
        reached: dict[tuple[int, Layout | None], tuple[float, float, Skeleton]] = {
            (0, None): (0.0, 0.0, Skeleton((0,), ()))
        }
        for stage_index in range(self._num_stages):
            extended: dict[tuple[int, Layout | None], tuple[float, float, Skeleton]] = {}
            for (start, entry), (largest, total, skeleton) in reached.items():
                for end in self._ends(stage_index, start, cut):
                    prices = price(stage_index, entry, start, end)
                    for exit_layout, one in zip(self._exits_of(stage_index), prices, strict=True):
                        if one == INFINITE:
                            continue
                        key = (end, exit_layout)
                        rank = (max(largest, float(one)), total + float(one))
                        if key not in extended or rank < extended[key][:2]:
                            grown = Skeleton((*skeleton.cut, end), (*skeleton.exits, exit_layout))
                            extended[key] = (*rank, grown)
            reached = extended
        if not reached:
            return INFINITE, None
        largest, _, skeleton = reached[self._num_layers, None]
        return largest, skeleton

    def _ends(self, stage_index: int, start: int, cut: Cut | None) -> range:
        if cut is not None:
            return range(cut[stage_index + 1], cut[stage_index + 1] + 1)
        if stage_index == self._num_stages - 1:
            return range(self._num_layers, self._num_layers + 1)
        return range(start + 1, self._num_layers - (self._num_stages - 1 - stage_index) + 1)

    def _all_skeletons(self) -> list[tuple[float, Skeleton]]:
        """List every skeleton with its bound, the lowest first."""
        cuts = combinations(range(1, self._num_layers), self._num_stages - 1)
        exits = list(product(self._options.distinct_layouts, repeat=self._num_stages - 1))
        skeletons = [Skeleton((0, *inner, self._num_layers), (*layouts, None)) for inner in cuts for layouts in exits]
        bounded = [(self._skeleton_bound(skeleton), skeleton) for skeleton in skeletons]
        return sorted((b for b in bounded if b[0] < INFINITE), key=lambda b: (b[0], b[1].cut))

    def _skeleton_bound(self, skeleton: Skeleton) -> float:
        bound = 0.0
        entry: Layout | None = None
        for stage_index, (start, end) in enumerate(pairwise(skeleton.cut)):
            exit_index = self._exits_of(stage_index).index(skeleton.exits[stage_index])
            bound = max(bound, float(self._bound(stage_index, entry, start, end)[exit_index]))
            entry = skeleton.exits[stage_index]
        return bound

    def _solve(self, skeleton: Skeleton) -> Candidate | None:
        if skeleton not in self._tried:
            self._tried[skeleton] = self._solve_stages(skeleton)
        return self._tried[skeleton]

    def _solve_stages(self, skeleton: Skeleton) -> Candidate | None:
        stages = []
        entry: Layout | None = None
        for stage_index, (start, end) in enumerate(pairwise(skeleton.cut)):
            exit_layout = skeleton.exits[stage_index]
            choice = self._search(stage_index, entry).best(self._options.kinds[start:end], exit_layout)
            if choice is None:
                return None
            stages.append(choice.strategies)
            entry = exit_layout
        strategies = tuple(stages)
        return Candidate(self._split, strategies, price_step(self._prices, self._problem, strategies, self._split))

    def _best_by_moves(self, cutoff_seconds: float) -> Candidate | None:
        best: Candidate | None = None
        for cut in dict.fromkeys(self._starts()):
            current = self._best_of_cut(cut, cutoff_seconds)
            while current is not None:
                best = _faster(best, current)
                cutoff_seconds = min(cutoff_seconds, current.estimate.step_seconds)
                current = self._best_move(current, cutoff_seconds)
        return best

    def _best_move(self, current: Candidate, cutoff_seconds: float) -> Candidate | None:
        """Move the boundary layer whose move gains most, or none."""
        found = None
        for cut in neighbours(_cut_of(current.stages)):
            moved = self._best_of_cut(cut, cutoff_seconds)
            if moved is not None:
                found = _faster(found, moved)
                cutoff_seconds = min(cutoff_seconds, moved.estimate.step_seconds)
        return found

    def _best_of_cut(self, cut: Cut, cutoff_seconds: float) -> Candidate | None:
        overhead = self._problem.profile.step_overhead_seconds
        best = None
        for skeleton in self._skeletons_of(cut):
            if self._skeleton_bound(skeleton) + overhead < cutoff_seconds:
                solved = self._solve(skeleton)
                if solved is not None and solved.estimate.step_seconds < cutoff_seconds:
                    best = _faster(best, solved)
        return best

    def _skeletons_of(self, cut: Cut) -> Iterator[Skeleton]:
        layouts = self._options.distinct_layouts
        if len(layouts) ** (self._num_stages - 1) <= MAX_EXITS:
            for exits in product(layouts, repeat=self._num_stages - 1):
                yield Skeleton(cut, (*exits, None))
            return
        _, skeleton = self._best_skeleton(self._bound, cut)
        if skeleton is not None:
            yield skeleton

    def _starts(self) -> Iterator[Cut]:
        skeleton = self._promising[1]
        if skeleton is None:
            return
        yield skeleton.cut
        layers = [self._options.layers[kind] for kind in self._options.kinds]
        yield balanced_cut([float(layer.seconds.min()) for layer in layers], self._num_stages)
        yield balanced_cut([float(layer.kept(1).min()) for layer in layers], self._num_stages)


class _WorkAhead:
    """What a stage waits for in every schedule: the stages before it, with the first and for the last micro-batch.

    Before a stage starts, one micro-batch passes forward through all earlier layers; after it has ended, the last one
    passes backward through them while the stage reduces its gradients.
    """

    def __init__(self, options: PipelineOptions) -> None:
        layers = [options.layers[kind] for kind in options.kinds]
        self._forward = _running_sum(float(layer.forward_seconds.min()) for layer in layers)
        self._backward = _running_sum(float(layer.backward_seconds.min()) for layer in layers)
        self._sync = _running_sum(float(layer.sync_seconds.max()) for layer in layers)
        self._without_sync = _running_sum(float((layer.seconds - layer.sync_seconds).min()) for layer in layers)

    def bound(self, stage: Floats, start: int, end: int) -> Floats:
        """Bound the step from the bounds of one stage's own work, per exit."""
        forward, backward = self._forward[start], self._backward[start]
        hidden = self._sync[end] - self._sync[start]
        own = self._without_sync[end] - self._without_sync[start]
        reduced = forward + stage + max(0.0, backward - hidden)
        drained = forward + own + backward
        return np.where(np.isfinite(stage), np.maximum(reduced, drained * (1 - ROUNDING)), np.inf)


def _running_sum(amounts: Iterable[float]) -> Floats:
    return np.concatenate([[0.0], np.cumsum(np.fromiter(amounts, dtype=np.float64))])


def balanced_cut(weights: list[float], num_stages: int) -> Cut:
    """Cut layers into stages so that the heaviest stage is as light as possible; of several, the first.

    Args:
        weights: per layer: seconds for the time-balanced cut, bytes for the memory-balanced one.
        num_stages: at most one a layer.
    """
    sums = np.concatenate([[0.0], np.cumsum(weights)])
    num_layers = len(weights)
    # heaviest[j]: lightest heaviest stage of the first j layers; parents[k][j]: where the k-th stage then starts.
    heaviest = sums.copy()
    parents = []
    for stage_index in range(1, num_stages):
        following = np.full(num_layers + 1, np.inf)
        parent = np.zeros(num_layers + 1, dtype=np.int64)
        for end in range(stage_index + 1, num_layers + 1):
            starts = np.arange(stage_index, end)
            costs = np.maximum(heaviest[starts], sums[end] - sums[starts])
            following[end] = costs.min()
            parent[end] = starts[costs.argmin()]
        heaviest = following
        parents.append(parent)
    cut = [num_layers]
    for parent in reversed(parents):
        cut.append(int(parent[cut[-1]]))
    return (0, *reversed(cut)) if num_stages > 1 else (0, num_layers)


def neighbours(cut: Cut) -> Iterator[Cut]:
    """Give every cut that differs by one boundary layer on the other side."""
    for index in range(1, len(cut) - 1):
        for shift in (-1, 1):
            moved = (*cut[:index], cut[index] + shift, *cut[index + 1 :])
            if moved[index - 1] < moved[index] < moved[index + 1]:
                yield moved


def _cut_of(stages: StageStrategies) -> Cut:
    return tuple(int(n) for n in np.concatenate([[0], np.cumsum([len(stage) for stage in stages])]))


def _faster(one: Candidate | None, other: Candidate | None) -> Candidate | None:
    if one is None or other is None:
        return one or other
    return other if other.estimate.step_seconds < one.estimate.step_seconds else one
