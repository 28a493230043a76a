"""Data parallelism: every device holds the layer's whole parameters (or tensor shards) and sees other rows.

Gradients are summed over the micro-batches on each device, and over the devices once per step, while the backward pass
of the last micro-batch is still running. Layers without any data parallelism are the case of one device.
"""

from itertools import accumulate
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed._composable.replicate_with_fsdp import replicate
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
from torch.distributed.tensor import DTensor

from galvatron_runtime.blocks import LayerModule
from galvatron_runtime.parallel.gradients import local_part


class GradientBucket:
    """All gradients of a layer in one flat tensor, summed by one all-reduce as soon as the last of them is complete.

    It has state because autograd calls it gradient by gradient. The parameters' ``grad`` are views of the bucket: there
    is no second copy at any time.
    """

    def __init__(self, module: LayerModule, group: dist.ProcessGroup) -> None:
        self._parameters = list(module.parameters())
        self._group = group
        self._is_last = False
        self._num_ready = 0
        self._work: dist.Work | None = None
        sizes = [local_part(parameter).numel() for parameter in self._parameters]
        self._flat = torch.zeros(sum(sizes), dtype=self._parameters[0].dtype, device=self._parameters[0].device)
        ends = accumulate(sizes)
        self._gradients = [
            _like(parameter, self._flat[end - size : end])
            for parameter, size, end in zip(self._parameters, sizes, ends, strict=True)
        ]
        for parameter in self._parameters:
            parameter.register_post_accumulate_grad_hook(self._on_gradient)  # type: ignore[no-untyped-call]  # torch

    def start_step(self) -> None:
        """Empty the bucket, and put it back in place of whatever an optimizer left there."""
        self._flat.zero_()
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            parameter.grad = gradient

    def before_backward(self, *, is_last: bool) -> None:
        """Sum over the devices only in the last backward pass."""
        self._is_last = is_last
        self._num_ready = 0

    def _on_gradient(self, _: Tensor) -> None:
        self._num_ready += 1
        if self._is_last and self._num_ready == len(self._parameters) and self._group.size() > 1:
            self._work = dist.all_reduce(self._flat, group=self._group, async_op=True)

    def finish_step(self) -> None:
        """Wait for the all-reduce."""
        if self._work is not None:
            self._work.wait()
            self._work = None


def _like(parameter: nn.Parameter, flat: Tensor) -> Tensor:
    """Give a piece of a bucket the shape and placement of a parameter."""
    if not isinstance(parameter, DTensor):
        return flat.view(parameter.shape)
    return DTensor.from_local(
        flat.view(local_part(parameter).shape),
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )


class MixedPrecisionReplica:
    """Data parallelism with FP32 parameters that are computed with in BF16.

    The compute copy is made before the forward pass and freed after the last backward pass; gradients are summed over
    micro-batches and devices in FP32.
    """

    def __init__(self, module: LayerModule, mesh: DeviceMesh, policy: MixedPrecisionPolicy) -> None:
        replicate(module, mesh=mesh, mp_policy=policy)
        self._module = cast(FSDPModule, module)  # replicate() changes the class of its argument
        sum_gradients(self._module)
        self._parameters = list(module.parameters())

    def start_step(self) -> None:
        """Drop the gradients."""
        for parameter in self._parameters:
            parameter.grad = None

    def before_backward(self, *, is_last: bool) -> None:
        """Sum over the devices, and free the compute copy, only in the last backward pass."""
        self._module.set_requires_gradient_sync(is_last, recurse=False)
        self._module.set_reshard_after_backward(is_last, recurse=False)

    def finish_step(self) -> None:
        """Do nothing: the end of the backward pass has waited."""


def sum_gradients(module: FSDPModule) -> None:
    """Make torch sum gradients where it would average them."""
    module.set_gradient_divide_factor(1.0)
    # Without this the factor becomes a premultiplied sum, which gloo does not have.
    module.set_force_sum_reduction_for_comms(True)
