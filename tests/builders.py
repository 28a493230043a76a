"""Small valid values for tests: what matters in a test is said there, the rest comes from here."""

from collections.abc import Sequence
from typing import Any

from galvatron_planner import families
from galvatron_planner.activations import activation_bytes
from galvatron_planner.cluster import Cluster, DeviceKind, groups
from galvatron_planner.dimensions import refusal
from galvatron_planner.documents import Digest
from galvatron_planner.model import (
    Block,
    Embedding,
    Family,
    Head,
    LayerSpec,
    Merge,
    Model,
    ModelSpec,
    Patches,
    Precision,
)
from galvatron_planner.own import OwnLayer
from galvatron_planner.plan import Estimate, Plan, StagePlan
from galvatron_planner.problem import BatchRange, PlanningProblem, Schedule, SearchLimits
from galvatron_planner.profiles import Collective, LayerProfile, LayerSample, LinkProfile, LinkSample, Profile
from galvatron_planner.strategy import TENSOR_DIMENSIONS, Axis, LayerStrategy
from galvatron_planner.units import GIB
from galvatron_planner.workload import boundary_bytes, forward_flops, num_parameters

NO_DIGEST = Digest("0" * 64)


def model(
    family: Family = Family.GPT,
    *,
    hidden_size: int = 32,
    num_layers: int = 2,
    num_heads: int = 4,
    num_key_value_heads: int | None = None,
    feed_forward_size: int | None = None,
    sequence_length: int = 16,
    vocabulary_size: int = 67,
) -> ModelSpec:
    """A Transformer of a few thousand parameters, with a vocabulary that no degree divides.

    Images have 4 x 4 patches, T5's decoder has as many blocks as its encoder, and Swin's second stage all but one.
    """
    image: dict[str, Any] = {"image_size": 8, "patch_size": 2}
    of_family: dict[Family, dict[str, Any]] = {
        Family.T5: {"num_decoder_layers": num_layers, "decoder_sequence_length": sequence_length // 2},
        Family.VIT: image | {"sequence_length": 16 + 1},
        Family.SWIN: image | {"sequence_length": 16, "depths": (1, num_layers - 1)[:num_layers], "window_size": 2},
    }
    shape: dict[str, Any] = {"sequence_length": sequence_length} | of_family.get(family, {})
    return ModelSpec(
        family=family,
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_heads=num_heads,
        num_key_value_heads=num_key_value_heads or num_heads,
        feed_forward_size=feed_forward_size or 4 * hidden_size,
        vocabulary_size=vocabulary_size,
        **shape,
    )


def cluster(
    num_devices: int = 4,
    *,
    num_nodes: int = 1,
    device_memory_bytes: int = 4 * GIB,
    device_kind: DeviceKind = DeviceKind.CPU,
) -> Cluster:
    """Equal nodes of CPU processes."""
    return Cluster(
        num_nodes=num_nodes,
        devices_per_node=num_devices // num_nodes,
        device_kind=device_kind,
        device_memory_bytes=device_memory_bytes,
    )


def profile(
    spec: Model,
    on: Cluster,
    *,
    precision: Precision = Precision.FP32,
    flops_per_second: float = 1e12,
    micro_batch_sizes: Sequence[int] = (1, 2, 4, 8),
    computation_slowdown: float = 1.25,
    communication_slowdown: float = 1.5,
    reserve_bytes: int = 0,
) -> Profile:
    """A profile as a plausible machine would give it: every layer, degree and collective that a search can ask for."""
    distinct = tuple(dict.fromkeys(families.layers(spec)))
    return Profile(
        request_digest=NO_DIGEST,
        device_name="synthetic",
        torch_version="0",
        layers=tuple(
            _layer_profile(layer, split, precision, flops_per_second, micro_batch_sizes)
            for layer in distinct
            for split in _splits(on.num_devices)
            if refusal(layer, split) is None
        ),
        links=tuple(
            LinkProfile(collective=collective, group=group, samples=_link_samples(collective, group.size, crosses))
            for collective in Collective
            for group in groups(on.num_devices)
            for crosses in [group.size * group.stride > on.devices_per_node]
        ),
        computation_slowdown=computation_slowdown,
        communication_slowdown=communication_slowdown,
        optimizer_seconds_per_parameter=2e-10,
        step_overhead_seconds=1e-3,
        reserve_bytes=reserve_bytes,
    )


def problem(
    spec: Model | None = None,
    on: Cluster | None = None,
    *,
    batch: int | BatchRange = 8,
    precision: Precision = Precision.FP32,
    limits: SearchLimits | None = None,
    measured: Profile | None = None,
) -> PlanningProblem:
    """A planning problem; without arguments a small GPT on four devices with ample memory."""
    spec = spec or model()
    on = on or cluster()
    return PlanningProblem(
        model=spec,
        precision=precision,
        cluster=on,
        batch=BatchRange(minimum=batch, maximum=batch) if isinstance(batch, int) else batch,
        limits=limits or SearchLimits(),
        profile=measured or profile(spec, on, precision=precision),
    )


def plan(
    *stages: str,
    spec: Model | None = None,
    on: Cluster | None = None,
    global_batch_size: int = 8,
    num_micro_batches: int = 1,
    schedule: Schedule = Schedule.ONE_F_ONE_B,
    precision: Precision = Precision.FP32,
    estimate: Estimate | None = None,
) -> Plan:
    """A plan from the text forms of its layers, one string a stage: ``plan("dp2 tp2", "fsdp2-ckpt dp2")``.

    One text for a single stage stands for every layer: ``plan("dp4")``.
    """
    spec = spec or model()
    num_layers = len(families.layers(spec))
    texts = [stage.split() for stage in stages]
    if [len(stage) for stage in texts] == [1]:
        texts = [texts[0] * num_layers]
    return Plan(
        model=spec,
        precision=precision,
        cluster=on or cluster(),
        global_batch_size=global_batch_size,
        num_micro_batches=num_micro_batches,
        schedule=schedule,
        stages=tuple(StagePlan(layers=tuple(LayerStrategy.parse(text) for text in stage)) for stage in texts),
        estimate=estimate or some_estimate(len(texts), global_batch_size),
        problem_digest=NO_DIGEST,
    )


def some_estimate(num_stages: int = 1, global_batch_size: int = 8) -> Estimate:
    """An estimate of one second a step."""
    return Estimate(
        step_seconds=1.0,
        samples_per_second=float(global_batch_size),
        stage_seconds=(1.0,) * num_stages,
        stage_peak_bytes=(GIB,) * num_stages,
        bubble_ratio=0.0,
    )


def _powers_of_two(largest: int) -> tuple[int, ...]:
    return tuple(2**k for k in range(largest.bit_length()) if 2**k <= largest)


def _splits(num_devices: int) -> tuple[LayerStrategy, ...]:
    """The whole layer, and every way to split its tensors."""
    degrees = _powers_of_two(num_devices)[1:]
    return (LayerStrategy(), *(LayerStrategy((Axis(one, degree),)) for one in TENSOR_DIMENSIONS for degree in degrees))


def _layer_profile(
    layer: LayerSpec, split: LayerStrategy, precision: Precision, flops_per_second: float, sizes: Sequence[int]
) -> LayerProfile:
    degree = split.tensor_degree
    # Kernels that are split get less efficient, and every pass costs something however small it is.
    rate = flops_per_second * degree**0.9
    flops = forward_flops(layer) or 5 * boundary_bytes(layer, Precision.FP32)
    return LayerProfile(
        layer=layer,
        tensor_degree=degree,
        sequence_degree=split.sequence_degree,
        samples=tuple(
            LayerSample(
                micro_batch_size=size,
                forward_seconds=2e-5 + size * flops / rate,
                backward_seconds=3e-5 + size * 1.9 * flops / rate,
                activation_bytes=size * _activation_bytes(layer, split, precision),
                transient_bytes=size * 3 * boundary_bytes(layer, precision) + 4 * num_parameters(layer) // (8 * degree),
            )
            for size in sizes
        ),
    )


def _activation_bytes(layer: LayerSpec, split: LayerStrategy, precision: Precision) -> int:
    boundary, degree = boundary_bytes(layer, precision), split.tensor_degree
    match layer:
        case Embedding():
            return 8 * layer.sequence_length
        case Block():
            inner = boundary * layer.feed_forward_size // layer.hidden_size
            return 4 * boundary // split.sequence_degree + (5 * boundary + 3 * inner) // degree
        case Head():
            return 2 * boundary // split.sequence_degree + 2 * boundary * layer.vocabulary_size // (
                layer.hidden_size * degree
            )
        case Patches() | Merge() | OwnLayer():
            return activation_bytes(layer, tensor_degree=degree, precision=precision)


def _link_samples(collective: Collective, size: int, crosses: bool) -> tuple[LinkSample, ...]:  # noqa: FBT001
    bandwidth, latency = (2e9, 4e-5) if crosses else (2e10, 1e-5)
    shares = {
        Collective.ALL_REDUCE: 2 * (size - 1) / size,
        Collective.ALL_GATHER: (size - 1) / size,
        Collective.REDUCE_SCATTER: (size - 1) / size,
        Collective.ALL_TO_ALL: (size - 1) / size,
        Collective.POINT_TO_POINT: 1.0,
    }
    return tuple(
        LinkSample(payload_bytes=payload, seconds=latency * (size - 1) + shares[collective] * payload / bandwidth)
        for payload in (1 << 12, 1 << 18, 1 << 24)
    )
