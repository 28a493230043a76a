"""Pareto fronts of partial stages: which ways to run the first layers are worth going on with.

A label is one way to run a prefix of a stage's layers: seconds of a whole step, bytes kept, the largest working memory,
and the state it ends in. A label goes when another of the same state is nowhere worse, or when it cannot lead to a
better choice than one that is known. Nothing is rounded, so what is left contains an optimum.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from galvatron_planner.search.graph import Edges, Kinds, StageGraph
from galvatron_planner.search.guide import Guide
from galvatron_planner.search.options import Flags, Floats, Integers, rising

ROUNDING = 1e-12
"""Relative slack of comparisons between sums of the same numbers in another order."""


@dataclass(frozen=True, slots=True)
class Labels:
    """Labels of one prefix; all arrays have the same length, one entry a label.

    Attributes:
        seconds: of the whole step.
        kept: bytes held in every moment that counts.
        working: largest working memory of one layer.
        state: of the prefix's last layer.
        parent: index of the label of the shorter prefix.
        choice: index of the last layer's strategy in its options.
    """

    seconds: Floats
    kept: Integers
    working: Integers
    state: Integers
    parent: Integers
    choice: Integers

    def take(self, index: Integers) -> "Labels":
        """Select labels."""
        return Labels(
            self.seconds[index],
            self.kept[index],
            self.working[index],
            self.state[index],
            self.parent[index],
            self.choice[index],
        )

    def __len__(self) -> int:
        return len(self.seconds)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a choice must keep to.

    Attributes:
        most_working: working memory that no layer may exceed.
        least_working: working memory that is charged in any case.
        room: bytes of everything kept and the largest working memory, exit buffer included.
        cutoff_seconds: of a choice that is known; others must not be slower.
    """

    most_working: int
    least_working: int
    room: int
    cutoff_seconds: float


def fastest_choice(graph: StageGraph, kinds: Kinds, leaves: Flags, *, along: Guide, limits: Limits) -> list[int] | None:
    """Find the option of every layer that together are fastest within the limits, or None when nothing is."""
    steps: list[Labels] = []
    labels = _start(limits)
    for index, edges in enumerate(graph.path(kinds)):
        extended = _extended(labels, edges, limits.most_working)
        hopeful = _may_win(extended, along, index, limits)
        labels = undominated(extended.take(np.flatnonzero(hopeful)))
        steps.append(labels)
    peaks = labels.kept + labels.working + graph.exit_bytes(kinds[-1])[labels.state]
    fitting = np.flatnonzero(leaves[labels.state] & (peaks <= limits.room))
    if len(fitting) == 0:
        return None
    index = int(fitting[np.argmin(labels.seconds[fitting])])
    return list(_walk_back(steps, index))[::-1]


def undominated(labels: Labels) -> Labels:
    """Keep the labels that no other of the same state matches in seconds, bytes kept and working memory.

    Of equal labels the first stays, so the order in which labels are made breaks ties.
    """
    if len(labels) == 0:
        return labels
    # By state, then bytes kept, seconds and working memory: whoever dominates a label stands before it.
    ordered = labels.take(np.lexsort((labels.working, labels.seconds, labels.kept, labels.state)))
    return ordered.take(np.flatnonzero(_undominated_mask(ordered)))


def _undominated_mask(ordered: Labels) -> Flags:
    """Sweep sorted labels once per distinct working memory, of which there are few.

    A label survives when it is faster than every earlier one of its state whose working memory is not larger.
    """
    # Ranks instead of seconds, later states below earlier ones: one running minimum then serves all states.
    rank = np.searchsorted(rising(ordered.seconds), ordered.seconds)
    key = rank - ordered.state * (len(ordered) + 1)
    mask = np.zeros(len(ordered), dtype=bool)
    for working in rising(ordered.working):
        among = np.flatnonzero(ordered.working <= working)
        keys = key[among]
        faster = np.ones(len(among), dtype=bool)
        faster[1:] = keys[1:] < np.minimum.accumulate(keys)[:-1]
        mask[among[faster & (ordered.working[among] == working)]] = True
    return mask


def _start(limits: Limits) -> Labels:
    zero = np.zeros(1, dtype=np.int64)
    return Labels(np.zeros(1), zero, zero + limits.least_working, zero, zero, zero)


def _extended(labels: Labels, edges: Edges, most_working: int) -> Labels:
    """Extend every label by every option that is allowed."""
    working = edges.working[labels.state]
    parent, choice = np.nonzero(working <= most_working)
    return Labels(
        labels.seconds[parent] + edges.seconds[labels.state[parent], choice],
        labels.kept[parent] + edges.kept[choice],
        np.maximum(labels.working[parent], working[parent, choice]),
        edges.state[choice],
        parent,
        choice,
    )


def _may_win(labels: Labels, along: Guide, index: int, limits: Limits) -> Flags:
    """Tell which labels can still lead to a choice that fits and is no slower than the cutoff."""
    room = (limits.room - labels.kept - labels.working).astype(np.float64)
    bound = (along.to_go[index][:, labels.state] - along.prices[:, None] * room[None, :]).max(axis=0)
    fits = along.least_kept[index][labels.state] <= room
    return np.asarray(fits & (labels.seconds + bound <= limits.cutoff_seconds * (1 + ROUNDING)))


def _walk_back(steps: list[Labels], index: int) -> Iterator[int]:
    for labels in reversed(steps):
        yield int(labels.choice[index])
        index = int(labels.parent[index])
