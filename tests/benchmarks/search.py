"""How long the search takes, how much memory it needs, and how far its plans can be from the best.

    cd tests && python -m benchmarks.search [--repeats N] [--only TITLE ...] [--sweep] [--zero2]

The table is that of the planner's design, section 6: the 126 blocks of Llama 3 405B with activation checkpointing on 8
to 16,384 H100, figures of the device catalogue, baselines included. The memory is 5 to 15 % more than the smallest
plan needs (801, 123 and 28 GiB on 8, 64 and 1,024 devices): 8 and 64 of them are lent more than an H100 has, for 405
billion parameters take 6.5 TB of states. ``--sweep`` changes layers, devices and memory one at a time. The space is
that of the design (data, sharded-data, tensor and pipeline parallelism, checkpointing); ``--zero2`` adds ZeRO-2.

Every search runs in a process of its own with one thread. Repeats go through all problems before the next one starts,
so that a busy machine disturbs all alike.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date

from benchmarks import catalogued
from galvatron_planner.errors import NoFeasiblePlan
from galvatron_planner.presets import model_named
from galvatron_planner.problem import BatchRange, PlanningProblem, SearchDimension, SearchLimits
from galvatron_planner.search.optimizer import search
from galvatron_planner.units import GIB, MIB

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


@dataclass(frozen=True, slots=True)
class Case:
    """One problem: so many blocks of Llama 3 405B on nodes of eight H100.

    Attributes:
        num_devices: in nodes of eight.
        memory_gib: that each device may use.
        batch: samples per step.
        num_layers: blocks; the model has 126.
        target_seconds: of the design, where it has one.
    """

    num_devices: int
    memory_gib: float
    batch: int
    num_layers: int = 126
    target_seconds: float | None = None

    @property
    def title(self) -> str:
        """The case on one line, which is also its key."""
        return f"{self.num_layers} blocks, {self.num_devices:,} x {self.memory_gib:g} GiB, batch {self.batch:,}"

    def problem(self, *, zero2: bool) -> PlanningProblem:
        """Pose it, in the space of the design or with ZeRO-2."""
        model = model_named("llama3-405b").model_copy(update={"num_layers": self.num_layers})
        return catalogued.problem(
            model,
            f"{max(1, self.num_devices // 8)}x{min(8, self.num_devices)}xh100",
            memory_bytes=int(self.memory_gib * GIB),
            batch=BatchRange(minimum=self.batch, maximum=self.batch),
            limits=SearchLimits(excluded=() if zero2 else (SearchDimension.ZERO2,)),
        )


TABLE = (
    Case(8, 840, 16, target_seconds=0.1),
    Case(64, 130, 64, target_seconds=0.5),
    Case(1024, 32, 1024, target_seconds=3),
    Case(16384, 32, 2048, target_seconds=30),
)
SWEEP = (
    *(Case(64, num_layers + 12, 64, num_layers=num_layers) for num_layers in (16, 32, 64, 126, 252)),
    *(Case(n, max(32, 40 + 6400 / n), min(max(16, n), 2048)) for n in (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)),
    *(Case(64, memory, 64) for memory in (124, 130, 140, 160, 200, 300, 600)),
)


@dataclass(frozen=True, slots=True)
class Run:
    """One search in a process of its own.

    Attributes:
        cpu_seconds: of the process during the search.
        wall_seconds: of the search.
        peak_bytes: resident set of the whole process, interpreter included.
        gap: as reported; none where nothing fits.
        num_candidates: combinations of batch size, pipeline degree and number of micro-batches.
        num_solved: those whose bound left hope.
        summary: the plan on one line.
    """

    cpu_seconds: float
    wall_seconds: float
    peak_bytes: int
    gap: float | None
    num_candidates: int
    num_solved: int
    summary: str


def main() -> None:
    """Search every case some times and print a table."""
    options = parse_options()
    cases = {case.title: case for case in (*SWEEP, *TABLE)}
    if options.solve:
        print(json.dumps(solve(cases[options.solve].problem(zero2=options.zero2))))
        return
    chosen = SWEEP if options.sweep else TABLE
    titles = [case.title for case in chosen if not options.only or any(text in case.title for text in options.only)]
    runs: dict[str, list[Run]] = {title: [] for title in titles}
    for _ in range(options.repeats):
        for title in runs:
            print(title, file=sys.stderr, flush=True)
            runs[title].append(run(title, zero2=options.zero2))
    print(f"python -m benchmarks.search {' '.join(sys.argv[1:])}  ({date.today().isoformat()}, ", end="")  # noqa: DTZ011
    print(f"{os.cpu_count()} cores {platform.machine()}, Python {platform.python_version()})\n")
    print_table(cases, runs)


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Time the search.")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="*", help="cases whose title contains one of these")
    parser.add_argument("--sweep", action="store_true", help="change layers, devices and memory one at a time")
    parser.add_argument("--zero2", action="store_true", help="search ZeRO-2 as well")
    parser.add_argument("--solve", help=argparse.SUPPRESS)
    return parser.parse_args()


def run(title: str, *, zero2: bool) -> Run:
    """Search one case in a new process."""
    command = [sys.executable, "-m", "benchmarks.search", "--solve", title, *(["--zero2"] if zero2 else [])]
    done = subprocess.run(command, env=os.environ | ONE_THREAD, stdout=subprocess.PIPE, text=True, check=True)
    return Run(**json.loads(done.stdout))


def solve(problem: PlanningProblem) -> dict[str, object]:
    """Search in this process and measure it."""
    cpu, wall = time.process_time(), time.perf_counter()
    try:
        solution = search(problem)
    except NoFeasiblePlan as refused:
        gap, candidates, solved, summary = None, 0, 0, refused.problem
    else:
        report = solution.report
        gap, candidates, solved = report.gap, report.num_candidates, report.num_solved
        summary = solution.plan.summary
    return {
        "cpu_seconds": time.process_time() - cpu,
        "wall_seconds": time.perf_counter() - wall,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "gap": gap,
        "num_candidates": candidates,
        "num_solved": solved,
        "summary": summary,
    }


def print_table(cases: Mapping[str, Case], runs: Mapping[str, Sequence[Run]]) -> None:
    """Print a row per case: medians, with the smallest and largest of the repeats."""
    print("| problem | CPU s | wall s | target s | peak memory | gap | solved | plan |")
    print("|---|---|---|---|---|---|---|---|")
    for title, some in runs.items():
        one, target = some[0], cases[title].target_seconds
        peak = max(run.peak_bytes for run in some) / MIB
        cells = (
            title,
            spread([run.cpu_seconds for run in some]),
            spread([run.wall_seconds for run in some]),
            "-" if target is None else f"{target:g}",
            f"{peak:.0f} MiB",
            "-" if one.gap is None else f"{one.gap:.4%}",
            f"{one.num_solved} of {one.num_candidates}",
            shortened(one.summary),
        )
        print(f"| {' | '.join(cells)} |")


def spread(seconds: Sequence[float]) -> str:
    """Give the median and the range."""
    return f"{statistics.median(seconds):.3g} ({min(seconds):.3g} to {max(seconds):.3g})"


def shortened(summary: str, most: int = 120) -> str:
    """Keep a table readable; bars would end its cells."""
    text = summary.replace("|", "/")
    return text if len(text) <= most else text[:most] + "..."


if __name__ == "__main__":
    main()
