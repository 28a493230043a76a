"""What a training step costs beside layers and collectives: clipping, the optimizer, and what is left."""

from collections.abc import Callable

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from galvatron_planner.model import Embedding, LayerSpec, Patches
from galvatron_planner.own import DataKind, OwnData, OwnLayer
from galvatron_planner.profiles import ProfileRequest
from galvatron_planner.workload import image_side, parameters
from galvatron_runtime.data.draws import draws
from galvatron_runtime.data.objectives import random_images, random_tokens
from galvatron_runtime.measure.bench import Bench, seconds_between
from galvatron_runtime.measure.rounds import Trial, time_trials
from galvatron_runtime.model import parameter_dtype
from galvatron_runtime.parallel.gradients import global_norm, scale

LARGEST_TENSOR = 1 << 22
"""Elements above which the speed of an elementwise pass no longer depends on the size of the tensor."""
CLIP_NORM = 1.0
VOCABULARY_SIZE = 256
"""Of drawn tokens; drawing takes as long for any other."""


def optimizer_seconds_per_parameter(request: ProfileRequest, *, bench: Bench, budget_seconds: float) -> float:
    """Time the global norm, clipping and one fused AdamW step over tensors as large as those of the layers.

    The all-reduce of the norm, which costs the same however many parameters there are, is taken off.

    Raises:
        NoisyMeasurement: when the durations disagree too much.
    """
    sizes = [min(p.num_elements, LARGEST_TENSOR) for layer in request.layers for p in parameters(layer)]
    dtype = parameter_dtype(request.precision)
    weights = [torch.zeros(size, dtype=dtype, device=bench.device, requires_grad=True) for size in sizes]
    for weight in weights:
        weight.grad = torch.full_like(weight, 1e-3)
    optimizer = torch.optim.AdamW(weights, fused=True)

    def clip_and_step() -> None:
        norm = global_norm(weights, devices_per_stage=bench.world_size, device=bench.device)
        scale(weights, (CLIP_NORM / norm).clamp(max=1.0))
        optimizer.step()

    def agree_only() -> None:
        global_norm([], devices_per_stage=bench.world_size, device=bench.device)

    trials = (_repeating("an optimizer step", clip_and_step, bench), _repeating("a norm", agree_only, bench))
    whole, agreeing = time_trials(
        trials, bench=bench, budget_seconds=budget_seconds, activity="measuring the optimizer"
    )
    return max(0.0, sum(whole.parts) - sum(agreeing.parts)) / sum(sizes)


def step_overhead_seconds(request: ProfileRequest, *, bench: Bench, budget_seconds: float) -> float:
    """Time what every step does once: draw samples, agree on loss, norm and whether to stop, and read the results.

    Raises:
        NoisyMeasurement: when the durations disagree too much.
    """
    keys = draws(0, 0, np.arange(request.micro_batch_sizes[0]))
    loss = torch.zeros((), dtype=torch.float64, device=bench.device)
    is_stopping = torch.zeros((), device=bench.device)

    def run_once() -> None:
        _drawn(request.layers[0], keys).to(bench.device)
        for figure in (loss, is_stopping):
            dist.all_reduce(figure)
            figure.item()
        global_norm([], devices_per_stage=bench.world_size, device=bench.device).item()

    trial = _repeating("the overhead of a step", run_once, bench)
    (overhead,) = time_trials(
        [trial], bench=bench, budget_seconds=budget_seconds, activity="measuring the overhead of a step"
    )
    return sum(overhead.parts)


def _repeating(name: str, run_once: Callable[[], None], bench: Bench) -> Trial:
    def run(num_passes: int) -> tuple[float, ...]:
        first = bench.mark()
        for _ in range(num_passes):
            run_once()
        last = bench.mark()
        bench.synchronize()
        return (seconds_between(first, last),)

    return Trial(name, run)


def _drawn(first: LayerSpec, keys: NDArray[np.uint64]) -> Tensor:
    """Draw what the first layer reads."""
    match first:
        case Patches():
            return random_images(image_side(first), keys)
        case OwnLayer(data=OwnData(kind=DataKind.IMAGES, shape=shape)):
            return random_images(shape[-1], keys)
        case OwnLayer(data=OwnData(shape=(length,))) | Embedding(sequence_length=length):
            return torch.from_numpy(random_tokens(VOCABULARY_SIZE, length, keys))
        case _:
            raise AssertionError("the first layer reads data")
