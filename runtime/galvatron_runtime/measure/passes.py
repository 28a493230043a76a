"""One layer as a device of its tensor group runs it: built, split, fed, run forward and backward.

The modules are those of training. Communication is left out (links are measured on their own), and so is sharding,
which changes where parameters lie but not what is computed.
"""

from dataclasses import dataclass
from typing import assert_never

import torch
from torch import Tensor

from galvatron_planner.model import Block, Embedding, Head, LayerSpec, Precision
from galvatron_runtime.blocks import LayerModule, build_layer
from galvatron_runtime.model import activation_dtype
from galvatron_runtime.parallel.tensor import split_for_measurement


@dataclass(frozen=True, slots=True)
class LayerPass:
    """A layer and what it is fed.

    Attributes:
        module: the layer, or one device's part of it.
        inputs: arguments of its forward pass.
        output_gradient: gradient of its output, None for the head's loss.
    """

    module: LayerModule
    inputs: tuple[Tensor, ...]
    output_gradient: Tensor | None

    def forward(self) -> Tensor:
        """Run the layer as a stage does."""
        output: Tensor = self.module(*self.inputs)
        return output

    def backward(self, output: Tensor) -> None:
        """Compute gradients; those of parameters are added to what is there, as over micro-batches."""
        self.inputs[0].grad = None
        torch.autograd.backward(output, self.output_gradient)

    def run(self) -> None:
        """Run one pass both ways."""
        self.backward(self.forward())

    def forget_gradients(self) -> None:
        """Free the gradients."""
        self.inputs[0].grad = None
        self.module.zero_grad(set_to_none=True)

    @property
    def input_bytes(self) -> int:
        """Bytes of the layer's input: hidden vectors or token ids, not targets."""
        return self.inputs[0].nbytes


def build(layer: LayerSpec, *, tensor_degree: int, precision: Precision, device: torch.device) -> LayerModule:
    """Build the part of a layer that the first of ``tensor_degree`` devices computes with."""
    with device:
        module = build_layer(layer)
    split_for_measurement(module, tensor_degree)
    return module.to(activation_dtype(precision))


def feed(module: LayerModule, *, micro_batch_size: int, precision: Precision, device: torch.device) -> LayerPass:
    """Make inputs and the output's gradient for a local micro-batch."""
    layer = module.layer
    shape = (micro_batch_size, layer.sequence_length)
    hidden = torch.randn(
        *shape, layer.hidden_size, dtype=activation_dtype(precision), device=device, requires_grad=True
    )
    gradient = torch.randn_like(hidden, requires_grad=False)
    match layer:
        case Embedding():
            return LayerPass(module, (_tokens(layer, shape, device),), gradient)
        case Block():
            return LayerPass(module, (hidden,), gradient)
        case Head():
            return LayerPass(module, (hidden, _tokens(layer, shape, device)), None)
        case _:
            assert_never(layer)


def _tokens(layer: Embedding | Head, shape: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.randint(layer.vocabulary_size, shape, device=device)
