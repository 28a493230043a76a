"""A simulated step as a drawing: stages over time, and below each other the memory of every stage against the budget.

Pure text: it knows how things look, :mod:`galvatron_planner.timeline_html` puts them on a page.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from html import escape
from itertools import accumulate, chain, groupby
from math import floor, log10

from galvatron_planner.cost.occupancy import Held, Occupancy, occupancy
from galvatron_planner.cost.simulator import PASSES, Event, EventKind, StageTimeline, Timeline
from galvatron_planner.cost.spending import pass_seconds
from galvatron_planner.cost.work import Work
from galvatron_planner.units import format_bytes, format_seconds

NARROWEST_PASS = 12
"""Pixels that the drawing grows for, so that passes can be told apart."""
WIDTHS = (1080, 8000)
"""Least and most pixels of a drawing."""
MOST_PASSES = 4000
"""With more the drawing gets narrower again: pages of more than some megabytes are slow."""
WIDE_ENOUGH_FOR_A_NUMBER, WIDE_ENOUGH_FOR_SHARES, WIDE_ENOUGH_TO_SEE = 15, 4, 1
"""Pixels of a pass."""
SEAM = 0.75
"""Pixels between two passes without waiting."""

PASS_ROW, THIN_ROW, STAGE_GAP = 28, 5, 14
MEMORY_ROW, MEMORY_GAP = 84, 20
AXIS = 26

STATES = "states and reserve"
STACK = (STATES, *Held)
"""What fills a device, from the bottom of the chart up."""
THIN_KINDS = (EventKind.ACTIVATION, EventKind.GRADIENT, EventKind.REDUCTION)
"""What happens beside computation, each in a thin row of its own."""
STAGE_HEIGHT = PASS_ROW + len(THIN_KINDS) * (THIN_ROW + 1) + STAGE_GAP


@dataclass(frozen=True, slots=True)
class Canvas:
    """Scale of a drawing.

    Attributes:
        timeline: what is drawn.
        memory: of every stage over time.
        budget_bytes: memory that a plan may use on each device.
        width: pixels of the whole step.
    """

    timeline: Timeline
    memory: tuple[tuple[Occupancy, ...], ...]
    budget_bytes: int
    width: float

    @classmethod
    def of(cls, timeline: Timeline, *, budget_bytes: int) -> "Canvas":
        """Choose a width at which most passes are wide enough to be seen."""
        lengths = sorted(event.seconds for stage in timeline.stages for event in stage.of(*PASSES))
        wanted = NARROWEST_PASS * timeline.step_seconds / max(lengths[len(lengths) // 4], 1e-12)
        least, most = WIDTHS
        width = max(min(wanted, most, most * MOST_PASSES / len(lengths)), least)
        return cls(timeline, tuple(occupancy(stage) for stage in timeline.stages), budget_bytes, width)

    def x(self, seconds: float) -> float:
        """Place a moment."""
        return round(seconds / self.timeline.step_seconds * self.width, 2)

    def peak_bytes(self, stage_index: int) -> int:
        """Give the most that a stage's fullest device holds, states and reserve included."""
        most = max(one.total_bytes for one in self.memory[stage_index])
        return self.base_bytes(stage_index) + most

    def base_bytes(self, stage_index: int) -> int:
        """Give what a device of a stage holds for the whole run."""
        return self.timeline.stages[stage_index].facts.state_bytes + self.timeline.reserve_bytes

    @property
    def memory_start(self) -> int:
        """Upper edge of the first memory chart."""
        return len(self.timeline.stages) * STAGE_HEIGHT + AXIS + MEMORY_GAP

    @property
    def height(self) -> int:
        """Pixels from top to bottom."""
        return self.memory_start + len(self.timeline.stages) * (MEMORY_ROW + MEMORY_GAP) + AXIS


def drawing(canvas: Canvas) -> str:
    """Draw a step as one SVG element; colours come from the page's style."""
    stages = canvas.timeline.stages
    top = 1.06 * max(canvas.budget_bytes, *(canvas.peak_bytes(index) for index in range(len(stages))))
    parts = chain(
        _grid(canvas),
        *(_stage(canvas, stage, top=index * STAGE_HEIGHT) for index, stage in enumerate(stages)),
        *(_memory(canvas, index, per_byte=MEMORY_ROW / top) for index in range(len(stages))),
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{canvas.width:.0f}" height="{canvas.height}" role="img"'
        f' aria-label="stages and memory over time">{"".join(parts)}</svg>'
    )


