"""Memory of a stage's fullest device over a simulated step: what is taken and freed with every piece of every pass."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import accumulate

from galvatron_planner.cost.simulator import PASSES, Event, EventKind, StageFacts, StageTimeline
from galvatron_planner.cost.work import Piece


class Held(StrEnum):
    """What fills a device besides what it holds for the whole run."""

    ACTIVATIONS = "activations"
    GRADIENTS = "gradients"
    """Those that a backward pass makes; what lies in buckets for the whole run is a part of the states."""
    BOUNDARY = "boundary buffers"
    """What is exchanged with the neighbouring stages."""
    WORKING = "working memory"


@dataclass(frozen=True, slots=True)
class Occupancy:
    """Memory from ``seconds`` on, until the next value; ``bytes_by_use`` in the order of :class:`Held`."""

    seconds: float
    bytes_by_use: tuple[int, int, int, int]

    @property
    def total_bytes(self) -> int:
        """Everything that comes and goes."""
        return sum(self.bytes_by_use)


@dataclass(frozen=True, slots=True)
class _Change:
    seconds: float
    use: Held
    num_bytes: int


def occupancy(stage: StageTimeline) -> tuple[Occupancy, ...]:
    """Follow a stage's memory through a step, without its states and the reserve."""
    # Stable: what happens at the same moment stays in the order in which the device does it.
    changes = sorted(_changes(stage), key=lambda change: change.seconds)
    held = dict.fromkeys(Held, 0)
    values = [Occupancy(0.0, (0, 0, 0, 0))]
    for change in changes:
        held[change.use] += change.num_bytes
        activations, gradients, boundary, working = (held[use] for use in Held)
        values.append(Occupancy(change.seconds, (activations, gradients, boundary, working)))
    return tuple(values)


def peak_bytes(stage: StageTimeline, *, reserve_bytes: int) -> int:
    """Give the most that a stage's fullest device holds at any moment, states and reserve included."""
    return reserve_bytes + stage.facts.state_bytes + max(one.total_bytes for one in occupancy(stage))


def _changes(stage: StageTimeline) -> Iterator[_Change]:
    """List what every pass takes and frees, in the order of execution."""
    passes = stage.of(*PASSES)
    (optimizer,) = stage.of(EventKind.OPTIMIZER)
    ready = (0.0, *(event.end_seconds for event in passes))
    sent = (*ready[2:], optimizer.start_seconds)
    for event, posted, forgotten in zip(passes, ready[:-1], sent, strict=True):
        if event.kind is EventKind.FORWARD:
            yield from _forward(stage.facts, event, posted)
        else:
            yield from _backward(stage.facts, event, posted, forgotten)
    late = sum(piece.late_bytes for piece in stage.facts.work.backward)
    yield _Change(optimizer.end_seconds, Held.GRADIENTS, -late)


def _forward(facts: StageFacts, event: Event, posted: float) -> Iterator[_Change]:
    """From ``posted`` on there is room for the input, which becomes a part of what the first layer keeps."""
    yield _Change(posted, Held.BOUNDARY, facts.entry_bytes)
    if not facts.keeps_entry:
        yield _Change(event.start_seconds, Held.BOUNDARY, -facts.entry_bytes)
    for piece, start, end in _spans(event, facts.work.forward):
        yield _Change(start, Held.ACTIVATIONS, piece.kept_bytes)
        yield _Change(start, Held.WORKING, piece.working_bytes)
        yield _Change(end, Held.WORKING, -piece.working_bytes)
    yield _Change(event.end_seconds, Held.BOUNDARY, facts.exit_bytes)


def _backward(facts: StageFacts, event: Event, posted: float, forgotten: float) -> Iterator[_Change]:
    """From ``posted`` on there is room for the gradient; that of the input is kept for sending until ``forgotten``."""
    yield _Change(posted, Held.BOUNDARY, facts.exit_bytes)
    for piece, start, end in _spans(event, facts.work.backward):
        yield _Change(start, Held.WORKING, piece.working_bytes)
        yield _Change(end, Held.ACTIVATIONS, -piece.kept_bytes)
        if event.micro_batch == 0:
            # What a reduction starts from is a part of the working memory: it is there beside what comes out.
            yield _Change(end, Held.GRADIENTS, piece.late_bytes)
        yield _Change(end, Held.WORKING, -piece.working_bytes)
    end = event.end_seconds
    yield _Change(end, Held.BOUNDARY, -2 * facts.exit_bytes)
    if facts.keeps_entry:
        yield _Change(end, Held.BOUNDARY, -facts.entry_bytes)
    yield _Change(end, Held.BOUNDARY, facts.entry_bytes)
    yield _Change(forgotten, Held.BOUNDARY, -facts.entry_bytes)


def _spans(event: Event, pieces: tuple[Piece, ...]) -> Iterator[tuple[Piece, float, float]]:
    """Place the pieces of a pass in time; rounding never carries one past the end of its pass."""
    ends = [
        min(event.start_seconds + offset, event.end_seconds) for offset in accumulate(one.seconds for one in pieces)
    ]
    return zip(pieces, (event.start_seconds, *ends[:-1]), (*ends[:-1], event.end_seconds), strict=True)
