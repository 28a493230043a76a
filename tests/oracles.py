"""Exhaustive enumeration: slow and obviously right, for instances of a few layers and devices.

Two of them: one plan after another through the cost model's own ``price_step``; and all plans of a cut at once as
arrays, some thousand times faster, whose optimum is priced again by ``price_step``. Neither knows the search; only
plans that exceed the memory are dropped on the way.
"""

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, pairwise, product

import numpy as np

from galvatron_planner import families, space
from galvatron_planner.cost.prices import PriceList
from galvatron_planner.cost.step import BatchSplit, StageStrategies, price_step
from galvatron_planner.plan import Estimate
from galvatron_planner.problem import PlanningProblem
from galvatron_planner.search.request import pipeline_degrees
from tables import Floats, Integers, Tables, every_split, every_table, finish


@dataclass(frozen=True, slots=True)
class Optimum:
    """The plan with the highest throughput of all."""

    split: BatchSplit
    stages: StageStrategies
    estimate: Estimate


def fitting_plans(problem: PlanningProblem) -> Iterator[tuple[BatchSplit, StageStrategies, Estimate]]:
    """Every plan of a problem that fits: all batch sizes, splits, pipeline degrees, cuts and strategies."""
    prices = PriceList.of(problem)
    for split, stages in every_plan(problem):
        estimate = price_step(prices, problem, stages, split)
        if estimate.peak_bytes <= problem.cluster.device_memory_bytes:
            yield split, stages, estimate


