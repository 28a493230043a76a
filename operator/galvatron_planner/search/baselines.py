"""What single dimensions achieve on the same devices: the yardstick that shows what the hybrid plan gains."""

from galvatron_planner.cost.prices import PriceList
from galvatron_planner.problem import PlanningProblem, SearchDimension, SearchLimits
from galvatron_planner.search.candidates import explore, smallest_peak
from galvatron_planner.search.report import Baseline
from galvatron_planner.search.summaries import alternative

SINGLE_DIMENSIONS = (SearchDimension.DP, SearchDimension.SDP, SearchDimension.TP, SearchDimension.PP)


def single_dimensions(problem: PlanningProblem, prices: PriceList) -> tuple[Baseline, ...]:
    """Search each allowed dimension alone, without and with activation checkpointing."""
    if problem.cluster.num_devices == 1:
        return ()
    variants = [(dimension, *extra) for dimension in SINGLE_DIMENSIONS for extra in ((), (SearchDimension.CKPT,))]
    return tuple(
        _baseline(restricted(problem, variant), prices, "+".join(variant))
        for variant in variants
        if all(problem.limits.allows(dimension) for dimension in variant)
    )


def restricted(problem: PlanningProblem, dimensions: tuple[SearchDimension, ...]) -> PlanningProblem:
    """Pose the same problem with these dimensions only."""
    excluded = tuple(dimension for dimension in SearchDimension if dimension not in dimensions)
    return with_limits(problem, excluded)


def with_limits(problem: PlanningProblem, excluded: tuple[SearchDimension, ...]) -> PlanningProblem:
    """Pose the same problem with other dimensions excluded."""
    limits = SearchLimits(
        excluded=excluded,
        max_tensor_degree=problem.limits.max_tensor_degree,
        max_pipeline_degree=problem.limits.max_pipeline_degree,
        schedule=problem.limits.schedule,
    )
    return problem.model_copy(update={"limits": limits})


def _baseline(problem: PlanningProblem, prices: PriceList, name: str) -> Baseline:
    outcome = explore(problem, prices)
    if outcome.best:
        best = max(outcome.best.values(), key=lambda candidate: candidate.estimate.samples_per_second)
        return Baseline(name=name, plan=alternative(best))
    return Baseline(name=name, needed_bytes=smallest_peak(problem, prices))
