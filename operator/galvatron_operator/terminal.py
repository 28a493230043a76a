"""What people see in a terminal: phases with progress while a local run works, tables of plans when it is done."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as ProgressBars
from rich.table import Table

from galvatron_operator.api import FailureRecord, JobStatus, parse_status
from galvatron_planner import regret as regrets
from galvatron_planner import whatif as whatifs
from galvatron_planner.explain import headline, reasons, sections, texts
from galvatron_planner.insight import Insight
from galvatron_planner.plan import Plan, summarize_strategies
from galvatron_planner.regret import Trial
from galvatron_planner.search.report import Baseline, SearchReport
from galvatron_planner.sensitivity import Effect
from galvatron_planner.units import format_bytes, format_seconds
from galvatron_planner.worker import Progress

RIGHT_ALIGNED = frozenset(
    ("micro batch", "peak", "full", "step", "samples per second", "speedup", "amount", "share", "gain")
)
"""Columns of an explanation that hold numbers."""

LOGGED_SECONDS = 30.0
"""How long a log file may say nothing about a phase that goes on."""


class PhaseView:
    """One line per phase; on a terminal with a moving bar, in a log file a line now and then: ten, or two a minute."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = ProgressBars(
            TextColumn("{task.description:<8}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[detail]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._current: TaskID | None = None
        self._last_logged = 0
        self._next_seconds = 0.0

    @contextmanager
    def showing(self) -> Iterator[None]:
        """Keep the bars on the screen inside the block."""
        with self._bars:
            yield

    def start(self, phase: str, detail: str) -> None:
        """Open a phase."""
        self._last_logged, self._next_seconds = 0, 0.0
        self._current = self._bars.add_task(phase, total=None, detail=detail)
        if not self._console.is_terminal:
            self._console.print(f"{phase}: {detail}", highlight=False)

    def progress(self, progress: Progress) -> None:
        """Move the bar of the open phase."""
        if self._current is None:
            return
        detail = describe_progress(progress)
        self._bars.update(self._current, completed=progress.step, total=progress.total_steps or None, detail=detail)
        now = time.monotonic()
        is_due = progress.step - self._last_logged >= max(1, progress.total_steps // 10) or now >= self._next_seconds
        if not self._console.is_terminal and is_due:
            self._last_logged, self._next_seconds = progress.step, now + LOGGED_SECONDS
            self._console.print(f"  {progress.step}/{progress.total_steps} {detail}", highlight=False)

    def end(self, detail: str) -> None:
        """Close the open phase with what came of it."""
        if self._current is None:
            return
        task = next(task for task in self._bars.tasks if task.id == self._current)
        total = task.total or 1
        self._bars.update(self._current, total=total, completed=total, detail=detail)
        self._bars.stop_task(self._current)
        if not self._console.is_terminal:
            self._console.print(f"  {detail}", highlight=False)
        self._current = None


def describe_progress(progress: Progress) -> str:
    """Say on one line how a worker does: activity or loss, throughput, and the time that is left."""
    if progress.loss is None:
        return progress.activity
    parts = [f"loss {progress.loss:.3f}"]
    if progress.tokens_per_second is not None:
        parts.append(f"{progress.tokens_per_second:,.0f} tokens/s")
    if progress.step_seconds is not None:
        parts.append(f"{format_seconds(progress.step_seconds)}/step")
        left = (progress.total_steps - progress.step) * progress.step_seconds
        parts.append(f"{format_seconds(left)} left" if left else "done")
    return ", ".join(parts)


def plan_table(plan: Plan) -> Table:
    """The plan, one row a stage."""
    table = Table(title=f"Plan: {plan.summary}", title_justify="left", title_style="bold", caption_justify="left")
    table.caption = plan.estimate.source.caveat
    for column in ("stage", "devices", "layers", "strategies, first to last layer", "peak memory"):
        table.add_column(column)
    rows = zip(plan.stages, plan.first_layers, plan.estimate.stage_peak_bytes, strict=True)
    for index, (stage, first, peak) in enumerate(rows):
        devices = index * plan.devices_per_stage
        table.add_row(
            str(index),
            f"{devices}-{devices + plan.devices_per_stage - 1}",
            f"{first}-{first + len(stage.layers) - 1}",
            summarize_strategies(stage),
            format_bytes(peak),
        )
    return table


def outcome_table(plan: Plan, measured: Progress, *, first_loss: float | None) -> Table:
    """Prediction against measurement."""
    table = Table(title="Predicted and measured", title_justify="left", title_style="bold")
    for column in ("", "predicted", "measured", "ratio"):
        table.add_column(column, justify="left" if not column else "right")
    if measured.step_seconds:
        predicted = plan.estimate.step_seconds
        table.add_row(
            "step time",
            format_seconds(predicted),
            format_seconds(measured.step_seconds),
            f"{measured.step_seconds / predicted:.2f}",
        )
    if measured.peak_bytes:
        peak = plan.estimate.peak_bytes
        ratio = f"{measured.peak_bytes / peak:.2f}"
        table.add_row("peak memory", format_bytes(peak), format_bytes(measured.peak_bytes), ratio)
    table.add_row("memory budget", "", format_bytes(plan.cluster.device_memory_bytes), "")
    if measured.tokens_per_second:
        speed = f"{measured.tokens_per_second:,.0f}"
        ratio = f"{measured.tokens_per_second / plan.tokens_per_second:.2f}"
        table.add_row("tokens per second", f"{plan.tokens_per_second:,.0f}", speed, ratio)
    if measured.loss is not None and first_loss is not None:
        table.add_row("loss", "", f"{first_loss:.3f} -> {measured.loss:.3f}", "")
    return table


def baseline_table(plan: Plan, report: SearchReport) -> Table:
    """What plans of a single dimension would have cost."""
    table = Table(title="What the hybrid plan gains (predicted)", title_justify="left", title_style="bold")
    for column in ("restricted to", "step time", "peak memory", "against the plan"):
        table.add_column(column, justify="left" if column == "restricted to" else "right")
    for baseline in report.baselines:
        table.add_row(baseline.name, *_baseline_cells(baseline, plan))
    table.add_row(
        "[bold]the plan[/bold]", format_seconds(plan.estimate.step_seconds), format_bytes(plan.estimate.peak_bytes), "1"
    )
    return table


def show_explanation(
    console: Console, plan: Plan, report: SearchReport, seen: Insight | None, effects: Sequence[Effect]
) -> None:
    """Print what ``explain.explain`` says as tables."""
    first, *others = headline(plan).splitlines()
    console.print(f"[bold]{escape(first)}[/bold]", *map(escape, others), sep="\n", highlight=False)
    for reason in reasons(plan, report, seen):
        console.print(f"- {escape(reason)}", highlight=False)
    for title, rows in sections(plan, report, seen, effects):
        names, *lines = texts(rows)
        table = Table(title=title, title_justify="left", title_style="bold")
        for name in names:
            table.add_column(name, justify="right" if name in RIGHT_ALIGNED else "left")
        for line in lines:
            table.add_row(*map(escape, line))
        console.print(table)


def whatif_table(whatif: whatifs.Table) -> Table:
    """What algorithms and baselines make of every budget; the highest throughput of each is bold."""
    table = Table(title=whatif.title, min_width=len(whatif.title), title_justify="left", title_style="bold")
    table.add_column("")
    for column in whatif.columns:
        table.add_column(column, justify="right")
    for name, *cells in whatif.rows:
        shown = (
            f"[bold]{cell}[/bold]" if name in best else cell for cell, best in zip(cells, whatif.best, strict=True)
        )
        table.add_row(name, *shown)
    return table


TOP_COLUMNS = (
    "job",
    "phase",
    "attempt",
    "step",
    "loss",
    "tokens/s",
    "step time",
    "predicted",
    "memory",
    "budget",
    "left",
)


def top_table(bodies: Sequence[Mapping[str, Any]]) -> Table:
    """GalvatronJobs as they stand, one row a job."""
    table = Table(title="GalvatronJobs", title_justify="left", title_style="bold")
    for column in TOP_COLUMNS:
        table.add_column(column, justify="left" if column in {"job", "phase"} else "right")
    several = len({body["metadata"]["namespace"] for body in bodies}) > 1
    for body in bodies:
        metadata = body["metadata"]
        name = f"{metadata['namespace']}/{metadata['name']}" if several else metadata["name"]
        budget = body.get("spec", {}).get("budget", {}).get("memoryPerGPU", "")
        table.add_row(escape(name), *_standing(parse_status(body), budget))
    return table


def _standing(status: JobStatus | None, budget: str) -> tuple[str, ...]:
    if status is None:
        return ("not seen yet", *("" for _ in TOP_COLUMNS[2:]))
    progress, plan = status.progress, status.plan
    budget = status.replan.memory_per_gpu if status.replan else budget
    predicted = _milliseconds(plan.estimates.step_milliseconds) if plan else ""
    if progress is None:
        return status.phase, str(status.attempt), "", "", "", "", predicted, "", budget, ""
    left = progress.estimated_remaining_seconds
    return (
        status.phase,
        str(status.attempt),
        f"{progress.step}/{progress.total_steps}",
        progress.loss or "",
        f"{progress.tokens_per_second:,}" if progress.tokens_per_second is not None else "",
        _milliseconds(progress.step_milliseconds),
        predicted,
        progress.peak_memory_per_gpu or "",
        budget,
        format_seconds(left) if left else "",
    )


def _milliseconds(number: int | None) -> str:
    return format_seconds(number / 1e3) if number else ""


def failure_text(failure: FailureRecord) -> str:
    """A failed attempt in words, with the failing rank's own."""
    places = {
        "pod": failure.pod,
        "node": failure.node,
        "rank": failure.rank,
        "exit code": failure.exit_code,
        "after step": failure.step,
    }
    where = ", ".join(f"{what} {value}" for what, value in places.items() if value is not None)
    time = f"{failure.time:%Y-%m-%d %H:%M:%S} UTC"
    return f"attempt {failure.attempt} failed at {time}: {failure.reason} ({where})\n{failure.message}\n"


def log_line(line: str) -> str:
    """A line of a pod's log for people: ours are JSON, what user code prints is shown as it is."""
    try:
        record = json.loads(line)
        time, message = str(record.pop("time"))[:19], record.pop("message")
    except (ValueError, KeyError, AttributeError, TypeError):
        return line
    level, traceback = record.pop("level", ""), record.pop("traceback", None)
    record.pop("logger", None)
    fields = " ".join(f"{name}={value}" for name, value in record.items())
    return f"{time} {level:<7} {message} {fields}".rstrip() + (f"\n{traceback}" if traceback else "")


def trial_table(trials: Sequence[Trial]) -> Table:
    """Plans as they were measured, the fastest first; the chosen one, which comes first in ``trials``, is bold."""
    table = Table(title="Plans as measured", title_justify="left", title_style="bold")
    for column in regrets.COLUMNS:
        table.add_column(column, justify="left" if column == "plan" else "right")
    for row in regrets.rows(trials):
        table.add_row(*map(escape, row), style="bold" if row[0] == trials[0].name else "")
    return table


def _baseline_cells(baseline: Baseline, plan: Plan) -> tuple[str, str, str]:
    best = baseline.plan
    if best is not None:
        # Throughput, not step time: a searched batch range gives plans of different batch sizes.
        factor = plan.estimate.samples_per_second / best.samples_per_second
        # Faster than the plan: where a published algorithm chose it, or its user.
        apart = f"{factor:.2f}x slower" if factor > 1 else f"{1 / factor:.2f}x faster"
        compared = "as fast" if abs(factor - 1) <= 0.005 else apart
        return format_seconds(best.step_seconds), format_bytes(best.peak_bytes), compared
    if baseline.needed_bytes is None:
        return "-", "-", "impossible for this model and batch"
    return "-", f"needs {format_bytes(baseline.needed_bytes)}", "does not fit"
