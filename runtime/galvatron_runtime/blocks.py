# ruff: noqa: N803, N806  (tensor names end in their dims)
"""The torch modules of every layer: what a plan splits, and what measuring times.

In the line *job -> profile -> plan -> training* both profile and training run these modules and no others. Parameter
names, shapes and order are those of ``galvatron_planner.workload.parameters``. A module knows that its tensors may be
split (its parameters may be DTensors, and it calls ``tensor_group`` where split results meet), but not how, nor that
data or pipeline parallelism exist.

# B rows of a micro-batch on this device, S sequence, H hidden, N heads, D head size, V vocabulary
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol, assert_never

import torch
import torch.nn.functional as F  # noqa: N812  (the name every torch program uses)
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from galvatron_planner.errors import GalvatronError
from galvatron_planner.families import TRAINABLE_FAMILIES
from galvatron_planner.model import (
    Attention,
    Block,
    Embedding,
    Head,
    LayerSpec,
    Mlp,
    Normalization,
    Pooling,
    Positions,
)

INITIAL_STD = 0.02
"""Standard deviation of initial weights (Radford et al. 2019)."""
NORM_EPSILON = 1e-5

TrainableLayer = Embedding | Block | Head
"""The kinds of layers with modules; :func:`build_layer` refuses some of their shapes."""


class UntrainableLayer(GalvatronError):
    """A layer that can be planned, but has no module yet."""


class TensorGroup(Protocol):
    """The devices over which one layer's tensors are split, as the layer sees them."""

    @property
    def rank(self) -> int:
        """Which shard this device holds."""

    @property
    def size(self) -> int:
        """Number of shards."""

    def enter(self, hidden: Tensor) -> Tensor:
        """Hand a replicated tensor to split work: nothing forward, the sum of the gradients backward."""

    def leave(self, partial: Tensor) -> Tensor:
        """Sum the partial results of split work: the sum forward, nothing backward."""

    def maximum(self, values: Tensor) -> Tensor:
        """Take the elementwise maximum over the group; not differentiated."""


