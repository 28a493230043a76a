"""A plan and its search report for people: rows for tables, and the same as plain text.

It only formats: every number comes from the two documents.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import groupby
from typing import TypeAlias

from galvatron_planner.insight import Insight
from galvatron_planner.plan import Plan
from galvatron_planner.problem import Algorithm
from galvatron_planner.search.report import Alternative, Baseline, SearchReport
from galvatron_planner.sensitivity import Effect
from galvatron_planner.units import format_bytes, format_seconds

SAME = 1e-6
"""Up to this relative difference, two step times are of the same profile."""
BINDING_SHARE = 0.95
"""From this share of a device's memory on, we say that memory binds."""


@dataclass(frozen=True, slots=True)
class StageRow:
    """One pipeline stage: which ranks, which layers in which strategies, how long, how full."""

    stage: str
    ranks: str
    layers: str
    micro_batch: str
    peak: str
    full: str


@dataclass(frozen=True, slots=True)
class PlanRow:
    """One plan among others: a runner-up or a baseline."""

    name: str
    step: str
    samples_per_second: str
    peak: str
    speedup: str
    plan: str


@dataclass(frozen=True, slots=True)
class ShareRow:
    """A part of the step's time or of a device's memory."""

    use: str
    amount: str
    share: str


@dataclass(frozen=True, slots=True)
class EffectRow:
    """What another budget would change."""

    change: str
    samples_per_second: str
    gain: str
    plan: str


Rows: TypeAlias = Sequence[StageRow] | Sequence[PlanRow] | Sequence[ShareRow] | Sequence[EffectRow]


def stage_rows(plan: Plan) -> tuple[StageRow, ...]:
    """Describe a plan stage by stage."""
    memory = plan.cluster.device_memory_bytes
    rows = []
    for index, (first, peak, seconds) in enumerate(
        zip(plan.first_layers, plan.estimate.stage_peak_bytes, plan.estimate.stage_seconds, strict=True)
    ):
        first_rank = index * plan.devices_per_stage
        rows.append(
            StageRow(
                stage=str(index),
                ranks=_span(first_rank, first_rank + plan.devices_per_stage - 1),
                layers=", ".join(_layer_runs(plan, index, first)),
                micro_batch=format_seconds(seconds),
                peak=format_bytes(peak),
                full=f"{peak / memory:.0%}",
            )
        )
    return tuple(rows)


def baseline_rows(plan: Plan, report: SearchReport) -> tuple[PlanRow, ...]:
    """Compare the plan with what simpler ways achieve."""
    return tuple(_baseline_row(plan, baseline) for baseline in report.baselines)


def runner_up_rows(plan: Plan, report: SearchReport) -> tuple[PlanRow, ...]:
    """Compare the plan with the best plans of other pipeline degrees."""
    return tuple(_plan_row(plan, f"pp{one.pipeline_degree}", one) for one in report.runners_up)


def time_rows(seen: Insight) -> tuple[ShareRow, ...]:
    """Say where the time of the busiest stage goes."""
    step = seen.timeline.step_seconds
    return tuple(
        ShareRow(use, format_seconds(seconds), f"{seconds / step:.1%}")
        for use, seconds in seen.time().items()
        if seconds
    )


def memory_rows(seen: Insight) -> tuple[ShareRow, ...]:
    """Say what fills the devices of the fullest stage at their fullest moment."""
    budget = seen.plan.cluster.device_memory_bytes
    return tuple(
        ShareRow(use, format_bytes(held), f"{held / budget:.1%}") for use, held in seen.memory().items() if held
    )


def link_rows(seen: Insight) -> tuple[ShareRow, ...]:
    """Say over which links the busiest stage communicates, and how long."""
    step, cluster = seen.timeline.step_seconds, seen.plan.cluster
    return tuple(
        ShareRow(f"{link.name} of {link.where(cluster)}", format_seconds(link.seconds), f"{link.seconds / step:.1%}")
        for link in seen.links()
        if link.seconds
    )


