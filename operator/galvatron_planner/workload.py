"""Parameters, FLOPs and boundary bytes of a layer: what follows from its shape alone, without measuring.

The parameter table is the single source for names, shapes and tensor-parallel splits: the cost model counts state
bytes with it, and the runtime builds, initialises, splits and saves parameters by it.
"""

from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from math import isqrt, prod
from typing import assert_never

from galvatron_planner.model import (
    Block,
    Embedding,
    Head,
    LayerSpec,
    Merge,
    Mlp,
    Normalization,
    Patches,
    Positions,
    Precision,
)
from galvatron_planner.own import DataKind, OwnLayer, Shape

DISTANCE_BUCKETS = 32
"""Rows of a table of distances between tokens of a text (Raffel et al. 2020, arXiv 1910.10683, section 2.1)."""


OWN_PREFIX = "own."
"""Before the names of parameters of the user's modules."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter tensor of a layer.

    Attributes:
        name: as in the runtime's modules and in training checkpoints.
        shape: global shape.
        split_dim: the dim that tensor parallelism splits, or None when every rank holds the whole tensor.
        num_products: vectors of one sample that the matrix multiplies; 0 for what is looked up or added.
    """

    name: str
    shape: tuple[int, ...]
    split_dim: int | None = None
    num_products: int = 0

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


@lru_cache(maxsize=1024)
def parameters(layer: LayerSpec) -> tuple[Parameter, ...]:
    """List the parameter tensors of a layer in the order in which its module registers them."""
    match layer:
        case Embedding():
            return _embedding_parameters(layer)
        case Patches():
            return _patches_parameters(layer)
        case Block():
            memory = _memory_parameters(layer) if layer.memory_length else ()
            return (*_attention_parameters(layer), *memory, *_mlp_parameters(layer))
        case Merge():
            merged = 4 * layer.hidden_size
            reduction = Parameter(
                "reduction.weight", (2 * layer.hidden_size, merged), num_products=layer.sequence_length // 4
            )
            return (*_norm_parameters("norm", merged, layer.norm), reduction)
        case Head():
            return _head_parameters(layer)
        case OwnLayer():
            return tuple(Parameter(f"{OWN_PREFIX}{one.name}", one.shape, one.split_dim) for one in layer.parameters)
        case _:
            assert_never(layer)


def _embedding_parameters(layer: Embedding) -> tuple[Parameter, ...]:
    hidden = layer.hidden_size
    tokens = Parameter("tokens.weight", (layer.vocabulary_size, hidden), 0)
    places = Parameter("positions.weight", (layer.sequence_length, hidden))
    return (
        tokens,
        *((places,) if layer.positions is Positions.LEARNED else ()),
        *((Parameter("segments.weight", (layer.num_segments, hidden)),) if layer.num_segments else ()),
        *(_norm_parameters("norm", hidden, layer.norm) if layer.norm else ()),
        *(_norm_parameters("memory_norm", hidden, Normalization.RMS_NORM) if layer.memory_length else ()),
    )


def _patches_parameters(layer: Patches) -> tuple[Parameter, ...]:
    hidden = layer.hidden_size
    num_patches = layer.sequence_length - layer.class_token
    places = Parameter("positions.weight", (layer.sequence_length, hidden))
    return (
        *((Parameter("class_token", (1, hidden)),) if layer.class_token else ()),
        Parameter("projection.weight", (hidden, layer.patch_values), num_products=num_patches),
        Parameter("projection.bias", (hidden,)),
        *((places,) if layer.positions is Positions.LEARNED else ()),
        *(_norm_parameters("norm", hidden, layer.norm) if layer.norm else ()),
    )


def _norm_parameters(name: str, width: int, norm: Normalization) -> tuple[Parameter, ...]:
    weight = Parameter(f"{name}.weight", (width,))
    if norm is Normalization.RMS_NORM:
        return (weight,)
    return (weight, Parameter(f"{name}.bias", (width,)))


