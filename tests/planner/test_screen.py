"""The screen against every choice of small stages, against random plans, and against the exact search of pipelines."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from math import prod
from typing import TypeVar

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as generate

import builders
import instances
import oracles
from galvatron_planner import families, space
from galvatron_planner.cost.prices import PriceList, StageCost, StagePosition
from galvatron_planner.cost.step import BatchSplit, StageStrategies, price_step, stage_costs
from galvatron_planner.model import LayerSpec
from galvatron_planner.plan import Estimate
from galvatron_planner.problem import BatchRange, PlanningProblem, SearchLimits
from galvatron_planner.search.contents import Contents, Stages
from galvatron_planner.search.joint import JointSearch, Pipeline
from galvatron_planner.search.options import Floats, Integers, LayerOptions, PipelineOptions
from galvatron_planner.search.places import Metric, Place, Position
from galvatron_planner.search.request import pipeline_degrees
from galvatron_planner.search.screen import Screen
from galvatron_planner.search.screening import FEW_STATES, ScreenedPipeline, fits_somewhere
from galvatron_planner.strategy import LayerStrategy, Layout
from tables import every_split

Picked = TypeVar("Picked")

CHECKS = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
SOME = settings(max_examples=25, suppress_health_check=CHECKS)
MANY = settings(SOME, max_examples=400)

MAX_CHOICES = 400
"""Of one stage, all of which are looked at."""
ROUNDED = 1 + 1e-9
"""What a bound may exceed by, for sums are rounded."""


@dataclass(frozen=True, slots=True)
class Case:
    """A pipeline and a plan that fits it.

    Attributes:
        pipeline: the memory of its devices is just enough for the plan, or some more.
        options: what its layers may choose.
        plan: the strategies of its stages.
        estimate: what the plan takes.
    """

    pipeline: Pipeline
    options: PipelineOptions
    plan: StageStrategies
    estimate: Estimate

    @property
    def layers(self) -> tuple[LayerSpec, ...]:
        return families.layers(self.pipeline.problem.model)

    @property
    def screen(self) -> Screen:
        return Screen(self.options, self.pipeline.contents, self.pipeline.positions())

    @property
    def seconds(self) -> float:
        """Of a step of the plan, without overhead."""
        return self.estimate.step_seconds - self.pipeline.overhead_seconds

    def stages(self) -> list[Stages]:
        """List at every place the stages that leave a layer to every other place."""
        count, last = len(self.layers), self.pipeline.num_stages - 1
        start, end = np.nonzero(np.triu(np.ones((count + 1, count + 1), dtype=bool), k=1))
        return [
            Stages(start, end).among(
                (start == 0 if k == 0 else start >= k) & (end == count if k == last else end <= count - last + k)
            )
            for k in range(last + 1)
        ]

    def screened(self, steps_per_octave: int | None = None) -> ScreenedPipeline:
        return ScreenedPipeline(
            self.options,
            self.pipeline.contents,
            self.pipeline.positions(),
            self.stages(),
            schedule=self.pipeline.problem.limits.schedule,
            steps_per_octave=steps_per_octave,
        )

    def optimum(self, options: PipelineOptions, stages: Sequence[Stages]) -> float:
        """Seconds of the best step, without overhead, if that is proven."""
        # The known plan is below the cutoff, so that there is something to find.
        proof = JointSearch(self.pipeline, options, stages).run(self.estimate.step_seconds * 1.01 + 1e-9)
        assert proof.best is not None
        step = proof.best.estimate.step_seconds
        assume(proof.lower_bound * ROUNDED**2 >= step)
        return step - self.pipeline.overhead_seconds

    def priced_stages(self) -> Iterator[tuple[int, int, int, Floats]]:
        """List the plan's stages: place, first layer, one past the last, and seconds by metric."""
        pipeline, entry, start = self.pipeline, None, 0
        for k, cost in enumerate(stage_costs(pipeline.prices, pipeline.problem, self.plan, pipeline.split)):
            end = start + len(self.plan[k])
            yield k, start, end, self.metrics(k, start, end, cost, entry)
            entry, start = cost.exit_layout, end

    def metrics(self, k: int, start: int, end: int, cost: StageCost, entry: Layout | None) -> Floats:
        """Weigh the seconds of a stage, transfers included, by metric."""
        prices, size, last = self.pipeline.prices, self.pipeline.split.micro_batch_size, self.pipeline.num_stages - 1
        there = back = 0.0
        if entry is not None:
            there = prices.hop_seconds(entry, prices.leaving_bytes(self.layers[start - 1], size), stage_index=k - 1)
        if k < last:
            back = prices.hop_seconds(cost.exit_layout, prices.leaving_bytes(self.layers[end - 1], size), stage_index=k)
        passes = cost.forward_seconds + there, cost.backward_seconds + back, cost.sync_seconds, cost.optimizer_seconds
        return np.array([self.pipeline.positions()[k].weights(metric) for metric in Metric]) @ passes


