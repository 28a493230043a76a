"""The search: PlanningProblem -> Solution, or the nearest changes that would make a plan fit.

Deterministic: equal problems give equal plans and reports, byte for byte; ties are broken by the plan's text.
"""

from collections.abc import Iterable

from galvatron_planner import families, space
from galvatron_planner.cost.prices import PriceList
from galvatron_planner.errors import NoFeasiblePlan
from galvatron_planner.plan import Plan, StagePlan
from galvatron_planner.problem import PlanningProblem
from galvatron_planner.search import baselines, remedies
from galvatron_planner.search.candidates import Outcome, degrees, explore, smallest_peak
from galvatron_planner.search.partition import Candidate
from galvatron_planner.search.report import RuleCount, SearchReport, Solution
from galvatron_planner.search.summaries import alternative
from galvatron_planner.units import format_bytes


def search(problem: PlanningProblem) -> Solution:
    """Find the plan with the highest throughput that fits every device.

    Raises:
        NoFeasiblePlan: when none fits, with the nearest changes that would help.
        MissingMeasurement: when the profile was made for another model or cluster.
    """
    prices = PriceList.of(problem)
    outcome = explore(problem, prices)
    if not outcome.best:
        raise _no_plan(problem, prices)
    ranked = sorted(outcome.best.values(), key=_rank)
    plan = _plan(problem, ranked[0])
    return Solution(plan, _report(problem, prices, outcome, ranked))


def _no_plan(problem: PlanningProblem, prices: PriceList) -> NoFeasiblePlan:
    devices = f"{problem.cluster.num_devices} devices with {format_bytes(problem.cluster.device_memory_bytes)} each"
    needed = smallest_peak(problem, prices)
    if needed is None:
        return NoFeasiblePlan(
            f"no strategy divides the model and the batch over {devices}",
            changes=remedies.nearest_changes(problem, prices, needed_bytes=None),
        )
    return NoFeasiblePlan(
        f"no plan fits {devices}: the smallest needs {format_bytes(needed)}",
        changes=remedies.nearest_changes(problem, prices, needed_bytes=needed),
    )


def _rank(candidate: Candidate) -> tuple[float, str]:
    return -candidate.estimate.samples_per_second, alternative(candidate).summary


def _plan(problem: PlanningProblem, best: Candidate) -> Plan:
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


def _report(problem: PlanningProblem, prices: PriceList, outcome: Outcome, ranked: list[Candidate]) -> SearchReport:
    best = ranked[0]
    step = best.estimate.step_seconds
    bound = min(step, outcome.lower_bound * best.split.global_batch_size)
    return SearchReport(
        problem_digest=problem.digest(),
        lower_bound_seconds=bound,
        gap=step / bound - 1,
        all_cuts=outcome.all_cuts,
        num_candidates=outcome.num_candidates,
        num_solved=outcome.num_solved,
        pruned_by_rule=_pruned(problem),
        runners_up=tuple(alternative(candidate) for candidate in ranked[1:]),
        baselines=baselines.single_dimensions(problem, prices),
        memory_balance=_balance(best.estimate.stage_peak_bytes),
        time_balance=_balance(best.estimate.stage_seconds),
    )


def _pruned(problem: PlanningProblem) -> tuple[RuleCount, ...]:
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
