"""The outer loop of the published searches: batch sizes rising, every pipeline degree, every number of micro-batches.

It ends as the papers' loop does: at the first batch size, after one that fits, for which no combination fits.
"""

from collections.abc import Callable
from dataclasses import dataclass

from galvatron_planner.cost.prices import PriceList
from galvatron_planner.cost.step import price_step
from galvatron_planner.problem import PlanningProblem
from galvatron_planner.search.candidates import Outcome
from galvatron_planner.search.joint import Candidate
from galvatron_planner.search.published.stages import Pipeline, StageSolver
from galvatron_planner.search.ranges import degrees, splits_of

Solve = Callable[[StageSolver], Pipeline | None]
"""A way to cut the model into the stages of one batch split and pipeline degree."""


@dataclass(frozen=True, slots=True)
class _Found:
    """A plan, and what the papers' formula says of it in seconds per sample."""

    candidate: Candidate
    seconds_per_sample: float


def sweep(problem: PlanningProblem, prices: PriceList, solve: Solve) -> Outcome:
    """Find the fastest plan of every pipeline degree, as the papers' formula has it; the fastest of all comes first."""
    best: dict[int, _Found] = {}
    num_candidates = num_solved = 0
    for global_batch_size in problem.batch.sizes:
        fits = False
        for solver in _solvers(problem, prices, global_batch_size):
            num_candidates += 1
            known = best.get(solver.num_stages)
            # Only once the size is known to fit: which size is the first that does not must not depend on speed.
            if fits and known and solver.least_seconds() / global_batch_size >= known.seconds_per_sample:
                continue
            num_solved += 1
            found = _found(prices, solver, solve(solver))
            if found is None:
                continue
            fits = True
            if known is None or found.seconds_per_sample < known.seconds_per_sample:
                best[solver.num_stages] = found
        if best and not fits:
            break
    ranked = sorted(best.values(), key=lambda found: found.seconds_per_sample)
    return Outcome(
        best={len(found.candidate.stages): found.candidate for found in ranked},
        lower_bound=0.0,
        num_candidates=num_candidates,
        num_solved=num_solved,
    )


def _solvers(problem: PlanningProblem, prices: PriceList, global_batch_size: int) -> list[StageSolver]:
    """List the combinations of one batch size that layers can run in, the most promising of each degree first."""
    found = []
    for num_stages in degrees(problem):
        solvers = (StageSolver(problem, prices, split, num_stages) for split in splits_of(global_batch_size))
        found += sorted((one for one in solvers if one.has_choices), key=StageSolver.least_seconds)
    return found


def _found(prices: PriceList, solver: StageSolver, pipeline: Pipeline | None) -> _Found | None:
    """Price a pipeline exactly, and drop it when it does not fit after all."""
    if pipeline is None:
        return None
    estimate = price_step(prices, solver.problem, pipeline.stages, solver.split)
    if estimate.peak_bytes > solver.problem.cluster.device_memory_bytes:
        return None
    candidate = Candidate(solver.split, pipeline.stages, estimate)
    return _Found(candidate, pipeline.step_seconds / solver.split.global_batch_size)
