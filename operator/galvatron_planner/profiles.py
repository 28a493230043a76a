"""Document 1, what to measure, and document 2, what was measured; and the curves between measured points.

A profile is made by the runtime on the very devices of the job (all of them computing and communicating at once, as in
training), or taken from a cache under the digest of its request.
"""

from enum import StrEnum
from functools import cached_property
from itertools import pairwise
from math import ceil
from statistics import median
from typing import Literal, Self, assert_never

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt, model_validator

from galvatron_planner.cluster import DeviceKind, Group
from galvatron_planner.documents import Digest, Document, Value
from galvatron_planner.errors import MissingMeasurement
from galvatron_planner.model import LayerSpec, Precision
from galvatron_planner.own import OwnLayer
from galvatron_planner.strategy import Axis, Dimension, LayerStrategy


class Collective(StrEnum):
    """A communication pattern, and what its payload bytes mean."""

    ALL_REDUCE = "all_reduce"
    """Payload: the tensor that every device holds before and after."""
    ALL_GATHER = "all_gather"
    """Payload: the gathered tensor."""
    REDUCE_SCATTER = "reduce_scatter"
    """Payload: the tensor before it is scattered."""
    ALL_TO_ALL = "all_to_all"
    """Payload: what one device holds and redistributes, including its own part."""
    POINT_TO_POINT = "point_to_point"
    """Payload: the tensor sent; the group is a pair ``stride`` ranks apart."""


class ProfileSource(StrEnum):
    """Where the numbers of a profile come from."""

    MEASURED = "measured"
    """By our runtime, on the devices of the job."""
    ANALYTIC = "analytic"
    """Worked out from data sheets: good for comparing, not for promising."""
    IMPORTED = "imported"
    """Measured by another system."""

    @property
    def caveat(self) -> str | None:
        """What people must know who read an estimate; None where there is nothing to add."""
        match self:
            case ProfileSource.MEASURED:
                return None
            case ProfileSource.ANALYTIC:
                return "estimates from data sheets, not measured"
            case ProfileSource.IMPORTED:
                return "estimates from measurements of another system"
            case _:
                assert_never(self)


class ProfileRequest(Document):
    """Document 1: what the search will ask for.

    Attributes:
        layers: the distinct layers of the model.
        precision: number format of the computation.
        micro_batch_sizes: local samples per layer pass to measure, rising.
        tensor_degrees: tensor-parallel degrees to measure, rising, 1 first.
        sequence_degrees: degrees of tensor parallelism with sequence parallelism to measure, rising, each above 1.
        groups: groups whose collectives are to be measured.
        payload_bytes: sizes at which collectives are measured, rising.
        num_nodes: nodes of the job.
        devices_per_node: devices on each node.
        device_kind: GPU or CPU process.
        runtime_version: image digest or package version that measures; another runtime, another profile.
    """

    schema_tag: Literal["galvatron/profile-request/v1"] = Field(default="galvatron/profile-request/v1", alias="schema")
    layers: tuple[LayerSpec, ...]
    precision: Precision
    micro_batch_sizes: tuple[PositiveInt, ...]
    tensor_degrees: tuple[PositiveInt, ...]
    sequence_degrees: tuple[PositiveInt, ...] = ()
    groups: tuple[Group, ...]
    payload_bytes: tuple[PositiveInt, ...]
    num_nodes: PositiveInt
    devices_per_node: PositiveInt
    device_kind: DeviceKind
    runtime_version: str

    @property
    def splits(self) -> tuple[LayerStrategy, ...]:
        """List how each layer is measured, the whole layer first; a layer leaves out what it refuses."""
        axes = (
            *(Axis(Dimension.TENSOR, degree) for degree in self.tensor_degrees if degree > 1),
            *(Axis(Dimension.SEQUENCE_TENSOR, degree) for degree in self.sequence_degrees),
        )
        return (LayerStrategy(), *(LayerStrategy((axis,)) for axis in axes))


