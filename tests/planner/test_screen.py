"""The screen against every choice of small stages, the exact stage search, random plans, and by hand."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from math import prod

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as generate

import builders
from galvatron_planner.cost.prices import PriceList, StagePosition
from galvatron_planner.search.contents import Contents
from galvatron_planner.search.options import Floats, Integers, LayerOptions, PipelineOptions
from galvatron_planner.search.places import Metric, Place, Position
from galvatron_planner.search.screen import Screen
from galvatron_planner.strategy import LayerStrategy, Layout
from pipelines import DEEP, ROUNDED, SMALL, WIDE, Case, cases

SOME = settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
MANY = settings(SOME, max_examples=400)

MAX_CHOICES = 400
"""Of one stage, all of which are looked at."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of a case that can be looked at choice by choice."""

    case: Case
    k: int
    start: int
    end: int

    @property
    def kinds(self) -> tuple[int, ...]:
        return self.case.options.kinds[self.start : self.end]

    @property
    def content(self) -> int:
        return int(self.case.pipeline.contents.table[self.start, self.end - self.start])

    @property
    def entries(self) -> list[Layout | None]:
        if self.k == 0:
            return [None]
        options = self.case.options
        return [options.layouts[state] for state in options.layers[options.kinds[self.start - 1]].own_states]

    @property
    def num_choices(self) -> int:
        return len(self.entries) * prod(len(self.case.options.layers[kind].strategies) for kind in self.kinds)

    def every_choice(self) -> Iterator[tuple[tuple[int, ...], Floats]]:
        """List whatever fits: options of the layers, and seconds by metric."""
        pipeline, layers = self.case.pipeline, self.case.layers[self.start : self.end]
        position = pipeline.positions()[self.k]
        of_kind = [self.case.options.layers[kind].strategies for kind in self.kinds]
        for entry, chosen in product(dict.fromkeys(self.entries), product(*(range(len(some)) for some in of_kind))):
            strategies = tuple(some[index] for some, index in zip(of_kind, chosen, strict=True))
            place = StagePosition(
                micro_batch_size=pipeline.split.micro_batch_size,
                in_flight=position.in_flight,
                holds_all=position.in_flight == pipeline.split.num_micro_batches,
                entry=entry,
                feeds_next=not position.is_last,
            )
            cost = pipeline.prices.stage(layers, strategies, place)
            if cost.peak_bytes <= position.budget_bytes:
                yield chosen, self.case.metrics(self.k, self.start, self.end, cost, entry)


@generate.composite
def small_stages(draw: generate.DrawFn) -> Stage:
    case = draw(cases(SMALL))
    every = [
        Stage(case, k, int(start), int(end))
        for k, own in enumerate(case.stages())
        for start, end in zip(*own, strict=True)
    ]
    few = [one for one in every if one.num_choices <= MAX_CHOICES]
    assume(few)
    return draw(generate.sampled_from(few))


def assert_no_choice_is_faster(stage: Stage) -> None:
    bounds = stage.case.screen.seconds(np.array([stage.content]))[:, stage.k, 0]
    for _, seconds in stage.every_choice():
        assert (bounds <= seconds * ROUNDED).all()


def assert_no_choice_with_an_option_is_faster(stage: Stage) -> None:
    kinds, wanted = sorted(set(stage.kinds)), np.array([stage.content])
    bounds = {kind: stage.case.screen.with_options(stage.k, kind, wanted)[:, 0] for kind in kinds}
    for chosen, seconds in stage.every_choice():
        for kind, option in zip(stage.kinds, chosen, strict=True):
            assert (bounds[kind][:, option] <= seconds * ROUNDED).all()


@SOME
@given(small_stages())
def test_no_choice_of_a_stage_undercuts_its_bound(stage: Stage) -> None:
    assert_no_choice_is_faster(stage)


