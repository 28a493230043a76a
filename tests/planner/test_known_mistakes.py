"""The mistakes that planners have made (planner design, section 5), each with the test that ours does not."""

from itertools import pairwise

import pytest

import builders
import oracles
from galvatron_planner import families
from galvatron_planner.analytic import analytic_profile
from galvatron_planner.catalogue import parse_cluster
from galvatron_planner.cluster import Group
from galvatron_planner.cost.pipeline import StageSeconds, finish_seconds
from galvatron_planner.cost.prices import PriceList
from galvatron_planner.cost.step import BatchSplit, StageStrategies, estimate
from galvatron_planner.cost.transition import price
from galvatron_planner.errors import InvalidDocument, NoFeasiblePlan
from galvatron_planner.model import Block, Precision
from galvatron_planner.plan import Plan
from galvatron_planner.problem import BatchRange, PlanningProblem, Schedule, SearchDimension, SearchLimits
from galvatron_planner.profiles import Collective, Profile
from galvatron_planner.search.optimizer import search
from galvatron_planner.search.request import profile_request
from galvatron_planner.strategy import LayerStrategy

PROBLEM = builders.problem()


def stages(*texts: str) -> StageStrategies:
    return tuple(tuple(LayerStrategy.parse(text) for text in stage.split()) for stage in texts)


def slower(profile: Profile, collective: Collective, factor: float) -> Profile:
    links = tuple(
        link.model_copy(
            update={"samples": tuple(s.model_copy(update={"seconds": s.seconds * factor}) for s in link.samples)}
        )
        if link.collective is collective
        else link
        for link in profile.links
    )
    return profile.model_copy(update={"links": links})


def step_seconds(problem: PlanningProblem) -> float:
    try:
        return search(problem).plan.estimate.step_seconds
    except NoFeasiblePlan:
        return float("inf")


def without(*dimensions: SearchDimension) -> SearchLimits:
    return SearchLimits(excluded=dimensions)


