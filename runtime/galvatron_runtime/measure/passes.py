"""One layer as a device of its tensor group runs it: built, split, fed, run forward and backward.

The modules are those of training. Sharding is left out, which changes where parameters lie but not what is computed.
"""

from dataclasses import dataclass
from typing import assert_never

import torch
from torch import Tensor

from galvatron_planner.model import Block, Embedding, Head, LayerSpec, Merge, Patches, Pooling, Precision
from galvatron_planner.own import DataKind, OwnData, OwnLayer
from galvatron_planner.workload import image_side, input_shapes, output_shapes
from galvatron_runtime.blocks import LayerModule, build_layer
from galvatron_runtime.model import activation_dtype, sliced
from galvatron_runtime.parallel.tensor import split_for_measurement


@dataclass(frozen=True, slots=True)
class LayerPass:
    """A layer and what it is fed.

    Attributes:
        module: the layer, or one device's part of it.
        entering: what the layer before it hands on; empty where data enters the model.
        data: token ids or images of layers that read some, targets of the head.
        gradients: of what it hands on; empty for the head's loss.
    """

    module: LayerModule
    entering: tuple[Tensor, ...]
    data: tuple[Tensor, ...]
    gradients: tuple[Tensor, ...]

    def forward(self) -> tuple[Tensor, ...]:
        """Run the layer as a stage does."""
        leaving = self.module(*self.entering, *self.data)
        return leaving if isinstance(leaving, tuple) else (leaving,)

    def backward(self, leaving: tuple[Tensor, ...]) -> None:
        """Compute gradients; those of parameters are added to what is there, as over micro-batches."""
        self.forget_entering()
        torch.autograd.backward(leaving, self.gradients or None)

    def run(self) -> None:
        """Run one pass both ways."""
        self.backward(self.forward())

    def forget_gradients(self) -> None:
        """Free the gradients."""
        self.forget_entering()
        self.module.zero_grad(set_to_none=True)

    def forget_entering(self) -> None:
        """Free the gradients of what enters."""
        for values in self.entering:
            values.grad = None

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """What is there before a pass and kept for its backward pass: what enters, or token ids where nothing does.

        Not targets; and not images, of which only a copy in the order of patches is kept.
        """
        return () if isinstance(self.module.layer, Patches) else self.entering or self.data


def build(
    layer: LayerSpec, *, tensor_degree: int, precision: Precision, device: torch.device, splits_tokens: bool = False
) -> LayerModule:
    """Build the part of a layer that the first of ``tensor_degree`` devices computes with; windows are shifted."""
    is_shifted = isinstance(layer, Block) and 0 < layer.window_size**2 < layer.sequence_length
    with device:
        module = build_layer(layer, is_shifted=is_shifted)
    split_for_measurement(module, tensor_degree, splits_tokens=splits_tokens)
    return module.to(activation_dtype(precision))


def feed(module: LayerModule, *, micro_batch_size: int, precision: Precision, device: torch.device) -> LayerPass:
    """Make what a layer is fed, and gradients of what it hands on, for a local micro-batch."""
    layer, slices = module.layer, module.tensor_group.sequence_degree

    def draw(shapes: tuple[tuple[int, ...], ...], *, requires_grad: bool) -> tuple[Tensor, ...]:
        return tuple(
            torch.randn(
                (micro_batch_size, *sliced(shape, slices)),
                dtype=activation_dtype(precision),
                device=device,
                requires_grad=requires_grad,
            )
            for shape in shapes
        )

    return LayerPass(
        module,
        entering=draw(input_shapes(layer), requires_grad=True),
        data=_data(layer, micro_batch_size, device),
        gradients=draw(output_shapes(layer), requires_grad=False),
    )


def _data(layer: LayerSpec, rows: int, device: torch.device) -> tuple[Tensor, ...]:
    match layer:
        case Embedding():
            return (torch.randint(layer.vocabulary_size, (rows, layer.sequence_length), device=device),)
        case Patches():
            side = image_side(layer)
            return (torch.randn(rows, 3, side, side, device=device),)
        case Head():
            shape = (rows, layer.sequence_length) if layer.pooling is Pooling.ALL else (rows,)
            return (torch.randint(layer.vocabulary_size, shape, device=device),)
        case OwnLayer():
            return () if layer.data is None else (_drawn(layer.data, rows, device),)
        case Block() | Merge():
            return ()
        case _:
            assert_never(layer)


def _drawn(data: OwnData, rows: int, device: torch.device) -> Tensor:
    if data.kind is DataKind.IMAGES:
        return torch.randn(rows, *data.shape, device=device)
    return torch.randint(data.vocabulary_size, (rows, *data.shape), device=device)
