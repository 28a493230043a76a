"""Cuts of a model into stages by weights of the stages: the heaviest as light as possible. Legend: L layers."""

from collections.abc import Iterable

import numpy as np

from galvatron_planner.search.options import Floats

Cut = tuple[int, ...]
"""First layer of every stage, and the number of layers at the end."""


def between(sums: Floats) -> Floats:
    """Give what lies between two layers, (L + 1, L + 1); infinite where there is nothing."""
    amounts = sums[None, :] - sums[:, None]
    amounts[np.tril_indices(len(sums))] = np.inf
    return amounts


def lightest_cut(stages: Iterable[Floats]) -> Cut | None:
    """Cut the layers so that the heaviest stage is as light as possible; of several cuts, the first.

    Args:
        stages: per stage its weight when it starts at one layer and ends before another, (L + 1, L + 1); may be
            infinite.
    """
    first, *others = stages
    heaviest, starts = first[0], []
    for weights in others:
        both = np.maximum(heaviest[:, None], weights)
        starts.append(both.argmin(axis=0))
        heaviest = both.min(axis=0)
    if not np.isfinite(heaviest[-1]):
        return None
    cut = [len(heaviest) - 1]
    for start in reversed(starts):
        cut.append(int(start[cut[-1]]))
    return (0, *reversed(cut))
