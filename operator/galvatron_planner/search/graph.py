"""A stage as a graph: nodes are the states of its layers, edges are strategies with seconds, bytes and working memory.

Legend: S states, O options of one layer, M memory prices. An edge of an option leads from a state of the layer before
into the option's state; the first layer of a stage is entered from outside, by one row.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from galvatron_planner.search.options import Flags, Floats, Integers, PipelineOptions
from galvatron_planner.strategy import Layout

Kinds = tuple[int, ...]
"""Consecutive layers, each as its index among the distinct layers."""

OUTSIDE = -1
"""The kind before the first layer of a stage."""


@dataclass(frozen=True, slots=True)
class StageTask:
    """What a stage's strategies are chosen for.

    Attributes:
        in_flight: micro-batches whose activations the stage holds at most.
        budget_bytes: device memory without the reserve.
        entry: layout in which the previous stage sends, absent on the first stage.
        feeds_next: whether another stage follows.
    """

    in_flight: int
    budget_bytes: int
    entry: Layout | None
    feeds_next: bool


@dataclass(frozen=True, slots=True)
class Edges:
    """Every way from one layer into the next.

    Attributes:
        seconds: of a whole step, change of layout included, (S, O).
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
        exit_bytes: outputs that wait for their gradients and one gradient, by the last layer's state, (S,).
        exits: layouts that are told apart at the end; None alone on the last stage, whose output is a loss.
    """

    def __init__(self, options: PipelineOptions, task: StageTask) -> None:
        self.task = task
        self.options = options
        self.edges = {(OUTSIDE, kind): self._edges_in(kind) for kind in range(len(options.layers))}
        self.edges |= {pair: self._edges_on(*pair) for pair in dict.fromkeys(pairwise(options.kinds))}
        self.exit_bytes = np.array([self._exit_buffer(layout) for layout in options.layouts], dtype=np.int64)
        self.exits: tuple[Layout | None, ...] = options.distinct_layouts if task.feeds_next else (None,)

    def leaves_in(self, exit_layout: Layout | None) -> Flags:
        """Tell which states leave the stage in ``exit_layout``, (S,)."""
        return np.array([exit_layout in (None, layout) for layout in self.options.layouts], dtype=bool)

    def path(self, kinds: Kinds) -> list[Edges]:
        """List the edges of a stage, layer by layer."""
        return [self.edges[pair] for pair in pairwise((OUTSIDE, *kinds))]

    def caps(self, kinds: Kinds) -> Integers:
        """List every working memory that a stage can come to, rising."""
        pairs = dict.fromkeys(pairwise((OUTSIDE, *kinds)))
        found = np.unique(np.concatenate([self.edges[pair].working.ravel() for pair in pairs]))
        least = max(int(self.edges[pair].working.min()) for pair in pairs)
        return found[found >= least]

    def _exit_buffer(self, layout: Layout) -> int:
        if not self.task.feeds_next:
            return 0
        return (self.task.in_flight + 1) * (self.options.micro_batch_bytes // layout.data_degree)

    def _edges_in(self, kind: int) -> Edges:
        layer, entry = self.options.layers[kind], self.task.entry
        kept = layer.kept(self.task.in_flight)
        if entry is None:
            return Edges(layer.seconds[None, :], layer.transient[None, :], kept, layer.state, layer.slots)
        row = self.options.layouts.index(entry)
        seconds = (self.options.move_seconds[row, layer.state] + layer.seconds)[None, :]
        working = np.maximum(self.options.move_bytes[row, layer.state], layer.transient)[None, :]
        # One payload on its way; what lies in another layout than the first layer's stays with every micro-batch.
        payload = self.options.micro_batch_bytes // entry.data_degree
        changes = np.array([self.options.layouts[state] != entry for state in layer.state], dtype=np.int64)
        kept = kept + payload * (1 + self.task.in_flight * changes)
        return Edges(seconds, working, kept, layer.state, layer.slots)

    def _edges_on(self, before: int, kind: int) -> Edges:
        layer = self.options.layers[kind]
        seconds = self.options.move_seconds[:, layer.state] + layer.seconds[None, :]
        computing = self.options.layers[before].ahead[:, None] + layer.transient[None, :]
        working = np.maximum(self.options.move_bytes[:, layer.state], computing)
        return Edges(seconds, working, layer.kept(self.task.in_flight), layer.state, layer.slots)
