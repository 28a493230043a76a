"""The cheapest ways through a stage when memory has a price.

A price on memory (a Lagrange multiplier, in seconds per byte) turns the budget into a cost: the cheapest choice at any
price, minus the price of the whole budget, bounds the fastest choice that fits from below. Everything is a shortest
path over states (legend in ``graph.py``), so stages that start with the same layers share the work.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from galvatron_planner.search.graph import OUTSIDE, Edges, Kinds, StageGraph, StageTask
from galvatron_planner.search.options import Flags, Floats, Integers, LayerOptions, PipelineOptions

MAX_PRICES = 14
"""Memory prices tried, besides zero."""


def memory_prices(options: PipelineOptions, task: StageTask) -> Floats:
    """Choose the memory prices to try, (M,): zero, and where layers exchange one strategy for another.

    For equal layers in one layout these are the only prices at which the cheapest choice changes.
    """
    rates = np.unique([rate for layer in options.layers for rate in _exchange_rates(layer, task)])
    if len(rates) > MAX_PRICES:
        rates = rates[np.linspace(0, len(rates) - 1, MAX_PRICES).round().astype(int)]
    return np.concatenate([[0.0], rates])


def _exchange_rates(layer: LayerOptions, task: StageTask) -> Iterator[float]:
    """Give the slopes of the lower hull of seconds over bytes kept, of all options and of each layout's."""
    seconds, kept = np.array(task.weights) @ layer.seconds, layer.kept(task.in_flight)
    yield from _hull_rates(seconds, kept)
    for state in np.unique(layer.state):
        among = layer.state == state
        yield from _hull_rates(seconds[among], kept[among])


def _hull_rates(seconds: Floats, kept: Integers) -> Iterator[float]:
    at = int(np.lexsort((kept, seconds))[0])
    while True:
        lighter = np.flatnonzero(kept < kept[at])
        if len(lighter) == 0:
            return
        rates = (seconds[lighter] - seconds[at]) / (kept[at] - kept[lighter])
        best = int(rates.argmin())
        if rates[best] > 0:
            yield float(rates[best])
        at = int(lighter[best])


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
    exits = graph.exit_bytes(kinds[-1]).astype(np.float64)
    to_go = [np.where(leaves[None, :], prices[:, None] * exits[None, :], np.inf)]
    least = [np.where(leaves, exits, np.inf)]
    weights: dict[tuple[int, int], tuple[Floats, Floats]] = {}
    for pair in reversed(list(pairwise((OUTSIDE, *kinds)))):
        if pair not in weights:
            edges = graph.edges[pair]
            weights[pair] = paid_seconds(edges, prices, cap), kept_bytes(edges, cap)
        paid, kept = weights[pair]
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
