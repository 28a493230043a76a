"""THE TABLE dimension -> rules: what a layer admits, what each dimension shards, and what it communicates.

The cost model prices what is listed here and knows no dimension by name; the runtime's half is ``parallel/``.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import assert_never

from galvatron_planner.cluster import DeviceKind, Group
from galvatron_planner.model import Block, Embedding, Head, LayerSpec, Merge, Patches, Pooling, Precision
from galvatron_planner.own import OwnLayer
from galvatron_planner.profiles import Collective
from galvatron_planner.strategy import Axis, Dimension, LayerStrategy, splits_the_batch
from galvatron_planner.workload import Parameter, boundary_bytes, memory_bytes, parameters


@dataclass(frozen=True, slots=True)
class Communication:
    """One collective of one layer; what ``payload_bytes`` means is said by the collective."""

    collective: Collective
    group: Group
    payload_bytes: int


@dataclass(frozen=True, slots=True)
class LayerCommunication:
    """Everything one layer communicates along its axes.

    Attributes:
        forward: per micro-batch; computation waits for it.
        backward: per micro-batch; computation waits for it.
        recomputed: the part of ``forward`` that activation checkpointing repeats in the backward pass.
        forward_prefetched: per micro-batch; runs beside computation where the device can do both.
        backward_prefetched: per micro-batch; runs beside computation where the device can do both.
        gradient_sync: once per step; runs beside the backward pass of the last micro-batch.
        update: once per step, after the optimizer; the next step waits for it.
    """

    forward: tuple[Communication, ...] = ()
    backward: tuple[Communication, ...] = ()
    recomputed: tuple[Communication, ...] = ()
    forward_prefetched: tuple[Communication, ...] = ()
    backward_prefetched: tuple[Communication, ...] = ()
    gradient_sync: tuple[Communication, ...] = ()
    update: tuple[Communication, ...] = ()


def refusal(layer: LayerSpec, strategy: LayerStrategy) -> str | None:
    """Say why a layer cannot run under a strategy, or None when it can."""
    if sum(splits_the_batch(axis.dimension) for axis in strategy.axes) > 1:
        return "one layer has one kind of data parallelism: dp, gsdp or fsdp"
    if strategy.sequence_degree > 1 and (reason := _sequence_refusal(layer, strategy)):
        return reason
    match layer:
        case Block():
            return _block_refusal(layer, strategy.tensor_degree)
        case Embedding() | Head():
            if strategy.checkpoint:
                return f"checkpointing the {layer.kind} saves nothing: it keeps little more than its input"
            if strategy.tensor_degree > layer.vocabulary_size:
                return f"vocabulary {layer.vocabulary_size} is smaller than tensor degree {strategy.tensor_degree}"
            return None
        case Patches():
            return "checkpointing the patches saves nothing: they come from the data" if strategy.checkpoint else None
        case Merge():
            return None
        case OwnLayer():
            return _own_refusal(layer, strategy)
        case _:
            assert_never(layer)


def communication(
    layer: LayerSpec, strategy: LayerStrategy, *, local_samples: int, precision: Precision
) -> LayerCommunication:
    """List what a layer communicates.

    Args:
        layer: its shape.
        strategy: how it is split.
        local_samples: samples of one micro-batch on one device.
        precision: number format of the computation.
    """
    # Checkpointing changes what is repeated, not what is said; so both variants share the list.
    return _communication(layer, strategy.axes, local_samples, precision)


@lru_cache(maxsize=1 << 14)
def _communication(
    layer: LayerSpec, axes: tuple[Axis, ...], local_samples: int, precision: Precision
) -> LayerCommunication:
    strategy, total = LayerStrategy(axes), LayerCommunication()
    stride = 1
    for axis in strategy.axes:
        group = Group(size=axis.degree, stride=stride)
        stride *= axis.degree
        match axis.dimension:
            case Dimension.TENSOR:
                part = _tensor_communication(layer, group, local_samples, precision)
            case Dimension.SEQUENCE_TENSOR:
                part = _sequence_communication(layer, group, local_samples, precision)
            case Dimension.DATA:
                part = _data_communication(layer, strategy, group, precision)
            case Dimension.SHARDED_GRADIENTS:
                part = _sharded_gradients_communication(layer, strategy, group, precision)
            case Dimension.SHARDED_DATA:
                part = _sharded_communication(layer, strategy, group, precision)
            case _:
                assert_never(axis.dimension)
        total = _join(total, part)
    return total


def prefetches(dimension: Dimension, device_kind: DeviceKind) -> bool:
    """Tell whether the collectives of a dimension run beside computation.

    The gradient buckets of ``dp`` are reduced asynchronously everywhere. FSDP2 overlaps with CUDA streams only: on CPU
    its gathers and reduce-scatters block the caller (torch 2.13, ``foreach_all_gather`` and ``foreach_reduce``).
    """
    match dimension:
        case Dimension.DATA:
            return True
        case Dimension.SHARDED_GRADIENTS | Dimension.SHARDED_DATA:
            return device_kind is DeviceKind.CUDA
        case Dimension.TENSOR | Dimension.SEQUENCE_TENSOR:
            return False
        case _:
            assert_never(dimension)


def held_elements(layer: LayerSpec, strategy: LayerStrategy) -> int:
    """Count the elements whose state the fullest device keeps: split by ``tp`` or ``sptp``, then by a data axis."""
    return _held_elements(layer, strategy.tensor_degree, strategy.num_shards)


@lru_cache(maxsize=1 << 12)
def _held_elements(layer: LayerSpec, tensor_degree: int, shards: int) -> int:
    return sum(_shard_elements(parameter, tensor_degree, shards) for parameter in parameters(layer))


def shared_elements(layer: LayerSpec, strategy: LayerStrategy) -> int:
    """Count those of :func:`held_elements` that belong to the table of a whole vocabulary."""
    return _shared_elements(layer, strategy.tensor_degree, strategy.num_shards)


@lru_cache(maxsize=1 << 12)
def _shared_elements(layer: LayerSpec, tensor_degree: int, shards: int) -> int:
    tables = (one for one in parameters(layer) if one.name in ("tokens.weight", "projection.weight"))
    return sum(_shard_elements(table, tensor_degree, shards) for table in tables)


def gathered_elements(layer: LayerSpec, strategy: LayerStrategy) -> int:
    """Count the elements of a layer's parameters once they are gathered, padding included."""
    return held_elements(layer, strategy) * strategy.num_shards


