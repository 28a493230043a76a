"""The stage search: the fastest strategies of consecutive layers under a memory budget, exactly.

Peak memory is what all layers keep plus the working memory of the largest. The search branches on the latter: below a
cap on working memory only the sum is left to watch, which the Pareto fronts of ``front.py`` do. Ranges of caps whose
lower bound is not below the best choice known are never looked into.
"""

import heapq
from dataclasses import dataclass

import numpy as np

from galvatron_planner.search.bound import Guide, StageBounds, guide, memory_prices
from galvatron_planner.search.front import ROUNDING, Limits, fastest_choice
from galvatron_planner.search.graph import Kinds, StageGraph, StageTask
from galvatron_planner.search.options import Flags, Floats, Integers, PipelineOptions
from galvatron_planner.strategy import LayerStrategy, Layout

NUM_BISECTIONS = 8
LEAF_CAPS = 8
"""Neighbouring caps that are searched together: more make weaker bounds, fewer make more searches."""


@dataclass(frozen=True, slots=True)
class StageChoice:
    """Strategies for one stage.

    Attributes:
        strategies: one a layer.
        seconds: of the whole step: all micro-batches, gradient reduction that sticks out, optimizer.
        peak_bytes: without the reserve.
    """

    strategies: tuple[LayerStrategy, ...]
    seconds: float
    peak_bytes: int


@dataclass(frozen=True, slots=True)
class _Path:
    """One option a layer, and what they come to together."""

    choices: tuple[int, ...]
    seconds: float
    peak_bytes: int


class StageSearch:
    """Optimal strategies of the stages of one position; it has state because equal stages are solved once."""

    def __init__(self, options: PipelineOptions, task: StageTask) -> None:
        self._graph = StageGraph(options, task)
        self._bounds = StageBounds(self._graph)
        self._prices = memory_prices(options, task.in_flight)
        self._bounded: dict[Kinds, Floats] = {}
        self._solved: dict[tuple[Kinds, Layout | None], StageChoice | None] = {}

    @property
    def exits(self) -> tuple[Layout | None, ...]:
        """Layouts in which the stage can leave; None alone on the last stage."""
        return self._graph.exits

    def lower_bounds(self, kinds: Kinds) -> Floats:
        """Bound the seconds of a stage from below, per exit."""
        if kinds not in self._bounded:
            self._bounded[kinds] = self._bounds.seconds(kinds)
        return self._bounded[kinds]

    def best(self, kinds: Kinds, exit_layout: Layout | None) -> StageChoice | None:
        """Find the fastest choice that fits and leaves in ``exit_layout`` (None on the last stage), if there is one."""
        key = (kinds, exit_layout)
        if key not in self._solved:
            path = _Solver(self._graph, kinds, self._graph.leaves_in(exit_layout), self._prices).solve()
            self._solved[key] = None if path is None else self._choice(kinds, path)
        return self._solved[key]

    def smallest_peak(self, kinds: Kinds, exit_layout: Layout | None) -> int | None:
        """Find the least device memory that any choice needs, without the reserve."""
        leaves = self._graph.leaves_in(exit_layout)
        peaks = []
        for cap in self._graph.caps(kinds):
            least = guide(self._graph, kinds, leaves, prices=np.zeros(1), cap=int(cap)).least_total
            if np.isfinite(least):
                peaks.append(int(least) + int(cap))
        return min(peaks, default=None)

    def _choice(self, kinds: Kinds, path: _Path) -> StageChoice:
        layers = self._graph.options.layers
        strategies = (layers[kind].strategies[choice] for kind, choice in zip(kinds, path.choices, strict=True))
        return StageChoice(tuple(strategies), path.seconds, path.peak_bytes)


