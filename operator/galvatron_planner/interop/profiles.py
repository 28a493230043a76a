"""Measurements of Hetu-Galvatron as a profile of ours (document 2), so that both planners can search on the same ones.

What their numbers mean was read where their search reads them, AFDWang/Hetu-Galvatron and PKU-DAIR/Hetu-Galvatron
(Apache-2.0):

- time: ms a sample of one forward pass of one layer on one device, at a batch and a sequence length, and of everything
  else together (``_process_computation_data``, ``core/profiler/model_profiler.py`` at 175a7de). Split ``t`` ways, a
  batch ``b`` takes as long as ``b / t`` unsplit; backward is twice forward; the first and the last layer take half of
  the rest each (``core/cost_model/time_costmodel_optimize.py`` at 1d27a7a);
- memory: MiB a sample of a device's own batch, per tensor degree; ``parameter_size`` is 4 bytes a parameter
  (``model_profiler.py``); 1024 MiB for the context (``core/search_engine/cost_model.py`` at 175a7de);
- links: MiB/ms of bus traffic, an all-reduce moving ``2 (n - 1) / n`` of its payload and its halves half of that
  (``profile_hardware/profile_allreduce.py`` at 680373e); MiB/ms of messages (``profile_p2p.py`` at 229a14d); ms of
  whole payloads in MiB (``sp_time``, ``core/profiler/hardware_profiler.py`` at 4e59585);
- ``overlap_coe``: slowdown of both sides while they overlap (``core/search_engine/search_engine.py`` at 05c1ef6).

What they do not measure is derived as ``docs/interop.md`` says.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import inf
from typing import Any

from galvatron_planner.cluster import Group
from galvatron_planner.dimensions import refusal
from galvatron_planner.errors import InvalidInput, MissingMeasurement
from galvatron_planner.model import Block, LayerSpec
from galvatron_planner.profiles import (
    Collective,
    LayerProfile,
    LayerSample,
    LinkProfile,
    LinkSample,
    Profile,
    ProfileRequest,
    ProfileSource,
    interpolate,
)
from galvatron_planner.strategy import Axis, Dimension, LayerStrategy
from galvatron_planner.units import MIB
from galvatron_planner.workload import num_parameters

BACKWARD_PER_FORWARD = 2.0
"""Their ``bct_fct_coe``."""
CONTEXT_BYTES = 1024 * MIB
"""Their ``pytorch_context_mem``."""
PARAMETER_TOLERANCE = 0.05
"""How far ``parameter_size`` may be from the model's: allocators round, other models are further away."""

Measurements = Mapping[str, Any]
"""The JSON object of one of their files."""


@dataclass(frozen=True, slots=True)
class MeasuredFiles:
    """Their files, parsed.

    Attributes:
        computation: ``computation_profiling_*.json``.
        memory: ``memory_profiling_*.json``.
        allreduce: ``allreduce_bandwidth_*.json``.
        p2p: ``p2p_bandwidth_*.json``.
        overlap: ``overlap_coefficient.json``.
        times: ``sp_time_*.json``; empty without it.
    """

    computation: Measurements
    memory: Measurements
    allreduce: Measurements
    p2p: Measurements
    overlap: Measurements
    times: Measurements


def import_profile(
    files: MeasuredFiles, request: ProfileRequest, *, device_name: str, optimizer_seconds_per_parameter: float
) -> Profile:
    """Answer a request with their measurements.

    Args:
        files: theirs, of the request's model, precision and cluster.
        request: what our search will ask for.
        device_name: as people call the device.
        optimizer_seconds_per_parameter: they do not measure it.

    Raises:
        MissingMeasurement: names the file and the key that is not there.
        InvalidInput: when the files are of another model.
    """
    overlap = max(1.0, _number(files.overlap, "overlap_coe", "overlap_coefficient.json"))
    return Profile(
        request_digest=request.digest(),
        source=ProfileSource.IMPORTED,
        device_name=device_name,
        torch_version="imported from Hetu-Galvatron",
        layers=tuple(_layer_profiles(files, request)),
        links=tuple(_link_profiles(files, request)),
        computation_slowdown=overlap,
        communication_slowdown=overlap,
        optimizer_seconds_per_parameter=optimizer_seconds_per_parameter,
        step_overhead_seconds=0.0,
        reserve_bytes=CONTEXT_BYTES,
    )