def every_plan(problem: PlanningProblem) -> Iterator[tuple[BatchSplit, StageStrategies]]:
    """Every plan of a problem, whether it fits or not."""
    layers = families.layers(problem.model)
    for degree in pipeline_degrees(problem.cluster, problem.limits, len(layers)):
        allowed = [
            space.strategies(problem.cluster.num_devices // degree, problem.limits, x).strategies for x in layers
        ]
        for split in every_split(problem.batch):
            fitting = [[s for s in some if split.micro_batch_size % s.data_degree == 0] for some in allowed]
            for chosen in product(*fitting):
                for inner in combinations(range(1, len(layers)), degree - 1):
                    yield split, tuple(chosen[i:j] for i, j in pairwise((0, *inner, len(layers))))


def optimum(problem: PlanningProblem, *, cut: tuple[int, ...] | None = None) -> Optimum | None:
    """Find the plan with the highest throughput by looking at every plan, or at every plan with the given cut.

    Returns:
        The plan; None when nothing fits.
    """
    prices = PriceList.of(problem)
    best: tuple[float, BatchSplit, StageStrategies] | None = None
    for asked in every_table(problem, prices):
        for one in combinations(range(1, len(asked.layers)), asked.num_stages - 1):
            if cut not in (None, one):
                continue
            found = _best_of_cut(asked, (0, *one, len(asked.layers)))
            if found is not None and (best is None or found[0] < best[0]):
                best = (found[0], asked.split, found[1])
    if best is None:
        return None
    per_sample, split, stages = best
    estimate = price_step(prices, problem, stages, split)
    # The arrays must say what the cost model says, or this is no oracle.
    assert abs(estimate.samples_per_second * per_sample - 1) < 1e-9
    assert estimate.peak_bytes <= problem.cluster.device_memory_bytes
    return Optimum(split, stages, estimate)


def smallest_memory(problem: PlanningProblem, *, most: int = 1 << 40) -> int | None:
    """Find the least device memory with which some plan fits; None when none fits ``most`` bytes."""
    if optimum(with_memory(problem, most)) is None:
        return None
    return bisect_left(range(most), 1, 1, key=lambda memory: optimum(with_memory(problem, memory)) is not None)


def with_memory(problem: PlanningProblem, num_bytes: int) -> PlanningProblem:
    """Pose the same problem on devices of another memory."""
    return problem.model_copy(update={"cluster": problem.cluster.model_copy(update={"device_memory_bytes": num_bytes})})


@dataclass(frozen=True, slots=True)
class _Stages:
    """Every choice of one stage, or of the stages so far joined; every array over the choices.

    Attributes:
        chosen: index of each layer's strategy.
        forward: seconds per micro-batch, one array a stage.
        backward: seconds per micro-batch, one array a stage.
        hops: seconds to the next stage, one array a stage.
        sync: seconds per step, one array a stage.
        optimizer: seconds per step, the slowest stage's.
        kept: bytes of the last stage, boundaries not counted.
        working: bytes of the last stage.
        first: layout in which the last stage starts.
        exits: layout in which it ends.
    """

    chosen: tuple[Integers, ...]
    forward: tuple[Floats, ...]
    backward: tuple[Floats, ...]
    hops: tuple[Floats, ...]
    sync: tuple[Floats, ...]
    optimizer: Floats
    kept: Integers
    working: Integers
    first: Integers
    exits: Integers


def _best_of_cut(asked: Tables, cut: tuple[int, ...]) -> tuple[float, StageStrategies] | None:
    joined: _Stages | None = None
    for stage_index, (start, end) in enumerate(pairwise(cut)):
        stage = _choices(asked, stage_index, start, end)
        joined = _fitting(asked, stage) if joined is None else _join(asked, joined, stage, stage_index, start)
        if not joined.kept.size:
            return None
    assert joined is not None
    ends = finish(joined.forward, joined.backward, joined.hops, asked)
    reduced = np.max([end + sync for end, sync in zip(ends, joined.sync, strict=True)], axis=0)
    steps = reduced + joined.optimizer + asked.problem.profile.step_overhead_seconds
    best = int(steps.argmin())
    strategies = [layer.strategies[int(index[best])] for layer, index in zip(asked.layers, joined.chosen, strict=True)]
    stages = tuple(tuple(strategies[i:j]) for i, j in pairwise(cut))
    return float(steps[best]) / asked.split.global_batch_size, stages


def _choices(asked: Tables, stage_index: int, start: int, end: int) -> _Stages:
    """Every choice of one stage by itself; what it receives is not yet counted."""
    layers = asked.layers[start:end]
    grid = np.meshgrid(*[np.arange(layer.size) for layer in layers], indexing="ij")
    chosen = tuple(axis.ravel() for axis in grid)
    placed = [layer.layouts[index] for layer, index in zip(layers, chosen, strict=True)]
    picked = list(zip(layers, chosen, strict=True))
    forward, backward = sum(x.forward[i] for x, i in picked), sum(x.backward[i] for x, i in picked)
    working = np.max([x.transient[i] for x, i in picked], axis=0)
    for index in range(1, len(layers)):
        boundary, before, after = asked.boundaries[start + index], placed[index - 1], placed[index]
        forward, backward = forward + boundary.forward[before, after], backward + boundary.backward[before, after]
        (behind, i), (ahead, j) = picked[index], picked[index - 1]
        working = np.maximum(working, behind.transient[i] + ahead.gathered[j])
        working = np.maximum(working, boundary.transient[before, after])
    kept = sum(asked.kept(x, stage_index)[i] for x, i in picked)
    hops: tuple[Floats, ...] = (np.zeros_like(forward),)
    if stage_index < asked.num_stages - 1:
        hops = (asked.boundaries[end].hop[stage_index][placed[-1]],)
        kept = kept + asked.boundaries[end].exit[stage_index][placed[-1]]
    return _Stages(
        chosen=chosen,
        forward=(np.asarray(forward),),
        backward=(np.asarray(backward),),
        hops=hops,
        sync=(np.asarray(sum(x.sync[i] for x, i in picked)),),
        optimizer=np.asarray(sum(x.optimizer[i] for x, i in picked)),
        kept=np.asarray(kept),
        working=working,
        first=placed[0],
        exits=placed[-1],
    )


def _join(asked: Tables, before: _Stages, stage: _Stages, stage_index: int, start: int) -> _Stages:
    """Every pair of what comes before and a stage that fits behind it."""
    stage = _fitting(asked, stage)
    i, j = (axis.ravel() for axis in np.meshgrid(np.arange(before.kept.size), np.arange(stage.kept.size)))
    boundary, entry, first = asked.boundaries[start], before.exits[i], stage.first[j]
    pairs = _Stages(
        chosen=(*(index[i] for index in before.chosen), *(index[j] for index in stage.chosen)),
        forward=(*(x[i] for x in before.forward), stage.forward[0][j] + boundary.forward[entry, first]),
        backward=(*(x[i] for x in before.backward), stage.backward[0][j] + boundary.backward[entry, first]),
        hops=(*(x[i] for x in before.hops), stage.hops[0][j]),
        sync=(*(x[i] for x in before.sync), stage.sync[0][j]),
        optimizer=np.maximum(before.optimizer[i], stage.optimizer[j]),
        kept=stage.kept[j] + boundary.entry[stage_index][entry, first],
        working=np.maximum(stage.working[j], boundary.transient[entry, first]),
        first=first,
        exits=stage.exits[j],
    )
    return _fitting(asked, pairs)


def _fitting(asked: Tables, some: _Stages) -> _Stages:
    """Keep the choices whose last stage fits."""
    (fits,) = np.nonzero(some.kept + some.working <= asked.room_bytes)
    return _Stages(
        chosen=tuple(x[fits] for x in some.chosen),
        forward=tuple(x[fits] for x in some.forward),
        backward=tuple(x[fits] for x in some.backward),
        hops=tuple(x[fits] for x in some.hops),
        sync=tuple(x[fits] for x in some.sync),
        optimizer=some.optimizer[fits],
        kept=some.kept[fits],
        working=some.working[fits],
        first=some.first[fits],
        exits=some.exits[fits],
    )
