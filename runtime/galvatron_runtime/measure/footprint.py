"""Memory of one pass through a layer, counted and not sampled: what the backward pass needs, and what comes and goes.

Kept bytes are those of the tensors that autograd saves. The working memory on top is the peak that the allocator
reports: its own statistics on CUDA, the profiler's record of every allocation on CPU.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile

from galvatron_runtime.measure.passes import LayerPass

_ALLOCATION = "[memory]"
"""Name of the profiler's events that carry the bytes of an allocation, negative when it is freed."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """Memory of one pass: ``activation_bytes`` and ``transient_bytes`` of a ``LayerSample``."""

    activation_bytes: int
    transient_bytes: int


def lasting_storages(layer_pass: LayerPass) -> frozenset[int]:
    """Find the storages that every pass saves again, its inputs apart: parameters, and tables that all passes share.

    Two passes are alive at once, so that equal addresses are equal storages.
    """
    saved: list[list[Tensor]] = [[], []]
    outputs = []
    for tensors in saved:
        with _collecting(tensors):
            outputs.append(layer_pass.forward())
    first, second = ({_address(tensor) for tensor in tensors} for tensors in saved)
    return frozenset(first & second) - {_address(tensor) for tensor in (*layer_pass.entering, *layer_pass.data)}


def footprint(layer_pass: LayerPass, lasting: frozenset[int]) -> Footprint:
    """Measure the memory of one pass.

    Args:
        layer_pass: with gradients of the parameters present, as from the second micro-batch on.
        lasting: what :func:`lasting_storages` found for the same module.
    """
    activation_bytes = _activation_bytes(layer_pass, lasting)
    layer_pass.forget_entering()
    # Forward and backward in one: the profiler knows frees only of what it saw allocated. The output, which nobody here
    # frees, stands for its gradient, which is as large and is there before the backward pass.
    peak = _peak_bytes(layer_pass.run, next(layer_pass.module.parameters()).device)
    input_bytes = sum(values.nbytes for values in layer_pass.inputs)
    return Footprint(activation_bytes, max(0, peak - (activation_bytes - input_bytes)))


def _activation_bytes(layer_pass: LayerPass, lasting: frozenset[int]) -> int:
    """Sum the storages saved for the backward pass, each once; inputs count even when the layer itself drops them."""
    saved: list[Tensor] = [*layer_pass.inputs]
    with _collecting(saved):
        output = layer_pass.forward()
    sizes = {_address(tensor): tensor.untyped_storage().nbytes() for tensor in saved}
    del output
    return sum(size for address, size in sizes.items() if address not in lasting)


@contextmanager
def _collecting(saved: list[Tensor]) -> Iterator[None]:
    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor.detach())
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        yield


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _peak_bytes(run: Callable[[], object], device: torch.device) -> int:
    """Most bytes that are allocated at any time during ``run`` above what was there before."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        run()
    return max(accumulate(_allocations(profiler), initial=0))


def _allocations(profiler: profile) -> list[int]:
    """List the bytes of every allocation in order of time; frees are negative."""
    results = profiler.profiler.kineto_results if profiler.profiler else None
    if results is None:
        raise AssertionError("the profiler recorded nothing")  # it just ran
    events = [event for event in results.events() if event.name() == _ALLOCATION]
    # torch's own stubs do not know the bytes.
    return [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]  # type: ignore[attr-defined]
