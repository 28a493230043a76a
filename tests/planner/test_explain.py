import pytest
from hypothesis import given, settings

import builders
import generators
from galvatron_planner.cluster import Group
from galvatron_planner.cost.spending import Spent, spending
from galvatron_planner.explain import baseline_rows, explain, runner_up_rows, stage_rows
from galvatron_planner.insight import STATES, Insight, insight, problem_of
from galvatron_planner.plan import Plan
from galvatron_planner.problem import Algorithm, BatchRange, SearchDimension, SearchLimits
from galvatron_planner.search.optimizer import search
from galvatron_planner.search.report import Solution
from galvatron_planner.sensitivity import changes, effect
from galvatron_planner.units import GIB, MIB

SPEC = builders.model(hidden_size=256, num_layers=6, num_heads=8, sequence_length=128, vocabulary_size=256)


def solution(memory: int = 30 * MIB) -> Solution:
    return search(builders.problem(SPEC, builders.cluster(4, device_memory_bytes=memory), batch=8))


def test_stages_list_every_layer_once_and_every_rank() -> None:
    plan = builders.plan("dp2 tp2 tp2", "tp2-ckpt dp2", spec=builders.model(num_layers=3))
    rows = stage_rows(plan)
    assert [row.layers for row in rows] == ["embedding 0: dp2, block 1-2: tp2", "block 3: tp2-ckpt, head 4: dp2"]
    assert [row.ranks for row in rows] == ["0-1", "2-3"]


def test_the_text_names_what_does_not_fit_and_what_binds() -> None:
    found = solution()
    text = explain(found.plan, found.report)
    assert found.plan.summary in text
    assert "does not fit: DP" in text
    assert "memory binds" in text


def test_tables_have_a_row_for_every_baseline_and_runner_up() -> None:
    found = solution()
    assert len(baseline_rows(found.plan, found.report)) == len(found.report.baselines) >= 8
    assert len(runner_up_rows(found.plan, found.report)) == len(found.report.runners_up)


def test_a_single_device_has_nothing_to_compare_with() -> None:
    found = search(builders.problem(SPEC, builders.cluster(1), batch=4))
    assert baseline_rows(found.plan, found.report) == ()
    assert "proven optimal" in explain(found.plan, found.report)


def looked_into(found: Solution) -> Insight:
    return insight(found.plan, builders.profile(found.plan.model, found.plan.cluster))


def test_the_time_of_the_busiest_stage_adds_up_to_the_step() -> None:
    seen = looked_into(solution())
    assert sum(seen.time().values()) == pytest.approx(seen.plan.estimate.step_seconds)
    assert list(seen.time().values()) == sorted(seen.time().values(), reverse=True)


@settings(max_examples=50, deadline=None)
@given(generators.plans(8))
def test_the_time_of_every_stage_adds_up_whatever_the_plan(plan: Plan) -> None:
    seen = insight(plan, builders.profile(plan.model, plan.cluster))
    for stage in seen.timeline.stages:
        spent = spending(stage, seen.timeline)
        assert min(spent.values()) >= 0
        assert sum(spent.values()) == pytest.approx(seen.timeline.step_seconds)


def test_waiting_for_a_transfer_and_for_a_stage_are_told_apart() -> None:
    # One micro-batch on two stages: each receives once; that stage 1 meanwhile receives is bubble to stage 0.
    plan = builders.plan("dp2 dp2", "dp2 dp2", num_micro_batches=1)
    seen = insight(plan, builders.profile(plan.model, plan.cluster))
    first, second = seen.timeline.stages
    assert spending(first, seen.timeline)[Spent.HOP] == pytest.approx(first.facts.hop_seconds)
    assert spending(second, seen.timeline)[Spent.HOP] == pytest.approx(first.facts.hop_seconds)


def test_memory_of_the_fullest_stage_adds_up_to_no_more_than_its_estimate() -> None:
    seen = looked_into(solution())
    held = seen.memory()
    assert held[STATES] == seen.timeline.stages[seen.fullest_index].facts.state_bytes
    assert sum(held.values()) <= seen.plan.estimate.peak_bytes


