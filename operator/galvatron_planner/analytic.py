"""A profile from data sheets: what a request asks for, worked out instead of measured.

Layers follow a roofline (Williams et al. 2009): matrix products at the sustained rate of the device, everything else at
its memory bandwidth, and neither faster than the host can start kernels. Collectives follow the model by which NCCL
chooses its algorithms (src/graph/tuning.cc): hops times latency, and payload over the bandwidth of the slowest tier.
Such numbers rank plans; they promise nothing, which is why the profile says where it comes from.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import log2
from typing import assert_never

from galvatron_planner.activations import activation_bytes, gradient_buffer_bytes, mask_bytes, transient_bytes
from galvatron_planner.catalogue import DeviceSpec, Links
from galvatron_planner.cluster import DeviceKind, Group
from galvatron_planner.dimensions import refusal
from galvatron_planner.errors import InvalidInput
from galvatron_planner.model import LayerSpec, Precision
from galvatron_planner.profiles import (
    Collective,
    LayerProfile,
    LayerSample,
    LinkProfile,
    LinkSample,
    Profile,
    ProfileRequest,
    ProfileSource,
)
from galvatron_planner.strategy import LayerStrategy
from galvatron_planner.units import MIB
from galvatron_planner.workload import forward_flops, parameters

OVERLAP_SLOWDOWN = 1.3
"""Both of computation and communication while both run: measured by the authors of Galvatron (arXiv 2211.13878,
section 3.3). Their repository has 1.15 for newer devices; the older figure is the careful one."""
TILE = 128
"""Rows and columns of the part of a matrix product that one multiprocessor works on: the usual size in cuBLAS."""
MEMORY_EFFICIENCY = 0.8
"""Share of the memory bandwidth that simple kernels reach; an assumption."""
KERNEL_SECONDS = 6e-6
"""For the host to start a kernel from eager torch; an assumption."""
KERNELS_PER_PARAMETER = 2
"""Kernels of a forward pass per parameter tensor: counted in the runtime's GPT and LLaMA blocks, rounded."""
COLLECTIVE_SECONDS = 10e-6
"""To start one collective: base latency of rings with LL128 in NCCL (src/graph/tuning.cc)."""
STEP_OVERHEAD_SECONDS = 2e-3
"""Data, loss and bookkeeping of a step; an assumption."""
CONTEXT_BYTES = {DeviceKind.CUDA: 500 * MIB, DeviceKind.CPU: 16 * MIB}
"""CUDA context with the kernels of torch and cuBLAS, or what a process loads later; assumptions."""
COMMUNICATOR_BYTES = {DeviceKind.CUDA: 128 * MIB, DeviceKind.CPU: 4 * MIB}
"""Buffers of one NCCL communicator: 16 channels to and from a neighbour, 4 MiB each (NCCL_BUFFSIZE); CPU: assumed."""
NUM_COMMUNICATORS = 3
"""Of a device: along the tensor axis, along the data axis, to other stages and the whole world."""


def analytic_profile(request: ProfileRequest, device: DeviceSpec, links: Links) -> Profile:
    """Answer a request from the catalogue.

    Raises:
        InvalidInput: when the device is of another kind than the request's, or lacks its number format.
    """
    if device.kind is not request.device_kind:
        raise InvalidInput(
            f"{device.name} is a {device.kind} device, the job's are {request.device_kind}",
            remedy="name a device of the catalogue of the same kind",
        )
    roofline = _Roofline(device, request.precision)
    alone = request.num_nodes * request.devices_per_node == 1
    return Profile(
        request_digest=request.digest(),
        source=ProfileSource.ANALYTIC,
        device_name=f"{device.name} (analytic)",
        torch_version="none",
        layers=tuple(_layers(request, roofline)),
        links=tuple(_links(request, links)),
        computation_slowdown=OVERLAP_SLOWDOWN,
        communication_slowdown=OVERLAP_SLOWDOWN,
        optimizer_seconds_per_parameter=_optimizer_bytes(request.precision) * roofline.seconds_per_byte,
        step_overhead_seconds=STEP_OVERHEAD_SECONDS,
        reserve_bytes=CONTEXT_BYTES[device.kind]
        + (0 if alone else NUM_COMMUNICATORS * COMMUNICATOR_BYTES[device.kind]),
    )


