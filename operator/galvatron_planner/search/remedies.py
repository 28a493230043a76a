"""The nearest changes with which a problem without a plan would have one, each verified by a plan that then fits.

Mostly the most frugal uniform plan fits then, which is quickly found; the search answers where it does not.
"""

from collections.abc import Iterator
from itertools import product

from galvatron_planner.cluster import groups
from galvatron_planner.cost.prices import PriceList
from galvatron_planner.errors import MissingMeasurement
from galvatron_planner.problem import BatchRange, PlanningProblem
from galvatron_planner.profiles import Collective, LinkProfile, Profile
from galvatron_planner.search.baselines import with_limits
from galvatron_planner.search.candidates import explore
from galvatron_planner.search.uniform import UniformSearch, uniform_plans
from galvatron_planner.units import MIB, format_quantity

MOST_DEVICES = 4
"""Up to this many times as many devices are suggested."""

HOPELESS = 2
"""Where every uniform plan needs this many times the memory, no other is looked for: it would hardly help."""


def nearest_changes(problem: PlanningProblem, prices: PriceList, *, needed_bytes: int | None) -> tuple[str, ...]:
    """List changes that help, each on its own.

    Args:
        problem: has no plan.
        prices: of the problem.
        needed_bytes: device memory of the smallest plan, or None when there is none of any size.
    """
    return (
        *_allowed_dimensions(problem, prices),
        *_smaller_batch(problem, prices),
        *_more_memory(needed_bytes),
        *_more_devices(problem),
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
            yield f"allow {dimension} (spec.search.excludedDimensions)"


def _smaller_batch(problem: PlanningProblem, prices: PriceList) -> Iterator[str]:
    size = problem.batch.minimum // 2
    while size >= 1:
        batch = BatchRange(minimum=size, maximum=size)
        if _has_plan(problem.model_copy(update={"batch": batch}), prices):
            yield f"use a global batch of {size} (spec.training.globalBatchSize)"
            return
        size //= 2


def _more_memory(needed_bytes: int | None) -> Iterator[str]:
    if needed_bytes is not None:
        rounded = -(-needed_bytes // MIB) * MIB
        yield f"use devices with {format_quantity(rounded)} of memory (spec.budget.memoryPerGPU)"


def _more_devices(problem: PlanningProblem) -> Iterator[str]:
    factor = 2
    while factor <= MOST_DEVICES:
        cluster = problem.cluster.model_copy(update={"num_nodes": factor * problem.cluster.num_nodes})
        profile = _with_links(problem.profile, cluster.num_devices)
        degree = min(profile.max_tensor_degree, problem.limits.max_tensor_degree)
        limits = problem.limits.model_copy(update={"max_tensor_degree": degree})
        larger = problem.model_copy(update={"cluster": cluster, "profile": profile, "limits": limits})
        try:
            fits = _has_plan(larger, PriceList.of(larger))
        except MissingMeasurement:
            # A single device has no links to go by.
            return
        if fits:
            yield f"use {cluster.num_devices} devices (spec.budget.gpus)"
            return
        factor *= 2


def _with_links(profile: Profile, num_devices: int) -> Profile:
    """Add links that were not measured, so that plans on more devices have a price; times do not matter here."""
    known = {(link.collective, link.group) for link in profile.links}
    samples = {link.collective: link.samples for link in profile.links}
    added = (
        LinkProfile(collective=collective, group=group, samples=samples[collective])
        for collective, group in product(Collective, groups(num_devices))
        if (collective, group) not in known and collective in samples
    )
    return profile.model_copy(update={"links": (*profile.links, *added)})


def _has_plan(problem: PlanningProblem, prices: PriceList) -> bool:
    needed = UniformSearch(problem, prices).smallest_peak(uniform_plans(problem))
    if needed is None or needed > HOPELESS * problem.cluster.device_memory_bytes:
        return False
    return needed <= problem.cluster.device_memory_bytes or bool(explore(problem, prices).best)