@generate.composite
def problems(draw: generate.DrawFn, shapes: Sequence[tuple[int, int]]) -> PlanningProblem:
    """Problems that are hard on purpose, of any size."""

    def pick(some: Sequence[Picked]) -> Picked:
        return draw(generate.sampled_from(some))

    return instances.small_problem(pick, shapes=shapes, max_plans=1 << 200)


@generate.composite
def wide_problems(draw: generate.DrawFn) -> PlanningProblem:
    """Problems of stages with many devices, on which layers have many strategies."""
    problem = draw(problems(((1, 8), (2, 8), (4, 8), (2, 16), (4, 16))))
    limits = SearchLimits(schedule=problem.limits.schedule)
    return problem.model_copy(update={"limits": limits, "batch": BatchRange(minimum=16, maximum=16)})


SMALL = problems(((1, 1), (2, 1), (1, 2), (2, 2), (3, 2), (1, 4), (2, 4), (4, 4), (2, 8)))
DEEP = problems(((3, 4), (6, 4), (6, 8), (10, 8), (7, 16)))
WIDE = wide_problems()


@generate.composite
def cases(
    draw: generate.DrawFn, asked: generate.SearchStrategy[PlanningProblem], *, num_stages: Sequence[int] = (1, 2, 4, 8)
) -> Case:
    problem = draw(asked)
    layers, prices = families.layers(problem.model), PriceList.of(problem)
    every = [(degree, split) for degree, split in _pipelines(problem) if degree in num_stages]
    assume(every)
    degree, split = draw(generate.sampled_from(every))
    strategies = _strategies(problem, degree)
    options = PipelineOptions.of(prices, layers, strategies, micro_batch_size=split.micro_batch_size)
    chosen = [draw(generate.sampled_from(options.layers[kind].strategies)) for kind in options.kinds]
    inner = sorted(draw(generate.permutations(range(1, len(layers))))[: degree - 1])
    plan = tuple(tuple(chosen[i:j]) for i, j in pairwise((0, *inner, len(layers))))
    estimate = price_step(prices, problem, plan, split)
    memory = estimate.peak_bytes * draw(generate.sampled_from((1, 1, 2))) + draw(generate.sampled_from((0, 1)))
    pipeline = Pipeline(oracles.with_memory(problem, memory), prices, Contents(options.kinds), split, degree)
    return Case(pipeline, options, plan, estimate)


def _pipelines(problem: PlanningProblem) -> Iterator[tuple[int, BatchSplit]]:
    """List the degrees and splits for which every layer has a strategy."""
    for degree in pipeline_degrees(problem.cluster, problem.limits, len(families.layers(problem.model))):
        least = [min((s.data_degree for s in some), default=0) for some in _strategies(problem, degree).values()]
        for split in every_split(problem.batch):
            # Degrees are powers of two: what the least divides is divided by one strategy at least.
            if all(one and split.micro_batch_size % one == 0 for one in least):
                yield degree, split


def _strategies(problem: PlanningProblem, degree: int) -> dict[LayerSpec, tuple[LayerStrategy, ...]]:
    num_devices = problem.cluster.num_devices // degree
    return {
        layer: space.strategies(num_devices, problem.limits, layer).strategies
        for layer in families.layers(problem.model)
    }


def posed(problem: PlanningProblem, *plan: str, num_micro_batches: int = 1) -> Case:
    """Pose a plan, a text a stage, for a problem as it is."""
    layers, prices = families.layers(problem.model), PriceList.of(problem)
    split = BatchSplit(problem.batch.maximum, num_micro_batches)
    stages = tuple(tuple(LayerStrategy.parse(text) for text in stage.split()) for stage in plan)
    options = PipelineOptions.of(
        prices, layers, _strategies(problem, len(plan)), micro_batch_size=split.micro_batch_size
    )
    pipeline = Pipeline(problem, prices, Contents(options.kinds), split, len(plan))
    return Case(pipeline, options, stages, price_step(prices, problem, stages, split))


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
                pipeline.split.micro_batch_size, position.in_flight, entry, feeds_next=not position.is_last
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


