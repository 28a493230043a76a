"""What a hybrid plan gains, measured: the planner's choice against the fastest ways along a single dimension.

    cd tests && python -m benchmarks.hybrid [--budgets 120Mi 72Mi 48Mi] [--rivals N] [--rounds N] [--steps N]

One model on four CPU processes, profiled once. For every memory budget the planner's plan and the N single-dimension
plans that are predicted to be the fastest that fit (DP, ZeRO-2, SDP, TP or PP for all layers, each with or without
CKPT, micro-batches tuned) are trained in turns, another order each round. Throughput ratios: median and range over the
rounds, against the rival that was the fastest as measured.
"""

import argparse
import os
import tempfile
from datetime import date
from pathlib import Path
from statistics import median

from benchmarks.accuracy import Lines, Setting, decoder
from galvatron_operator import local, trials
from galvatron_operator.rundirectory import RunDirectory
from galvatron_operator.supervised import free_port
from galvatron_operator.trials import Effort
from galvatron_planner.problem import PlanningProblem
from galvatron_planner.regret import Trial
from galvatron_planner.search.baselines import BASELINE_SPACES
from galvatron_planner.search.rivals import Rival, rivals
from galvatron_planner.units import parse_bytes

SINGLE = {one.name for one in BASELINE_SPACES if one.is_uniform and len({*one.dimensions} - {"CKPT"}) == 1}
MODEL = decoder("gpt", hidden_size=320, num_layers=6)
NUM_DEVICES, BATCH = 4, 16


def main() -> None:
    """Measure every budget and print a row for each."""
    options = parse_options()
    print(f"python -m benchmarks.hybrid  ({date.today().isoformat()}, {os.cpu_count()} cores);", end=" ")  # noqa: DTZ011
    print(f"{options.rounds} rounds of {options.steps} steps\n")
    print("| budget | plan | fastest single dimension | throughput ratio (range) | predicted |")
    print("|---|---|---|---|---|")
    largest = max(options.budgets, key=lambda text: parse_bytes(text, where="--budgets"))
    setting = Setting("hybrid", MODEL, NUM_DEVICES, largest, BATCH)
    effort = Effort(rounds=options.rounds, steps=options.steps)
    with tempfile.TemporaryDirectory(prefix="galvatron-hybrid-") as name:
        directory, port = RunDirectory(Path(name)), free_port()
        problem = local.problem(setting.job(), directory, port=port, listener=Lines())
        for text in options.budgets:
            memory = parse_bytes(text, where="--budgets")
            cluster = problem.cluster.model_copy(update={"device_memory_bytes": memory})
            chosen, *others = contenders(problem.model_copy(update={"cluster": cluster}), options.rivals)
            job = Setting("hybrid", MODEL, NUM_DEVICES, text, BATCH).job()
            place = trials.Track(job, directory, data_root=directory.path, port=port)
            runs = [Trial(one.name, one.plan, (), ()) for one in (chosen, *others)]
            print_row(text, trials.run_trials(place, runs, effort=effort, listener=Lines()))


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--budgets", nargs="+", default=["160Mi", "100Mi", "72Mi", "52Mi"])
    parser.add_argument("--rivals", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8)
    return parser.parse_args()


def contenders(problem: PlanningProblem, num_rivals: int) -> list[Rival]:
    """The planner's plan, and the single-dimension plans that are predicted to be the fastest."""
    chosen, *others = rivals(problem, num_plans=len(BASELINE_SPACES) + 6)
    single = [one for one in others if one.name in SINGLE]
    single.sort(key=lambda one: -one.plan.estimate.samples_per_second)
    return [chosen, *single[:num_rivals]]


def print_row(budget: str, found: tuple[Trial, ...]) -> None:
    """Compare the first with the fastest of the others."""
    chosen, *others = found
    ran = [one for one in others if one.step_seconds]
    if not ran:
        print(f"| {budget} | {chosen.plan.summary} | none fits | - | - |", flush=True)
        return
    best = min(ran, key=lambda one: one.seconds_per_sample)
    ratios = [theirs / ours for ours, theirs in zip(chosen.step_seconds, best.step_seconds, strict=True)]
    predicted = best.predicted_seconds_per_sample / chosen.predicted_seconds_per_sample
    print(
        f"| {budget} | {chosen.plan.summary} | {best.name}: {best.plan.summary} |"
        f" {median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) | {predicted:.2f} |",
        flush=True,
    )


if __name__ == "__main__":
    main()
