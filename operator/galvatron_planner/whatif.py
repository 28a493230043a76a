"""What if there were more memory, or more devices: one problem asked over many budgets, as tables and as series.

Every budget is answered by each algorithm and by every baseline, so that one look shows what the choice is worth.
"""

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

from galvatron_planner.charts import Panel, Series, line_chart
from galvatron_planner.cost.prices import PriceList
from galvatron_planner.errors import NoFeasiblePlan
from galvatron_planner.plan import Plan
from galvatron_planner.problem import Algorithm, PlanningProblem, SearchDimension
from galvatron_planner.search.baselines import BASELINE_SPACES, CKPT_SUFFIX, baselines_of, with_limits
from galvatron_planner.search.optimizer import search
from galvatron_planner.search.report import Alternative, Solution
from galvatron_planner.search.uniform import UniformSearch, uniform_plans
from galvatron_planner.units import GIB, format_bytes

ALGORITHMS = tuple(algorithm for algorithm in Algorithm if algorithm is not Algorithm.FIXED)
"""Those that search."""


@dataclass(frozen=True, slots=True)
class Result:
    """What one algorithm or baseline makes of a budget.

    Attributes:
        name: the algorithm, or the baseline.
        plan: absent when none fits.
        needed_bytes: device memory with which one would fit, as far as it is known.
    """

    name: str
    plan: Alternative | None
    needed_bytes: int | None

    @property
    def text(self) -> str:
        """Samples per second, the memory that is missing, or a dash for what is impossible."""
        if self.plan is not None:
            return f"{self.plan.samples_per_second:.4g}"
        return "-" if self.needed_bytes is None else f"needs {format_bytes(self.needed_bytes)}"


@dataclass(frozen=True, slots=True)
class Answer:
    """One budget.

    Attributes:
        num_devices: of the budget.
        memory_bytes: of each device.
        results: of the algorithms, then of the baselines.
        solution: of the first algorithm; absent when it finds no plan.
        remedy: what to do when it finds none, otherwise empty.
    """

    num_devices: int
    memory_bytes: int
    results: tuple[Result, ...]
    solution: Solution | None
    remedy: str

    @property
    def budget(self) -> str:
        """The budget on one line."""
        return f"{self.num_devices} x {format_bytes(self.memory_bytes)}"

    @property
    def advice(self) -> str:
        """The plan on one line, or what would make one fit."""
        return f"no plan; {self.remedy}" if self.solution is None else self.solution.plan.summary


