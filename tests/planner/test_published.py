"""The searches of the papers: their parts against hand and brute force, and what their plans keep to."""

from itertools import combinations, pairwise, product
from random import Random

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as generate

import builders
import generators
from galvatron_planner.cost.prices import PriceList
from galvatron_planner.cost.step import BatchSplit, estimate
from galvatron_planner.errors import InvalidPlan, NoFeasiblePlan
from galvatron_planner.explain import explain
from galvatron_planner.problem import Algorithm, BatchRange, PlanningProblem, SearchDimension, SearchLimits
from galvatron_planner.search.optimizer import search
from galvatron_planner.search.published import bmw, galvatron
from galvatron_planner.search.published.bmw import balance, balanced_cut
from galvatron_planner.search.published.galvatron import even_cut
from galvatron_planner.search.published.grid import NUM_UNITS, Menu, Moves, StageTask, fastest_choice
from galvatron_planner.search.published.stages import StageSolver, pipeline_seconds
from galvatron_planner.search.report import Solution

PUBLISHED = (Algorithm.GALVATRON, Algorithm.GALVATRON_BMW)


def by(algorithm: Algorithm, problem: PlanningProblem) -> Solution | None:
    """Search with an algorithm; None when it finds nothing."""
    limits = problem.limits.model_copy(update={"algorithm": algorithm})
    try:
        return search(problem.model_copy(update={"limits": limits}))
    except NoFeasiblePlan:
        return None


def test_the_slowest_stage_sets_the_pace_and_all_reductions_stick_out() -> None:
    # By hand: 1 + 3 + 2 to fill, 0.5 + 0.25 of reductions, then 3 more micro-batches at the pace of the 3 s stage.
    assert pipeline_seconds((1.0, 3.0, 2.0), (0.5, 0.0, 0.25), num_micro_batches=4) == 6.0 + 0.75 + 3 * 3.0


def test_an_even_cut_divides_the_blocks_and_leaves_both_ends_with_their_neighbours() -> None:
    # 8 blocks between embedding and head on 4 stages: 2 each, so 3, 2, 2 and 3 layers.
    assert even_cut(10, 4) == (0, 3, 5, 7, 10)
    # 2 blocks cannot be divided among 4 stages: layer by layer.
    assert even_cut(4, 4) == (0, 1, 2, 3, 4)
    assert even_cut(10, 1) == (0, 10)


@given(generate.integers(1, 4), generate.integers(0, 4), generate.randoms(use_true_random=False))
def test_no_cut_has_a_lighter_heaviest_stage_than_the_balanced_one(num_stages: int, more: int, random: Random) -> None:
    num_layers = num_stages + more
    weights = np.array([[float(random.randint(1, 9)) for _ in range(num_layers)] for _ in range(num_stages)])

    def heaviest(cut: tuple[int, ...]) -> float:
        return max(float(row[i:j].sum()) for row, (i, j) in zip(weights, pairwise(cut), strict=True))

    every = [(0, *inner, num_layers) for inner in combinations(range(1, num_layers), num_stages - 1)]
    assert heaviest(balanced_cut(weights)) == min(map(heaviest, every))


def task(
    *menus: tuple[list[float], list[int]],
    budget: int,
    layouts: list[int] | None = None,
    move_seconds: float = 0.0,
    working: list[int] | None = None,
) -> StageTask:
    """A stage of layers with (seconds, kept bytes) of two options each."""
    layout = np.array(layouts or [0, 0])
    between = np.array([[0.0, move_seconds], [move_seconds, 0.0]])
    nothing = np.zeros((2, 2), dtype=np.int64)
    return StageTask(
        menus=[
            Menu(layout, np.array(seconds), np.array(kept), np.array(working or [0, 0]), np.zeros(2, dtype=np.int64))
            for seconds, kept in menus
        ],
        moves=[Moves(np.zeros((2, 2)), nothing), *[Moves(between, nothing)] * (len(menus) - 1)],
        entry=0,
        exit_bytes=np.zeros(2, dtype=np.int64),
        budget_bytes=budget,
    )


