# ruff: noqa: N806  (tensor names end in their dims)
"""Sequence parallelism: between the split matrices of a layer, every device of its tensor group holds other tokens.

Norms, sums and what layers hand on are then as small as everything else. Tokens are gathered before a matrix whose
outputs are split, and again in the backward pass: keeping them would undo half of what is saved. Sums of partial
results are scattered.

Source: Korthikanti et al. 2022 (arXiv 2205.05198), section 4.2.2.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812  (the name every torch program uses)
from torch import Tensor, autograd, nn

from galvatron_planner.workload import parameters
from galvatron_runtime.blocks import LayerModule, Matrix, TensorGroup, local


@dataclass(frozen=True, slots=True)
class TokenExchange:
    """Moves tokens (dim 1) between the devices of a group; nothing here is differentiated.

    Attributes:
        size: number of devices.
        group: their process group; None for one of them alone, which makes all copies and never talks to the others.
    """

    size: int
    group: dist.ProcessGroup | None = None

    def gather(self, values: Tensor) -> Tensor:
        """Put the tokens of all devices together: [B, S / size, ...] to [B, S, ...]."""
        rows, tokens, *width = values.shape
        # Collectives want the parts of the devices one after another.
        parts = values.new_empty((self.size * rows, tokens, *width))
        if self.group is None:
            parts.view(self.size, *values.shape).copy_(values)
        else:
            dist.all_gather_single(parts, values.contiguous(), group=self.group)
        return parts.view(self.size, *values.shape).transpose(0, 1).reshape(rows, self.size * tokens, *width)

    def scatter(self, partial: Tensor) -> Tensor:
        """Sum partial results, and keep this device's tokens: [B, S, ...] to [B, S / size, ...]."""
        rows, tokens, *width = partial.shape
        parts = partial.reshape(rows, self.size, tokens // self.size, *width).transpose(0, 1).flatten(0, 1)
        own = partial.new_empty((rows, tokens // self.size, *width))
        if self.group is None:
            own.copy_(parts[:rows])
        else:
            dist.reduce_scatter_single(own, parts.contiguous(), group=self.group)
        return own


@dataclass(frozen=True, slots=True)
class SequenceGroup:
    """The devices of one tensor-parallel group that split tokens as well (a ``TensorGroup``).

    Attributes:
        whole: the same devices, for what all of them hold whole.
        tokens: how they exchange tokens.
    """

    whole: TensorGroup
    tokens: TokenExchange

    @property
    def rank(self) -> int:
        """Which shard, and which tokens, this device holds."""
        return self.whole.rank

    @property
    def size(self) -> int:
        """Number of shards."""
        return self.whole.size

    @property
    def sequence_degree(self) -> int:
        """Number of slices of the tokens."""
        return self.whole.size

    def multiply(self, x: Tensor, matrices: Sequence[Matrix]) -> tuple[Tensor, ...]:
        """Gather the tokens and apply matrices; backward gather again, and scatter the sum of the gradients."""
        weights, biases = zip(*matrices, strict=True)
        products = _GatherAndMultiply.apply(self.tokens, len(weights), x, *weights, *biases)  # type: ignore[no-untyped-call]  # torch
        return cast(tuple[Tensor, ...], products)

    def leave(self, partial: Tensor) -> Tensor:
        """Sum the partial results, and keep this device's tokens; backward gather the gradients."""
        return cast(Tensor, _Scatter.apply(partial, self.tokens))  # type: ignore[no-untyped-call]  # torch

    def total(self, partial: Tensor) -> Tensor:
        """Sum partial results."""
        return self.whole.total(partial)

    def maximum(self, values: Tensor) -> Tensor:
        """Take the elementwise maximum."""
        return self.whole.maximum(values)


def sum_gradients_of_whole_parameters(module: LayerModule, group: dist.ProcessGroup) -> None:
    """Sum the gradients of what a layer holds whole over the group, whose devices see other tokens each.

    In one collective per backward pass, and before any data parallelism gets them.
    """
    places = [parameter.name.rpartition(".") for parameter in parameters(module.layer) if parameter.split_dim is None]
    if places:
        owners = [(module.get_submodule(owner), leaf) for owner, _, leaf in places]
        module.forward = partial(_forward_with_sums, module.forward, owners, group)


def _forward_with_sums(
    forward: Any, owners: Sequence[tuple[nn.Module, str]], group: dist.ProcessGroup, *stream: Tensor
) -> Any:
    held = [local(getattr(owner, leaf)) for owner, leaf in owners]
    summed = _SumAllGradients.apply(group, *held)  # type: ignore[no-untyped-call]  # torch
    with _standing_in(owners, summed):
        return forward(*stream)


@contextmanager
def _standing_in(owners: Sequence[tuple[nn.Module, str]], values: Sequence[Tensor]) -> Iterator[None]:
    """Let modules compute with other tensors in the place of parameters."""
    usual = [owner._parameters[leaf] for owner, leaf in owners]
    try:
        for (owner, leaf), value in zip(owners, values, strict=True):
            owner._parameters[leaf] = cast(nn.Parameter, value)
        yield
    finally:
        for (owner, leaf), parameter in zip(owners, usual, strict=True):
            owner._parameters[leaf] = parameter


class _GatherAndMultiply(autograd.Function):
    @staticmethod
    def forward(context: Any, tokens: TokenExchange, num: int, x: Tensor, *shards: Tensor | None) -> tuple[Tensor, ...]:
        weights, biases = cast(tuple[Tensor, ...], shards[:num]), shards[num:]
        context.tokens = tokens
        context.has_bias = [bias is not None for bias in biases]
        context.save_for_backward(x, *weights)
        x_BSH = tokens.gather(x)
        return tuple(F.linear(x_BSH, weight, bias) for weight, bias in zip(weights, biases, strict=True))

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, *weights = context.saved_tensors
        whole = gradients[0] @ weights[0]
        for gradient, weight in zip(gradients[1:], weights[1:], strict=True):
            whole.view(-1, whole.shape[-1]).addmm_(gradient.flatten(0, -2), weight)
        entering = context.tokens.scatter(whole)
        del whole
        x_TH = context.tokens.gather(x).flatten(0, -2)
        of_weights = [gradient.flatten(0, -2).mT @ x_TH for gradient in gradients]
        of_biases = [
            gradient.flatten(0, -2).sum(0) if has_bias else None
            for gradient, has_bias in zip(gradients, context.has_bias, strict=True)
        ]
        return None, None, entering, *of_weights, *of_biases


class _Scatter(autograd.Function):
    @staticmethod
    def forward(context: Any, partial: Tensor, tokens: TokenExchange) -> Tensor:
        context.tokens = tokens
        return tokens.scatter(partial)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return context.tokens.gather(gradients[0]), None


class _SumAllGradients(autograd.Function):
    @staticmethod
    def forward(context: Any, group: dist.ProcessGroup, *values: Tensor) -> tuple[Tensor, ...]:
        context.group = group
        return tuple(value.view_as(value) for value in values)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat, group=context.group)
        parts = torch.split(flat, [gradient.numel() for gradient in gradients])
        return None, *(part.view(one.shape) for part, one in zip(parts, gradients, strict=True))