def _layer_profiles(files: MeasuredFiles, request: ProfileRequest) -> Iterator[LayerProfile]:
    blocks = tuple(layer for layer in request.layers if isinstance(layer, Block))
    ends = {request.layers[0]: "other_memory_pp_on_first", request.layers[-1]: "other_memory_pp_on_last"}
    for layer in request.layers:
        section = f"layertype_{blocks.index(layer)}" if isinstance(layer, Block) else ends.get(layer)
        measured = _Measured(files, layer, section=section, blocks=blocks)
        points = measured.forward_points()
        for degree in request.tensor_degrees:
            if _admits(layer, degree):
                activation = measured.activation_bytes(degree)
                samples = (_sample(size, degree, points, activation) for size in request.micro_batch_sizes)
                yield LayerProfile(layer=layer, tensor_degree=degree, samples=tuple(samples))


def _admits(layer: LayerSpec, tensor_degree: int) -> bool:
    return tensor_degree == 1 or refusal(layer, LayerStrategy((Axis(Dimension.TENSOR, tensor_degree),))) is None


def _sample(size: int, tensor_degree: int, points: tuple[tuple[float, float], ...], activation: float) -> LayerSample:
    forward = interpolate(size / tensor_degree, points)
    return LayerSample(
        micro_batch_size=size,
        forward_seconds=forward,
        backward_seconds=BACKWARD_PER_FORWARD * forward,
        activation_bytes=round(activation * size),
        # Their peak of the backward pass is part of the activations of embedding and head.
        transient_bytes=0,
    )


@dataclass(frozen=True, slots=True)
class _Measured:
    """Where one layer of ours is found in their files.

    Attributes:
        files: theirs.
        layer: ours.
        section: of the memory file; None for what is measured as a part of the first and last layers.
        blocks: the layers that they measure one by one, as ``layertype_0``, ``layertype_1``, ...
    """

    files: MeasuredFiles
    layer: LayerSpec
    section: str | None
    blocks: tuple[Block, ...]

    def forward_points(self) -> tuple[tuple[float, float], ...]:
        """Seconds of a forward pass over samples, by rising samples."""
        if self.section is None:
            return ((1.0, 0.0),)
        is_block = isinstance(self.layer, Block)
        # Some versions number the rest: layertype_other_0.
        name, share = (self.section, 1.0) if is_block else ("layertype_other(?:_0)?", 0.5)
        key = re.compile(rf"{name}(?:_bsz(\d+))?(?:_seq\[?([\d,]+)\]?)?")
        found = [(match, ms) for text, ms in self.files.computation.items() if (match := key.fullmatch(text))]
        points = {
            float(match[1] or 1): share * _checked(ms, match[0]) * float(match[1] or 1) / 1e3
            for match, ms in found
            if match[2] in (None, self._sequence())
        }
        if not points:
            measured = sorted({match[2] for match, _ in found if match[2]})
            others = f", only sequences of {' and '.join(measured)}" if measured else ""
            wanted = self.section if is_block else "layertype_other"
            raise _missing("computation_profiling", f"{wanted}_bsz.._seq{self._sequence()}", others)
        return tuple(sorted(points.items()))

    def activation_bytes(self, tensor_degree: int) -> float:
        """Bytes a sample of the device's batch."""
        if self.section is None:
            return 0.0
        section = self._memory(self.section)
        if isinstance(self.layer, Block):
            self._check_parameters(section)
            measured = section.get("tp_activation_per_bsz_dict")
        else:
            measured = section.get("activation")
        if not isinstance(measured, Mapping):
            # Older files: embedding and head are measured without tensor parallelism, one number.
            return _checked(measured, f"memory_profiling: activation of {self.section}") * MIB
        return _number(measured, str(tensor_degree), f"memory_profiling: {self.section}, tensor degree") * MIB

    def _check_parameters(self, section: Measurements) -> None:
        theirs = _number(section, "parameter_size", f"memory_profiling: {self.section}")
        ours = num_parameters(self.layer) * 4 / MIB
        if abs(theirs - ours) > PARAMETER_TOLERANCE * ours:
            raise InvalidInput(
                f"memory_profiling: {self.section}.parameter_size is {theirs:.1f} MiB, our {self.layer.kind} has"
                f" {ours:.1f} MiB",
                remedy="import the files that were measured with this model",
            )

    def _memory(self, name: str) -> Measurements:
        """Find a section; older files have no level of sequence lengths, newer ones often only ``_sp``."""
        section = self.files.memory.get(name, self.files.memory.get(f"{name}_sp"))
        if isinstance(section, Mapping) and not section.keys() & {"parameter_size", "activation"}:
            section = section.get(self._sequence(), section.get(f"[{self._sequence()}]"))
        if not isinstance(section, Mapping):
            raise _missing("memory_profiling", f"{name} for sequence {self._sequence()}")
        return section

    def _sequence(self) -> str:
        """Write the sequence length as their keys do; outside blocks, one for each kind of block."""
        layers = (self.layer,) if isinstance(self.layer, Block) else self.blocks
        return ",".join(str(layer.sequence_length) for layer in layers)