def _linear_parameters(
    name: str, *, outputs: int, inputs: int, split_dim: int | None, bias: bool, num_products: int
) -> tuple[Parameter, ...]:
    weight = Parameter(f"{name}.weight", (outputs, inputs), split_dim, num_products)
    if not bias:
        return (weight,)
    # Splitting the inputs leaves partial sums: their bias is added once, after the reduction, by every rank.
    return (weight, Parameter(f"{name}.bias", (outputs,), 0 if split_dim == 0 else None))


def _attention_parameters(layer: Block) -> tuple[Parameter, ...]:
    distances = (2 * layer.window_size - 1) ** 2 if layer.window_size else DISTANCE_BUCKETS
    relative = (Parameter("relative_bias.weight", (distances, layer.num_heads), 1),)
    return (
        *_norm_parameters("attention_norm", layer.hidden_size, layer.norm),
        *_projections(layer, prefix="", key_value_products=layer.sequence_length),
        *(relative if layer.positions is Positions.RELATIVE else ()),
    )


def _memory_parameters(layer: Block) -> tuple[Parameter, ...]:
    """List the second attention of a decoder: queries from its own tokens, keys and values from the encoder's."""
    return (
        *_norm_parameters("memory_norm", layer.hidden_size, layer.norm),
        *_projections(layer, prefix="memory_", key_value_products=layer.memory_length),
    )


def _projections(layer: Block, *, prefix: str, key_value_products: int) -> tuple[Parameter, ...]:
    hidden, tokens = layer.hidden_size, layer.sequence_length
    rows = (
        ("query", layer.query_size, tokens),
        ("key", layer.key_value_size, key_value_products),
        ("value", layer.key_value_size, key_value_products),
    )
    bias = layer.bias or layer.query_bias
    split = (
        _linear_parameters(
            prefix + name, outputs=size, inputs=hidden, split_dim=0, bias=bias, num_products=num_products
        )
        for name, size, num_products in rows
    )
    output = _linear_parameters(
        prefix + "output",
        outputs=hidden,
        inputs=layer.query_size,
        split_dim=1,
        bias=layer.bias,
        num_products=tokens,
    )
    return (*chain.from_iterable(split), *output)


def _mlp_parameters(layer: Block) -> tuple[Parameter, ...]:
    hidden, inner = layer.hidden_size, layer.feed_forward_size

    def linear(name: str, *, outputs: int, inputs: int, split_dim: int) -> tuple[Parameter, ...]:
        return _linear_parameters(
            name,
            outputs=outputs,
            inputs=inputs,
            split_dim=split_dim,
            bias=layer.bias,
            num_products=layer.sequence_length,
        )

    return (
        *_norm_parameters("mlp_norm", hidden, layer.norm),
        *(linear("gate", outputs=inner, inputs=hidden, split_dim=0) if layer.mlp is Mlp.SWIGLU else ()),
        *linear("up", outputs=inner, inputs=hidden, split_dim=0),
        *linear("down", outputs=hidden, inputs=inner, split_dim=1),
    )


def _head_parameters(layer: Head) -> tuple[Parameter, ...]:
    hidden = layer.hidden_size

    def linear(name: str, *, outputs: int, split_dim: int | None) -> tuple[Parameter, ...]:
        return _linear_parameters(
            name,
            outputs=outputs,
            inputs=hidden,
            split_dim=split_dim,
            bias=layer.bias,
            num_products=layer.num_classified,
        )

    return (
        *(linear("transform", outputs=hidden, split_dim=None) if layer.transform else ()),
        *_norm_parameters("norm", hidden, layer.norm),
        *linear("projection", outputs=layer.vocabulary_size, split_dim=0),
    )


def num_parameters(layer: LayerSpec) -> int:
    """Count the elements of all parameters of a layer."""
    return sum(parameter.num_elements for parameter in parameters(layer))


def boundary_bytes(layer: LayerSpec, precision: Precision) -> int:
    """Bytes of one sample of the hidden activation (sequence x hidden) in a layer; the larger end of the user's own."""
    if isinstance(layer, OwnLayer):
        return max(input_bytes(layer, precision), output_bytes(layer, precision))
    return layer.sequence_length * layer.hidden_size * precision.activation_bytes


