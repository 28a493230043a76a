"""Cuts, layouts and strategies of one pipeline at once: the best plan among given options, and the proof of it.

The stages of the skeleton with the lowest bound (``skeletons.py``) are solved exactly, which raises bounds, until
nothing is left below the best plan known, or what is left has been solved.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from galvatron_planner import families
from galvatron_planner.cost.pipeline import in_flight
from galvatron_planner.cost.prices import PriceList, StagePosition
from galvatron_planner.cost.step import BatchSplit, StageStrategies, price_step
from galvatron_planner.plan import Estimate
from galvatron_planner.problem import PlanningProblem
from galvatron_planner.search.assembly import Assembly
from galvatron_planner.search.contents import Contents, Stages
from galvatron_planner.search.options import PipelineOptions
from galvatron_planner.search.places import Metric, Place, Position
from galvatron_planner.search.skeletons import INFINITE, Skeleton, Skeletons, StageIndex
from galvatron_planner.search.stage import StageChoice
from galvatron_planner.search.tradeoffs import Ceiling, Tradeoff, tradeoffs
from galvatron_planner.strategy import LayerStrategy

MAX_SOLVED = 100
"""Skeletons that are solved exactly before the search settles for a bound."""
MAX_SKELETONS = 2000
"""Skeletons that are solved or found too slow one by one before it does."""
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


@dataclass(frozen=True, slots=True)
class Pipeline:
    """One pipeline degree and batch split of a problem."""

    problem: PlanningProblem
    prices: PriceList
    contents: Contents
    split: BatchSplit
    num_stages: int

    @property
    def overhead_seconds(self) -> float:
        """What a step costs beyond its stages."""
        return self.problem.profile.step_overhead_seconds

    def positions(self) -> tuple[Position, ...]:
        """Describe every place."""
        budget = self.problem.cluster.device_memory_bytes - self.problem.profile.reserve_bytes
        return tuple(
            Position(
                stage_index=k,
                num_micro_batches=self.split.num_micro_batches,
                in_flight=self._in_flight(k),
                first_in_flight=self._in_flight(0),
                budget_bytes=budget,
                is_first=k == 0,
                is_last=k == self.num_stages - 1,
            )
            for k in range(self.num_stages)
        )

    def _in_flight(self, k: int) -> int:
        return in_flight(
            self.problem.limits.schedule,
            stage_index=k,
            num_stages=self.num_stages,
            num_micro_batches=self.split.num_micro_batches,
        )


class JointSearch:
    """One pipeline whose layers may choose among given options; it has state because bounds are sharpened."""

    def __init__(self, pipeline: Pipeline, options: PipelineOptions, stages: Sequence[Stages]) -> None:
        """Bound every stage.

        Args:
            pipeline: which.
            options: what layers may choose.
            stages: that can stand at each place.
        """
        self._pipeline = pipeline
        self._options = options
        self._layers = families.layers(pipeline.problem.model)
        self._overhead = pipeline.overhead_seconds
        self._places: list[Place] = []
        for position, own in zip(pipeline.positions(), stages, strict=True):
            before = self._places[-1] if self._places else None
            self._places.append(Place(options, pipeline.contents, position, own, before))
        for place in self._places:
            place.bound()
        self._skeletons = Skeletons(
            self._places,
            options,
            num_micro_batches=pipeline.split.num_micro_batches,
            schedule=pipeline.problem.limits.schedule,
        )
        self._tradeoffs: dict[tuple[int, int, int, int], tuple[dict[Metric, float], list[Tradeoff] | None]] = {}

    def glance(self, cutoff_seconds: float) -> Proof:
        """Bound a step, and look for a plan that is faster than the cutoff, quickly."""
        skeleton = self._skeletons.lowest(cutoff_seconds - self._overhead)
        if skeleton is None:
            return Proof(None, cutoff_seconds)
        best = self._glanced(skeleton, cutoff_seconds)
        return Proof(best, self._skeletons.bound_of(skeleton) + self._overhead)

    def run(self, cutoff_seconds: float) -> Proof:
        """Look for a plan that is faster than the cutoff, and prove that there is no other."""
        best: Candidate | None = None
        solved: set[Skeleton] = set()
        open_bound = INFINITE
        for _ in range(MAX_SOLVED):
            skeleton = self._promising(min(cutoff_seconds * (1 - PROVEN), open_bound) - self._overhead, solved)
            if skeleton is None:
                return Proof(best, min(cutoff_seconds, open_bound))
            found, is_proven = self._solve(skeleton, cutoff_seconds)
            solved.add(skeleton)
            if found is not None:
                best, cutoff_seconds = found, found.estimate.step_seconds
            if not is_proven:
                open_bound = min(open_bound, self._skeletons.bound_of(skeleton) + self._overhead)
            if len(solved) >= MAX_SKELETONS:
                break
        skeleton = self._skeletons.lowest(cutoff_seconds - self._overhead)
        bound = cutoff_seconds if skeleton is None else self._skeletons.bound_of(skeleton) + self._overhead
        return Proof(best, min(bound, cutoff_seconds))

    def _promising(self, limit: float, solved: set[Skeleton]) -> Skeleton | None:
        """Find the unsolved skeleton of lowest bound below the limit, after its stages have been solved exactly."""
        walk: Iterator[Skeleton] | None = None
        while True:
            if not solved:
                skeleton = self._skeletons.lowest(limit)
            else:
                # As long as no bound is raised the walk goes on where it was: behind it are thousands of solved ones.
                walk = walk or self._skeletons.below(limit, solved)
                skeleton = next(walk, None)
            if skeleton is None or len(solved) >= MAX_SKELETONS:
                return skeleton
            if self._skeletons.own_bound(skeleton) > limit:
                # Nothing in it is fast enough, and no stage of it needs a closer look.
                solved.add(skeleton)
            elif self._sharpen(skeleton, limit):
                walk = None
            else:
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
        every = [self._every_tradeoff(skeleton, k, cutoff_seconds) for k in range(self._pipeline.num_stages)]
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
            num_stages=self._pipeline.num_stages,
            num_micro_batches=self._pipeline.split.num_micro_batches,
            schedule=self._pipeline.problem.limits.schedule,
        )

    def _candidate(self, choices: tuple[Tradeoff, ...] | None, cutoff_seconds: float) -> Candidate | None:
        if choices is None:
            return None
        stages = tuple(choice.strategies for choice in choices)
        estimate = price_step(self._pipeline.prices, self._pipeline.problem, stages, self._pipeline.split)
        return Candidate(self._pipeline.split, stages, estimate) if estimate.step_seconds < cutoff_seconds else None

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
            micro_batch_size=self._pipeline.split.micro_batch_size,
            in_flight=place.position.in_flight,
            holds_all=place.position.holds_all,
            entry=place.entry_layout(entry),
            feeds_next=not place.position.is_last,
        )
        cost = self._pipeline.prices.stage(self._layers[place.start[stage] : place.end[stage]], strategies, position)
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
        leaves = ceilings[0].graph.leaves_in(place.exit_layout(leaving))
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
