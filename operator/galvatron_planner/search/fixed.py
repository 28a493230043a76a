"""A plan that its user brings: nothing is searched; it is priced under the problem's profile, or refused."""

from collections.abc import Iterator

from galvatron_planner.cost.prices import PriceList
from galvatron_planner.cost.step import BatchSplit, price_step
from galvatron_planner.errors import InvalidPlan, NoFeasiblePlan
from galvatron_planner.plan import Estimate, Plan
from galvatron_planner.problem import Algorithm, PlanningProblem
from galvatron_planner.search.candidates import Outcome
from galvatron_planner.search.joint import Candidate
from galvatron_planner.search.optimizer import solution
from galvatron_planner.search.report import Solution
from galvatron_planner.search.uniform import UniformSearch
from galvatron_planner.units import format_quantity


def price_fixed(problem: PlanningProblem, plan: Plan) -> Solution:
    """Take a plan for a problem as it stands: its strategies, batch split and schedule, whatever the limits say.

    The devices may stand on other nodes than those it was made for: it is priced for the problem's.

    Raises:
        InvalidPlan: when it is for another model, precision, batch or number of devices.
        NoFeasiblePlan: when a stage needs more memory than there is.
        MissingMeasurement: when the profile was made without something that the plan uses.
    """
    for difference in _differences(problem, plan):
        raise InvalidPlan(difference, remedy="bring a plan for this job, or change the job to what the plan is for")
    limits = problem.limits.model_copy(update={"schedule": plan.schedule, "algorithm": Algorithm.FIXED})
    problem = problem.model_copy(update={"limits": limits})
    prices = PriceList.of(problem)
    split = BatchSplit(plan.global_batch_size, plan.num_micro_batches)
    stages = tuple(stage.layers for stage in plan.stages)
    estimate = price_step(prices, problem, stages, split)
    _check_memory(problem, estimate)
    best = {len(stages): Candidate(split, stages, estimate)}
    outcome = Outcome(best, lower_bound=0.0, num_candidates=1, num_solved=1)
    return solution(problem, prices, outcome, uniform=UniformSearch(problem, prices))


def _differences(problem: PlanningProblem, plan: Plan) -> Iterator[str]:
    if plan.model != problem.model:
        ours, theirs = problem.model.model_dump(mode="json"), plan.model.model_dump(mode="json")
        fields = [name for name in theirs if theirs[name] != ours.get(name)]
        values = ", ".join(f"{name} {theirs[name]} instead of {ours.get(name)}" for name in fields)
        yield f"the plan is for another model: {values}"
    if plan.precision is not problem.precision:
        yield f"the plan is for {plan.precision}, the job computes in {problem.precision}"
    if plan.cluster.num_devices != problem.cluster.num_devices:
        yield f"the plan is for {plan.cluster.num_devices} devices, the job has {problem.cluster.num_devices}"
    if plan.global_batch_size not in problem.batch.sizes:
        batch = problem.batch
        sizes = str(batch.minimum) if batch.minimum == batch.maximum else f"{batch.minimum} to {batch.maximum}"
        yield f"the plan is for a global batch of {plan.global_batch_size}, the job allows {sizes}"


def _check_memory(problem: PlanningProblem, estimate: Estimate) -> None:
    budget = problem.cluster.device_memory_bytes
    unfit = [
        f"stage {index} needs {format_quantity(peak)}"
        for index, peak in enumerate(estimate.stage_peak_bytes)
        if peak > budget
    ]
    if unfit:
        raise NoFeasiblePlan(
            f"the plan does not fit devices with {format_quantity(budget)}: {', '.join(unfit)}",
            changes=(f"give each device {format_quantity(estimate.peak_bytes)}", "let a plan be searched"),
        )
