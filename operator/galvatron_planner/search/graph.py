"""A stage as a graph: nodes are the states of its layers, edges are strategies with seconds, bytes and working memory.

Legend: S states, O options of one layer, M memory prices. An edge of an option leads from a state of the layer before
into the option's state; the first layer of a stage is entered from outside, by one row.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from galvatron_planner.search.options import Flags, Floats, Integers, LayerOptions, PipelineOptions, rising
from galvatron_planner.strategy import Layout

Kinds = tuple[int, ...]
"""Consecutive layers, each as its index among the distinct layers."""

OUTSIDE = -1
"""The kind before the first layer of a stage."""


@dataclass(frozen=True, slots=True)
class StageTask:
    """What a stage's strategies are chosen for.

    Attributes:
        weights: of the amounts of time in what is minimised: forward, backward, reduction, optimizer.
        in_flight: micro-batches whose activations the stage holds at most.
        holds_all: whether those are all of the step.
        budget_bytes: device memory without the reserve.
        entry: layout in which the previous stage sends, absent on the first stage.
        feeds_next: whether another stage follows.
    """

    weights: tuple[float, float, float, float]
    in_flight: int
    holds_all: bool
    budget_bytes: int
    entry: Layout | None
    feeds_next: bool

    def kept(self, layer: LayerOptions) -> Integers:
        """Bytes held by every option of a layer of the stage, (O,)."""
        return layer.kept(self.in_flight, holds_all=self.holds_all)


@dataclass(frozen=True, slots=True)
class Edges:
    """Every way from one layer into the next.

    Attributes:
        seconds: weighted amounts of time, change of layout included, (S, O).
        working: memory that is needed at once and given back, (S, O).
        kept: bytes held, (O,).
        state: into which an option leads, (O,).
        slots: options that lead into each state, padded with O, (S, width).
    """

    seconds: Floats
    working: Integers
    kept: Integers
    state: Integers
    slots: Integers


class StageGraph:
    """All edges of the stages of one position.

    Attributes:
        edges: per pair of neighbouring kinds; stages start with (OUTSIDE, kind).
        exits: layouts that are told apart at the end; None alone on the last stage, whose output is a loss.
    """

    def __init__(self, options: PipelineOptions, task: StageTask, like: "StageGraph | None" = None) -> None:
        """Price all edges.

        Args:
            options: what layers may choose.
            task: what is chosen for.
            like: a graph of the same task but for the entry, whose inner edges are the same.
        """
        self.task = task
        self.options = options
        self._weights = np.array(task.weights)
        self.edges = {(OUTSIDE, kind): self._edges_in(kind) for kind in range(len(options.layers))}
        for pair in dict.fromkeys(pairwise(options.kinds)):
            self.edges[pair] = self._edges_on(*pair) if like is None else like.edges[pair]
        self.exits: tuple[Layout | None, ...] = options.exits if task.feeds_next else (None,)

    def exit_bytes(self, kind: int) -> Integers:
        """Bytes of outputs that wait for their gradients and of one gradient, by the last layer's state, (S,)."""
        if not self.task.feeds_next:
            return np.zeros(len(self.options.layouts), dtype=np.int64)
        return (self.task.in_flight + 1) * self.options.payload(kind)

    def leaves_in(self, exit_layout: Layout | None) -> Flags:
        """Tell which states leave the stage in ``exit_layout``, (S,)."""
        return np.array([exit_layout in (None, layout) for layout in self.options.layouts], dtype=bool)

    def path(self, kinds: Kinds) -> list[Edges]:
        """List the edges of a stage, layer by layer."""
        return [self.edges[pair] for pair in pairwise((OUTSIDE, *kinds))]

    def caps(self, kinds: Kinds) -> Integers:
        """List every working memory that a stage can come to, rising."""
        pairs = dict.fromkeys(pairwise((OUTSIDE, *kinds)))
        found = rising(np.concatenate([self.edges[pair].working.ravel() for pair in pairs]))
        least = max(int(self.edges[pair].working.min()) for pair in pairs)
        return found[found >= least]

    def _edges_in(self, kind: int) -> Edges:
        layer, entry = self.options.layers[kind], self.task.entry
        kept = self.task.kept(layer)
        own = self._weights @ layer.seconds
        before = next((a for a, b in pairwise(self.options.kinds) if b == kind), None)
        if entry is None or before is None:
            return Edges(own[None, :], layer.transient[None, :], kept, layer.state, layer.slots)
        moves = self.options.moves(before)
        row = self.options.layouts.index(entry)
        seconds = (self._weights @ moves.seconds[:, row, layer.state] + own)[None, :]
        working = np.maximum(moves.working[row, layer.state], layer.transient)[None, :]
        # One payload on its way; what lies in another layout than the first layer's stays with every micro-batch.
        changes = np.array([self.options.layouts[state] != entry for state in layer.state], dtype=np.int64)
        kept = kept + self.options.payload(before)[row] * (1 + self.task.in_flight * changes)
        return Edges(seconds, working, kept, layer.state, layer.slots)

    def _edges_on(self, before: int, kind: int) -> Edges:
        layer, moves = self.options.layers[kind], self.options.moves(before)
        moved = np.tensordot(self._weights, moves.seconds, axes=1)[:, layer.state]
        seconds = moved + (self._weights @ layer.seconds)[None, :]
        computing = self.options.layers[before].ahead[:, None] + layer.transient[None, :]
        working = np.maximum(moves.working[:, layer.state], computing)
        return Edges(seconds, working, self.task.kept(layer), layer.state, layer.slots)
