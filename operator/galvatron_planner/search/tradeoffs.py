"""What one stage can trade for another in a pipeline: forward and backward passes, reduction, optimizer.

Which of a stage's amounts of time count is decided by the other stages: a reduction may be hidden behind the backward
passes of earlier ones, a fast stage's work behind the slowest. All choices that no other matches in every amount are
kept, as long as they can still belong to a step that is fast enough.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from galvatron_planner.search.front import ROUNDING
from galvatron_planner.search.graph import Kinds, StageGraph
from galvatron_planner.search.guide import Guide, guide, memory_prices
from galvatron_planner.search.options import Flags, Floats, Integers, rising
from galvatron_planner.strategy import LayerStrategy

MAX_CHOICES = 2000
"""Ways to run some layers that are followed at once; with more the stage stays unsolved."""
MAX_COMPARED = 4000
"""Ways that end in one state and are compared pair by pair; of more, none is left out."""
NUM_AMOUNTS = 4


@dataclass(frozen=True, slots=True)
class Ceiling:
    """What a stage may come to in one weighting of its amounts of time."""

    graph: StageGraph
    seconds: float


@dataclass(frozen=True, slots=True)
class Tradeoff:
    """One way to run a stage.

    Attributes:
        strategies: one a layer.
        amounts: forward, backward, reduction, optimizer seconds.
    """

    strategies: tuple[LayerStrategy, ...]
    amounts: tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class _Ways:
    """Ways to run the first layers: amounts of time, (W, A), bytes kept and working, state, choices (W, layers)."""

    amounts: Floats
    kept: Integers
    working: Integers
    state: Integers
    choices: Integers

    def take(self, index: Integers | Flags) -> "_Ways":
        return _Ways(self.amounts[index], self.kept[index], self.working[index], self.state[index], self.choices[index])


def tradeoffs(ceilings: Sequence[Ceiling], kinds: Kinds, leaves: Flags) -> list[Tradeoff] | None:
    """List the choices of a stage that fit, keep below every ceiling, and that no other matches.

    Args:
        ceilings: of the same task but for the weights, at least one.
        kinds: layers of the stage.
        leaves: states in which it may end, (S,).

    Returns:
        the choices, or None when there are too many to follow.
    """
    graph = ceilings[0].graph
    caps = graph.caps(kinds)
    if len(caps) == 0:
        return []
    guides = [
        guide(one.graph, kinds, leaves, prices=prices, caps=np.full(len(prices), caps[-1]))
        for one, prices in zip(
            ceilings, (memory_prices(graph.options, one.graph.task) for one in ceilings), strict=True
        )
    ]
    units = [_unit_graph(graph, index) for index in range(NUM_AMOUNTS)]
    zero = np.zeros(1, dtype=np.int64)
    ways = _Ways(np.zeros((1, NUM_AMOUNTS)), zero, zero, zero, np.zeros((1, 0), dtype=np.int64))
    for index in range(len(kinds)):
        pair = (kinds[index - 1] if index else -1, kinds[index])
        ways = _extended(ways, [unit.edges[pair].seconds for unit in units], graph, pair)
        ways = ways.take(_hopeful(ways, ceilings, guides, index))
        ways = ways.take(_undominated(ways))
        if len(ways.kept) > MAX_CHOICES:
            return None
    peaks = ways.kept + ways.working + graph.exit_bytes(kinds[-1])[ways.state]
    ways = ways.take(leaves[ways.state] & (peaks <= graph.task.budget_bytes))
    layers = [graph.options.layers[kind] for kind in kinds]
    return [
        Tradeoff(
            tuple(layer.strategies[int(choice)] for layer, choice in zip(layers, choices, strict=True)),
            (float(amounts[0]), float(amounts[1]), float(amounts[2]), float(amounts[3])),
        )
        for amounts, choices in zip(ways.amounts, ways.choices, strict=True)
    ]


def _unit_graph(graph: StageGraph, index: int) -> StageGraph:
    forward, backward, sync, optimizer = (float(index == other) for other in range(NUM_AMOUNTS))
    return StageGraph(graph.options, replace(graph.task, weights=(forward, backward, sync, optimizer)))


def _extended(ways: _Ways, seconds: Sequence[Floats], graph: StageGraph, pair: tuple[int, int]) -> _Ways:
    edges = graph.edges[pair]
    parent, choice = np.nonzero(np.ones((len(ways.kept), len(edges.kept)), dtype=bool))
    state = ways.state[parent]
    added = np.stack([one[state, choice] for one in seconds], axis=1)
    return _Ways(
        ways.amounts[parent] + added,
        ways.kept[parent] + edges.kept[choice],
        np.maximum(ways.working[parent], edges.working[state, choice]),
        edges.state[choice],
        np.concatenate([ways.choices[parent], choice[:, None]], axis=1),
    )


def _hopeful(ways: _Ways, ceilings: Sequence[Ceiling], guides: Sequence[Guide], index: int) -> Flags:
    """Tell which ways can still lead to a choice that fits and keeps below every ceiling."""
    room = (ceilings[0].graph.task.budget_bytes - ways.kept - ways.working).astype(np.float64)
    hopeful = guides[0].least_kept[index][0, ways.state] <= room
    for ceiling, along in zip(ceilings, guides, strict=True):
        ahead = (along.to_go[index][:, ways.state] - along.prices[:, None] * room[None, :]).max(axis=0)
        so_far = ways.amounts @ np.array(ceiling.graph.task.weights)
        hopeful &= so_far + ahead <= ceiling.seconds * (1 + ROUNDING)
    return np.asarray(hopeful)


def _undominated(ways: _Ways) -> Flags:
    """Keep the ways that no other of the same state matches; of equal ones the first."""
    criteria = np.column_stack([ways.amounts, ways.kept, ways.working])
    kept = np.ones(len(criteria), dtype=bool)
    order = np.lexsort(criteria.T[::-1])
    for state in rising(ways.state):
        among = order[ways.state[order] == state]
        if len(among) > MAX_COMPARED:
            continue
        # Sorted: whoever matches a way stands before it.
        matched = np.ones((len(among), len(among)), dtype=bool)
        for amounts in criteria[among].T:
            matched &= amounts[:, None] <= amounts
        kept[among] = ~np.triu(matched, k=1).any(axis=0)
    return kept
