"""How one layer is split over the devices of its stage.

A strategy is an ordered tuple of axes, innermost first: the order decides which ranks form a group and thereby which
links it uses (innermost = consecutive ranks = fastest link). The decision tree is then exactly "all ordered
factorisations", and ``tp2-fsdp4-ckpt`` says all there is to say about a layer.
"""

import re
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from math import prod
from typing import Annotated, Self, assert_never

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

from galvatron_planner.cluster import Group


class Dimension(StrEnum):
    """A way to split one layer's work over devices; the value is the short form in texts."""

    DATA = "dp"
    """Everything on every device."""
    SHARDED_GRADIENTS = "gsdp"
    """ZeRO stage 2: parameters on every device; gradients and optimizer state sharded."""
    SHARDED_DATA = "fsdp"
    """ZeRO stage 3: parameters, gradients and optimizer state sharded."""
    TENSOR = "tp"
    """Heads, inner vectors and vocabulary split; between split matrices every device holds the same."""
    SEQUENCE_TENSOR = "sptp"
    """As ``tp``, and between split matrices every device holds other tokens (sequence parallelism)."""


TENSOR_DIMENSIONS = (Dimension.TENSOR, Dimension.SEQUENCE_TENSOR)
"""Those that split a layer's tensors; a layer has at most one of them."""


def splits_the_batch(dimension: Dimension) -> bool:
    """Tell whether devices along ``dimension`` see different samples."""
    match dimension:
        case Dimension.DATA | Dimension.SHARDED_GRADIENTS | Dimension.SHARDED_DATA:
            return True
        case Dimension.TENSOR | Dimension.SEQUENCE_TENSOR:
            return False
        case _:
            assert_never(dimension)


@dataclass(frozen=True, slots=True, order=True)
class Axis:
    """One use of a dimension: ``degree`` ways, at least 2."""

    dimension: Dimension
    degree: int

    def __post_init__(self) -> None:
        if self.degree < 2:
            raise ValueError(f"axis {self.dimension}{self.degree}: a degree is at least 2")


@dataclass(frozen=True)
class LayerStrategy:
    """Ordered axes of one layer, innermost first, and whether its activations are recomputed.

    Without slots: the search asks some hundred thousand times for what is worked out once here.

    Attributes:
        axes: distinct dimensions with their degrees; empty on a single device.
        checkpoint: activation checkpointing: keep only the layer's input, recompute the rest in the backward pass.
    """

    axes: tuple[Axis, ...] = ()
    checkpoint: bool = False

    def __post_init__(self) -> None:
        dimensions = [axis.dimension for axis in self.axes]
        if len(set(dimensions)) != len(dimensions):
            raise ValueError(f"strategy {self}: a dimension occurs once")

    def __str__(self) -> str:
        parts = [f"{axis.dimension}{axis.degree}" for axis in self.axes]
        return "-".join(parts or ["single"]) + ("-ckpt" if self.checkpoint else "")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the text form.

        Raises:
            ValueError: when it is none.
        """
        parts = text.split("-")
        checkpoint = parts[-1] == "ckpt"
        names = parts[:-1] if checkpoint else parts
        return cls(() if names == ["single"] else tuple(_parse_axis(n, text) for n in names), checkpoint)

    def __hash__(self) -> int:
        return self._hash

    def __reduce__(self) -> tuple[type["LayerStrategy"], tuple[tuple[Axis, ...], bool]]:
        # Hashes of strings differ from process to process.
        return LayerStrategy, (self.axes, self.checkpoint)

    @cached_property
    def _hash(self) -> int:
        return hash((self.axes, self.checkpoint))

    @property
    def num_devices(self) -> int:
        """Devices that the layer is spread over."""
        return prod(axis.degree for axis in self.axes)

    def degree(self, dimension: Dimension) -> int:
        """Ways the layer is split along ``dimension``; 1 when it is not."""
        for axis in self.axes:
            if axis.dimension is dimension:
                return axis.degree
        return 1

    @cached_property
    def data_degree(self) -> int:
        """Ways the micro-batch is split."""
        return prod(axis.degree for axis in self.axes if splits_the_batch(axis.dimension))

    @cached_property
    def tensor_degree(self) -> int:
        """Ways the layer's tensors are split."""
        return prod(map(self.degree, TENSOR_DIMENSIONS))

    @cached_property
    def sequence_degree(self) -> int:
        """Ways the tokens of a sample are split between the layer's split matrices, and between layers."""
        return self.degree(Dimension.SEQUENCE_TENSOR)

    @cached_property
    def num_shards(self) -> int:
        """Ways optimizer state and gradients of the layer's tensors are sharded."""
        return self.degree(Dimension.SHARDED_GRADIENTS) * self.degree(Dimension.SHARDED_DATA)

    def group(self, dimension: Dimension) -> Group | None:
        """The group that communicates along ``dimension``, or None when the layer is not split along it."""
        stride = 1
        for axis in self.axes:
            if axis.dimension is dimension:
                return Group(size=axis.degree, stride=stride)
            stride *= axis.degree
        return None

    @cached_property
    def layout(self) -> "Layout":
        """How the rows of the micro-batch lie on the stage's devices."""
        tensor = next(filter(None, map(self.group, TENSOR_DIMENSIONS)), None)
        if tensor is None:
            return Layout(data_degree=self.data_degree, tensor_degree=1, tensor_stride=1)
        # Where the batch is not split at all, the order of the axes makes no difference to the rows.
        stride = tensor.stride if self.data_degree > 1 else 1
        return Layout(self.data_degree, tensor.size, stride, self.sequence_degree)