def memory_row_top(canvas: Canvas, stage_index: int) -> int:
    """Place a stage's memory chart."""
    return canvas.memory_start + stage_index * (MEMORY_ROW + MEMORY_GAP)


def css_class(kind: str) -> str:
    """Name the colour of a kind of work, event or memory."""
    return kind.replace(" ", "-")


def _stage(canvas: Canvas, stage: StageTimeline, *, top: int) -> Iterator[str]:
    yield _rect("idle", 0, top, canvas.width, PASS_ROW)
    yield from _passes(canvas, stage, top)
    for event in stage.of(EventKind.OPTIMIZER, EventKind.OVERHEAD):
        yield _bar(canvas, event, top, PASS_ROW)
    for row, kind in enumerate(THIN_KINDS):
        y = top + PASS_ROW + 1 + row * (THIN_ROW + 1)
        # One mark a pixel is enough.
        marks = {int(canvas.x(event.end_seconds)): event for event in stage.of(kind)}
        yield from (_bar(canvas, event, y, THIN_ROW) for event in marks.values())


def _passes(canvas: Canvas, stage: StageTimeline, top: int) -> Iterator[str]:
    shares = {kind: pass_seconds(stage, kind) for kind in PASSES}
    for is_small, run in groupby(stage.of(*PASSES), key=lambda event: canvas.x(event.seconds) < WIDE_ENOUGH_TO_SEE):
        if is_small:
            yield from _together(canvas, tuple(run), top)
        else:
            yield from (_pass(canvas, event, shares[event.kind], top) for event in run)


def _together(canvas: Canvas, events: tuple[Event, ...], top: int) -> Iterator[str]:
    """Draw passes that are too short to be seen one by one as bars, interrupted where waiting can be seen."""
    run: list[Event] = []
    for event, following in zip(events, (*events[1:], None), strict=True):
        run.append(event)
        if following is None or canvas.x(following.start_seconds - event.end_seconds) >= WIDE_ENOUGH_TO_SEE:
            start, end = canvas.x(run[0].start_seconds), canvas.x(event.end_seconds)
            name = css_class(event.kind) if len({one.kind for one in run}) == 1 else "mixed"
            title = f"passes of micro-batches {run[0].micro_batch} to {event.micro_batch}, stage {event.stage_index}"
            yield _titled(title, _rect(name, start, top, end - start, PASS_ROW))
            run = []


def _pass(canvas: Canvas, event: Event, shares: dict[Work, float], top: int) -> str:
    start, width = canvas.x(event.start_seconds), canvas.x(event.seconds)
    if width < WIDE_ENOUGH_FOR_SHARES:
        return _titled(_span(event), _rect(css_class(event.kind), start, top, width, PASS_ROW))
    width -= SEAM
    ends = [width * end / event.seconds for end in accumulate(shares.values())]
    bars = [
        _rect(css_class(work), start + left, top, right - left, PASS_ROW)
        for work, left, right in zip(shares, (0.0, *ends[:-1]), ends, strict=True)
    ]
    if width >= WIDE_ENOUGH_FOR_A_NUMBER:
        x, y = start + width / 2, top + PASS_ROW / 2 + 4
        bars.append(f'<text class="number" x="{x:.1f}" y="{y:.0f}">{event.micro_batch}</text>')
    made_of = "".join(f"\n  {work}: {format_seconds(seconds)}" for work, seconds in shares.items())
    return _titled(_span(event) + made_of, "".join(bars))


def _bar(canvas: Canvas, event: Event, top: int, height: int) -> str:
    if not event.seconds:
        return ""
    moved = f"\n{format_bytes(event.payload_bytes)}" if event.payload_bytes else ""
    start = canvas.x(event.start_seconds)
    bar = _rect(css_class(event.kind), start, top, max(canvas.x(event.end_seconds) - start, 0.5), height)
    return _titled(_span(event) + moved, bar)


def _span(event: Event) -> str:
    of = "" if event.micro_batch is None else f" of micro-batch {event.micro_batch}"
    return (
        f"{event.kind}{of}, stage {event.stage_index}"
        f"\nstarts at {format_seconds(event.start_seconds)}, takes {format_seconds(event.seconds)}"
    )


