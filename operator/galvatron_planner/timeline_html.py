"""The page around the drawing of a step: what plan it is, what the colours mean, and a table; nothing is loaded."""

from collections.abc import Iterable, Iterator
from html import escape

from galvatron_planner.cost.occupancy import Held
from galvatron_planner.cost.simulator import PASSES, EventKind, StageTimeline, Timeline
from galvatron_planner.cost.spending import Spent, pass_seconds, spending
from galvatron_planner.cost.work import Work
from galvatron_planner.plan import Plan, summarize_strategies
from galvatron_planner.timeline import (
    STAGE_HEIGHT,
    STATES,
    THIN_KINDS,
    Canvas,
    css_class,
    drawing,
    memory_row_top,
)
from galvatron_planner.units import format_bytes, format_seconds

COLOURS = {
    # Okabe and Ito 2008, "Color Universal Design": distinguishable under every common colour vision deficiency.
    Work.FORWARD: "#56b4e9",
    Work.BACKWARD: "#0072b2",
    Work.RECOMPUTATION: "#e69f00",
    Work.TENSOR: "#cc79a7",
    Work.SHARDED: "#009e73",
    Work.LAYOUT: "#f0e442",
    EventKind.ACTIVATION: "#56b4e9",
    EventKind.GRADIENT: "#0072b2",
    EventKind.REDUCTION: "#d55e00",
    EventKind.OPTIMIZER: "#6b7280",
    EventKind.OVERHEAD: "#b6bcc6",
    STATES: "#6b7280",
    Held.ACTIVATIONS: "#56b4e9",
    Held.GRADIENTS: "#0072b2",
    Held.BOUNDARY: "#e69f00",
    Held.WORKING: "#d55e00",
}
LABEL_WIDTH = 150

STYLE = """
:root { color-scheme: light dark; --ink: #1c2330; --soft: #667085; --paper: #ffffff; --panel: #f5f6f8;
  --line: #dfe3e8; --idle: #eceff3; --stripe: #d5dae1; }
@media (prefers-color-scheme: dark) { :root { --ink: #e7eaf0; --soft: #98a2b3; --paper: #14171c; --panel: #1c2128;
  --line: #2d343d; --idle: #222830; --stripe: #333b46; } }
body { margin: 0 auto; max-width: 1320px; padding: 28px 32px 48px; background: var(--paper); color: var(--ink);
  font: 14px/1.5 system-ui, sans-serif; }
h1 { font-size: 20px; margin: 0 0 2px; overflow-wrap: anywhere; } h2 { font-size: 15px; margin: 28px 0 8px; }
p { margin: 0 0 4px; } .soft { color: var(--soft); }
.facts { display: flex; flex-wrap: wrap; gap: 10px; margin: 16px 0; }
.facts div { background: var(--panel); border-radius: 8px; padding: 8px 14px; }
.facts b { display: block; font-size: 17px; } .facts span { color: var(--soft); font-size: 12px; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 16px; margin: 6px 0; font-size: 12px; }
.legend span { display: inline-flex; align-items: center; gap: 6px; }
.legend i { width: 12px; height: 12px; border-radius: 3px; display: inline-block; }
.legend .thin { height: 4px; border-radius: 1px; }
.figure { display: flex; background: var(--panel); border-radius: 10px; padding: 14px 14px 6px; }
.scroll { overflow-x: auto; flex: 1; min-width: 0; } svg { display: block; }
text { font: 11px system-ui, sans-serif; fill: var(--ink); } .tick, .small { fill: var(--soft); }
.name { font-weight: 600; } .number { fill: #ffffff; text-anchor: middle; font-weight: 600; paint-order: stroke;
  stroke: #00000066; stroke-width: 2px; pointer-events: none; }
.idle { fill: url(#stripes); } .waiting { background: repeating-linear-gradient(45deg, var(--idle) 0 4px,
  var(--stripe) 4px 5.5px); } .chart { fill: var(--idle); } .grid { stroke: var(--line); }
.mixed { fill: url(#mixed); } .hover { fill: transparent; } .hover:hover { fill: #8884; }
g:hover > rect { filter: brightness(1.15); }
.budget { stroke: var(--ink); stroke-width: 1.5; stroke-dasharray: 6 4; }
table { border-collapse: collapse; font-size: 13px; } th { text-align: left; color: var(--soft); font-weight: 500; }
th, td { padding: 4px 18px 4px 0; border-bottom: 1px solid var(--line); }
"""

PATTERNS = """<svg width="0" height="0" style="position:absolute"><defs>
<pattern id="stripes" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">
<rect width="6" height="6" fill="var(--idle)"/><rect width="1.5" height="6" fill="var(--stripe)"/></pattern>
<pattern id="mixed" width="6" height="6" patternUnits="userSpaceOnUse"><rect width="6" height="6" fill="#0072b2"/>
<rect width="2" height="6" fill="#56b4e9"/></pattern></defs></svg>"""


