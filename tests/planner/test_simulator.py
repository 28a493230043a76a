from dataclasses import dataclass
from itertools import accumulate, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as generate

import builders
import generators
from galvatron_planner.cluster import DeviceKind
from galvatron_planner.cost.occupancy import occupancy, peak_bytes
from galvatron_planner.cost.pipeline import StageSeconds, finish_seconds, in_flight
from galvatron_planner.cost.prices import PriceList
from galvatron_planner.cost.simulator import ARRIVALS, PASSES, EventKind, StageTimeline, Timeline, simulate
from galvatron_planner.cost.step import BatchSplit, price_step
from galvatron_planner.cost.work import Work
from galvatron_planner.model import ModelSpec
from galvatron_planner.plan import Estimate, Plan
from galvatron_planner.problem import Schedule, SearchLimits

EXACT = 1e-9


@dataclass(frozen=True, slots=True)
class Simulated:
    """A plan with both prices of it."""

    plan: Plan
    timeline: Timeline
    estimate: Estimate


def simulated(plan: Plan, *, device_kind: DeviceKind = DeviceKind.CPU, **profile: float) -> Simulated:
    on = plan.cluster.model_copy(update={"device_kind": device_kind})
    measured = builders.profile(plan.model, on, **profile)  # type: ignore[arg-type]  # floats stand for integers too
    limits = SearchLimits(schedule=plan.schedule)
    problem = builders.problem(plan.model, on, batch=plan.global_batch_size, limits=limits, measured=measured)
    prices, stages = PriceList.of(problem), tuple(stage.layers for stage in plan.stages)
    split = BatchSplit(plan.global_batch_size, plan.num_micro_batches)
    timeline = simulate(prices, problem, stages, split)
    return Simulated(plan, timeline, price_step(prices, problem, stages, split))


def plans_of(spec: ModelSpec) -> generate.SearchStrategy[Plan]:
    return generate.one_of(
        generators.plans(4, spec=spec, max_micro_batches=9), generators.plans(8, spec=spec, max_micro_batches=6)
    )


SIMULATED = generate.builds(
    simulated,
    generators.EVERY_MODEL.flatmap(plans_of),
    device_kind=generate.sampled_from(DeviceKind),
    flops_per_second=generate.sampled_from([1e9, 1e11, 1e12]),
    computation_slowdown=generate.sampled_from([1.0, 1.25, 2.0]),
    reserve_bytes=generate.sampled_from([0, 1 << 20]),
)


def most_in_flight(stage: StageTimeline) -> int:
    held = accumulate(1 if event.kind is EventKind.FORWARD else -1 for event in stage.of(*PASSES))
    return max(held)


@settings(max_examples=60, deadline=None)
@given(SIMULATED)
def test_the_simulated_step_takes_what_the_formula_says(one: Simulated) -> None:
    assert one.timeline.step_seconds == pytest.approx(one.estimate.step_seconds, rel=EXACT)


@settings(max_examples=60, deadline=None)
@given(SIMULATED)
def test_every_stage_ends_its_passes_when_the_recurrence_says(one: Simulated) -> None:
    facts = [stage.facts for stage in one.timeline.stages]
    passes = [
        StageSeconds(
            stage.entry_seconds + stage.seconds(EventKind.FORWARD),
            stage.hop_seconds + stage.seconds(EventKind.BACKWARD),
        )
        for stage in facts
    ]
    ends = finish_seconds(passes, num_micro_batches=one.plan.num_micro_batches, schedule=one.plan.schedule)
    assert [stage.finish_seconds for stage in one.timeline.stages] == pytest.approx(ends, rel=EXACT)
    assert [stage.seconds for stage in passes] == pytest.approx(one.estimate.stage_seconds, rel=EXACT)


