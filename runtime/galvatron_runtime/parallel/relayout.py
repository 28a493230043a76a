"""Re-layout: move the rows of a micro-batch between two layers whose batch splits differ.

Who sends which rows follows from the two layouts alone. The gradient of an activation lies in the activation's layout
(replicated where it is), so the backward pass is the same movement with source and target exchanged.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, autograd

from galvatron_planner.plan import Plan
from galvatron_planner.strategy import Layout
from galvatron_runtime.mesh import Meshes


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows ``first`` to one before ``last`` of a micro-batch, taken from the device ``holder``."""

    holder: int
    first: int
    last: int

    @property
    def num_rows(self) -> int:
        """Rows of the piece."""
        return self.last - self.first


@lru_cache(maxsize=256)
def pieces(source: Layout, target: Layout, *, num_devices: int, num_rows: int) -> tuple[tuple[Piece, ...], ...]:
    """Say for every device of a stage where its rows of the target layout come from, in the order of the rows.

    A device keeps what it has; of several holders the one that sends least so far is asked, then the nearest.
    """
    load = [0] * num_devices
    wanted: list[tuple[Piece, ...]] = []
    for device in range(num_devices):
        own: list[Piece] = []
        for first, last in pairwise(_edges(source, target.rows(device, num_rows), num_devices, num_rows)):
            holders = [h for h in range(num_devices) if _holds(source.rows(h, num_rows), first, last)]
            costs = {h: (h != device, load[h], abs(h - device)) for h in holders}
            holder = min(holders, key=costs.__getitem__)
            load[holder] += last - first if holder != device else 0
            own.append(Piece(holder, first, last))
        wanted.append(tuple(own))
    return tuple(wanted)


def _edges(source: Layout, rows: tuple[int, int], num_devices: int, num_rows: int) -> list[int]:
    inner = {edge for h in range(num_devices) for edge in source.rows(h, num_rows) if rows[0] < edge < rows[1]}
    return sorted({*rows, *inner})


def _holds(rows: tuple[int, int], first: int, last: int) -> bool:
    return rows[0] <= first and last <= rows[1]


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
        """Move [source rows, ...] to [target rows, ...], differentiably."""
        return cast(Tensor, _Move.apply(hidden, self))  # type: ignore[no-untyped-call]  # torch

    def move(self, values: Tensor) -> Tensor:
        """Move rows from the source to the target layout."""
        plan = pieces(self.source, self.target, num_devices=self.group.size(), num_rows=self.num_rows)
        first_row, _ = self.source.rows(self.stage_rank, self.num_rows)
        if all(piece.holder == device for device, own in enumerate(plan) for piece in own):
            piece = plan[self.stage_rank][0]
            return values[piece.first - first_row : piece.last - first_row].clone(memory_format=torch.contiguous_format)
        sent = [[p for p in own if p.holder == self.stage_rank] for own in plan]
        received = [[p for p in plan[self.stage_rank] if p.holder == h] for h in range(len(plan))]
        outgoing = [values[p.first - first_row : p.last - first_row] for to_device in sent for p in to_device]
        payload = torch.cat(outgoing) if outgoing else values[:0]
        arrived = values.new_empty((_count_rows(plan[self.stage_rank]), *values.shape[1:]))
        dist.all_to_all_single(
            arrived, payload, [_count_rows(r) for r in received], [_count_rows(s) for s in sent], group=self.group
        )
        return _in_row_order(arrived, [piece for from_device in received for piece in from_device])

    def reverse(self) -> "Relayout":
        """The movement of the gradients."""
        return Relayout(self.target, self.source, self.num_rows, self.stage_rank, self.group)


def relayouts(plan: Plan, meshes: Meshes) -> list[Relayout | None]:
    """List what happens to the rows before each layer of this stage; None where they already lie right.

    Rows come from the stage before in the layout of its last layer.
    """
    targets = [strategy.layout for strategy in plan.stages[meshes.stage_index].layers]
    entering = plan.stages[meshes.stage_index - 1].layers[-1].layout if meshes.stage_index else targets[0]
    return [
        None
        if source == target
        else Relayout(source, target, plan.micro_batch_size, meshes.stage_rank, meshes.stage_group)
        for source, target in pairwise([entering, *targets])
    ]


def _count_rows(rows: Sequence[Piece]) -> int:
    return sum(piece.num_rows for piece in rows)


def _in_row_order(values: Tensor, order: Sequence[Piece]) -> Tensor:
    """Sort pieces that lie one after another in the order of their holders."""
    if all(before.first < after.first for before, after in pairwise(order)):
        return values
    parts = zip(order, torch.split(values, [piece.num_rows for piece in order]), strict=True)
    return torch.cat([part for _, part in sorted(parts, key=lambda pair: pair[0].first)])


class _Move(autograd.Function):
    @staticmethod
    def forward(context: Any, hidden: Tensor, relayout: Relayout) -> Tensor:
        context.relayout = relayout
        return relayout.move(hidden)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return context.relayout.reverse().move(gradients[0]), None
