from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as generate

from galvatron_planner.cost.pipeline import StageSeconds, finish_seconds, in_flight, passes_in_order
from galvatron_planner.problem import Schedule

SECONDS = generate.floats(0.1, 10)
STAGES = generate.lists(generate.builds(StageSeconds, SECONDS, SECONDS), min_size=1, max_size=5)
MICRO_BATCHES = generate.integers(1, 9)


def step_seconds(stages: Sequence[StageSeconds], num_micro_batches: int, schedule: Schedule) -> float:
    return max(finish_seconds(stages, num_micro_batches=num_micro_batches, schedule=schedule))


def test_one_stage_never_waits() -> None:
    assert finish_seconds([StageSeconds(1.0, 2.0)], num_micro_batches=5, schedule=Schedule.ONE_F_ONE_B) == (15.0,)


@pytest.mark.parametrize("schedule", Schedule)
def test_two_stages_by_hand(schedule: Schedule) -> None:
    # F = 1, B = 2, two micro-batches, no transfer. Stage 1: F0 1-2, then B0 2-4 (1F1B) or F1 2-3 (GPipe).
    # 1F1B: stage 1 F1 4-5, B1 5-7; stage 0 B0 4-6, B1 7-9.
    # GPipe, last in last out by micro-batch: stage 1 B0 3-5, B1 5-7; stage 0 B0 5-7, B1 7-9.
    stages = [StageSeconds(1.0, 2.0), StageSeconds(1.0, 2.0)]
    assert finish_seconds(stages, num_micro_batches=2, schedule=schedule) == (9.0, 7.0)


@pytest.mark.parametrize("schedule", Schedule)
def test_a_transfer_is_never_hidden_behind_a_pass(schedule: Schedule) -> None:
    # F = 1, B = 2, a transfer 0.5, two micro-batches. Stage 1 receives and computes F0 in 1-2.5.
    # 1F1B: stage 1 B0 2.5-4.5; F1 was made at 2, but is received only now: 4.5-6; B1 6-8. Stage 0 receives and
    # computes B0 in 4.5-7, B1, made at 8, in 8-10.5.
    # GPipe: stage 1 receives and computes F1 in 2.5-4, B0 4-6, B1 6-8; stage 0 B0 6-8.5, B1, made at 8, 8.5-11.
    stages = [StageSeconds(1.0, 0.5 + 2.0), StageSeconds(0.5 + 1.0, 2.0)]
    ends = {Schedule.ONE_F_ONE_B: (10.5, 8.0), Schedule.GPIPE: (11.0, 8.0)}
    assert finish_seconds(stages, num_micro_batches=2, schedule=schedule) == ends[schedule]


@pytest.mark.parametrize("schedule", Schedule)
def test_equal_stages_follow_the_formula(schedule: Schedule) -> None:
    # (m + P - 1) (F + B), Narayanan et al. 2021, section 2.2.
    stages = [StageSeconds(1.0, 2.0)] * 4
    assert step_seconds(stages, 8, schedule) == pytest.approx((8 + 3) * 3.0)


def test_a_middle_stage_can_set_the_pace() -> None:
    stages = [StageSeconds(1.0, 1.0), StageSeconds(5.0, 5.0), StageSeconds(1.0, 1.0)]
    assert step_seconds(stages, 10, Schedule.ONE_F_ONE_B) >= 10 * 10.0


@given(STAGES, MICRO_BATCHES, generate.sampled_from(Schedule))
def test_no_schedule_beats_its_bounds(stages: list[StageSeconds], number: int, schedule: Schedule) -> None:
    ends = finish_seconds(stages, num_micro_batches=number, schedule=schedule)
    for k, end in enumerate(ends):
        ahead = stages[:k]
        assert end >= sum(s.forward_seconds for s in ahead) + number * stages[k].seconds - 1e-9
        assert ends[0] >= sum(s.seconds for s in ahead) + number * stages[k].seconds - 1e-9


@given(STAGES, MICRO_BATCHES, generate.sampled_from(Schedule))
def test_a_slower_stage_never_shortens_the_step(stages: list[StageSeconds], number: int, schedule: Schedule) -> None:
    slower = [StageSeconds(stages[0].forward_seconds + 1, stages[0].backward_seconds)]
    assert step_seconds(slower + stages[1:], number, schedule) >= step_seconds(stages, number, schedule) - 1e-9


@given(generate.integers(1, 6), MICRO_BATCHES, generate.sampled_from(Schedule))
def test_a_stage_never_holds_more_micro_batches_than_counted(stages: int, number: int, schedule: Schedule) -> None:
    for k in range(stages):
        held, most = 0, 0
        passes = [one for one in passes_in_order(schedule, num_stages=stages, num_micro_batches=number) if one[0] == k]
        for _, is_forward, _ in passes:
            held += 1 if is_forward else -1
            most = max(most, held)
        assert len(passes) == 2 * number
        assert held == 0
        assert most == in_flight(schedule, stage_index=k, num_stages=stages, num_micro_batches=number)
