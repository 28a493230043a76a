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
from torch import Tensor
from torch.profiler import record_function

from galvatron_planner.plan import Plan
from galvatron_planner.problem import Schedule
from galvatron_planner.workload import output_shapes
from galvatron_runtime.mesh import Meshes
from galvatron_runtime.model import activation_dtype, sliced
from galvatron_runtime.parallel.gradients import GradientReduction
from galvatron_runtime.parallel.stage import Stage, Stream
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
        shapes: of the tensors that this device sends or receives for a micro-batch.
        dtype: their format.
    """

    group: dist.ProcessGroup
    neighbour: int
    shapes: tuple[tuple[int, ...], ...]
    dtype: torch.dtype


def boundary(plan: Plan, meshes: Meshes, *, step: int) -> Boundary | None:
    """Describe the border to the stage before (``step`` -1) or after (1); None at the ends of the pipeline.

    What crosses it lies in the layout of the sender's last layer.
    """
    neighbour = meshes.stage_index + step
    if not 0 <= neighbour < len(plan.stages):
        return None
    sender = min(neighbour, meshes.stage_index)
    last = plan.first_layers[sender + 1] - 1
    layout = plan.stages[sender].layers[-1].layout
    rows = plan.micro_batch_size // layout.data_degree
    return Boundary(
        group=meshes.pipeline_group,
        neighbour=neighbour,
        shapes=tuple((rows, *sliced(shape, layout.sequence_degree)) for shape in output_shapes(plan.layers[last])),
        dtype=activation_dtype(plan.precision),
    )


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """What a stage reads of the data: inputs for the layers that read some, targets in the last stage."""

    inputs: Stream
    targets: Tensor | None


class Pipeline:
    """Runs one stage through all passes of a step.

    It has state because passes leave things behind: micro-batches in flight, and sends under way.
    """

    def __init__(
        self,
        stage: Stage,
        reductions: Sequence[GradientReduction],
        order: Sequence[Direction],
        *,
        before: Boundary | None,
        after: Boundary | None,
        device: torch.device,
    ) -> None:
        self._stage, self._reductions, self._order = stage, tuple(reductions), tuple(order)
        self._before, self._after, self._device = before, after, device
        self._in_flight: list[tuple[Stream, Stream]] = []
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
        received = self._exchange(None, (), self._order[0])
        made: Stream
        for direction, following in pairwise([*self._order, None]):
            number = next(unread if direction is Direction.FORWARD else unreturned)
            with self.busy.running(), record_function(f"{direction} {number}"):
                if direction is Direction.FORWARD:
                    made = self._forward(received, read(number), loss_scale)
                    if self._after is None:
                        loss += made[0].detach()
                else:
                    made = self._backward(received, is_last=following is None)
            received = self._exchange(direction, made, following)
        with self.busy.running():
            for reduction in self._reductions:
                reduction.finish_step()
        self._finish_sending()
        return loss

    def _forward(self, received: Stream, micro_batch: MicroBatch, loss_scale: float) -> Stream:
        entering = tuple(values.requires_grad_() for values in received)
        leaving: Stream = self._stage(entering, micro_batch.inputs, micro_batch.targets)
        if self._after is None:
            leaving = (leaving[0] * loss_scale,)
        self._in_flight.append((entering, leaving))
        return leaving

    def _backward(self, received: Stream, *, is_last: bool) -> Stream:
        for reduction in self._reductions:
            reduction.before_backward(is_last=is_last)
        entering, leaving = self._in_flight.pop(0)
        torch.autograd.backward(leaving, received or None)
        # What a stage only takes in (a head the encoder's output) has no gradient, but its sender waits for one.
        return tuple(torch.zeros_like(values) if values.grad is None else values.grad for values in entering)

    def _exchange(self, done: Direction | None, made: Stream, following: Direction | None) -> Stream:
        """Send what the pass that is done has made, and return what the following one starts from."""
        to = {Direction.FORWARD: self._after, Direction.BACKWARD: self._before, None: None}[done]
        source = {Direction.FORWARD: self._before, Direction.BACKWARD: self._after, None: None}[following]
        operations: list[dist.P2POp] = []
        received: Stream = ()
        if to is not None:
            operations += [
                dist.P2POp(dist.isend, values.detach().contiguous(), group=to.group, group_peer=to.neighbour, tag=tag)
                for tag, values in enumerate(made)
            ]
        if source is not None:
            received = tuple(torch.empty(shape, dtype=source.dtype, device=self._device) for shape in source.shapes)
            operations += [
                dist.P2POp(dist.irecv, values, group=source.group, group_peer=source.neighbour, tag=tag)
                for tag, values in enumerate(received)
            ]
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
