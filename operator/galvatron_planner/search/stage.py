"""The stage search: the fastest strategies of consecutive layers under a memory budget, exactly.

Peak memory is what all layers keep plus the working memory of the largest. The search branches on the latter: below a
cap on working memory only the sum is left to watch, which the Pareto fronts of ``front.py`` do. Ranges of caps whose
lower bound is not below the best choice known are never looked into.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from galvatron_planner.search.front import ROUNDING, Limits, fastest_choice
from galvatron_planner.search.graph import Kinds, StageGraph
from galvatron_planner.search.guide import Guide, guide, memory_prices
from galvatron_planner.search.options import Flags, Floats, Integers
from galvatron_planner.strategy import LayerStrategy, Layout

NUM_ROUNDS = 2
"""How often the memory price at which choices begin to fit is narrowed down."""
NUM_STEPS = 10
"""Prices tried at once, after the first round."""
NUM_PARTS = 6
"""Parts into which a range of caps is split."""
FIRST_CAPS = 4
"""Caps of lowest bound that are searched first: what they give rules out most of the others."""
MAX_CAPS = 32
"""Caps that are searched at once."""


@dataclass(frozen=True, slots=True)
class StageChoice:
    """Strategies for one stage.

    Attributes:
        strategies: one a layer.
        seconds: weighted as the task says.
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
    """Optimal strategies of the stages of one task; it has state because equal stages are solved once."""

    def __init__(self, graph: StageGraph) -> None:
        self._graph = graph
        self._solved: dict[tuple[Kinds, Layout | None], tuple[StageChoice | None, float]] = {}
        self._glanced: dict[tuple[Kinds, Layout | None], StageChoice | None] = {}

    @cached_property
    def _prices(self) -> Floats:
        """Choose the memory prices to try: between the exchange rates of equal layers the cheapest choice is one."""
        rates = memory_prices(self._graph.options, self._graph.task)[1:]
        return np.concatenate([[0.0], rates[:1] / 2, np.sqrt(rates[1:] * rates[:-1]), rates[-1:] * 2])

    def best(
        self, kinds: Kinds, exit_layout: Layout | None, cutoff_seconds: float = float("inf")
    ) -> StageChoice | None:
        """Find the fastest choice that fits and leaves in ``exit_layout`` (None on the last stage).

        Returns:
            the choice, or None when there is none that is faster than the cutoff.
        """
        key = (kinds, exit_layout)
        choice, searched = self._solved.get(key, (None, 0.0))
        if choice is None and searched < cutoff_seconds:
            path = self._solver(kinds, exit_layout, cutoff_seconds).solve()
            choice = None if path is None else self._choice(kinds, path)
            self._solved[key] = choice, cutoff_seconds
        return choice

    def glance(self, kinds: Kinds, exit_layout: Layout | None) -> StageChoice | None:
        """Find a good choice that fits, quickly."""
        choice, _ = self._solved.get((kinds, exit_layout), (None, 0.0))
        if choice is None and (kinds, exit_layout) not in self._glanced:
            path = self._solver(kinds, exit_layout, float("inf")).glance()
            self._glanced[kinds, exit_layout] = None if path is None else self._choice(kinds, path)
        return choice or self._glanced[kinds, exit_layout]

    def _solver(self, kinds: Kinds, exit_layout: Layout | None, cutoff_seconds: float) -> "_Solver":
        return _Solver(self._graph, kinds, self._graph.leaves_in(exit_layout), self._prices, cutoff_seconds)

    def _choice(self, kinds: Kinds, path: _Path) -> StageChoice:
        layers = self._graph.options.layers
        strategies = (layers[kind].strategies[choice] for kind, choice in zip(kinds, path.choices, strict=True))
        return StageChoice(tuple(strategies), path.seconds, path.peak_bytes)


