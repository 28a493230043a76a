"""Layers to stages: the best plan of one pipeline degree and batch split, and the proof that there is no better one.

The stages of the skeleton with the lowest bound (``skeletons.py``) are solved exactly, which raises bounds, until
nothing is left below the best plan known, or what is left has been solved.

Source of the balance between stages that this replaces: Galvatron-BMW (arXiv 2307.02031), section 4.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from galvatron_planner import families
from galvatron_planner.cost.pipeline import in_flight
from galvatron_planner.cost.prices import PriceList, StagePosition
from galvatron_planner.cost.step import BatchSplit, StageStrategies, price_step
from galvatron_planner.plan import Estimate
from galvatron_planner.problem import PlanningProblem, Schedule
from galvatron_planner.search.assembly import Assembly
from galvatron_planner.search.contents import Contents
from galvatron_planner.search.front import ROUNDING
from galvatron_planner.search.options import BACKWARD, FORWARD, Flags, Floats, Integers, PipelineOptions
from galvatron_planner.search.places import Metric, Place, Position
from galvatron_planner.search.skeletons import INFINITE, Skeleton, Skeletons, StageIndex
from galvatron_planner.search.stage import StageChoice
from galvatron_planner.search.tradeoffs import Ceiling, Tradeoff, tradeoffs
from galvatron_planner.strategy import LayerStrategy

MAX_SKELETONS = 100
"""Skeletons that are solved exactly before the search settles for a bound."""
MAX_KEPT_BYTES = 1 << 24
"""Bounds up to this size are kept between a glance and a proof; larger ones are worked out again."""
LEEWAY = 1e-4
PROVEN = 1e-9
"""Plans that are faster by less than this share are not looked for."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A complete choice for one batch split and pipeline degree."""

    split: BatchSplit
    stages: StageStrategies
    estimate: Estimate


@dataclass(frozen=True, slots=True)
class Proof:
    """What the search of one pipeline degree and batch split came to.

    Attributes:
        best: the best plan found that is faster than what was known, if there is one.
        lower_bound: seconds of a step that no plan undercuts.
    """

    best: Candidate | None
    lower_bound: float


