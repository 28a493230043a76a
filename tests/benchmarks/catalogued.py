"""Planning problems from presets and the device catalogue, with analytic profiles: nothing to measure."""

from functools import cache

from galvatron_planner.analytic import analytic_profile
from galvatron_planner.catalogue import parse_cluster
from galvatron_planner.model import ModelSpec, Precision
from galvatron_planner.problem import BatchRange, PlanningProblem, SearchLimits
from galvatron_planner.profiles import Profile
from galvatron_planner.search.request import profile_request


def problem(
    model: ModelSpec,
    devices: str,
    *,
    memory_bytes: int | None = None,
    batch: BatchRange,
    precision: Precision = Precision.BF16,
    limits: SearchLimits | None = None,
) -> PlanningProblem:
    """Pose a problem on devices such as ``8x8xh100``, with the device's own memory or another."""
    on = parse_cluster(devices).cluster(memory_bytes)
    return PlanningProblem(
        model=model,
        precision=precision,
        cluster=on,
        batch=batch,
        limits=limits or SearchLimits(),
        profile=_profile(model, devices, batch, precision),
    )


@cache
def _profile(model: ModelSpec, devices: str, batch: BatchRange, precision: Precision) -> Profile:
    described = parse_cluster(devices)
    request = profile_request(
        model,
        described.cluster(),
        precision=precision,
        batch=batch,
        limits=SearchLimits(),
        runtime_version="benchmark",
    )
    return analytic_profile(request, described.device, described.links)
