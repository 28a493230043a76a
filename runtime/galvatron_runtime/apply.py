"""THE TABLE OF CONTENTS of parallelism: a plan becomes a model that runs, in one readable order.

*job -> profile -> plan -> training*: this is the step from plan to training. Every rank calls :func:`apply` with the
same plan and gets its own part. It must not know where data comes from, nor what the optimizer does with gradients.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import assert_never

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from galvatron_planner.model import Precision
from galvatron_planner.plan import Plan
from galvatron_planner.strategy import Dimension, LayerStrategy, Layout
from galvatron_planner.workload import reads_data
from galvatron_runtime.blocks import LayerModule
from galvatron_runtime.data import Batch, targets_per_sample
from galvatron_runtime.mesh import Meshes, build_meshes
from galvatron_runtime.model import (
    Values,
    build_without_memory,
    global_name,
    initial_values,
    materialize,
    parameter_dtype,
)
from galvatron_runtime.parallel import gradients, tensor
from galvatron_runtime.parallel.checkpointing import recompute_activations
from galvatron_runtime.parallel.gradients import GradientReduction
from galvatron_runtime.parallel.pipeline import MicroBatch, Pipeline, boundary, passes
from galvatron_runtime.parallel.relayout import relayouts
from galvatron_runtime.parallel.replicated import GradientBucket, MixedPrecisionReplica
from galvatron_runtime.parallel.sharded import ShardedGradients, ShardedParameters, SharedStreams, mixed_precision
from galvatron_runtime.parallel.stage import Stage
from galvatron_runtime.parallel.tied import TiedParameters

ReadRows = Callable[[int, int], Batch]
"""Gives rows ``first`` to one before ``last`` of the global batch."""


def apply(plan: Plan, *, seed: int, device: torch.device, pretrained: Values | None = None) -> "ParallelModel":
    """Build this rank's part of the planned model.

    Args:
        plan: what to build; every rank has the same.
        seed: decides the initial weights, together with the parameters' names.
        device: where this rank computes.
        pretrained: weights to start from instead.

    Raises:
        InvalidPlan: when the run has another number of devices, or tensors do not suffice for a tensor degree.
    """
    plan.check_world(dist.get_world_size())
    # 1. All groups of all stages, on every rank: a group that only some ranks make is a hang.
    meshes = build_meshes(plan, device)
    # 2. This stage's layers without memory, numbered as in the whole model: weights outlive the plan.
    first = plan.first_layers[meshes.stage_index]
    strategies = plan.stages[meshes.stage_index].layers
    layers = build_without_memory(plan.model)[first : first + len(strategies)]
    drawn = initial_values(plan.model, seed=seed, dtype=parameter_dtype(plan.precision), device=device)
    values = pretrained or drawn
    reductions: list[GradientReduction] = []
    for index, (layer, strategy) in enumerate(zip(layers, strategies, strict=True), start=first):
        # 3. Tensor parallelism while there is no memory: no device ever holds the whole of what is split.
        tensor.split(layer, meshes.tensor(strategy.layout), splits_tokens=strategy.sequence_degree > 1)
        # 4. Initial values of what is left.
        materialize(layer, index, values)
        # 5. Checkpointing outside tensor parallelism, so that recomputing repeats its collectives ...
        if strategy.checkpoint:
            recompute_activations(layer)
        # 6. ... and inside sharding, so that recomputing finds the parameters gathered.
        reductions.append(reduce_gradients(layer, strategy, meshes.data(strategy.layout), plan.precision))
    # 7. Rows and tokens move where neighbours split them differently, also behind the boundary to the stage before.
    stage = Stage(layers, relayouts(plan, meshes), first_layer=first)
    # 8. One root around the layers that torch shards or replicates.
    if not all(isinstance(kind, GradientBucket) for kind in reductions):
        reductions.append(SharedStreams(stage, meshes.stages["data"], layers=layers))
    # 9. The schedule drives the stage.
    before, after = boundary(plan, meshes, step=-1), boundary(plan, meshes, step=1)
    order = passes(
        plan.schedule,
        stage_index=meshes.stage_index,
        num_stages=len(plan.stages),
        num_micro_batches=plan.num_micro_batches,
    )
    pipeline = Pipeline(stage, reductions, order, before=before, after=after, device=device)
    # 10. What several layers hold starts, and stays, equal.
    parameters = named_parameters(layers, first)
    tied = TiedParameters(plan.model, parameters)
    tied.spread_values()
    trained = {name: one for name, one in parameters.items() if name not in tied.copies}
    return ParallelModel(plan, meshes, pipeline, parameters, trained, tied)


def reduce_gradients(
    layer: LayerModule, strategy: LayerStrategy, mesh: DeviceMesh, precision: Precision
) -> GradientReduction:
    """Shard or replicate a layer over the devices that see other rows than this one."""
    policy = mixed_precision(precision)
    if strategy.degree(Dimension.SHARDED_DATA) > 1:
        return ShardedParameters(layer, mesh, policy)
    if strategy.degree(Dimension.SHARDED_GRADIENTS) > 1:
        return ShardedGradients(layer, mesh, policy)
    match precision:
        case Precision.BF16:
            return MixedPrecisionReplica(layer, mesh, policy)
        case Precision.FP32 | Precision.FP64:
            return GradientBucket(layer, mesh.get_group())
        case _:
            assert_never(precision)


def named_parameters(layers: list[LayerModule], first: int) -> dict[str, nn.Parameter]:
    """Name the parameters of the layers from number ``first`` on as in the whole model."""
    return {
        global_name(index, name): parameter
        for index, layer in enumerate(layers, start=first)
        for name, parameter in layer.named_parameters()
    }


@dataclass(frozen=True, slots=True)
class StepOutcome:
    """What one step came to.

    Attributes:
        loss: mean per target of the global batch, equal on all ranks.
        busy_seconds: forward and backward passes of this device, with the collectives inside them.
        wait_seconds: waiting for neighbouring stages.
    """

    loss: float
    busy_seconds: float
    wait_seconds: float


@dataclass(frozen=True, slots=True)
class ParallelModel:
    """This rank's part of a planned model.

    Attributes:
        plan: what it was built from.
        meshes: its groups.
        pipeline: its stage under the schedule.
        parameters_by_name: its parameters (DTensors where they are split or sharded) under plan-independent names.
        trained_parameters: what the optimizer changes and training checkpoints hold: all but the copies of tied ones.
        tied: those of them that other layers, also of other stages, hold as well.
    """

    plan: Plan
    meshes: Meshes
    pipeline: Pipeline
    parameters_by_name: dict[str, nn.Parameter]
    trained_parameters: dict[str, nn.Parameter]
    tied: TiedParameters

    @property
    def stage_index(self) -> int:
        """The pipeline stage of this rank."""
        return self.meshes.stage_index

    def run_step(self, read: ReadRows) -> StepOutcome:
        """Compute loss and gradients of one global batch, of which this rank reads only the rows it needs."""
        num_targets = self.plan.global_batch_size * targets_per_sample(self.plan.model)
        try:
            loss = self.pipeline.run_step(lambda number: self._read(number, read), loss_scale=1.0 / num_targets)
        except Exception as error:
            error.add_note(f"in stage {self.stage_index} of the pipeline")
            raise
        # Every device of a tensor-parallel head has the loss of the same rows.
        loss /= self.plan.stages[-1].layers[-1].tensor_degree
        dist.all_reduce(loss)
        self.tied.gather_gradients()
        return StepOutcome(loss.item(), self.pipeline.busy.read(), self.pipeline.waiting.read())

    def gradient_norm(self) -> Tensor:
        """Norm of all gradients of all ranks, equal on every rank."""
        return gradients.global_norm(
            self.trained_parameters.values(),
            devices_per_stage=self.plan.devices_per_stage,
            device=self.meshes.device,
        )

    def clip_gradients(self, max_norm: float) -> float:
        """Scale all gradients so that their norm is at most ``max_norm``; return the norm they had."""
        norm = self.gradient_norm()
        gradients.scale(self.trained_parameters.values(), (max_norm / (norm + 1e-6)).clamp(max=1.0))
        return norm.item()

    def update(self, optimizer: torch.optim.Optimizer) -> None:
        """Let the optimizer of the trained parameters make its step, also for the copies."""
        optimizer.step()
        self.tied.spread_values()

    def _read(self, number: int, read: ReadRows) -> MicroBatch:
        """Read the rows of a micro-batch that this stage's layers need."""
        layers, first = self.plan.layers, self.plan.first_layers[self.stage_index]
        readers = [index for index, layer in enumerate(layers) if reads_data(layer)]
        own = [s.layout for s in self.plan.stages[self.stage_index].layers]
        inputs = tuple(
            self._read_rows(number, own[index - first], read).inputs[place]
            for place, index in enumerate(readers)
            if first <= index < first + len(own)
        )
        is_last = self.stage_index == len(self.plan.stages) - 1
        return MicroBatch(inputs, self._read_rows(number, own[-1], read).targets if is_last else None)

    def _read_rows(self, number: int, layout: Layout, read: ReadRows) -> Batch:
        size = self.plan.micro_batch_size
        first, last = layout.rows(self.meshes.stage_rank, size)
        return read(number * size + first, number * size + last).to(self.meshes.device)
