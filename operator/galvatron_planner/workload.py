"""Parameters, FLOPs and boundary bytes of a layer: what follows from its shape alone, without measuring.

The parameter table is the single source for names, shapes and tensor-parallel splits: the cost model counts state
bytes with it, and the runtime builds, initialises, splits and saves parameters by it.
"""

from dataclasses import dataclass
from math import prod
from typing import assert_never

from galvatron_planner.model import (
    Block,
    Embedding,
    Head,
    LayerSpec,
    Mlp,
    Normalization,
    Positions,
    Precision,
)


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter tensor of a layer.

    Attributes:
        name: as in the runtime's modules and in training checkpoints.
        shape: global shape.
        split_dim: the dim that tensor parallelism splits, or None when every rank holds the whole tensor.
    """

    name: str
    shape: tuple[int, ...]
    split_dim: int | None = None

    @property
    def num_elements(self) -> int:
        """Elements of the global tensor."""
        return prod(self.shape)

    def local_elements(self, tensor_degree: int) -> int:
        """Elements that the largest of ``tensor_degree`` ranks holds."""
        if self.split_dim is None:
            return self.num_elements
        rows = self.shape[self.split_dim]
        return self.num_elements // rows * -(-rows // tensor_degree)


def parameters(layer: LayerSpec) -> tuple[Parameter, ...]:
    """List the parameter tensors of a layer in the order in which its module registers them."""
    match layer:
        case Embedding():
            return _embedding_parameters(layer)
        case Block():
            return (*_attention_parameters(layer), *_mlp_parameters(layer))
        case Head():
            vocabulary = Parameter("projection.weight", (layer.vocabulary_size, layer.hidden_size), 0)
            return (*_norm_parameters("norm", layer.hidden_size, layer.norm), vocabulary)
        case _:
            assert_never(layer)


def _embedding_parameters(layer: Embedding) -> tuple[Parameter, ...]:
    tokens = Parameter("tokens.weight", (layer.vocabulary_size, layer.hidden_size), 0)
    if layer.positions is Positions.ROTARY:
        return (tokens,)
    return (tokens, Parameter("positions.weight", (layer.sequence_length, layer.hidden_size)))


def _norm_parameters(name: str, width: int, norm: Normalization) -> tuple[Parameter, ...]:
    weight = Parameter(f"{name}.weight", (width,))
    if norm is Normalization.RMS_NORM:
        return (weight,)
    return (weight, Parameter(f"{name}.bias", (width,)))


def _linear_parameters(name: str, *, outputs: int, inputs: int, split_dim: int, bias: bool) -> tuple[Parameter, ...]:
    weight = Parameter(f"{name}.weight", (outputs, inputs), split_dim)
    if not bias:
        return (weight,)
    # Splitting the inputs leaves partial sums: their bias is added once, after the reduction, by every rank.
    return (weight, Parameter(f"{name}.bias", (outputs,), 0 if split_dim == 0 else None))


def _attention_parameters(layer: Block) -> tuple[Parameter, ...]:
    hidden = layer.hidden_size
    key_value = layer.num_key_value_heads * layer.head_size
    return (
        *_norm_parameters("attention_norm", hidden, layer.norm),
        *_linear_parameters("query", outputs=hidden, inputs=hidden, split_dim=0, bias=layer.bias),
        *_linear_parameters("key", outputs=key_value, inputs=hidden, split_dim=0, bias=layer.bias),
        *_linear_parameters("value", outputs=key_value, inputs=hidden, split_dim=0, bias=layer.bias),
        *_linear_parameters("output", outputs=hidden, inputs=hidden, split_dim=1, bias=layer.bias),
    )


def _mlp_parameters(layer: Block) -> tuple[Parameter, ...]:
    hidden, inner = layer.hidden_size, layer.feed_forward_size
    gate = (
        _linear_parameters("gate", outputs=inner, inputs=hidden, split_dim=0, bias=layer.bias)
        if layer.mlp is Mlp.SWIGLU
        else ()
    )
    return (
        *_norm_parameters("mlp_norm", hidden, layer.norm),
        *gate,
        *_linear_parameters("up", outputs=inner, inputs=hidden, split_dim=0, bias=layer.bias),
        *_linear_parameters("down", outputs=hidden, inputs=inner, split_dim=1, bias=layer.bias),
    )


def num_parameters(layer: LayerSpec) -> int:
    """Count the elements of all parameters of a layer."""
    return sum(parameter.num_elements for parameter in parameters(layer))


def boundary_bytes(layer: LayerSpec, precision: Precision) -> int:
    """Bytes of one sample of the hidden activation (sequence x hidden) that enters or leaves a layer."""
    return layer.sequence_length * layer.hidden_size * precision.activation_bytes


def forward_flops(layer: LayerSpec) -> int:
    """Multiply-adds of one sample's forward pass, counted as two operations each.

    Matrix products with parameters cost ``2 * parameters * tokens``; attention adds ``4 * S * S * H`` for the scores
    and the weighted sum (Narayanan et al. 2021, arXiv 2104.04473, appendix; the causal half is not subtracted).
    Look-ups, norms and activation functions are not counted.
    """
    tokens = layer.sequence_length
    matrices = sum(p.num_elements for p in parameters(layer) if len(p.shape) == 2)
    match layer:
        case Embedding():
            return 0
        case Block():
            return 2 * tokens * matrices + 4 * tokens * tokens * layer.hidden_size
        case Head():
            return 2 * tokens * matrices
        case _:
            assert_never(layer)
