"""Sharded data parallelism: gradients and optimizer state of a layer split over devices, with or without parameters.

Torch's ``fully_shard`` sums and scatters the gradients after every micro-batch, so that no unsharded gradient outlives
the layer's backward pass. Parameters are gathered once a step (ZeRO stage 2), or before every pass forward and backward
and freed after it (stage 3).

Source: Rajbhandari et al. 2020 (arXiv 1910.02054), sections 5.2 and 5.3.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from galvatron_planner.model import Precision
from galvatron_runtime.blocks import LayerModule
from galvatron_runtime.parallel.replicated import sum_gradients


def mixed_precision(precision: Precision) -> MixedPrecisionPolicy:
    """Compute in BF16 where the plan says so; gradients are always summed in the parameters' format."""
    if precision is Precision.BF16:
        return MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    return MixedPrecisionPolicy()


class ShardedGradients:
    """The gradient reduction of one layer whose whole parameters stay on every device."""

    def __init__(self, module: LayerModule, mesh: DeviceMesh, policy: MixedPrecisionPolicy) -> None:
        fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
        self._module = cast(FSDPModule, module)  # fully_shard() changes the class of its argument
        self._module.set_reshard_after_backward(False, recurse=False)
        sum_gradients(self._module)
        self._parameters = list(module.parameters())

    def start_step(self) -> None:
        """Drop the gradients, and gather what the optimizer has changed.

        Layer by layer, so that only one at a time lies there twice: flat as gathered and in its parameters' shapes.
        """
        for parameter in self._parameters:
            parameter.grad = None
        self._module.reshard()
        self._module.unshard()

    def before_backward(self, *, is_last: bool) -> None:
        """Do nothing: gradients are scattered after every backward pass alike."""

    def finish_step(self) -> None:
        """Do nothing: the end of the backward pass has waited."""


class ShardedParameters:
    """The gradient reduction of one sharded layer."""

    def __init__(self, module: LayerModule, mesh: DeviceMesh, policy: MixedPrecisionPolicy) -> None:
        fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
        self._module = cast(FSDPModule, module)  # fully_shard() changes the class of its argument
        sum_gradients(self._module)
        self._parameters = list(module.parameters())

    def start_step(self) -> None:
        """Drop the gradients."""
        for parameter in self._parameters:
            parameter.grad = None

    def before_backward(self, *, is_last: bool) -> None:
        """Do nothing: gradients are scattered, and parameters freed, after every backward pass alike."""

    def finish_step(self) -> None:
        """Do nothing: the end of the backward pass has waited."""


class SharedStreams:
    """A stage as the root of those of its layers that torch shards or replicates.

    It owns no parameter. The layers share streams for their collectives, and the end of a stage's backward pass waits
    for all of them.
    """

    def __init__(self, stage: nn.Module, mesh: DeviceMesh, *, layers: Sequence[LayerModule]) -> None:
        """Wrap a stage.

        Args:
            stage: the stage; its class is changed.
            mesh: all devices of the stage.
            layers: its layers, first to last; torch manages those that it shards or replicates.
        """
        own = {parameter for layer in layers if isinstance(layer, FSDPModule) for parameter in layer.parameters()}
        others = {parameter for parameter in stage.parameters() if parameter not in own}
        fully_shard(stage, mesh=mesh, reshard_after_forward=False, ignored_params=others)
        self._stage = cast(FSDPModule, stage)  # fully_shard() changes the class of its argument
        _prefetch_backward(layers)

    def start_step(self) -> None:
        """Do nothing."""

    def before_backward(self, *, is_last: bool) -> None:
        """Let the collectives of one micro-batch run into the next one."""
        self._stage.set_is_last_backward(is_last)

    def finish_step(self) -> None:
        """Do nothing."""


def _prefetch_backward(layers: Sequence[LayerModule]) -> None:
    """Gather the parameters of the layer before while a layer's backward pass runs.

    Torch would guess the next layer from the order of forward passes. At the first layer of a stage that is wrong:
    then comes the forward pass of another micro-batch, through which the last layer's parameters would be held. Behind
    a layer that torch does not manage it would hold the one before through all of that layer's backward pass, which
    the cost model does not count.
    """
    for before, layer in zip([None, *layers[:-1]], layers, strict=True):
        if isinstance(layer, FSDPModule):
            # One that names itself, gathered already, prefetches nothing: naming none would be leaving it to torch.
            layer.set_modules_to_backward_prefetch([before if isinstance(before, FSDPModule) else layer])
