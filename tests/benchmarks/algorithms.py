"""The exact joint search against the published algorithms: the papers' workloads on the papers' devices.

    cd tests && python -m benchmarks.algorithms [--models NAME ...] [--memory GIB ...] [--batch MIN MAX STEP]

Eight models on 8 RTX TITAN in FP32, figures of the device catalogue, under 8, 12, 16 and 20 GiB a device (Galvatron,
arXiv 2211.13878, table 1, and Galvatron-BMW, arXiv 2307.02031). All three algorithms choose among the same batch sizes
and are priced by the same cost model, so that the difference is the search alone.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from math import exp, log

from benchmarks import catalogued
from galvatron_planner.errors import NoFeasiblePlan
from galvatron_planner.model import Precision
from galvatron_planner.presets import model_named
from galvatron_planner.problem import Algorithm, BatchRange, PlanningProblem, SearchLimits
from galvatron_planner.search.optimizer import search
from galvatron_planner.search.report import Solution
from galvatron_planner.units import GIB

MODELS = tuple(f"{name}-{size}" for name in ("bert-huge", "vit-huge", "t5-large", "swin-huge") for size in (32, 48))
MEMORY_GIB = (8, 12, 16, 20)
DEVICES = "8xrtx-titan"
ALGORITHMS = (Algorithm.OPTIMAL, Algorithm.GALVATRON_BMW, Algorithm.GALVATRON)


@dataclass(frozen=True, slots=True)
class Answer:
    """What one algorithm makes of a budget; ``solution`` is none where it finds no plan."""

    solution: Solution | None
    seconds: float

    @property
    def throughput(self) -> float:
        """Samples per second; 0 without a plan."""
        return self.solution.plan.estimate.samples_per_second if self.solution else 0.0


Row = tuple[str, int, dict[Algorithm, Answer]]


def main() -> None:
    """Ask all algorithms about all budgets and print a table."""
    options = parse_options()
    minimum, maximum, step = options.batch
    batch = BatchRange(minimum=minimum, maximum=maximum, step=step)
    print(f"python -m benchmarks.algorithms {' '.join(sys.argv[1:])}  ({date.today().isoformat()}): ", end="")  # noqa: DTZ011
    print(f"{DEVICES}, FP32, batch {minimum} to {maximum} by {step}, samples per second\n")
    print(
        "| model | memory | Optimal | GalvatronBMW | Galvatron | over BMW | over Galvatron | gap | CPU s | best plan |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    rows = []
    for name in options.models:
        for memory in options.memory:
            rows.append((name, memory, answers(name, memory, batch)))
            print_row(rows[-1])
    print()
    for algorithm in ALGORITHMS[1:]:
        print_gain(rows, algorithm)


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Compare the exact search with the published ones.")
    parser.add_argument("--models", nargs="*", default=MODELS)
    parser.add_argument("--memory", nargs="*", type=int, default=MEMORY_GIB, help="GiB a device")
    parser.add_argument("--batch", nargs=3, type=int, default=(8, 128, 8), help="smallest, largest, step")
    return parser.parse_args()


def answers(name: str, memory_gib: int, batch: BatchRange) -> dict[Algorithm, Answer]:
    """Ask every algorithm."""
    return {
        algorithm: answer(
            catalogued.problem(
                model_named(name),
                DEVICES,
                memory_bytes=memory_gib * GIB,
                batch=batch,
                precision=Precision.FP32,
                limits=SearchLimits(algorithm=algorithm),
            )
        )
        for algorithm in ALGORITHMS
    }


def answer(problem: PlanningProblem) -> Answer:
    """Ask one algorithm."""
    started = time.process_time()
    try:
        solution = search(problem)
    except NoFeasiblePlan:
        solution = None
    return Answer(solution, time.process_time() - started)


def print_row(row: Row) -> None:
    """Print what the algorithms make of one budget."""
    name, memory, found = row
    best = found[Algorithm.OPTIMAL]
    gap = best.solution.report.gap if best.solution else None
    cells = (
        name,
        f"{memory} GiB",
        *(f"{found[algorithm].throughput:.4g}" if found[algorithm].solution else "-" for algorithm in ALGORITHMS),
        *(gain(found, algorithm) for algorithm in ALGORITHMS[1:]),
        "-" if gap is None else f"{gap:.3%}",
        " / ".join(f"{found[algorithm].seconds:.2g}" for algorithm in ALGORITHMS),
        best.solution.plan.summary.replace("|", "/")[:100] if best.solution else "-",
    )
    print(f"| {' | '.join(cells)} |", flush=True)


def gain(found: dict[Algorithm, Answer], other: Algorithm) -> str:
    """Say how much faster the exact search's plan is."""
    best, second = found[Algorithm.OPTIMAL].throughput, found[other].throughput
    if not second:
        return "finds a plan" if best else "-"
    return f"{best / second - 1:+.2%}"


def print_gain(rows: Sequence[Row], other: Algorithm) -> None:
    """Sum up what the exact search gains over another algorithm."""
    both = [(found[Algorithm.OPTIMAL].throughput, found[other].throughput) for _, _, found in rows]
    ratios = [best / second for best, second in both if best and second]
    alone = sum(1 for best, second in both if best and not second)
    if ratios:
        mean = exp(sum(log(ratio) for ratio in ratios) / len(ratios))
        print(
            f"Optimal over {other}: {mean - 1:+.2%} (geometric mean), {min(ratios) - 1:+.2%} to {max(ratios) - 1:+.2%};"
            f" faster by more than 0.1 % in {sum(ratio > 1.001 for ratio in ratios)} of {len(ratios)},"
            f" and in {alone} more only it finds a plan"
        )


if __name__ == "__main__":
    main()
