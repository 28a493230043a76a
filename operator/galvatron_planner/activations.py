"""Memory of a layer's passes without measuring: what it keeps for the backward pass, and what comes and goes.

For profiles that nobody measured. Counted as Korthikanti et al. 2022 (arXiv 2205.05198, section 4) count, but for
what torch saves with fused attention (no matrix of scores, one number a head and token instead), fused norms and no
dropout. A test holds the counts equal to what the runtime measures of itself.

With sequence parallelism (section 4.2 there) a device holds its tokens only of all that tensor parallelism does not
split. Matrices read gathered tokens, which are not kept.
"""

from typing import assert_never

from galvatron_planner.model import (
    Attention,
    Block,
    Embedding,
    Head,
    LayerSpec,
    Merge,
    Mlp,
    Normalization,
    Patches,
    Pooling,
    Positions,
    Precision,
)
from galvatron_planner.own import OwnLayer
from galvatron_planner.workload import boundary_bytes, input_bytes, memory_bytes, output_bytes, parameters

_TOKEN_ID_BYTES = 8
"""Of one token id, and of the row that a split table looks up for it (int64)."""

_INNER_TENSORS = {Mlp.GELU: 2, Mlp.GELU_TANH: 2, Mlp.RELU: 1, Mlp.SWIGLU: 4}
"""Inner vectors kept: before and after GELU; after ReLU; gate, gated, up and product."""


def activation_bytes(layer: LayerSpec, *, tensor_degree: int, precision: Precision, sequence_degree: int = 1) -> int:
    """Bytes that one sample keeps from forward to backward without checkpointing.

    The layer's input is included, its output is not: as in ``LayerSample.activation_bytes``.

    Args:
        layer: its shape.
        tensor_degree: ways its tensors are split.
        precision: number format of the computation.
        sequence_degree: ways the tokens are split between its split matrices: ``tensor_degree``, or 1.
    """
    match layer:
        case Embedding():
            return _embedding_bytes(layer, tensor_degree, precision, sequence_degree)
        case Patches():
            # The pixels; before the norm, where there is one, the projected patches.
            num_patches = layer.sequence_length - layer.class_token
            pixels = num_patches * layer.patch_values * precision.activation_bytes
            return pixels + (_norm_bytes(layer, layer.norm, precision) if layer.norm else 0)
        case Block():
            return _block_bytes(layer, tensor_degree, precision, sequence_degree)
        case Merge():
            # The input, the same numbers in their new order, and their norm.
            statistics = _statistics_bytes(layer.norm, precision) * layer.sequence_length // 4
            return 3 * boundary_bytes(layer, precision) + statistics
        case Head():
            return _head_bytes(layer, tensor_degree, precision, sequence_degree)
        case OwnLayer():
            return max(input_bytes(layer, precision), layer.kept_elements * precision.activation_bytes)
        case _:
            assert_never(layer)


def mask_bytes(layer: LayerSpec, *, tensor_degree: int, precision: Precision) -> int:
    """Bytes that a pass keeps whatever its number of samples: what is added to the scores of this device's heads.

    A number for every pair of tokens, from the table of distances; of windows that are shifted, for every window.
    """
    if not isinstance(layer, Block) or layer.positions is not Positions.RELATIVE:
        return 0
    heads = layer.num_heads // tensor_degree
    if not layer.window_size:
        is_hidden = layer.sequence_length**2 if layer.attention is Attention.CAUSAL else 0
        return heads * layer.sequence_length**2 * precision.activation_bytes + is_hidden
    num_windows = layer.sequence_length // layer.window_size**2
    return num_windows * heads * layer.window_size**4 * precision.activation_bytes


def transient_bytes(layer: LayerSpec, *, tensor_degree: int, precision: Precision, sequence_degree: int = 1) -> int:
    """Bytes of working memory that one sample takes above what is kept; :func:`gradient_buffer_bytes` come on top.

    The arguments are those of :func:`activation_bytes`.
    """
    boundary = boundary_bytes(layer, precision)
    # With sequence parallelism: all tokens, and the same in the order in which collectives want them.
    gathered = 2 * boundary if sequence_degree > 1 else 0
    match layer:
        case Embedding():
            # Looked-up vectors and their sum with the positions, or over the group; memory and its norm's gradient.
            summed = tensor_degree > 1 or layer.positions is Positions.LEARNED
            looked_up = boundary * (2 if summed else 1)
            return looked_up + (2 * memory_bytes(layer, precision) + (boundary if gathered else 0)) // sequence_degree
        case Patches():
            return 2 * boundary
        case Block():
            return _block_transient_bytes(layer, tensor_degree, precision, sequence_degree)
        case Merge():
            # Gradients of the output, of the norm and of the input.
            return output_bytes(layer, precision) + 2 * boundary
        case Head():
            # Softmax and gradient, one of which is kept already when the vocabulary is split; pooling spreads again.
            scores = _score_bytes(layer, tensor_degree, precision) * (2 if tensor_degree == 1 else 1)
            return max(scores, gathered) + (0 if layer.pooling is Pooling.ALL else boundary)
        case OwnLayer():
            return 2 * boundary
        case _:
            assert_never(layer)