@dataclass(frozen=True, slots=True, order=True)
class Layout:
    """What of the micro-batch each device of a stage holds; neighbours with equal layouts need no transfer.

    Attributes:
        data_degree: number of slices of the rows.
        tensor_degree: devices that hold the same rows.
        tensor_stride: distance of those devices in stage ranks.
        sequence_degree: ways those devices split the tokens of their rows: ``tensor_degree``, or 1 when all of them
            hold all tokens.
    """

    data_degree: int
    tensor_degree: int
    tensor_stride: int
    sequence_degree: int = 1

    @property
    def num_devices(self) -> int:
        """Devices of the stage."""
        return self.data_degree * self.tensor_degree

    @property
    def num_slices(self) -> int:
        """Parts of equal size, of rows and tokens, into which the micro-batch is cut; a device holds one of them."""
        return self.data_degree * self.sequence_degree

    def data_index(self, stage_rank: int) -> int:
        """Tell which slice of the rows the device holds."""
        inner = stage_rank % self.tensor_stride
        outer = stage_rank // (self.tensor_stride * self.tensor_degree)
        return outer * self.tensor_stride + inner

    def rows(self, stage_rank: int, micro_batch_size: int) -> tuple[int, int]:
        """First and one-past-last row of the micro-batch on the device."""
        share = micro_batch_size // self.data_degree
        index = self.data_index(stage_rank)
        return index * share, (index + 1) * share

    def sequence_index(self, stage_rank: int) -> int:
        """Tell which of the ``sequence_degree`` slices of the tokens the device holds."""
        return stage_rank // self.tensor_stride % self.sequence_degree

    def tokens(self, stage_rank: int, num_tokens: int) -> tuple[int, int]:
        """First and one-past-last token of its rows on the device."""
        share = num_tokens // self.sequence_degree
        index = self.sequence_index(stage_rank)
        return index * share, (index + 1) * share


_AXIS = re.compile(r"^(dp|gsdp|fsdp|tp|sptp)([1-9]\d*)$")


def _parse_axis(name: str, text: str) -> Axis:
    match = _AXIS.match(name)
    if match is None:
        raise ValueError(f"{text!r} is no layer strategy such as 'tp2-fsdp4-ckpt', 'dp8' or 'single'")
    return Axis(Dimension(match[1]), int(match[2]))


def _from_text(value: object) -> object:
    return LayerStrategy.parse(value) if isinstance(value, str) else value


StrategyText = Annotated[
    LayerStrategy,
    BeforeValidator(_from_text),
    PlainSerializer(str, return_type=str),
    WithJsonSchema({"type": "string"}),
]
"""A :class:`LayerStrategy` that documents hold in its text form."""