@dataclass(frozen=True, slots=True)
class NoCollectives:
    """A group of one, or (with a size) one device that computes its shard without ever talking to the others."""

    rank: int = 0
    size: int = 1

    def enter(self, hidden: Tensor) -> Tensor:
        """Do nothing."""
        return hidden

    def leave(self, partial: Tensor) -> Tensor:
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
        self.weight = nn.Parameter(_random(outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Apply matrix and bias: [..., inputs] to [..., outputs]."""
        return F.linear(x, local(self.weight), None if self.bias is None else local(self.bias))


class Table(nn.Module):
    """Rows of shape [rows, H] that are looked up; it may be a shard."""

    def __init__(self, *, rows: int, hidden_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(_random(rows, hidden_size))


class LayerNorm(nn.Module):
    """Normalise mean and variance of the hidden dim (Ba et al. 2016)."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.bias = nn.Parameter(torch.zeros(hidden_size))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise [..., H]."""
        weight = local(self.weight)
        return F.layer_norm(x, weight.shape, weight, local(self.bias), NORM_EPSILON)


class RmsNorm(nn.Module):
    """Normalise the mean square of the hidden dim (Zhang and Sennrich 2019)."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise [..., H]."""
        weight = local(self.weight)
        return F.rms_norm(x, weight.shape, weight, NORM_EPSILON)


class LayerModule(nn.Module):
    """One layer that can be put under a strategy.

    Attributes:
        layer: its shape, whole.
        tensor_group: where split results meet; replaced when the parameters are split.
    """

    def __init__(self, layer: TrainableLayer) -> None:
        super().__init__()
        self.layer = layer
        self.tensor_group: TensorGroup = NoCollectives()

    def contract(self, linear: Linear, x: Tensor) -> Tensor:
        """Apply a matrix whose inputs are split: sum the partial products, then add the whole bias once."""
        if self.tensor_group.size == 1:
            result: Tensor = linear(x)
            return result
        product = self.tensor_group.leave(F.linear(x, local(linear.weight)))
        return product if linear.bias is None else product + local(linear.bias)


class EmbeddingLayer(LayerModule):
    """Token ids [B, S] to hidden vectors [B, S, H]; the vocabulary may be split."""

    def __init__(self, layer: Embedding) -> None:
        super().__init__(layer)
        self.vocabulary_size = layer.vocabulary_size
        self.tokens = Table(rows=layer.vocabulary_size, hidden_size=layer.hidden_size)
        learned = layer.positions is Positions.LEARNED
        self.positions = Table(rows=layer.sequence_length, hidden_size=layer.hidden_size) if learned else None

    def forward(self, tokens_BS: Tensor) -> Tensor:
        """Look tokens up, add positions."""
        hidden_BSH = self._look_up(tokens_BS)
        if self.positions is None:
            return hidden_BSH
        return hidden_BSH + local(self.positions.weight)[: tokens_BS.shape[1]]

    def _look_up(self, tokens: Tensor) -> Tensor:
        table = local(self.tokens.weight)
        if self.tensor_group.size == 1:
            return F.embedding(tokens, table)
        rows, owned = _own_rows(tokens, self.vocabulary_size, len(table), self.tensor_group)
        return self.tensor_group.leave(F.embedding(rows, table) * owned.unsqueeze(-1).to(table.dtype))


class BlockLayer(LayerModule):
    """One causal Transformer block, pre-norm: [B, S, H] to [B, S, H]; heads and inner width may be split."""

    def __init__(self, layer: Block) -> None:
        super().__init__(layer)
        hidden, inner, query_bias = layer.hidden_size, layer.feed_forward_size, layer.bias or layer.query_bias
        self.head_size = layer.head_size
        self.rotary_base = layer.rotary_base if layer.positions is Positions.ROTARY else None
        self.attention_norm = _norm(hidden, layer.norm)
        self.query = Linear(inputs=hidden, outputs=layer.query_size, bias=query_bias)
        self.key = Linear(inputs=hidden, outputs=layer.key_value_size, bias=query_bias)
        self.value = Linear(inputs=hidden, outputs=layer.key_value_size, bias=query_bias)
        self.output = Linear(inputs=layer.query_size, outputs=hidden, bias=layer.bias)
        self.mlp_norm = _norm(hidden, layer.norm)
        self.gate = Linear(inputs=hidden, outputs=inner, bias=layer.bias) if layer.mlp is Mlp.SWIGLU else None
        self.up = Linear(inputs=hidden, outputs=inner, bias=layer.bias)
        self.down = Linear(inputs=inner, outputs=hidden, bias=layer.bias)

    def forward(self, hidden_BSH: Tensor) -> Tensor:
        """Add attention, then the feed-forward part."""
        hidden_BSH = hidden_BSH + self._attend(self.tensor_group.enter(self.attention_norm(hidden_BSH)))
        return hidden_BSH + self._feed_forward(self.tensor_group.enter(self.mlp_norm(hidden_BSH)))

    def _attend(self, x: Tensor) -> Tensor:
        query_BNSD = self._heads(self.query(x))
        key_BNSD = self._heads(self.key(x))
        value_BNSD = self._heads(self.value(x))
        if self.rotary_base is not None:
            query_BNSD, key_BNSD = rotate(query_BNSD, self.rotary_base), rotate(key_BNSD, self.rotary_base)
        grouped = query_BNSD.shape[1] != key_BNSD.shape[1]
        mixed_BNSD = F.scaled_dot_product_attention(
            query_BNSD, key_BNSD, value_BNSD, is_causal=True, enable_gqa=grouped
        )
        return self.contract(self.output, mixed_BNSD.transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], -1, self.head_size).transpose(1, 2)

    def _feed_forward(self, x: Tensor) -> Tensor:
        if self.gate is None:
            # The tanh form is GPT-2's.
            return self.contract(self.down, F.gelu(self.up(x), approximate="tanh"))
        return self.contract(self.down, F.silu(self.gate(x)) * self.up(x))


class HeadLayer(LayerModule):
    """Final norm, projection and cross entropy: hidden [B, S, H] and targets [B, S] to one summed loss."""

    def __init__(self, layer: Head) -> None:
        super().__init__(layer)
        self.vocabulary_size = layer.vocabulary_size
        self.norm = _norm(layer.hidden_size, layer.norm)
        self.projection = Linear(inputs=layer.hidden_size, outputs=layer.vocabulary_size, bias=False)

    def forward(self, hidden_BSH: Tensor, targets_BS: Tensor) -> Tensor:
        """Sum the cross entropy over this device's tokens; the softmax is in FP32, or FP64 when the layer is."""
        logits = self.projection(self.tensor_group.enter(self.norm(hidden_BSH))).flatten(0, 1)
        logits = logits if logits.dtype is torch.float64 else logits.float()
        targets = targets_BS.flatten()
        if self.tensor_group.size == 1:
            return F.cross_entropy(logits, targets, reduction="sum")
        return self._split_cross_entropy(logits, targets)

    def _split_cross_entropy(self, logits: Tensor, targets: Tensor) -> Tensor:
        # Every device holds the logits of its part of the vocabulary: [B * S, V / size].
        group = self.tensor_group
        logits = logits - group.maximum(logits.detach().amax(-1)).unsqueeze(-1)
        columns, owned = _own_rows(targets, self.vocabulary_size, logits.shape[1], group)
        chosen = logits.gather(1, columns.unsqueeze(1)).squeeze(1) * owned.to(logits.dtype)
        return (group.leave(logits.exp().sum(-1)).log() - group.leave(chosen)).sum()


def build_layer(layer: LayerSpec) -> LayerModule:
    """Build a layer on torch's current default device and dtype, with usable initial values.

    Raises:
        UntrainableLayer: when it belongs to a family that can only be planned.
    """
    match layer:
        case Embedding(num_segments=0, norm=None, memory_length=0):
            return EmbeddingLayer(layer)
        case Block(
            attention=Attention.CAUSAL,
            post_norm=False,
            window_size=0,
            memory_length=0,
            positions=Positions.LEARNED | Positions.ROTARY,
            mlp=Mlp.GELU | Mlp.SWIGLU,
        ):
            return BlockLayer(layer)
        case Head(pooling=Pooling.ALL, transform=False, bias=False, memory_length=0):
            return HeadLayer(layer)
        case _:
            raise UntrainableLayer(
                f"this runtime trains {', '.join(TRAINABLE_FAMILIES)}; the model's {layer.kind} layers are of another"
                " family, which can be planned but not trained yet",
                remedy="plan it with galvatron plan or spec.execution: Plan, or train another family",
            )


def _random(rows: int, columns: int) -> Tensor:
    values = torch.empty(rows, columns)
    # On meta there is nothing to draw, and trying to would import the compiler for seconds.
    return values if values.is_meta else values.normal_(std=INITIAL_STD)


def _norm(hidden_size: int, kind: Normalization) -> nn.Module:
    match kind:
        case Normalization.LAYER_NORM:
            return LayerNorm(hidden_size)
        case Normalization.RMS_NORM:
            return RmsNorm(hidden_size)
        case _:
            assert_never(kind)


def _own_rows(tokens: Tensor, vocabulary_size: int, num_rows: int, group: TensorGroup) -> tuple[Tensor, Tensor]:
    """Translate tokens to rows of this device's vocabulary shard (row 0 for those of others), and mark its own."""
    first = group.rank * -(-vocabulary_size // group.size)
    owned = (tokens >= first) & (tokens < first + num_rows)
    return torch.where(owned, tokens - first, 0), owned


def rotate(x_BNSD: Tensor, base: int) -> Tensor:
    """Turn each pair (i, i + D/2) of a head by position times frequency i (Su et al. 2021, arXiv 2104.09864)."""
    cosine, sine = _rotary_tables(tuple(x_BNSD.shape[-2:]), base, x_BNSD.dtype, x_BNSD.device)
    first, second = x_BNSD.chunk(2, dim=-1)
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1)


@lru_cache(maxsize=8)
def _rotary_tables(shape: Sequence[int], base: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    length, head_size = shape
    exponents = torch.arange(0, head_size, 2, dtype=torch.float64, device=device) / head_size
    angles = torch.outer(torch.arange(length, dtype=torch.float64, device=device), float(base) ** -exponents)
    return angles.cos().to(dtype), angles.sin().to(dtype)
