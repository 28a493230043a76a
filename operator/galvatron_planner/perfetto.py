"""A simulated step in Chrome's trace event format, which Perfetto (ui.perfetto.dev) and chrome://tracing open.

A stage is a process, passes and what they are made of are nested slices, transfers stand before the passes that start
from them, and memory is a counter. Times are in microseconds, as the format wants.

Source: Trace Event Format, Google, 2016.
"""

import json
from collections.abc import Iterator
from typing import Any

from galvatron_planner.cost.occupancy import Held, occupancy
from galvatron_planner.cost.simulator import PASSES, Event, EventKind, StageTimeline, Timeline
from galvatron_planner.plan import Plan, summarize_strategies

_MICROSECONDS = 1e6
_LANES = {1: "transfers and passes", 2: "gradient reduction"}


def chrome_trace(plan: Plan, timeline: Timeline) -> str:
    """Write a step as a JSON trace."""
    events = [event for index, stage in enumerate(timeline.stages) for event in _stage(plan, index, stage, timeline)]
    return json.dumps({"displayTimeUnit": "ms", "otherData": {"plan": plan.summary}, "traceEvents": events}) + "\n"


def _stage(plan: Plan, index: int, stage: StageTimeline, timeline: Timeline) -> Iterator[dict[str, Any]]:
    name = f"stage {index}: {summarize_strategies(plan.stages[index])}"
    yield {"ph": "M", "name": "process_name", "pid": index, "args": {"name": name}}
    yield {"ph": "M", "name": "process_sort_index", "pid": index, "args": {"sort_index": index}}
    for lane, title in _LANES.items():
        yield {"ph": "M", "name": "thread_name", "pid": index, "tid": lane, "args": {"name": title}}
    for event in stage.events:
        yield _slice(event.kind, index, 2 if event.kind is EventKind.REDUCTION else 1, _span(event), _facts(event))
        if event.kind in PASSES:
            yield from _pieces(plan, stage, event)
    base = stage.facts.state_bytes + timeline.reserve_bytes
    for held in occupancy(stage):
        uses = dict(zip(Held, held.bytes_by_use, strict=True))
        yield {
            "ph": "C",
            "name": "memory in bytes",
            "pid": index,
            "ts": held.seconds * _MICROSECONDS,
            "args": {"total": base + held.total_bytes, "states and reserve": base, **uses},
        }


def _pieces(plan: Plan, stage: StageTimeline, event: Event) -> Iterator[dict[str, Any]]:
    """Give the layers of a pass, and inside each one what it is made of."""
    now = event.start_seconds
    for piece in stage.facts.work.forward if event.kind is EventKind.FORWARD else stage.facts.work.backward:
        layer = plan.layers[piece.layer_index]
        facts = {"kept bytes": piece.kept_bytes, "working bytes": piece.working_bytes}
        end = min(now + piece.seconds, event.end_seconds)
        yield _slice(f"{layer.kind} {piece.layer_index}", event.stage_index, 1, (now, end), facts)
        for work, seconds in piece.shares:
            share = (now, min(now + seconds, end))
            yield _slice(work, event.stage_index, 1, share, {})
            now = share[1]
        now = end


def _slice(name: str, stage_index: int, lane: int, span: tuple[float, float], facts: dict[str, int]) -> dict[str, Any]:
    start, end = span
    return {
        "ph": "X",
        "name": name,
        "pid": stage_index,
        "tid": lane,
        "ts": start * _MICROSECONDS,
        "dur": (end - start) * _MICROSECONDS,
        "args": facts,
    }


def _span(event: Event) -> tuple[float, float]:
    return event.start_seconds, event.end_seconds


def _facts(event: Event) -> dict[str, int]:
    number = {} if event.micro_batch is None else {"micro-batch": event.micro_batch}
    return number | ({"bytes": event.payload_bytes} if event.payload_bytes else {})
