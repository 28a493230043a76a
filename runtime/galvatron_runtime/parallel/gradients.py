"""What all kinds of data parallelism share: when gradients are summed, and how large they are all together.

Gradients are summed, never averaged: the loss is scaled once by the tokens of the global batch, so unequal data degrees
within one model need no special case.
"""

from collections.abc import Iterable
from math import prod
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor


class GradientReduction(Protocol):
    """How one layer's gradients come together over the devices that saw different rows."""

    def start_step(self) -> None:
        """Forget the gradients of the last step."""

    def before_backward(self, *, is_last: bool) -> None:
        """Prepare for one micro-batch's backward pass; ``is_last`` when it is the last of the step."""

    def finish_step(self) -> None:
        """Wait until the sums stand in the parameters' gradients."""


@torch.no_grad()
def global_norm(parameters: Iterable[Tensor], *, devices_per_stage: int, device: torch.device) -> Tensor:
    """Euclidean norm of all gradients of all stages, equal on every rank; a scalar in FP64.

    A tensor lies in ``shards`` different pieces on the devices of its stage, each piece on
    ``devices_per_stage / shards`` of them, so every square is weighted by the inverse. One all-reduce.
    """
    squares = torch.zeros((), dtype=torch.float64, device=device)
    for gradient in (parameter.grad for parameter in parameters if parameter.grad is not None):
        weight = num_shards(gradient) / devices_per_stage
        squares += local_part(gradient).square().sum(dtype=torch.float64) * weight
    dist.all_reduce(squares)
    return squares.sqrt()


@torch.no_grad()
def scale(parameters: Iterable[Tensor], factor: Tensor) -> None:
    """Multiply all gradients by a scalar."""
    gradients = [local_part(p.grad) for p in parameters if p.grad is not None]
    torch._foreach_mul_(gradients, factor.to(gradients[0].dtype))  # one kernel for all; the optimizers use it as well


def num_shards(tensor: Tensor) -> int:
    """Count the different pieces in which a tensor lies on the devices of its mesh."""
    if not isinstance(tensor, DTensor):
        return 1
    # Not is_shard(): torch 2.13 says False for the strided shards of tensor plus sharded data parallelism.
    axes = zip(tensor.device_mesh.shape, tensor.placements, strict=True)
    return prod(degree for degree, placement in axes if not placement.is_replicate())


@torch.no_grad()
def local_part(tensor: Tensor) -> Tensor:
    """This device's piece of a tensor, sharing its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
