"""Re-layout: move a micro-batch's activations between two layers that split rows or tokens differently.

Who sends what follows from the two layouts alone. The gradient of an activation lies in the activation's layout
(replicated where it is), so the backward pass is the same movement with source and target exchanged.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise, product
from math import prod
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, autograd

from galvatron_planner.plan import Plan
from galvatron_planner.strategy import Layout
from galvatron_runtime.mesh import Meshes

Range = tuple[int, int]
"""First, and one past the last."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Some rows of a micro-batch and some tokens of each, taken from the device ``holder``.

    Attributes:
        holder: stage rank.
        rows: of the micro-batch.
        parts: of the tokens, counted in the smallest slices of either layout.
    """

    holder: int
    rows: Range
    parts: Range

    @property
    def size(self) -> int:
        """Rows times parts."""
        return prod(last - first for first, last in (self.rows, self.parts))


@lru_cache(maxsize=256)
def pieces(source: Layout, target: Layout, *, num_devices: int, num_rows: int) -> tuple[tuple[Piece, ...], ...]:
    """Say for every device of a stage where its part of the target layout comes from, row by row.

    A device keeps what it has; of several holders the one that sends least so far is asked, then the nearest.
    """
    num_parts = max(source.sequence_degree, target.sequence_degree)
    held = [_box(source, device, num_rows, num_parts) for device in range(num_devices)]
    load = [0] * num_devices
    wanted: list[tuple[Piece, ...]] = []
    for device in range(num_devices):
        own: list[Piece] = []
        for box in _cut(_box(target, device, num_rows, num_parts), held):
            holders = [holder for holder in range(num_devices) if _contains(held[holder], box)]
            costs = {holder: (holder != device, load[holder], abs(holder - device)) for holder in holders}
            piece = Piece(min(holders, key=costs.__getitem__), *box)
            load[piece.holder] += piece.size if piece.holder != device else 0
            own.append(piece)
        wanted.append(tuple(own))
    return tuple(wanted)


Box = tuple[Range, Range]
"""Rows, and parts of the tokens."""


def _box(layout: Layout, device: int, num_rows: int, num_parts: int) -> Box:
    return layout.rows(device, num_rows), layout.tokens(device, num_parts)


def _cut(box: Box, along: Sequence[Box]) -> Iterator[Box]:
    """Cut a box wherever others begin or end inside it."""
    rows, parts = (
        sorted({first, last, *(edge for one in along for edge in one[axis] if first < edge < last)})
        for axis, (first, last) in enumerate(box)
    )
    return product(pairwise(rows), pairwise(parts))


def _contains(outer: Box, inner: Box) -> bool:
    return all(out[0] <= one[0] and one[1] <= out[1] for out, one in zip(outer, inner, strict=True))


@dataclass(frozen=True, slots=True)
class Relayout:
    """One boundary between two layouts of a stage, seen from one of its devices.

    Attributes:
        source: layout of what comes in.
        target: layout of what goes out.
        num_rows: rows of a micro-batch, over all devices.
        stage_rank: this device.
        group: all devices of the stage.
    """

    source: Layout
    target: Layout
    num_rows: int
    stage_rank: int
    group: dist.ProcessGroup

    def __call__(self, hidden: Tensor) -> Tensor:
        """Move [source rows, source tokens, ...] to [target rows, target tokens, ...], differentiably."""
        return cast(Tensor, _Move.apply(hidden, self))  # type: ignore[no-untyped-call]  # torch

    def move(self, values: Tensor) -> Tensor:
        """Move from the source to the target layout."""
        plan = pieces(self.source, self.target, num_devices=self.group.size(), num_rows=self.num_rows)
        own = plan[self.stage_rank]
        if all(piece.holder == device for device, parts in enumerate(plan) for piece in parts):
            return self._view(values, self.source, own[0]).clone(memory_format=torch.contiguous_format)
        sent = [[piece for piece in parts if piece.holder == self.stage_rank] for parts in plan]
        received = [[piece for piece in own if piece.holder == device] for device in range(len(plan))]
        unit = values.numel() // self._box_size(self.source)
        outgoing = [self._view(values, self.source, piece).flatten() for to_device in sent for piece in to_device]
        arrived = values.new_empty(unit * self._box_size(self.target))
        dist.all_to_all_single(
            arrived,
            torch.cat(outgoing) if outgoing else values.new_empty(0),
            [unit * _total(from_device) for from_device in received],
            [unit * _total(to_device) for to_device in sent],
            group=self.group,
        )
        return self._put_together(arrived, [piece for from_device in received for piece in from_device], values)

    def reverse(self) -> "Relayout":
        """The movement of the gradients."""
        return Relayout(self.target, self.source, self.num_rows, self.stage_rank, self.group)

    @property
    def _num_parts(self) -> int:
        return max(self.source.sequence_degree, self.target.sequence_degree)

    def _box_size(self, layout: Layout) -> int:
        return self.num_rows * self._num_parts // layout.num_slices

    def _view(self, values: Tensor, layout: Layout, piece: Piece) -> Tensor:
        """Find a piece in what this device holds of a layout."""
        rows, parts = _box(layout, self.stage_rank, self.num_rows, self._num_parts)
        chosen = values[piece.rows[0] - rows[0] : piece.rows[1] - rows[0]]
        if piece.parts == parts:
            return chosen
        tokens_per_part = values.shape[1] // (parts[1] - parts[0])
        first, last = ((edge - parts[0]) * tokens_per_part for edge in piece.parts)
        return chosen[:, first:last]

    def _put_together(self, arrived: Tensor, order: Sequence[Piece], values: Tensor) -> Tensor:
        """Give what arrived, piece after piece in the order of their holders, the target's shape."""
        rows, parts = _box(self.target, self.stage_rank, self.num_rows, self._num_parts)
        shape = [rows[1] - rows[0], *values.shape[1:]]
        if self._num_parts > 1:
            shape[1] = values.shape[1] * self.source.sequence_degree // self.target.sequence_degree
        is_sorted = all(before.rows[1] <= after.rows[0] for before, after in pairwise(order))
        if is_sorted and all(piece.parts == parts for piece in order):
            return arrived.view(shape)
        whole = values.new_empty(shape)
        unit = whole.numel() // _total(order)
        for piece, flat in zip(order, torch.split(arrived, [unit * piece.size for piece in order]), strict=True):
            place = self._view(whole, self.target, piece)
            place.copy_(flat.view(place.shape))
        return whole


def relayouts(plan: Plan, meshes: Meshes) -> list[Relayout | None]:
    """List what happens to the stream before each layer of this stage; None where it already lies right.

    It comes from the stage before in the layout of that stage's last layer.
    """
    targets = [strategy.layout for strategy in plan.stages[meshes.stage_index].layers]
    entering = plan.stages[meshes.stage_index - 1].layers[-1].layout if meshes.stage_index else targets[0]
    return [
        None
        if source == target
        else Relayout(source, target, plan.micro_batch_size, meshes.stage_rank, meshes.stage_group)
        for source, target in pairwise([entering, *targets])
    ]


def _total(some: Sequence[Piece]) -> int:
    return sum(piece.size for piece in some)


class _Move(autograd.Function):
    @staticmethod
    def forward(context: Any, hidden: Tensor, relayout: Relayout) -> Tensor:
        context.relayout = relayout
        return relayout.move(hidden)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return context.relayout.reverse().move(gradients[0]), None
