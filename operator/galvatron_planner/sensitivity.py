"""What a little more or less of a budget would change: the same question asked again, by the exact search."""

from collections.abc import Iterator
from dataclasses import dataclass

from galvatron_planner.cluster import Cluster
from galvatron_planner.cost.prices import PriceList
from galvatron_planner.errors import MissingMeasurement
from galvatron_planner.plan import Plan
from galvatron_planner.problem import Algorithm, PlanningProblem
from galvatron_planner.search.candidates import explore
from galvatron_planner.search.report import Alternative
from galvatron_planner.search.summaries import alternative
from galvatron_planner.units import GIB, format_bytes

SMALL_SHARE = 10
"""Where a GiB is more than this part of the budget, a tenth of it is asked about instead."""


@dataclass(frozen=True, slots=True)
class Change:
    """One other budget.

    Attributes:
        name: what is different.
        problem: the changed problem.
    """

    name: str
    problem: PlanningProblem


@dataclass(frozen=True, slots=True)
class Effect:
    """What comes of a change.

    Attributes:
        name: what is different.
        plan: the fastest plan then; absent when none fits, or nothing is known.
        is_known: whether the profile covers the devices.
    """

    name: str
    plan: Alternative | None
    is_known: bool = True


def changes(problem: PlanningProblem, plan: Plan) -> Iterator[Change]:
    """List what is asked; the same budget first where the plan may not be the best of its rebuilt problem."""
    cluster = problem.cluster
    if problem.digest() != plan.problem_digest:
        yield Change("the same, all that was measured allowed", problem)
    elif problem.limits.algorithm is not Algorithm.OPTIMAL:
        yield Change("the same, by the exact search", problem)
    step = min(GIB, cluster.device_memory_bytes // SMALL_SHARE)
    for name, sign in (("more", 1), ("less", -1)):
        memory = cluster.device_memory_bytes + sign * step
        yield Change(f"{format_bytes(step)} {name} per device", _on(problem, device_memory_bytes=memory))
    yield from (
        Change(
            f"{other.num_devices} device{'s' if other.num_devices > 1 else ''}",
            problem.model_copy(update={"cluster": other}),
        )
        for other in _other_sizes(cluster)
    )


def effect(change: Change) -> Effect:
    """Search a changed problem; what was not measured is not guessed."""
    try:
        found = explore(change.problem, PriceList.of(change.problem)).best
    except MissingMeasurement:
        return Effect(change.name, None, is_known=False)
    best = max(found.values(), key=lambda one: one.estimate.samples_per_second, default=None)
    return Effect(change.name, None if best is None else alternative(best))


def _on(problem: PlanningProblem, **other: int) -> PlanningProblem:
    return problem.model_copy(update={"cluster": problem.cluster.model_copy(update=other)})


def _other_sizes(cluster: Cluster) -> Iterator[Cluster]:
    """Halve and double: whole nodes where there are several, devices of the only node otherwise."""
    what, count = (
        ("num_nodes", cluster.num_nodes) if cluster.num_nodes > 1 else ("devices_per_node", cluster.num_devices)
    )
    if count > 1:
        yield cluster.model_copy(update={what: count // 2})
    yield cluster.model_copy(update={what: 2 * count})
