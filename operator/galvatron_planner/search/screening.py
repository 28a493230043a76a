"""What of one pipeline can belong to a fast plan: cuts whose stages are quick enough, and the strategies in them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import log2

import numpy as np

from galvatron_planner.problem import Schedule
from galvatron_planner.search.contents import Contents, Stages
from galvatron_planner.search.options import Flags, Floats, Integers, PipelineOptions, rising
from galvatron_planner.search.places import Position
from galvatron_planner.search.screen import Screen
from galvatron_planner.search.skeletons import Skeletons

RESOLUTION = 1e-3
"""Relative accuracy of the bounds of whole steps."""
FEW_STATES = 6
"""Up to so many states it takes longer to leave options out than to search among all."""


@dataclass(frozen=True, slots=True)
class ScreenedPlace:
    """Stages of one place, layouts aside: the attributes of :class:`~galvatron_planner.search.places.Place`."""

    start: Integers
    end: Integers
    offsets: Integers
    seconds: Floats
    content: Integers
    num_entries: int = 1


class ScreenedPipeline:
    """One pipeline, bounded; it has state because bounds are worked out once."""

    def __init__(
        self,
        options: PipelineOptions,
        contents: Contents,
        positions: Sequence[Position],
        stages: Sequence[Stages],
        *,
        schedule: Schedule,
        steps_per_octave: int | None = None,
    ) -> None:
        """Bound all allowed stages.

        Args:
            options: what layers may choose.
            contents: of the model.
            positions: of the places, all with the same budget.
            stages: that can stand at each place.
            schedule: of the step.
            steps_per_octave: places whose micro-batches in flight differ by less share the bound of the least.
        """
        self._options = options
        self._classes, representatives = _classes(options, positions, steps_per_octave)
        self._screen = Screen(options, contents, representatives)
        held = [contents.of(own) for own in stages]
        wanted = rising(np.concatenate(held))
        seconds = self._screen.seconds(wanted)
        self._places = [
            _place(own, content, seconds[:, self._classes[k]][:, np.searchsorted(wanted, content), None, None])
            for k, (own, content) in enumerate(zip(stages, held, strict=True))
        ]
        self._num_micro_batches = positions[0].num_micro_batches
        self._schedule = schedule

    @cached_property
    def _skeletons(self) -> Skeletons:
        return self._of(self._places)

    def lower_bound(self, limit: float) -> float:
        """Bound a step from below; the limit itself where none is below it."""
        skeleton = self._skeletons.lowest(limit, resolution=RESOLUTION)
        return limit if skeleton is None else self._skeletons.bound_of(skeleton) * (1 - RESOLUTION)

    def focused(self, limit: float) -> tuple[PipelineOptions, list[Stages]] | None:
        """Leave out the options and stages that belong to no step below the limit.

        Returns:
            the other options and stages; None where nothing is below the limit.
        """
        usable = self._skeletons.usable(limit, [place.seconds for place in self._places])
        if not usable[0].any():
            return None
        places = [_among(place, flags[:, 0]) for place, flags in zip(self._places, usable, strict=True)]
        left = [Stages(place.start, place.end) for place in places]
        if len(self._options.layouts) <= FEW_STATES:
            return self._options, left
        skeletons = self._of(places)
        kept = [self._usable(skeletons, places, kind, limit) for kind in range(len(self._options.layers))]
        return self._options.restricted(kept), left

    def _of(self, places: Sequence[ScreenedPlace]) -> Skeletons:
        return Skeletons(places, self._options, num_micro_batches=self._num_micro_batches, schedule=self._schedule)

    def _usable(self, skeletons: Skeletons, places: Sequence[ScreenedPlace], kind: int, limit: float) -> Flags:
        alternatives = [self._with_options(k, place, kind) for k, place in enumerate(places)]
        return np.asarray(np.concatenate(skeletons.usable(limit, alternatives)).any(axis=0))

    def _with_options(self, k: int, place: ScreenedPlace, kind: int) -> Floats:
        wanted = rising(place.content)
        index = np.searchsorted(wanted, place.content)
        return np.asarray(self._screen.with_options(self._classes[k], kind, wanted)[:, index, None, :])


def fits_somewhere(
    options: PipelineOptions, contents: Contents, positions: Sequence[Position], stages: Sequence[Stages]
) -> bool:
    """Tell whether some cut can fit, layouts aside."""
    classes, representatives = _classes(options, positions, None)
    fits = Screen(options, contents, representatives).fits(np.arange(len(contents.distinct)))
    begins = np.zeros(len(options.kinds) + 1, dtype=bool)
    begins[0] = True
    for k, own in enumerate(stages):
        fitting = own.among(begins[own.start] & fits[classes[k], contents.of(own)])
        begins = np.zeros(len(begins), dtype=bool)
        begins[fitting.end] = True
    return bool(begins.any())


def _classes(
    options: PipelineOptions, positions: Sequence[Position], steps_per_octave: int | None
) -> tuple[list[int], list[Position]]:
    """Tell which places share their bounds, and by which position each class of them is bounded."""
    members: dict[tuple[object, ...], list[int]] = {}
    for k, one in enumerate(positions):
        held = one.in_flight if steps_per_octave is None else int(steps_per_octave * log2(one.in_flight))
        pairs = [options.pairs_behind(index) for index in (max(k - 1, 0), k)]
        members.setdefault((held, one.is_first, one.is_last, *pairs), []).append(k)
    classes = [0] * len(positions)
    for index, places in enumerate(members.values()):
        for k in places:
            classes[k] = index
    return classes, [min((positions[k] for k in places), key=lambda one: one.in_flight) for places in members.values()]


def _place(stages: Stages, content: Integers, seconds: Floats) -> ScreenedPlace:
    offsets = np.flatnonzero(np.diff(stages.start, prepend=-1))
    return ScreenedPlace(start=stages.start, end=stages.end, offsets=offsets, seconds=seconds, content=content)


def _among(place: ScreenedPlace, left: Flags) -> ScreenedPlace:
    stages = Stages(place.start, place.end).among(left)
    return _place(stages, place.content[left], place.seconds[:, left])