def _link_profiles(files: MeasuredFiles, request: ProfileRequest) -> Iterator[LinkProfile]:
    for group in request.groups:
        link = _Link(files, request, group)
        for collective in Collective:
            if collective is Collective.POINT_TO_POINT and group.size > 2:
                continue
            samples = (LinkSample(payload_bytes=p, seconds=link.seconds(collective, p)) for p in request.payload_bytes)
            yield LinkProfile(collective=collective, group=group, samples=tuple(samples))


@dataclass(frozen=True, slots=True)
class _Link:
    """Where one group of ours is found in their files."""

    files: MeasuredFiles
    request: ProfileRequest
    group: Group

    def seconds(self, collective: Collective, payload_bytes: int) -> float:
        """Duration of a collective."""
        match collective:
            case Collective.ALL_REDUCE:
                return self._all_reduce_seconds(payload_bytes)
            case Collective.ALL_GATHER | Collective.REDUCE_SCATTER:
                return self._all_reduce_seconds(payload_bytes) / 2
            case Collective.ALL_TO_ALL:
                # Unmeasured, it moves as much as an all-gather: (n - 1) / n of the payload.
                timed = self._timed("all2all", payload_bytes)
                return self._all_reduce_seconds(payload_bytes) / 2 if timed is None else timed
            case Collective.POINT_TO_POINT:
                return payload_bytes / MIB / self._message_bandwidth() / 1e3

    def _all_reduce_seconds(self, payload_bytes: int) -> float:
        timed = self._timed("allreduce", payload_bytes)
        if timed is not None:
            return timed
        size, flag = self.group.size, int(self._is_near())
        bandwidth = _bandwidth(self.files.allreduce, f"allreduce_size_{size}_consec_{flag}", "allreduce_bandwidth")
        return 2 * (size - 1) / size * payload_bytes / MIB / bandwidth / 1e3

    def _timed(self, pattern: str, payload_bytes: int) -> float | None:
        """Read a curve of ``sp_time``, which is measured over consecutive ranks only."""
        if not self._is_near():
            return None
        key = re.compile(rf"{pattern}_size_{self.group.size}_(\d+)MB_time")
        points = sorted(
            (float(match[1]) * MIB, _checked(ms, match[0]) / 1e3)
            for text, ms in self.files.times.items()
            if (match := key.fullmatch(text))
        )
        return interpolate(payload_bytes, tuple(points)) if points else None

    def _is_near(self) -> bool:
        """Tell which of their two placements a group is like: consecutive ranks (1), or spread over all devices (0).

        They measure strides 1 and devices / size; groups between are near when they stay inside a node.
        """
        size, stride = self.group.size, self.group.stride
        num_devices = self.request.num_nodes * self.request.devices_per_node
        return stride == 1 or (size * stride <= self.request.devices_per_node and size * stride < num_devices)

    def _message_bandwidth(self) -> float:
        """MiB/ms between neighbouring stages; pipelines deeper than measured take the deepest that was."""
        depth = self.request.num_nodes * self.request.devices_per_node // self.group.stride
        measured = [2**k for k in range(1, depth.bit_length()) if f"pp_size_{2**k}" in self.files.p2p]
        return _bandwidth(self.files.p2p, f"pp_size_{max(measured, default=depth)}", "p2p_bandwidth")


def _number(measured: Measurements, key: str, where: str) -> float:
    if key not in measured:
        raise _missing(where, key)
    return _checked(measured[key], f"{where}: {key}")


def _bandwidth(measured: Measurements, key: str, where: str) -> float:
    """Read MiB/ms, above zero."""
    value = _number(measured, key, where)
    if value == 0:
        raise _no_measurement(value, f"{where}: {key}")
    return value


def _checked(value: object, where: str) -> float:
    if not isinstance(value, int | float) or not 0 <= value < inf:
        raise _no_measurement(value, where)
    return float(value)


def _no_measurement(value: object, where: str) -> InvalidInput:
    return InvalidInput(f"{where} is {value!r}, not a measurement", remedy="measure it again there")


def _missing(where: str, key: str, others: str = "") -> MissingMeasurement:
    return MissingMeasurement(
        f"{where}: {key} was not measured{others}",
        remedy="measure it there, or search without it (tensor degrees: --max-tensor-degree)",
    )
