"""Pareto fronts of partial stages: which ways to run the first layers are worth going on with.

A label is one way to run a prefix of a stage's layers below one cap on working memory, which is charged whole: seconds
of a whole step, bytes kept, and the state it ends in. A label goes when another of the same cap and state is nowhere
worse, or when it cannot lead to a better choice than one that is known. Nothing is rounded, so what is left contains an
optimum. Many caps are followed at once: their fronts are short, and what takes time is the number of steps.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from galvatron_planner.search.graph import Edges, Kinds, StageGraph
from galvatron_planner.search.guide import Guide
from galvatron_planner.search.options import Flags, Floats, Integers

ROUNDING = 1e-12
"""Relative slack of comparisons between sums of the same numbers in another order."""


@dataclass(frozen=True, slots=True)
class Labels:
    """Labels of one prefix; all arrays have the same length, one entry a label.

    Attributes:
        seconds: of the whole step.
        kept: bytes held in every moment that counts.
        cap: below which the label stays, as an index.
        state: of the prefix's last layer.
        parent: index of the label of the shorter prefix.
        choice: index of the last layer's strategy in its options.
    """

    seconds: Floats
    kept: Integers
    cap: Integers
    state: Integers
    parent: Integers
    choice: Integers

    def take(self, index: Integers) -> "Labels":
        """Select labels."""
        return Labels(
            self.seconds[index],
            self.kept[index],
            self.cap[index],
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
        caps: working memory that no layer may exceed, rising; a choice needs to keep to one of them, (C,).
        room: bytes of everything kept below each cap, exit buffer included, (C,).
        cutoff_seconds: of a choice that is known; others must not be slower.
    """

    caps: Integers
    room: Integers
    cutoff_seconds: float


def fastest_choice(graph: StageGraph, kinds: Kinds, leaves: Flags, *, along: Guide, limits: Limits) -> list[int] | None:
    """Find the option of every layer that together are fastest within the limits, or None when nothing is.

    Args:
        graph: of the stage's position.
        kinds: layers of the stage.
        leaves: states in which it may end, (S,).
        along: the same number of prices for every cap, one cap after the other.
        limits: what to keep to.
    """
    steps: list[Labels] = []
    labels = _start(len(limits.caps))
    for index, edges in enumerate(graph.path(kinds)):
        extended = _extended(labels, edges, limits.caps)
        labels = undominated(extended.take(np.flatnonzero(_may_win(extended, along, index, limits))))
        steps.append(labels)
    kept = labels.kept + graph.exit_bytes(kinds[-1])[labels.state]
    fitting = np.flatnonzero(leaves[labels.state] & (kept <= limits.room[labels.cap]))
    if len(fitting) == 0:
        return None
    index = int(fitting[np.argmin(labels.seconds[fitting])])
    return list(_walk_back(steps, index))[::-1]


def undominated(labels: Labels) -> Labels:
    """Keep the labels that no other of the same cap and state matches in seconds and bytes kept.

    Of equal labels the first stays, so the order in which labels are made breaks ties.
    """
    if len(labels) <= 1:
        return labels
    place = labels.cap * (int(labels.state.max()) + 1) + labels.state
    # By place, then bytes kept and seconds: whoever matches a label stands before it.
    order = np.lexsort((labels.seconds, labels.kept, place))
    rank = np.empty(len(order), dtype=np.int64)
    rank[labels.seconds[order].argsort(kind="stable")] = np.arange(len(order))
    # Ranks instead of seconds, later places below earlier ones: one running minimum then serves all places.
    key = rank - place[order] * (len(order) + 1)
    faster = np.ones(len(order), dtype=bool)
    np.less(key[1:], np.minimum.accumulate(key)[:-1], out=faster[1:])
    return labels.take(order[faster])


def _start(num_caps: int) -> Labels:
    zero = np.zeros(num_caps, dtype=np.int64)
    return Labels(np.zeros(num_caps), zero, np.arange(num_caps), zero, zero, zero)


def _extended(labels: Labels, edges: Edges, caps: Integers) -> Labels:
    """Extend every label by every option that is allowed."""
    parent, choice = np.nonzero(edges.working[labels.state] <= caps[labels.cap][:, None])
    return Labels(
        labels.seconds[parent] + edges.seconds[labels.state[parent], choice],
        labels.kept[parent] + edges.kept[choice],
        labels.cap[parent],
        edges.state[choice],
        parent,
        choice,
    )


def _may_win(labels: Labels, along: Guide, index: int, limits: Limits) -> Flags:
    """Tell which labels can still lead to a choice that fits and is no slower than the cutoff."""
    num_caps = len(limits.caps)
    room = (limits.room[labels.cap] - labels.kept).astype(np.float64)
    to_go = along.to_go[index].reshape(num_caps, -1, along.to_go[index].shape[1])[labels.cap, :, labels.state]
    bound = (to_go - along.prices.reshape(num_caps, -1)[labels.cap] * room[:, None]).max(axis=1)
    fits = along.least_kept[index][labels.cap, labels.state] <= room
    return np.asarray(fits & (labels.seconds + bound <= limits.cutoff_seconds * (1 + ROUNDING)))


def _walk_back(steps: list[Labels], index: int) -> Iterator[int]:
    for labels in reversed(steps):
        yield int(labels.choice[index])
        index = int(labels.parent[index])
