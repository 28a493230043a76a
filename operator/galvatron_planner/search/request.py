"""What to measure before a search: exactly what its cost model will ask the profile for."""

from collections.abc import Iterable

from galvatron_planner import families, space
from galvatron_planner.activations import activation_bytes, transient_bytes
from galvatron_planner.cluster import Cluster, groups
from galvatron_planner.dimensions import communication
from galvatron_planner.model import LayerSpec, Model, Precision
from galvatron_planner.plan import Plan
from galvatron_planner.problem import BatchRange, SearchDimension, SearchLimits
from galvatron_planner.profiles import ProfileRequest
from galvatron_planner.strategy import Dimension, LayerStrategy
from galvatron_planner.units import MIB
from galvatron_planner.workload import boundary_bytes, num_parameters

MAX_MICRO_BATCH_SIZES = 5
SMALLEST_PAYLOAD_BYTES = 1 << 10
NUM_PAYLOADS = 4
LARGEST_PAYLOAD_BYTES = 256 * MIB
"""Above it collectives run at their full bandwidth, which the last two samples give."""


def profile_request(
    model: Model,
    cluster: Cluster,
    *,
    precision: Precision,
    batch: BatchRange,
    limits: SearchLimits,
    runtime_version: str,
) -> ProfileRequest:
    """List what a search on ``cluster`` can ask for: layer times, tensor degrees, groups and payloads.

    Micro-batch sizes are powers of two up to the largest that one device can be given, as long as a rough estimate of
    one layer at that size fits the device; the search extrapolates linearly beyond them.
    """
    layers = tuple(dict.fromkeys(families.layers(model)))
    stages = _stage_sizes(cluster, limits, len(families.layers(model)))
    strategies = {
        (layer, strategy)
        for layer in layers
        for size in stages
        for strategy in space.strategies(size, limits, layer).strategies
    }
    sizes = _micro_batch_sizes(layers, cluster, precision, batch.maximum)
    largest = _largest_payload(strategies, batch.maximum, precision)
    return ProfileRequest(
        layers=layers,
        precision=precision,
        micro_batch_sizes=sizes,
        tensor_degrees=_degrees({1}, Dimension.TENSOR, (strategy for _, strategy in strategies)),
        sequence_degrees=_degrees(set(), Dimension.SEQUENCE_TENSOR, (strategy for _, strategy in strategies)),
        groups=groups(cluster.num_devices),
        payload_bytes=_payloads(min(largest, cluster.device_memory_bytes // 16, LARGEST_PAYLOAD_BYTES)),
        num_nodes=cluster.num_nodes,
        devices_per_node=cluster.devices_per_node,
        device_kind=cluster.device_kind,
        runtime_version=runtime_version,
    )


def covering(request: ProfileRequest, plan: Plan) -> ProfileRequest:
    """Ask also for the degrees of a plan that its user brings: the limits of a search do not bind it.

    A plan for another number of devices, which will be refused, changes nothing.
    """
    if plan.cluster.num_devices != request.num_nodes * request.devices_per_node:
        return request
    strategies = [strategy for stage in plan.stages for strategy in stage.layers]
    return request.model_copy(
        update={
            "tensor_degrees": _degrees(set(request.tensor_degrees), Dimension.TENSOR, strategies),
            "sequence_degrees": _degrees(set(request.sequence_degrees), Dimension.SEQUENCE_TENSOR, strategies),
        }
    )


def _degrees(known: set[int], dimension: Dimension, strategies: Iterable[LayerStrategy]) -> tuple[int, ...]:
    """Add the degrees above 1 that strategies have along a dimension to those that are known, rising."""
    used = {strategy.degree(dimension) for strategy in strategies} - {1}
    return tuple(sorted(known | used))


def pipeline_degrees(cluster: Cluster, limits: SearchLimits, num_layers: int) -> tuple[int, ...]:
    """List the numbers of stages that a search may use, rising."""
    largest = min(cluster.num_devices, num_layers, limits.max_pipeline_degree)
    if not limits.allows(SearchDimension.PP):
        largest = 1
    return tuple(2**k for k in range(cluster.num_devices.bit_length()) if 2**k <= largest)


def _stage_sizes(cluster: Cluster, limits: SearchLimits, num_layers: int) -> tuple[int, ...]:
    return tuple(cluster.num_devices // degree for degree in pipeline_degrees(cluster, limits, num_layers))


def _micro_batch_sizes(
    layers: tuple[LayerSpec, ...], cluster: Cluster, precision: Precision, largest_batch: int
) -> tuple[int, ...]:
    sizes = [2**k for k in range(largest_batch.bit_length())]
    memory = cluster.device_memory_bytes
    fitting = [size for size in sizes if all(_rough_bytes(layer, precision, size) <= memory for layer in layers)]
    # Passes get proportional to the batch long before the largest size: the last two samples give the slope.
    return tuple(fitting[:MAX_MICRO_BATCH_SIZES]) or (1,)


def _rough_bytes(layer: LayerSpec, precision: Precision, samples: int) -> int:
    """Estimate what measuring one layer takes: parameters, gradients, and activations at ``samples``."""
    per_sample = activation_bytes(layer, tensor_degree=1, precision=precision)
    per_sample += transient_bytes(layer, tensor_degree=1, precision=precision)
    return 2 * num_parameters(layer) * precision.parameter_bytes + samples * per_sample


def _largest_payload(
    strategies: Iterable[tuple[LayerSpec, LayerStrategy]], largest_samples: int, precision: Precision
) -> int:
    payloads = [SMALLEST_PAYLOAD_BYTES * 2]
    for layer, strategy in strategies:
        payloads.append(largest_samples * boundary_bytes(layer, precision))
        spoken = communication(layer, strategy, local_samples=largest_samples, precision=precision)
        for part in (spoken.forward, spoken.backward, spoken.backward_prefetched, spoken.gradient_sync, spoken.update):
            payloads.extend(one.payload_bytes for one in part)
    return max(payloads)


def _payloads(largest: int) -> tuple[int, ...]:
    """Spread the payloads evenly on a logarithmic scale, each a power of two."""
    bottom = SMALLEST_PAYLOAD_BYTES.bit_length() - 1
    top = max(largest.bit_length() - 1, bottom + 1)
    exponents = {bottom + (top - bottom) * i // (NUM_PAYLOADS - 1) for i in range(NUM_PAYLOADS)}
    return tuple(2**k for k in sorted(exponents))
