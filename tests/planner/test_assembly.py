"""The choices of all stages put together: the shortest step of all combinations, and the schedule of many at once."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as generate

from galvatron_planner.cost.pipeline import StageSeconds, finish_seconds, finish_seconds_of_many
from galvatron_planner.problem import Schedule
from galvatron_planner.search.assembly import FEW_STEPS, Assembly
from galvatron_planner.search.tradeoffs import Tradeoff

SECONDS = generate.integers(0, 8).map(float)
CHOICES = generate.lists(generate.tuples(SECONDS, SECONDS, SECONDS, SECONDS), min_size=1, max_size=5)


@given(generate.lists(CHOICES, min_size=1, max_size=4), generate.integers(1, 5), generate.sampled_from(Schedule))
def test_the_best_of_all_combinations_is_found(
    offered: list[list[tuple[float, float, float, float]]], num_micro_batches: int, schedule: Schedule
) -> None:
    options = [[Tradeoff((), amounts) for amounts in some] for some in offered]
    assembly = Assembly(num_stages=len(options), num_micro_batches=num_micro_batches, schedule=schedule)
    every = [assembly.step_seconds([one.amounts for one in choices]) for choices in product(*options)]
    found = assembly.fastest(options, limit=min(every) + 0.5)
    assert found.is_proven
    assert found.choices is not None
    assert assembly.step_seconds([one.amounts for one in found.choices]) == min(every)
    assert assembly.fastest(options, limit=min(every)).choices is None


def test_choices_that_only_their_optimizers_couple_are_settled_quickly() -> None:
    """What is faster in its passes has the slower optimizer: without regard to that every step looks good."""
    options = [[Tradeoff((), (1.0 + i * 1e-3, 1.0, 0.0, 1.0 - i * 1e-3)) for i in range(40)] for _ in range(6)]
    assembly = Assembly(num_stages=6, num_micro_batches=8, schedule=Schedule.ONE_F_ONE_B)
    found = assembly.fastest(options, limit=100.0)
    assert FEW_STEPS < 40**6
    assert found.is_proven
    assert found.choices == tuple(some[0] for some in options)


@given(
    generate.lists(generate.tuples(*[generate.floats(0, 9)] * 6), min_size=1, max_size=5),
    generate.integers(1, 9),
    generate.sampled_from(Schedule),
)
def test_many_pipelines_end_when_each_of_them_does(
    stages: list[tuple[float, ...]], num_micro_batches: int, schedule: Schedule
) -> None:
    forward, backward = np.array(stages)[:, :3], np.array(stages)[:, 3:]
    ends = finish_seconds_of_many(forward, backward, num_micro_batches=num_micro_batches, schedule=schedule)
    for index in range(3):
        passes = [
            StageSeconds(*one) for one in zip(forward[:, index].tolist(), backward[:, index].tolist(), strict=True)
        ]
        alone = finish_seconds(passes, num_micro_batches=num_micro_batches, schedule=schedule)
        assert ends[:, index].tolist() == pytest.approx(alone, rel=1e-12, abs=0)
