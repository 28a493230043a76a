"""Hypothesis generators of valid values: models, clusters, problems, and random plans that can run."""

from collections.abc import Sequence
from typing import TypeVar

from hypothesis import strategies as generate

import builders
import instances
from galvatron_planner import families
from galvatron_planner.dimensions import refusal
from galvatron_planner.model import Family, LayerSpec, ModelSpec
from galvatron_planner.plan import Plan
from galvatron_planner.problem import BatchRange, PlanningProblem, Schedule, SearchDimension, SearchLimits
from galvatron_planner.space import compositions
from galvatron_planner.strategy import LayerStrategy

Choice = TypeVar("Choice")

DECODERS = (Family.GPT, Family.LLAMA, Family.MISTRAL, Family.QWEN2)
"""Families of one causal stream, whose shape is free."""

MODELS = generate.builds(
    builders.model,
    generate.sampled_from(DECODERS),
    hidden_size=generate.sampled_from([32, 64]),
    num_layers=generate.integers(1, 4),
    num_heads=generate.just(4),
    num_key_value_heads=generate.sampled_from([2, 4]),
    feed_forward_size=generate.sampled_from([64, 96]),
    vocabulary_size=generate.sampled_from([64, 67]),
)
"""Models of a few thousand parameters; some refuse tensor degree 4."""

EVERY_MODEL = generate.one_of(
    MODELS,
    generate.builds(
        builders.model,
        generate.sampled_from(sorted(set(Family) - set(DECODERS))),
        num_layers=generate.integers(1, 4),
        feed_forward_size=generate.sampled_from([64, 96]),
    ),
)
"""Models of every family."""

LIMITS = generate.builds(
    SearchLimits,
    excluded=generate.lists(generate.sampled_from(SearchDimension), unique=True, max_size=2).map(tuple),
    schedule=generate.sampled_from(Schedule),
    sequence_parallel=generate.booleans(),
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
def problems(
    draw: generate.DrawFn,
    max_devices: int = 4,
    *,
    limits: SearchLimits | None = None,
    models: generate.SearchStrategy[ModelSpec] = MODELS,
) -> PlanningProblem:
    """Small problems whose memory binds as often as it does not; some have no plan."""
    spec = draw(models)
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
def small_problems(draw: generate.DrawFn, *, max_plans: int = instances.MAX_PLANS) -> PlanningProblem:
    """Problems that are hard on purpose, with no more plans than can all be looked at."""
    return instances.small_problem(_picking(draw), max_plans=max_plans)


@generate.composite
def odd_problems(draw: generate.DrawFn, max_devices: int = 64) -> PlanningProblem:
    """Problems that nobody would pose: odd heads, prime batches, no memory or all of it, up to many devices."""
    num_heads = draw(generate.sampled_from([1, 2, 3, 5, 7, 8]))
    spec = builders.model(
        draw(generate.sampled_from(DECODERS)),
        hidden_size=num_heads * draw(generate.sampled_from([2, 6, 10, 32])),
        num_layers=draw(generate.integers(1, 12)),
        num_heads=num_heads,
        num_key_value_heads=draw(generate.sampled_from([n for n in range(1, num_heads + 1) if num_heads % n == 0])),
        feed_forward_size=draw(generate.integers(1, 300)),
        sequence_length=draw(generate.integers(1, 40)),
        vocabulary_size=draw(generate.integers(1, 5000)),
    )
    num_devices = draw(generate.sampled_from([2**k for k in range(max_devices.bit_length())]))
    on = builders.cluster(
        num_devices,
        num_nodes=draw(generate.sampled_from([2**k for k in range(num_devices.bit_length())])),
        device_memory_bytes=draw(generate.one_of(generate.integers(1, 3_000_000), generate.just(1 << 50))),
    )
    minimum = draw(generate.sampled_from([1, 2, 7, 8, 13, 31, 64]))
    return builders.problem(
        spec,
        on,
        batch=BatchRange(minimum=minimum, maximum=minimum + draw(generate.integers(0, 5))),
        limits=draw(LIMITS),
        measured=builders.profile(spec, on, micro_batch_sizes=draw(generate.sampled_from([(1,), (1, 2), (2, 64)]))),
    )


def _picking(draw: generate.DrawFn) -> instances.Pick:
    def pick(options: Sequence[Choice]) -> Choice:
        return draw(generate.sampled_from(options))

    return pick


def _admitted(layer: LayerSpec, num_devices: int, micro_batch_size: int) -> list[LayerStrategy]:
    return [
        strategy
        for strategy in compositions(num_devices, sequence_parallel=True)
        if refusal(layer, strategy) is None and micro_batch_size % strategy.data_degree == 0
    ]


def _exactly(size: int) -> dict[str, int]:
    return {"min_size": size, "max_size": size}
