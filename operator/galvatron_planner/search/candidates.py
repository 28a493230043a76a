"""The outer loop: every batch size, pipeline degree and number of micro-batches, the most promising first."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from galvatron_planner import families, space
from galvatron_planner.cost.prices import PriceList
from galvatron_planner.cost.step import BatchSplit
from galvatron_planner.model import LayerSpec
from galvatron_planner.problem import PlanningProblem
from galvatron_planner.search.contents import Contents
from galvatron_planner.search.options import PipelineOptions
from galvatron_planner.search.partition import PROVEN, Candidate, PartitionSearch, Proof
from galvatron_planner.search.request import pipeline_degrees
from galvatron_planner.search.tidying import tidied
from galvatron_planner.strategy import LayerStrategy

NUM_GLANCES = 1
"""Combinations that are looked into for the best plan of a pipeline degree that cannot win."""
WORTHWHILE = 2e-3
"""How much faster the best plan must have become for an unsettled combination to be searched again."""
NOTABLE = 1.25
"""Plans that take more than so many times as long as the best one are not worth a line in the report."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the outer loop found.

    Attributes:
        best: per pipeline degree that has a plan, the best one found; only the best of all is proven.
        lower_bound: seconds per sample that no plan undercuts; 0 where nothing is proven.
        num_candidates: combinations of batch size, pipeline degree and number of micro-batches.
        num_solved: those that were solved.
    """

    best: dict[int, Candidate]
    lower_bound: float
    num_candidates: int
    num_solved: int


@dataclass(frozen=True, slots=True)
class _Combination:
    """A batch split and a pipeline degree, with a first bound on seconds per sample, and a first guess."""

    split: BatchSplit
    num_stages: int
    search: PartitionSearch = field(compare=False)
    bound: float
    promise: float


def explore(problem: PlanningProblem, prices: PriceList, *, known: Candidate | None = None) -> Outcome:
    """Find the best plan, prove it, and find a good one for every other pipeline degree.

    Args:
        problem: what is asked.
        prices: of the problem.
        known: a plan that fits, when there is one: everything is quicker with a plan to beat.
    """
    combinations = sorted(_combinations(problem, prices), key=_promise)
    outcome = _Exploration(combinations, known).outcome()
    best = {degree: tidied(problem, prices, candidate) for degree, candidate in outcome.best.items()}
    return replace(outcome, best=best)


class _Exploration:
    """One outer loop; it has state because the best plan so far decides what is still looked into."""

    def __init__(self, combinations: list[_Combination], known: Candidate | None) -> None:
        self._combinations = combinations
        self._best = {} if known is None else {len(known.stages): known}
        self._fastest = float("inf") if known is None else seconds_per_sample(known)
        self._bounds = {one: one.bound for one in combinations}
        self._num_solved = 0

    def outcome(self) -> Outcome:
        self._glance_at_all()
        self._prove()
        for degree in {one.num_stages for one in self._combinations} - set(self._best):
            found = self._good_plan(degree)
            if found is not None:
                self._best[degree] = found
        lower = min(self._bounds.values(), default=self._fastest)
        return Outcome(
            best=self._best,
            lower_bound=min(lower, self._fastest),
            num_candidates=len(self._combinations),
            num_solved=self._num_solved,
        )

    def _glance_at_all(self) -> None:
        # Without a plan to beat few stages are quick; with one the most promising come first.
        waiting = list(self._combinations)
        if not self._best:
            waiting.sort(key=lambda one: one.num_stages)
        while waiting:
            one = waiting.pop(0)
            if one.bound < self._fastest * (1 - PROVEN):
                had_none = self._fastest == float("inf")
                self._learn(one, one.search.glance(self._fastest * one.split.global_batch_size))
                if had_none and self._fastest < float("inf"):
                    waiting.sort(key=_promise)

    def _prove(self) -> None:
        searched: dict[_Combination, float] = {}
        # Twice: what stayed unproven against an early, slow plan may be settled against the final one.
        for _ in range(2):
            for one in sorted(self._combinations, key=lambda one: self._bounds[one]):
                is_open = self._bounds[one] < self._fastest * (1 - PROVEN)
                if is_open and (one not in searched or self._fastest < searched[one] * (1 - WORTHWHILE)):
                    searched[one] = self._fastest
                    self._num_solved += 1
                    self._learn(one, one.search.run(self._fastest * one.split.global_batch_size))

    def _learn(self, one: _Combination, proof: Proof) -> None:
        self._bounds[one] = max(self._bounds[one], proof.lower_bound / one.split.global_batch_size)
        if proof.best is None:
            return
        known = self._best.get(one.num_stages)
        if known is None or seconds_per_sample(proof.best) < seconds_per_sample(known):
            self._best[one.num_stages] = proof.best
        self._fastest = min(self._fastest, seconds_per_sample(proof.best))

    def _good_plan(self, degree: int) -> Candidate | None:
        """Find the best of what the most promising combinations of a pipeline degree offer at first."""
        cutoff = NOTABLE * self._fastest
        hopeful = [one for one in self._combinations if one.num_stages == degree and one.bound < cutoff][:NUM_GLANCES]
        found = [one.search.glance(cutoff * one.split.global_batch_size).best for one in hopeful]
        return min((one for one in found if one is not None), key=seconds_per_sample, default=None)


def smallest_peak(problem: PlanningProblem, prices: PriceList) -> int | None:
    """Find the least device memory with which some plan fits, reserve included; None when there is no plan at all."""
    smallest: int | None = None
    for one in sorted(_combinations(problem, prices), key=lambda one: one.search.least_peak()):
        if smallest is None or one.search.least_peak() < smallest:
            peak = one.search.smallest_peak()
            smallest = peak if smallest is None else min(smallest, peak or smallest)
    return None if smallest is None else smallest + problem.profile.reserve_bytes


def seconds_per_sample(candidate: Candidate) -> float:
    """Give the number that plans are ranked by."""
    return candidate.estimate.step_seconds / candidate.split.global_batch_size


def candidate_strategies(problem: PlanningProblem, num_stages: int) -> dict[LayerSpec, tuple[LayerStrategy, ...]]:
    """List per distinct layer what it may choose on a stage of a pipeline of ``num_stages``."""
    num_devices = problem.cluster.num_devices // num_stages
    return {
        layer: space.strategies(num_devices, problem.limits, layer).strategies
        for layer in dict.fromkeys(families.layers(problem.model))
    }


def degrees(problem: PlanningProblem) -> tuple[int, ...]:
    """List the pipeline degrees that the problem allows."""
    return pipeline_degrees(problem.cluster, problem.limits, len(families.layers(problem.model)))


def _combinations(problem: PlanningProblem, prices: PriceList) -> Iterator[_Combination]:
    layers = families.layers(problem.model)
    contents: Contents | None = None
    for num_stages in degrees(problem):
        strategies = candidate_strategies(problem, num_stages)
        if not all(strategies.values()):
            continue
        shared: dict[int, PipelineOptions] = {}
        for split in splits(problem):
            size = split.micro_batch_size
            if size not in shared:
                shared[size] = PipelineOptions(prices, layers, strategies, micro_batch_size=size)
            options = shared[size]
            if options.is_empty:
                continue
            contents = contents or Contents(options.kinds)
            search = PartitionSearch(problem, prices, options, contents, split=split, num_stages=num_stages)
            bound, promise = search.first_bounds()
            size = split.global_batch_size
            yield _Combination(split, num_stages, search, bound / size, promise / size)


def splits(problem: PlanningProblem) -> Iterator[BatchSplit]:
    """Give every batch size with every number of micro-batches that divides it."""
    return (split for size in problem.batch.sizes for split in splits_of(size))


def splits_of(global_batch_size: int) -> Iterator[BatchSplit]:
    """Give a batch size with every number of micro-batches that divides it."""
    for number in range(1, global_batch_size + 1):
        if global_batch_size % number == 0:
            yield BatchSplit(global_batch_size, number)


def _promise(one: _Combination) -> tuple[float, int, int, int]:
    return one.promise, one.num_stages, one.split.num_micro_batches, one.split.global_batch_size
