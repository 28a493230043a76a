"""The search: PlanningProblem -> Solution, or the nearest changes that would make a plan fit.

Deterministic: equal problems give equal plans and reports, byte for byte; ties are broken by the plan's text.
"""

from collections.abc import Iterable
from typing import assert_never

from galvatron_planner import families, space
from galvatron_planner.cost.prices import PriceList
from galvatron_planner.errors import InvalidPlan, NoFeasiblePlan
from galvatron_planner.plan import Plan, StagePlan
from galvatron_planner.problem import Algorithm, PlanningProblem
from galvatron_planner.search import remedies
from galvatron_planner.search.baselines import baselines_of
from galvatron_planner.search.candidates import MANY_DEVICES, Outcome, explore, smallest_peak
from galvatron_planner.search.joint import Candidate
from galvatron_planner.search.published import bmw, galvatron
from galvatron_planner.search.ranges import degrees
from galvatron_planner.search.report import Baseline, RuleCount, SearchReport, Solution
from galvatron_planner.search.summaries import alternative
from galvatron_planner.search.uniform import UniformSearch, uniform_plans
from galvatron_planner.units import format_bytes


def search(problem: PlanningProblem, *, compared: bool = True) -> Solution:
    """Find the plan with the highest throughput that fits every device, or what a published algorithm takes for it.

    Args:
        problem: what is asked.
        compared: whether the report lists the baselines.

    Raises:
        NoFeasiblePlan: when none fits, with the nearest changes that would help.
        InvalidPlan: with the algorithm ``Fixed``, which searches nothing.
        MissingMeasurement: when the profile was made for another model or cluster.
    """
    prices = PriceList.of(problem)
    uniform = UniformSearch(problem, prices)
    outcome = _outcome(problem, prices, uniform)
    if not outcome.best:
        raise _no_plan(problem, prices, uniform)
    return solution(problem, prices, outcome, uniform=uniform if compared else None)


def solution(
    problem: PlanningProblem, prices: PriceList, outcome: Outcome, *, uniform: UniformSearch | None
) -> Solution:
    """Choose from what was found, and report; the published algorithms have chosen already, by their own formula."""
    ranked = sorted(outcome.best.values(), key=_rank)
    if problem.limits.algorithm is not Algorithm.OPTIMAL:
        chosen = next(iter(outcome.best.values()))
        ranked = [chosen, *(candidate for candidate in ranked if candidate is not chosen)]
    yardsticks = baselines_of(problem, prices, uniform) if uniform is not None else ()
    return Solution(as_plan(problem, ranked[0]), _report(problem, outcome, ranked, yardsticks))


def _outcome(problem: PlanningProblem, prices: PriceList, uniform: UniformSearch) -> Outcome:
    algorithm = problem.limits.algorithm
    match algorithm:
        case Algorithm.OPTIMAL:
            return explore(problem, prices, uniform)
        case Algorithm.GALVATRON:
            return galvatron.explore(problem, prices)
        case Algorithm.GALVATRON_BMW:
            return bmw.explore(problem, prices)
        case Algorithm.FIXED:
            raise InvalidPlan(
                "the algorithm Fixed searches nothing, and there is no plan",
                remedy="bring one: spec.search.fixedPlanRef in a cluster, --plan plan.json without one",
            )
        case _:
            assert_never(algorithm)


def _no_plan(problem: PlanningProblem, prices: PriceList, uniform: UniformSearch) -> NoFeasiblePlan:
    algorithm = problem.limits.algorithm
    if algorithm is not Algorithm.OPTIMAL and explore(problem, prices).best:
        return NoFeasiblePlan(f"the algorithm {algorithm} finds no plan that fits", changes=("use algorithm Optimal",))
    devices = f"{problem.cluster.num_devices} devices with {format_bytes(problem.cluster.device_memory_bytes)} each"
    is_large = problem.cluster.num_devices >= MANY_DEVICES
    least = "the most frugal with equal layers" if is_large else "the smallest"
    needed = uniform.smallest_peak(uniform_plans(problem)) if is_large else smallest_peak(problem, prices)
    if needed is None:
        return NoFeasiblePlan(
            f"no strategy divides the model and the batch over {devices}",
            changes=remedies.nearest_changes(problem, prices, needed_bytes=None),
        )
    return NoFeasiblePlan(
        f"no plan fits {devices}: {least} needs {format_bytes(needed)}",
        changes=remedies.nearest_changes(problem, prices, needed_bytes=needed),
        needed_bytes=needed,
    )


def _rank(candidate: Candidate) -> tuple[float, str]:
    return -candidate.estimate.samples_per_second, alternative(candidate).summary


def as_plan(problem: PlanningProblem, best: Candidate) -> Plan:
    """Write a candidate as the plan of its problem."""
    return Plan(
        model=problem.model,
        precision=problem.precision,
        cluster=problem.cluster,
        global_batch_size=best.split.global_batch_size,
        num_micro_batches=best.split.num_micro_batches,
        schedule=problem.limits.schedule,
        stages=tuple(StagePlan(layers=stage) for stage in best.stages),
        estimate=best.estimate,
        problem_digest=problem.digest(),
    )


def _report(
    problem: PlanningProblem, outcome: Outcome, ranked: list[Candidate], yardsticks: tuple[Baseline, ...]
) -> SearchReport:
    best = ranked[0]
    step = best.estimate.step_seconds
    bound = min(step, outcome.lower_bound * best.split.global_batch_size) or None
    return SearchReport(
        problem_digest=problem.digest(),
        algorithm=problem.limits.algorithm,
        batch=problem.batch,
        limits=problem.limits,
        lower_bound_seconds=bound,
        gap=None if bound is None else step / bound - 1,
        num_candidates=outcome.num_candidates,
        num_solved=outcome.num_solved,
        pruned_by_rule=_pruned(problem),
        runners_up=tuple(alternative(candidate) for candidate in ranked[1:]),
        baselines=yardsticks,
        memory_balance=_balance(best.estimate.stage_peak_bytes),
        time_balance=_balance(best.estimate.stage_seconds),
    )


def _pruned(problem: PlanningProblem) -> tuple[RuleCount, ...]:
    match problem.limits.algorithm:
        case Algorithm.FIXED:
            return ()
        case Algorithm.GALVATRON:
            problem = galvatron.in_its_space(problem)
        case Algorithm.GALVATRON_BMW:
            problem = bmw.in_its_space(problem)
    removed = dict.fromkeys((rule.name for rule in space.PRUNING_RULES), 0)
    for num_stages in degrees(problem):
        num_devices = problem.cluster.num_devices // num_stages
        for layer in dict.fromkeys(families.layers(problem.model)):
            for rule, count in space.strategies(num_devices, problem.limits, layer).removed:
                removed[rule] += count
    return tuple(
        RuleCount(rule=rule.name, reason=rule.reason, removed=removed[rule.name]) for rule in space.PRUNING_RULES
    )


def _balance(amounts: Iterable[float]) -> float:
    amounts = tuple(amounts)
    return 1 - max(amounts) / sum(amounts) if sum(amounts) else 0.0