@settings(max_examples=60, deadline=None)
@given(SIMULATED)
def test_the_estimate_is_reached_but_for_what_cannot_meet(one: Simulated) -> None:
    # The cost model adds the largest working memory of any layer to what all layers keep, and one buffer at the door.
    # All of it is kept only while the last layer goes backward, and the buffer may be free at that moment. Where no
    # forward pass follows the first backward one, gradients that are larger than their layer's activations come later.
    for stage, estimated in zip(one.timeline.stages, one.estimate.stage_peak_bytes, strict=True):
        last, *others = (piece.working_bytes for piece in stage.facts.work.backward)
        may_miss = max(0, max(others, default=0) - last) + stage.facts.entry_bytes
        if most_in_flight(stage) == one.plan.num_micro_batches:
            may_miss += sum(max(0, piece.late_bytes - piece.kept_bytes) for piece in stage.facts.work.backward)
        peak = peak_bytes(stage, reserve_bytes=one.timeline.reserve_bytes)
        assert estimated - may_miss <= peak <= estimated


@settings(max_examples=60, deadline=None)
@given(SIMULATED)
def test_memory_returns_to_the_states_when_the_step_is_over(one: Simulated) -> None:
    for stage in one.timeline.stages:
        held = occupancy(stage)
        assert held[-1].total_bytes == 0
        assert all(min(value.bytes_by_use) >= 0 for value in held)
        assert [value.seconds for value in held] == sorted(value.seconds for value in held)


@settings(max_examples=60, deadline=None)
@given(SIMULATED)
def test_a_stage_holds_as_many_micro_batches_as_the_cost_model_counts(one: Simulated) -> None:
    for index, stage in enumerate(one.timeline.stages):
        assert most_in_flight(stage) == in_flight(
            one.plan.schedule,
            stage_index=index,
            num_stages=len(one.plan.stages),
            num_micro_batches=one.plan.num_micro_batches,
        )


@settings(max_examples=60, deadline=None)
@given(SIMULATED)
def test_a_device_does_one_thing_at_a_time(one: Simulated) -> None:
    for stage in one.timeline.stages:
        done = stage.of(*PASSES, *ARRIVALS)
        assert all(before.end_seconds <= after.start_seconds for before, after in pairwise(done))


@settings(max_examples=60, deadline=None)
@given(SIMULATED)
def test_a_transfer_starts_when_sender_and_receiver_are_ready_and_its_pass_follows(one: Simulated) -> None:
    stages = one.timeline.stages
    made = [{(event.kind, event.micro_batch): event.end_seconds for event in stage.of(*PASSES)} for stage in stages]
    for index, stage in enumerate(stages):
        done = stage.of(*PASSES, *ARRIVALS)
        for before, event, after in zip((None, *done[:-1]), done, (*done[1:], None), strict=True):
            if event.kind not in ARRIVALS:
                continue
            sender = index - 1 if event.kind is EventKind.ACTIVATION else index + 1
            ready = made[sender][ARRIVALS[event.kind], event.micro_batch]
            assert event.start_seconds == max(before.end_seconds if before else 0.0, ready)
            assert after is not None
            assert (after.kind, after.micro_batch) == (ARRIVALS[event.kind], event.micro_batch)
            assert after.start_seconds == event.end_seconds


@settings(max_examples=60, deadline=None)
@given(SIMULATED)
def test_every_pass_but_at_the_ends_receives_what_it_starts_from(one: Simulated) -> None:
    last, number = len(one.timeline.stages) - 1, one.plan.num_micro_batches
    for index, stage in enumerate(one.timeline.stages):
        assert len(stage.of(EventKind.ACTIVATION)) == (number if index > 0 else 0)
        assert len(stage.of(EventKind.GRADIENT)) == (number if index < last else 0)


def test_two_stages_by_hand() -> None:
    # Two stages of one layer each, two micro-batches, 1F1B: stage 0 does F0 F1 B0 B1, stage 1 F0 B0 F1 B1.
    one = simulated(builders.plan("dp2 dp2", "dp2 dp2", num_micro_batches=2))
    kinds = [[(event.kind.value[0], event.micro_batch) for event in stage.of(*PASSES)] for stage in one.timeline.stages]
    assert kinds == [[("f", 0), ("f", 1), ("b", 0), ("b", 1)], [("f", 0), ("b", 0), ("f", 1), ("b", 1)]]