def effect_rows(plan: Plan, effects: Sequence[Effect]) -> tuple[EffectRow, ...]:
    """Say what other budgets would change."""
    return tuple(_effect_row(plan, effect) for effect in effects)


def reasons(plan: Plan, report: SearchReport, seen: Insight | None = None) -> tuple[str, ...]:
    """Say in sentences why this plan wins and what keeps it from being faster."""
    return (*_reasons(plan, report), *(() if seen is None else _binding(seen)))


def sections(
    plan: Plan, report: SearchReport, seen: Insight | None = None, effects: Sequence[Effect] = ()
) -> tuple[tuple[str, Rows], ...]:
    """Lay everything out as titled tables; those of the simulated step only where there is one."""
    tables: list[tuple[str, Rows]] = [("Stages", stage_rows(plan))]
    if seen is not None:
        tables += [
            (f"Where the time of stage {seen.busiest_index} goes, of a step", time_rows(seen)),
            (f"What stage {seen.busiest_index} communicates, hidden or not, of a step", link_rows(seen)),
            (f"What fills stage {seen.fullest_index} at its fullest moment, of a device", memory_rows(seen)),
        ]
    tables += [
        ("Simpler ways to train on the same devices", baseline_rows(plan, report)),
        ("Other pipeline degrees", runner_up_rows(plan, report)),
        ("Other budgets", effect_rows(plan, effects)),
    ]
    return tuple((title, rows) for title, rows in tables if rows)


def explain(plan: Plan, report: SearchReport, seen: Insight | None = None, effects: Sequence[Effect] = ()) -> str:
    """Write everything as plain text.

    Args:
        plan: what was chosen.
        report: of the search.
        seen: the simulated step, where there is a profile.
        effects: of other budgets, where they were asked about.
    """
    parts = [headline(plan), *(f"- {reason}" for reason in reasons(plan, report, seen))]
    parts += [f"\n{title}\n{_table(rows)}" for title, rows in sections(plan, report, seen, effects)]
    return "\n".join(parts) + "\n"


def headline(plan: Plan) -> str:
    """Say what the plan is and what it reaches."""
    estimate = plan.estimate
    caveat = f"{estimate.source.caveat}\n" if estimate.source.caveat else ""
    return (
        f"{plan.summary}\n{caveat}"
        f"{estimate.samples_per_second:.4g} samples/s, {plan.tokens_per_second:.4g} tokens/s:"
        f" {format_seconds(estimate.step_seconds)} a step of {plan.global_batch_size} samples"
        f" in {plan.num_micro_batches} micro-batches ({plan.schedule})"
    )


def _layer_runs(plan: Plan, stage_index: int, first: int) -> Iterator[str]:
    strategies = plan.stages[stage_index].layers
    described = [(plan.layers[first + i].kind, str(strategy)) for i, strategy in enumerate(strategies)]
    for (kind, strategy), run in groupby(described):
        count = len(tuple(run))
        yield f"{kind} {first}: {strategy}" if count == 1 else f"{kind} {first}-{first + count - 1}: {strategy}"
        first += count


def _reasons(plan: Plan, report: SearchReport) -> Iterator[str]:
    best = max((b.plan for b in report.baselines if b.plan), key=lambda p: p.samples_per_second, default=None)
    unfit = [b.name for b in report.baselines if b.outcome == "does not fit"]
    if best is not None:
        gain = plan.estimate.samples_per_second / best.samples_per_second
        name = next(b.name for b in report.baselines if b.plan is best)
        yield f"{gain:.2f} times the throughput of the best simpler way, {name}"
    if unfit:
        yield f"does not fit: {', '.join(unfit)}"
    yield _memory_reason(plan)
    if len(plan.stages) > 1:
        busiest = max(range(len(plan.stages)), key=lambda i: plan.estimate.stage_seconds[i])
        yield f"stage {busiest} sets the pace; it waits for others {plan.estimate.bubble_ratio:.1%} of the schedule"
    yield _certificate(report)


