import re

import pytest

import builders
from galvatron_planner.cost.prices import PriceList
from galvatron_planner.problem import PlanningProblem, SearchDimension, SearchLimits
from galvatron_planner.search.candidates import explore
from galvatron_planner.search.remedies import nearest_changes
from galvatron_planner.units import MIB

SMALL = builders.model(hidden_size=256, num_layers=6, num_heads=8, sequence_length=128, vocabulary_size=256)


def small_problem(memory: int, *, num_devices: int = 2, batch: int = 32, **limits: object) -> PlanningProblem:
    on = builders.cluster(num_devices, device_memory_bytes=memory)
    return builders.problem(SMALL, on, batch=batch, limits=SearchLimits.model_validate(limits))


def changes(problem: PlanningProblem, needed_bytes: int | None = None) -> tuple[str, ...]:
    return nearest_changes(problem, PriceList.of(problem), needed_bytes=needed_bytes)


def fits(problem: PlanningProblem) -> bool:
    return bool(explore(problem, PriceList.of(problem)).best)


@pytest.mark.parametrize("memory", [18 * MIB, 24 * MIB, 30 * MIB])
def test_more_devices_are_suggested_once_they_would_do(memory: int) -> None:
    # On two devices the states alone take more than 30 MiB; larger tensor degrees were not measured on two.
    suggested = next(change for change in changes(small_problem(memory)) if "spec.budget.gpus" in change)
    enough = int(re.findall(r"\d+", suggested)[0])
    assert fits(small_problem(memory, num_devices=enough, max_tensor_degree=2))
    assert not fits(small_problem(memory, num_devices=enough // 2, max_tensor_degree=2))


def test_devices_that_would_not_do_either_are_not_suggested() -> None:
    assert not any("spec.budget.gpus" in change for change in changes(small_problem(MIB)))


def test_a_smaller_batch_is_suggested_where_it_helps() -> None:
    excluded = (SearchDimension.PP, SearchDimension.TP, SearchDimension.SDP)
    problems = {size: small_problem(90 * MIB, batch=size, excluded=excluded) for size in (8, 16, 32, 64)}
    largest = max(size for size, problem in problems.items() if fits(problem))
    suggested = changes(small_problem(90 * MIB, batch=2 * largest, excluded=excluded))
    assert f"use a global batch of {largest} (spec.training.globalBatchSize)" in suggested


def test_memory_is_rounded_up_to_what_can_be_written() -> None:
    assert "use devices with 65Mi of memory (spec.budget.memoryPerGPU)" in changes(
        small_problem(MIB), needed_bytes=64 * MIB + 1
    )
