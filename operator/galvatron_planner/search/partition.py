"""Layers to stages: one pipeline degree and batch split, from quick bounds to the proof that there is no better plan.

What cannot belong to a fast enough plan whatever the layouts (``screening.py``) is left out, the rest is searched
exactly (``joint.py``).

Source of the balance between stages that this replaces: Galvatron-BMW (arXiv 2307.02031), section 4.
"""

from functools import cached_property

import numpy as np

from galvatron_planner.problem import Schedule
from galvatron_planner.search.contents import Stages
from galvatron_planner.search.front import ROUNDING
from galvatron_planner.search.joint import JointSearch, Pipeline, Proof
from galvatron_planner.search.options import BACKWARD, FORWARD, Flags, Floats, Integers, PipelineOptions
from galvatron_planner.search.places import Place
from galvatron_planner.search.screening import ScreenedPipeline, fits_somewhere
from galvatron_planner.search.skeletons import INFINITE

STEPS_PER_OCTAVE = 2
"""Of the numbers of micro-batches in flight that a first look at many stages tells apart."""
MANY_STAGES = 16
REUSED = 1.02
"""A search focused on a limit serves for limits that are lower by less than this factor."""


class PartitionSearch:
    """One pipeline degree and batch split; it has state because what was left out once is never looked at again."""

    def __init__(self, pipeline: Pipeline, options: PipelineOptions) -> None:
        self._pipeline = pipeline
        self._options = options
        self._num_layers = len(options.kinds)
        self._num_stages = pipeline.num_stages
        self._schedule = pipeline.problem.limits.schedule
        self._overhead = pipeline.overhead_seconds
        self._joint: tuple[float, JointSearch] | None = None
        self._screened: dict[int | None, tuple[float, ScreenedPipeline]] = {}

    def first_bounds(self) -> tuple[float, float]:
        """Bound a step without looking at stages: all layers together, in the memory of all devices together.

        However layers are cut, some stage takes its share of the work, and the schedule has its bubble. Every layer
        keeps at least one micro-batch.

        Returns:
            what no plan undercuts, and what equal stages would take.
        """
        m, stages = self._pipeline.split.num_micro_batches, self._num_stages
        budget = self._pipeline.positions()[0].budget_bytes
        largest = max(int(layer.transient.min()) for layer in self._options.layers)
        work = self._options.least_weighted((m, m, 0.0, 0.0), room=stages * budget - largest, num_micro_batches=m)
        equal = work * (m + stages - 1) / stages / m
        # With fewer micro-batches than stages an unequal cut can be a little faster than the formula.
        sure = equal if self._schedule is Schedule.GPIPE or m > stages else work * max(1 / stages, 1 / m)
        least = max(sure, float(self._least_work.max())) * (1 - ROUNDING)
        if stages == 1:
            own = self._options.least_weighted((m, m, 1.0, 1.0), room=budget - largest, num_micro_batches=m)
            least = max(least, own * (1 - ROUNDING))
        return least + self._overhead, max(least, equal) + self._overhead

    def fits(self) -> bool:
        """Tell whether all layers have a place in some cut, as far as that can be told quickly."""
        positions = self._pipeline.positions()
        return fits_somewhere(self._options, self._pipeline.contents, positions, self._allowed(INFINITE))

    def screen(self, cutoff_seconds: float, *, is_coarse: bool = False) -> float:
        """Bound a step whatever the layouts; the cutoff where no step is below it."""
        limit = cutoff_seconds - self._overhead
        steps = STEPS_PER_OCTAVE if is_coarse and self._num_stages >= MANY_STAGES else None
        return self._overhead + self._screen(limit, steps).lower_bound(limit)

    def glance(self, cutoff_seconds: float) -> Proof:
        """Bound a step with regard to layouts, and look for a plan that is faster than the cutoff, quickly."""
        joint = self._focused(cutoff_seconds)
        return Proof(None, cutoff_seconds) if joint is None else joint.glance(cutoff_seconds)

    def run(self, cutoff_seconds: float) -> Proof:
        """Look for a plan that is faster than the cutoff, and prove that there is no other.

        Args:
            cutoff_seconds: of a step; slower plans do not matter.
        """
        joint = self._focused(cutoff_seconds)
        return Proof(None, cutoff_seconds) if joint is None else joint.run(cutoff_seconds)

    def least_peak(self) -> float:
        """Bound the device memory of every cut from below, without the reserve: all layers spread evenly."""
        counts = np.bincount(self._options.kinds, minlength=len(self._options.layers))
        m = self._pipeline.split.num_micro_batches
        kept = sum(int(n * layer.least_kept(m).min()) for n, layer in zip(counts, self._options.layers, strict=True))
        return kept / self._num_stages

    def smallest_peak(self) -> int | None:
        """Find the least device memory with which some cut fits, without the reserve."""
        places: list[Place] = []
        for position, allowed in zip(self._pipeline.positions(), self._allowed(INFINITE), strict=True):
            before = places[-1] if places else None
            places.append(Place(self._options, self._pipeline.contents, position, allowed, before))
        fullest = np.where(np.arange(self._num_layers + 1)[:, None] == self._num_layers, 0.0, INFINITE)
        for place in reversed(places):
            needed = np.maximum(place.peaks(), fullest[place.end][:, None, :])
            fullest = np.full((self._num_layers + 1, place.num_entries), INFINITE)
            if len(place.start):
                least = np.minimum.reduceat(needed.min(axis=2), place.offsets, axis=0)
                fullest[place.start[place.offsets]] = least
        return int(fullest[0, 0]) if fullest[0, 0] < INFINITE else None

    def _screen(self, limit: float, steps_per_octave: int | None = None) -> ScreenedPipeline:
        known = self._screened.get(steps_per_octave)
        if known is None or limit > known[0]:
            screened = ScreenedPipeline(
                self._options,
                self._pipeline.contents,
                self._pipeline.positions(),
                self._allowed(limit),
                schedule=self._schedule,
                steps_per_octave=steps_per_octave,
            )
            self._screened[steps_per_octave] = known = limit, screened
        return known[1]

    def _focused(self, cutoff_seconds: float) -> JointSearch | None:
        """Leave out what no plan below the cutoff has; None where nothing is left of some layer."""
        limit = cutoff_seconds - self._overhead
        if self._joint is None or not limit <= self._joint[0] <= REUSED * limit:
            focused = self._screen(limit).focused(limit)
            if focused is None or focused[0].is_empty:
                return None
            self._joint = limit, JointSearch(self._pipeline, *focused)
        return self._joint[1]

    @cached_property
    def _least_work(self) -> Floats:
        least = self._options.least_seconds
        return np.asarray(self._pipeline.split.num_micro_batches * (least[FORWARD] + least[BACKWARD]))

    def _allowed(self, limit: float) -> list[Stages]:
        """List at every place the stages that are not hopeless by their least work alone."""
        count = self._num_layers
        work = np.concatenate([[0.0], np.cumsum(self._least_work)])
        way = work / self._pipeline.split.num_micro_batches
        start, end = np.nonzero(np.triu(np.ones((count + 1, count + 1), dtype=bool), k=1))
        hopeful = (work[end] - work[start] + way[start]) * (1 - ROUNDING) <= limit
        every = Stages(start[hopeful], end[hopeful])
        return [every.among(self._reachable(k, *every)) for k in range(self._num_stages)]

    def _reachable(self, k: int, start: Integers, end: Integers) -> Flags:
        count, later = self._num_layers, self._num_stages - 1 - k
        begins = start == 0 if k == 0 else start >= k
        ends = end == count if later == 0 else end <= count - later
        return np.asarray(begins & ends)
