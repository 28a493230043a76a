"""What a profile adds to a plan and its report: where the time goes, what fills memory, which link is busiest.

Everything follows from one simulated step; the search is not asked again.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from galvatron_planner.cluster import Cluster, Group, stage_pairs
from galvatron_planner.cost.occupancy import Held, occupancy
from galvatron_planner.cost.prices import PriceList
from galvatron_planner.cost.simulator import ARRIVALS, EventKind, StageTimeline, Timeline, simulate
from galvatron_planner.cost.spending import Spent, spending
from galvatron_planner.cost.step import BatchSplit
from galvatron_planner.cost.work import link_seconds
from galvatron_planner.plan import Plan
from galvatron_planner.problem import BatchRange, PlanningProblem, SearchLimits
from galvatron_planner.profiles import Collective, Profile
from galvatron_planner.search.report import SearchReport

STATES, RESERVE = "parameters, gradients and optimizer", "reserve"


@dataclass(frozen=True, slots=True)
class BusyLink:
    """What a stage communicates in one way over one family of groups during a step.

    Attributes:
        collective: the way.
        group: the family.
        seconds: per step, alone on the link and hidden behind computation or not.
    """

    collective: Collective
    group: Group
    seconds: float

    @property
    def name(self) -> str:
        """The collective, as people write it."""
        return self.collective.replace("_", "-")

    def where(self, cluster: Cluster) -> str:
        """Say which devices it joins."""
        where = "inside a node" if self.group.size * self.group.stride <= cluster.devices_per_node else "across nodes"
        if self.collective is Collective.POINT_TO_POINT:
            return f"neighbouring stages, {where}"
        apart = "neighbouring ones" if self.group.stride == 1 else f"{self.group.stride} ranks apart"
        return f"{self.group.size} devices, {apart}, {where}"


@dataclass(frozen=True, slots=True)
class Insight:
    """A plan with a simulated step.

    Attributes:
        problem: whose profile and budget were taken.
        plan: what was simulated.
        timeline: the step.
    """

    problem: PlanningProblem
    plan: Plan
    timeline: Timeline

    @property
    def busiest_index(self) -> int:
        """The stage that sets the pace."""
        seconds = self.plan.estimate.stage_seconds
        return max(range(len(seconds)), key=lambda index: seconds[index])

    @property
    def fullest_index(self) -> int:
        """The stage that needs most memory."""
        return self.plan.estimate.stage_peak_bytes.index(self.plan.estimate.peak_bytes)

    @property
    def step_seconds(self) -> float:
        """Duration of the simulated step."""
        return self.timeline.step_seconds

    def time(self) -> dict[Spent, float]:
        """Tell where the busiest stage's step goes, most first."""
        seconds = spending(self.timeline.stages[self.busiest_index], self.timeline)
        return dict(sorted(seconds.items(), key=lambda item: -item[1]))

    def memory(self) -> dict[str, int]:
        """Tell what fills the fullest stage's devices at their fullest moment, in bytes, most first."""
        stage = self.timeline.stages[self.fullest_index]
        fullest = max(occupancy(stage), key=lambda one: one.total_bytes)
        held: dict[str, int] = {STATES: stage.facts.state_bytes, RESERVE: self.timeline.reserve_bytes}
        held.update(zip(Held, fullest.bytes_by_use, strict=True))
        return dict(sorted(held.items(), key=lambda item: -item[1]))

    def links(self) -> tuple[BusyLink, ...]:
        """List what the busiest stage communicates, most first."""
        seconds: defaultdict[tuple[Collective, Group], float] = defaultdict(float)
        for collective, group, spent in _communicated(self, self.timeline.stages[self.busiest_index]):
            seconds[collective, group] += spent
        busy = (BusyLink(collective, group, spent) for (collective, group), spent in seconds.items())
        return tuple(sorted(busy, key=lambda one: -one.seconds))


def problem_of(plan: Plan, profile: Profile, report: SearchReport | None = None) -> PlanningProblem:
    """Pose the problem of a plan again: as its report tells it, or as far as the plan does.

    Where that is not the very problem it solves (``problem_digest``), since the job asked for several batch sizes or
    excluded something, it is the plan's own batch and everything that was measured.
    """
    if report is not None and report.batch is not None and report.limits is not None:
        return PlanningProblem(
            model=plan.model,
            precision=plan.precision,
            cluster=plan.cluster,
            batch=report.batch,
            limits=report.limits,
            profile=profile,
        )
    problem = PlanningProblem(
        model=plan.model,
        precision=plan.precision,
        cluster=plan.cluster,
        batch=BatchRange(minimum=plan.global_batch_size, maximum=plan.global_batch_size),
        limits=SearchLimits(schedule=plan.schedule),
        profile=profile,
    )
    if problem.digest() == plan.problem_digest:
        return problem
    limits = problem.limits.model_copy(update={"max_tensor_degree": profile.max_tensor_degree})
    return problem.model_copy(update={"limits": limits})


def insight(plan: Plan, profile: Profile, report: SearchReport | None = None) -> Insight:
    """Simulate a step of a plan.

    Raises:
        MissingMeasurement: when the profile is another job's.
    """
    problem = problem_of(plan, profile, report)
    split = BatchSplit(plan.global_batch_size, plan.num_micro_batches)
    stages = tuple(stage.layers for stage in plan.stages)
    return Insight(problem, plan, simulate(PriceList.of(problem), problem, stages, split))


def _communicated(one: Insight, stage: StageTimeline) -> Iterator[tuple[Collective, Group, float]]:
    profile, work = one.problem.profile, stage.facts.work
    per_micro_batch = [said for piece in (*work.forward, *work.backward) for said in piece.collectives]
    for said in per_micro_batch:
        yield said.collective, said.group, one.plan.num_micro_batches * link_seconds(profile, (said,))
    for said in work.reductions:
        yield said.collective, said.group, link_seconds(profile, (said,))
    for event in stage.of(*ARRIVALS):
        pairs = stage_pairs(
            event.stage_index - 1 if event.kind is EventKind.ACTIVATION else event.stage_index,
            devices_per_stage=one.plan.devices_per_stage,
            devices_per_node=one.plan.cluster.devices_per_node,
        )
        yield Collective.POINT_TO_POINT, pairs, event.seconds
