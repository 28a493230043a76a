"""Time and memory of one layer under one strategy: measured passes, collectives beside and between them, exact bytes.

Sources: Galvatron (arXiv 2211.13878, section 3.3) for what is counted; every number comes from the profile. Bytes per
parameter are those of the runtime (docs/architecture.md, memory): parameter, gradient and two moments of AdamW at the
precision of storage; computing in half precision adds a half-precision copy, which ``fsdp`` makes anew at every gather,
and ``gsdp`` a whole copy in any case.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from galvatron_planner.cluster import DeviceKind, Group
from galvatron_planner.dimensions import (
    Communication,
    LayerCommunication,
    communication,
    gathered_elements,
    held_elements,
    prefetches,
    shared_elements,
)
from galvatron_planner.model import Embedding, Head, LayerSpec, Precision, Sharing
from galvatron_planner.profiles import Collective, Profile
from galvatron_planner.strategy import Dimension, LayerStrategy
from galvatron_planner.workload import input_bytes

STORED_PER_PARAMETER = 4
"""Parameter, gradient, and the two moments of AdamW."""
MOMENTS_PER_PARAMETER = 2
"""Of AdamW."""


@dataclass(frozen=True, slots=True)
class Conditions:
    """What every price depends on besides the layer and its strategy."""

    profile: Profile
    precision: Precision
    device_kind: DeviceKind
    devices_per_node: int
    num_devices: int


@dataclass(frozen=True, slots=True)
class LayerCost:
    """One layer on its fullest device.

    Attributes:
        forward_seconds: per micro-batch, communication included.
        backward_seconds: per micro-batch, communication and recomputation included.
        sync_seconds: once per step, the part of the gradients' all-reduce that the last backward pass does not hide.
        optimizer_seconds: once per step, the gathering of changed parameters and the exchange of tied ones included.
        state_bytes: parameters, gradients and optimizer.
        late_bytes: of these, gradients that are there only from the layer's first backward pass to the end of a step.
        activation_bytes: held per micro-batch from forward to backward.
        transient_bytes: working memory above all that while the layer computes, its gathered parameters included.
        gathered_bytes: its parameters gathered ahead, while the layer after it is in its backward pass.
    """

    forward_seconds: float
    backward_seconds: float
    sync_seconds: float
    optimizer_seconds: float
    state_bytes: int
    late_bytes: int
    activation_bytes: int
    transient_bytes: int
    gathered_bytes: int

    @property
    def reused_bytes(self) -> int:
        """Bytes that the first backward pass of a step frees of activations and takes for gradients."""
        return min(self.late_bytes, self.activation_bytes)

    def kept_bytes(self, in_flight: int, *, holds_all: bool) -> int:
        """Bytes held at most with ``in_flight`` micro-batches between forward and backward.

        Where those are all of the step (``holds_all``), the first backward pass begins at the most activations without
        late gradients, and trades one for the other layer by layer: of each layer either is there, never both.
        """
        kept = self.state_bytes + in_flight * self.activation_bytes
        return kept - self.reused_bytes if holds_all else kept

    def step_seconds(self, num_micro_batches: int) -> float:
        """Seconds of a whole step: what the search minimises over a stage's layers."""
        per_micro_batch = self.forward_seconds + self.backward_seconds
        return num_micro_batches * per_micro_batch + self.sync_seconds + self.optimizer_seconds


