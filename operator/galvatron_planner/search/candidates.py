"""The outer loop: every batch size, pipeline degree and number of micro-batches, the most promising first."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum
from itertools import chain
from typing import assert_never

from galvatron_planner import families, space
from galvatron_planner.cost.prices import PriceList
from galvatron_planner.cost.step import BatchSplit
from galvatron_planner.model import LayerSpec
from galvatron_planner.problem import PlanningProblem
from galvatron_planner.search.contents import Contents
from galvatron_planner.search.joint import PROVEN, Candidate, Pipeline, Proof
from galvatron_planner.search.options import PipelineOptions
from galvatron_planner.search.partition import PartitionSearch
from galvatron_planner.search.ranges import degrees, seconds_per_sample, splits
from galvatron_planner.search.skeletons import INFINITE
from galvatron_planner.search.tidying import tidied
from galvatron_planner.search.uniform import UniformPlan, UniformSearch, uniform_plans
from galvatron_planner.strategy import LayerStrategy

WORTHWHILE = 2e-3
"""How much faster the best plan must have become for an unsettled combination to be searched again."""
LIMITS = (1.1, 2.0, 8.0)
"""A first plan is looked for below so many times what all stages equal would take, before any plan will do."""
NEAR = 1.02
"""What is slower than a bound by at most this factor is hardly slower."""
MANY_DEVICES = 64
"""From so many devices on, no plans are looked for that cannot win."""
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


class Look(IntEnum):
    """How closely a combination has been looked at, each look dearer than the one before."""

    NONE = 0
    COARSE = 1
    """Bounded layouts aside, places that hold nearly as many micro-batches alike."""
    SCREENED = 2
    """Bounded layouts aside, every place by itself."""
    NEAR = 3
    """Bounded with layouts; looked for a plan that is hardly slower than the bound, among few strategies."""
    GLANCED = 4
    """Looked for any plan that is fast enough, quickly."""
    SOLVED = 5
    """Searched for the best plan, which is proven, or nearly."""


@dataclass(frozen=True, slots=True)
class _Combination:
    """A batch split and a pipeline degree, with a first bound on seconds per sample, and a first guess."""

    split: BatchSplit
    num_stages: int
    search: PartitionSearch = field(compare=False)
    bound: float
    promise: float

    def look(self, look: Look, cutoff: float, bound: float) -> tuple[Candidate | None, float]:
        """Look closer.

        Args:
            look: how close.
            cutoff: seconds per sample; what is slower does not matter.
            bound: known so far.

        Returns:
            a plan below the cutoff where one was found, and a bound on seconds per sample, the cutoff at most.
        """
        proof = self._proof(look, cutoff * self.split.global_batch_size, bound * self.split.global_batch_size)
        return proof.best, proof.lower_bound / self.split.global_batch_size

    def _proof(self, look: Look, cutoff: float, bound: float) -> Proof:
        match look:
            case Look.NONE:
                return Proof(None, bound)
            case Look.COARSE:
                return Proof(None, self.search.screen(cutoff, is_coarse=True))
            case Look.SCREENED:
                return Proof(None, self.search.screen(cutoff))
            case Look.NEAR:
                return self.search.glance(min(cutoff, NEAR * bound))
            case Look.GLANCED:
                return self.search.glance(cutoff)
            case Look.SOLVED:
                return self.search.run(cutoff)
            case _:
                assert_never(look)


def explore(problem: PlanningProblem, prices: PriceList, uniform: UniformSearch | None = None) -> Outcome:
    """Find the best plan, prove it, and find a good one for every other pipeline degree.

    Everything is quicker with a plan to beat: the best uniform ones are found first. On many devices they are the good
    ones of other pipeline degrees as well.

    Args:
        problem: what is asked.
        prices: of the problem.
        uniform: of the problem, where one has begun.
    """
    combinations = sorted(_combinations(problem, prices), key=_promise)
    known = _known(problem, uniform or UniformSearch(problem, prices))
    looks_for_others = problem.cluster.num_devices < MANY_DEVICES
    outcome = _Exploration(combinations, known, looks_for_others=looks_for_others).outcome()
    best = {degree: tidied(problem, prices, candidate) for degree, candidate in outcome.best.items()}
    return replace(outcome, best=best)


class _Exploration:
    """One outer loop; it has state because the best plan so far decides what is still looked into.

    The combination with the lowest bound is looked at more closely next, which raises its bound or finds a plan.
    """

    def __init__(
        self, combinations: list[_Combination], known: Mapping[int, Candidate], *, looks_for_others: bool
    ) -> None:
        self._combinations = combinations
        self._best = dict(known)
        self._fastest = min(map(seconds_per_sample, self._best.values()), default=INFINITE)
        self._looks_for_others = looks_for_others
        self._searched_degrees: set[int] = set()
        self._bounds = {one: one.bound for one in combinations}
        self._looks = dict.fromkeys(combinations, Look.NONE)
        self._solved_below: dict[_Combination, float] = {}

    def outcome(self) -> Outcome:
        if self._fastest == INFINITE:
            self._find()
        while (one := self._most_promising(self._combinations, self._fastest, Look.SOLVED)) is not None:
            self._look(one, self._fastest)
        lower, num_solved = min(self._bounds.values(), default=self._fastest), len(self._solved_below)
        if self._looks_for_others:
            winner = min(self._best, key=lambda degree: seconds_per_sample(self._best[degree]), default=0)
            for degree in sorted({one.num_stages for one in self._combinations} - self._searched_degrees - {winner}):
                self._look_for_another(degree)
        worth_a_line = NOTABLE * self._fastest
        return Outcome(
            best={degree: one for degree, one in self._best.items() if seconds_per_sample(one) <= worth_a_line},
            lower_bound=min(lower, self._fastest),
            num_candidates=len(self._combinations),
            num_solved=num_solved,
        )

    def _find(self) -> None:
        """Find a first plan where no uniform one fits: one below a limit, which is raised until there is one."""
        self._bounds |= {one: INFINITE for one in self._combinations if not one.search.fits()}
        hopeful = [one for one in self._combinations if self._bounds[one] < INFINITE]
        for factor in LIMITS:
            limit = factor * min((one.promise for one in hopeful), default=INFINITE)
            while (one := self._most_promising(hopeful, limit, Look.GLANCED)) is not None:
                if self._look(one, limit) is not None:
                    return
            self._looks = dict.fromkeys(self._combinations, Look.NONE)

    def _look_for_another(self, degree: int) -> None:
        """Find a good plan of a pipeline degree that cannot win, if one is worth a line in the report."""
        cutoff = NOTABLE * self._fastest
        own = [one for one in self._combinations if one.num_stages == degree]
        self._looks |= dict.fromkeys(own, Look.NONE)
        while (one := self._most_promising(own, cutoff, Look.GLANCED)) is not None:
            if self._look(one, cutoff) is not None:
                return

    def _most_promising(self, among: list[_Combination], cutoff: float, last: Look) -> _Combination | None:
        """Take the combination with the lowest bound that is below the cutoff and not looked at so closely yet."""
        open_ones = [one for one in among if self._bounds[one] < cutoff * (1 - PROVEN) and self._may_look(one, last)]
        return min(open_ones, key=lambda one: self._bounds[one], default=None)

    def _may_look(self, one: _Combination, last: Look) -> bool:
        if self._looks[one] < last:
            return True
        # What stayed unproven against a slow plan may be settled against a faster one that was found elsewhere.
        return last is Look.SOLVED and self._fastest < self._solved_below[one] * (1 - WORTHWHILE)

    def _look(self, one: _Combination, cutoff: float) -> Candidate | None:
        """Look at a combination more closely than before; return a plan if one was found."""
        look = Look(min(self._looks[one] + 1, Look.SOLVED))
        found, bound = one.look(look, cutoff, self._bounds[one])
        self._bounds[one] = max(self._bounds[one], bound)
        # A plan that is hardly slower than the bound leaves little for a second glance to find.
        self._looks[one] = Look.GLANCED if found is not None and look is Look.NEAR else look
        if found is not None:
            known = self._best.get(one.num_stages)
            if known is None or seconds_per_sample(found) < seconds_per_sample(known):
                self._best[one.num_stages] = found
            self._fastest = min(self._fastest, seconds_per_sample(found))
            self._searched_degrees.add(one.num_stages)
        if look is Look.SOLVED:
            self._solved_below[one] = self._fastest
        return found


def _known(problem: PlanningProblem, uniform: UniformSearch) -> dict[int, Candidate]:
    """Find the best uniform plan of every pipeline degree that has one."""
    plans: dict[int, list[UniformPlan]] = {}
    for plan in chain.from_iterable(uniform_plans(problem)):
        plans.setdefault(plan.num_stages, []).append(plan)
    found = {degree: uniform.fastest(some) for degree, some in plans.items()}
    return {degree: one for degree, one in found.items() if one is not None}


def smallest_peak(problem: PlanningProblem, prices: PriceList) -> int | None:
    """Find the least device memory with which some plan fits, reserve included; None when there is no plan at all."""
    smallest: int | None = None
    for one in sorted(_combinations(problem, prices), key=lambda one: one.search.least_peak()):
        if smallest is None or one.search.least_peak() < smallest:
            peak = one.search.smallest_peak()
            smallest = peak if smallest is None else min(smallest, peak or smallest)
    return None if smallest is None else smallest + problem.profile.reserve_bytes


def candidate_strategies(problem: PlanningProblem, num_stages: int) -> dict[LayerSpec, tuple[LayerStrategy, ...]]:
    """List per distinct layer what it may choose on a stage of a pipeline of ``num_stages``."""
    num_devices = problem.cluster.num_devices // num_stages
    return {
        layer: space.strategies(num_devices, problem.limits, layer).strategies
        for layer in dict.fromkeys(families.layers(problem.model))
    }


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
                shared[size] = PipelineOptions.of(prices, layers, strategies, micro_batch_size=size)
            options = shared[size]
            if options.is_empty:
                continue
            contents = contents or Contents(options.kinds)
            search = PartitionSearch(Pipeline(problem, prices, contents, split, num_stages), options)
            bound, promise = search.first_bounds()
            size = split.global_batch_size
            yield _Combination(split, num_stages, search, bound / size, promise / size)


def _promise(one: _Combination) -> tuple[float, int, int, int]:
    return one.promise, one.num_stages, one.split.num_micro_batches, one.split.global_batch_size