class _Solver:
    """One stage; it has state because the best choice seen decides what is still looked into."""

    def __init__(self, graph: StageGraph, kinds: Kinds, leaves: Flags, prices: Floats, cutoff_seconds: float) -> None:
        self._graph = graph
        self._kinds = kinds
        self._leaves = leaves
        self._prices = prices
        self._best: _Path | None = None
        self._cutoff = cutoff_seconds

    def solve(self) -> _Path | None:
        """Branch on ranges of caps, the one with the lowest bound first."""
        caps = self._graph.caps(self._kinds)
        if len(caps) == 0 or not self._leaves.any():
            return None
        everything = self._cheapest(np.zeros(1), int(caps[-1]))[0]
        if everything is None or self._fits(everything):
            return everything
        ranges = self._bounded(caps, _split(0, len(caps) - 1))
        prices = self._search_price(int(caps[min(ranges)[2]]))
        single: list[tuple[float, int]] = []
        while ranges:
            hopeful = [(bound, low, high) for bound, low, high in ranges if self._may_win(bound)]
            single += [(bound, low) for bound, low, high in hopeful if low == high]
            parts = [part for _, low, high in hopeful if low < high for part in _split(low, high)]
            ranges = self._bounded(caps, parts) if parts else []
        single.sort()
        start, number = 0, FIRST_CAPS
        while start < len(single) and self._may_win(single[start][0]):
            chosen = sorted(index for bound, index in single[start : start + number] if self._may_win(bound))
            self._search_below(caps[chosen], prices)
            start, number = start + number, MAX_CAPS
        return self._best

    def glance(self) -> _Path | None:
        """Try the memory prices only, with the most promising cap."""
        caps = self._graph.caps(self._kinds)
        if len(caps) and self._leaves.any():
            _, _, high = min(self._bounded(caps, _split(0, len(caps) - 1)))
            self._search_price(int(caps[high]))
        return self._best

    def _guide(self, prices: Floats, cap: int) -> Guide:
        return guide(self._graph, self._kinds, self._leaves, prices=prices, caps=np.full(len(prices), cap))

    def _bounded(self, caps: Integers, ranges: Sequence[tuple[int, int]]) -> list[tuple[float, int, int]]:
        """Bound choices whose working memory lies in ranges: every option up to an end, charged with the start."""
        most, least = (np.repeat([caps[one[end]] for one in ranges], len(self._prices)) for end in (1, 0))
        prices = np.tile(self._prices, len(ranges))
        along = guide(self._graph, self._kinds, self._leaves, prices=prices, caps=most)
        bounds = along.bounds(self._graph.task.budget_bytes - least.astype(np.float64))
        best = bounds.reshape(len(ranges), -1).max(axis=1)
        return [(float(bound), low, high) for bound, (low, high) in zip(best, ranges, strict=True)]

    def _may_win(self, bound: float) -> bool:
        return bound < self._cutoff * (1 - ROUNDING)

    def _search_below(self, caps: Integers, around: tuple[float, float]) -> None:
        """Find the fastest choice below any of the caps, rising, with the help of the prices around the budget."""
        prices = np.array([0.0, *around])
        along = guide(
            self._graph,
            self._kinds,
            self._leaves,
            prices=np.tile(prices, len(caps)),
            caps=np.repeat(caps, len(prices)),
        )
        limits = Limits(caps, self._graph.task.budget_bytes - caps, self._cutoff)
        choices = fastest_choice(self._graph, self._kinds, self._leaves, along=along, limits=limits)
        if choices is not None:
            self._offer(self._path(choices))

    def _search_price(self, cap: int) -> tuple[float, float]:
        """Narrow down the memory price at which the cheapest choice begins to fit, and offer mixtures of both sides.

        Returns:
            the prices on both sides.
        """
        prices, cheap, frugal = self._prices, None, None
        for _ in range(NUM_ROUNDS):
            paths = self._cheapest(prices, cap)
            fits = [path is not None and self._fits(path) for path in paths]
            first = fits.index(True) if True in fits else len(fits) - 1
            frugal = paths[first]
            self._offer(frugal)
            low, high = float(prices[max(first - 1, 0)]), float(prices[first])
            cheap = paths[max(first - 1, 0)]
            prices = np.linspace(low, high, NUM_STEPS)
        if cheap is not None and frugal is not None:
            self._offer(self._mixture(cheap, frugal))
            self._offer(self._mixture(frugal, cheap))
        return low, high

    def _mixture(self, one: _Path, other: _Path) -> _Path | None:
        """Find the fastest way that begins as one path, ends as the other, and fits."""
        path = self._graph.path(self._kinds)
        first, second = self._steps(one.choices), self._steps(other.choices)
        joints = np.zeros((len(path), 2))
        for index in range(1, len(path)):
            state, choice = int(path[index - 1].state[one.choices[index - 1]]), other.choices[index]
            joints[index] = path[index].seconds[state, choice], path[index].working[state, choice]
        lengths = np.arange(1, len(path))
        if len(lengths) == 0:
            return None
        seconds = np.cumsum(first[:, 0])[lengths - 1] + joints[lengths, 0]
        seconds = seconds + np.append(np.cumsum(second[::-1, 0])[::-1], 0.0)[lengths + 1]
        kept = np.cumsum(first[:, 1])[lengths - 1] + np.cumsum(second[::-1, 1])[::-1][lengths]
        working = np.maximum(np.maximum.accumulate(first[:, 2])[lengths - 1], joints[lengths, 1])
        working = np.maximum(working, np.append(np.maximum.accumulate(second[::-1, 2])[::-1], 0.0)[lengths + 1])
        exit_bytes = self._graph.exit_bytes(self._kinds[-1])[int(path[-1].state[other.choices[-1]])]
        fits = kept + working + exit_bytes <= self._graph.task.budget_bytes
        if not fits.any():
            return None
        length = int(lengths[np.where(fits, seconds, np.inf).argmin()])
        return self._path([*one.choices[:length], *other.choices[length:]])

    def _steps(self, choices: Sequence[int]) -> Floats:
        """List seconds, bytes kept and working memory of every layer of a path, (layers, 3)."""
        steps, state = [], 0
        for edges, choice in zip(self._graph.path(self._kinds), choices, strict=True):
            steps.append((edges.seconds[state, choice], edges.kept[choice], edges.working[state, choice]))
            state = int(edges.state[choice])
        return np.array(steps, dtype=np.float64)

    def _fits(self, path: _Path) -> bool:
        return path.peak_bytes <= self._graph.task.budget_bytes

    def _offer(self, path: _Path | None) -> None:
        if path is not None and self._fits(path) and path.seconds < self._cutoff:
            self._best, self._cutoff = path, path.seconds

    def _cheapest(self, prices: Floats, cap: int) -> list[_Path | None]:
        """Walk the cheapest way at every memory price."""
        along, paths = self._guide(prices, cap), self._graph.path(self._kinds)
        distinct = {id(edges): edges for edges in paths}
        allowed = {key: np.where(edges.working <= cap, edges.seconds, np.inf) for key, edges in distinct.items()}
        priced = {key: prices[:, None] * edges.kept for key, edges in distinct.items()}
        state = working = kept = np.zeros(len(prices), dtype=np.int64)
        seconds, choices = np.zeros(len(prices)), []
        for edges, to_go in zip(paths, along.to_go, strict=True):
            paid = allowed[id(edges)][state] + priced[id(edges)] + to_go[:, edges.state]
            choice = paid.argmin(axis=1)
            choices.append(choice)
            seconds = seconds + edges.seconds[state, choice]
            kept, working = kept + edges.kept[choice], np.maximum(working, edges.working[state, choice])
            state = edges.state[choice]
        peaks = kept + working + self._graph.exit_bytes(self._kinds[-1])[state]
        return [
            _Path(tuple(way.tolist()), float(own), int(peak)) if np.isfinite(total) else None
            for way, own, peak, total in zip(np.array(choices).T, seconds, peaks, along.total, strict=True)
        ]

    def _path(self, choices: list[int]) -> _Path:
        """Add up one option a layer."""
        seconds, kept, working, state = 0.0, 0, 0, 0
        for edges, choice in zip(self._graph.path(self._kinds), choices, strict=True):
            seconds += float(edges.seconds[state, choice])
            kept += int(edges.kept[choice])
            working = max(working, int(edges.working[state, choice]))
            state = int(edges.state[choice])
        return _Path(tuple(choices), seconds, kept + working + int(self._graph.exit_bytes(self._kinds[-1])[state]))


def _split(low: int, high: int) -> list[tuple[int, int]]:
    """Split a range into as many equal parts as are bounded together."""
    parts = np.array_split(np.arange(low, high + 1), NUM_PARTS)
    return [(int(part[0]), int(part[-1])) for part in parts if len(part)]