def gradient_buffer_bytes(layer: LayerSpec, *, tensor_degree: int, precision: Precision) -> int:
    """Bytes of the largest parameter's gradient before it is added to that of earlier micro-batches.

    Working memory that does not grow with the number of samples.
    """
    largest = max(parameter.local_elements(tensor_degree) for parameter in parameters(layer))
    return largest * precision.activation_bytes


def _embedding_bytes(layer: Embedding, tensor_degree: int, precision: Precision, sequence_degree: int) -> int:
    """Token ids; of a split table the rows and the mask of those that it holds as well; inputs of norms.

    A decoder's token ids are dropped once they are translated to rows.
    """
    per_token = _TOKEN_ID_BYTES if tensor_degree == 1 else 2 * _TOKEN_ID_BYTES + precision.activation_bytes
    if tensor_degree > 1 and layer.memory_length:
        per_token -= _TOKEN_ID_BYTES
    statistics = layer.memory_length * _statistics_bytes(Normalization.RMS_NORM, precision)
    normed = (_norm_bytes(layer, layer.norm, precision) if layer.norm else 0) + statistics
    return per_token * layer.sequence_length + (normed + memory_bytes(layer, precision)) // sequence_degree


def _block_bytes(layer: Block, tensor_degree: int, precision: Precision, sequence_degree: int) -> int:
    """Whole: what comes in and, per part, the norm and the sum before it; split: what heads and inner vectors hold.

    Norms after the sums keep as much. A decoder's block counts the encoder's output as its own, although neighbours on
    a device share it.
    """
    number, tokens = precision.activation_bytes, layer.sequence_length
    log_sums = tokens * layer.num_heads * max(4, number)
    attention = 2 * (tokens * layer.query_size + tokens * layer.key_value_size) * number + log_sums
    parts, split = 2, attention + _INNER_TENSORS[layer.mlp] * _inner_bytes(layer, precision)
    if layer.memory_length:
        parts += 1
        split += 2 * (tokens * layer.query_size + layer.memory_length * layer.key_value_size) * number + log_sums
    if 0 < layer.window_size**2 < layer.sequence_length:
        # Mixed heads in the order of the windows, and in that of the image.
        split += tokens * layer.query_size * number
    whole = parts * (2 * boundary_bytes(layer, precision) + tokens * _statistics_bytes(layer.norm, precision))
    return (whole + memory_bytes(layer, precision)) // sequence_degree + split // tensor_degree


def _block_transient_bytes(layer: Block, tensor_degree: int, precision: Precision, sequence_degree: int) -> int:
    """Gradients of the output and of inner vectors; or in a decoder, of keys, values and their source once more.

    With sequence parallelism also all tokens, gathered for the gradients of one inner vector, and at another time once
    more in the order in which collectives want them.
    """
    boundary, memory = boundary_bytes(layer, precision), memory_bytes(layer, precision)
    inner = _inner_bytes(layer, precision) // tensor_degree
    keys_and_values = 2 * layer.memory_length * layer.key_value_size * precision.activation_bytes // tensor_degree
    most = max(inner * (2 if layer.mlp is Mlp.SWIGLU else 1), memory + keys_and_values)
    if sequence_degree > 1:
        most = max(most, boundary + inner, 2 * boundary, 2 * memory + keys_and_values)
    return output_bytes(layer, precision) // sequence_degree + most


def _inner_bytes(layer: Block, precision: Precision) -> int:
    return layer.sequence_length * layer.feed_forward_size * precision.activation_bytes


def _head_bytes(layer: Head, tensor_degree: int, precision: Precision, sequence_degree: int) -> int:
    """Input, norm, targets; the logarithm of the softmax, or when split the scores and their exponentials."""
    pooled = layer.num_classified * layer.hidden_size * precision.activation_bytes
    # Split: also the column of each target, and whether it counts.
    per_target = _TOKEN_ID_BYTES if tensor_degree == 1 else 2 * _TOKEN_ID_BYTES + max(4, precision.activation_bytes)
    statistics = layer.sequence_length * _statistics_bytes(layer.norm, precision)
    kept = boundary_bytes(layer, precision) + memory_bytes(layer, precision) + pooled + statistics
    if layer.transform:
        # Before and after GELU.
        kept += 2 * pooled
    scores = _score_bytes(layer, tensor_degree, precision) * (1 if tensor_degree == 1 else 2)
    return kept // sequence_degree + layer.num_classified * per_target + scores


def _norm_bytes(layer: Embedding | Patches, norm: Normalization, precision: Precision) -> int:
    """Bytes of a norm's input and of what it keeps beside it."""
    return boundary_bytes(layer, precision) + layer.sequence_length * _statistics_bytes(norm, precision)


def _statistics_bytes(norm: Normalization, precision: Precision) -> int:
    """Bytes of what a norm keeps of a token beside its input: mean and deviation, not below FP32."""
    return max(4, precision.activation_bytes) * (2 if norm is Normalization.LAYER_NORM else 1)


def _score_bytes(layer: Head, tensor_degree: int, precision: Precision) -> int:
    """Bytes of the scores of every classified vector, in FP32 or above; of the largest part when split."""
    columns = -(-layer.vocabulary_size // tensor_degree)
    return layer.num_classified * columns * max(4, precision.activation_bytes)
