"""One training step as a discrete-event simulation: the truth that the formulas of ``pipeline.py`` are tested equal to.

Stages know only their own rule, what their neighbours have made, and when they are free; everything else follows from
the events in the order of time. A transfer starts when the sender has made what the receiver wants next and the
receiver is free. It shares prices with the cost model, and nothing of its schedules or sums.

Source of the rules: GPipe (Huang et al. 2019), 1F1B (Narayanan et al. 2021, arXiv 2104.04473, section 2.2).
"""

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import assert_never

from galvatron_planner import families
from galvatron_planner.cost.prices import PriceList
from galvatron_planner.cost.step import BatchSplit, StageStrategies, stage_position
from galvatron_planner.cost.work import StageWork, stage_work
from galvatron_planner.problem import PlanningProblem, Schedule


class EventKind(StrEnum):
    """What happens between two moments of a step."""

    FORWARD = "forward"
    BACKWARD = "backward"
    ACTIVATION = "activation transfer"
    """From the stage before; the event belongs to the stage that receives, and waits for it."""
    GRADIENT = "gradient transfer"
    """From the stage behind; the event belongs to the stage that receives, and waits for it."""
    REDUCTION = "gradient reduction"
    OPTIMIZER = "optimizer"
    OVERHEAD = "overhead"