def memory_bytes(layer: LayerSpec, precision: Precision) -> int:
    """Bytes of one sample of the encoder's output that goes through a layer of a decoder; 0 elsewhere."""
    if isinstance(layer, Patches | Merge | OwnLayer):
        return 0
    return layer.memory_length * layer.hidden_size * precision.activation_bytes


@lru_cache(maxsize=1024)
def input_bytes(layer: LayerSpec, precision: Precision) -> int:
    """Bytes of everything that one sample brings into a layer; equal to what the layer before it puts out.

    Token ids and images come from the data, not from a layer, and count nothing.
    """
    return sum(map(prod, input_shapes(layer))) * precision.activation_bytes


def image_side(layer: Patches) -> int:
    """Pixels along a side of the images that a layer reads; they have three channels."""
    return isqrt((layer.sequence_length - layer.class_token) * layer.patch_values // 3)


def reads_data(layer: LayerSpec) -> bool:
    """Tell whether a layer is fed from the data, beside what comes from the layer before it."""
    if isinstance(layer, OwnLayer):
        return layer.data is not None and layer.data.kind is not DataKind.TARGETS
    return isinstance(layer, Embedding | Patches)


def input_shapes(layer: LayerSpec) -> tuple[Shape, ...]:
    """List the shapes (tokens and width, but for the user's layers) of what one sample brings from the layer before."""
    match layer:
        case Embedding():
            return ((layer.memory_length, layer.hidden_size),) if layer.memory_length else ()
        case Patches():
            return ()
        case Merge():
            return ((layer.sequence_length, layer.hidden_size),)
        case Block() | Head():
            memory = ((layer.memory_length, layer.hidden_size),) if layer.memory_length else ()
            return ((layer.sequence_length, layer.hidden_size), *memory)
        case OwnLayer():
            return layer.inputs
        case _:
            assert_never(layer)


def output_shapes(layer: LayerSpec) -> tuple[Shape, ...]:
    """List the shapes of what one sample hands on to the next layer; nothing after the loss."""
    match layer:
        case Embedding() | Block():
            memory = ((layer.memory_length, layer.hidden_size),) if layer.memory_length else ()
            return ((layer.sequence_length, layer.hidden_size), *memory)
        case Patches():
            return ((layer.sequence_length, layer.hidden_size),)
        case Merge():
            # A quarter of the tokens at twice the width.
            return ((layer.sequence_length // 4, 2 * layer.hidden_size),)
        case Head():
            return ()
        case OwnLayer():
            return layer.outputs
        case _:
            assert_never(layer)


@lru_cache(maxsize=1024)
def output_bytes(layer: LayerSpec, precision: Precision) -> int:
    """Bytes of everything that one sample hands on to the next layer."""
    return sum(map(prod, output_shapes(layer))) * precision.activation_bytes


def forward_flops(layer: LayerSpec, *, tensor_degree: int = 1, sequence_degree: int = 1) -> int:
    """Multiply-adds of one sample's forward pass, counted as two operations each, on one of ``tensor_degree`` devices.

    Matrix products with parameters cost ``2 * parameters * tokens``; attention adds ``4 * S * S * H`` for the scores
    and the weighted sum (Narayanan et al. 2021, arXiv 2104.04473, appendix; the causal half is not subtracted), with
    the tokens that a token can see in place of one S. Look-ups, norms and activation functions are not counted. What
    tensor parallelism does not split, every device computes, for its share of the tokens with sequence parallelism.
    """
    if isinstance(layer, OwnLayer):
        return layer.forward_flops // (tensor_degree if layer.can_be_split else 1)
    products = sum(
        2 * p.local_elements(tensor_degree) * p.num_products // (sequence_degree if p.split_dim is None else 1)
        for p in parameters(layer)
    )
    if not isinstance(layer, Block):
        return products
    seen = (layer.window_size**2 or layer.sequence_length) + layer.memory_length
    return products + 4 * layer.sequence_length * seen * layer.query_size // tensor_degree