def test_the_fullest_moment_of_a_single_micro_batch_by_hand() -> None:
    # Sharded gradients come layer by layer while activations go, both at the end of a layer's backward pass. With a
    # second micro-batch its activations meet all gradients.
    stages = ("fsdp4 fsdp4-ckpt gsdp4 fsdp4",)
    alone, (stage,) = peaks(*stages, num_micro_batches=1)
    pieces = stage.facts.work.backward
    assert alone == stage.facts.state_bytes + max(
        piece.working_bytes
        + max(piece.kept_bytes, piece.late_bytes)
        + sum(later.kept_bytes for later in pieces[index + 1 :])
        + sum(done.late_bytes for done in pieces[:index])
        for index, piece in enumerate(pieces)
    )
    followed, (stage,) = peaks(*stages, num_micro_batches=2)
    pieces = stage.facts.work.backward
    gradients = sum(piece.late_bytes for piece in pieces)
    assert followed == stage.facts.state_bytes + gradients + max(
        piece.working_bytes + sum(later.kept_bytes for later in pieces[index:]) for index, piece in enumerate(pieces)
    )


def peaks(*stages: str, num_micro_batches: int) -> tuple[int, tuple[StageTimeline, ...]]:
    one = simulated(builders.plan(*stages, num_micro_batches=num_micro_batches), reserve_bytes=0)
    return max(peak_bytes(stage, reserve_bytes=0) for stage in one.timeline.stages), one.timeline.stages


def test_gpipe_passes_everything_forward_first() -> None:
    plan = builders.plan("dp2 dp2", "dp2 dp2", num_micro_batches=4, schedule=Schedule.GPIPE)
    for stage in simulated(plan).timeline.stages:
        assert [event.kind for event in stage.of(*PASSES)] == [EventKind.FORWARD] * 4 + [EventKind.BACKWARD] * 4


def test_recomputation_is_a_part_of_the_backward_pass() -> None:
    timeline = simulated(builders.plan("single single-ckpt single-ckpt single", on=builders.cluster(1))).timeline
    recomputed = [
        piece.layer_index
        for piece in timeline.stages[0].facts.work.backward
        if Work.RECOMPUTATION in dict(piece.shares)
    ]
    assert recomputed == [2, 1]


def test_what_a_pass_is_made_of_adds_up_to_its_price() -> None:
    plan = builders.plan("tp2-dp2 fsdp2-tp2-ckpt", "fsdp4 dp4", on=builders.cluster(8))
    one = simulated(plan, device_kind=DeviceKind.CUDA)
    for stage, seconds in zip(one.timeline.stages, one.estimate.stage_seconds, strict=True):
        pieces = (*stage.facts.work.forward, *stage.facts.work.backward)
        inside = seconds - stage.facts.entry_seconds - stage.facts.hop_seconds
        assert sum(share for piece in pieces for _, share in piece.shares) == pytest.approx(inside, rel=EXACT)
        assert all(share > 0 for piece in pieces for work, share in piece.shares if work is not Work.LAYOUT)


@pytest.mark.parametrize("schedule", Schedule)
def test_a_long_pipeline_with_many_micro_batches_takes_what_the_formula_says(schedule: Schedule) -> None:
    plan = builders.plan(
        *("single single-ckpt" for _ in range(15)),
        "single single",
        spec=builders.model(num_layers=30),
        on=builders.cluster(16),
        global_batch_size=256,
        num_micro_batches=256,
        schedule=schedule,
    )
    one = simulated(plan, flops_per_second=1e9)
    assert one.timeline.step_seconds == pytest.approx(one.estimate.step_seconds, rel=EXACT)
