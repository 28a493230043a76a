"""What a search says about itself: how good the plan is, what it beat, and what was left out and why."""

from dataclasses import dataclass
from typing import Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from galvatron_planner.documents import Digest, Document, Value
from galvatron_planner.plan import Plan
from galvatron_planner.problem import Algorithm, BatchRange, SearchLimits


class Alternative(Value):
    """A plan on one line.

    Attributes:
        pipeline_degree: number of stages.
        global_batch_size: samples per step.
        num_micro_batches: parts of it.
        step_seconds: one optimizer step.
        samples_per_second: the number that decides.
        peak_bytes: of the fullest device, reserve included.
        summary: strategies, stage by stage.
    """

    pipeline_degree: PositiveInt
    global_batch_size: PositiveInt
    num_micro_batches: PositiveInt
    step_seconds: PositiveFloat
    samples_per_second: PositiveFloat
    peak_bytes: NonNegativeInt
    summary: str


class Baseline(Value):
    """What a single dimension achieves on the same devices, its best batch split included.

    Attributes:
        name: the dimension, with ``+CKPT`` where checkpointing was allowed.
        plan: absent when no plan fits or the dimension cannot be used alone.
        needed_bytes: device memory with which it would fit, reserve included; absent when it fits or is impossible.
    """

    name: str
    plan: Alternative | None = None
    needed_bytes: PositiveInt | None = None

    @property
    def outcome(self) -> str:
        """Tell in one word how it ended."""
        if self.plan is not None:
            return "fits"
        return "impossible" if self.needed_bytes is None else "does not fit"


class RuleCount(Value):
    """Strategies that one pruning rule removed, summed over stage sizes and distinct layers."""

    rule: str
    reason: str
    removed: NonNegativeInt


class SearchReport(Document):
    """Stored beside the plan.

    Attributes:
        problem_digest: what was searched.
        algorithm: how it was searched.
        batch: sizes that were allowed; absent in reports of earlier versions.
        limits: what the search might use; absent like it.
        lower_bound_seconds: no plan takes less than this per step, at the plan's batch size and within the cost model;
            absent where the algorithm proves nothing: the published ones, and a plan that was brought.
        gap: how far the plan is above that at most, as a share of it; 0 when it is proven optimal, absent like it.
        num_candidates: combinations of batch size, pipeline degree and number of micro-batches.
        num_solved: those that a quick look left open.
        pruned_by_rule: strategies that were left out.
        runners_up: best plan per other pipeline degree, fastest first.
        baselines: what single dimensions achieve.
        memory_balance: 1 - largest peak / sum of peaks over stages; (P - 1) / P when perfectly balanced.
        time_balance: the same of stage times.
    """

    schema_tag: Literal["galvatron/search-report/v1"] = Field(default="galvatron/search-report/v1", alias="schema")
    problem_digest: Digest
    algorithm: Algorithm = Algorithm.OPTIMAL
    batch: BatchRange | None = None
    limits: SearchLimits | None = None
    lower_bound_seconds: PositiveFloat | None = None
    gap: NonNegativeFloat | None = None
    num_candidates: PositiveInt
    num_solved: NonNegativeInt
    pruned_by_rule: tuple[RuleCount, ...]
    runners_up: tuple[Alternative, ...]
    baselines: tuple[Baseline, ...]
    memory_balance: NonNegativeFloat
    time_balance: NonNegativeFloat


@dataclass(frozen=True, slots=True)
class Solution:
    """The best plan, and the reasons."""

    plan: Plan
    report: SearchReport
