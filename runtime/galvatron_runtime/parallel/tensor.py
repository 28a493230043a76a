"""Tensor parallelism: one layer's matrices, heads and vocabulary split over devices that see the same samples.

Parameters become DTensors, so that sharding and training checkpoints know their global shape; the mathematics stays
by hand on plain local tensors (docs/adr/0007-own-tensor-parallel-layers.md: ``parallelize_module`` pays DTensor
dispatch on every operation and sums the input gradient once per matrix instead of once per layer part).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812  (the name every torch program uses)
from torch import Tensor, autograd
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard

from galvatron_planner.workload import parameters
from galvatron_runtime.blocks import LayerModule, Matrix, NoCollectives
from galvatron_runtime.model import replace_parameter, shard_of
from galvatron_runtime.parallel.sequence import SequenceGroup, TokenExchange, sum_gradients_of_whole_parameters


def split(module: LayerModule, mesh: DeviceMesh, *, splits_tokens: bool) -> None:
    """Replace a layer's parameters (also on ``meta``) by DTensors over a mesh of one axis.

    Args:
        module: the layer.
        mesh: the devices of its tensor group.
        splits_tokens: whether they hold other tokens each between split matrices (sequence parallelism).

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
    _connect(
        module, DeviceTensorGroup(mesh.get_group(), mesh.get_local_rank(), mesh.size()), splits_tokens=splits_tokens
    )


def split_for_measurement(module: LayerModule, degree: int, *, splits_tokens: bool = False) -> None:
    """Keep the parameters of rank 0 of ``degree`` as plain tensors, and leave out all communication.

    One device can so be timed at any tensor degree; its results are those of one rank before the sums.
    """
    for parameter in parameters(module.layer):
        whole = module.get_parameter(parameter.name).detach()
        replace_parameter(module, parameter.name, shard_of(whole, parameter, rank=0, degree=degree))
    alone = NoCollectives(rank=0, size=degree)
    module.tensor_group = SequenceGroup(alone, TokenExchange(degree)) if splits_tokens else alone


def connect_for_measurement(module: LayerModule, group: dist.ProcessGroup) -> None:
    """Let the devices of a group, which all hold the part of rank 0, wait for each other as if they held their own."""
    splits_tokens = module.tensor_group.sequence_degree > 1
    _connect(module, DeviceTensorGroup(group, rank=0, size=group.size()), splits_tokens=splits_tokens)


def _connect(module: LayerModule, devices: "DeviceTensorGroup", *, splits_tokens: bool) -> None:
    if not splits_tokens:
        module.tensor_group = devices
        return
    module.tensor_group = SequenceGroup(devices, TokenExchange(devices.size, devices.group))
    sum_gradients_of_whole_parameters(module, devices.group)


@dataclass(frozen=True, slots=True)
class DeviceTensorGroup:
    """The devices of one tensor-parallel group (a ``galvatron_runtime.blocks.TensorGroup``)."""

    group: dist.ProcessGroup
    rank: int
    size: int
    sequence_degree: int = 1

    def enter(self, hidden: Tensor) -> Tensor:
        """Pass on; sum the gradients of the split work in the backward pass."""
        return cast(Tensor, _SumGradients.apply(hidden, self.group))  # type: ignore[no-untyped-call]  # torch

    def multiply(self, x: Tensor, matrices: Sequence[Matrix]) -> tuple[Tensor, ...]:
        """Apply matrices; the sum of the gradients of ``x`` takes one all-reduce."""
        entered = self.enter(x)
        return tuple(F.linear(entered, weight, bias) for weight, bias in matrices)

    def leave(self, partial: Tensor) -> Tensor:
        """Sum the partial results; every device gets the whole gradient anyway."""
        return cast(Tensor, _SumResults.apply(partial, self.group))  # type: ignore[no-untyped-call]  # torch

    def total(self, partial: Tensor) -> Tensor:
        """Sum as :meth:`leave` does."""
        return self.leave(partial)

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
