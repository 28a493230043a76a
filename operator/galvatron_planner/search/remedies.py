"""The nearest changes with which a problem without a plan would have one, each verified by a search."""

from collections.abc import Iterator

from galvatron_planner.cost.prices import PriceList
from galvatron_planner.errors import MissingMeasurement
from galvatron_planner.problem import BatchRange, PlanningProblem
from galvatron_planner.search.baselines import with_limits
from galvatron_planner.search.candidates import explore
from galvatron_planner.units import MIB, format_quantity


def nearest_changes(problem: PlanningProblem, prices: PriceList, *, needed_bytes: int | None) -> tuple[str, ...]:
    """List changes that help, each on its own; more devices are left out, for they would have to be measured first.

    Args:
        problem: has no plan.
        prices: of the problem.
        needed_bytes: device memory of the smallest plan, or None when there is none of any size.
    """
    return (
        *_allowed_dimensions(problem, prices),
        *_smaller_batch(problem, prices),
        *_more_memory(problem, prices, needed_bytes),
    )


def _allowed_dimensions(problem: PlanningProblem, prices: PriceList) -> Iterator[str]:
    for dimension in problem.limits.excluded:
        excluded = tuple(other for other in problem.limits.excluded if other is not dimension)
        try:
            fits = _has_plan(with_limits(problem, excluded), prices)
        except MissingMeasurement:
            # The profile was made without the dimension: nothing can be promised.
            continue
        if fits:
            yield f"allow {dimension}"


def _smaller_batch(problem: PlanningProblem, prices: PriceList) -> Iterator[str]:
    size = problem.batch.minimum // 2
    while size >= 1:
        batch = BatchRange(minimum=size, maximum=size)
        if _has_plan(problem.model_copy(update={"batch": batch}), prices):
            yield f"use a global batch of {size}"
            return
        size //= 2


def _more_memory(problem: PlanningProblem, prices: PriceList, needed_bytes: int | None) -> Iterator[str]:
    if needed_bytes is None:
        return
    rounded = -(-needed_bytes // MIB) * MIB
    cluster = problem.cluster.model_copy(update={"device_memory_bytes": rounded})
    if _has_plan(problem.model_copy(update={"cluster": cluster}), prices):
        yield f"use devices with {format_quantity(rounded)} of memory"


def _has_plan(problem: PlanningProblem, prices: PriceList) -> bool:
    return bool(explore(problem, prices).best)