def test_the_reserve_does_not_jump_with_the_budget() -> None:
    # The published planner keeps 1 GiB back below a threshold and more above it: a larger budget gave a slower plan.
    limits = without(SearchDimension.PP)
    problem = builders.problem(builders.model(num_layers=1), builders.cluster(4), batch=4, limits=limits)
    peaks = sorted({one.peak_bytes for _, _, one in oracles.fitting_plans(problem)})
    chosen = peaks[:: len(peaks) // 12]
    steps = [step_seconds(oracles.with_memory(problem, peak + extra)) for peak in chosen for extra in (-1, 0)]
    assert steps == sorted(steps, reverse=True)
    assert steps[0] == float("inf")
    assert steps[-1] < steps[1]


def test_redistribution_counts_in_the_search_and_in_the_score() -> None:
    # A head with a large vocabulary wants its table split, the blocks want the batch split: with links that exchange
    # rows for nothing the plan changes the layout, with slow ones it keeps it.
    spec = builders.model(num_layers=2, vocabulary_size=4001)
    limits = without(SearchDimension.PP, SearchDimension.SDP, SearchDimension.CKPT)
    plain = builders.profile(spec, builders.cluster(2), flops_per_second=1e11)
    fast, slow = (slower(plain, Collective.ALL_TO_ALL, factor) for factor in (0.0, 1e4))
    free, costly = (
        builders.problem(spec, builders.cluster(2), batch=2, limits=limits, measured=p) for p in (fast, slow)
    )
    mixed = search(free).plan
    uniform = search(costly).plan
    assert len({strategy.layout for strategy in mixed.stages[0].layers}) == 2
    assert len({strategy.layout for strategy in uniform.stages[0].layers}) == 1
    # In the score it counts once per micro-batch and direction, in seconds.
    split = BatchSplit(2, mixed.num_micro_batches)
    score = estimate(costly, (mixed.stages[0].layers,), split).step_seconds
    prices = PriceList.of(costly)
    layers = families.layers(spec)
    moved = sum(
        prices.transition(one.layout, other.layout, prices.arriving_bytes(layer, split.micro_batch_size)).seconds
        for (one, other), layer in zip(pairwise(mixed.stages[0].layers), layers[1:], strict=True)
    )
    assert score == pytest.approx(mixed.estimate.step_seconds + split.num_micro_batches * moved)


def test_no_sample_is_credited_that_micro_batches_floor_away() -> None:
    # 7 samples in 2 micro-batches are 6: only 1 and 7 micro-batches are plans at all.
    plan = search(builders.problem(batch=7, limits=without(SearchDimension.DP, SearchDimension.SDP))).plan
    assert plan.num_micro_batches in (1, 7)
    assert plan.num_micro_batches * plan.micro_batch_size == 7
    assert plan.estimate.samples_per_second == pytest.approx(7 / plan.estimate.step_seconds)
    with pytest.raises(ValueError, match="does not divide"):
        BatchSplit(7, 2)


def test_bandwidth_depends_on_where_a_group_lies() -> None:
    # Two nodes of two: tensor parallelism over neighbours stays inside a node, over strangers it does not.
    on = builders.cluster(4, num_nodes=2)
    problem = builders.problem(on=on, measured=builders.profile(PROBLEM.model, on))
    inside, across = (
        estimate(problem, stages(" ".join([text] * 4)), BatchSplit(8, 1)) for text in ("tp2-dp2", "dp2-tp2")
    )
    assert inside.step_seconds < across.step_seconds
    tensor_parallel = problem.model_copy(update={"limits": without(SearchDimension.PP)})
    for strategy in search(tensor_parallel).plan.stages[0].layers:
        assert not str(strategy).startswith(("dp2-tp2", "fsdp2-tp2"))


@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0])
def test_backward_is_measured_and_not_twice_forward(factor: float) -> None:
    measured = PROBLEM.profile
    layers = tuple(
        layer.model_copy(
            update={
                "samples": tuple(
                    s.model_copy(update={"backward_seconds": factor * s.forward_seconds}) for s in layer.samples
                )
            }
        )
        for layer in measured.layers
    )
    problem = PROBLEM.model_copy(update={"profile": measured.model_copy(update={"layers": layers})})
    block = next(layer for layer in families.layers(problem.model) if isinstance(layer, Block))
    cost = PriceList.of(problem).layer(block, LayerStrategy.parse("dp4"), 8)
    assert cost.backward_seconds == pytest.approx(factor * cost.forward_seconds)


@pytest.mark.parametrize("schedule", Schedule)
def test_a_middle_stage_can_be_the_bottleneck(schedule: Schedule) -> None:
    # By hand: 8 micro-batches of 4 seconds in the middle, a first and a last of 1 second there and back around them.
    middle = [StageSeconds(0.5, 0.5), StageSeconds(2.0, 2.0), StageSeconds(0.5, 0.5)]
    assert max(finish_seconds(middle, num_micro_batches=8, schedule=schedule)) >= 0.5 + 8 * 4.0 + 0.5
    # And in a plan: the same layers, once with the middle stage too long and once even.
    problem = builders.problem(builders.model(num_layers=6), limits=SearchLimits(schedule=schedule))
    uneven = estimate(problem, stages("single", "single", "single " * 5, "single"), BatchSplit(8, 8))
    even = estimate(problem, stages("single " * 2, "single " * 2, "single " * 2, "single " * 2), BatchSplit(8, 8))
    assert uneven.stage_seconds.index(max(uneven.stage_seconds)) == 2
    assert uneven.step_seconds > even.step_seconds


def test_an_exchange_of_rows_is_charged_with_what_one_device_holds() -> None:
    # 64 KiB over dp4 are 16 KiB a device, over tp2-dp2 32 KiB: the larger of both, not the whole micro-batch.
    moved = price(
        LayerStrategy.parse("dp4").layout,
        LayerStrategy.parse("dp2-tp2").layout,
        micro_batch_bytes=1 << 16,
        profile=PROBLEM.profile,
    )
    link = PROBLEM.profile.link(Collective.ALL_TO_ALL, Group(size=4, stride=1))
    assert moved.forward_seconds == link.seconds(1 << 15) < link.seconds(1 << 16)


