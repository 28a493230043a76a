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
from galvatron_planner.search.options import Flags, Floats, Integers, LayerOptions, PipelineOptions, rising

MAX_PRICES = 14
"""Memory prices tried, besides zero."""


def memory_prices(options: PipelineOptions, task: StageTask) -> Floats:
    """Choose the memory prices to try, (M,): zero, and where layers exchange one strategy for another.

    For equal layers in one layout these are the only prices at which the cheapest choice changes.
    """
    rates = rising(
        np.array([rate for layer in options.layers for rate in _exchange_rates(layer, task)], dtype=np.float64)
    )
    if len(rates) > MAX_PRICES:
        rates = rates[np.linspace(0, len(rates) - 1, MAX_PRICES).round().astype(int)]
    return np.concatenate([[0.0], rates])


def _exchange_rates(layer: LayerOptions, task: StageTask) -> Iterator[float]:
    """Give the slopes of the lower hull of seconds over bytes kept, of all options and of each layout's."""
    seconds, kept = np.array(task.weights) @ layer.seconds, task.kept(layer)
    yield from _hull_rates(seconds, kept)
    for state in rising(layer.state):
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
        prices: memory prices, (M,).
        to_go: per number of layers done from 1 on, paid seconds from each state to the end, (M, S).
        total: paid seconds of the whole stage, (M,).
        least_kept: per number of layers done from 1 on, least bytes that the rest keeps below each cap, (C, S).
        least_total: least bytes that the whole stage keeps, (M,).
    """

    prices: Floats
    to_go: tuple[Floats, ...]
    total: Floats
    least_kept: tuple[Floats, ...]
    least_total: Floats

    def bounds(self, room: Floats) -> Floats:
        """Bound, at every price, a stage whose layers may keep ``room`` bytes; infinite when they cannot."""
        return np.where(self.least_total > room, np.inf, self.total - self.prices * room)


def guide(graph: StageGraph, kinds: Kinds, leaves: Flags, *, prices: Floats, caps: Integers) -> Guide:
    """Find the cheapest ways to the end at every price, with working memory of at most the cap that goes with it."""
    exits, distinct = graph.exit_bytes(kinds[-1]).astype(np.float64), rising(caps)
    to_go = [np.where(leaves, prices[:, None] * exits, np.inf)]
    least = [np.broadcast_to(np.where(leaves, exits, np.inf), (len(distinct), len(exits)))]
    weights: dict[tuple[int, int], tuple[Floats, Floats]] = {}
    for pair in reversed(list(pairwise((OUTSIDE, *kinds)))):
        if pair not in weights:
            edges = graph.edges[pair]
            weights[pair] = paid_seconds(edges, prices, caps), kept_bytes(edges, distinct)
        paid, kept = weights[pair]
        to_go.append(np.asarray((paid + to_go[-1][:, None, :]).min(axis=2)))
        least.append(np.asarray((kept + least[-1][:, None, :]).min(axis=2)))
    total, least_total = to_go.pop()[:, 0], least.pop()[:, 0][np.searchsorted(distinct, caps)]
    return Guide(prices, tuple(reversed(to_go)), total, tuple(reversed(least)), least_total)


def paid_seconds(edges: Edges, prices: Floats, caps: Integers) -> Floats:
    """Price the cheapest option between any two states, (M, S, S); infinite above the cap of each price."""
    paid = edges.seconds + prices[:, None, None] * edges.kept
    return into_states(np.where(edges.working <= caps[:, None, None], paid, np.inf), edges.slots)


def kept_bytes(edges: Edges, caps: Integers) -> Floats:
    """Give the least bytes that an option between any two states keeps within each cap, (M, S, S)."""
    kept = np.where(edges.working <= caps[:, None, None], edges.kept.astype(np.float64), np.inf)
    return into_states(kept, edges.slots)


def into_states(by_option: Floats, slots: Integers) -> Floats:
    """Take the least of the options that lead into each state, over the last axis: (..., O) to (..., S)."""
    padded = np.concatenate([by_option, np.full((*by_option.shape[:-1], 1), np.inf)], axis=-1)
    return np.asarray(padded[..., slots].min(axis=-1))
