"""The price of neighbours that split the micro-batch differently: rows move between the devices of a stage.

Only the layout of activations counts; sharding of parameters and checkpointing cost nothing here. A growing data degree
is a local slice in forward, and its mirror in backward brings the gradients' rows together again.
"""

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
        backward_seconds: per micro-batch, the same rows the other way.
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
    num_devices = before.data_degree * before.tensor_degree
    held = micro_batch_bytes // before.data_degree
    wanted = micro_batch_bytes // after.data_degree
    # An all-to-all is measured by what a device holds; one that receives more than it holds is as slow as what arrives.
    exchange = profile.link(Collective.ALL_TO_ALL, Group(size=num_devices, stride=1)).seconds(max(held, wanted))
    return TransitionCost(
        forward_seconds=0.0 if is_local(before, after) else exchange,
        backward_seconds=0.0 if is_local(after, before) else exchange,
        transient_bytes=held + wanted,
    )


@cache
def is_local(before: Layout, after: Layout) -> bool:
    """Tell whether every device already holds all rows that it needs next."""
    if after.data_degree < before.data_degree:
        return False
    ranks = np.arange(before.data_degree * before.tensor_degree)
    wanted = _slices(after, ranks) * before.data_degree // after.data_degree
    return bool((wanted == _slices(before, ranks)).all())


def _slices(layout: Layout, ranks: NDArray[np.int64]) -> NDArray[np.int64]:
    """Tell which slice of the micro-batch each device holds, as :meth:`Layout.data_index`."""
    outer = ranks // (layout.tensor_stride * layout.tensor_degree)
    return np.asarray(outer * layout.tensor_stride + ranks % layout.tensor_stride)
