"""Stages to a step: which of the choices of every stage go together best, by the schedule itself."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress
from math import prod

import numpy as np

from galvatron_planner.cost.pipeline import StageSeconds, finish_seconds, finish_seconds_of_many
from galvatron_planner.problem import Schedule
from galvatron_planner.search.options import BACKWARD, FORWARD, OPTIMIZER, SYNC, Floats, rising
from galvatron_planner.search.tradeoffs import Tradeoff

MAX_PASSES = 10_000_000
"""Passes that are followed for one cut before the rest is given up; a step has two a stage and micro-batch."""

FEW_STEPS = 100
"""Up to so many combinations it takes longer to put the stages in order than to go through them as they come."""

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
        bounds, order = self._by_optimizer(options), list(range(len(options)))
        if prod(map(len, options)) > FEW_STEPS and any(bound < limit for bound, _ in bounds):
            order, options = self._sieved(options)
            bounds = self._by_optimizer(options)
        for bound, slowest in bounds:
            if bound >= self._limit:
                break
            allowed = [sorted((o for o in some if o.amounts[OPTIMIZER] <= slowest), key=_promise) for some in options]
            self._extend({}, order, allowed, [_ideal(some, slowest) for some in allowed])
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

    def _by_optimizer(self, options: Sequence[Sequence[Tradeoff]]) -> list[tuple[float, float]]:
        """Bound the steps whose slowest optimizer takes each of the times that it can: (bound, time), lowest first.

        The slowest optimizer couples all stages: what is ideal without regard to it undercuts every step by far.
        """
        if not all(options):
            return []
        amounts = [np.array([one.amounts for one in some]) for some in options]
        slowest = rising(np.concatenate([some[:, OPTIMIZER] for some in amounts]))
        slowest = slowest[slowest >= max(float(some[:, OPTIMIZER].min()) for some in amounts)]
        ideal = np.stack([_least_within(some, slowest) for some in amounts])
        bounds = self._reduced(ideal) + slowest
        return sorted(zip(bounds.tolist(), slowest.tolist(), strict=True))

    def _sieved(self, options: Sequence[Sequence[Tradeoff]]) -> tuple[list[int], Sequence[Sequence[Tradeoff]]]:
        """Leave out the choices that are too slow even if all other stages are ideal.

        Returns:
            the order in which to choose for stages, first the one whose best choice makes the step longest, and the
            choices that are left of each.
        """
        amounts = [np.array([one.amounts for one in some]).T for some in options]
        ideal = np.stack([some.min(axis=1) for some in amounts])
        raised, left = [], []
        for k, some in enumerate(options):
            steps = ideal[:, :, None].repeat(len(some), axis=2)
            steps[k] = amounts[k]
            seconds = self._reduced(steps) + steps[:, OPTIMIZER].max(axis=0)
            raised.append(float(seconds.min()))
            left.append(list(compress(some, seconds < self._limit)))
        return sorted(range(len(options)), key=lambda k: -raised[k]), left

    def _reduced(self, amounts: Floats) -> Floats:
        """Price many steps up to the optimizer, (stages, amounts of time, steps)."""
        ends = finish_seconds_of_many(
            amounts[:, FORWARD],
            amounts[:, BACKWARD],
            num_micro_batches=self._num_micro_batches,
            schedule=self._schedule,
        )
        return np.asarray((ends + amounts[:, SYNC]).max(axis=0))

    def _extend(
        self,
        chosen: dict[int, Tradeoff],
        order: Sequence[int],
        options: Sequence[Sequence[Tradeoff]],
        ideal: Sequence[Amounts],
    ) -> None:
        """Choose for the next stage in order, while all others are ideal."""
        if self._num_steps >= self._max_steps:
            return
        self._num_steps += 1
        seconds = self.step_seconds([chosen[k].amounts if k in chosen else ideal[k] for k in range(len(ideal))])
        if seconds >= self._limit:
            return
        if len(chosen) == len(options):
            self._best, self._limit = tuple(chosen[k] for k in range(len(options))), seconds
            return
        k = order[len(chosen)]
        for one in options[k]:
            self._extend({**chosen, k: one}, order, options, ideal)


def _ideal(options: Sequence[Tradeoff], slowest: float) -> Amounts:
    least = np.array([one.amounts for one in options]).min(axis=0)
    return float(least[FORWARD]), float(least[BACKWARD]), float(least[SYNC]), slowest


def _least_within(amounts: Floats, slowest: Floats) -> Floats:
    """Take the least forward, backward and reduction seconds, (3, T), of the choices, (N, A), with each optimizer."""
    ordered = amounts[amounts[:, OPTIMIZER].argsort(kind="stable")]
    last = np.searchsorted(ordered[:, OPTIMIZER], slowest, side="right") - 1
    return np.asarray(np.minimum.accumulate(ordered[:, :OPTIMIZER])[last].T)


def _promise(one: Tradeoff) -> tuple[float, float]:
    return one.amounts[0] + one.amounts[1], one.amounts[2]