class _Roofline:
    """What a device sustains in one number format."""

    def __init__(self, device: DeviceSpec, precision: Precision) -> None:
        self.precision = precision
        self.seconds_per_flop = 1 / (device.peak_flops(precision) * device.matrix_efficiency)
        self.seconds_per_byte = 1 / (device.memory_bandwidth * MEMORY_EFFICIENCY)
        self.wave = device.num_multiprocessors * TILE * TILE
        """Numbers of a product that all multiprocessors together compute at a time."""


def _layers(request: ProfileRequest, roofline: _Roofline) -> Iterator[LayerProfile]:
    for layer in request.layers:
        for split in request.splits:
            if refusal(layer, split) is None:
                yield _layer(layer, split, request.micro_batch_sizes, roofline)


def _layer(layer: LayerSpec, split: LayerStrategy, sizes: tuple[int, ...], roofline: _Roofline) -> LayerProfile:
    precision, degree, tokens = roofline.precision, split.tensor_degree, split.sequence_degree
    kept = activation_bytes(layer, tensor_degree=degree, precision=precision, sequence_degree=tokens)
    passing = transient_bytes(layer, tensor_degree=degree, precision=precision, sequence_degree=tokens)
    buffer = gradient_buffer_bytes(layer, tensor_degree=degree, precision=precision)
    mask = mask_bytes(layer, tensor_degree=degree, precision=precision)
    work = _Work.of(layer, split, roofline, touched_bytes=kept + passing)
    return LayerProfile(
        layer=layer,
        tensor_degree=degree,
        sequence_degree=tokens,
        samples=tuple(
            LayerSample(
                micro_batch_size=size,
                forward_seconds=work.forward_seconds(size),
                backward_seconds=work.backward_seconds(size),
                activation_bytes=size * kept + mask,
                transient_bytes=size * passing + buffer,
            )
            for size in sizes
        ),
    )


