"""Lower bounds of stages: no choice of strategies is faster than these, whatever it does about memory.

A price on memory bounds the fastest choice that fits from below (``guide.py``). Here this is done for all stages of one
place, all entries, exits and metrics at once: stages that begin with the same layers share the work.

Legend: W weightings of the amounts of time, G ranges of working memory, E entries, M prices, S states that the last
layer can be in, X exits.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from galvatron_planner.search.contents import Contents
from galvatron_planner.search.graph import OUTSIDE, Edges, StageGraph
from galvatron_planner.search.guide import kept_bytes, memory_prices, paid_seconds
from galvatron_planner.search.options import Floats, Integers, rising

NUM_CAP_GROUPS = 12
"""Ranges of working memory that are told apart."""

Value = tuple[Floats, Floats]
"""Paid seconds, (W, G, E, M, S), and least bytes kept, (G, E, S), of ways to the end of some layers."""


@dataclass(frozen=True, slots=True)
class _CapGroup:
    """A range of working memory: within it every option up to the largest is allowed, and the smallest is charged."""

    least: int
    most: int


class BoundTable:
    """Bounds of one place; it has state because options are prepared once."""

    def __init__(
        self,
        graphs: Sequence[Sequence[StageGraph]],
        contents: Contents,
        exits: Integers,
        *,
        exact_caps: bool = False,
    ) -> None:
        """Prepare the options.

        Args:
            graphs: per weighting, of the same task but for the entry: one an entry.
            contents: of the model.
            exits: in which stages may leave, rising, as indices in the options' list; not read on the last stage.
            exact_caps: whether every amount of working memory is told apart, for :meth:`peaks`.
        """
        self._graphs = graphs
        self._contents = contents
        self._task = graphs[0][0].task
        self._layers = graphs[0][0].options.layers
        self._exits = exits if self._task.feeds_next else np.zeros(1, dtype=np.int64)
        caps = rising(np.concatenate([e.working.ravel() for g in graphs[0] for e in g.edges.values()]))
        self._prices = _aligned([np.zeros(1) if exact_caps else memory_prices(g[0].options, g[0].task) for g in graphs])
        self._groups = _cap_groups(caps, len(caps) if exact_caps else NUM_CAP_GROUPS)
        self._most = np.array([group.most for group in self._groups], dtype=np.int64)
        self._least_working = _least_working(graphs[0], contents)
        self._steps: dict[tuple[int, int], Value] = {}

    def seconds(self, wanted: Integers) -> Floats:
        """Bound the seconds of stages from below, (W, stages, E, X); infinite where a stage cannot fit."""
        return self._followed(wanted, self._bound, (len(self._graphs),))

    def peaks(self, wanted: Integers) -> Floats:
        """Give the least device memory that stages need, without the reserve, (stages, E, X)."""
        return self._followed(wanted, self._peak, ())

    def _followed(self, wanted: Integers, read: Callable[[int, Value], Floats], leading: tuple[int, ...]) -> Floats:
        """Follow the stages layer by layer and read off what is wanted: (..., stages, E, X)."""
        index = {int(content): place for place, content in enumerate(wanted)}
        found = np.full((*leading, len(index), len(self._graphs[0]), len(self._exits)), np.inf)
        level: dict[int, Value] = {}
        for contents in self._levels(index):
            level = {content: self._value(content, level) for content in contents}
            for content, value in level.items():
                if content in index:
                    exits, least = self._by_exit(content, read(content, value))
                    found[..., index[content], :, exits] = np.moveaxis(least, -1, 0)
        return found

    def _levels(self, wanted: Mapping[int, int]) -> list[list[int]]:
        """List the wanted contents and their beginnings by number of layers; only one level is held at a time."""
        needed: set[int] = set()
        for content in wanted:
            one = content
            while one >= 0 and one not in needed:
                needed.add(one)
                one = self._contents.distinct[one].parent
        levels: list[list[int]] = [
            [] for _ in range(max((self._contents.distinct[c].length for c in needed), default=0))
        ]
        for content in sorted(needed):
            levels[self._contents.distinct[content].length - 1].append(content)
        return levels

    def _value(self, content: int, level: Mapping[int, Value]) -> Value:
        one = self._contents.distinct[content]
        paid, kept = self._step(one.pair)
        if one.parent < 0:
            return paid, kept
        before_paid, before_kept = level[one.parent]
        return (
            np.asarray((before_paid[..., :, None] + paid[:, :, None]).min(axis=-2)),
            np.asarray((before_kept[..., :, None] + kept[:, None]).min(axis=-2)),
        )

    def _bound(self, content: int, value: Value) -> Floats:
        """Turn what a content costs into bounds, (W, E, X)."""
        exits = self._exit_bytes(content)
        paid, kept = value
        charged = np.array([max(group.least, self._least_working[content]) for group in self._groups], dtype=np.float64)
        room = self._task.budget_bytes - charged[:, None] - exits[None, :]
        priced = self._prices[:, None, None, :, None] * room[None, :, None, None, :]
        bounds = (paid - priced).max(axis=3)
        return np.asarray(np.where(kept[None] <= room[None, :, None, :], bounds, np.inf).min(axis=1))

    def _peak(self, content: int, value: Value) -> Floats:
        caps = np.array([group.most for group in self._groups], dtype=np.float64)
        return np.asarray((value[1] + self._exit_bytes(content) + caps[:, None, None]).min(axis=0))

    def _exit_bytes(self, content: int) -> Floats:
        kind = self._contents.distinct[content].pair[1]
        return self._graphs[0][0].exit_bytes(kind)[self._layers[kind].own_states].astype(np.float64)

    def _by_exit(self, content: int, by_state: Floats) -> tuple[Integers, Floats]:
        """Take the least of the states that leave in the same layout, over the last axis; say which exits these are."""
        if not self._task.feeds_next:
            return np.zeros(1, dtype=np.int64), np.asarray(by_state.min(axis=-1, keepdims=True))
        own = self._layers[self._contents.distinct[content].pair[1]].own_states
        # States are sorted by layout: those of one exit stand together.
        exits = self._graphs[0][0].options.exit_of[own]
        leaving = np.flatnonzero(np.diff(exits, prepend=-1))
        return np.searchsorted(self._exits, exits[leaving]), np.asarray(np.minimum.reduceat(by_state, leaving, axis=-1))

    def _step(self, pair: tuple[int, int]) -> Value:
        """Price the way from one layer to the next: (W, G, M, S, S) and (G, S, S), or (W, G, E, M, S) and (G, E, S)."""
        if pair not in self._steps:
            self._steps[pair] = self._entered(pair) if pair[0] == OUTSIDE else self._passed(pair)
        return self._steps[pair]

    def _entered(self, pair: tuple[int, int]) -> Value:
        paid = [
            np.stack([self._paid(g.edges[pair], prices)[:, :, 0] for g in own], axis=1)
            for own, prices in zip(self._graphs, self._prices, strict=True)
        ]
        kept = np.stack([kept_bytes(g.edges[pair], self._most)[:, 0] for g in self._graphs[0]], axis=1)
        own = self._layers[pair[1]].own_states
        return np.array(paid)[..., own], kept[..., own]

    def _passed(self, pair: tuple[int, int]) -> Value:
        paid = [self._paid(own[0].edges[pair], prices) for own, prices in zip(self._graphs, self._prices, strict=True)]
        kept = kept_bytes(self._graphs[0][0].edges[pair], self._most)
        before, own = (self._layers[kind].own_states for kind in pair)
        return np.array(paid)[..., before, :][..., own], kept[..., before, :][..., own]

    def _paid(self, edges: Edges, prices: Floats) -> Floats:
        """Price ways within every range of working memory, (G, M, S, S)."""
        paid = paid_seconds(edges, np.tile(prices, len(self._most)), np.repeat(self._most, len(prices)))
        return paid.reshape(len(self._most), len(prices), *paid.shape[1:])


def _aligned(prices: Sequence[Floats]) -> Floats:
    """Stack lists of prices of different lengths, (W, M); the last one fills up."""
    longest = max(len(one) for one in prices)
    return np.stack([np.pad(one, (0, longest - len(one)), mode="edge") for one in prices])


def _cap_groups(caps: Integers, number: int) -> list[_CapGroup]:
    return [_CapGroup(int(group[0]), int(group[-1])) for group in np.array_split(caps, number) if len(group)]


def _least_working(graphs: Sequence[StageGraph], contents: Contents) -> list[int]:
    """Give the working memory that the largest layer of each content needs at least."""
    own = {pair: min(int(graph.edges[pair].working.min()) for graph in graphs) for pair in graphs[0].edges}
    least: list[int] = []
    for one in contents.distinct:
        least.append(max(own[one.pair], least[one.parent] if one.parent >= 0 else 0))
    return least