def price(layer: LayerSpec, strategy: LayerStrategy, *, micro_batch_size: int, conditions: Conditions) -> LayerCost:
    """Price a layer.

    Args:
        layer: its shape.
        strategy: how it is split over its stage.
        micro_batch_size: samples of one micro-batch over all devices of the stage, divisible by the data degree.
        conditions: the profile and what it was made for.

    Raises:
        MissingMeasurement: when the profile was made for another model or cluster.
    """
    local_samples = micro_batch_size // strategy.data_degree
    passes = conditions.profile.layer(layer, strategy.tensor_degree, strategy.sequence_degree).at(local_samples)
    spoken = communication(layer, strategy, local_samples=local_samples, precision=conditions.precision)
    recomputed = passes.forward_seconds if strategy.checkpoint else 0.0
    backward = recomputed + passes.backward_seconds
    blocking = spoken.backward + (spoken.recomputed if strategy.checkpoint else ())
    arriving = local_samples * input_bytes(layer, conditions.precision) // strategy.sequence_degree
    kept = min(arriving, passes.activation_bytes) if strategy.checkpoint else passes.activation_bytes
    return LayerCost(
        forward_seconds=_seconds(spoken.forward, conditions)
        + _with_prefetch(passes.forward_seconds, spoken.forward_prefetched, conditions),
        backward_seconds=_seconds(blocking, conditions)
        + _with_prefetch(backward, spoken.backward_prefetched, conditions),
        sync_seconds=_exposed_sync_seconds(backward, spoken, conditions),
        optimizer_seconds=_changed_elements(layer, strategy) * conditions.profile.optimizer_seconds_per_parameter
        + _seconds(spoken.update, conditions)
        + _sharing_seconds(layer, strategy, conditions),
        state_bytes=_state_bytes(layer, strategy, conditions.precision),
        late_bytes=_late_bytes(layer, strategy, conditions.precision),
        activation_bytes=kept,
        transient_bytes=max(
            # What is not kept is there again once it is computed again.
            passes.transient_bytes
            + (passes.activation_bytes - kept)
            + _gradient_bytes(layer, strategy, conditions.precision),
            # By then the pass has used up what it kept, but for the gradient of its input.
            _scattering_bytes(layer, strategy, conditions) - max(0, kept - arriving),
            _arriving_copy_bytes(layer, strategy, conditions),
        ),
        gathered_bytes=_gathered_bytes(layer, strategy, conditions.precision),
    )


def overlapped_seconds(
    computation: float, collective: float, *, computation_slowdown: float, communication_slowdown: float
) -> float:
    """Duration of computation and communication that start together.

    While both run, each takes its slowdown times as long; when one ends, the other goes on at full speed and sticks
    out. With slowdowns of 2 the sum of both results: two processes that share one core.

    Source: the overlap slowdown of Galvatron (arXiv 2211.13878, section 3.3.1), measured for both sides.
    """
    slow_computation = computation * computation_slowdown
    slow_communication = collective * communication_slowdown
    if slow_computation <= slow_communication:
        return slow_computation + (collective - slow_computation / communication_slowdown)
    return slow_communication + (computation - slow_communication / computation_slowdown)


def _seconds(collectives: Iterable[Communication], conditions: Conditions) -> float:
    return sum(conditions.profile.link(one.collective, one.group).seconds(one.payload_bytes) for one in collectives)


def _with_prefetch(computation: float, collectives: tuple[Communication, ...], conditions: Conditions) -> float:
    communicated = _seconds(collectives, conditions)
    if not prefetches(Dimension.SHARDED_DATA, conditions.device_kind):
        return computation + communicated
    return _overlapped(computation, communicated, conditions.profile)


def _exposed_sync_seconds(backward: float, spoken: LayerCommunication, conditions: Conditions) -> float:
    """Give what the all-reduce of a layer's gradients adds to the backward pass of the last micro-batch.

    Each layer hides its collective behind as much backward computation as is its own: other layers hide theirs.
    """
    return _overlapped(backward, _seconds(spoken.gradient_sync, conditions), conditions.profile) - backward


def _overlapped(computation: float, collective: float, profile: Profile) -> float:
    return overlapped_seconds(
        computation,
        collective,
        computation_slowdown=profile.computation_slowdown,
        communication_slowdown=profile.communication_slowdown,
    )


def _sharing(layer: LayerSpec) -> Sharing:
    return layer.sharing if isinstance(layer, Embedding | Head) else Sharing.NONE


def _changed_elements(layer: LayerSpec, strategy: LayerStrategy) -> int:
    """Count the elements that a device's optimizer changes: not those of copies."""
    held = held_elements(layer, strategy)
    return held - shared_elements(layer, strategy) if _sharing(layer) is Sharing.COPY else held


