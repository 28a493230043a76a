"""Tensor parallelism: one layer's matrices, heads and vocabulary split over devices that see the same samples.

Parameters become DTensors, so that sharding and training checkpoints know their global shape; the mathematics stays
by hand on plain local tensors (docs/adr/0007-own-tensor-parallel-layers.md: ``parallelize_module`` pays DTensor
dispatch on every operation and sums the input gradient once per matrix instead of once per layer part).
"""

from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, autograd
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard

from galvatron_planner.workload import parameters
from galvatron_runtime.blocks import LayerModule, NoCollectives
from galvatron_runtime.model import replace_parameter, shard_of


def split(module: LayerModule, mesh: DeviceMesh) -> None:
    """Replace a layer's parameters (also on ``meta``) by DTensors over a mesh of one axis.

    Raises:
        InvalidPlan: when a device would hold nothing of a tensor.
    """
    if mesh.size() == 1:
        return
    for parameter in parameters(module.layer):
        whole = module.get_parameter(parameter.name).detach()
        placement = Replicate() if parameter.split_dim is None else Shard(parameter.split_dim)
        distributed = DTensor.from_local(
            shard_of(whole, parameter, rank=mesh.get_local_rank(), degree=mesh.size()),
            mesh,
            [placement],
            run_check=False,
            shape=whole.shape,
            stride=whole.stride(),
        )
        replace_parameter(module, parameter.name, distributed)
    module.tensor_group = DeviceTensorGroup(mesh.get_group(), mesh.get_local_rank(), mesh.size())


def split_for_measurement(module: LayerModule, degree: int) -> None:
    """Keep the parameters of rank 0 of ``degree`` as plain tensors, and leave out all communication.

    One device can so be timed at any tensor degree; its results are those of one rank before the sums.
    """
    for parameter in parameters(module.layer):
        whole = module.get_parameter(parameter.name).detach()
        replace_parameter(module, parameter.name, shard_of(whole, parameter, rank=0, degree=degree))
    module.tensor_group = NoCollectives(rank=0, size=degree)


def connect_for_measurement(module: LayerModule, group: dist.ProcessGroup) -> None:
    """Let the devices of a group, which all hold the part of rank 0, wait for each other as if they held their own."""
    module.tensor_group = DeviceTensorGroup(group, rank=0, size=group.size())


@dataclass(frozen=True, slots=True)
class DeviceTensorGroup:
    """The devices of one tensor-parallel group (a ``galvatron_runtime.blocks.TensorGroup``)."""

    group: dist.ProcessGroup
    rank: int
    size: int

    def enter(self, hidden: Tensor) -> Tensor:
        """Pass on; sum the gradients of the split work in the backward pass."""
        return cast(Tensor, _SumGradients.apply(hidden, self.group))  # type: ignore[no-untyped-call]  # torch

    def leave(self, partial: Tensor) -> Tensor:
        """Sum the partial results; every device gets the whole gradient anyway."""
        return cast(Tensor, _SumResults.apply(partial, self.group))  # type: ignore[no-untyped-call]  # torch

    def maximum(self, values: Tensor) -> Tensor:
        """Take the elementwise maximum."""
        values = values.clone()
        dist.all_reduce(values, op=dist.ReduceOp.MAX, group=self.group)
        return values


# The conjugate pair f and g of Shoeybi et al. 2019 (arXiv 1909.08053), figure 3.
class _SumGradients(autograd.Function):
    @staticmethod
    def forward(context: Any, hidden: Tensor, group: dist.ProcessGroup) -> Tensor:
        context.group = group
        return hidden.view_as(hidden)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        # A gradient may be shared with another branch of the graph: sum a copy.
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=context.group)
        return total, None


class _SumResults(autograd.Function):
    @staticmethod
    def forward(context: Any, partial: Tensor, group: dist.ProcessGroup) -> Tensor:
        # In place: what makes partial results (products, sums, look-ups) keeps none of them for its backward pass.
        context.mark_dirty(partial)
        dist.all_reduce(partial, group=group)
        return partial

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:  # noqa: ARG004  (autograd's signature)
        return gradients[0], None
