"""What layers are made of: matrices, tables and norms that may be shards, and the group over which they are split."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, assert_never

import torch
import torch.nn.functional as F  # noqa: N812  (the name every torch program uses)
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from galvatron_planner.model import LayerSpec, Normalization

INITIAL_STD = 0.02
"""Standard deviation of initial weights (Radford et al. 2019)."""


Matrix = tuple[Tensor, Tensor | None]
"""This device's shard of a weight, and of its bias if there is one."""


class TensorGroup(Protocol):
    """The devices over which one layer's tensors are split, as the layer sees them.

    Between split matrices they hold the same, or with a ``sequence_degree`` each holds other tokens (dim 1).
    """

    @property
    def rank(self) -> int:
        """Which shard this device holds."""

    @property
    def size(self) -> int:
        """Number of shards."""

    @property
    def sequence_degree(self) -> int:
        """Ways in which tokens are split: ``size``, or 1."""

    def multiply(self, x: Tensor, matrices: Sequence[Matrix]) -> tuple[Tensor, ...]:
        """Apply matrices whose outputs are split to all tokens of ``x``; backward its gradients are summed."""

    def leave(self, partial: Tensor) -> Tensor:
        """Sum the partial results of split work, and keep this device's tokens of them."""

    def total(self, partial: Tensor) -> Tensor:
        """Sum partial results; every device needs, and backward has, the whole."""

    def maximum(self, values: Tensor) -> Tensor:
        """Take the elementwise maximum over the group; not differentiated."""


@dataclass(frozen=True, slots=True)
class NoCollectives:
    """A group of one, or (with a size) one device that computes its shard without ever talking to the others."""

    rank: int = 0
    size: int = 1
    sequence_degree: int = 1

    def enter(self, hidden: Tensor) -> Tensor:
        """Do nothing; for layers of the user's own."""
        return hidden

    def multiply(self, x: Tensor, matrices: Sequence[Matrix]) -> tuple[Tensor, ...]:
        """Apply matrices."""
        return tuple(F.linear(x, weight, bias) for weight, bias in matrices)

    def leave(self, partial: Tensor) -> Tensor:
        """Do nothing."""
        return partial

    def total(self, partial: Tensor) -> Tensor:
        """Do nothing."""
        return partial

    def maximum(self, values: Tensor) -> Tensor:
        """Do nothing."""
        return values


def local(parameter: Tensor) -> Tensor:
    """Return this device's shard of a parameter as a plain tensor, whose gradient reaches the parameter."""
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter


class Linear(nn.Module):
    """A matrix of shape [outputs, inputs] and perhaps a bias of shape [outputs]; either may be a shard."""

    def __init__(self, *, inputs: int, outputs: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(random_values(outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None

    @property
    def shard(self) -> Matrix:
        """What this device holds, as plain tensors."""
        return local(self.weight), None if self.bias is None else local(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Apply matrix and bias: [..., inputs] to [..., outputs]."""
        return F.linear(x, *self.shard)


class Table(nn.Module):
    """Rows of shape [rows, columns] that are looked up; it may be a shard."""

    def __init__(self, *, rows: int, columns: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(random_values(rows, columns))


class LayerNorm(nn.Module):
    """Normalise mean and variance of the hidden dim (Ba et al. 2016)."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        """Normalise [..., H]."""
        weight = local(self.weight)
        return F.layer_norm(x, weight.shape, weight, local(self.bias), self.epsilon)


class RmsNorm(nn.Module):
    """Normalise the mean square of the hidden dim (Zhang and Sennrich 2019)."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        """Normalise [..., H]."""
        weight = local(self.weight)
        return F.rms_norm(x, weight.shape, weight, self.epsilon)


def build_norm(kind: Normalization, width: int, epsilon: float) -> nn.Module:
    """Build a norm of a width."""
    match kind:
        case Normalization.LAYER_NORM:
            return LayerNorm(width, epsilon)
        case Normalization.RMS_NORM:
            return RmsNorm(width, epsilon)
        case _:
            assert_never(kind)


class LayerModule(nn.Module):
    """One layer that can be put under a strategy.

    Attributes:
        layer: its shape, whole.
        tensor_group: where split results meet; replaced when the parameters are split.
    """

    def __init__(self, layer: LayerSpec) -> None:
        super().__init__()
        self.layer = layer
        self.tensor_group: TensorGroup = NoCollectives()

    def expand(self, x: Tensor, *linears: Linear) -> tuple[Tensor, ...]:
        """Apply matrices whose outputs are split."""
        return self.tensor_group.multiply(x, [one.shard for one in linears])

    def contract(self, linear: Linear, x: Tensor) -> Tensor:
        """Apply a matrix whose inputs are split: sum the partial products, then add the whole bias once."""
        if self.tensor_group.size == 1:
            result: Tensor = linear(x)
            return result
        product = self.tensor_group.leave(F.linear(x, local(linear.weight)))
        return product if linear.bias is None else product + local(linear.bias)

    def look_up(self, table: Table, tokens: Tensor, vocabulary_size: int) -> Tensor:
        """Look tokens [B, S] up in a table whose rows may be split: [B, S, H]."""
        weight = local(table.weight)
        if self.tensor_group.size == 1:
            return F.embedding(tokens, weight)
        rows, owned = own_rows(tokens, vocabulary_size, len(weight), self.tensor_group)
        return self.tensor_group.leave(F.embedding(rows, weight) * owned.unsqueeze(-1).to(weight.dtype))


def own_tokens(values: Tensor, group: TensorGroup) -> Tensor:
    """Find this device's tokens in what holds all of them: [S, ...]."""
    share = len(values) // group.sequence_degree
    first = group.rank % group.sequence_degree * share
    return values[first : first + share]


def own_rows(tokens: Tensor, vocabulary_size: int, num_rows: int, group: TensorGroup) -> tuple[Tensor, Tensor]:
    """Translate tokens to rows of this device's vocabulary shard (row 0 for those of others), and mark its own."""
    first = group.rank * -(-vocabulary_size // group.size)
    owned = (tokens >= first) & (tokens < first + num_rows)
    return torch.where(owned, tokens - first, 0), owned


def random_values(*shape: int) -> Tensor:
    """Draw initial weights on the current device."""
    values = torch.empty(shape)
    # On meta there is nothing to draw, and trying to would import the compiler for seconds.
    return values if values.is_meta else values.normal_(std=INITIAL_STD)