class _Solver:
    """One stage; it has state because the best choice seen decides what is still looked into."""

    def __init__(self, graph: StageGraph, kinds: Kinds, leaves: Flags, prices: Floats) -> None:
        self._graph = graph
        self._kinds = kinds
        self._leaves = leaves
        self._prices = prices
        self._best: _Path | None = None
        self._around: tuple[float, float] | None = None

    def solve(self) -> _Path | None:
        """Branch on ranges of caps, the one with the lowest bound first."""
        caps = self._graph.caps(self._kinds)
        if len(caps) == 0 or not self._leaves.any():
            return None
        everything = self._follow(self._guide(np.zeros(1), int(caps[-1])))
        if everything is None or self._fits(everything):
            return everything
        queue = [(self._bound(caps, 0, len(caps) - 1), 0, len(caps) - 1)]
        while queue and queue[0][0] < self._cutoff * (1 - ROUNDING):
            _, low, high = heapq.heappop(queue)
            if high - low < LEAF_CAPS:
                self._search_between(int(caps[low]), int(caps[high]))
                continue
            middle = (low + high) // 2
            for part in ((low, middle), (middle + 1, high)):
                heapq.heappush(queue, (self._bound(caps, *part), *part))
        return self._best

    @property
    def _cutoff(self) -> float:
        return float("inf") if self._best is None else self._best.seconds

    def _room(self, cap: int) -> int:
        return self._graph.task.budget_bytes - cap

    def _guide(self, prices: Floats, cap: int) -> Guide:
        return guide(self._graph, self._kinds, self._leaves, prices=prices, cap=cap)

    def _bound(self, caps: Integers, low: int, high: int) -> float:
        """Bound choices whose working memory lies in a range: every option up to its end, charged with its start."""
        return self._guide(self._prices, int(caps[high])).seconds(self._room(int(caps[low])))

    def _search_between(self, least: int, most: int) -> None:
        if self._around is None:
            self._around = self._search_price(most)
        along = self._guide(np.array([0.0, *self._around]), most)
        if along.seconds(self._room(least)) > self._cutoff * (1 + ROUNDING):
            return
        limits = Limits(most, least, self._room(0), self._cutoff)
        choices = fastest_choice(self._graph, self._kinds, self._leaves, along=along, limits=limits)
        if choices is not None:
            self._offer(self._path(choices))

    def _search_price(self, cap: int) -> tuple[float, float]:
        """Bisect the memory price at which the cheapest choice begins to fit, and offer mixtures of both sides.

        Returns:
            the prices on both sides.
        """
        low, high = 0.0, float(self._prices[-1])
        along = self._guide(self._prices, cap)
        for index, price in enumerate(self._prices):
            path = self._follow(along, index)
            if path is not None and self._fits(path):
                self._offer(path)
                high = float(price)
                break
            low = float(price)
        for _ in range(NUM_BISECTIONS):
            middle = (low + high) / 2
            path = self._cheapest_at(middle, cap)
            fits = path is not None and self._fits(path)
            low, high = (low, middle) if fits else (middle, high)
            self._offer(path)
        cheap, frugal = self._cheapest_at(low, cap), self._cheapest_at(high, cap)
        if cheap is not None and frugal is not None:
            for length in range(len(self._kinds) + 1):
                self._offer(self._path([*cheap.choices[:length], *frugal.choices[length:]]))
                self._offer(self._path([*frugal.choices[:length], *cheap.choices[length:]]))
        return low, high

    def _cheapest_at(self, price: float, cap: int) -> _Path | None:
        return self._follow(self._guide(np.array([price]), cap))

    def _fits(self, path: _Path) -> bool:
        return path.peak_bytes <= self._graph.task.budget_bytes

    def _offer(self, path: _Path | None) -> None:
        if path is not None and self._fits(path) and path.seconds < self._cutoff:
            self._best = path

    def _follow(self, along: Guide, price_index: int = 0) -> _Path | None:
        """Walk the cheapest way at one of the guide's memory prices."""
        price, cap = float(along.prices[price_index]), along.cap
        state, choices = 0, []
        for edges, to_go in zip(self._graph.path(self._kinds), along.to_go, strict=True):
            paid = edges.seconds[state] + price * edges.kept + to_go[price_index, edges.state]
            paid = np.where(edges.working[state] <= cap, paid, np.inf)
            choice = int(np.argmin(paid))
            if not np.isfinite(paid[choice]):
                return None
            choices.append(choice)
            state = int(edges.state[choice])
        return self._path(choices)

    def _path(self, choices: list[int]) -> _Path:
        """Add up one option a layer."""
        seconds, kept, working, state = 0.0, 0, 0, 0
        for edges, choice in zip(self._graph.path(self._kinds), choices, strict=True):
            seconds += float(edges.seconds[state, choice])
            kept += int(edges.kept[choice])
            working = max(working, int(edges.working[state, choice]))
            state = int(edges.state[choice])
        return _Path(tuple(choices), seconds, kept + working + int(self._graph.exit_bytes[state]))