@dataclass(frozen=True, slots=True)
class _Work:
    """Seconds of one layer on one device.

    Attributes:
        per_sample: matrix products of a forward pass.
        ramp: half a wave of tiles of every product, which its last wave leaves idle on average.
        weights: reading the matrices, which the smallest products wait for.
        touched: reading or writing what one sample keeps or passes on once.
        gradients: reading the gradients of the parameters and adding them to those of earlier micro-batches.
        host: starting the kernels of a forward pass.
    """

    per_sample: float
    ramp: float
    weights: float
    touched: float
    gradients: float
    host: float

    @classmethod
    def of(cls, layer: LayerSpec, split: LayerStrategy, roofline: _Roofline, *, touched_bytes: int) -> "_Work":
        tensors, degree = parameters(layer), split.tensor_degree
        flops = forward_flops(layer, tensor_degree=degree, sequence_degree=split.sequence_degree)
        matrices = [p for p in tensors if p.num_products]
        inner = sum(p.shape[1] // (degree if p.split_dim == 1 else 1) for p in matrices)
        weights = sum(p.local_elements(degree) for p in matrices) * roofline.precision.activation_bytes
        local = sum(p.local_elements(degree) for p in tensors)
        return cls(
            per_sample=flops * roofline.seconds_per_flop,
            # Two operations for each of half a wave's numbers and each number along the inner dim.
            ramp=roofline.wave * inner * roofline.seconds_per_flop,
            weights=weights * roofline.seconds_per_byte,
            touched=touched_bytes * roofline.seconds_per_byte,
            gradients=3 * local * roofline.precision.parameter_bytes * roofline.seconds_per_byte,
            host=KERNELS_PER_PARAMETER * len(tensors) * KERNEL_SECONDS,
        )

    def forward_seconds(self, samples: int) -> float:
        """Seconds of a forward pass."""
        products = max(samples * self.per_sample + self.ramp, self.weights)
        return max(self.host, products + samples * self.touched)

    def backward_seconds(self, samples: int) -> float:
        """Seconds of a backward pass: each product has two gradients, and so has each tensor one more to be read."""
        products = max(samples * self.per_sample + self.ramp, self.weights)
        return max(2 * self.host, 2 * (products + samples * self.touched) + self.gradients)


def _optimizer_bytes(precision: Precision) -> int:
    """Bytes moved per parameter of a step.

    Norm: gradient read; clipping: read and written; AdamW, fused: four tensors read, three written; a zeroed gradient;
    and the copy to compute in, where there is one.
    """
    copy = precision.activation_bytes if precision.activation_bytes < precision.parameter_bytes else 0
    return 11 * precision.parameter_bytes + copy


def _links(request: ProfileRequest, links: Links) -> Iterator[LinkProfile]:
    for group in request.groups:
        route = _Route.of(group, request.devices_per_node, links)
        for collective in Collective:
            if collective is Collective.POINT_TO_POINT and group.size > 2:
                continue
            fixed, per_byte = _fixed_seconds(collective, route), _seconds_per_byte(collective, route)
            yield LinkProfile(
                collective=collective,
                group=group,
                samples=tuple(
                    LinkSample(payload_bytes=payload, seconds=fixed + payload * per_byte)
                    for payload in request.payload_bytes
                ),
            )


@dataclass(frozen=True, slots=True)
class _Route:
    """Where the groups of a family lie, and what each of their devices gets of the links.

    All groups of a family communicate at once. Those of a node leave it together: a group with twice the members there
    gets twice the share of the node's cards. That is what was measured on two nodes of eight devices for Galvatron
    (Hetu-Galvatron, allreduce_bandwidth_2nodes_8gpus_per_node.json: 9.3, 19.3, 32.1 and 45.7 GB/s for groups with 1,
    2, 4 and 8 members in a node).

    Attributes:
        members: devices of a group in one node.
        num_nodes: nodes of a group.
        within: bytes per second between devices of a node.
        between: bytes per second of one device to other nodes while all devices of its node send.
        hop_within: seconds.
        hop_between: seconds.
    """

    members: int
    num_nodes: int
    within: float
    between: float
    hop_within: float
    hop_between: float

    @classmethod
    def of(cls, group: Group, devices_per_node: int, links: Links) -> "_Route":
        members = min(group.size, max(1, devices_per_node // group.stride))
        outside = links.between_nodes
        return cls(
            members=members,
            num_nodes=group.size // members,
            within=links.within_node.sustained_bandwidth,
            between=outside.sustained_bandwidth / (devices_per_node if outside.per_node else 1),
            hop_within=links.within_node.latency_seconds,
            hop_between=outside.latency_seconds,
        )

    @property
    def size(self) -> int:
        """Devices of a group."""
        return self.members * self.num_nodes

    @property
    def ring_bandwidth(self) -> float:
        """Bytes per second that pass each device of a ring through all members of a group."""
        if self.num_nodes == 1:
            return self.within
        outside = self.members * self.between
        return outside if self.members == 1 else min(self.within, outside)

    @property
    def round_seconds(self) -> float:
        """Hops of one round: every member has heard of every other one."""
        return (self.size - self.num_nodes) * self.hop_within + (self.num_nodes - 1) * self.hop_between

    @property
    def tree_seconds(self) -> float:
        """Hops from the leaves of a tree over nodes, with a chain in each, to its root."""
        return (self.members - 1) * self.hop_within + log2(self.num_nodes) * self.hop_between


def _fixed_seconds(collective: Collective, route: _Route) -> float:
    match collective:
        case Collective.ALL_REDUCE:
            return COLLECTIVE_SECONDS + 2 * min(route.round_seconds, route.tree_seconds)
        case Collective.ALL_GATHER | Collective.REDUCE_SCATTER | Collective.ALL_TO_ALL:
            return COLLECTIVE_SECONDS + route.round_seconds
        case Collective.POINT_TO_POINT:
            return COLLECTIVE_SECONDS + (route.hop_within if route.num_nodes == 1 else route.hop_between)
        case _:
            assert_never(collective)


def _seconds_per_byte(collective: Collective, route: _Route) -> float:
    size = route.size
    match collective:
        case Collective.ALL_REDUCE:
            return 2 * (size - 1) / size / route.ring_bandwidth
        case Collective.ALL_GATHER | Collective.REDUCE_SCATTER:
            return (size - 1) / size / route.ring_bandwidth
        case Collective.ALL_TO_ALL:
            # Each device sends an equal part to every other one, to those in its node beside those outside.
            outside = (size - route.members) / size / route.between
            return max((route.members - 1) / size / route.within, outside)
        case Collective.POINT_TO_POINT:
            return 1 / route.ring_bandwidth
        case _:
            assert_never(collective)
