"""What a search ranges over: pipeline degrees and batch splits; and the number by which plans are ranked."""

from collections.abc import Iterator

from galvatron_planner import families
from galvatron_planner.cost.step import BatchSplit
from galvatron_planner.problem import PlanningProblem
from galvatron_planner.search.joint import Candidate
from galvatron_planner.search.request import pipeline_degrees


def degrees(problem: PlanningProblem) -> tuple[int, ...]:
    """List the pipeline degrees that the problem allows."""
    return pipeline_degrees(problem.cluster, problem.limits, len(families.layers(problem.model)))


def splits(problem: PlanningProblem) -> Iterator[BatchSplit]:
    """Give every batch size with every number of micro-batches that divides it."""
    return (split for size in problem.batch.sizes for split in splits_of(size))


def splits_of(global_batch_size: int) -> Iterator[BatchSplit]:
    """Give a batch size with every number of micro-batches that divides it."""
    for number in range(1, global_batch_size + 1):
        if global_batch_size % number == 0:
            yield BatchSplit(global_batch_size, number)


def seconds_per_sample(candidate: Candidate) -> float:
    """Give the number that plans are ranked by."""
    return candidate.estimate.step_seconds / candidate.split.global_batch_size
