"""Document 3, the plan: stages, strategies and batch split of a whole job, and what the search expects of it.

A plan that exists can run: every invariant that the runtime relies on is checked here.
"""

from itertools import accumulate, groupby
from typing import Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from galvatron_planner import families
from galvatron_planner.cluster import Cluster
from galvatron_planner.dimensions import refusal
from galvatron_planner.documents import Digest, Document, Value
from galvatron_planner.errors import InvalidPlan
from galvatron_planner.model import LayerSpec, Model, Precision
from galvatron_planner.problem import Schedule
from galvatron_planner.profiles import ProfileSource
from galvatron_planner.strategy import StrategyText


class StagePlan(Value):
    """Consecutive layers on one pipeline stage, each with its strategy."""

    layers: tuple[StrategyText, ...] = Field(min_length=1)


class Estimate(Value):
    """What the cost model expects of a plan.

    Attributes:
        step_seconds: one optimizer step.
        samples_per_second: global batch over step time.
        stage_seconds: forward plus backward of one micro-batch, per stage, communication and what it receives included.
        stage_peak_bytes: peak device memory per stage, reserve included.
        bubble_ratio: share of the schedule in which the slowest stage waits for others; transfers are not waiting.
        source: where the numbers behind it come from.
    """

    step_seconds: PositiveFloat
    samples_per_second: PositiveFloat
    stage_seconds: tuple[NonNegativeFloat, ...]
    stage_peak_bytes: tuple[PositiveInt, ...]
    bubble_ratio: NonNegativeFloat
    source: ProfileSource = ProfileSource.MEASURED

    @property
    def peak_bytes(self) -> int:
        """Peak device memory of the fullest stage."""
        return max(self.stage_peak_bytes)


class Plan(Document):
    """Document 3.

    Global rank ``r`` works on stage ``r // (devices / stages)``; inside a stage, axes count ranks innermost first.

    Attributes:
        model: what is trained.
        precision: number format of the computation.
        cluster: the devices it was made for.
        global_batch_size: samples per step.
        num_micro_batches: equal parts that cross the pipeline one after another.
        schedule: order of forward and backward passes.
        stages: first to last.
        estimate: what the cost model expects.
        problem_digest: the planning problem that this plan solves.
    """

    schema_tag: Literal["galvatron/plan/v1"] = Field(default="galvatron/plan/v1", alias="schema")
    model: Model
    precision: Precision
    cluster: Cluster
    global_batch_size: PositiveInt
    num_micro_batches: PositiveInt
    schedule: Schedule
    stages: tuple[StagePlan, ...] = Field(min_length=1)
    estimate: Estimate
    problem_digest: Digest

    @model_validator(mode="after")
    def _check_invariants(self) -> Self:
        problem = self._shape_problem() or self._layer_problem()
        if problem:
            raise ValueError(problem)
        return self

    def _shape_problem(self) -> str | None:
        num_layers = len(self.layers)
        planned = sum(len(stage.layers) for stage in self.stages)
        if planned != num_layers:
            return f"stages hold {planned} layers, the model has {num_layers}"
        if self.cluster.num_devices % len(self.stages):
            return f"{self.cluster.num_devices} devices do not divide into {len(self.stages)} stages"
        if self.global_batch_size % self.num_micro_batches:
            return f"global batch {self.global_batch_size} does not divide into {self.num_micro_batches} micro-batches"
        return None

    def _layer_problem(self) -> str | None:
        strategies = (strategy for stage in self.stages for strategy in stage.layers)
        for index, (layer, strategy) in enumerate(zip(self.layers, strategies, strict=True)):
            where = f"layer {index} ({layer.kind}, {strategy})"
            if strategy.num_devices != self.devices_per_stage:
                return f"{where} spans {strategy.num_devices} of {self.devices_per_stage} devices"
            if self.micro_batch_size % strategy.data_degree:
                return f"{where} cannot split a micro-batch of {self.micro_batch_size} samples"
            if reason := refusal(layer, strategy):
                return f"{where}: {reason}"
        return None

    @property
    def layers(self) -> tuple[LayerSpec, ...]:
        """The model's layers, first to last."""
        return families.layers(self.model)

    @property
    def devices_per_stage(self) -> int:
        """Devices of each pipeline stage."""
        return self.cluster.num_devices // len(self.stages)

    @property
    def micro_batch_size(self) -> int:
        """Samples of one micro-batch, over all devices of a stage."""
        return self.global_batch_size // self.num_micro_batches

    @property
    def first_layers(self) -> tuple[int, ...]:
        """Index of each stage's first layer."""
        return tuple(accumulate((len(stage.layers) for stage in self.stages[:-1]), initial=0))

    @property
    def tokens_per_second(self) -> float:
        """Expected throughput in tokens."""
        return self.estimate.samples_per_second * self.model.sequence_length

    @property
    def summary(self) -> str:
        """The plan on one line, for instance ``pp2 m8: tp2-dp2-ckpt x17 | dp4 x17``."""
        stages = " | ".join(summarize_strategies(stage) for stage in self.stages)
        return f"pp{len(self.stages)} m{self.num_micro_batches}: {stages}"

    def check_world(self, num_devices: int) -> None:
        """Refuse to run on another number of devices than planned for.

        Raises:
            InvalidPlan: when the numbers differ.
        """
        if num_devices != self.cluster.num_devices:
            raise InvalidPlan(
                f"the plan is for {self.cluster.num_devices} devices, the run has {num_devices}",
                remedy="start as many processes as the plan has devices, or plan again",
            )


def summarize_strategies(stage: StagePlan) -> str:
    """Write a stage's strategies run-length encoded, for instance ``tp2-dp2 x3, dp4 x5``."""
    runs = ((text, len(tuple(run))) for text, run in groupby(str(s) for s in stage.layers))
    return ", ".join(f"{text} x{count}" if count > 1 else text for text, count in runs)