def timeline_html(plan: Plan, timeline: Timeline) -> str:
    """Write a page that shows a step of a plan; it needs no other file."""
    canvas = Canvas.of(timeline, budget_bytes=plan.cluster.device_memory_bytes)
    used = {str(kind) for stage in timeline.stages for kind in _kinds(stage)}
    # Forward and backward are a kind of work and of event: once is enough.
    shown = [kind for kind in dict.fromkeys(map(str, (*Work, *EventKind))) if kind in used]
    return "".join(
        (
            f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(plan.summary)}</title>',
            f"<style>{STYLE}{_colours()}</style></head><body>{PATTERNS}",
            *_headline(plan, timeline),
            "<h2>Stages and their memory over one step</h2>",
            _legend(shown, waiting=True),
            _legend((STATES, *Held), waiting=False),
            f'<div class="figure">{_labels(canvas, plan)}<div class="scroll">{drawing(canvas)}</div></div>',
            '<p class="soft">Hover over anything for its time and bytes. Thin rows under a stage: activations that'
            " arrive, gradients that arrive, reduction of gradients. The dashed line is the budget of a device.</p>",
            _table(plan, timeline),
            "</body></html>\n",
        )
    )


def _headline(plan: Plan, timeline: Timeline) -> Iterator[str]:
    estimate, cluster = plan.estimate, plan.cluster
    caveat = f"; {estimate.source.caveat}" if estimate.source.caveat else ""
    yield f"<h1>{escape(plan.summary)}</h1>"
    yield (
        f'<p class="soft">{plan.model.family} on {cluster.num_devices} devices with'
        f" {format_bytes(cluster.device_memory_bytes)} each, schedule {plan.schedule};"
        f" simulated at the cost model's prices{caveat}</p>"
    )
    facts = (
        (f"{estimate.samples_per_second:.4g}", "samples per second"),
        (format_seconds(timeline.step_seconds), "a step"),
        (f"{plan.global_batch_size} in {plan.num_micro_batches}", "samples a step, micro-batches"),
        (f"{estimate.bubble_ratio:.1%}", "the busiest stage waits"),
        (format_bytes(estimate.peak_bytes), "estimated peak of the fullest device"),
    )
    yield '<div class="facts">'
    yield from (f"<div><b>{value}</b><span>{name}</span></div>" for value, name in facts)
    yield "</div>"


def _kinds(stage: StageTimeline) -> Iterator[Work | EventKind]:
    for kind in PASSES:
        yield from pass_seconds(stage, kind)
    yield from (event.kind for event in stage.events if event.seconds)


def _colours() -> str:
    return "".join(f".{css_class(name)}{{fill:{colour};background:{colour}}}" for name, colour in COLOURS.items())


def _legend(kinds: Iterable[str], *, waiting: bool) -> str:
    entries = [
        f'<span><i class="{css_class(kind)}{" thin" if kind in THIN_KINDS else ""}"></i>{kind}</span>' for kind in kinds
    ]
    if waiting:
        entries.append('<span><i class="waiting"></i>waiting (bubble)</span>')
    return f'<div class="legend">{"".join(entries)}</div>'


def _labels(canvas: Canvas, plan: Plan) -> str:
    """Name the rows beside the drawing, where they stay while it is scrolled."""
    parts = []
    for index in range(len(canvas.timeline.stages)):
        first_rank = index * plan.devices_per_stage
        last_rank = first_rank + plan.devices_per_stage - 1
        ranks = f"rank {first_rank}" if first_rank == last_rank else f"ranks {first_rank}-{last_rank}"
        top = index * STAGE_HEIGHT
        chart = memory_row_top(canvas, index)
        parts += [
            f'<text class="name" x="0" y="{top + 13}">stage {index}</text>',
            f'<text class="small" x="0" y="{top + 28}">{ranks}</text>',
            f'<text class="name" x="0" y="{chart + 13}">stage {index} memory</text>',
            f'<text class="small" x="0" y="{chart + 29}">peak {format_bytes(canvas.peak_bytes(index))}</text>',
            f'<text class="small" x="0" y="{chart + 44}">of {format_bytes(canvas.budget_bytes)}</text>',
        ]
    return f'<svg width="{LABEL_WIDTH}" height="{canvas.height}">{"".join(parts)}</svg>'


def _table(plan: Plan, timeline: Timeline) -> str:
    uses = [spending(stage, timeline) for stage in timeline.stages]
    shown = [use for use in Spent if any(seconds[use] > 0 for seconds in uses)]
    rows = [
        f"<th>{use}</th>" + "".join(_cell(seconds[use], timeline.step_seconds) for seconds in uses) for use in shown
    ]
    head = "".join(f"<th>stage {index}</th>" for index in range(len(uses)))
    strategies = "".join(f"<td>{escape(summarize_strategies(stage))}</td>" for stage in plan.stages)
    body = "".join(f"<tr>{row}</tr>" for row in (f"<th>strategies</th>{strategies}", *rows))
    return f'<h2>Where the step goes</h2><div class="scroll"><table><tr><th></th>{head}</tr>{body}</table></div>'


def _cell(seconds: float, step_seconds: float) -> str:
    if seconds <= 0:
        return "<td>-</td>"
    return f'<td>{format_seconds(seconds)} <span class="soft">{seconds / step_seconds:.1%}</span></td>'