def test_the_fastest_choice_that_fits_is_found_by_hand() -> None:
    layers = (([1.0, 3.0], [10, 4]), ([1.0, 2.0], [10, 5]))
    # Both fast keep 20; fast first 15 in 3 s; fast second 14 in 4 s; both slow 9 in 5 s.
    assert fastest_choice(task(*layers, budget=20)) == (0, 0)
    assert fastest_choice(task(*layers, budget=19)) == (0, 1)
    assert fastest_choice(task(*layers, budget=14)) == (1, 0)
    assert fastest_choice(task(*layers, budget=13)) == (1, 1)
    assert fastest_choice(task(*layers, budget=8)) is None


def test_a_change_of_layout_is_paid_for() -> None:
    layers = (([1.0, 2.0], [0, 0]), ([2.0, 1.0], [0, 0]))
    # Apart 1 + 1 and the move; together 3, whichever layout.
    assert fastest_choice(task(*layers, budget=1, layouts=[0, 1], move_seconds=0.5)) == (0, 1)
    assert fastest_choice(task(*layers, budget=1, layouts=[0, 1], move_seconds=1.5)) in [(0, 0), (1, 1)]


def test_what_a_layer_needs_while_it_computes_counts_once() -> None:
    layers = (([1.0, 3.0], [10, 5]), ([1.0, 3.0], [10, 5]))
    # Kept 20, 15 or 10; on top 7 wherever the first option is taken, once.
    assert fastest_choice(task(*layers, budget=27, working=[7, 0])) == (0, 0)
    assert fastest_choice(task(*layers, budget=22, working=[7, 0])) in [(0, 1), (1, 0)]
    assert fastest_choice(task(*layers, budget=21, working=[7, 0])) == (1, 1)


