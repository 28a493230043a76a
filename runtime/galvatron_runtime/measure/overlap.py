"""How much computation and communication slow each other down while both run.

Gradients are reduced beside the backward pass. On a GPU the two compete for memory bandwidth and multiprocessors (the
authors of Galvatron measured 1.3), and where devices are CPU processes, for the very cores.
"""

import time
from dataclasses import dataclass
from math import ceil

import torch
import torch.distributed as dist

from galvatron_planner.profiles import ProfileRequest
from galvatron_planner.workload import input_shapes, output_shapes
from galvatron_runtime.measure.bench import Bench, Mark, seconds_between
from galvatron_runtime.measure.links import Link
from galvatron_runtime.measure.passes import LayerPass, build, feed
from galvatron_runtime.measure.rounds import Trial, time_trials
from galvatron_runtime.model import parameter_dtype

MAX_SLOWDOWN = 10.0
"""A side that is slowed down more than this has in effect waited for the other one."""
PASSES_PER_REDUCTION = 3
"""Computation that runs beside an all-reduce, in durations of the all-reduce."""
MAX_PASSES = 100


@dataclass(frozen=True, slots=True)
class Slowdowns:
    """Factors on the duration of either side while both run, at least 1."""

    computation: float
    communication: float


@dataclass(frozen=True, slots=True)
class Durations:
    """Seconds of both sides, alone or started together."""

    computation: float
    communication: float


def measure_overlap(link: Link | None, request: ProfileRequest, *, bench: Bench, budget_seconds: float) -> Slowdowns:
    """Run passes of a layer alone, an all-reduce alone, and both together.

    Args:
        link: over which to reduce; None where devices have nobody to talk to.
        request: for its layers and payloads.
        bench: where.
        budget_seconds: see :func:`time_trials`.

    Raises:
        NoisyMeasurement: when the durations disagree too much.
    """
    if link is None:
        return Slowdowns(1.0, 1.0)
    contest = _Contest(link, _layer_pass(request, bench), _gradients(request, bench), bench)
    num_passes = contest.balance()
    trials = (
        Trial("computation alone", lambda times: contest.compute(times * num_passes)),
        Trial("an all-reduce alone", contest.reduce),
        Trial("computation beside an all-reduce", lambda times: contest.run_both(times, num_passes=num_passes)),
    )
    timed = time_trials(trials, bench=bench, budget_seconds=budget_seconds, activity="measuring overlap")
    (computation,), (communication,), together = (one.parts for one in timed)
    return slowdowns(alone=Durations(computation, communication), together=Durations(*together))


def slowdowns(*, alone: Durations, together: Durations) -> Slowdowns:
    """Derive the factors from when either side ends, both having started together.

    Until the first side ends both are slowed down; the other then goes on at its own speed. So the first side's factor
    is plain, and the other side has done by then what it did not have to do alone afterwards.
    """
    both = min(together.computation, together.communication)
    return Slowdowns(
        computation=_factor(both, alone.computation - (together.computation - both)),
        communication=_factor(both, alone.communication - (together.communication - both)),
    )


def _factor(seconds_beside: float, seconds_alone: float) -> float:
    if seconds_alone * MAX_SLOWDOWN <= seconds_beside:
        return MAX_SLOWDOWN
    return max(1.0, seconds_beside / seconds_alone)


def _layer_pass(request: ProfileRequest, bench: Bench) -> LayerPass:
    """Choose a layer in the middle, if there is one: it is what gradients are reduced beside."""
    middle = (layer for layer in request.layers if input_shapes(layer) and output_shapes(layer))
    layer = next(middle, request.layers[0])
    module = build(layer, tensor_degree=1, precision=request.precision, device=bench.device)
    return feed(module, micro_batch_size=request.micro_batch_sizes[0], precision=request.precision, device=bench.device)


def _gradients(request: ProfileRequest, bench: Bench) -> torch.Tensor:
    dtype = parameter_dtype(request.precision)
    return torch.zeros(max(request.payload_bytes) // dtype.itemsize, dtype=dtype, device=bench.device)


class _Reduction:
    """An all-reduce on its way; it has state because its end is noticed by another thread, or recorded later."""

    def __init__(self, gradients: torch.Tensor, link: Link) -> None:
        self._work = dist.all_reduce(gradients, group=link.process_group, async_op=True)
        self._ends: list[Mark] = []
        if gradients.device.type != "cuda":
            self._work.get_future().add_done_callback(lambda _: self._ends.append(time.perf_counter()))

    def end(self, bench: Bench) -> Mark:
        """Wait, and return the moment at which it had ended."""
        if bench.device.type == "cuda":
            # Not on the stream that computes: its own work need not have ended.
            side = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch
            with torch.cuda.stream(side):
                self._work.wait()
                self._ends.append(bench.mark())
        self._work.wait()
        while not self._ends:
            time.sleep(0)  # the thread that ended the work is about to say so
        return self._ends[0]


@dataclass(frozen=True, slots=True)
class _Contest:
    """The two sides."""

    link: Link
    layer_pass: LayerPass
    gradients: torch.Tensor
    bench: Bench

    def balance(self) -> int:
        """Count the passes beside which one all-reduce ends, unless it is slowed down more than that."""
        self.run_both(1, num_passes=1)
        self.bench.line_up()
        one_pass, one_reduction = self.bench.slowest([*self.compute(1), *self.reduce(1)])
        return min(MAX_PASSES, ceil(PASSES_PER_REDUCTION * one_reduction / max(one_pass, 1e-9)))

    def compute(self, num_passes: int) -> tuple[float, ...]:
        """Return the seconds of passes without anything beside them."""
        first = self.bench.mark()
        last = self._run_passes(num_passes)
        self.bench.synchronize()
        self.layer_pass.forget_gradients()
        return (seconds_between(first, last),)

    def reduce(self, times: int) -> tuple[float, ...]:
        """Return the seconds of all-reduces without anything beside them."""
        moments = []
        for _ in range(times):
            first = self.bench.mark()
            moments.append((first, _Reduction(self.gradients, self.link).end(self.bench)))
        self.bench.synchronize()
        return (sum(seconds_between(first, last) for first, last in moments),)

    def run_both(self, times: int, *, num_passes: int) -> tuple[float, ...]:
        """Return the seconds until the passes ended, and until the all-reduce ended."""
        moments = []
        for _ in range(times):
            first = self.bench.mark()
            reduction = _Reduction(self.gradients, self.link)
            computed = self._run_passes(num_passes)
            moments.append((first, computed, reduction.end(self.bench)))
        self.bench.synchronize()
        self.layer_pass.forget_gradients()
        computation = sum(seconds_between(first, computed) for first, computed, _ in moments)
        communication = sum(seconds_between(first, reduced) for first, _, reduced in moments)
        return computation, communication

    def _run_passes(self, num_passes: int) -> Mark:
        for _ in range(num_passes):
            self.layer_pass.run()
        return self.bench.mark()
