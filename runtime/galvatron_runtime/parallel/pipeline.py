"""The pipeline: in which order a stage passes micro-batches forward and backward, and what it exchanges in between.

Between two passes a stage sends what the one made and receives what the next one needs, in one batch. Rank r of a stage
talks to the rank at the same place in the neighbouring stages.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import count, pairwise
from typing import assert_never

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.profiler import record_function

from galvatron_planner.plan import Plan
from galvatron_planner.problem import Schedule
from galvatron_runtime.mesh import Meshes
from galvatron_runtime.model import activation_dtype
from galvatron_runtime.parallel.gradients import GradientReduction
from galvatron_runtime.parallel.stopwatch import Stopwatch


class Direction(StrEnum):
    """Which way a micro-batch crosses a stage."""

    FORWARD = "forward"
    BACKWARD = "backward"


def passes(schedule: Schedule, *, stage_index: int, num_stages: int, num_micro_batches: int) -> tuple[Direction, ...]:
    """Order the passes of one stage; micro-batches go both ways in their own order.

    GPipe (Huang et al. 2019) sends all micro-batches forward first. 1F1B (Narayanan et al. 2019, PipeDream-Flush)
    alternates as soon as the first one can come back, so that at most ``num_stages - stage_index`` are in flight.
    """
    match schedule:
        case Schedule.GPIPE:
            warm_up = num_micro_batches
        case Schedule.ONE_F_ONE_B:
            warm_up = min(num_stages - stage_index - 1, num_micro_batches)
        case _:
            assert_never(schedule)
    steady = (Direction.FORWARD, Direction.BACKWARD) * (num_micro_batches - warm_up)
    return (Direction.FORWARD,) * warm_up + steady + (Direction.BACKWARD,) * warm_up


@dataclass(frozen=True, slots=True)
class Boundary:
    """The border to a neighbouring stage.

    Attributes:
        group: the devices at this place in every stage; group ranks are stage indices.
        neighbour: stage index on the other side.
        shape: of the hidden vectors that this device sends or receives.
        dtype: their format.
    """

    group: dist.ProcessGroup
    neighbour: int
    shape: tuple[int, ...]
    dtype: torch.dtype


def boundary(plan: Plan, meshes: Meshes, *, step: int) -> Boundary | None:
    """Describe the border to the stage before (``step`` -1) or after (1); None at the ends of the pipeline.

    What crosses it lies in the layout of the sender's last layer.
    """
    neighbour = meshes.stage_index + step
    if not 0 <= neighbour < len(plan.stages):
        return None
    layout = plan.stages[min(neighbour, meshes.stage_index)].layers[-1].layout
    rows = plan.micro_batch_size // layout.data_degree
    return Boundary(
        group=meshes.pipeline_group,
        neighbour=neighbour,
        shape=(rows, plan.model.sequence_length, plan.model.hidden_size),
        dtype=activation_dtype(plan.precision),
    )


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """What a stage reads of the data: tokens in the first, targets in the last, nothing in between."""

    tokens: Tensor | None
    targets: Tensor | None


class Pipeline:
    """Runs one stage through all passes of a step.

    It has state because passes leave things behind: micro-batches in flight, and sends under way.
    """

    def __init__(
        self,
        stage: nn.Module,
        reductions: Sequence[GradientReduction],
        order: Sequence[Direction],
        *,
        before: Boundary | None,
        after: Boundary | None,
        device: torch.device,
    ) -> None:
        self._stage, self._reductions, self._order = stage, tuple(reductions), tuple(order)
        self._before, self._after, self._device = before, after, device
        self._in_flight: list[tuple[Tensor | None, Tensor]] = []
        self._sending: list[tuple[dist.Work, Tensor]] = []
        self.busy, self.waiting = Stopwatch(device), Stopwatch(device)

    def run_step(self, read: Callable[[int], MicroBatch], *, loss_scale: float) -> Tensor:
        """Pass all micro-batches forward and backward; gradients then stand in the parameters.

        Args:
            read: gives this device's rows of a micro-batch by its number.
            loss_scale: factor of the summed loss.

        Returns:
            The scaled loss of this device's tokens, a scalar in FP64; 0 in all stages but the last.
        """
        for reduction in self._reductions:
            reduction.start_step()
        loss = torch.zeros((), dtype=torch.float64, device=self._device)
        unread, unreturned = count(), count()
        received = self._exchange(None, None, self._order[0])
        made: Tensor | None
        for direction, following in pairwise([*self._order, None]):
            number = next(unread if direction is Direction.FORWARD else unreturned)
            with self.busy.running(), record_function(f"{direction} {number}"):
                if direction is Direction.FORWARD:
                    made = self._forward(received, read(number), loss_scale)
                    if self._after is None:
                        loss += made.detach()
                else:
                    made = self._backward(received, is_last=following is None)
            received = self._exchange(direction, made, following)
        with self.busy.running():
            for reduction in self._reductions:
                reduction.finish_step()
        self._finish_sending()
        return loss

    def _forward(self, received: Tensor | None, micro_batch: MicroBatch, loss_scale: float) -> Tensor:
        entering = micro_batch.tokens if received is None else received.requires_grad_()
        leaving: Tensor = self._stage(entering, micro_batch.targets)
        if self._after is None:
            leaving = leaving * loss_scale
        self._in_flight.append((entering, leaving))
        return leaving

    def _backward(self, received: Tensor | None, *, is_last: bool) -> Tensor | None:
        for reduction in self._reductions:
            reduction.before_backward(is_last=is_last)
        entering, leaving = self._in_flight.pop(0)
        torch.autograd.backward(leaving, received)
        return None if entering is None else entering.grad

    def _exchange(self, done: Direction | None, made: Tensor | None, following: Direction | None) -> Tensor | None:
        """Send what the pass that is done has made, and return what the following one starts from."""
        to = {Direction.FORWARD: self._after, Direction.BACKWARD: self._before, None: None}[done]
        source = {Direction.FORWARD: self._before, Direction.BACKWARD: self._after, None: None}[following]
        operations, received = [], None
        if to is not None and made is not None:
            payload = made.detach().contiguous()
            operations.append(dist.P2POp(dist.isend, payload, group=to.group, group_peer=to.neighbour))
        if source is not None:
            received = torch.empty(source.shape, dtype=source.dtype, device=self._device)
            operations.append(dist.P2POp(dist.irecv, received, group=source.group, group_peer=source.neighbour))
        if operations:
            with self.waiting.running(), record_function("wait for a neighbouring stage"):
                self._communicate(operations)
        return received

    def _communicate(self, operations: list[dist.P2POp]) -> None:
        self._finish_sending()
        works = dist.batch_isend_irecv(operations)
        if len(works) != len(operations):  # NCCL: one piece of work for the batch, and only the stream waits
            for work in works:
                work.wait()
            return
        for operation, work in zip(operations, works, strict=True):
            if operation.op is dist.isend:
                self._sending.append((work, operation.tensor))
            else:
                work.wait()

    def _finish_sending(self) -> None:
        for work, _ in self._sending:
            work.wait()
        self._sending.clear()
