"""The schedule of a pipeline, evaluated event by event: who waits for whom, and how many micro-batches are in flight.

Sources: GPipe (Huang et al. 2019); 1F1B, also PipeDream-Flush (Narayanan et al. 2021, arXiv 2104.04473, section 2.2).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import assert_never

from galvatron_planner.problem import Schedule


class Pass(StrEnum):
    """What a stage does with a micro-batch."""

    FORWARD = "forward"
    BACKWARD = "backward"


@dataclass(frozen=True, slots=True)
class StageSeconds:
    """One stage, per micro-batch.

    Attributes:
        forward_seconds: forward pass, without waiting.
        backward_seconds: backward pass, without waiting.
        hop_seconds: one transfer to or from the next stage; 0 on the last stage.
    """

    forward_seconds: float
    backward_seconds: float
    hop_seconds: float = 0.0

    @property
    def seconds(self) -> float:
        """Forward plus backward."""
        return self.forward_seconds + self.backward_seconds


def in_flight(schedule: Schedule, *, stage_index: int, num_stages: int, num_micro_batches: int) -> int:
    """Count the micro-batches whose activations a stage holds at most."""
    match schedule:
        case Schedule.GPIPE:
            return num_micro_batches
        case Schedule.ONE_F_ONE_B:
            return min(num_stages - stage_index, num_micro_batches)
        case _:
            assert_never(schedule)


def order(
    schedule: Schedule, *, stage_index: int, num_stages: int, num_micro_batches: int
) -> Iterator[tuple[Pass, int]]:
    """Give what a stage does, one pass of one micro-batch after another."""
    ahead = in_flight(schedule, stage_index=stage_index, num_stages=num_stages, num_micro_batches=num_micro_batches)
    for index in range(ahead):
        yield Pass.FORWARD, index
    for index in range(num_micro_batches):
        yield Pass.BACKWARD, index
        if index + ahead < num_micro_batches:
            yield Pass.FORWARD, index + ahead


def finish_seconds(stages: Sequence[StageSeconds], *, num_micro_batches: int, schedule: Schedule) -> tuple[float, ...]:
    """Tell when each stage ends its last pass, counted from the start of the step.

    A forward pass starts when its stage is free and the previous stage's output has arrived, a backward pass when the
    next stage's gradient has arrived; transfers delay the receiver only.
    """
    if len(stages) == 1:
        return (num_micro_batches * stages[0].seconds,)
    timeline = _Timeline(stages, num_micro_batches)
    orders = [
        order(schedule, stage_index=k, num_stages=len(stages), num_micro_batches=num_micro_batches)
        for k in range(len(stages))
    ]
    upcoming = [next(one, None) for one in orders]
    while any(one is not None for one in upcoming):
        for k, stage_order in enumerate(orders):
            # As far as this stage gets with what has arrived; the 1F1B order never deadlocks.
            while (one := upcoming[k]) is not None and timeline.runs(k, *one):
                upcoming[k] = next(stage_order, None)
    return tuple(timeline.free)


class _Timeline:
    """When passes ended so far; it has state because the recurrence is evaluated in order of dependency."""

    def __init__(self, stages: Sequence[StageSeconds], num_micro_batches: int) -> None:
        self.stages = stages
        self.free = [0.0] * len(stages)
        self._forward: list[list[float | None]] = [[None] * num_micro_batches for _ in stages]
        self._backward: list[list[float | None]] = [[None] * num_micro_batches for _ in stages]

    def runs(self, k: int, direction: Pass, index: int) -> bool:
        """Run one pass if what it needs has arrived."""
        arrived = self._arrival(k, direction, index)
        if arrived is None:
            return False
        stage = self.stages[k]
        seconds = stage.forward_seconds if direction is Pass.FORWARD else stage.backward_seconds
        self.free[k] = max(self.free[k], arrived) + seconds
        ends = self._forward if direction is Pass.FORWARD else self._backward
        ends[k][index] = self.free[k]
        return True

    def _arrival(self, k: int, direction: Pass, index: int) -> float | None:
        if direction is Pass.FORWARD:
            if k == 0:
                return 0.0
            sent, hop = self._forward[k - 1][index], self.stages[k - 1].hop_seconds
        else:
            if k == len(self.stages) - 1:
                return self._forward[k][index]
            sent, hop = self._backward[k + 1][index], self.stages[k].hop_seconds
        return None if sent is None else sent + hop
