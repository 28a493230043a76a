"""Tied parameters: what the model holds once and several layers, perhaps of different stages, hold a copy of.

The copies may be split and sharded differently. After the backward pass every copy's gradient is added to that of the
first; the optimizer changes the first alone, and its new values go to the copies. So copies have no optimizer state,
count nothing in the gradient norm, and are in no training checkpoint, and they cannot drift apart.

Every device holds a box of a tensor. Who sends which piece to whom follows from the boxes, which all ranks learn once.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from galvatron_planner import families
from galvatron_planner.model import Model
from galvatron_runtime.model import global_name
from galvatron_runtime.parallel.gradients import local_part


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangular piece of a tensor: from ``starts`` to one before ``ends``, a number per dim."""

    starts: tuple[int, ...]
    ends: tuple[int, ...]

    @classmethod
    def of(cls, tensor: Tensor) -> Self:
        """Find what this device holds of a tensor."""
        shape, offset = tuple(tensor.shape), (0,) * tensor.dim()
        if isinstance(tensor, DTensor):
            shape, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
        return cls(tuple(offset), tuple(start + size for start, size in zip(offset, shape, strict=True)))

    def meet(self, other: "Box") -> "Box | None":
        """Cut two pieces of one tensor; None when they have nothing in common."""
        starts = tuple(map(max, self.starts, other.starts))
        ends = tuple(map(min, self.ends, other.ends))
        return Box(starts, ends) if all(start < end for start, end in zip(starts, ends, strict=True)) else None

    def within(self, held: "Box") -> tuple[slice, ...]:
        """Index this piece in the tensor of a device that holds ``held``."""
        return tuple(
            slice(start - first, end - first)
            for start, end, first in zip(self.starts, self.ends, held.starts, strict=True)
        )


Boxes = Mapping[int, Box]
"""What every rank that holds a tensor holds of it."""


@dataclass(frozen=True, slots=True)
class Piece:
    """What one rank needs of another, perhaps of itself."""

    source: int
    target: int
    box: Box


def pieces(sources: Boxes, targets: Boxes) -> Iterator[Piece]:
    """List who gives what so that every target has its whole box, in an order on which all ranks agree.

    Of the ranks that hold the same, a target takes itself if it can, or else one by its place, so that all give alike.
    """
    holders: dict[Box, list[int]] = {}
    for rank in sorted(sources):
        holders.setdefault(sources[rank], []).append(rank)
    for place, target in enumerate(sorted(targets)):
        for held, ranks in holders.items():
            if box := held.meet(targets[target]):
                yield Piece(target if target in ranks else ranks[place % len(ranks)], target, box)


@dataclass(frozen=True, slots=True)
class Tie:
    """One copy and the first, as this rank takes part in them.

    Attributes:
        first, copy: global names.
        boxes: what this rank holds of either, by name.
        gathered: pieces of the copy's gradient that this rank gives or gets.
        spread: pieces of the first one's values that this rank gives or gets.
    """

    first: str
    copy: str
    boxes: Mapping[str, Box]
    gathered: tuple[Piece, ...]
    spread: tuple[Piece, ...]


class TiedParameters:
    """The tied parameters of one rank's layers.

    Called by all ranks together, if the model has any.
    """

    def __init__(self, model: Model, parameters: Mapping[str, nn.Parameter]) -> None:
        """Learn where all copies lie.

        Args:
            model: what it ties.
            parameters: of this rank's layers, by global name.
        """
        self._parameters, self._rank = parameters, dist.get_rank()
        names = {global_name(*copy): global_name(*first) for copy, first in families.copies(model).items()}
        self.copies = frozenset(names)
        self._ties = tuple(self._tie(names)) if names else ()

    def gather_gradients(self) -> None:
        """Add the gradients of all copies to those of the firsts."""
        for tie in self._ties:
            self._move(tie.gathered, tie.boxes, tie.copy, tie.first, lambda name: self._parameters[name].grad, _add)

    def spread_values(self) -> None:
        """Give the copies the values of the firsts."""
        for tie in self._ties:
            self._move(tie.spread, tie.boxes, tie.first, tie.copy, self._parameters.__getitem__, _put)

    def _tie(self, names: Mapping[str, str]) -> Iterator[Tie]:
        tied = names.keys() | set(names.values())
        boxes = {name: Box.of(self._parameters[name]) for name in sorted(tied & self._parameters.keys())}
        everywhere: list[dict[str, Box]] = [{} for _ in range(dist.get_world_size())]
        dist.all_gather_object(everywhere, boxes)
        for copy, first in names.items():
            firsts, copies = (
                {rank: held[name] for rank, held in enumerate(everywhere) if name in held} for name in (first, copy)
            )
            gathered, spread = tuple(self._own(copies, firsts)), tuple(self._own(firsts, copies))
            if gathered or spread:
                yield Tie(first, copy, boxes, gathered, spread)

    def _own(self, sources: Boxes, targets: Boxes) -> Iterator[Piece]:
        return (piece for piece in pieces(sources, targets) if self._rank in (piece.source, piece.target))

    @torch.no_grad()
    def _move(
        self,
        moved: Sequence[Piece],
        boxes: Mapping[str, Box],
        source: str,
        target: str,
        read: Callable[[str], Tensor | None],
        write: Callable[[Tensor, Tensor], None],
    ) -> None:
        def held(name: str, piece: Piece) -> Tensor:
            tensor = read(name)
            assert tensor is not None  # noqa: S101 -- every parameter has a gradient after the backward pass
            return local_part(tensor)[piece.box.within(boxes[name])]

        operations, arriving = [], []
        for piece in moved:
            if piece.source == piece.target:
                write(held(target, piece), held(source, piece))
            elif piece.source == self._rank:
                operations.append(dist.P2POp(dist.isend, held(source, piece).contiguous(), piece.target))
            else:
                place = held(target, piece)
                buffer = torch.empty_like(place, memory_format=torch.contiguous_format)
                operations.append(dist.P2POp(dist.irecv, buffer, piece.source))
                arriving.append((place, buffer))
        for work in dist.batch_isend_irecv(operations) if operations else ():
            work.wait()
        for place, buffer in arriving:
            write(place, buffer)


def _add(place: Tensor, values: Tensor) -> None:
    place += values


def _put(place: Tensor, values: Tensor) -> None:
    place.copy_(values)
