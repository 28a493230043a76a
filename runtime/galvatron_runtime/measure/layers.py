"""Seconds and bytes of every distinct layer, at every way to split its tensors and every local micro-batch size.

All ranks compute at the same time: CPU processes share cores and memory, GPUs of a node share power, and so they do in
training. Split layers run with their collectives, since ranks that wait for each other within a layer lose more than
the durations of both: nobody is as fast as the mean everywhere. What those collectives take by themselves is then
taken off again, for the search prices them for every placement.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
import torch.distributed as dist

from galvatron_planner.cluster import Group
from galvatron_planner.dimensions import communication, refusal
from galvatron_planner.model import LayerSpec, Precision
from galvatron_planner.profiles import Collective, LayerProfile, LayerSample, LinkProfile, ProfileRequest
from galvatron_planner.strategy import LayerStrategy
from galvatron_runtime.blocks import LayerModule
from galvatron_runtime.measure.bench import Bench, seconds_between
from galvatron_runtime.measure.footprint import Footprint, footprint, lasting_storages
from galvatron_runtime.measure.links import Link
from galvatron_runtime.measure.passes import LayerPass, build, feed
from galvatron_runtime.measure.rounds import Timing, Trial, rising, time_trials
from galvatron_runtime.parallel.tensor import connect_for_measurement

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Subject:
    """One layer split in one way, with the memory of a pass per micro-batch size that fits the device."""

    layer: LayerSpec
    split: LayerStrategy
    module: LayerModule
    footprints: dict[int, Footprint]

    @property
    def group(self) -> Group:
        """The devices that it is split over: neighbours."""
        return Group(size=self.split.tensor_degree, stride=1)


_LEAST_SHARE = 0.1
"""Part of a pass that is its computation at least."""


def measure_layers(
    request: ProfileRequest,
    *,
    links: tuple[Link, ...],
    timed_links: tuple[LinkProfile, ...],
    bench: Bench,
    budget_seconds: float,
) -> tuple[LayerProfile, ...]:
    """Measure every layer of the request in every split that it admits.

    Args:
        request: what to measure.
        links: this rank's groups.
        timed_links: what their collectives take.
        bench: where.
        budget_seconds: see :func:`time_trials`.

    Raises:
        NoisyMeasurement: when durations of one layer disagree too much.
    """
    neighbours = {link.group: link for link in links}
    timed = {(one.collective, one.group): one for one in timed_links}
    subjects = [
        _prepare(layer, split, request, bench)
        for layer in request.layers
        for split in request.splits
        if refusal(layer, split) is None
    ]
    for subject in subjects:
        if subject.group in neighbours:
            connect_for_measurement(subject.module, neighbours[subject.group].process_group)
    trials = [_trial(subject, size, request, bench) for subject in subjects for size in subject.footprints]
    timings = iter(time_trials(trials, bench=bench, budget_seconds=budget_seconds, activity="measuring layers"))
    profiles = []
    for subject in subjects:
        whole = [next(timings) for _ in subject.footprints]
        own = _without_collectives(subject, whole, timed, request.precision) if subject.group in neighbours else whole
        profiles.append(_profile(subject, own))
    return tuple(profiles)


def _without_collectives(
    subject: _Subject,
    whole: list[Timing],
    timed: Mapping[tuple[Collective, Group], LinkProfile],
    precision: Precision,
) -> list[Timing]:
    """Take off what the collectives of every pass take by themselves; noise must not leave less than a part of it."""
    own = []
    for size, timing in zip(subject.footprints, whole, strict=True):
        forward, backward = timing.parts
        said = communication(subject.layer, subject.split, local_samples=size, precision=precision)
        there, back = (
            sum(timed[one.collective, one.group].seconds(one.payload_bytes) for one in collectives)
            for collectives in (said.forward, said.backward)
        )
        parts = (max(forward - there, _LEAST_SHARE * forward), max(backward - back, _LEAST_SHARE * backward))
        # What is taken off is known better than what is left: the same seconds of error are a larger share.
        own.append(Timing(parts, timing.uncertainty * (forward + backward) / sum(parts)))
    return own


def _prepare(layer: LayerSpec, split: LayerStrategy, request: ProfileRequest, bench: Bench) -> _Subject:
    module = build(
        layer,
        tensor_degree=split.tensor_degree,
        splits_tokens=split.sequence_degree > 1,
        precision=request.precision,
        device=bench.device,
    )
    # Shapes alone decide the memory of a pass: one rank counts for all, and the others leave it their cores.
    counted = [_footprints(module, request, bench) if bench.rank == 0 else {}]
    dist.broadcast_object_list(counted, src=0)
    return _Subject(layer, split, module, counted[0])


def _footprints(module: LayerModule, request: ProfileRequest, bench: Bench) -> dict[int, Footprint]:
    """Count the memory of a pass at every micro-batch size; sizes that do not fit the device are left out."""
    found: dict[int, Footprint] = {}
    lasting: frozenset[int] | None = None
    for size in request.micro_batch_sizes:
        try:
            layer_pass = feed(module, micro_batch_size=size, precision=request.precision, device=bench.device)
            lasting = lasting_storages(layer_pass) if lasting is None else lasting
            layer_pass.run()
            found[size] = footprint(layer_pass, lasting)
        except torch.OutOfMemoryError:
            if not found:
                raise
            log.warning("micro-batch size left out", extra={"layer": module.layer.kind, "micro_batch_size": size})
            break
    module.zero_grad(set_to_none=True)
    return found


def _trial(subject: _Subject, micro_batch_size: int, request: ProfileRequest, bench: Bench) -> Trial:
    def run(num_passes: int) -> tuple[float, ...]:
        # Inputs live only during the block: on a GPU those of all trials together could be too much.
        layer_pass = feed(
            subject.module, micro_batch_size=micro_batch_size, precision=request.precision, device=bench.device
        )
        return _time_passes(layer_pass, num_passes, bench)

    name = f"{subject.layer.kind} as {subject.split} with {micro_batch_size} samples"
    return Trial(name, run)


def _time_passes(layer_pass: LayerPass, num_passes: int, bench: Bench) -> tuple[float, float]:
    """Run passes without a pause.

    Returns:
        seconds of all forward passes, and of all backward passes.
    """
    moments = []
    for _ in range(num_passes):
        before = bench.mark()
        output = layer_pass.forward()
        between = bench.mark()
        layer_pass.backward(output)
        moments.append((before, between, bench.mark()))
    bench.synchronize()
    layer_pass.forget_gradients()
    forward = sum(seconds_between(before, between) for before, between, _ in moments)
    backward = sum(seconds_between(between, after) for _, between, after in moments)
    return forward, backward


def _profile(subject: _Subject, timings: Sequence[Timing]) -> LayerProfile:
    forward = rising([timing.parts[0] for timing in timings])
    backward = rising([timing.parts[1] for timing in timings])
    # At small sizes the gradient of one parameter is more than all activations, and the more of these are freed before
    # it is made, the less it adds to them. No larger size gets away with less: the search reads between the samples.
    transient = list(accumulate((memory.transient_bytes for memory in subject.footprints.values()), max))
    samples = tuple(
        LayerSample(
            micro_batch_size=size,
            forward_seconds=forward[i],
            backward_seconds=backward[i],
            activation_bytes=memory.activation_bytes,
            transient_bytes=transient[i],
            uncertainty=timings[i].uncertainty,
        )
        for i, (size, memory) in enumerate(subject.footprints.items())
    )
    return LayerProfile(
        layer=subject.layer,
        tensor_degree=subject.split.tensor_degree,
        sequence_degree=subject.split.sequence_degree,
        samples=samples,
    )