def _shard_elements(parameter: Parameter, tensor_degree: int, shards: int) -> int:
    # FSDP2 shards dim 0 of what tensor parallelism left and pads the last shard.
    rows = parameter.shape[0]
    if parameter.split_dim == 0:
        rows = -(-rows // tensor_degree)
    return parameter.local_elements(tensor_degree) // rows * -(-rows // shards)


def _tensor_communication(
    layer: LayerSpec, group: Group, local_samples: int, precision: Precision
) -> LayerCommunication:
    """List the all-reduces of Megatron-LM (Shoeybi et al. 2019, section 3), vocabulary-parallel at both ends.

    Every device projects all patches and merges all tokens: both hold less than a block, and are not split.
    """
    hidden = Communication(Collective.ALL_REDUCE, group, local_samples * boundary_bytes(layer, precision))
    match layer:
        case Embedding():
            return LayerCommunication(forward=(hidden,))
        case Patches() | Merge():
            return LayerCommunication()
        case Block():
            parts, rebuilt = _parts(layer)
            # Every device has only its heads' share of the gradient of the encoder's output.
            memory = Communication(Collective.ALL_REDUCE, group, local_samples * memory_bytes(layer, precision))
            return LayerCommunication(
                forward=(hidden,) * parts,
                backward=(hidden,) * parts + ((memory,) if layer.memory_length else ()),
                recomputed=(hidden,) * rebuilt,
            )
        case Head():
            gradient = local_samples * layer.num_classified * layer.hidden_size * precision.activation_bytes
            return LayerCommunication(
                forward=_loss_communication(layer, group, local_samples, precision),
                backward=(Communication(Collective.ALL_REDUCE, group, gradient),),
            )
        case OwnLayer():
            entered, left = (
                tuple(
                    Communication(Collective.ALL_REDUCE, group, local_samples * elements * precision.activation_bytes)
                    for elements in tensors
                )
                for tensors in (layer.entered, layer.left)
            )
            return LayerCommunication(forward=left, backward=entered, recomputed=left)
        case _:
            assert_never(layer)


def _parts(layer: Block) -> tuple[int, int]:
    """Count the parts of a block whose results are summed, and those of which recomputing needs the sum.

    Recomputing stops once everything is there that was kept: the last sum is only handed on, but where a norm follows.
    """
    parts = 3 if layer.memory_length else 2
    return parts, parts if layer.post_norm else parts - 1


def _loss_communication(
    layer: Head, group: Group, local_samples: int, precision: Precision
) -> tuple[Communication, ...]:
    """List what a split vocabulary reduces: maximum, sum of exponentials and the target's score, not below FP32."""
    scores = local_samples * layer.num_classified * max(4, precision.activation_bytes)
    return (Communication(Collective.ALL_REDUCE, group, scores),) * 3


def _sequence_communication(
    layer: LayerSpec, group: Group, local_samples: int, precision: Precision
) -> LayerCommunication:
    """List the collectives of sequence parallelism (Korthikanti et al. 2022, arXiv 2205.05198, section 4.2.2).

    Every part of a layer gathers its tokens and scatters its sums. The gathered tokens are not kept, so they are
    gathered once more in the backward pass.
    """
    hidden, memory = local_samples * boundary_bytes(layer, precision), local_samples * memory_bytes(layer, precision)
    gather, scatter = (Communication(one, group, hidden) for one in (Collective.ALL_GATHER, Collective.REDUCE_SCATTER))
    shared = _shared_gradients(layer, group, precision)
    match layer:
        case Embedding():
            return LayerCommunication(forward=(scatter,), backward=(gather, *shared))
        case Block():
            parts, rebuilt = _parts(layer)
            # The encoder's output is gathered for the second attention; its gradient is scattered again.
            source = (Communication(Collective.ALL_GATHER, group, memory),) if layer.memory_length else ()
            sink = (Communication(Collective.REDUCE_SCATTER, group, memory),) if layer.memory_length else ()
            return LayerCommunication(
                forward=(gather, scatter) * parts + source,
                backward=(gather, gather, scatter) * parts + source + sink + shared,
                recomputed=(gather,) * parts + (scatter,) * rebuilt + source,
            )
        case Head():
            small = _loss_communication(layer, group, local_samples, precision)
            return LayerCommunication(forward=(gather, *small), backward=(gather, scatter, *shared))
        case Patches() | Merge() | OwnLayer():
            raise AssertionError(f"sptp in a layer of kind {layer.kind}")  # refusal has said so
        case _:
            assert_never(layer)


def _shared_gradients(layer: LayerSpec, group: Group, precision: Precision) -> tuple[Communication, ...]:
    """List what sums the gradients of parameters that every device has whole: each saw its own tokens only."""
    elements = sum(parameter.num_elements for parameter in parameters(layer) if parameter.split_dim is None)
    payload = elements * precision.activation_bytes
    return (Communication(Collective.ALL_REDUCE, group, payload),) if payload else ()


def _data_communication(
    layer: LayerSpec, strategy: LayerStrategy, group: Group, precision: Precision
) -> LayerCommunication:
    payload = held_elements(layer, strategy) * precision.parameter_bytes
    return LayerCommunication(gradient_sync=(Communication(Collective.ALL_REDUCE, group, payload),))


def _sharded_gradients_communication(
    layer: LayerSpec, strategy: LayerStrategy, group: Group, precision: Precision
) -> LayerCommunication:
    """List the collectives of ZeRO stage 2: gradients after every micro-batch, parameters once they have changed."""
    elements = gathered_elements(layer, strategy)
    gather = Communication(Collective.ALL_GATHER, group, elements * precision.activation_bytes)
    scatter = Communication(Collective.REDUCE_SCATTER, group, elements * precision.parameter_bytes)
    return LayerCommunication(backward_prefetched=(scatter,), update=(gather,))


def _sharded_communication(
    layer: LayerSpec, strategy: LayerStrategy, group: Group, precision: Precision
) -> LayerCommunication:
    """List the collectives of ZeRO stage 3 (Rajbhandari et al. 2020); gradients are reduced after every micro-batch."""
    elements = gathered_elements(layer, strategy)
    gather = Communication(Collective.ALL_GATHER, group, elements * precision.activation_bytes)
    scatter = Communication(Collective.REDUCE_SCATTER, group, elements * precision.parameter_bytes)
    return LayerCommunication(forward_prefetched=(gather,), backward_prefetched=(gather, scatter))


def _join(one: LayerCommunication, other: LayerCommunication) -> LayerCommunication:
    return LayerCommunication(
        forward=one.forward + other.forward,
        backward=one.backward + other.backward,
        recomputed=one.recomputed + other.recomputed,
        forward_prefetched=one.forward_prefetched + other.forward_prefetched,
        backward_prefetched=one.backward_prefetched + other.backward_prefetched,
        gradient_sync=one.gradient_sync + other.gradient_sync,
        update=one.update + other.update,
    )


def _block_refusal(layer: Block, tensor_degree: int) -> str | None:
    if layer.num_key_value_heads % tensor_degree:
        return f"{layer.num_key_value_heads} key-value heads are not divisible by tensor degree {tensor_degree}"
    if layer.feed_forward_size % tensor_degree:
        return f"feed-forward size {layer.feed_forward_size} is not divisible by tensor degree {tensor_degree}"
    return None


def _sequence_refusal(layer: LayerSpec, strategy: LayerStrategy) -> str | None:
    degree = strategy.sequence_degree
    if degree < strategy.tensor_degree:
        return "one layer has one kind of tensor parallelism: tp or sptp"
    match layer:
        case Patches() | Merge() | OwnLayer():
            return f"sequence parallelism is not for a layer of kind {layer.kind}"
        case Block() if layer.window_size:
            return "sequence parallelism does not go with windows, whose tokens belong together"
        case Head() if layer.pooling is not Pooling.ALL:
            return "sequence parallelism needs a head that classifies every token"
    for name, length in (("tokens", layer.sequence_length), ("tokens of the encoder", layer.memory_length)):
        if length % degree:
            return f"{length} {name} are not divisible by sequence-parallel degree {degree}"
    return None


def _own_refusal(layer: OwnLayer, strategy: LayerStrategy) -> str | None:
    if strategy.checkpoint and layer.data is not None:
        return "the first and the last of the user's layers are not checkpointed"
    degree = strategy.tensor_degree
    if degree > 1 and not layer.can_be_split:
        return f"layer {layer.index} of {layer.function} does not say how its parameters split (split_dims)"
    for one in layer.parameters:
        if one.split_dim is not None and one.shape[one.split_dim] % degree:
            return f"{one.name} of shape {one.shape} is not divisible by tensor degree {degree}"
    return None