PASSES = (EventKind.FORWARD, EventKind.BACKWARD)
ARRIVALS = {EventKind.ACTIVATION: EventKind.FORWARD, EventKind.GRADIENT: EventKind.BACKWARD}
"""Which pass starts from which transfer."""


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that takes time.

    Attributes:
        kind: what it is.
        stage_index: the stage that is busy with it.
        start_seconds: since the start of the step.
        end_seconds: since the start of the step.
        micro_batch: its number, absent for what happens once a step.
        payload_bytes: what is transferred or reduced.
    """

    kind: EventKind
    stage_index: int
    start_seconds: float
    end_seconds: float
    micro_batch: int | None = None
    payload_bytes: int = 0

    @property
    def seconds(self) -> float:
        """Duration."""
        return self.end_seconds - self.start_seconds


@dataclass(frozen=True, slots=True)
class StageFacts:
    """What the simulation knows about a stage before it starts.

    Attributes:
        work: the pieces of its passes.
        hop_seconds: one transfer to or from the next stage; 0 on the last one.
        entry_seconds: one transfer to or from the previous stage; 0 on the first one.
        sync_seconds: gradient reduction that the last backward pass does not hide.
        optimizer_seconds: once per step.
        state_bytes: parameters, optimizer, and gradients that are there for the whole run.
        entry_bytes: one payload from the previous stage.
        exit_bytes: one payload to the next stage.
        keeps_entry: whether the first layer wants another layout, so that what was received stays beside its input.
    """

    work: StageWork
    hop_seconds: float
    entry_seconds: float
    sync_seconds: float
    optimizer_seconds: float
    state_bytes: int
    entry_bytes: int
    exit_bytes: int
    keeps_entry: bool

    def seconds(self, kind: EventKind) -> float:
        """Duration of one pass."""
        pieces = self.work.forward if kind is EventKind.FORWARD else self.work.backward
        return sum(piece.seconds for piece in pieces)


@dataclass(frozen=True, slots=True)
class StageTimeline:
    """What one stage did during a step, in the order of time."""

    facts: StageFacts
    events: tuple[Event, ...]

    def of(self, *kinds: EventKind) -> tuple[Event, ...]:
        """Select events by kind."""
        return tuple(event for event in self.events if event.kind in kinds)

    @property
    def finish_seconds(self) -> float:
        """End of the last pass."""
        return max(event.end_seconds for event in self.of(*PASSES))


@dataclass(frozen=True, slots=True)
class Timeline:
    """A whole step.

    Attributes:
        stages: first to last.
        step_seconds: until every stage has ended everything.
        reserve_bytes: device memory taken before the first parameter, on every device.
    """

    stages: tuple[StageTimeline, ...]
    step_seconds: float
    reserve_bytes: int


def simulate(prices: PriceList, problem: PlanningProblem, stages: StageStrategies, split: BatchSplit) -> Timeline:
    """Let a step happen.

    Raises:
        MissingMeasurement: when the profile lacks what the plan needs.
    """
    facts = _facts(prices, problem, stages, split)
    pipeline = _Pipeline(facts, split.num_micro_batches, problem.limits.schedule)
    pipeline.run()
    finished = tuple(_finished(pipeline, problem))
    end = max(event.end_seconds for stage in finished for event in stage.events)
    return Timeline(finished, end, problem.profile.reserve_bytes)


@dataclass(slots=True)
class _Stage:
    """Where a stage stands; it changes with every event."""

    facts: StageFacts
    limit: int
    busy: bool = False
    started: dict[EventKind, int] = field(default_factory=lambda: dict.fromkeys(PASSES, 0))
    offered: dict[EventKind, int] = field(default_factory=lambda: dict.fromkeys(PASSES, 0))
    events: list[Event] = field(default_factory=list)

    def wanted(self, num_micro_batches: int) -> EventKind:
        """Both schedules are one rule: forward while fewer than ``limit`` micro-batches are under way."""
        sent, returned = self.started[EventKind.FORWARD], self.started[EventKind.BACKWARD]
        forward = sent < num_micro_batches and sent - returned < self.limit
        return EventKind.FORWARD if forward else EventKind.BACKWARD


class _Pipeline:
    """The clock of the passes and transfers; it has state because time passes."""

    def __init__(self, facts: tuple[StageFacts, ...], num_micro_batches: int, schedule: Schedule) -> None:
        self.num_micro_batches = num_micro_batches
        self.stages = [
            _Stage(one, _limit(schedule, len(facts) - index, num_micro_batches)) for index, one in enumerate(facts)
        ]
        self._upcoming: list[tuple[float, int, Event]] = []
        self._count = 0

    def run(self) -> None:
        """Pass all micro-batches forward and backward."""
        self._offer(EventKind.FORWARD, 0, self.num_micro_batches, now=0.0)
        while self._upcoming:
            now, _, event = heapq.heappop(self._upcoming)
            if event.kind in ARRIVALS:
                self._compute(ARRIVALS[event.kind], event.stage_index, event.micro_batch, now)
            else:
                self._hand_on(event, now)

    def _hand_on(self, made: Event, now: float) -> None:
        """End a pass: another stage, or the last one itself, may go on from what it made."""
        stage_index, last = made.stage_index, len(self.stages) - 1
        self.stages[stage_index].busy = False
        if made.kind is EventKind.BACKWARD:
            if stage_index > 0:
                self._offer(EventKind.BACKWARD, stage_index - 1, 1, now=now)
        elif stage_index < last:
            self._offer(EventKind.FORWARD, stage_index + 1, 1, now=now)
        else:
            self._offer(EventKind.BACKWARD, last, 1, now=now)
        self._start_what_can(stage_index, now)

    def _offer(self, kind: EventKind, stage_index: int, number: int, *, now: float) -> None:
        self.stages[stage_index].offered[kind] += number
        self._start_what_can(stage_index, now)

    def _start_what_can(self, stage_index: int, now: float) -> None:
        stage = self.stages[stage_index]
        wanted = stage.wanted(self.num_micro_batches)
        number = stage.started[wanted]
        if stage.busy or number == stage.offered[wanted]:
            return
        stage.busy = True
        stage.started[wanted] += 1
        facts = stage.facts
        if wanted is EventKind.FORWARD and stage_index > 0:
            end = now + facts.entry_seconds
            self._schedule(Event(EventKind.ACTIVATION, stage_index, now, end, number, facts.entry_bytes))
        elif wanted is EventKind.BACKWARD and stage_index + 1 < len(self.stages):
            end = now + facts.hop_seconds
            self._schedule(Event(EventKind.GRADIENT, stage_index, now, end, number, facts.exit_bytes))
        else:
            self._compute(wanted, stage_index, number, now)

    def _compute(self, kind: EventKind, stage_index: int, number: int | None, now: float) -> None:
        seconds = self.stages[stage_index].facts.seconds(kind)
        self._schedule(Event(kind, stage_index, now, now + seconds, number))

    def _schedule(self, event: Event) -> None:
        self.stages[event.stage_index].events.append(event)
        self._count += 1
        heapq.heappush(self._upcoming, (event.end_seconds, self._count, event))


def _limit(schedule: Schedule, stages_from_here: int, num_micro_batches: int) -> int:
    match schedule:
        case Schedule.GPIPE:
            return num_micro_batches
        case Schedule.ONE_F_ONE_B:
            return stages_from_here
        case _:
            assert_never(schedule)


def _finished(pipeline: _Pipeline, problem: PlanningProblem) -> Iterator[StageTimeline]:
    """Add what happens once a step: the gradient norm makes every stage wait for all reductions and optimizers."""
    reductions = [_reduction(index, stage) for index, stage in enumerate(pipeline.stages)]
    reduced = max(event.end_seconds for event in reductions)
    updated = reduced + max(stage.facts.optimizer_seconds for stage in pipeline.stages)
    end = updated + problem.profile.step_overhead_seconds
    for index, (stage, reduction) in enumerate(zip(pipeline.stages, reductions, strict=True)):
        once = (
            reduction,
            Event(EventKind.OPTIMIZER, index, reduced, reduced + stage.facts.optimizer_seconds),
            Event(EventKind.OVERHEAD, index, updated, end),
        )
        events = sorted((*stage.events, *once), key=lambda event: (event.start_seconds, event.end_seconds))
        yield StageTimeline(stage.facts, tuple(events))


def _reduction(stage_index: int, stage: _Stage) -> Event:
    """Place the reduction of gradients: beside the last backward pass, and what that does not hide behind it."""
    last = max((event for event in stage.events if event.kind in PASSES), key=lambda event: event.end_seconds)
    facts = stage.facts
    reduced_bytes = sum(one.payload_bytes for one in facts.work.reductions)
    start = last.start_seconds if reduced_bytes else last.end_seconds
    end = last.end_seconds + facts.sync_seconds
    return Event(EventKind.REDUCTION, stage_index, start, end, payload_bytes=reduced_bytes)


def _facts(
    prices: PriceList, problem: PlanningProblem, stages: StageStrategies, split: BatchSplit
) -> tuple[StageFacts, ...]:
    layers = families.layers(problem.model)
    facts: list[StageFacts] = []
    entry, first = None, 0
    for index, strategies in enumerate(stages):
        position = stage_position(
            split, schedule=problem.limits.schedule, stage_index=index, num_stages=len(stages), entry=entry
        )
        own = layers[first : first + len(strategies)]
        costs = [prices.layer(*one, split.micro_batch_size) for one in zip(own, strategies, strict=True)]
        exit_layout = strategies[-1].layout
        moved = prices.leaving_bytes(own[-1], split.micro_batch_size)
        facts.append(
            StageFacts(
                work=stage_work(prices, own, strategies, position, first_layer=first),
                hop_seconds=prices.hop_seconds(exit_layout, moved, stage_index=index) if position.feeds_next else 0.0,
                entry_seconds=facts[-1].hop_seconds if facts else 0.0,
                sync_seconds=sum(cost.sync_seconds for cost in costs),
                optimizer_seconds=sum(cost.optimizer_seconds for cost in costs),
                state_bytes=sum(cost.state_bytes - cost.late_bytes for cost in costs),
                entry_bytes=facts[-1].exit_bytes if facts else 0,
                exit_bytes=moved // exit_layout.num_slices if position.feeds_next else 0,
                keeps_entry=entry is not None and entry != strategies[0].layout,
            )
        )
        entry, first = exit_layout, first + len(strategies)
    return tuple(facts)
