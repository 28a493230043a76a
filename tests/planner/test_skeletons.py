import numpy as np
from hypothesis import given
from hypothesis import strategies as generate

from galvatron_planner.cost.pipeline import StageSeconds, finish_seconds
from galvatron_planner.problem import Schedule
from galvatron_planner.search.contents import Contents
from galvatron_planner.search.skeletons import schedule_seconds

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
