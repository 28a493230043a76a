from collections.abc import Sequence
from types import SimpleNamespace
from typing import cast

import numpy as np
from hypothesis import given
from hypothesis import strategies as generate

from galvatron_planner.cost.pipeline import StageSeconds, finish_seconds, in_flight
from galvatron_planner.problem import Schedule
from galvatron_planner.search.assembly import Assembly
from galvatron_planner.search.contents import Contents
from galvatron_planner.search.options import PipelineOptions
from galvatron_planner.search.places import Metric, Position
from galvatron_planner.search.screening import ScreenedPlace
from galvatron_planner.search.skeletons import Skeleton, Skeletons, schedule_seconds

SECONDS = generate.floats(0.1, 3.0)
STAGES = generate.lists(generate.builds(StageSeconds, SECONDS, SECONDS), min_size=1, max_size=6)


def bound(stages: list[StageSeconds], k: int, number: int, schedule: Schedule) -> float:
    """From the start of the step to its end, by way of stage ``k``."""
    onward = sum(stage.seconds for stage in stages[k + 1 :])
    passing = schedule_seconds(
        np.asarray(number * stages[k].seconds),
        np.asarray(onward),
        num_micro_batches=number,
        ahead=len(stages) - k,
        schedule=schedule,
    )
    return float(passing) + sum(stage.seconds for stage in stages[:k])


@given(STAGES, generate.integers(1, 12), generate.sampled_from(Schedule))
def test_no_schedule_undercuts_the_bound_of_any_stage(
    stages: list[StageSeconds], number: int, schedule: Schedule
) -> None:
    step = max(finish_seconds(stages, num_micro_batches=number, schedule=schedule))
    assert max(bound(stages, k, number, schedule) for k in range(len(stages))) <= step * (1 + 1e-9)


@given(SECONDS, SECONDS, generate.integers(1, 6), generate.integers(1, 6), generate.sampled_from(Schedule))
def test_the_bound_of_equal_stages_is_exact(
    forward: float, backward: float, num_stages: int, more: int, schedule: Schedule
) -> None:
    stages = [StageSeconds(forward, backward)] * num_stages
    number = num_stages + more
    step = max(finish_seconds(stages, num_micro_batches=number, schedule=schedule))
    assert abs(max(bound(stages, k, number, schedule) for k in range(num_stages)) / step - 1) < 1e-9


def test_equal_runs_of_layers_are_one_content() -> None:
    contents = Contents((0, 1, 1, 1, 2))
    assert contents.table[1, 2] == contents.table[2, 2]
    assert contents.table[0, 2] != contents.table[1, 2]
    assert contents.kinds_of(int(contents.table[2, 3])) == (1, 1, 2)
    # Whole prefixes (5), blocks from the second layer on (4 with the head), and what begins later with a head (3).
    assert len(contents.distinct) == 5 + 4 + 2 + 1


def test_a_stage_that_does_not_fit_takes_forever() -> None:
    endless = schedule_seconds(
        np.asarray(np.inf), np.asarray(0.0), num_micro_batches=2, ahead=1, schedule=Schedule.ONE_F_ONE_B
    )
    assert endless == np.inf


AMOUNTS = generate.tuples(SECONDS, SECONDS, generate.floats(0.0, 3.0), generate.floats(0.0, 3.0))
"""Forward, backward, reduction and optimizer seconds of a stage."""


@given(generate.lists(AMOUNTS, min_size=1, max_size=5), generate.integers(1, 9), generate.sampled_from(Schedule))
def test_no_step_undercuts_the_bound_of_its_skeleton(
    amounts: list[tuple[float, float, float, float]], number: int, schedule: Schedule
) -> None:
    skeletons, skeleton = only_skeleton(amounts, number, schedule)
    assembly = Assembly(num_stages=len(amounts), num_micro_batches=number, schedule=schedule)
    step = assembly.step_seconds(amounts)
    assert skeletons.bound_of(skeleton) <= step * (1 + 1e-9)
    assert skeletons.own_bound(skeleton) <= step * (1 + 1e-9)
    for k, own in enumerate(amounts):
        for metric, ceiling in skeletons.ceilings(skeleton, k, step).items():
            seconds = position(k, len(amounts), number, schedule).weights(metric)
            assert np.dot(seconds, own) <= ceiling * (1 + 1e-9)


def test_the_optimizer_of_either_stage_comes_after_all_passes() -> None:
    # The first stage waits for two ways through the second one, with a pass before the first and one after the last.
    for optimizers in ((0.0, 5.0), (5.0, 0.0)):
        amounts = [(1.0, 1.0, 0.0, optimizers[0]), (2.0, 2.0, 0.0, optimizers[1])]
        skeletons, skeleton = only_skeleton(amounts, 2, Schedule.ONE_F_ONE_B)
        assert skeletons.bound_of(skeleton) == 1 + 2 * 4 + 1 + 5


def position(k: int, num_stages: int, number: int, schedule: Schedule) -> Position:
    held = [in_flight(schedule, stage_index=index, num_stages=num_stages, num_micro_batches=number) for index in (k, 0)]
    return Position(
        stage_index=k,
        num_micro_batches=number,
        in_flight=held[0],
        first_in_flight=held[1],
        budget_bytes=0,
        is_first=k == 0,
        is_last=k == num_stages - 1,
    )


def only_skeleton(
    amounts: Sequence[tuple[float, float, float, float]], number: int, schedule: Schedule
) -> tuple[Skeletons, Skeleton]:
    """A layer a stage, which can run in one way only."""
    places = []
    for k, own in enumerate(amounts):
        weights = [position(k, len(amounts), number, schedule).weights(metric) for metric in Metric]
        seconds = (np.array(weights) @ np.array(own))[:, None, None, None]
        places.append(ScreenedPlace(np.array([k]), np.array([k + 1]), np.array([0]), seconds, np.array([0])))
    nothing = SimpleNamespace(kinds=(0,) * len(amounts), least_seconds=np.zeros((4, len(amounts))))
    options = cast(PipelineOptions, nothing)
    skeletons = Skeletons(places, options, num_micro_batches=number, schedule=schedule)
    return skeletons, Skeleton(tuple((0, 0, 0) for _ in amounts))