def _memory(canvas: Canvas, stage_index: int, *, per_byte: float) -> Iterator[str]:
    top, base = memory_row_top(canvas, stage_index), canvas.base_bytes(stage_index)
    bottom = top + MEMORY_ROW
    columns = _columns(canvas, canvas.memory[stage_index])
    yield _rect("chart", 0, top, canvas.width, MEMORY_ROW)
    for depth in range(len(STACK), 0, -1):
        # From the highest stack down, so that every area only needs its upper edge.
        heights = [(x, (base + sum(uses[: depth - 1])) * per_byte) for x, uses in columns]
        yield f'<path class="{css_class(STACK[depth - 1])}" d="{_area(heights, bottom, canvas.width)}"/>'
    budget = round(bottom - canvas.budget_bytes * per_byte, 1)
    yield f'<line class="budget" x1="0" x2="{canvas.width:.0f}" y1="{budget}" y2="{budget}"/>'
    yield from _memory_titles(canvas, stage_index, top)


def _columns(canvas: Canvas, held: tuple[Occupancy, ...]) -> list[tuple[int, tuple[int, ...]]]:
    """Reduce memory over time to the fullest moment of every pixel, and to pixels where it changes."""
    fullest: dict[int, Occupancy] = {}
    for before, value in zip((held[0], *held[:-1]), held, strict=True):
        x = int(canvas.x(value.seconds))
        # What was held when the pixel began counts too.
        fullest[x] = max(fullest.get(x, before), value, key=lambda one: one.total_bytes)
        fullest[x + 1] = value
    changes = sorted(fullest.items())
    return [
        (x, one.bytes_by_use)
        for i, (x, one) in enumerate(changes)
        if i == 0 or one.bytes_by_use != changes[i - 1][1].bytes_by_use
    ]


def _area(heights: Iterable[tuple[int, float]], bottom: int, width: float) -> str:
    steps = "".join(f"H{x}V{bottom - height:.1f}" for x, height in heights)
    return f"M0 {bottom}{steps}H{width:.0f}V{bottom}Z"


def _memory_titles(canvas: Canvas, stage_index: int, top: int) -> Iterator[str]:
    """Lay invisible bars over a chart that tell on hovering how full the device gets during each pass."""
    held, base = canvas.memory[stage_index], canvas.base_bytes(stage_index)
    moments = [one.seconds for one in held]
    for event in canvas.timeline.stages[stage_index].of(*PASSES):
        width = canvas.x(event.seconds)
        if width < WIDE_ENOUGH_FOR_SHARES:
            continue
        during = held[bisect_left(moments, event.start_seconds) : bisect_left(moments, event.end_seconds)]
        fullest = max(during, key=lambda one: one.total_bytes, default=held[0])
        uses = zip(STACK, (base, *fullest.bytes_by_use), strict=True)
        made_of = "".join(f"\n  {name}: {format_bytes(num_bytes)}" for name, num_bytes in uses)
        title = f"up to {format_bytes(base + fullest.total_bytes)} during {_span(event)}{made_of}"
        yield _titled(title, _rect("hover", canvas.x(event.start_seconds), top, width, MEMORY_ROW))


def _grid(canvas: Canvas) -> Iterator[str]:
    """Draw lines at round moments, with their times under the stages and under the memory."""
    step = canvas.timeline.step_seconds
    rough = step * 110 / canvas.width
    unit = 10.0 ** floor(log10(rough))
    interval = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough)
    for i in range(int(step / interval) + 1):
        x = canvas.x(i * interval)
        yield f'<line class="grid" x1="{x}" x2="{x}" y1="0" y2="{canvas.height - AXIS}"/>'
        label = "0" if i == 0 else format_seconds(i * interval)
        for y in (len(canvas.timeline.stages) * STAGE_HEIGHT + 12, canvas.height - AXIS + 14):
            yield f'<text class="tick" x="{x + 3}" y="{y}">{label}</text>'


def _titled(title: str, drawn: str) -> str:
    return f"<g><title>{escape(title)}</title>{drawn}</g>"


def _rect(name: str, x: float, y: float, width: float, height: float) -> str:
    return f'<rect class="{name}" x="{x:.2f}" y="{y}" width="{max(width, 0):.2f}" height="{height}"/>'
