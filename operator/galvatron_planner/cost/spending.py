"""Where the time of a simulated step goes on one stage, waiting included: seconds by use that add up to the step."""

from enum import StrEnum

from galvatron_planner.cost.simulator import ARRIVALS, PASSES, EventKind, StageTimeline, Timeline
from galvatron_planner.cost.work import Work


class Spent(StrEnum):
    """What a stage spends its time on."""

    COMPUTATION = "forward and backward"
    RECOMPUTATION = "recomputation"
    TENSOR = "tensor parallel collectives"
    SHARDED = "sharded parameters, not hidden"
    LAYOUT = "changes of layout"
    HOP = "transfers between stages"
    BUBBLE = "waiting for other stages"
    REDUCTION = "gradient reduction, not hidden"
    OPTIMIZER = "optimizer"
    OVERHEAD = "data, loss and bookkeeping"


_USES = {
    Work.FORWARD: Spent.COMPUTATION,
    Work.BACKWARD: Spent.COMPUTATION,
    Work.RECOMPUTATION: Spent.RECOMPUTATION,
    Work.TENSOR: Spent.TENSOR,
    Work.SHARDED: Spent.SHARDED,
    Work.LAYOUT: Spent.LAYOUT,
}


def pass_seconds(stage: StageTimeline, kind: EventKind) -> dict[Work, float]:
    """Add up what one pass of a stage is made of, in the order of :class:`Work`."""
    pieces = stage.facts.work.forward if kind is EventKind.FORWARD else stage.facts.work.backward
    seconds = dict.fromkeys(Work, 0.0)
    for piece in pieces:
        for work, share in piece.shares:
            seconds[work] += share
    return {work: total for work, total in seconds.items() if total}


def spending(stage: StageTimeline, timeline: Timeline) -> dict[Spent, float]:
    """Tell where a stage's step goes; the values add up to the duration of the step."""
    seconds = dict.fromkeys(Spent, 0.0)
    for kind in PASSES:
        for work, share in pass_seconds(stage, kind).items():
            seconds[_USES[work]] += len(stage.of(kind)) * share
    seconds[Spent.HOP] = sum(event.seconds for event in stage.of(*ARRIVALS))
    seconds[Spent.REDUCTION] = stage.facts.sync_seconds
    seconds[Spent.OPTIMIZER] = stage.facts.optimizer_seconds
    seconds[Spent.OVERHEAD] = sum(event.seconds for event in stage.of(EventKind.OVERHEAD))
    # What is left is waiting: between passes, at the gradient norm, and for the slowest optimizer.
    seconds[Spent.BUBBLE] = max(0.0, timeline.step_seconds - sum(seconds.values()))
    return seconds