def test_the_busiest_link_is_named_with_its_share() -> None:
    plan = builders.plan("tp4")
    seen = insight(plan, builders.profile(plan.model, plan.cluster))
    assert seen.links()[0].group == Group(size=4, stride=1)
    assert "the busiest link carries all-reduce of 4 devices, neighbouring ones, inside a node" in explain(
        plan, solution().report, seen
    )


def test_a_link_between_stages_says_whether_it_crosses_nodes() -> None:
    # Two nodes of two devices, four stages: the second receives from its own node, and gradients from the other one.
    on = builders.cluster(4, num_nodes=2)
    plan = builders.plan("single", "single", "single", "single", on=on, num_micro_batches=4)
    estimate = builders.some_estimate(4).model_copy(update={"stage_seconds": (1.0, 2.0, 1.0, 1.0)})
    links = insight(plan.model_copy(update={"estimate": estimate}), builders.profile(plan.model, on)).links()
    assert [link.where(on) for link in links] == [
        "neighbouring stages, across nodes",
        "neighbouring stages, inside a node",
    ]


def test_a_profile_of_another_measurement_is_noticed() -> None:
    found = solution()
    slow = builders.profile(SPEC, found.plan.cluster, flops_per_second=1e10)
    assert "is another one" in explain(found.plan, found.report, insight(found.plan, slow))
    assert "is another one" not in explain(found.plan, found.report, looked_into(found))


def test_the_problem_of_a_plan_is_found_again() -> None:
    problem = builders.problem(SPEC, builders.cluster(4, device_memory_bytes=30 * MIB), batch=8)
    assert problem_of(search(problem).plan, problem.profile) == problem
    assert next(changes(problem, search(problem).plan)).name.endswith("more per device")


def test_a_report_tells_what_its_job_allowed() -> None:
    limits = SearchLimits(excluded=(SearchDimension.TP,), algorithm=Algorithm.GALVATRON_BMW)
    narrowed = builders.problem(SPEC, builders.cluster(4), batch=8, limits=limits)
    ranged = narrowed.model_copy(update={"batch": BatchRange(minimum=4, maximum=8, step=4)})
    found = search(ranged)
    assert problem_of(found.plan, ranged.profile, found.report) == ranged
    first = effect(next(changes(ranged, found.plan)))
    assert first.name == "the same, by the exact search"
    assert first.plan is not None
    assert first.plan.samples_per_second >= found.plan.estimate.samples_per_second


def test_a_narrowed_search_is_repeated_with_all_that_was_measured() -> None:
    limits = SearchLimits(excluded=(SearchDimension.TP, SearchDimension.SDP, SearchDimension.PP))
    narrowed = builders.problem(SPEC, builders.cluster(4), batch=8, limits=limits)
    found = search(narrowed)
    first = effect(next(changes(problem_of(found.plan, narrowed.profile), found.plan)))
    assert "all that was measured" in first.name
    assert first.plan is not None
    assert first.plan.samples_per_second >= found.plan.estimate.samples_per_second


def test_other_budgets_are_searched_and_never_guessed() -> None:
    problem = builders.problem(SPEC, builders.cluster(4, device_memory_bytes=30 * MIB), batch=8)
    plan = search(problem).plan
    more, less, half, twice = [effect(one) for one in changes(problem, plan)]
    assert [one.name for one in (more, less)] == ["3 MiB more per device", "3 MiB less per device"]
    assert more.plan is not None
    assert more.plan.samples_per_second >= plan.estimate.samples_per_second
    assert less.plan is None or less.plan.samples_per_second <= plan.estimate.samples_per_second
    assert (half.name, half.is_known) == ("2 devices", True)
    assert (twice.name, twice.is_known) == ("8 devices", False)
    assert "not measured" in explain(plan, search(problem).report, effects=(twice,))


def test_large_budgets_are_changed_by_a_gibibyte() -> None:
    problem = builders.problem(on=builders.cluster(2, num_nodes=2, device_memory_bytes=40 * GIB))
    names = [one.name for one in changes(problem, search(problem).plan)]
    assert names == ["1 GiB more per device", "1 GiB less per device", "1 device", "4 devices"]
