"""Lower bounds: no choice of strategies is faster than these, whatever it does about memory.

A price on memory (a Lagrange multiplier, in seconds per byte) turns the budget into a cost: the cheapest choice at any
price, minus the price of the whole budget, bounds the fastest choice that fits from below. Everything is a shortest
path over states (legend in ``graph.py``), so stages that start with the same layers share the work.
"""

from dataclasses import dataclass

import numpy as np

from galvatron_planner.search.graph import Edges, Kinds, StageGraph
from galvatron_planner.search.options import Flags, Floats, Integers, PipelineOptions

NUM_PRICES = 13
"""Memory prices tried, besides zero: powers of two around the exchange rate of time and memory of the layers."""


def memory_prices(options: PipelineOptions, in_flight: int) -> Floats:
    """Choose the memory prices to try, (M,): zero, and powers of two around the layers' own exchange rate."""
    rates = []
    for layer in options.layers:
        seconds, kept = float(np.ptp(layer.seconds)), float(np.ptp(layer.kept(in_flight)))
        if seconds > 0 and kept > 0:
            rates.append(seconds / kept)
    if not rates:
        return np.zeros(1)
    middle = float(np.median(rates))
    return np.array([0.0, *(middle * 2.0 ** (k - NUM_PRICES // 2) for k in range(NUM_PRICES))])


@dataclass(frozen=True, slots=True)
class Guide:
    """Cheapest ways to the end of a stage: what a way to its first layers at least has ahead of it.

    Attributes:
        cap: working memory that the ways keep to.
        prices: memory prices, (M,).
        to_go: per number of layers done from 1 on, paid seconds from each state to the end, (M, S).
        total: paid seconds of the whole stage, (M,).
        least_kept: per number of layers done from 1 on, least bytes that the rest keeps, (S,).
        least_total: least bytes that the whole stage keeps.
    """

    cap: int
    prices: Floats
    to_go: tuple[Floats, ...]
    total: Floats
    least_kept: tuple[Floats, ...]
    least_total: float

    def seconds(self, room: float) -> float:
        """Bound the seconds of a stage whose layers may keep ``room`` bytes; infinite when they cannot."""
        if self.least_total > room:
            return float("inf")
        return float((self.total - self.prices * room).max())


def guide(graph: StageGraph, kinds: Kinds, leaves: Flags, *, prices: Floats, cap: int) -> Guide:
    """Find the cheapest ways to the end at every price, with working memory of at most ``cap`` bytes."""
    exits = graph.exit_bytes.astype(np.float64)
    to_go = [np.where(leaves[None, :], prices[:, None] * exits[None, :], np.inf)]
    least = [np.where(leaves, exits, np.inf)]
    path = graph.path(kinds)
    weights: dict[int, tuple[Floats, Floats]] = {}
    for edges in reversed(path):
        if id(edges) not in weights:
            weights[id(edges)] = paid_seconds(edges, prices, cap), kept_bytes(edges, cap)
        paid, kept = weights[id(edges)]
        to_go.append(np.asarray((paid + to_go[-1][:, None, :]).min(axis=2)))
        least.append(np.asarray((kept + least[-1][None, :]).min(axis=1)))
    total, least_total = to_go.pop()[:, 0], float(least.pop()[0])
    return Guide(cap, prices, tuple(reversed(to_go)), total, tuple(reversed(least)), least_total)


def paid_seconds(edges: Edges, prices: Floats, cap: int) -> Floats:
    """Price the cheapest option between any two states, (M, S, S); infinite above ``cap`` bytes of working memory."""
    paid = edges.seconds[None, :, :] + prices[:, None, None] * edges.kept[None, None, :]
    return _into_states(np.where(edges.working[None, :, :] <= cap, paid, np.inf), edges.slots)


def kept_bytes(edges: Edges, cap: int) -> Floats:
    """Give the least bytes that an option between any two states keeps, (S, S); infinite above ``cap``."""
    kept = np.where(edges.working <= cap, edges.kept[None, :].astype(np.float64), np.inf)
    return _into_states(kept, edges.slots)


def _into_states(by_option: Floats, slots: Integers) -> Floats:
    padded = np.concatenate([by_option, np.full((*by_option.shape[:-1], 1), np.inf)], axis=-1)
    return np.asarray(padded[..., slots].min(axis=-1))


NUM_CAP_GROUPS = 6


class StageBounds:
    """Lower bounds of all stages of one position; it has state because stages share their first layers.

    Working memory is whatever the largest layer takes, so it couples all layers. Choices are told apart by how much it
    is: within a group of similar amounts, every option up to the largest is allowed and the smallest is charged.
    """

    def __init__(self, graph: StageGraph) -> None:
        self._graph = graph
        self._prices = memory_prices(graph.options, graph.task.in_flight)
        caps = np.unique(np.concatenate([edges.working.ravel() for edges in graph.edges.values()]))
        self._groups = [(int(group[0]), int(group[-1])) for group in np.array_split(caps, NUM_CAP_GROUPS) if len(group)]
        self._weights: dict[tuple[int, int], tuple[Floats, Floats]] = {}
        self._values: dict[tuple[int, Kinds], tuple[Floats, Floats]] = {}

    def seconds(self, kinds: Kinds) -> Floats:
        """Bound the seconds of a stage from below, per exit of the graph; infinite where the stage cannot fit."""
        graph = self._graph
        best = np.full(len(graph.exits), np.inf)
        for group, (least, _) in enumerate(self._groups):
            room = graph.task.budget_bytes - least - graph.exit_bytes.astype(np.float64)
            paid, kept = self._value(group, kinds)
            bounds = (paid - self._prices[:, None] * room[None, :]).max(axis=0)
            bounds = np.where(kept <= room, bounds, np.inf)
            found = [bounds[graph.leaves_in(exit_layout)].min() for exit_layout in graph.exits]
            best = np.minimum(best, np.array(found))
        return best

    def _value(self, group: int, kinds: Kinds) -> tuple[Floats, Floats]:
        # From the longest prefix that is known: a loop, because models are deeper than the interpreter's stack allows.
        known = next((n for n in range(len(kinds), 0, -1) if (group, kinds[:n]) in self._values), 0)
        value = self._values[group, kinds[:known]] if known else (np.zeros((len(self._prices), 1)), np.zeros(1))
        path = self._graph.path(kinds)
        for length in range(known, len(kinds)):
            paid, kept = self._weight(group, path[length])
            value = (
                np.asarray((value[0][:, :, None] + paid).min(axis=1)),
                np.asarray((value[1][:, None] + kept).min(axis=0)),
            )
            self._values[group, kinds[: length + 1]] = value
        return value

    def _weight(self, group: int, edges: Edges) -> tuple[Floats, Floats]:
        key = (group, id(edges))
        if key not in self._weights:
            cap = self._groups[group][1]
            self._weights[key] = paid_seconds(edges, self._prices, cap), kept_bytes(edges, cap)
        return self._weights[key]
