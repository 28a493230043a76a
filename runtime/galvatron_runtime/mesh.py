"""Process groups and device meshes: made once, in one order, by every rank.

A group that only some ranks make is a hang, so everything here follows from the plan alone, never from a rank's part
in it. The line *job -> profile -> plan -> training* enters torch's world here, and leaves it in :func:`finish`.
"""

import multiprocessing
import os
import platform
import sys
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Never, assert_never

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from galvatron_planner.cluster import DeviceKind
from galvatron_planner.plan import Plan
from galvatron_planner.strategy import Layout

DEFAULT_TIMEOUT_SECONDS = 600.0
"""How long a collective may take before the process gives up; a peer that died is noticed much earlier."""


def device_name(device: torch.device) -> str:
    """How a device calls itself: a GPU by its driver, a CPU by its model."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return models[0].partition(":")[2].strip() if models else platform.machine()


def start_process_groups(device_kind: DeviceKind, *, timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS) -> torch.device:
    """Join the other processes that torchrun started, and return this process's device.

    GPUs talk by NCCL; the host side keeps gloo for objects and training checkpoints.
    """
    timeout = timedelta(seconds=timeout_seconds)
    match device_kind:
        case DeviceKind.CPU:
            dist.init_process_group("gloo", timeout=timeout)
            return torch.device("cpu")
        case DeviceKind.CUDA:
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(device)
            # Binding the device connects the world at once and lets meshes split that communicator: nothing is
            # connected lazily inside a pipeline, where only two of a group's ranks would come.
            dist.init_process_group("cpu:gloo,cuda:nccl", timeout=timeout, device_id=device)
            return device
        case _:
            assert_never(device_kind)


def finish() -> Never:
    """End a worker process that has done its work.

    Interpreter exit aborts now and then with process groups alive (4 of about 190 launches under torch 2.13), and
    torchrun would count that as a failure; leaving without destructors cannot. A forked rank has none (``launch.py``),
    and its agent waits for it to return.
    """
    dist.barrier()
    dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    if multiprocessing.parent_process() is not None:
        raise SystemExit(0)
    os._exit(0)


@dataclass(frozen=True, slots=True)
class Meshes:
    """Every group of a plan, and this rank's place in it.

    Attributes:
        device: this rank's device.
        stage_index: the pipeline stage this rank works on.
        stage_rank: its place within the stage.
        stages: mesh with the axes ``pipeline`` (the same place in every stage), ``data`` (all of one stage, as if every
            device held other rows) and ``tensor`` (of one device).
        layouts: the same axes for each distinct layout of the plan.
    """

    device: torch.device
    stage_index: int
    stage_rank: int
    stages: DeviceMesh
    layouts: dict[Layout, DeviceMesh]

    def data(self, layout: Layout) -> DeviceMesh:
        """Devices that hold the same shard of the tensors and different rows, in the order of the rows."""
        return self.layouts[layout]["data"]

    def tensor(self, layout: Layout) -> DeviceMesh:
        """Devices that hold the same rows and different shards of the tensors."""
        return self.layouts[layout]["tensor"]

    @property
    def stage_group(self) -> dist.ProcessGroup:
        """All devices of this stage; group ranks are stage ranks."""
        return self.stages.get_group("data")

    @property
    def pipeline_group(self) -> dist.ProcessGroup:
        """The devices at this place in every stage; group ranks are stage indices."""
        return self.stages.get_group("pipeline")


def build_meshes(plan: Plan, device: torch.device) -> Meshes:
    """Make the groups of all layouts of the plan, also of those that other stages use."""
    num_stages, width = len(plan.stages), plan.devices_per_stage
    stages = _mesh(device.type, Layout(width, 1, 1), num_stages)
    layouts = sorted({strategy.layout for stage in plan.stages for strategy in stage.layers})
    stage_index, stage_rank = divmod(dist.get_rank(), width)
    return Meshes(
        device=device,
        stage_index=stage_index,
        stage_rank=stage_rank,
        stages=stages,
        layouts={layout: _mesh(device.type, layout, num_stages) for layout in layouts},
    )


@cache
def _mesh(device_type: str, layout: Layout, num_stages: int) -> DeviceMesh:
    """Make the groups of a layout once in the life of the process: torch never forgets them either."""
    ranks = arrange(layout, num_stages=num_stages)
    return DeviceMesh(device_type, ranks, mesh_dim_names=("pipeline", "data", "tensor"))


def arrange(layout: Layout, *, num_stages: int) -> torch.Tensor:
    """Order all ranks as [stages, data, tensor]: row ``d`` of a stage holds slice ``d`` of the micro-batch."""
    degree, stride = layout.tensor_degree, layout.tensor_stride
    width = layout.data_degree * degree
    by_place = torch.arange(num_stages * width).view(num_stages, width // (degree * stride), degree, stride)
    return by_place.transpose(2, 3).reshape(num_stages, layout.data_degree, degree)
