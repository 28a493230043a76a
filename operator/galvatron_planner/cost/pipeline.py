"""The schedule of a pipeline, evaluated event by event: who waits for whom, and how many micro-batches are in flight.

Sources: GPipe (Huang et al. 2019); 1F1B, also PipeDream-Flush (Narayanan et al. 2021, arXiv 2104.04473, section 2.2).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import assert_never

import numpy as np
from numpy.typing import NDArray

from galvatron_planner.problem import Schedule


@dataclass(frozen=True, slots=True)
class StageSeconds:
    """One stage, per micro-batch.

    A stage asks for what a pass starts from when its pass before has ended, and waits for it. So a transfer is a part
    of the pass that it is for, and the schedule knows none.

    Attributes:
        forward_seconds: forward pass, with the transfer from the previous stage, without waiting for that stage.
        backward_seconds: backward pass, with the transfer from the next stage, without waiting for that stage.
    """

    forward_seconds: float
    backward_seconds: float

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


def finish_seconds(stages: Sequence[StageSeconds], *, num_micro_batches: int, schedule: Schedule) -> tuple[float, ...]:
    """Tell when each stage ends its last pass, counted from the start of the step.

    A forward pass starts when its stage is free and the previous stage has ended its own, a backward pass when the
    next stage has; either begins with the transfer.
    """
    if len(stages) == 1:
        return (num_micro_batches * stages[0].seconds,)
    forward = [stage.forward_seconds for stage in stages]
    backward = [stage.backward_seconds for stage in stages]
    last = len(stages) - 1
    free = [0.0] * len(stages)
    forward_ends = [[0.0] * num_micro_batches for _ in stages]
    backward_ends = [[0.0] * num_micro_batches for _ in stages]
    for k, is_forward, index in passes_in_order(schedule, num_stages=len(stages), num_micro_batches=num_micro_batches):
        start = free[k]
        if is_forward:
            if k and (made := forward_ends[k - 1][index]) > start:
                start = made
            free[k] = forward_ends[k][index] = start + forward[k]
        else:
            if k < last and (made := backward_ends[k + 1][index]) > start:
                start = made
            free[k] = backward_ends[k][index] = start + backward[k]
    return tuple(free)


def finish_seconds_of_many(
    forward: NDArray[np.float64], backward: NDArray[np.float64], *, num_micro_batches: int, schedule: Schedule
) -> NDArray[np.float64]:
    """Do what :func:`finish_seconds` does for many pipelines at once: (stages, pipelines) seconds in and out.

    A pass of all takes some ten times as long as a pass of one, however many there are.
    """
    if len(forward) == 1:
        return num_micro_batches * (forward + backward)
    last, free = len(forward) - 1, np.zeros_like(forward)
    forward_ends: dict[tuple[int, int], NDArray[np.float64]] = {}
    backward_ends: dict[tuple[int, int], NDArray[np.float64]] = {}
    for k, is_forward, index in passes_in_order(schedule, num_stages=len(forward), num_micro_batches=num_micro_batches):
        ends, own, made = (
            (forward_ends, forward, forward_ends.pop((k - 1, index), None))
            if is_forward
            else (backward_ends, backward, backward_ends.pop((k + 1, index), None))
        )
        start = free[k] if made is None else np.maximum(free[k], made)
        free[k] = start + own[k]
        if k != (last if is_forward else 0):
            ends[k, index] = free[k].copy()
    return free


@lru_cache(maxsize=64)
def passes_in_order(
    schedule: Schedule, *, num_stages: int, num_micro_batches: int
) -> tuple[tuple[int, bool, int], ...]:
    """List all passes (stage, whether it is a forward pass, micro-batch), each after those that it waits for.

    Passes are sorted by when they start if every pass takes the same time.
    """
    starts: list[tuple[int, int, bool, int]] = []
    for k in range(num_stages):
        ahead = in_flight(schedule, stage_index=k, num_stages=num_stages, num_micro_batches=num_micro_batches)
        # The last stage turns the first micro-batch round when it has all that it may have in flight.
        turn = num_stages + (num_micro_batches - 1 if schedule is Schedule.GPIPE else 0)
        step = 1 if schedule is Schedule.GPIPE else 2
        for index in range(num_micro_batches):
            starts.append((k + index * (1 if index < ahead else step), k, True, index))
            starts.append((turn + num_stages - 1 - k + step * index, k, False, index))
    return tuple((k, is_forward, index) for _, k, is_forward, index in sorted(starts))