def _memory_reason(plan: Plan) -> str:
    share = plan.estimate.peak_bytes / plan.cluster.device_memory_bytes
    fullest = plan.estimate.stage_peak_bytes.index(plan.estimate.peak_bytes)
    recomputed = sum(strategy.checkpoint for stage in plan.stages for strategy in stage.layers)
    filled = f"stage {fullest} fills {share:.0%} of its devices"
    if recomputed:
        # Recomputation only costs time: it is chosen where nothing else fits.
        return f"memory binds: {filled}, and {recomputed} layers recompute their activations to fit"
    if share >= BINDING_SHARE:
        return f"memory binds: {filled}"
    return f"the fullest stage, {fullest}, fills {share:.0%} of its devices"


def _binding(seen: Insight) -> Iterator[str]:
    links = seen.links()
    if links:
        share = links[0].seconds / seen.timeline.step_seconds
        yield (
            f"the busiest link carries {links[0].name} of {links[0].where(seen.plan.cluster)}:"
            f" {format_seconds(links[0].seconds)}, {share:.0%} of a step"
        )
    expected = seen.plan.estimate.step_seconds
    if abs(seen.timeline.step_seconds / expected - 1) > SAME:
        yield f"the profile beside the plan is another one: with it a step takes {format_seconds(seen.step_seconds)}"


def _effect_row(plan: Plan, effect: Effect) -> EffectRow:
    if not effect.is_known:
        return EffectRow(effect.name, "-", "-", "not measured: plan that budget, and it is profiled")
    if effect.plan is None:
        return EffectRow(effect.name, "-", "-", "no plan fits")
    gain = effect.plan.samples_per_second / plan.estimate.samples_per_second - 1
    return EffectRow(effect.name, f"{effect.plan.samples_per_second:.4g}", f"{gain:+.1%}", effect.plan.summary)


def _certificate(report: SearchReport) -> str:
    searched = f"{report.num_solved} of {report.num_candidates} batch splits and pipeline degrees solved"
    if report.algorithm is Algorithm.FIXED:
        return "brought by its user: nothing was searched"
    if report.gap is None:
        return f"found by {report.algorithm}, which proves nothing ({searched})"
    if report.gap <= 1e-9:
        return f"proven optimal within the cost model ({searched})"
    return f"no plan is more than {report.gap:.1%} faster within the cost model ({searched})"


def _baseline_row(plan: Plan, baseline: Baseline) -> PlanRow:
    if baseline.plan is not None:
        return _plan_row(plan, baseline.name, baseline.plan)
    if baseline.needed_bytes is None:
        return PlanRow(baseline.name, "-", "-", "-", "-", baseline.outcome)
    needed = format_bytes(baseline.needed_bytes)
    return PlanRow(baseline.name, "-", "-", needed, "-", f"{baseline.outcome}, needs {needed}")


def _plan_row(plan: Plan, name: str, other: Alternative) -> PlanRow:
    return PlanRow(
        name=name,
        step=format_seconds(other.step_seconds),
        samples_per_second=f"{other.samples_per_second:.4g}",
        peak=format_bytes(other.peak_bytes),
        speedup=f"{plan.estimate.samples_per_second / other.samples_per_second:.2f}x",
        plan=other.summary,
    )


def _span(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}-{last}"


def texts(rows: Rows) -> tuple[tuple[str, ...], ...]:
    """Write rows as texts, the names of the columns first."""
    names = [field.name for field in fields(rows[0])]
    head = tuple(name.replace("_", " ") for name in names)
    return (head, *(tuple(str(getattr(row, name)) for name in names) for row in rows))


def _table(rows: Rows) -> str:
    lines = texts(rows)
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines)
