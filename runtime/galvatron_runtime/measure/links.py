"""Durations of collectives: every pattern, over every family of groups, at several payloads.

All groups of a family communicate at the same time, as they do in training, so that links they share are shared here
as well. Outputs are allocated anew in every call, as the runtime does.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import assert_never

import torch
import torch.distributed as dist

from galvatron_planner.cluster import Group
from galvatron_planner.profiles import Collective, LinkProfile, LinkSample, ProfileRequest
from galvatron_runtime.measure.bench import Bench, seconds_between
from galvatron_runtime.measure.rounds import Timing, Trial, rising, time_trials

Communicate = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Link:
    """This rank's end of one group of a family.

    Attributes:
        group: the family.
        members: global ranks of this rank's group, in their order in the group.
        process_group: the group, as torch knows it.
    """

    group: Group
    members: tuple[int, ...]
    process_group: dist.ProcessGroup


def connect(groups: tuple[Group, ...], bench: Bench) -> tuple[Link, ...]:
    """Create the process groups of every family, on all ranks in the same order."""
    return tuple(_connect_family(group, bench) for group in groups)


def measure_links(
    links: tuple[Link, ...], request: ProfileRequest, *, bench: Bench, dtype: torch.dtype, budget_seconds: float
) -> tuple[LinkProfile, ...]:
    """Time every collective of every link at every payload of the request.

    Args:
        links: this rank's groups.
        request: for its payloads.
        bench: where.
        dtype: number format of what is sent: that of activations.
        budget_seconds: see :func:`time_trials`.

    Raises:
        NoisyMeasurement: when durations of one collective disagree too much.
    """
    curves = [(link, collective) for link in links for collective in Collective if is_used(collective, link.group)]
    # One buffer for all: a trial uses its beginning.
    buffer = torch.zeros(
        max(request.payload_bytes) // dtype.itemsize + bench.world_size, dtype=dtype, device=bench.device
    )
    trials = [
        _trial(link, collective, payload_bytes=payload, bench=bench, buffer=buffer)
        for link, collective in curves
        for payload in request.payload_bytes
    ]
    timings = iter(time_trials(trials, bench=bench, budget_seconds=budget_seconds, activity="measuring links"))
    return tuple(
        _profile(link.group, collective, request.payload_bytes, [next(timings) for _ in request.payload_bytes])
        for link, collective in curves
    )


def prepare(link: Link, collective: Collective, *, payload_bytes: int, buffer: torch.Tensor, rank: int) -> Communicate:
    """Prepare a function that runs one collective; its payload is rounded up to equal parts for all members."""
    size, group = link.group.size, link.process_group
    part = -(-payload_bytes // (size * buffer.itemsize))
    whole = buffer[: size * part]
    match collective:
        case Collective.ALL_REDUCE:
            return lambda: dist.all_reduce(whole, group=group)
        case Collective.ALL_GATHER:
            return lambda: dist.all_gather_single(torch.empty_like(whole), whole[:part], group=group)
        case Collective.REDUCE_SCATTER:
            return lambda: dist.reduce_scatter_single(torch.empty_like(whole[:part]), whole, group=group)
        case Collective.ALL_TO_ALL:
            return lambda: dist.all_to_all_single(torch.empty_like(whole), whole, group=group)
        case Collective.POINT_TO_POINT:
            return lambda: _send_there_and_back(whole, link, rank)
        case _:
            assert_never(collective)


def _connect_family(group: Group, bench: Bench) -> Link:
    families = sorted({group.members(rank) for rank in range(bench.world_size)})
    ranks = [list(members) for members in families]
    mine, _ = dist.new_subgroups_by_enumeration(ranks)  # type: ignore[no-untyped-call]  # torch
    if mine is None:
        raise AssertionError(f"rank {bench.rank} is in no group of {group}")  # members() covers every rank
    return Link(group, group.members(bench.rank), mine)


def is_used(collective: Collective, group: Group) -> bool:
    """Tell whether a pattern makes sense over groups of this size: messages go between two."""
    return collective is not Collective.POINT_TO_POINT or group.size == 2


def _trial(link: Link, collective: Collective, *, payload_bytes: int, bench: Bench, buffer: torch.Tensor) -> Trial:
    run_once = prepare(link, collective, payload_bytes=payload_bytes, buffer=buffer, rank=bench.rank)
    # A message there and back is timed; one way is half of it.
    num_ways = 2 if collective is Collective.POINT_TO_POINT else 1

    def run(num_passes: int) -> tuple[float, ...]:
        first = bench.mark()
        for _ in range(num_passes):
            run_once()
        last = bench.mark()
        bench.synchronize()
        return (seconds_between(first, last) / num_ways,)

    where = f"groups of {link.group.size}, {link.group.stride} apart"
    return Trial(f"{collective} of {payload_bytes} bytes over {where}", run)


def _send_there_and_back(tensor: torch.Tensor, link: Link, rank: int) -> None:
    """Send from the first member to the second and back: a single clock sees both ways, one after the other."""
    first, second = link.members
    other = second if rank == first else first
    send = dist.P2POp(dist.isend, tensor, other, link.process_group)
    receive = dist.P2POp(dist.irecv, torch.empty_like(tensor), other, link.process_group)
    for operation in (send, receive) if rank == first else (receive, send):
        for work in dist.batch_isend_irecv([operation]):
            work.wait()


def _profile(group: Group, collective: Collective, payloads: tuple[int, ...], timings: list[Timing]) -> LinkProfile:
    seconds = rising([sum(timing.parts) for timing in timings])
    samples = tuple(
        LinkSample(payload_bytes=payload, seconds=duration, uncertainty=timing.uncertainty)
        for payload, duration, timing in zip(payloads, seconds, timings, strict=True)
    )
    return LinkProfile(collective=collective, group=group, samples=samples)
