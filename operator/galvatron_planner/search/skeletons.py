"""Cuts of a model into stages with the layouts between them: which of them can be fast enough.

A *skeleton* fixes where the model is cut and in which layout each stage leaves. Its bound is the longest of the ways
through the schedule that :func:`schedule_seconds` gives; a dynamic programme over places, from the last to the first,
tells how late each stage may begin, and thereby which skeletons have a bound below a time.
"""

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

import numpy as np

from galvatron_planner.cost.pipeline import in_flight
from galvatron_planner.problem import Schedule
from galvatron_planner.search.front import ROUNDING
from galvatron_planner.search.options import FORWARD, Flags, Floats, Integers, PipelineOptions
from galvatron_planner.search.places import Metric, draining

INFINITE = float("inf")
NUM_BISECTIONS = 30
"""Halvings that find how much work a stage may have."""

StageIndex = tuple[int, int, int]
"""A stage by its index in its place, its entry and its exit."""


@dataclass(frozen=True, slots=True)
class Skeleton:
    """Stages of a pipeline, first to last."""

    stages: tuple[StageIndex, ...]


def schedule_seconds(
    work: Floats,
    onward: Floats,
    *,
    num_micro_batches: int,
    ahead: int,
    schedule: Schedule,
    returning: Floats | float = 0.0,
) -> Floats:
    """Bound what a step takes from where a stage begins to where it ends, from two amounts of time.

    A stage computes all micro-batches. In 1F1B it also waits: with ``ahead`` micro-batches in flight, one way to the
    last stage and back holds up what it could compute meanwhile, at the beginning, at the end, and in between as often
    as its window is emptied. In GPipe every micro-batch passes it forward before the first comes back.

    Args:
        work: all micro-batches and the optimizer on this stage.
        onward: the way of one micro-batch through all later stages and back.
        num_micro_batches: of the step.
        ahead: micro-batches that the stage has in flight at most, in 1F1B.
        schedule: the order of passes.
        returning: passes of one micro-batch on this stage, and its work after the last one. The rest of ``work`` are
            passes of the others: the less they take, the less waiting is hidden behind them.

    Returns:
        seconds; a test holds that they are never more than the schedule takes.
    """
    if schedule is Schedule.GPIPE:
        return work + onward
    window = min(ahead, num_micro_batches)
    emptied = max(0, (num_micro_batches - 1) // window - 1)
    if window == 1 < num_micro_batches:
        return np.asarray(work + (2 + emptied) * onward)
    with np.errstate(invalid="ignore"):  # stages that do not fit take forever
        one = work / num_micro_batches
        if num_micro_batches > 1:
            one = np.minimum(one, np.maximum(0.0, (work - returning) / (num_micro_batches - 1)))
        if num_micro_batches - 1 < window:
            return np.asarray(work + np.maximum(0.0, onward - (num_micro_batches - 1) / 2 * one))
        hidden = (window - 1) * one
        waiting = np.maximum(0.0, 2 * onward - hidden) + emptied * np.maximum(0.0, onward - hidden)
    return np.asarray(work + waiting)


class StageBounds(Protocol):
    """Bounds of all stages of one place; see :class:`~galvatron_planner.search.places.Place`."""

    @property
    def start(self) -> Integers:
        """First layer of each stage, rising, (Q,)."""

    @property
    def end(self) -> Integers:
        """One past the last layer of each, (Q,)."""

    @property
    def offsets(self) -> Integers:
        """Where the stages of each distinct first layer begin."""

    @property
    def seconds(self) -> Floats:
        """By metric, (W, Q, E, X)."""

    @property
    def num_entries(self) -> int:
        """Layouts in which a stage can be entered."""


@dataclass(frozen=True, slots=True)
class _Behind:
    """The least that a place and all later ones take, by first layer and entry, for every place and none.

    Attributes:
        onward: way of one micro-batch through their stages and back.
        busy: time for all their passes. However long the others take, the stage that takes longest works through all
            micro-batches, between the way of the first one to it and the way back of the last.
        settled: ways for which the first stage waits, with the longest optimizer.
    """

    onward: list[Floats]
    busy: list[Floats]
    settled: list[Floats]

    def of(self, k: int, *at: Integers | int) -> tuple[Floats, Floats, Floats]:
        """Give all three of one place, at some first layers and maybe entries."""
        return self.onward[k][at], self.busy[k][at], self.settled[k][at]


@dataclass(frozen=True, slots=True)
class _Ahead:
    """What lies ahead of the stages, per place.

    Attributes:
        limit: of the whole step.
        behind: the stages of each place.
        latest: how late it may begin, by first layer and entry.
        begin: how late each of its stages may begin, (Q, E, X).
    """

    limit: float
    behind: _Behind
    latest: list[Floats]
    begin: list[Floats]


@dataclass(frozen=True, slots=True)
class _Ways:
    """What lies before and behind each stage of a skeleton.

    Attributes:
        own: seconds of each stage by metric, (W,).
        begun: the way of one micro-batch to it, and back from it.
        onward: the way through all later stages and back.
        busy: time from the begin of the next stage to when all later ones have done their passes.
        settled: ways for which the first stage waits, with the longest optimizer of all later ones.
    """

    own: list[Floats]
    begun: list[float]
    onward: list[float]
    busy: list[float]
    settled: list[float]


class Skeletons:
    """All skeletons of one pipeline; their bounds follow the places', which are sharpened on the way."""

    def __init__(
        self, places: Sequence[StageBounds], options: PipelineOptions, *, num_micro_batches: int, schedule: Schedule
    ) -> None:
        self._places = places
        least = np.cumsum(options.least_seconds[FORWARD])
        self._least_forward = np.concatenate([[0.0], least]) * (1 - ROUNDING)
        self._num_layers = len(options.kinds)
        self._num_micro_batches = num_micro_batches
        self._schedule = schedule
        held = in_flight(schedule, stage_index=0, num_stages=len(places), num_micro_batches=num_micro_batches)
        self._num_ways = draining(num_micro_batches, held)[2]

    def lowest(self, limit: float, *, resolution: float = ROUNDING) -> Skeleton | None:
        """Find the skeleton of lowest bound below the limit.

        There is none whose bound is lower by more than ``resolution``, relative to the bound.
        """
        found, behind = None, self._behind()
        while (skeleton := next(self._extended_below(limit, behind), None)) is not None:
            found = skeleton
            # From the bound of what was found on downwards, until nothing is below: few steps, for bounds are few.
            limit = self._bound(skeleton, behind) * (1 - resolution)
        return found

    def _behind(self) -> _Behind:
        """Work out what lies behind each place, from the last one on."""
        nothing = np.zeros((self._num_layers + 1, 1))
        onward, busy, settled = [nothing], [nothing], [nothing]
        for place in reversed(self._places):
            own, last = place.seconds[Metric.TRAVERSAL], place.seconds[Metric.DRAIN]
            later, working, settling = (one[-1][place.end][:, None, :] for one in (onward, busy, settled))
            onward.append(self._least(place, own + later))
            busy.append(self._least(place, np.maximum(self._num_micro_batches * own, own + working)))
            settling = np.maximum(last + self._num_ways * later, self._num_ways * own + settling)
            settled.append(self._least(place, settling))
        return _Behind(onward[::-1], busy[::-1], settled[::-1])

    def _least(self, place: StageBounds, amounts: Floats) -> Floats:
        """Take the least of the stages with each first layer, by entry."""
        least = np.full((self._num_layers + 1, place.num_entries), INFINITE)
        if len(place.start):
            starts = place.start[place.offsets]
            least[starts] = np.minimum.reduceat(amounts.min(axis=2), place.offsets, axis=0)
        return least

    def _followed(self, limit: float, behind: _Behind) -> _Ahead:
        """Tell how late stages may begin so that all that follows ends within the limit."""
        at_end = np.full((self._num_layers + 1, 1), limit)
        ahead = _Ahead(limit, behind, [at_end] * (len(self._places) + 1), [at_end] * len(self._places))
        for k in reversed(range(len(self._places))):
            place = self._places[k]
            begin = ahead.begin[k] = self._latest_begin(k, place.seconds, ahead)
            ahead.latest[k] = np.full((self._num_layers + 1, place.num_entries), -INFINITE)
            if len(place.start):
                starts = place.start[place.offsets]
                ahead.latest[k][starts] = np.maximum.reduceat(begin.max(axis=2), place.offsets, axis=0)
        return ahead

    def _latest_begin(self, k: int, seconds: Floats, ahead: _Ahead) -> Floats:
        """Tell how late stages of a place may begin if they take ``seconds``, (W, Q, E, ...); -infinity for never."""
        place = self._places[k]
        onward, busy, settled = (one[:, None, :] for one in ahead.behind.of(k + 1, place.end))
        passing = self._passed(k, seconds, onward, busy, settled)
        with np.errstate(invalid="ignore"):  # infinity minus infinity: a stage that does not fit
            latest = ahead.latest[k + 1][place.end][:, None, :]
            begin = np.minimum(ahead.limit - passing, latest - seconds[Metric.TRAVERSAL])
        late = self._least_forward[place.start][:, None, None] + seconds[Metric.FINISH] > ahead.limit
        return np.where(late | np.isnan(begin), -INFINITE, begin)

    def usable(self, limit: float, alternatives: Sequence[Floats]) -> list[Flags]:
        """Tell which alternatives of which stages belong to some skeleton with a bound below the limit.

        Args:
            limit: of the skeleton.
            alternatives: per place other seconds of its stages, (W, Q, E, any number); layouts must not be told apart.

        Returns:
            per place, (Q, any number).
        """
        ahead, begun = self._followed(limit, self._behind()), np.zeros((self._num_layers + 1, 1))
        begun[1:] = INFINITE
        found: list[Flags] = []
        for k, (place, seconds) in enumerate(zip(self._places, alternatives, strict=True)):
            begins = begun[place.start][:, :, None]
            found.append(np.asarray((self._latest_begin(k, seconds, ahead) >= begins).any(axis=1)))
            ways = begins + place.seconds[Metric.TRAVERSAL]
            begun = np.full((self._num_layers + 1, place.seconds.shape[3]), INFINITE)
            np.minimum.at(begun, place.end, ways.min(axis=1))
        return found

    def below(self, limit: float, solved: Set[Skeleton] = frozenset()) -> Iterator[Skeleton]:
        """Give the skeletons but the solved ones whose bound is below the limit, depth first, most slack first."""
        return (one for one in self._extended_below(limit, self._behind()) if one not in solved)

    def _extended_below(self, limit: float, behind: _Behind) -> Iterator[Skeleton]:
        return self._extended(self._followed(limit, behind).begin, (), start=0, begun=0.0)

    def _extended(
        self, slack: Sequence[Floats], before: tuple[StageIndex, ...], *, start: int, begun: float
    ) -> Iterator[Skeleton]:
        k = len(before)
        if k == len(self._places):
            yield Skeleton(before)
            return
        place, entry = self._places[k], before[-1][2] if before else 0
        first, last = np.searchsorted(place.start, [start, start + 1])
        among = slack[k][first:last, entry]
        rows, exits = np.nonzero(among >= begun)
        for index in np.argsort(-among[rows, exits], kind="stable"):
            stage, leaving = int(first + rows[index]), int(exits[index])
            one = (stage, entry, leaving)
            way = float(place.seconds[Metric.TRAVERSAL][one])
            yield from self._extended(slack, (*before, one), start=int(place.end[stage]), begun=begun + way)

    def bound_of(self, skeleton: Skeleton) -> float:
        """Give the limit at which a skeleton drops out."""
        return self._bound(skeleton, self._behind())

    def _bound(self, skeleton: Skeleton, behind: _Behind) -> float:
        begun = bound = 0.0
        for k, one in enumerate(skeleton.stages):
            place, (stage, _, leaving) = self._places[k], one
            later = behind.of(k + 1, int(place.end[stage]), leaving)
            passing = float(self._passed(k, place.seconds[:, *one], *later))
            finish = float(self._least_forward[place.start[stage]] + place.seconds[Metric.FINISH][one])
            bound = max(bound, begun + passing, finish)
            begun += float(place.seconds[Metric.TRAVERSAL][one])
        return bound

    def ceilings(self, skeleton: Skeleton, k: int, limit: float) -> dict[Metric, float]:
        """Give what a stage may come to so that the bound of its skeleton stays below the limit."""
        ways = self._ways(skeleton)
        own, begun, onward, busy, settled = ways.own, ways.begun, ways.onward, ways.busy, ways.settled
        later = [limit - self._ended(ways, j) for j in range(k + 1, len(own))]
        low, high, tried = float(own[k][Metric.WORK]), limit, own[k].copy()
        for _ in range(NUM_BISECTIONS):
            middle = (low + high) / 2
            tried[Metric.WORK] = middle
            within = begun[k] + self._passed(k, tried, onward[k], busy[k], settled[k]) <= limit
            low, high = (middle, high) if within else (low, middle)
        first = int(self._places[k].start[skeleton.stages[k][0]])
        traversal = float(own[k][Metric.TRAVERSAL]) + max(0.0, min(later, default=limit))
        others = self._num_ways * (onward[0] - float(own[k][Metric.TRAVERSAL]))
        return {
            Metric.FINISH: limit - float(self._least_forward[first]),
            Metric.WORK: high,
            Metric.TRAVERSAL: traversal,
            Metric.RETURN: limit - begun[k] - busy[k],
            Metric.DRAIN: limit - (float(own[0][Metric.PASSES]) + others if k else self._num_ways * onward[0]),
            Metric.PASSES: traversal if k else limit - settled[0],
        }

    def own_bound(self, skeleton: Skeleton) -> float:
        """Bound a skeleton by its own later stages; at least :meth:`bound_of`, which takes the quickest of all."""
        ways = self._ways(skeleton)
        return max(self._ended(ways, k) for k in range(len(ways.own)))

    def _ended(self, ways: _Ways, k: int) -> float:
        """Tell when a step ends as far as that is decided by one stage and the ways to it and behind it."""
        return ways.begun[k] + float(self._passed(k, ways.own[k], ways.onward[k], ways.busy[k], ways.settled[k]))

    def _ways(self, skeleton: Skeleton) -> _Ways:
        own = [place.seconds[:, *one] for place, one in zip(self._places, skeleton.stages, strict=True)]
        traversals = [float(one[Metric.TRAVERSAL]) for one in own]
        begun = list(accumulate(traversals, initial=0.0))
        onward, busy, settled = [begun[-1] - one for one in begun[1:]], [0.0], [0.0]
        for k in reversed(range(1, len(own))):
            traversal, last = traversals[k], float(own[k][Metric.DRAIN])
            busy.append(max(self._num_micro_batches * traversal, traversal + busy[-1]))
            settled.append(max(last + self._num_ways * onward[k], self._num_ways * traversal + settled[-1]))
        return _Ways(own, begun[:-1], onward, busy[::-1], settled[::-1])

    def _passed(
        self, k: int, seconds: Floats, onward: Floats | float, busy: Floats | float, settled: Floats | float
    ) -> Floats:
        """Bound what a step takes from where a stage begins, with what all later ones take; seconds by metric."""
        scheduled = schedule_seconds(
            seconds[Metric.WORK],
            np.asarray(onward),
            num_micro_batches=self._num_micro_batches,
            ahead=len(self._places) - k,
            schedule=self._schedule,
            returning=seconds[Metric.RETURN],
        )
        passed = np.maximum(scheduled, seconds[Metric.RETURN] + busy)
        if k == 0:
            passed = np.maximum(passed, seconds[Metric.DRAIN] + self._num_ways * onward)
            passed = np.maximum(passed, seconds[Metric.PASSES] + settled)
        return np.asarray(passed)