class PartitionSearch:
    """One pipeline degree and batch split; it has state because bounds are sharpened on the way."""

    def __init__(
        self,
        problem: PlanningProblem,
        prices: PriceList,
        options: PipelineOptions,
        contents: Contents,
        *,
        split: BatchSplit,
        num_stages: int,
    ) -> None:
        self._problem = problem
        self._prices = prices
        self._options = options
        self._contents = contents
        self._layers = families.layers(problem.model)
        self._split = split
        self._num_stages = num_stages
        self._budget_bytes = problem.cluster.device_memory_bytes - problem.profile.reserve_bytes
        self._overhead = problem.profile.step_overhead_seconds
        self._places: list[Place] = []
        self._skeletons = self._of([])
        self._tradeoffs: dict[tuple[int, int, int, int], tuple[dict[Metric, float], list[Tradeoff] | None]] = {}

    def first_bounds(self) -> tuple[float, float]:
        """Bound a step without looking at stages: all layers together, in the memory of all devices together.

        However layers are cut, some stage takes its share of the work, and the schedule has its bubble. Every layer
        keeps at least one micro-batch.

        Returns:
            what no plan undercuts, and what equal stages would take.
        """
        m, stages = self._split.num_micro_batches, self._num_stages
        largest = max(int(layer.transient.min()) for layer in self._options.layers)
        work = self._options.least_weighted((m, m, 0.0, 0.0), room=stages * self._budget_bytes - largest)
        equal = work * (m + stages - 1) / stages / m
        # With fewer micro-batches than stages an unequal cut can be a little faster than the formula.
        schedule = self._problem.limits.schedule
        sure = equal if schedule is Schedule.GPIPE or m > stages else work * max(1 / stages, 1 / m)
        own = self._options.least_weighted((m, m, 1.0, 1.0), room=self._budget_bytes - largest) if stages == 1 else 0.0
        least = max(sure, float(self._least_work.max()), own) * (1 - ROUNDING)
        return least + self._overhead, max(least, equal) + self._overhead

    def glance(self, cutoff_seconds: float) -> Proof:
        """Bound a step with regard to memory, and look for a plan that is faster than the cutoff, quickly."""
        limit = cutoff_seconds - self._overhead
        self._bound_places(limit)
        skeleton = self._skeletons.lowest(limit, set())
        if skeleton is None:
            self._places = []
            return Proof(None, cutoff_seconds)
        best = self._glanced(skeleton, cutoff_seconds)
        bound = self._skeletons.bound_of(skeleton) + self._overhead
        if sum(place.seconds.nbytes for place in self._places) > MAX_KEPT_BYTES:
            self._places = []
        return Proof(best, bound)

    def run(self, cutoff_seconds: float) -> Proof:
        """Look for a plan that is faster than the cutoff, and prove that there is no other.

        Args:
            cutoff_seconds: of a step; slower plans do not matter.
        """
        if not self._places:
            self._bound_places(cutoff_seconds - self._overhead)
        proof = self._proof(cutoff_seconds)
        self._places = []
        return proof

    def _proof(self, cutoff_seconds: float) -> Proof:
        best: Candidate | None = None
        solved: set[Skeleton] = set()
        open_bound = INFINITE
        while len(solved) < MAX_SKELETONS:
            skeleton = self._promising(min(cutoff_seconds * (1 - PROVEN), open_bound) - self._overhead, solved)
            if skeleton is None:
                return Proof(best, min(cutoff_seconds, open_bound))
            found, is_proven = self._solve(skeleton, cutoff_seconds)
            solved.add(skeleton)
            if found is not None:
                best, cutoff_seconds = found, found.estimate.step_seconds
            if not is_proven:
                open_bound = min(open_bound, self._skeletons.bound_of(skeleton) + self._overhead)
        skeleton = self._skeletons.lowest(cutoff_seconds - self._overhead, set())
        bound = cutoff_seconds if skeleton is None else self._skeletons.bound_of(skeleton) + self._overhead
        return Proof(best, min(bound, cutoff_seconds))

    def least_peak(self) -> float:
        """Bound the device memory of every cut from below, without the reserve: all layers spread evenly."""
        counts = np.bincount(self._options.kinds, minlength=len(self._options.layers))
        kept = sum(int(n * layer.kept(1).min()) for n, layer in zip(counts, self._options.layers, strict=True))
        return kept / self._num_stages

    def _bound_places(self, limit: float) -> None:
        self._places = [place.bound() for place in self._list_places(limit)]
        self._skeletons = self._of(self._places)

    def _of(self, places: list[Place]) -> Skeletons:
        return Skeletons(
            places,
            self._options,
            num_micro_batches=self._split.num_micro_batches,
            schedule=self._problem.limits.schedule,
        )

    @cached_property
    def _least_work(self) -> Floats:
        least = self._options.least_seconds
        return np.asarray(self._split.num_micro_batches * (least[FORWARD] + least[BACKWARD]))

    def _list_places(self, limit: float) -> list[Place]:
        """List at every place the stages that are not hopeless by their least work alone."""
        count = len(self._layers)
        work = np.concatenate([[0.0], np.cumsum(self._least_work)])
        way = work / self._split.num_micro_batches
        start, length = np.meshgrid(np.arange(count + 1), np.arange(count + 1), indexing="ij")
        end = start + length
        inside = (length > 0) & (end <= count)
        end = np.minimum(end, count)
        hopeful = inside & ((work[end] - work[start] + way[start]) * (1 - ROUNDING) <= limit)
        return [self._place(k, hopeful & self._reachable(k, start, end)) for k in range(self._num_stages)]

    def smallest_peak(self) -> int | None:
        """Find the least device memory with which some cut fits, without the reserve."""
        num_layers = len(self._layers)
        fullest = np.where(np.arange(num_layers + 1)[:, None] == num_layers, 0.0, INFINITE)
        for place in reversed(self._list_places(INFINITE)):
            needed = np.maximum(place.peaks(), fullest[place.end][:, None, :])
            fullest = np.full((num_layers + 1, place.num_entries), INFINITE)
            if len(place.start):
                least = np.minimum.reduceat(needed.min(axis=2), place.offsets, axis=0)
                fullest[place.start[place.offsets]] = least
        return int(fullest[0, 0]) if fullest[0, 0] < INFINITE else None

    def _reachable(self, k: int, start: Integers, end: Integers) -> Flags:
        count, later = len(self._layers), self._num_stages - 1 - k
        begins = start == 0 if k == 0 else start >= k
        ends = end == count if later == 0 else end <= count - later
        return np.asarray(begins & ends)

    def _place(self, k: int, allowed: Flags) -> Place:
        position = Position(
            stage_index=k,
            num_micro_batches=self._split.num_micro_batches,
            in_flight=in_flight(
                self._problem.limits.schedule,
                stage_index=k,
                num_stages=self._num_stages,
                num_micro_batches=self._split.num_micro_batches,
            ),
            budget_bytes=self._budget_bytes,
            is_first=k == 0,
            is_last=k == self._num_stages - 1,
        )
        return Place(self._options, self._contents, position, allowed)

    def _promising(self, limit: float, solved: set[Skeleton]) -> Skeleton | None:
        """Find the unsolved skeleton of lowest bound below the limit, after its stages have been solved exactly."""
        while True:
            skeleton = self._skeletons.lowest(limit, solved)
            if skeleton is None or len(solved) >= MAX_SKELETONS:
                return skeleton
            if self._skeletons.own_bound(skeleton) > limit:
                # Nothing in it is fast enough, and no stage of it needs a closer look.
                solved.add(skeleton)
            elif not self._sharpen(skeleton, limit):
                return skeleton

    def _sharpen(self, skeleton: Skeleton, limit: float) -> bool:
        """Solve the stages of a skeleton as far as the limit allows; tell whether that raised a bound."""
        raised = False
        for k, one in enumerate(skeleton.stages):
            place = self._places[k]
            for metric, ceiling in self._skeletons.ceilings(skeleton, k, limit).items():
                if not place.exact[metric, *one]:
                    before = float(place.seconds[metric, *one])
                    # Rounded up: what is as fast as the ceiling is still found.
                    place.solve(metric, *one, ceiling * (1 + 1e-9))
                    raised = raised or float(place.seconds[metric, *one]) > before * (1 + 1e-9)
            if raised:
                return True
        return False

    def _solve(self, skeleton: Skeleton, cutoff_seconds: float) -> tuple[Candidate | None, bool]:
        """Find the fastest plan of a skeleton, if one is faster than the cutoff, and tell whether that is proven."""
        bound = self._skeletons.bound_of(skeleton) + self._overhead
        own = [self._optima(k, one, Place.solve) for k, one in enumerate(skeleton.stages)]
        best = self._assembled(own, cutoff_seconds)[0]
        if best is not None:
            cutoff_seconds = best.estimate.step_seconds
        if not all(own) or bound >= cutoff_seconds * (1 - PROVEN):
            return best, True
        every = [self._every_tradeoff(skeleton, k, cutoff_seconds) for k in range(self._num_stages)]
        known = [one for one in every if one is not None]
        if len(known) < len(every):
            return best, False
        found, is_proven = self._assembled(known, cutoff_seconds)
        return found or best, is_proven

    def _glanced(self, skeleton: Skeleton, cutoff_seconds: float) -> Candidate | None:
        """Price what all stages choose by themselves, for one metric after the other."""
        options = [self._optima(k, one, Place.glance) for k, one in enumerate(skeleton.stages)]
        if not all(options):
            return None
        complete = dict.fromkeys(tuple(some[min(i, len(some) - 1)] for some in options) for i in range(len(Metric)))
        found = self._assembly().fastest_of(list(complete), cutoff_seconds - self._overhead)
        return self._candidate(found.choices, cutoff_seconds)

    def _assembled(self, options: list[list[Tradeoff]], cutoff_seconds: float) -> tuple[Candidate | None, bool]:
        if not all(options):
            return None, True
        found = self._assembly().fastest(options, cutoff_seconds - self._overhead)
        return self._candidate(found.choices, cutoff_seconds), found.is_proven

    def _assembly(self) -> Assembly:
        return Assembly(
            num_stages=self._num_stages,
            num_micro_batches=self._split.num_micro_batches,
            schedule=self._problem.limits.schedule,
        )

    def _candidate(self, choices: tuple[Tradeoff, ...] | None, cutoff_seconds: float) -> Candidate | None:
        if choices is None:
            return None
        stages = tuple(choice.strategies for choice in choices)
        estimate = price_step(self._prices, self._problem, stages, self._split)
        return Candidate(self._split, stages, estimate) if estimate.step_seconds < cutoff_seconds else None

    def _optima(
        self, k: int, one: StageIndex, solve: Callable[[Place, Metric, int, int, int], StageChoice | None]
    ) -> list[Tradeoff]:
        """List what a stage chooses by itself, for every metric; nothing when it does not fit."""
        choices = [solve(self._places[k], metric, *one) for metric in Metric]
        distinct = dict.fromkeys(choice.strategies for choice in choices if choice is not None)
        return [Tradeoff(strategies, self._amounts(k, one, strategies)) for strategies in distinct]

    def _amounts(
        self, k: int, one: StageIndex, strategies: tuple[LayerStrategy, ...]
    ) -> tuple[float, float, float, float]:
        place, (stage, entry, _) = self._places[k], one
        position = StagePosition(
            micro_batch_size=self._split.micro_batch_size,
            in_flight=place.position.in_flight,
            entry=None if place.position.is_first else self._options.exits[entry],
            feeds_next=not place.position.is_last,
        )
        cost = self._prices.stage(self._layers[place.start[stage] : place.end[stage]], strategies, position)
        there, back = place.transfer_seconds(*one)
        return cost.forward_seconds + there, cost.backward_seconds + back, cost.sync_seconds, cost.optimizer_seconds

    def _every_tradeoff(self, skeleton: Skeleton, k: int, cutoff_seconds: float) -> list[Tradeoff] | None:
        place, (stage, entry, leaving) = self._places[k], skeleton.stages[k]
        limits = self._skeletons.ceilings(skeleton, k, cutoff_seconds - self._overhead)
        key = (k, int(place.content[stage]), entry, leaving)
        known = self._tradeoffs.get(key)
        if known is not None and all(limit <= known[0][metric] for metric, limit in limits.items()):
            return known[1]
        # A little more room than needed: the next skeleton asks for nearly the same.
        limits = {metric: limit * (1 + LEEWAY) for metric, limit in limits.items()}
        ceilings = [
            Ceiling(place.graph(metric, entry), limit - place.receiving_seconds(metric, *skeleton.stages[k]))
            for metric, limit in limits.items()
        ]
        leaves = ceilings[0].graph.leaves_in(None if place.position.is_last else self._options.exits[leaving])
        kinds = self._options.kinds[place.start[stage] : place.end[stage]]
        inside = tradeoffs(ceilings, kinds, leaves)
        transfers = place.transfer_seconds(*skeleton.stages[k])
        found = None if inside is None else [_with_transfers(one, transfers) for one in inside]
        self._tradeoffs[key] = limits, found
        return found


def _with_transfers(inside: Tradeoff, transfers: tuple[float, float]) -> Tradeoff:
    """Add the transfers with which the passes of a stage begin."""
    (forward, backward, sync, optimizer), (there, back) = inside.amounts, transfers
    return Tradeoff(inside.strategies, (forward + there, backward + back, sync, optimizer))
