"""What stages can hold: every run of consecutive layers, equal runs counted once.

A model of equal blocks has a few hundred distinct contents where it has thousands of runs.
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from galvatron_planner.search.graph import OUTSIDE, Kinds
from galvatron_planner.search.options import Flags, Integers


@dataclass(frozen=True, slots=True)
class Content:
    """One distinct run of layers.

    Attributes:
        parent: the content without the last layer, -1 for a single layer.
        pair: kinds of the last two layers; (OUTSIDE, kind) for a single layer.
        length: number of layers.
    """

    parent: int
    pair: tuple[int, int]
    length: int


class Stages(NamedTuple):
    """Some of the stages that can stand at a place, by first layer, then by end.

    Attributes:
        start: first layer of each.
        end: one past its last layer.
    """

    start: Integers
    end: Integers

    def among(self, left: Flags) -> "Stages":
        """Select stages."""
        return Stages(self.start[left], self.end[left])


class Contents:
    """All contents of a model.

    Attributes:
        table: content of ``n`` layers from layer ``i`` on, (layers + 1, layers + 1), -1 where there is none.
        distinct: the contents; parents stand before their children.
    """

    def __init__(self, kinds: Kinds) -> None:
        self.kinds = kinds
        self.distinct: list[Content] = []
        self.table: Integers = np.full((len(kinds) + 1, len(kinds) + 1), -1, dtype=np.int64)
        children: dict[tuple[int, int], int] = {}
        for start in range(len(kinds)):
            parent, before = -1, OUTSIDE
            for length, kind in enumerate(kinds[start:], start=1):
                if (parent, kind) not in children:
                    children[parent, kind] = len(self.distinct)
                    self.distinct.append(Content(parent, (before, kind), length))
                parent, before = children[parent, kind], kind
                self.table[start, length] = parent

    @cached_property
    def counts(self) -> Integers:
        """Number of layers of each kind in each content, (contents, kinds)."""
        counts = np.zeros((len(self.distinct), max(self.kinds, default=0) + 1), dtype=np.int64)
        for index, one in enumerate(self.distinct):
            if one.parent >= 0:
                counts[index] = counts[one.parent]
            counts[index, one.pair[1]] += 1
        return counts

    @cached_property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """Neighbouring kinds, first and last layers of stages with OUTSIDE included."""
        kinds = range(max(self.kinds) + 1)
        outer = [pair for kind in kinds for pair in ((OUTSIDE, kind), (kind, OUTSIDE))]
        return tuple(dict.fromkeys((*pairwise(self.kinds), *outer)))

    def before(self, kind: int) -> tuple[int, ...]:
        """List the kinds that stand before a kind somewhere."""
        return tuple(first for first, second in self.pairs if second == kind and first != OUTSIDE)

    @cached_property
    def pair_counts(self) -> Integers:
        """Number of times that each pair occurs in each content, (contents, pairs)."""
        index = {pair: place for place, pair in enumerate(self.pairs)}
        counts = np.zeros((len(self.distinct), len(index)), dtype=np.int64)
        for own, one in zip(counts, self.distinct, strict=True):
            if one.parent >= 0:
                own += counts[one.parent]
                own[index[one.pair[0], OUTSIDE]] -= 1
            own[index[one.pair]] += 1
            own[index[one.pair[1], OUTSIDE]] += 1
        return counts

    def of(self, stages: Stages) -> Integers:
        """Tell what stages hold."""
        return np.asarray(self.table[stages.start, stages.end - stages.start])

    def kinds_of(self, content: int) -> Kinds:
        """List the layers of a content."""
        kinds = []
        while content >= 0:
            kinds.append(self.distinct[content].pair[1])
            content = self.distinct[content].parent
        return tuple(reversed(kinds))
