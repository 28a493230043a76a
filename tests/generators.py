"""Hypothesis generators of valid values: models, clusters, problems, and random plans that can run."""

from hypothesis import strategies as generate

import builders
from galvatron_planner import families
from galvatron_planner.dimensions import refusal
from galvatron_planner.model import Family, LayerSpec, ModelSpec
from galvatron_planner.plan import Plan
from galvatron_planner.problem import PlanningProblem, Schedule, SearchDimension, SearchLimits
from galvatron_planner.space import compositions
from galvatron_planner.strategy import LayerStrategy

MODELS = generate.builds(
    builders.model,
    generate.sampled_from(Family),
    hidden_size=generate.sampled_from([32, 64]),
    num_layers=generate.integers(1, 4),
    num_heads=generate.just(4),
    num_key_value_heads=generate.sampled_from([2, 4]),
    feed_forward_size=generate.sampled_from([64, 96]),
    vocabulary_size=generate.sampled_from([64, 67]),
)
"""Models of a few thousand parameters; some refuse tensor degree 4."""

LIMITS = generate.builds(
    SearchLimits,
    excluded=generate.lists(generate.sampled_from(SearchDimension), unique=True, max_size=2).map(tuple),
    schedule=generate.sampled_from(Schedule),
)


def strategies(layer: LayerSpec, num_devices: int, *, micro_batch_size: int) -> generate.SearchStrategy[LayerStrategy]:
    """Strategies that the layer admits on a stage of ``num_devices`` devices."""
    return generate.sampled_from(_admitted(layer, num_devices, micro_batch_size))


@generate.composite
def plans(
    draw: generate.DrawFn, num_devices: int = 4, *, spec: ModelSpec | None = None, max_micro_batches: int = 4
) -> Plan:
    """Random valid plans: any pipeline degree, any cut, any strategy per layer, micro-batches that divide."""
    spec = spec or draw(MODELS)
    layers = families.layers(spec)
    degrees = [2**k for k in range(num_devices.bit_length()) if 2**k <= min(num_devices, len(layers))]
    pipeline_degree = draw(generate.sampled_from(degrees))
    per_stage = num_devices // pipeline_degree
    sizes = [size for size in (1, 2, 4, 6, 8) if all(_admitted(layer, per_stage, size) for layer in layers)]
    micro_batch_size = draw(generate.sampled_from(sizes))
    num_micro_batches = draw(generate.integers(1, max_micro_batches))
    chosen = [str(draw(strategies(layer, per_stage, micro_batch_size=micro_batch_size))) for layer in layers]
    cuts = sorted(draw(generate.sets(generate.integers(1, len(layers) - 1), **_exactly(pipeline_degree - 1))))
    return builders.plan(
        *(" ".join(chosen[i:j]) for i, j in zip([0, *cuts], [*cuts, len(layers)], strict=True)),
        spec=spec,
        on=builders.cluster(num_devices),
        global_batch_size=micro_batch_size * num_micro_batches,
        num_micro_batches=num_micro_batches,
        schedule=draw(generate.sampled_from(Schedule)),
    )


@generate.composite
def problems(draw: generate.DrawFn, max_devices: int = 4, *, limits: SearchLimits | None = None) -> PlanningProblem:
    """Small problems whose memory binds as often as it does not; some have no plan."""
    spec = draw(MODELS)
    num_devices = draw(generate.sampled_from([n for n in (1, 2, 4, 8) if n <= max_devices]))
    memory = draw(generate.integers(50_000, 4_000_000))
    on = builders.cluster(num_devices, device_memory_bytes=memory)
    slowdowns = generate.sampled_from([1.0, 1.25, 2.0])
    measured = builders.profile(
        spec,
        on,
        flops_per_second=draw(generate.sampled_from([1e9, 1e11, 1e12])),
        computation_slowdown=draw(slowdowns),
        communication_slowdown=draw(slowdowns),
    )
    batch = draw(generate.sampled_from([1, 2, 4, 6, 8]))
    return builders.problem(spec, on, batch=batch, limits=limits or draw(LIMITS), measured=measured)


@generate.composite
def tiny_problems(draw: generate.DrawFn) -> PlanningProblem:
    """Problems small enough to enumerate every plan: one block on four devices, or two on two."""
    num_layers, num_devices = draw(generate.sampled_from([(1, 1), (1, 2), (1, 4), (2, 2)]))
    spec = builders.model(
        draw(generate.sampled_from(Family)),
        num_layers=num_layers,
        num_key_value_heads=draw(generate.sampled_from([2, 4])),
        vocabulary_size=draw(generate.sampled_from([64, 67, 300])),
    )
    memory = draw(generate.integers(50_000, 1_500_000))
    on = builders.cluster(num_devices, device_memory_bytes=memory)
    slowdowns = generate.sampled_from([1.0, 1.25, 2.0])
    measured = builders.profile(
        spec,
        on,
        flops_per_second=draw(generate.sampled_from([1e9, 1e10, 1e12])),
        computation_slowdown=draw(slowdowns),
        communication_slowdown=draw(slowdowns),
    )
    batch = draw(generate.sampled_from([1, 2, 4]))
    return builders.problem(spec, on, batch=batch, limits=draw(LIMITS), measured=measured)


def _admitted(layer: LayerSpec, num_devices: int, micro_batch_size: int) -> list[LayerStrategy]:
    return [
        strategy
        for strategy in compositions(num_devices)
        if refusal(layer, strategy) is None and micro_batch_size % strategy.data_degree == 0
    ]


def _exactly(size: int) -> dict[str, int]:
    return {"min_size": size, "max_size": size}