@SOME
@given(cases(WIDE | DEEP))
def test_what_fits_is_not_left_out(case: Case) -> None:
    contents = case.pipeline.contents
    fits = case.screen.fits(np.arange(len(contents.distinct)))
    assert all(fits[k, contents.table[start, end - start]] for k, start, end, _ in case.priced_stages())
    assert fits_somewhere(case.options, contents, case.pipeline.positions(), case.stages())


def test_without_memory_nothing_fits_anywhere() -> None:
    problem = builders.problem(on=builders.cluster(4, device_memory_bytes=1))
    case = posed(problem, "dp2 dp2", "dp2 dp2")
    assert not fits_somewhere(case.options, case.pipeline.contents, case.pipeline.positions(), case.stages())
    assert case.screened().focused(1e9) is None
    assert case.screened().lower_bound(1e9) == 1e9


@SOME
@given(cases(SMALL | WIDE | DEEP), generate.sampled_from([None, 1, 2]))
def test_no_plan_undercuts_the_bound_of_its_pipeline(case: Case, steps_per_octave: int | None) -> None:
    bound = case.screened(steps_per_octave).lower_bound(2 * case.seconds)
    assert bound <= case.seconds * ROUNDED


@SOME
@given(cases(SMALL | DEEP))
def test_no_optimum_undercuts_the_bound_of_its_pipeline(case: Case) -> None:
    optimum = case.optimum(case.options, case.stages())
    for steps_per_octave in (None, 1, 2):
        bound = case.screened(steps_per_octave).lower_bound(1.1 * case.seconds)
        assert bound <= optimum * ROUNDED


@SOME
@given(cases(SMALL), generate.sampled_from([1e-6, 0.01, 0.3, 3.0]))
def test_what_is_left_below_a_limit_has_the_optimum(case: Case, above: float) -> None:
    assert_focused_on_the_optimum(case, above)


@SOME
@given(cases(WIDE, num_stages=(1, 2)), generate.sampled_from([1e-6, 0.01, 0.3]))
def test_among_many_strategies_those_of_the_optimum_are_left(case: Case, above: float) -> None:
    assume(len(case.options.layouts) > FEW_STATES)
    assert_focused_on_the_optimum(case, above)


def assert_focused_on_the_optimum(case: Case, above: float) -> None:
    optimum = case.optimum(case.options, case.stages())
    focused = case.screened().focused(optimum * (1 + above) + 1e-12)
    assert focused is not None
    assert case.optimum(*focused) == pytest.approx(optimum, rel=1e-8)


@pytest.mark.slow
@MANY
@given(cases(SMALL | WIDE | DEEP), generate.sampled_from([1e-6, 0.01, 0.3, 3.0]))
def test_what_is_left_of_many_pipelines_has_the_optimum(case: Case, above: float) -> None:
    assert_focused_on_the_optimum(case, above)


TENSOR, DATA = Layout(1, 2, 1), Layout(2, 1, 1)
TOGETHER, APART = np.array([[0, 1]]), np.array([[0], [1]])
"""Two options that lead into one state, or into one each."""


def layer(*options: tuple[float, int], slots: Integers, ahead: int = 0) -> LayerOptions:
    """A layer that takes so many seconds in its forward pass, keeps so many bytes, and works with 2 more."""
    seconds, kept = zip(*options, strict=True)
    none = np.zeros(len(options), dtype=np.int64)
    return LayerOptions(
        strategies=tuple(LayerStrategy.parse(text) for text in ("tp2", "dp2")[: len(options)]),
        state=np.array([np.nonzero(slots == option)[0][0] for option in range(len(options))]),
        seconds=np.array([seconds, none, none, none]),
        state_bytes=np.array(kept),
        activation_bytes=none,
        transient=none + 2,
        ahead=np.full(len(slots), ahead),
        slots=slots,
        leaving_bytes=0,
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
        stage_index=0, num_micro_batches=1, in_flight=1, budget_bytes=budget_bytes, is_first=True, is_last=True
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