class LayerSample(Value):
    """One layer measured at one local micro-batch size.

    Attributes:
        micro_batch_size: samples through the layer on one device.
        forward_seconds: one forward pass, without communication.
        backward_seconds: one backward pass, without communication and without recomputation.
        activation_bytes: kept from forward to backward without checkpointing; the layer's input included, its output
            not.
        transient_bytes: peak working memory of forward or backward above the kept activations and parameter state.
        uncertainty: standard error of the seconds, relative to them; 0 where nothing was measured.
    """

    micro_batch_size: PositiveInt
    forward_seconds: NonNegativeFloat
    backward_seconds: NonNegativeFloat
    activation_bytes: NonNegativeInt
    transient_bytes: NonNegativeInt
    uncertainty: NonNegativeFloat = 0.0


class LayerProfile(Value):
    """One distinct layer, split ``tensor_degree`` ways; samples by rising micro-batch size.

    ``sequence_degree`` is the tensor degree where every device holds other tokens between split matrices, 1 elsewhere.
    """

    layer: LayerSpec
    tensor_degree: PositiveInt
    sequence_degree: PositiveInt = 1
    samples: tuple[LayerSample, ...] = Field(min_length=1)

    def at(self, micro_batch_size: int) -> LayerSample:
        """Read off any local micro-batch size: linear between samples, bytes rounded up."""
        forward, backward, activations, transient = (interpolate(micro_batch_size, curve) for curve in self._curves)
        return LayerSample.model_construct(
            micro_batch_size=micro_batch_size,
            forward_seconds=forward,
            backward_seconds=backward,
            activation_bytes=ceil(activations),
            transient_bytes=ceil(transient),
            uncertainty=0.0,
        )

    @cached_property
    def _curves(self) -> "tuple[Curve, Curve, Curve, Curve]":
        sizes = [float(one.micro_batch_size) for one in self.samples]
        return (
            tuple(zip(sizes, (one.forward_seconds for one in self.samples), strict=True)),
            tuple(zip(sizes, (one.backward_seconds for one in self.samples), strict=True)),
            tuple(zip(sizes, (float(one.activation_bytes) for one in self.samples), strict=True)),
            tuple(zip(sizes, (float(one.transient_bytes) for one in self.samples), strict=True)),
        )


class LinkSample(Value):
    """One collective at one payload, in seconds from the first device that enters to the last that leaves.

    ``uncertainty`` is as of a layer.
    """

    payload_bytes: PositiveInt
    seconds: NonNegativeFloat
    uncertainty: NonNegativeFloat = 0.0


class LinkProfile(Value):
    """One collective over one group; samples by rising payload."""

    collective: Collective
    group: Group
    samples: tuple[LinkSample, ...] = Field(min_length=2)

    def seconds(self, payload_bytes: float) -> float:
        """Duration for any payload: linear between samples, the last slope beyond them."""
        return interpolate(payload_bytes, self._curve)

    @cached_property
    def _curve(self) -> "Curve":
        return tuple((float(one.payload_bytes), one.seconds) for one in self.samples)


