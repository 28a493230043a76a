"""The price of neighbours that split the micro-batch differently: rows and tokens move between a stage's devices.

Only the layout of activations counts; sharding of parameters and checkpointing cost nothing here. What is only cut
further, into more rows or more slices of the tokens, is a local slice in forward, and its mirror in backward brings the
gradients together again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from galvatron_planner.cluster import Group
from galvatron_planner.profiles import Collective, Profile
from galvatron_planner.strategy import Layout


@dataclass(frozen=True, slots=True)
class TransitionCost:
    """One change of layout.

    Attributes:
        forward_seconds: per micro-batch.
        backward_seconds: per micro-batch, the same the other way.
        transient_bytes: what is sent plus what is received on one device.
    """

    forward_seconds: float
    backward_seconds: float
    transient_bytes: int

    @property
    def seconds(self) -> float:
        """Forward plus backward of one micro-batch."""
        return self.forward_seconds + self.backward_seconds


FREE = TransitionCost(0.0, 0.0, 0)


def price(before: Layout, after: Layout, *, micro_batch_bytes: int, profile: Profile) -> TransitionCost:
    """Price a change of layout.

    Args:
        before: layout of the layer whose output moves.
        after: layout of the next layer.
        micro_batch_bytes: the activation of a whole micro-batch between the two layers.
        profile: for the all-to-all over the stage.
    """
    if before == after:
        return FREE
    held = micro_batch_bytes // before.num_slices
    wanted = micro_batch_bytes // after.num_slices
    # An all-to-all is measured by what a device holds; one that receives more than it holds is as slow as what arrives.
    exchange = profile.link(Collective.ALL_TO_ALL, Group(size=before.num_devices, stride=1)).seconds(max(held, wanted))
    return TransitionCost(
        forward_seconds=0.0 if is_local(before, after) else exchange,
        backward_seconds=0.0 if is_local(after, before) else exchange,
        transient_bytes=held + wanted,
    )


@dataclass(frozen=True, slots=True)
class TransitionTable:
    """Every change between some layouts, from rows to columns; the fields are those of :class:`TransitionCost`."""

    forward_seconds: NDArray[np.float64]
    backward_seconds: NDArray[np.float64]
    transient_bytes: NDArray[np.int64]


def price_all(layouts: Sequence[Layout], *, micro_batch_bytes: int, profile: Profile) -> TransitionTable:
    """Price every change between layouts of one stage, as :func:`price` does one by one."""
    held = np.array([micro_batch_bytes // layout.num_slices for layout in layouts], dtype=np.int64)
    changes = ~np.eye(len(layouts), dtype=bool)
    exchange = np.zeros(changes.shape)
    if len(layouts) > 1:
        link = profile.link(Collective.ALL_TO_ALL, Group(size=layouts[0].num_devices, stride=1))
        amounts = np.array(sorted(set(held.tolist())), dtype=np.int64)
        seconds = np.array([link.seconds(int(one)) for one in amounts])
        exchange = seconds[np.searchsorted(amounts, np.maximum(held[:, None], held))]
    moves = changes & ~np.array([[is_local(one, other) for other in layouts] for one in layouts], dtype=bool)
    return TransitionTable(
        forward_seconds=np.where(moves, exchange, 0.0),
        backward_seconds=np.where(moves.T, exchange, 0.0),
        transient_bytes=np.where(changes, held[:, None] + held, 0),
    )


@cache
def is_local(before: Layout, after: Layout) -> bool:
    """Tell whether every device already holds all rows and tokens that it needs next."""
    # What was held is cut further: the digits of its index begin those of the index wanted.
    return all(
        wanted[: len(held)] == held for held, wanted in zip(_index_bits(before), _index_bits(after), strict=True)
    )


@cache
def _index_bits(layout: Layout) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """List the bits of a device's rank that make up the indices of its slices of rows and of tokens, highest first.

    These are :meth:`Layout.data_index` and :meth:`Layout.sequence_index`. All degrees are powers of two.
    """
    lowest = layout.tensor_stride.bit_length() - 1
    tensor = range(lowest, lowest + layout.tensor_degree.bit_length() - 1)
    rows = tuple(bit for bit in reversed(range(layout.num_devices.bit_length() - 1)) if bit not in tensor)
    return rows, tuple(reversed(tensor)) if layout.sequence_degree > 1 else ()