def test_gradients_of_the_embedding_are_reduced_at_a_price() -> None:
    measured = slower(PROBLEM.profile, Collective.ALL_REDUCE, 100.0)
    problem = PROBLEM.model_copy(update={"profile": measured})
    costs = [PriceList.of(problem).layer(x, LayerStrategy.parse("dp4"), 8) for x in families.layers(problem.model)]
    embedding, *_, head = costs
    assert embedding.sync_seconds > 0
    assert head.sync_seconds > 0
    reduced = sum(cost.sync_seconds for cost in costs)
    whole = estimate(problem, stages("dp4 " * 4), BatchSplit(8, 1)).step_seconds
    passes = sum(cost.forward_seconds + cost.backward_seconds + cost.optimizer_seconds for cost in costs)
    assert whole == pytest.approx(passes + reduced + measured.step_overhead_seconds)


def test_the_cut_is_no_guess_that_comes_before_the_search() -> None:
    # Three layers a stage balance the time and the memory of embedding, four blocks and head; yet the step is shorter
    # with four and two.
    spec, on = builders.model(num_layers=4), builders.cluster(2, device_memory_bytes=1_500_000)
    only_stages = without(SearchDimension.DP, SearchDimension.ZERO2, SearchDimension.SDP, SearchDimension.TP)
    measured = builders.profile(spec, on, flops_per_second=1e10)
    problem = builders.problem(spec, on, batch=4, limits=only_stages, measured=measured)
    plan, balanced = search(problem).plan, oracles.optimum(problem, cut=(3,))
    assert [len(stage.layers) for stage in plan.stages] == [4, 2]
    assert balanced is not None
    assert plan.estimate.samples_per_second > 1.02 * balanced.estimate.samples_per_second


def test_a_plan_with_a_key_of_another_name_is_refused() -> None:
    text = builders.plan("dp4").to_json()
    assert Plan.from_json(text) == builders.plan("dp4")
    for key, other in (("num_micro_batches", "chunks"), ("global_batch_size", "global_bsz"), ("stages", "pp_division")):
        with pytest.raises(InvalidDocument):
            Plan.from_json(text.replace(f'"{key}"', f'"{other}"'))


def test_a_node_has_as_many_devices_as_it_has() -> None:
    def analytic(text: str) -> Profile:
        described = parse_cluster(text)
        request = profile_request(
            builders.model(),
            described.cluster(),
            precision=Precision.BF16,
            batch=BatchRange(minimum=8, maximum=8),
            limits=SearchLimits(),
            runtime_version="test",
        )
        return analytic_profile(request, described.device, described.links)

    one, two, four = (analytic(text) for text in ("1x8xh100", "2x4xh100", "4x2xh100"))

    def seconds(profile: Profile, size: int) -> float:
        return profile.link(Collective.ALL_REDUCE, Group(size=size, stride=1)).seconds(1 << 24)

    # A group of 8 leaves a node of 4, a group of 4 leaves a node of 2.
    assert seconds(one, 8) < seconds(two, 8)
    assert seconds(one, 4) == seconds(two, 4) < seconds(four, 4)
    assert seconds(one, 2) == seconds(two, 2) == seconds(four, 2)


def test_remainders_are_spread_over_the_stages() -> None:
    # 7 blocks on 4 stages: 2, 2, 2 and 1, never 1, 1, 1 and 4. The blocks weigh so much that the ends do not count.
    spec = builders.model(num_layers=7, vocabulary_size=2)
    only_stages = without(
        SearchDimension.DP, SearchDimension.ZERO2, SearchDimension.SDP, SearchDimension.TP, SearchDimension.CKPT
    )
    measured = builders.profile(spec, builders.cluster(4), flops_per_second=1e8)
    plan = search(builders.problem(spec, batch=8, limits=only_stages, measured=measured)).plan
    layers = iter(families.layers(spec))
    blocks = [sum(isinstance(next(layers), Block) for _ in stage.layers) for stage in plan.stages]
    assert sorted(blocks) == [1, 2, 2, 2]
