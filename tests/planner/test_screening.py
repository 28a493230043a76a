"""What is left of a pipeline below a limit, against random plans and against the exact search of all of it."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as generate

import builders
import oracles
from galvatron_planner.problem import SearchDimension, SearchLimits
from galvatron_planner.search.contents import Stages
from galvatron_planner.search.joint import JointSearch
from galvatron_planner.search.options import PipelineOptions
from galvatron_planner.search.screening import FEW_STATES, fits_somewhere
from pipelines import DEEP, ROUNDED, SMALL, WIDE, Case, cases, posed

CHECKS = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
SOME = settings(max_examples=25, suppress_health_check=CHECKS)

ABOVE = generate.sampled_from([1e-6, 0.01, 0.3, 3.0])
"""How far limits are above what must be left."""
STEPS_PER_OCTAVE = generate.sampled_from([None, 1, 2])


def optimum(case: Case, options: PipelineOptions, stages: Sequence[Stages]) -> float:
    """Seconds of the best step among some options and stages, without overhead, where that is proven."""
    # The known plan is below the cutoff, so that there is something to find.
    proof = JointSearch(case.pipeline, options, stages).run(case.estimate.step_seconds * 1.01 + 1e-9)
    assert proof.best is not None
    step = proof.best.estimate.step_seconds
    assume(proof.lower_bound * ROUNDED**2 >= step)
    return step - case.pipeline.overhead_seconds


def assert_focused_on_the_optimum(case: Case, above: float) -> None:
    least = optimum(case, case.options, case.stages())
    focused = case.screened().focused(least * (1 + above) + 1e-12)
    assert focused is not None
    assert optimum(case, *focused) == pytest.approx(least, rel=1e-8)


def assert_the_plan_is_left(case: Case, steps_per_octave: int | None) -> None:
    focused = case.screened(steps_per_octave).focused(case.seconds * (1 + 1e-6) + 1e-12)
    assert focused is not None
    options, stages = focused
    for k, start, end, _ in case.priced_stages():
        assert (start, end) in zip(stages[k].start, stages[k].end, strict=True)
        for kind, strategy in zip(case.options.kinds[start:end], case.plan[k], strict=True):
            assert strategy in options.layers[kind].strategies


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
@given(cases(SMALL | WIDE | DEEP), STEPS_PER_OCTAVE)
def test_no_plan_undercuts_the_bound_of_its_pipeline(case: Case, steps_per_octave: int | None) -> None:
    bound = case.screened(steps_per_octave).lower_bound(2 * case.seconds)
    assert bound <= case.seconds * ROUNDED


@SOME
@given(cases(SMALL | DEEP))
def test_no_optimum_undercuts_the_bound_of_its_pipeline(case: Case) -> None:
    least = optimum(case, case.options, case.stages())
    for steps_per_octave in (None, 1, 2):
        bound = case.screened(steps_per_octave).lower_bound(1.1 * case.seconds)
        assert bound <= least * ROUNDED


@settings(SOME, max_examples=50)
@given(cases(SMALL | WIDE | DEEP), STEPS_PER_OCTAVE)
def test_nothing_of_a_plan_below_the_limit_is_left_out(case: Case, steps_per_octave: int | None) -> None:
    assert_the_plan_is_left(case, steps_per_octave)


@settings(SOME, max_examples=50)
@given(cases(DEEP, num_stages=(4, 8)), STEPS_PER_OCTAVE)
def test_places_that_share_their_bounds_leave_nothing_out(case: Case, steps_per_octave: int | None) -> None:
    assert_the_plan_is_left(case, steps_per_octave)


def test_places_share_the_bound_of_the_one_that_holds_least() -> None:
    # The two places in the middle hold 3 and 2 micro-batches, and with one step an octave they are one. What the second
    # has room for, to the byte, would not fit with 3.
    limits = SearchLimits(excluded=(SearchDimension.CKPT,))
    problem = builders.problem(builders.model(num_layers=3), limits=limits)
    plan = "single", "single", "single single", "single"
    peaks = posed(problem, *plan, num_micro_batches=4).estimate.stage_peak_bytes
    assert max(peaks) == peaks[2]
    assert_the_plan_is_left(posed(oracles.with_memory(problem, peaks[2]), *plan, num_micro_batches=4), 1)


@SOME
@given(cases(SMALL), ABOVE)
def test_what_is_left_below_a_limit_has_the_optimum(case: Case, above: float) -> None:
    assert_focused_on_the_optimum(case, above)


@SOME
@given(cases(WIDE, num_stages=(1, 2)), ABOVE)
def test_among_many_strategies_those_of_the_optimum_are_left(case: Case, above: float) -> None:
    assume(len(case.options.layouts) > FEW_STATES)
    assert_focused_on_the_optimum(case, above)


@pytest.mark.slow
@settings(SOME, max_examples=150)
@given(cases(SMALL | WIDE | DEEP), ABOVE)
def test_what_is_left_of_many_pipelines_has_the_optimum(case: Case, above: float) -> None:
    assert_focused_on_the_optimum(case, above)