@given(
    generate.lists(
        generate.tuples(*[generate.tuples(generate.integers(1, 9), generate.integers(0, 9000))] * 2),
        min_size=1,
        max_size=4,
    ),
    generate.integers(1, 30_000),
    generate.sampled_from([0.0, 1.5]),
)
def test_the_programme_finds_what_enumeration_finds_in_units(
    layers: list[tuple[tuple[int, int], ...]], budget: int, move_seconds: float
) -> None:
    stage = task(
        *(([float(s) for s, _ in menu], [kept for _, kept in menu]) for menu in layers),
        budget=budget,
        layouts=[0, 1],
        move_seconds=move_seconds,
    )
    unit = -(-budget // NUM_UNITS)

    def seconds(choice: tuple[int, ...]) -> float:
        moved = sum(one != other for one, other in pairwise(choice))
        return sum(menu[option][0] for menu, option in zip(layers, choice, strict=True)) + move_seconds * moved

    def kept(choice: tuple[int, ...], rounded_to: int) -> int:
        return sum(-(-menu[option][1] // rounded_to) for menu, option in zip(layers, choice, strict=True)) * rounded_to

    every = list(product((0, 1), repeat=len(layers)))
    fitting = [seconds(choice) for choice in every if kept(choice, unit) <= budget // unit * unit]
    found = fastest_choice(stage)
    assert (found is None) <= (not fitting)
    if found is not None:
        assert kept(found, 1) <= budget
        assert seconds(found) <= min(fitting, default=float("inf"))


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(generators.problems(max_devices=8))
def test_published_plans_fit_and_are_never_faster_than_the_optimum(problem: PlanningProblem) -> None:
    best = by(Algorithm.OPTIMAL, problem)
    for algorithm in PUBLISHED:
        found = by(algorithm, problem)
        if found is None:
            continue
        plan = found.plan
        assert plan.estimate.peak_bytes <= problem.cluster.device_memory_bytes
        split = BatchSplit(plan.global_batch_size, plan.num_micro_batches)
        assert plan.estimate == estimate(problem, tuple(stage.layers for stage in plan.stages), split)
        assert best is not None
        assert plan.estimate.samples_per_second <= best.plan.estimate.samples_per_second * (1 + 1e-9)


@settings(max_examples=20, deadline=None)
@given(generators.problems(max_devices=4))
def test_published_searches_give_the_same_bytes_again(problem: PlanningProblem) -> None:
    for explore in (galvatron.explore, bmw.explore):
        first, second = (explore(problem, PriceList.of(problem)) for _ in range(2))
        assert repr(first) == repr(second)


@settings(max_examples=20, deadline=None)
@given(generators.problems(max_devices=4), generate.integers(1, 4))
def test_balancing_never_loses_against_the_cut_it_starts_from(problem: PlanningProblem, num_micro_batches: int) -> None:
    split = BatchSplit(8 * num_micro_batches, num_micro_batches)
    solver = StageSolver(problem, PriceList.of(problem), split, min(2, problem.cluster.num_devices))
    start = solver.solve(balanced_cut(solver.layer_bytes())) if solver.has_choices else None
    if start is not None:
        balanced = balance(solver)
        assert balanced is not None
        assert solver.least_seconds() <= balanced.step_seconds * (1 + 1e-12)
        assert balanced.step_seconds <= start.step_seconds


def test_a_layer_is_moved_off_the_slowest_stage() -> None:
    # The head of a large vocabulary computes long and keeps little, so the memory-balanced cut makes its stage slow.
    spec = builders.model(num_layers=6, vocabulary_size=4096)
    problem = builders.problem(spec, builders.cluster(2), measured=None)
    solver = StageSolver(problem, PriceList.of(problem), BatchSplit(8, 4), 2)
    start, balanced = solver.solve(balanced_cut(solver.layer_bytes())), balance(solver)
    assert start is not None
    assert balanced is not None
    assert max(balanced.pass_seconds) <= max(start.pass_seconds)


def tight(
    memory: int, *excluded: SearchDimension, batch: int | BatchRange = 8, algorithm: Algorithm = Algorithm.OPTIMAL
) -> PlanningProblem:
    """Long sequences on two devices: at 1 MB nothing fits without recomputation, at 2 MB it does."""
    spec, on = builders.model(num_layers=4, sequence_length=64), builders.cluster(2, device_memory_bytes=memory)
    return builders.problem(spec, on, batch=batch, limits=SearchLimits(excluded=excluded, algorithm=algorithm))


def test_galvatron_never_recomputes_and_bmw_does_where_memory_is_short() -> None:
    short, ample = tight(1_000_000), tight(2_000_000)
    assert not galvatron.explore(short, PriceList.of(short)).best
    recomputing = next(iter(bmw.explore(short, PriceList.of(short)).best.values()))
    assert any(strategy.checkpoint for stage in recomputing.stages for strategy in stage)
    plain = next(iter(galvatron.explore(ample, PriceList.of(ample)).best.values()))
    assert not any(strategy.checkpoint for stage in plain.stages for strategy in stage)


def test_what_only_the_optimum_can_do_is_the_remedy() -> None:
    with pytest.raises(NoFeasiblePlan, match="use algorithm Optimal"):
        search(tight(1_000_000, algorithm=Algorithm.GALVATRON))


def test_the_sweep_ends_at_the_first_batch_size_that_no_longer_fits() -> None:
    sizes = BatchRange(minimum=4, maximum=64, step=4)
    ample, short = (
        galvatron.explore(problem, PriceList.of(problem))
        for problem in (tight(memory, SearchDimension.PP, batch=sizes) for memory in (1 << 32, 4_000_000))
    )
    # Every divisor of every size, on the one pipeline degree.
    assert ample.num_candidates == sum(size % count == 0 for size in sizes.sizes for count in range(1, size + 1))
    assert short.best
    assert short.num_candidates < ample.num_candidates


@pytest.mark.parametrize("algorithm", PUBLISHED)
def test_the_report_names_the_algorithm_and_claims_no_proof(algorithm: Algorithm) -> None:
    found = by(algorithm, builders.problem())
    assert found is not None
    assert found.report.algorithm is algorithm
    assert found.report.gap is None
    assert found.report.lower_bound_seconds is None
    assert f"found by {algorithm}, which proves nothing" in explain(found.plan, found.report)
    assert 0 <= found.report.memory_balance < 1
    assert 0 <= found.report.time_balance < 1


def test_the_algorithm_fixed_searches_nothing() -> None:
    with pytest.raises(InvalidPlan, match="fixedPlanRef"):
        search(builders.problem(limits=SearchLimits(algorithm=Algorithm.FIXED)))
