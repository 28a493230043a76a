"""The update by pieces is torch's own over DTensors."""

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import HashStore
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_tensor

from galvatron_planner.training import AdamW
from galvatron_runtime.optimizer import make_optimizer

SETTINGS = AdamW(learning_rate=0.1, weight_decay=0.2, beta1=0.8, beta2=0.9)


@pytest.fixture
def alone() -> Iterator[DeviceMesh]:
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def values(tensor: Tensor) -> Tensor:
    """What a device holds."""
    return tensor.to_local().detach() if isinstance(tensor, DTensor) else tensor.detach()


def weights(mesh: DeviceMesh, placement: Placement | None = None) -> list[nn.Parameter]:
    """Two parameters with gradients, both DTensors where a placement is given."""
    made = []
    for size in (3, 5):
        whole, gradient = torch.arange(2.0 * size).view(2, size), torch.linspace(-1, 1, 2 * size).view(2, size)
        if placement is None:
            parameter, parameter_gradient = nn.Parameter(whole), gradient
        else:
            parameter = nn.Parameter(distribute_tensor(whole, mesh, [placement]))
            parameter_gradient = distribute_tensor(gradient, mesh, [placement])
        parameter.grad = parameter_gradient
        made.append(parameter)
    return made


def test_split_and_whole_parameters_are_updated_together_as_by_the_kernel_over_dtensors(alone: DeviceMesh) -> None:
    split, expected = weights(alone, Shard(0)), weights(alone, Shard(0))
    whole = weights(alone)
    ours = make_optimizer([split[0], whole[0], split[1], whole[1]], SETTINGS)
    theirs = torch.optim.AdamW(expected, lr=0.1, betas=(0.8, 0.9), weight_decay=0.2, fused=True)
    for _ in range(3):
        ours.step()
        theirs.step()
    for mine, plain, wanted in zip(split, whole, expected, strict=True):
        assert torch.equal(values(mine), values(wanted))
        assert torch.equal(values(plain), values(wanted))
        state, state_wanted = ours.state[mine], theirs.state[wanted]
        for moment in ("exp_avg", "exp_avg_sq"):
            assert state[moment].placements == mine.placements  # type: ignore[attr-defined]  # of a DTensor
            assert torch.equal(values(state[moment]), values(state_wanted[moment]))
        assert torch.equal(state["step"], values(state_wanted["step"]))


def test_a_gradient_that_is_split_otherwise_than_its_parameter_is_refused(alone: DeviceMesh) -> None:
    split = weights(alone, Shard(0))
    split[1].grad = distribute_tensor(torch.ones(2, 5), alone, [Replicate()])
    with pytest.raises(AssertionError):
        make_optimizer(split, SETTINGS).step()
