"""Stages to a step: which of the choices of every stage go together best, by the schedule itself."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from galvatron_planner.cost.pipeline import StageSeconds, finish_seconds
from galvatron_planner.problem import Schedule
from galvatron_planner.search.tradeoffs import Tradeoff

MAX_PASSES = 1_000_000
"""Passes that are followed for one cut before the rest is given up; a step has two a stage and micro-batch."""

Amounts = tuple[float, float, float, float]
"""Forward and backward seconds of a micro-batch with their transfers, reduction and optimizer seconds of a step."""


@dataclass(frozen=True, slots=True)
class Assembled:
    """What goes together best.

    Attributes:
        choices: one a stage; None when nothing is faster than the limit.
        is_proven: whether every combination was considered.
    """

    choices: tuple[Tradeoff, ...] | None
    is_proven: bool


class Assembly:
    """One cut; it has state because the best step seen decides what is still looked into."""

    def __init__(self, *, num_stages: int, num_micro_batches: int, schedule: Schedule) -> None:
        self._num_micro_batches = num_micro_batches
        self._schedule = schedule
        self._best: tuple[Tradeoff, ...] | None = None
        self._limit = float("inf")
        self._num_steps = 0
        self._max_steps = max(num_stages + 1, MAX_PASSES // (2 * num_stages * num_micro_batches))

    def fastest(self, options: Sequence[Sequence[Tradeoff]], limit: float) -> Assembled:
        """Combine one choice a stage so that the step, without overhead, is below the limit and as short as can be."""
        self._best, self._limit, self._num_steps = None, limit, 0
        ideal = [_ideal(some) for some in options]
        self._extend((), [sorted(some, key=_promise) for some in options], ideal)
        return Assembled(self._best, self._num_steps < self._max_steps)

    def fastest_of(self, complete: Sequence[tuple[Tradeoff, ...]], limit: float) -> Assembled:
        """Take the shortest of some steps, if one is below the limit."""
        priced = [(self.step_seconds([one.amounts for one in choices]), choices) for choices in complete]
        best = min(priced, key=lambda one: one[0], default=(limit, ()))
        return Assembled(best[1] if best[0] < limit else None, is_proven=False)

    def step_seconds(self, amounts: Sequence[Amounts]) -> float:
        """Price a step, without overhead."""
        passes = [StageSeconds(one[0], one[1]) for one in amounts]
        ends = finish_seconds(passes, num_micro_batches=self._num_micro_batches, schedule=self._schedule)
        reduced = max(end + one[2] for end, one in zip(ends, amounts, strict=True))
        return reduced + max(one[3] for one in amounts)

    def _extend(self, chosen: tuple[Tradeoff, ...], options: list[list[Tradeoff]], ideal: list[Amounts]) -> None:
        if self._num_steps >= self._max_steps:
            return
        self._num_steps += 1
        seconds = self.step_seconds([*(one.amounts for one in chosen), *ideal[len(chosen) :]])
        if seconds >= self._limit:
            return
        if len(chosen) == len(options):
            self._best, self._limit = chosen, seconds
            return
        for one in options[len(chosen)]:
            self._extend((*chosen, one), options, ideal)


def _ideal(options: Sequence[Tradeoff]) -> Amounts:
    least = np.array([one.amounts for one in options]).min(axis=0)
    return float(least[0]), float(least[1]), float(least[2]), float(least[3])


def _promise(one: Tradeoff) -> tuple[float, float]:
    return one.amounts[0] + one.amounts[1], one.amounts[2]
