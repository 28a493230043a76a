"""When gradients are there: the cost model counts those that are dropped before a step from their backward pass on."""

from collections.abc import Callable, Iterator
from typing import cast

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch._C._distributed_c10d import HashStore
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from galvatron_planner.model import Precision
from galvatron_runtime.blocks import LayerModule
from galvatron_runtime.parallel.gradients import GradientReduction
from galvatron_runtime.parallel.replicated import GradientBucket, MixedPrecisionReplica
from galvatron_runtime.parallel.sharded import ShardedGradients, ShardedParameters, mixed_precision

Reduce = Callable[[LayerModule, DeviceMesh], GradientReduction]

LATE: dict[str, Reduce] = {
    "fsdp": lambda module, mesh: ShardedParameters(module, mesh, mixed_precision(Precision.FP32)),
    "gsdp": lambda module, mesh: ShardedGradients(module, mesh, mixed_precision(Precision.FP32)),
    "fsdp in BF16": lambda module, mesh: ShardedParameters(module, mesh, mixed_precision(Precision.BF16)),
    "gsdp in BF16": lambda module, mesh: ShardedGradients(module, mesh, mixed_precision(Precision.BF16)),
    "dp in BF16": lambda module, mesh: MixedPrecisionReplica(module, mesh, mixed_precision(Precision.BF16)),
}


@pytest.fixture
def alone() -> Iterator[DeviceMesh]:
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def there(module: nn.Module, reduction: GradientReduction) -> tuple[bool, bool, bool]:
    """Whether gradients are there before the first backward pass of a step, after it, and before the next step."""
    # Those that the optimizer changes; while a layer is gathered it holds others.
    parameters = list(module.parameters())
    found = []
    for _ in range(2):
        reduction.start_step()
        leaving = module(torch.ones(2, 4)).sum()
        found.append(any(one.grad is not None for one in parameters))
        reduction.before_backward(is_last=True)
        leaving.backward()
        reduction.finish_step()
        found.append(all(one.grad is not None for one in parameters))
    before, after, again, _ = found
    return before, after, again


@pytest.mark.parametrize("kind", LATE)
def test_gradients_that_are_priced_as_late_come_in_the_backward_pass_of_every_step(
    kind: str, alone: DeviceMesh
) -> None:
    module = nn.Linear(4, 4)
    assert there(module, LATE[kind](cast(LayerModule, module), alone)) == (False, True, False)


def test_gradients_in_a_bucket_are_there_for_the_whole_run(alone: DeviceMesh) -> None:
    module = nn.Linear(4, 4)
    assert there(module, GradientBucket(cast(LayerModule, module), alone.get_group())) == (True, True, True)