class Profile(Document):
    """Document 2: measured costs of layers and of collectives.

    Attributes:
        request_digest: the request that was answered.
        source: where the numbers come from.
        device_name: as the device calls itself.
        torch_version: of the measuring runtime.
        layers: per distinct layer and tensor degree, with and without sequence parallelism.
        links: per collective and group.
        computation_slowdown: factor on computation while a collective runs beside it, at least 1.
        communication_slowdown: factor on a collective while computation runs beside it, at least 1.
        optimizer_seconds_per_parameter: clipping and AdamW step, per parameter held by a device.
        step_overhead_seconds: what a step costs beyond layers, collectives and optimizer (data, loss, bookkeeping).
        reserve_bytes: device memory taken before the first parameter (context, libraries, communicators).
    """

    schema_tag: Literal["galvatron/profile/v1"] = Field(default="galvatron/profile/v1", alias="schema")
    request_digest: Digest
    source: ProfileSource = ProfileSource.MEASURED
    device_name: str
    torch_version: str
    layers: tuple[LayerProfile, ...]
    links: tuple[LinkProfile, ...]
    computation_slowdown: float = Field(ge=1)
    communication_slowdown: float = Field(ge=1)
    optimizer_seconds_per_parameter: NonNegativeFloat
    step_overhead_seconds: NonNegativeFloat
    reserve_bytes: NonNegativeInt

    @model_validator(mode="after")
    def _check_rising(self) -> Self:
        for layer in self.layers:
            if not _rises([sample.micro_batch_size for sample in layer.samples]):
                raise ValueError(f"samples of {layer.layer.kind} do not rise in micro-batch size")
        for link in self.links:
            if not _rises([sample.payload_bytes for sample in link.samples]):
                raise ValueError(f"samples of {link.collective} do not rise in payload")
        return self

    @property
    def typical_uncertainty(self) -> float:
        """Relative standard error of the middle one of all measured durations; 0 where nothing was measured."""
        of_layers = (sample.uncertainty for layer in self.layers for sample in layer.samples)
        of_links = (sample.uncertainty for link in self.links for sample in link.samples)
        return median([*of_layers, *of_links])

    @property
    def max_tensor_degree(self) -> int:
        """Largest tensor degree at which a layer was measured without sequence parallelism."""
        return max(layer.tensor_degree for layer in self.layers if layer.sequence_degree == 1)

    def layer(self, layer: LayerSpec, tensor_degree: int, sequence_degree: int = 1) -> LayerProfile:
        """Look up a layer's measurement.

        Raises:
            MissingMeasurement: when the profile was made for other layers or degrees.
        """
        found = self._layers_by_shape.get((layer, tensor_degree, sequence_degree))
        if found is not None:
            return found
        width = "" if isinstance(layer, OwnLayer) else f" of hidden size {layer.hidden_size}"
        tokens = f" with sequence degree {sequence_degree}" if sequence_degree > 1 else ""
        raise MissingMeasurement(
            f"the profile has no {layer.kind} layer{width} at tensor degree {tensor_degree}{tokens}",
            remedy="profile again for this model",
        )

    def link(self, collective: Collective, group: Group) -> LinkProfile:
        """Look up a collective's measurement.

        Raises:
            MissingMeasurement: when the profile was made for another cluster.
        """
        found = self._links_by_group.get((collective.value, group.size, group.stride))
        if found is not None:
            return found
        raise MissingMeasurement(
            f"the profile has no {collective} over groups of {group.size} devices {group.stride} apart",
            remedy="profile again on this cluster",
        )

    @cached_property
    def _layers_by_shape(self) -> dict[tuple[LayerSpec, int, int], LayerProfile]:
        return {(one.layer, one.tensor_degree, one.sequence_degree): one for one in reversed(self.layers)}

    @cached_property
    def _links_by_group(self) -> dict[tuple[str, int, int], LinkProfile]:
        return {(one.collective.value, one.group.size, one.group.stride): one for one in reversed(self.links)}


Curve = tuple[tuple[float, float], ...]
"""Points (x, y) with rising x, at least one."""


def interpolate(x: float, points: Curve) -> float:
    """Read a piecewise linear curve at ``x``.

    Args:
        x: where to read it.
        points: of the curve.

    Returns:
        y; below the first point the first y times x over the first x or the first segment's line, whichever is
        larger and not negative; beyond the last point the last segment's line.
    """
    if len(points) == 1:
        return points[0][1] * x / points[0][0]
    end = 1
    while end < len(points) - 1 and x > points[end][0]:
        end += 1
    (x0, y0), (x1, y1) = points[end - 1], points[end]
    slope = (y1 - y0) / (x1 - x0)
    if x > points[-1][0]:
        # Noise can make the last segment fall; cost never does.
        slope = max(slope, 0.0)
    value = y0 + slope * (x - x0)
    return max(value, points[0][1] * x / points[0][0]) if x < points[0][0] else value


def _rises(numbers: list[int]) -> bool:
    return all(a < b for a, b in pairwise(numbers))
