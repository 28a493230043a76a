"""Where a measurement runs, and how its ranks agree on one number.

All ranks of the job take every measurement together, in the same order, as they compute and communicate together in
training: on CPU they share cores, and on GPUs one slow device holds up all others.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist

Mark = float | torch.cuda.Event
"""A moment on the device's time line: seconds on CPU, a recorded event on CUDA."""


@dataclass(frozen=True, slots=True)
class Bench:
    """This rank's place among those that measure.

    Attributes:
        device: of this rank.
        rank: global rank.
        world_size: all ranks of the job.
        report: tells people how far the measuring is: activity, finished and all measurements.
    """

    device: torch.device
    rank: int
    world_size: int
    report: Callable[[str, int, int], None]

    def mark(self) -> Mark:
        """Note the moment at which everything issued so far is done."""
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # torch
        event.record()
        return event

    def line_up(self) -> None:
        """Wait until all ranks are here and the device is idle."""
        self.synchronize()
        dist.barrier()
        self.synchronize()

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def slowest(self, values: list[float]) -> list[float]:
        """Take the largest of every value over all ranks."""
        return self._reduce(values, dist.ReduceOp.MAX)

    def mean(self, values: list[float]) -> list[float]:
        """Take the mean of every value over all ranks."""
        return [value / self.world_size for value in self._reduce(values, dist.ReduceOp.SUM)]

    def _reduce(self, values: list[float], operation: dist.ReduceOp.RedOpType) -> list[float]:
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor, op=operation)
        reduced: list[float] = tensor.tolist()
        return reduced


def seconds_between(first: Mark, second: Mark) -> float:
    """Duration between two marks of one device, after :meth:`Bench.synchronize`."""
    if isinstance(first, float) and isinstance(second, float):
        return second - first
    if isinstance(first, torch.cuda.Event) and isinstance(second, torch.cuda.Event):
        return float(first.elapsed_time(second)) / 1e3
    raise AssertionError("marks of two kinds of device")  # one bench makes only one kind
