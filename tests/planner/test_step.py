import pytest
from hypothesis import given, settings

import builders
import generators
from galvatron_planner import families
from galvatron_planner.cluster import stage_pairs
from galvatron_planner.cost.prices import PriceList
from galvatron_planner.cost.step import BatchSplit, StageStrategies, estimate, stage_costs
from galvatron_planner.plan import Plan
from galvatron_planner.problem import PlanningProblem, Schedule, SearchLimits
from galvatron_planner.strategy import LayerStrategy

PROBLEM = builders.problem()
LAYERS = families.layers(PROBLEM.model)


def stages(*texts: str) -> StageStrategies:
    return tuple(tuple(LayerStrategy.parse(text) for text in stage.split()) for stage in texts)


def step_seconds(*texts: str, micro_batches: int = 1, problem: PlanningProblem = PROBLEM) -> float:
    return estimate(problem, stages(*texts), BatchSplit(8, micro_batches)).step_seconds


def test_one_stage_takes_the_sum_of_its_layers_and_the_overhead() -> None:
    prices = PriceList.of(PROBLEM)
    costs = [prices.layer(layer, LayerStrategy.parse("dp4"), 4) for layer in LAYERS]
    expected = sum(cost.step_seconds(2) for cost in costs) + PROBLEM.profile.step_overhead_seconds
    assert step_seconds("dp4 dp4 dp4 dp4", micro_batches=2) == pytest.approx(expected)


def test_a_change_of_layout_is_in_the_reported_time_once_per_micro_batch() -> None:
    prices = PriceList.of(PROBLEM)
    split = [prices.layer(layer, LayerStrategy.parse("tp4"), 4).step_seconds(2) for layer in LAYERS[:2]]
    whole = [prices.layer(layer, LayerStrategy.parse("dp4"), 4).step_seconds(2) for layer in LAYERS[2:]]
    move = prices.transition(LayerStrategy.parse("tp4").layout, LayerStrategy.parse("dp4").layout, 4 * 2048)
    assert move.seconds > 0
    expected = sum(split) + sum(whole) + 2 * move.seconds + PROBLEM.profile.step_overhead_seconds
    assert step_seconds("tp4 tp4 dp4 dp4", micro_batches=2) == pytest.approx(expected)


def test_a_stage_that_receives_another_layout_pays_for_it_at_its_door() -> None:
    prices = PriceList.of(PROBLEM)
    same = stage_costs(prices, PROBLEM, stages("dp2 dp2", "dp2 dp2"), BatchSplit(8, 2))[1]
    other = stage_costs(prices, PROBLEM, stages("tp2 tp2", "dp2 dp2"), BatchSplit(8, 2))[1]
    assert other.backward_seconds > same.backward_seconds
    assert other.peak_bytes > same.peak_bytes


def test_a_group_across_nodes_is_slower_than_one_inside() -> None:
    on = builders.cluster(4, num_nodes=2)
    across = builders.problem(on=on, measured=builders.profile(PROBLEM.model, on))
    inner, outer = ("tp2-dp2 " * 4, "dp2-tp2 " * 4)
    assert step_seconds(inner, problem=across) < step_seconds(outer, problem=across)
    assert step_seconds(inner) == pytest.approx(step_seconds(outer), rel=0.05)


def test_a_transfer_between_nodes_is_dear_and_one_inside_a_node_cheap() -> None:
    # Two nodes of four devices, four stages of two: ranks 0-1 and 2-3 share a node, 2-3 and 4-5 do not, and so on.
    # Half of 2 MiB to each partner, at 20 GB/s and 10 us inside a node, at 2 GB/s and 40 us between nodes.
    prices = PriceList.of(builders.problem(on=builders.cluster(8, num_nodes=2)))
    layout = LayerStrategy.parse("dp2").layout
    hops = [prices.hop_seconds(layout, 1 << 21, stage_index=k) for k in range(3)]
    inside, between = 1e-5 + 2**20 / 2e10, 4e-5 + 2**20 / 2e9
    assert hops == pytest.approx([inside, between, inside])


