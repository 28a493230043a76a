"""The outer loop: every batch size, pipeline degree and number of micro-batches, the most promising first."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

from galvatron_planner import families, space
from galvatron_planner.cost.prices import PriceList
from galvatron_planner.cost.step import BatchSplit
from galvatron_planner.model import LayerSpec
from galvatron_planner.problem import PlanningProblem
from galvatron_planner.search.options import PipelineOptions, pipeline_options
from galvatron_planner.search.partition import Candidate, PartitionSearch, balanced_cut
from galvatron_planner.search.polish import polish
from galvatron_planner.search.request import pipeline_degrees
from galvatron_planner.strategy import LayerStrategy


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the outer loop found.

    Attributes:
        best: per pipeline degree that has a plan, its best one.
        lower_bound: seconds per sample that no plan undercuts.
        all_cuts: whether every cut of every candidate that was solved was considered.
        num_candidates: combinations of batch size, pipeline degree and number of micro-batches.
        num_solved: those that were solved.
    """

    best: dict[int, Candidate]
    lower_bound: float
    all_cuts: bool
    num_candidates: int
    num_solved: int


@dataclass(frozen=True, slots=True)
class _Combination:
    """A batch split and a pipeline degree, with a first bound on seconds per sample."""

    split: BatchSplit
    num_stages: int
    options: PipelineOptions = field(compare=False)
    bound: float


def explore(problem: PlanningProblem, prices: PriceList) -> Outcome:
    """Solve every combination that can still be the best of its pipeline degree."""
    combinations = sorted(_combinations(problem, prices), key=_promise)
    best: dict[int, Candidate] = {}
    bounds: list[float] = []
    all_cuts, num_solved = True, 0
    for one in combinations:
        bounds.append(one.bound)
        cutoff = _seconds_per_sample(best.get(one.num_stages)) * one.split.global_batch_size
        if one.bound * one.split.global_batch_size >= cutoff:
            continue
        search = PartitionSearch(problem, prices, one.options, split=one.split, num_stages=one.num_stages)
        bounds[-1] = max(one.bound, search.lower_bound_seconds() / one.split.global_batch_size)
        if bounds[-1] * one.split.global_batch_size >= cutoff:
            continue
        num_solved += 1
        all_cuts = all_cuts and search.is_exhaustive
        found = search.best(cutoff)
        if found is not None:
            best[one.num_stages] = found
        if one.num_stages == 1:
            # A single stage is solved exactly, up to the cutoff: nothing of this combination is faster.
            solved = found.estimate.step_seconds if found else cutoff
            bounds[-1] = max(bounds[-1], solved / one.split.global_batch_size)
    best = {
        degree: polish(problem, prices, found, candidate_strategies(problem, degree)) for degree, found in best.items()
    }
    return Outcome(best, min(bounds, default=float("inf")), all_cuts, len(combinations), num_solved)


def smallest_peak(problem: PlanningProblem, prices: PriceList) -> int | None:
    """Find the least device memory with which some plan fits, reserve included; None when there is no plan at all."""
    peaks = []
    for one in _combinations(problem, prices):
        search = PartitionSearch(problem, prices, one.options, split=one.split, num_stages=one.num_stages)
        peak = search.smallest_peak()
        if peak is not None:
            peaks.append(peak + problem.profile.reserve_bytes)
    return min(peaks, default=None)


def candidate_strategies(problem: PlanningProblem, num_stages: int) -> dict[LayerSpec, tuple[LayerStrategy, ...]]:
    """List per distinct layer what it may choose on a stage of a pipeline of ``num_stages``."""
    num_devices = problem.cluster.num_devices // num_stages
    return {
        layer: space.strategies(num_devices, problem.limits, layer).strategies
        for layer in families.layers(problem.model)
    }


def degrees(problem: PlanningProblem) -> tuple[int, ...]:
    """List the pipeline degrees that the problem allows."""
    return pipeline_degrees(problem.cluster, problem.limits, len(families.layers(problem.model)))


def _combinations(problem: PlanningProblem, prices: PriceList) -> Iterator[_Combination]:
    layers = families.layers(problem.model)
    for num_stages in degrees(problem):
        strategies = candidate_strategies(problem, num_stages)
        if not all(strategies.values()):
            continue
        for global_batch_size in problem.batch.sizes:
            for num_micro_batches in _divisors(global_batch_size):
                split = BatchSplit(global_batch_size, num_micro_batches)
                options = pipeline_options(
                    prices,
                    layers,
                    strategies,
                    micro_batch_size=split.micro_batch_size,
                    num_micro_batches=num_micro_batches,
                )
                if not options.is_empty:
                    bound = _first_bound(problem, options, num_stages) / global_batch_size
                    yield _Combination(split, num_stages, options, bound)


def _first_bound(problem: PlanningProblem, options: PipelineOptions, num_stages: int) -> float:
    """Bound a step from below: some stage must do its share of the least work, whatever memory allows."""
    least = [float(options.layers[kind].seconds.min()) for kind in options.kinds]
    cut = balanced_cut(least, num_stages)
    busiest = max(sum(least[start:end]) for start, end in pairwise(cut))
    return busiest * (1 - 1e-12) + problem.profile.step_overhead_seconds


def _promise(one: _Combination) -> tuple[float, int, int, int]:
    return one.bound, one.num_stages, one.split.num_micro_batches, one.split.global_batch_size


def _seconds_per_sample(candidate: Candidate | None) -> float:
    if candidate is None:
        return float("inf")
    return candidate.estimate.step_seconds / candidate.split.global_batch_size


def _divisors(number: int) -> Iterator[int]:
    return (divisor for divisor in range(1, number + 1) if number % divisor == 0)