@SOME
@given(small_stages())
def test_no_choice_with_an_option_undercuts_the_bound_of_the_option(stage: Stage) -> None:
    assert_no_choice_with_an_option_is_faster(stage)


@pytest.mark.slow
@MANY
@given(small_stages())
def test_no_choice_of_many_stages_undercuts_a_bound(stage: Stage) -> None:
    assert_no_choice_is_faster(stage)
    assert_no_choice_with_an_option_is_faster(stage)


def assert_no_exact_stage_is_faster(case: Case, picked: int) -> None:
    """Solve one stage of every place for all its entries and exits."""
    before: Place | None = None
    for k, (own, position) in enumerate(zip(case.stages(), case.pipeline.positions(), strict=True)):
        place = Place(case.options, case.pipeline.contents, position, own, before).bound()
        stage = picked % len(own.start)
        bounds = case.screen.seconds(place.content[[stage]])[:, k, 0]
        for metric, entry, leaving in product(Metric, range(place.num_entries), range(len(place.exits))):
            place.solve(metric, stage, entry, leaving)
        assert (bounds <= place.seconds[:, stage].min(axis=(1, 2)) * ROUNDED).all()
        before = place


@SOME
@given(cases(SMALL | WIDE, num_stages=(1, 2)), generate.integers(0, 1 << 20))
def test_no_exact_stage_undercuts_its_bound(case: Case, picked: int) -> None:
    assert_no_exact_stage_is_faster(case, picked)


@SOME
@given(cases(WIDE | DEEP))
def test_no_stage_of_a_plan_undercuts_its_bounds(case: Case) -> None:
    screen, kinds = case.screen, case.options.kinds
    for k, start, end, seconds in case.priced_stages():
        content = case.pipeline.contents.table[start, [end - start]]
        assert (screen.seconds(content)[:, k, 0] <= seconds * ROUNDED).all()
        for kind, strategy in zip(kinds[start:end], case.plan[k], strict=True):
            option = case.options.layers[kind].strategies.index(strategy)
            assert (screen.with_options(k, kind, content)[:, 0, option] <= seconds * ROUNDED).all()


TENSOR, DATA = Layout(1, 2, 1), Layout(2, 1, 1)
TOGETHER, APART = np.array([[0, 1]]), np.array([[0], [1]])
"""Two options that lead into one state, or into one each."""


def layer(*options: tuple[float, int], slots: Integers, ahead: int = 0, leaving_bytes: int = 0) -> LayerOptions:
    """A layer that takes so many seconds in its forward pass, keeps so many bytes, and works with 2 more."""
    seconds, kept = zip(*options, strict=True)
    none = np.zeros(len(options), dtype=np.int64)
    return LayerOptions(
        strategies=tuple(LayerStrategy.parse(text) for text in ("tp2", "dp2")[: len(options)]),
        state=np.array([np.nonzero(slots == option)[0][0] for option in range(len(options))]),
        seconds=np.array([seconds, none, none, none]),
        state_bytes=np.array(kept),
        activation_bytes=none,
        reused_bytes=none,
        transient=none + 2,
        ahead=np.full(len(slots), ahead),
        slots=slots,
        leaving_bytes=leaving_bytes,
    )


def whole(kinds: tuple[int, ...], *layers: LayerOptions, budget_bytes: int) -> tuple[Screen, Integers]:
    """All layers as the only stage of one micro-batch, between two devices that exchange anything in a second."""
    problem = builders.problem()
    links = tuple(
        link.model_copy(update={"samples": tuple(one.model_copy(update={"seconds": 1.0}) for one in link.samples)})
        for link in problem.profile.links
    )
    profile = problem.profile.model_copy(update={"links": links})
    prices = PriceList.of(problem.model_copy(update={"profile": profile}))
    options = PipelineOptions(prices, kinds, layers, (TENSOR, DATA)[: len(layers[0].slots)])
    alone = Position(
        stage_index=0,
        num_micro_batches=1,
        in_flight=1,
        first_in_flight=1,
        budget_bytes=budget_bytes,
        is_first=True,
        is_last=True,
    )
    contents = Contents(kinds)
    return Screen(options, contents, [alone]), contents.table[0, [len(kinds)]]


