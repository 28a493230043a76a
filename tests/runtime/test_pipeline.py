"""The order of passes: complete, within its memory, and never a wait that nobody ends."""

from hypothesis import given
from hypothesis import strategies as generate

from galvatron_planner.problem import Schedule
from galvatron_runtime.parallel.pipeline import Direction, passes

FORWARD, BACKWARD = Direction.FORWARD, Direction.BACKWARD

SCHEDULES = generate.sampled_from(Schedule)
STAGES = generate.integers(1, 8)
MICRO_BATCHES = generate.integers(1, 20)


def orders(schedule: Schedule, num_stages: int, num_micro_batches: int) -> list[tuple[Direction, ...]]:
    return [
        passes(schedule, stage_index=stage, num_stages=num_stages, num_micro_batches=num_micro_batches)
        for stage in range(num_stages)
    ]


def most_in_flight(order: tuple[Direction, ...]) -> int:
    counts = [order[:end].count(FORWARD) - order[:end].count(BACKWARD) for end in range(len(order) + 1)]
    assert min(counts) == 0
    return max(counts)


def test_two_stages_alternate_as_drawn_by_hand() -> None:
    first, last = orders(Schedule.ONE_F_ONE_B, num_stages=2, num_micro_batches=3)

    assert first == (FORWARD, FORWARD, BACKWARD, FORWARD, BACKWARD, BACKWARD)
    assert last == (FORWARD, BACKWARD, FORWARD, BACKWARD, FORWARD, BACKWARD)


@given(SCHEDULES, STAGES, MICRO_BATCHES)
def test_every_micro_batch_crosses_every_stage_both_ways(schedule: Schedule, stages: int, micro_batches: int) -> None:
    for order in orders(schedule, stages, micro_batches):
        assert order.count(FORWARD) == order.count(BACKWARD) == micro_batches


@given(STAGES, MICRO_BATCHES)
def test_micro_batches_in_flight_are_what_the_cost_model_counts(stages: int, micro_batches: int) -> None:
    for stage, order in enumerate(orders(Schedule.ONE_F_ONE_B, stages, micro_batches)):
        assert most_in_flight(order) == min(stages - stage, micro_batches)
    for order in orders(Schedule.GPIPE, stages, micro_batches):
        assert most_in_flight(order) == micro_batches


@given(SCHEDULES, STAGES, MICRO_BATCHES)
def test_no_stage_waits_for_ever(schedule: Schedule, stages: int, micro_batches: int) -> None:
    """Even when a send ends only as its receive begins, and a stage does nothing else meanwhile (as with NCCL)."""
    gaps = [exchanges(order, stage, stages) for stage, order in enumerate(orders(schedule, stages, micro_batches))]
    posted = [list(gap.pop(0)) for gap in gaps]
    while any(posted) or any(gaps):
        met = [
            (stage, message)
            for stage in range(stages)
            for message in posted[stage]
            if any(message in other for number, other in enumerate(posted) if number != stage)
        ]
        for stage, message in met:
            posted[stage].remove(message)
        ready = [stage for stage in range(stages) if not posted[stage] and gaps[stage]]
        assert met or ready, "every stage waits for another"
        for stage in ready:
            posted[stage] = list(gaps[stage].pop(0))


def exchanges(order: tuple[Direction, ...], stage: int, num_stages: int) -> list[set[tuple[Direction, int, int]]]:
    """Before, between and after the passes of a stage: messages (direction, receiving stage, number), either end."""
    gaps: list[set[tuple[Direction, int, int]]] = [set() for _ in range(len(order) + 1)]
    numbers = {FORWARD: 0, BACKWARD: 0}
    for position, direction in enumerate(order):
        number, numbers[direction] = numbers[direction], numbers[direction] + 1
        onwards = stage + (1 if direction is FORWARD else -1)
        has_source = stage > 0 if direction is FORWARD else stage < num_stages - 1
        if has_source:
            gaps[position].add((direction, stage, number))
        if 0 <= onwards < num_stages:
            gaps[position + 1].add((direction, onwards, number))
    return gaps
