from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as generate

import builders
import generators
from galvatron_planner.cost.prices import PriceList
from galvatron_planner.cost.step import BatchSplit, estimate
from galvatron_planner.plan import Estimate
from galvatron_planner.problem import PlanningProblem, SearchDimension, SearchLimits
from galvatron_planner.search.baselines import baselines_of
from galvatron_planner.search.cuts import lightest_cut
from galvatron_planner.search.report import Baseline
from galvatron_planner.strategy import LayerStrategy
from galvatron_planner.units import GIB, MIB

SMALL = builders.model(hidden_size=256, num_layers=6, num_heads=8, sequence_length=128, vocabulary_size=256)


def baselines(problem: PlanningProblem) -> dict[str, Baseline]:
    return {one.name: one for one in baselines_of(problem, PriceList.of(problem))}


def small_problem(memory: int = GIB, **limits: object) -> PlanningProblem:
    on = builders.cluster(4, device_memory_bytes=memory)
    return builders.problem(SMALL, on, batch=8, limits=SearchLimits.model_validate(limits))


def samples_per_second(baseline: Baseline) -> float:
    return baseline.plan.samples_per_second if baseline.plan else 0.0


def estimates_without_pipeline(problem: PlanningProblem, strategy: str) -> list[Estimate]:
    """Every number of micro-batches under one strategy on a single stage; ends cannot checkpoint."""
    plain = LayerStrategy(LayerStrategy.parse(strategy).axes)
    blocks = [LayerStrategy.parse(strategy)] * problem.model.num_layers
    size = problem.batch.minimum
    splits = [BatchSplit(size, m) for m in range(1, size + 1) if size % m == 0 and size // m % plain.data_degree == 0]
    return [estimate(problem, ((plain, *blocks, plain),), split) for split in splits]


@pytest.mark.parametrize(
    ("name", "strategy"),
    [("DP", "dp4"), ("DP+CKPT", "dp4-ckpt"), ("SDP", "fsdp4"), ("SDP+CKPT", "fsdp4-ckpt"), ("TP+CKPT", "tp4-ckpt")],
)
@pytest.mark.parametrize("memory", [30 * MIB, 60 * MIB, GIB])
def test_a_single_dimension_is_the_best_of_its_batch_splits(name: str, strategy: str, memory: int) -> None:
    problem = small_problem(memory)
    baseline = baselines(problem)[name]
    every = estimates_without_pipeline(problem, strategy)
    fitting = [one for one in every if one.peak_bytes <= memory]
    assert samples_per_second(baseline) == max((one.samples_per_second for one in fitting), default=0.0)
    assert baseline.needed_bytes == (None if fitting else min(one.peak_bytes for one in every))


def test_one_micro_batch_may_need_less_memory_than_more_and_smaller_ones() -> None:
    # Few tokens: gradients outweigh activations, and only those of a single micro-batch are gone before they come.
    spec = builders.model(num_layers=6, sequence_length=2)
    problem = builders.problem(spec, builders.cluster(4, device_memory_bytes=1), batch=8)
    needed = [one.peak_bytes for one in estimates_without_pipeline(problem, "fsdp4")]
    assert needed[0] == min(needed) < needed[-1]
    assert baselines(problem)["SDP"].needed_bytes == needed[0]


def test_a_pipeline_is_cut_where_its_slowest_stage_is_fastest() -> None:
    # Embedding, six equal blocks and a light head: any other cut has a stage of two blocks and something else.
    baseline = baselines(small_problem())["PP"]
    assert baseline.plan is not None
    assert baseline.plan.summary.endswith(": single x2 | single x2 | single x2 | single x2")


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(generators.problems(max_devices=4))
def test_baselines_keep_to_memory_and_a_wider_one_is_no_slower(problem: PlanningProblem) -> None:
    found = baselines(problem)
    assert all(b.plan.peak_bytes <= problem.cluster.device_memory_bytes for b in found.values() if b.plan)
    for wide, narrow in (("3D", "DP"), ("3D", "TP"), ("3D", "PP"), ("3D", "DP+PP"), ("DP+PP", "DP"), ("DP+TP", "TP")):
        if wide in found:
            assert samples_per_second(found[wide]) >= samples_per_second(found[narrow]) * (1 - 1e-9)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(generators.problems(max_devices=4))
def test_a_baseline_that_does_not_fit_fits_the_memory_that_it_asks_for(problem: PlanningProblem) -> None:
    for name, baseline in baselines(problem).items():
        if baseline.needed_bytes is not None:
            assert baseline.needed_bytes > problem.cluster.device_memory_bytes
            cluster = problem.cluster.model_copy(update={"device_memory_bytes": baseline.needed_bytes})
            assert baselines(problem.model_copy(update={"cluster": cluster}))[name].plan is not None


def test_what_the_limits_exclude_is_no_baseline() -> None:
    names = set(baselines(small_problem(excluded=(SearchDimension.TP, SearchDimension.CKPT))))
    assert names == {"DP", "ZERO2", "SDP", "PP", "DP+PP"}


def test_a_single_device_has_nothing_to_compare_with() -> None:
    assert not baselines(builders.problem(SMALL, builders.cluster(1)))


@given(generate.lists(generate.integers(0, 9), min_size=1, max_size=7), generate.integers(1, 4))
def test_no_cut_has_a_lighter_heaviest_stage(weights: list[int], num_stages: int) -> None:
    sums = np.concatenate([[0], np.cumsum(weights)]).astype(float)
    between = np.where(np.triu(np.ones((len(sums),) * 2), 1) > 0, sums[None, :] - sums[:, None], np.inf)
    cut = lightest_cut([between] * num_stages)
    cuts = [(0, *inner, len(weights)) for inner in combinations(range(1, len(weights)), num_stages - 1)]
    heaviest = [max(sums[end] - sums[start] for start, end in pairwise(one)) for one in cuts]
    if cut is None:
        assert not cuts
    else:
        assert max(sums[end] - sums[start] for start, end in pairwise(cut)) == min(heaviest)