@pytest.mark.parametrize(
    ("budget_bytes", "bound"), [(32, 6.0), (27, 6 + 5 / 6), (26, 7.0), (14, 9.0), (13, float("inf"))]
)
def test_layers_that_save_memory_by_hand(budget_bytes: int, bound: float) -> None:
    # Three layers, each 2 s and 10 bytes or 3 s and 4 bytes; 2 bytes of working memory. All fast they take 6 s and
    # 32 bytes. What the budget lacks is saved for 1 s per 6 bytes, up to 18 bytes.
    screen, wanted = whole((0, 0, 0), layer((2.0, 10), (3.0, 4), slots=TOGETHER), budget_bytes=budget_bytes)
    assert screen.seconds(wanted)[Metric.WORK, 0, 0] == pytest.approx(bound, rel=1e-12)


@pytest.mark.parametrize(("budget_bytes", "bounds"), [(32, [6.0, 7.0]), (26, [7.0, 7.0]), (14, [float("inf"), 9.0])])
def test_options_that_save_memory_by_hand(budget_bytes: int, bounds: list[float]) -> None:
    # The same layers: with all memory one light layer takes a second more; with 6 bytes less some layer is light in any
    # case; and where all must be light, one that is fast is 6 bytes too large.
    screen, wanted = whole((0, 0, 0), layer((2.0, 10), (3.0, 4), slots=TOGETHER), budget_bytes=budget_bytes)
    assert screen.with_options(0, 0, wanted)[Metric.WORK, 0] == pytest.approx(bounds, rel=1e-12)


def test_a_change_of_layout_by_hand() -> None:
    # One layer takes 1 s in tp2 and 2 s in dp2, the next the other way round, and a change of layout 1 s: 3 s in any
    # case. The pair costs 0.5 + 1 (both in one layout) or 0.5 + 1 + 0.5, the halves before and behind it 0.5 each.
    layers = layer((1.0, 0), (2.0, 0), slots=APART), layer((2.0, 0), (1.0, 0), slots=APART)
    screen, wanted = whole((0, 1), *layers, budget_bytes=100)
    assert screen.seconds(wanted)[Metric.WORK, 0, 0] == pytest.approx(2.5, rel=1e-12)


@pytest.mark.parametrize(("budget_bytes", "fits"), [(15, True), (14, False)])
def test_what_is_gathered_ahead_by_hand(budget_bytes: int, fits: bool) -> None:  # noqa: FBT001
    # Both layers keep 4 bytes; the second one works with 2 while 5 bytes of the first are gathered.
    screen, wanted = whole((0, 0), layer((1.0, 4), slots=np.array([[0]]), ahead=5), budget_bytes=budget_bytes)
    assert screen.fits(wanted).item() is fits
    assert np.isfinite(screen.seconds(wanted)).all().item() is fits


@pytest.mark.parametrize(("budget_bytes", "fits"), [(20, True), (19, False)])
def test_what_moves_between_layers_by_hand(budget_bytes: int, fits: bool) -> None:  # noqa: FBT001
    # Each keeps 4 bytes. Of the 8 that go from tp2 to dp2 a device holds all and wants a half: 12 bytes, more than the
    # 2 + 5 with which the second layer works, and not at the same time.
    first = layer((1.0, 4), slots=np.array([[0], [1]]), ahead=5, leaving_bytes=8)
    second = layer((1.0, 4), slots=np.array([[1], [0]]))
    screen, wanted = whole((0, 1), first, second, budget_bytes=budget_bytes)
    assert screen.fits(wanted).item() is fits
    assert np.isfinite(screen.seconds(wanted)).all().item() is fits
