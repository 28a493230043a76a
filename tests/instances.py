"""Small planning problems that are hard on purpose, drawn by anything that can pick one of several.

Hypothesis shrinks what it picks, a seeded random generator picks fast: the same problems serve tests and benchmarks.
Hard means: memory that just fits some plan or just does not, stages that differ (heavy ends, layers of unequal cost),
gradient reductions that stick out, costs without pattern, and batches that hardly divide.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations, pairwise
from math import comb, prod
from random import Random
from typing import Protocol, TypeVar

import builders
from galvatron_planner import families, space
from galvatron_planner.cluster import Cluster, DeviceKind
from galvatron_planner.cost.prices import PriceList
from galvatron_planner.cost.step import BatchSplit, price_step
from galvatron_planner.model import Family, LayerSpec, Model, ModelSpec, Precision
from galvatron_planner.problem import BatchRange, PlanningProblem, Schedule, SearchDimension, SearchLimits
from galvatron_planner.profiles import Collective, LayerProfile, LinkProfile, Profile
from galvatron_planner.search.request import pipeline_degrees
from galvatron_planner.strategy import LayerStrategy
from tables import every_split

Choice = TypeVar("Choice")

MAX_PLANS = 200_000
"""The largest instance, so that looking at every plan takes some tenths of a second."""

SHAPES = (
    (1, 1),
    (1, 2),
    (2, 2),
    (1, 4),
    (2, 4),
    (1, 8),
    (4, 2),
    (2, 8),
    (3, 4),
    (4, 4),
    (6, 2),
    (4, 8),
    (6, 8),
    (8, 1),
)
"""Blocks and devices; embedding and head come on top."""
BATCHES = (
    *((size, size, 1) for size in (1, 2, 4, 3, 6, 5, 8, 12, 16)),
    *((1, 2, 1), (1, 4, 1), (2, 8, 2), (3, 9, 3), (4, 6, 1)),
)
"""Minimum, maximum and step."""
FAMILIES = (Family.GPT, Family.LLAMA, Family.T5, Family.SWIN)
"""Equal blocks twice; two streams across the boundaries of stages; blocks of unequal shape."""
EXCLUDED = (
    (),
    (),
    (SearchDimension.CKPT,),
    (SearchDimension.ZERO2,),
    (SearchDimension.ZERO2, SearchDimension.CKPT),
    (SearchDimension.SDP,),
    (SearchDimension.TP,),
    (SearchDimension.DP, SearchDimension.CKPT),
    (SearchDimension.ZERO2, SearchDimension.SDP, SearchDimension.CKPT),
    (SearchDimension.TP, SearchDimension.CKPT),
    (SearchDimension.PP,),
    (SearchDimension.DP, SearchDimension.SDP, SearchDimension.TP),
)


class Pick(Protocol):
    """Picks one of several; the first is the simplest."""

    def __call__(self, options: Sequence[Choice], /) -> Choice:
        """Pick."""


def small_problem(
    pick: Pick, *, shapes: Sequence[tuple[int, int]] = SHAPES, max_plans: int = MAX_PLANS
) -> PlanningProblem:
    """Draw a problem with no more plans than can all be looked at."""
    num_layers, num_devices = pick(shapes)
    num_nodes, kind = pick((1, 2)), pick((DeviceKind.CPU, DeviceKind.CUDA))
    batch, limits, sketch = _batch(pick), _limits(pick), _sketch(pick)
    # The first that is small enough: fewer blocks, then fewer devices.
    smaller = [
        (sketch.model(blocks), builders.cluster(devices, num_nodes=min(num_nodes, devices), device_kind=kind))
        for devices in (num_devices >> k for k in range(num_devices.bit_length()))
        for blocks in range(num_layers, 0, -1)
    ]
    spec, on = next((one for one in smaller if num_plans(*one, batch, limits) <= max_plans), smaller[-1])
    precision = pick((Precision.FP32, Precision.BF16))
    regular = builders.profile(
        spec,
        on,
        precision=precision,
        flops_per_second=pick((1e11, 1e9, 1e10, 1e12)),
        computation_slowdown=pick((1.0, 1.25, 2.0)),
        communication_slowdown=pick((1.0, 1.5, 2.0)),
    )
    measured = _profile(pick, regular)
    asked = builders.problem(spec, on, batch=batch, precision=precision, limits=limits, measured=measured)
    return with_memory(asked, pick)


def num_plans(spec: Model, on: Cluster, batch: BatchRange, limits: SearchLimits) -> int:
    """Count all plans."""
    layers = families.layers(spec)
    total = 0
    for degree in pipeline_degrees(on, limits, len(layers)):
        num_cuts = comb(len(layers) - 1, degree - 1)
        for split in every_split(batch):
            per_stage = on.num_devices // degree
            total += num_cuts * prod(len(_choices(per_stage, limits, layer, split)) for layer in layers)
    return total


def with_memory(problem: PlanningProblem, pick: Pick) -> PlanningProblem:
    """Give a problem just the memory of some plan, one byte more or less, clearly less, or twice as much."""
    layers, num_devices = families.layers(problem.model), problem.cluster.num_devices
    splits = [
        (degree, split)
        for degree in pipeline_degrees(problem.cluster, problem.limits, len(layers))
        for split in every_split(problem.batch)
        if all(_choices(num_devices // degree, problem.limits, layer, split) for layer in layers)
    ]
    if not splits:
        return problem
    prices, peaks = PriceList.of(problem), []
    for _ in range(pick((1, 2, 4))):
        degree, split = pick(splits)
        chosen = [pick(_choices(num_devices // degree, problem.limits, layer, split)) for layer in layers]
        cut = (0, *pick(list(combinations(range(1, len(layers)), degree - 1))), len(layers))
        stages = tuple(tuple(chosen[i:j]) for i, j in pairwise(cut))
        peaks.append(price_step(prices, problem, stages, split).peak_bytes)
    least = min(peaks)
    memory = pick((2 * max(peaks), least, least - 1, least + 1, least * 9 // 10, least * 3 // 4))
    return problem.model_copy(
        update={"cluster": problem.cluster.model_copy(update={"device_memory_bytes": max(1, memory)})}
    )


def _choices(num_devices: int, limits: SearchLimits, layer: LayerSpec, split: BatchSplit) -> list[LayerStrategy]:
    return [s for s in _space(num_devices, limits, layer) if split.micro_batch_size % s.data_degree == 0]


@cache
def _space(num_devices: int, limits: SearchLimits, layer: LayerSpec) -> tuple[LayerStrategy, ...]:
    return space.strategies(num_devices, limits, layer).strategies


@dataclass(frozen=True, slots=True)
class _Sketch:
    """A model without its depth."""

    family: Family
    hidden_size: int
    num_key_value_heads: int
    vocabulary_size: int

    def model(self, num_blocks: int) -> Model:
        """Build it with so many blocks; where layers of two kinds or widths are needed, with one more at least."""
        whole: dict[str, object] = {"num_layers": num_blocks, "sequence_length": 16}
        if self.family is Family.T5:
            encoder = max(1, num_blocks // 2)
            whole = {
                "num_layers": encoder,
                "num_decoder_layers": max(1, num_blocks - encoder),
                "decoder_sequence_length": 4,
                "sequence_length": 16,
            }
        if self.family is Family.SWIN:
            depths = (1, max(1, num_blocks - 1))
            images = {"image_size": 16, "patch_size": 4, "window_size": 2, "sequence_length": 16}
            whole = {"num_layers": sum(depths), "depths": depths, **images}
        return ModelSpec.model_validate(
            {
                "family": self.family,
                "hidden_size": self.hidden_size,
                "num_heads": 4,
                "num_key_value_heads": self.num_key_value_heads,
                "feed_forward_size": 4 * self.hidden_size,
                "vocabulary_size": self.vocabulary_size,
                **whole,
            }
        )


def _sketch(pick: Pick) -> _Sketch:
    return _Sketch(
        family=pick(FAMILIES),
        hidden_size=pick((32, 64)),
        num_key_value_heads=pick((4, 2)),
        # A vocabulary that no degree divides, one that most divide, one that refuses degrees, and two heavy ends.
        vocabulary_size=pick((67, 64, 3, 300, 4001)),
    )


def _batch(pick: Pick) -> BatchRange:
    minimum, maximum, step = pick(BATCHES)
    return BatchRange(minimum=minimum, maximum=maximum, step=step)


def _limits(pick: Pick) -> SearchLimits:
    return SearchLimits(
        excluded=pick(EXCLUDED),
        schedule=pick((Schedule.ONE_F_ONE_B, Schedule.GPIPE)),
        max_tensor_degree=pick((1 << 30, 2)),
        max_pipeline_degree=pick((1 << 30, 2)),
        # Rarely: it doubles what the slow oracles have to look at.
        sequence_parallel=pick((False, False, False, True)),
    )


def _profile(pick: Pick, regular: Profile) -> Profile:
    """Distort a regular profile: links of very different speed, costs without pattern, slow optimizers, a reserve."""
    factors = {collective: pick((1.0, 10.0, 100.0)) for collective in Collective}
    noise = Random(pick(range(1000)))  # noqa: S311 - nothing secret
    spread = pick((0.0, 0.5, 3.0))
    return regular.model_copy(
        update={
            "layers": tuple(_noisy(layer, noise, spread) for layer in regular.layers),
            "links": tuple(_slower(link, factors[link.collective]) for link in regular.links),
            "optimizer_seconds_per_parameter": pick((2e-10, 0.0, 1e-7)),
            "step_overhead_seconds": pick((1e-3, 0.0)),
            "reserve_bytes": pick((0, 12_345)),
        }
    )


def _noisy(layer: LayerProfile, noise: Random, spread: float) -> LayerProfile:
    return layer.model_copy(
        update={
            "samples": tuple(
                sample.model_copy(
                    update={
                        "forward_seconds": sample.forward_seconds * (1 + spread * noise.random()),
                        "backward_seconds": sample.backward_seconds * (1 + spread * noise.random()),
                        "activation_bytes": int(sample.activation_bytes * (1 + spread * noise.random())),
                        "transient_bytes": int(sample.transient_bytes * (1 + spread * noise.random())),
                    }
                )
                for sample in layer.samples
            )
        }
    )


def _slower(link: LinkProfile, factor: float) -> LinkProfile:
    samples = (one.model_copy(update={"seconds": one.seconds * factor}) for one in link.samples)
    return link.model_copy(update={"samples": tuple(samples)})
