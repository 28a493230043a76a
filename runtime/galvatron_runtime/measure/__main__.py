"""Measure a profile: ``torchrun ... -m galvatron_runtime.measure --request request.json --output profile.json``.

The second step of the line *job -> profile -> plan -> training*: document 1 in, document 2 out, written by rank 0 when
everything is measured.
"""

import argparse
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist

from galvatron_planner.cluster import DeviceKind
from galvatron_planner.errors import InvalidInput
from galvatron_planner.profiles import Profile, ProfileRequest
from galvatron_runtime import mesh
from galvatron_runtime.failures import fail, leave
from galvatron_runtime.logs import configure_rank_logging
from galvatron_runtime.measure.bench import Bench
from galvatron_runtime.measure.layers import measure_layers
from galvatron_runtime.measure.links import Link, connect, measure_links
from galvatron_runtime.measure.overlap import measure_overlap
from galvatron_runtime.measure.reserve import measure_reserve
from galvatron_runtime.measure.steps import optimizer_seconds_per_parameter, step_overhead_seconds
from galvatron_runtime.memory import idle_meter
from galvatron_runtime.model import activation_dtype
from galvatron_runtime.processes import die_with_parent
from galvatron_runtime.reports import report_progress, write_atomically

log = logging.getLogger(__name__)

DEFAULT_SECONDS = 16.0
"""Time for repeating; what one pass over every trial takes comes on top where it is longer."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one rank, and leave the process."""
    die_with_parent()
    options = _parse_arguments(arguments)
    # The profiler, which counts allocations on CPU, would announce each of its starts and stops on stderr.
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    configure_rank_logging(rank=int(os.environ.get("RANK", "0")), stage=0)
    try:
        _run(options)
    except (Exception, SystemExit) as error:  # noqa: BLE001  (the rim of the process: fail() logs the traceback)
        leave(fail(error))
    mesh.finish()


def measure(request: ProfileRequest, *, seconds: float) -> Profile:
    """Measure everything that a request asks for; all ranks return equal profiles.

    Args:
        request: document 1.
        seconds: about how long to repeat measurements, in all.

    Raises:
        InvalidInput: when another number of processes was started than the request is for.
        NoisyMeasurement: when repeated measurements disagree too much.
    """
    # In the order of training, so that the reserve is what training has beside its parameters.
    device = _find_device(request)
    meter = idle_meter(device)
    mesh.start_process_groups(request.device_kind)
    bench = _bench(request, device)
    links = connect(request.groups, bench)
    reserve_bytes = measure_reserve(links, request, meter, bench=bench)
    dtype = activation_dtype(request.precision)
    timed_links = measure_links(links, request, bench=bench, dtype=dtype, budget_seconds=0.3 * seconds)
    layers = measure_layers(request, links=links, timed_links=timed_links, bench=bench, budget_seconds=0.55 * seconds)
    overlap = measure_overlap(_widest(links), request, bench=bench, budget_seconds=0.05 * seconds)
    return Profile(
        request_digest=request.digest(),
        device_name=mesh.device_name(device),
        torch_version=torch.__version__,
        layers=layers,
        links=timed_links,
        computation_slowdown=overlap.computation,
        communication_slowdown=overlap.communication,
        optimizer_seconds_per_parameter=optimizer_seconds_per_parameter(
            request, bench=bench, budget_seconds=0.05 * seconds
        ),
        step_overhead_seconds=step_overhead_seconds(request, bench=bench, budget_seconds=0.05 * seconds),
        reserve_bytes=reserve_bytes,
    )


def _run(arguments: argparse.Namespace) -> None:
    request = ProfileRequest.from_json(arguments.request.read_text())
    profile = measure(request, seconds=arguments.seconds)
    if int(os.environ["RANK"]) == 0:
        write_atomically(arguments.output, profile.to_json())
        log.info("profile written", extra={"path": str(arguments.output), "request": request.digest()})


def _find_device(request: ProfileRequest) -> torch.device:
    if request.device_kind is DeviceKind.CPU:
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(device)
    return device


def _bench(request: ProfileRequest, device: torch.device) -> Bench:
    world_size = dist.get_world_size()
    if world_size != request.num_nodes * request.devices_per_node:
        raise InvalidInput(
            f"the request is for {request.num_nodes} x {request.devices_per_node} devices, the run has {world_size}",
            remedy="start one process per device of the request",
        )

    def report(activity: str, step: int, total_steps: int) -> None:
        report_progress(activity, step=step, total_steps=total_steps)

    return Bench(device, rank=dist.get_rank(), world_size=world_size, report=report)


def _widest(links: tuple[Link, ...]) -> Link | None:
    return max(links, key=lambda link: link.group.size, default=None)


def _parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="galvatron_runtime.measure", description="Measure a profile.")
    parser.add_argument("--request", type=Path, required=True, help="document 1")
    parser.add_argument("--output", type=Path, required=True, help="where rank 0 writes document 2")
    parser.add_argument("--seconds", type=float, default=DEFAULT_SECONDS, help="about how long to repeat measurements")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