def test_a_stage_receives_from_both_its_neighbours() -> None:
    # Two nodes of two devices, a stage on each: activations from the stage before, gradients from the stage behind.
    problem = builders.problem(on=builders.cluster(4, num_nodes=2))
    prices, plan, split = PriceList.of(problem), stages("single", "single", "single", "single"), BatchSplit(8, 4)
    layout, moved = plan[0][0].layout, prices.leaving_bytes(LAYERS[0], 2)
    near, far, back = (prices.hop_seconds(layout, moved, stage_index=k) for k in range(3))
    assert far > near == back > 0
    inside = [cost.forward_seconds + cost.backward_seconds for cost in stage_costs(prices, problem, plan, split)]
    received = [whole - own for whole, own in zip(estimate(problem, plan, split).stage_seconds, inside, strict=True)]
    assert received == pytest.approx([near, near + far, far + back, back])


def test_one_micro_batch_waits_for_every_transfer_on_its_way_there_and_back() -> None:
    prices, plan, split = PriceList.of(PROBLEM), stages("dp2 dp2", "dp2 dp2"), BatchSplit(8, 1)
    costs = stage_costs(prices, PROBLEM, plan, split)
    hop = prices.hop_seconds(costs[0].exit_layout, prices.leaving_bytes(LAYERS[1], 8), stage_index=0)
    passes = sum(cost.forward_seconds + cost.backward_seconds for cost in costs) + 2 * hop
    once = costs[0].sync_seconds + max(cost.optimizer_seconds for cost in costs)
    expected = passes + once + PROBLEM.profile.step_overhead_seconds
    assert step_seconds("dp2 dp2", "dp2 dp2") == pytest.approx(expected)


def test_pairs_of_stages_are_told_by_where_they_stand() -> None:
    # Nodes of four devices: stages of one device, of half a node, of a node, and of two nodes.
    one = [stage_pairs(k, devices_per_stage=1, devices_per_node=4).stride for k in range(7)]
    assert one == [1, 1, 1, 4, 1, 1, 1]
    assert [stage_pairs(k, devices_per_stage=2, devices_per_node=4).stride for k in range(3)] == [2, 4, 2]
    assert [stage_pairs(k, devices_per_stage=4, devices_per_node=4).stride for k in range(3)] == [4, 4, 4]
    assert stage_pairs(0, devices_per_stage=8, devices_per_node=4).stride == 8


def test_early_stages_hold_more_micro_batches_than_late_ones() -> None:
    # Equal stages of blocks but for the ends: 1F1B holds 4, 3, 2, 1 micro-batches.
    spec = builders.model(num_layers=6)
    peaks = estimate(
        builders.problem(spec),
        stages("single single", "single single", "single single", "single single"),
        BatchSplit(8, 8),
    ).stage_peak_bytes
    assert peaks[1] > peaks[2]


def test_gpipe_holds_every_micro_batch() -> None:
    problem = builders.problem(limits=SearchLimits(schedule=Schedule.GPIPE))
    early = estimate(problem, stages("dp2 dp2", "dp2 dp2"), BatchSplit(8, 4)).stage_peak_bytes
    late = estimate(PROBLEM, stages("dp2 dp2", "dp2 dp2"), BatchSplit(8, 4)).stage_peak_bytes
    assert all(a > b for a, b in zip(early, late, strict=True))


def test_the_slowest_optimizer_is_waited_for() -> None:
    slow = PROBLEM.profile.model_copy(update={"optimizer_seconds_per_parameter": 1.0})
    costly = builders.problem(measured=slow)
    costs = stage_costs(PriceList.of(costly), costly, stages("dp2", "dp2 dp2 dp2"), BatchSplit(8, 2))
    none = builders.problem(measured=PROBLEM.profile.model_copy(update={"optimizer_seconds_per_parameter": 0.0}))
    gained = step_seconds("dp2", "dp2 dp2 dp2", micro_batches=2, problem=costly) - step_seconds(
        "dp2", "dp2 dp2 dp2", micro_batches=2, problem=none
    )
    assert gained == pytest.approx(max(cost.optimizer_seconds for cost in costs))


@settings(max_examples=40, deadline=None)
@given(generators.plans(4))
def test_every_valid_plan_has_a_price(plan: Plan) -> None:
    problem = builders.problem(
        plan.model, plan.cluster, batch=plan.global_batch_size, limits=SearchLimits(schedule=plan.schedule)
    )
    split = BatchSplit(plan.global_batch_size, plan.num_micro_batches)
    found = estimate(problem, tuple(stage.layers for stage in plan.stages), split)
    assert found.samples_per_second == pytest.approx(plan.global_batch_size / found.step_seconds)
    assert found.step_seconds >= plan.num_micro_batches * max(found.stage_seconds)
    assert 0 <= found.bubble_ratio < 1