@dataclass(frozen=True, slots=True)
class Table:
    """Results side by side: one row an algorithm or baseline, one column a budget.

    Attributes:
        title: what all columns share.
        columns: the budgets.
        rows: name and one text a budget.
        best: per budget, rows with the highest throughput.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    best: tuple[frozenset[str], ...]


def answer(problem: PlanningProblem, algorithms: Sequence[Algorithm]) -> Answer:
    """Ask every algorithm and every baseline.

    Raises:
        MissingMeasurement: when the profile does not cover the problem's devices.
    """
    prices = PriceList.of(problem)
    found = {one: _solve(problem, one, compared=one is algorithms[0]) for one in algorithms}
    first = found[algorithms[0]]
    yardsticks = first.report.baselines if isinstance(first, Solution) else baselines_of(problem, prices)
    return Answer(
        num_devices=problem.cluster.num_devices,
        memory_bytes=problem.cluster.device_memory_bytes,
        results=(
            *(_result(algorithm, one, problem, prices) for algorithm, one in found.items()),
            *(Result(one.name, one.plan, one.needed_bytes) for one in yardsticks),
        ),
        solution=first if isinstance(first, Solution) else None,
        remedy=first.remedy if isinstance(first, NoFeasiblePlan) else "",
    )


def tables(answers: Sequence[Answer]) -> tuple[Table, ...]:
    """Lay answers out: a table for each number of devices, or a single one where each has a single budget."""
    by_devices = [tuple(group) for _, group in groupby(answers, key=lambda one: one.num_devices)]
    if all(len(group) == 1 for group in by_devices):
        return (_table("Samples per second", answers),) if answers else ()
    return tuple(_table(f"Samples per second on {group[0].num_devices} devices", group) for group in by_devices)


def as_markdown(answers: Sequence[Answer]) -> str:
    """Write the tables and the first algorithm's plan of every budget; the highest throughput of a budget is bold."""
    parts = []
    for table in tables(answers):
        lines = [("", *table.columns), ("---", *("---:" for _ in table.columns)), *map(_bold(table), table.rows)]
        parts.append(f"**{table.title}**\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines))
    plans = (f"`{one.advice}`" if one.solution else one.advice for one in answers)
    parts.append("\n".join(f"- {one.budget}: {plan}" for one, plan in zip(answers, plans, strict=True)))
    return "\n\n".join(parts) + "\n"


def as_csv(answers: Sequence[Answer]) -> str:
    """Write one line for every result, in bytes and seconds."""
    columns = ("devices", "memory_bytes", "name", *Alternative.model_fields, "needed_bytes")
    text = io.StringIO()
    rows = csv.DictWriter(text, columns, lineterminator="\n")
    rows.writeheader()
    for one in answers:
        for result in one.results:
            plan = result.plan.model_dump() if result.plan else {}
            budget = {"devices": one.num_devices, "memory_bytes": one.memory_bytes, "name": result.name}
            rows.writerow({**budget, **plan, "needed_bytes": result.needed_bytes})
    return text.getvalue()


def as_chart(answers: Sequence[Answer], *, title: str) -> str:
    """Draw throughput over memory, a panel for each number of devices and a line for each algorithm and baseline."""
    panels = tuple(
        Panel(f"{num_devices} devices", _series(tuple(group)))
        for num_devices, group in groupby(answers, key=lambda one: one.num_devices)
    )
    return line_chart(
        title,
        panels,
        x_title="memory of each device, GiB",
        y_title="samples per second",
        without_points="never fits",
    )


def _solve(problem: PlanningProblem, algorithm: Algorithm, *, compared: bool) -> Solution | NoFeasiblePlan:
    limits = problem.limits.model_copy(update={"algorithm": algorithm})
    try:
        return search(problem.model_copy(update={"limits": limits}), compared=compared)
    except NoFeasiblePlan as refused:
        return refused


def _result(
    algorithm: Algorithm, found: Solution | NoFeasiblePlan, problem: PlanningProblem, prices: PriceList
) -> Result:
    if isinstance(found, Solution):
        return Result(algorithm, _alternative(found.plan), None)
    return Result(algorithm, None, found.needed_bytes or _needed_bytes(algorithm, problem, prices))


def _needed_bytes(algorithm: Algorithm, problem: PlanningProblem, prices: PriceList) -> int | None:
    """Give what a uniform plan of the algorithm's space needs; nothing when one fits and was not found."""
    if algorithm is Algorithm.GALVATRON:
        problem = with_limits(problem, (*problem.limits.excluded, SearchDimension.CKPT))
    needed = UniformSearch(problem, prices).smallest_peak(uniform_plans(problem))
    return needed if needed is not None and needed > problem.cluster.device_memory_bytes else None


def _alternative(plan: Plan) -> Alternative:
    return Alternative(
        pipeline_degree=len(plan.stages),
        global_batch_size=plan.global_batch_size,
        num_micro_batches=plan.num_micro_batches,
        step_seconds=plan.estimate.step_seconds,
        samples_per_second=plan.estimate.samples_per_second,
        peak_bytes=plan.estimate.peak_bytes,
        summary=plan.summary,
    )


def _table(title: str, answers: Sequence[Answer]) -> Table:
    one_size = len({one.num_devices for one in answers}) == 1
    by_name = [{result.name: result for result in one.results} for one in answers]
    names = dict.fromkeys(name for results in by_name for name in results)
    return Table(
        title=title,
        columns=tuple(format_bytes(one.memory_bytes) if one_size else one.budget for one in answers),
        rows=tuple((n, *(results[n].text if n in results else "" for results in by_name)) for n in names),
        best=tuple(_best(one.results) for one in answers),
    )


def _best(results: Sequence[Result]) -> frozenset[str]:
    highest = max((one.plan.samples_per_second for one in results if one.plan), default=0.0)
    return frozenset(one.name for one in results if one.plan and one.plan.samples_per_second >= highest * (1 - 1e-9))


def _bold(table: Table) -> Callable[[tuple[str, ...]], tuple[str, ...]]:
    def bold(row: tuple[str, ...]) -> tuple[str, ...]:
        cells = zip(row[1:], table.best, strict=True)
        return (row[0], *(f"**{text}**" if row[0] in best else text for text, best in cells))

    return bold


def _series(answers: Sequence[Answer]) -> tuple[Series, ...]:
    """Give a line for each result; with and without CKPT share a colour, dashed with it."""
    points: dict[str, list[tuple[float, float]]] = {}
    for one in answers:
        for result in one.results:
            reached = points.setdefault(result.name, [])
            if result.plan is not None:
                reached.append((one.memory_bytes / GIB, result.plan.samples_per_second))
    names = (*ALGORITHMS, *(one.name for one in BASELINE_SPACES if not one.name.endswith(CKPT_SUFFIX)))
    return tuple(
        Series(
            name,
            tuple(reached),
            colour=names.index(name.removesuffix(CKPT_SUFFIX)),
            is_dashed=name.endswith(CKPT_SUFFIX),
            is_wide=name == Algorithm.OPTIMAL,
        )
        for name, reached in points.items()
    )