def _sharing_seconds(layer: LayerSpec, strategy: LayerStrategy, conditions: Conditions) -> float:
    """Give the time in which a copy's gradients go to the first table, and changed values come back.

    Between stages, as far apart as stages can be: what a device holds goes once either way. Within one stage copies
    are taken to lie side by side.
    """
    payload = _exchanged_bytes(layer, strategy, conditions)
    if not payload:
        return 0.0
    stage_size = strategy.layout.num_devices
    is_one_node = conditions.num_devices <= conditions.devices_per_node
    pair = Group(size=2, stride=stage_size if is_one_node else max(stage_size, conditions.devices_per_node))
    return 2 * conditions.profile.link(Collective.POINT_TO_POINT, pair).seconds(payload)


def _exchanged_bytes(layer: LayerSpec, strategy: LayerStrategy, conditions: Conditions) -> int:
    """Count what a device holds of a table that layers of other stages hold as well."""
    if _sharing(layer) is Sharing.NONE or strategy.layout.num_devices == conditions.num_devices:
        return 0
    return shared_elements(layer, strategy) * conditions.precision.parameter_bytes


def _arriving_copy_bytes(layer: LayerSpec, strategy: LayerStrategy, conditions: Conditions) -> int:
    """Bytes of the gradients that arrive at the first table, one copy's at a time."""
    if _sharing(layer) is not Sharing.FIRST:
        return 0
    return _exchanged_bytes(layer, strategy, conditions)


def _state_bytes(layer: LayerSpec, strategy: LayerStrategy, precision: Precision) -> int:
    numbers = held_elements(layer, strategy) * STORED_PER_PARAMETER
    if _sharing(layer) is Sharing.COPY:
        numbers -= shared_elements(layer, strategy) * MOMENTS_PER_PARAMETER
    stored = numbers * precision.parameter_bytes
    if strategy.degree(Dimension.SHARDED_DATA) > 1:
        return stored
    if strategy.num_shards > 1 or _computes_in_copy(precision):
        return stored + gathered_elements(layer, strategy) * precision.activation_bytes
    return stored


def _late_bytes(layer: LayerSpec, strategy: LayerStrategy, precision: Precision) -> int:
    """Bytes of gradients that torch makes in the backward pass; those of a bucket are there for the whole run."""
    if strategy.num_shards == 1 and not _computes_in_copy(precision):
        return 0
    return held_elements(layer, strategy) * precision.parameter_bytes


def _computes_in_copy(precision: Precision) -> bool:
    return precision.activation_bytes != precision.parameter_bytes


def _gathered_bytes(layer: LayerSpec, strategy: LayerStrategy, precision: Precision) -> int:
    if strategy.degree(Dimension.SHARDED_DATA) == 1:
        return 0
    return gathered_elements(layer, strategy) * precision.activation_bytes


def _gradient_bytes(layer: LayerSpec, strategy: LayerStrategy, precision: Precision) -> int:
    """Bytes of what a layer's backward pass needs besides its activations and the gradients that it keeps.

    Replicated in the precision of storage: nothing, gradients are written into their bucket, which is reduced in place.
    Otherwise: gathered parameters if they are not there already, gradients as computed, and the flat input of one
    reduction, this layer's or still the next one's. ``replicate`` (torch 2.13) reduces into the gradient itself.
    """
    if strategy.num_shards == 1 and not _computes_in_copy(precision):
        return 0
    gradients = gathered_elements(layer, strategy) * (precision.activation_bytes + precision.parameter_bytes)
    return gradients + _gathered_bytes(layer, strategy, precision)


def _scattering_bytes(layer: LayerSpec, strategy: LayerStrategy, conditions: Conditions) -> int:
    """Bytes while a layer's sharded gradients are summed: the flat input, its sum, and the copy that gloo works on.

    Gloo sums a copy of the input in place and takes the device's part of it (``_reduce_scatter_base`` of torch 2.13,
    measured); NCCL needs none.
    """
    if strategy.num_shards == 1:
        return 0
    copies = 2 if conditions.device_kind is DeviceKind.CPU else 1
    flat = gathered_elements(layer, strategy) * copies
    return (flat + held_elements(layer, strategy)) * conditions.precision.parameter_bytes
