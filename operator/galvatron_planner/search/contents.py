"""What stages can hold: every run of consecutive layers, equal runs counted once.

A model of equal blocks has a few hundred distinct contents where it has thousands of runs.
"""

from dataclasses import dataclass

import numpy as np

from galvatron_planner.search.graph import OUTSIDE, Kinds
from galvatron_planner.search.options import Integers


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

    def kinds_of(self, content: int) -> Kinds:
        """List the layers of a content."""
        kinds = []
        while content >= 0:
            kinds.append(self.distinct[content].pair[1])
            content = self.distinct[content].parent
        return tuple(reversed(kinds))
