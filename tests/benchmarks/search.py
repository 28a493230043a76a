"""How long the search takes, and how far its results can be from the optimum, over models, devices and memory.

    cd tests && python -m benchmarks.search [--repeats N]

The profiles are synthetic (``builders.profile``): plausible costs, so that times and gaps are about the search alone.
Repeats go through all problems before the next one starts, so that a busy machine disturbs all alike.
"""

import argparse
import os
import resource
import statistics
import time
from collections.abc import Mapping

import builders
from galvatron_planner.errors import NoFeasiblePlan
from galvatron_planner.model import Family, Precision
from galvatron_planner.problem import PlanningProblem
from galvatron_planner.search.optimizer import search
from galvatron_planner.search.report import Solution
from galvatron_planner.units import GIB, MIB


def problem(*, hidden_size: int, num_layers: int, num_devices: int, memory_bytes: int, batch: int) -> PlanningProblem:
    """A Llama on nodes of eight devices."""
    spec = builders.model(
        Family.LLAMA,
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_heads=hidden_size // 128,
        feed_forward_size=hidden_size * 8 // 3 // 256 * 256,
        sequence_length=2048,
        vocabulary_size=32000,
    )
    nodes = max(1, num_devices // 8)
    on = builders.cluster(num_devices, num_nodes=nodes, device_memory_bytes=memory_bytes)
    measured = builders.profile(spec, on, precision=Precision.BF16, flops_per_second=1.5e14)
    return builders.problem(spec, on, batch=batch, precision=Precision.BF16, measured=measured)


PROBLEMS: Mapping[str, PlanningProblem] = {
    "8 blocks, 4 devices, 24 GiB": problem(
        hidden_size=2048, num_layers=8, num_devices=4, memory_bytes=24 * GIB, batch=16
    ),
    "8 blocks, 8 devices, 24 GiB": problem(
        hidden_size=2048, num_layers=8, num_devices=8, memory_bytes=24 * GIB, batch=32
    ),
    "32 blocks, 8 devices, 40 GiB": problem(
        hidden_size=2048, num_layers=32, num_devices=8, memory_bytes=40 * GIB, batch=64
    ),
    "32 blocks, 8 devices, 80 GiB": problem(
        hidden_size=4096, num_layers=32, num_devices=8, memory_bytes=80 * GIB, batch=64
    ),
    "32 blocks, 16 devices, 80 GiB": problem(
        hidden_size=4096, num_layers=32, num_devices=16, memory_bytes=80 * GIB, batch=64
    ),
}


def main() -> None:
    """Search every problem some times and print a table."""
    parser = argparse.ArgumentParser(description="Time the search.")
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    seconds: dict[str, list[float]] = {name: [] for name in PROBLEMS}
    solutions: dict[str, Solution | None] = {}
    for _ in range(repeats):
        for name, asked in PROBLEMS.items():
            started = time.process_time()
            solutions[name] = solve(asked)
            seconds[name].append(time.process_time() - started)
    print(f"{os.cpu_count()} cores; {repeats} searches of each problem, CPU seconds, baselines included\n")
    print(f"{'problem':<32}{'median':>8}{'min':>8}{'max':>8}{'gap':>8}  plan")
    for name, times in seconds.items():
        solution = solutions[name]
        outcome = f"{solution.report.gap:>8.2%}  {solution.plan.summary}" if solution else "       -  nothing fits"
        print(f"{name:<32}{statistics.median(times):>8.2f}{min(times):>8.2f}{max(times):>8.2f}{outcome}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"\npeak memory of this process: {peak / MIB:.0f} MiB")


def solve(asked: PlanningProblem) -> Solution | None:
    """Search; None when nothing fits."""
    try:
        return search(asked)
    except NoFeasiblePlan:
        return None


if __name__ == "__main__":
    main()
