"""How long from the start of a node's processes to the first step of training, with new and with forked ranks.

    cd tests && python -m benchmarks.startup [--processes 2 4 8] [--rounds N]

A tiny model, so that nothing but starting takes time: interpreters, imports, groups, the model, one step. Both ways in
turns, another one first each round; median and range.
"""

import argparse
import os
import subprocess
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import builders
from galvatron_operator.torchrun import LAUNCH_MODULE, TRAIN_MODULE
from galvatron_planner.training import AdamW, SyntheticData, TrainingSpec
from galvatron_runtime.reports import RUN_DIRECTORY_VARIABLE
from supervision import torchrun

LAUNCHERS = {"new interpreters (torchrun)": "torch.distributed.run", "forked (galvatron_runtime.launch)": LAUNCH_MODULE}
FIRST_STEP = '"step finished"'


def main() -> None:
    """Measure all numbers of processes and print a row for each."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--processes", nargs="+", type=int, default=[2, 4, 8])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print(f"python -m benchmarks.startup  ({date.today().isoformat()}, {os.cpu_count()} cores)\n")  # noqa: DTZ011
    print(f"| processes | {' | '.join(LAUNCHERS)} | ratio |\n|---|---|---|---|")
    for num_processes in options.processes:
        found: dict[str, list[float]] = {name: [] for name in LAUNCHERS}
        for number in range(options.rounds):
            order = list(LAUNCHERS)
            for name in order if number % 2 else reversed(order):
                found[name].append(seconds_to_first_step(LAUNCHERS[name], num_processes))
        ratios = [forked / new for new, forked in zip(*found.values(), strict=True)]
        print(f"| {num_processes} | {' | '.join(spread(one, 's') for one in found.values())} | {spread(ratios)} |")


def spread(values: Sequence[float], unit: str = "") -> str:
    """Median and range."""
    return f"{median(values):.2f} {unit} ({min(values):.2f} to {max(values):.2f})"


def seconds_to_first_step(launcher: str, num_processes: int) -> float:
    """Train one step and note when it is done."""
    plan = builders.plan(
        " ".join([f"dp{num_processes}"] * 4),
        spec=builders.model(num_layers=2),
        on=builders.cluster(num_processes),
        global_batch_size=num_processes,
    )
    training = TrainingSpec(
        steps=1, optimizer=AdamW(learning_rate=1e-3), gradient_clip_norm=1.0, seed=1, data=SyntheticData()
    )
    with TemporaryDirectory(prefix="galvatron-startup-") as name:
        folder = Path(name)
        (folder / "plan.json").write_text(plan.to_json())
        (folder / "training.json").write_text(training.to_json())
        documents = ("--plan", str(folder / "plan.json"), "--training", str(folder / "training.json"))
        command = torchrun(num_processes, "-m", TRAIN_MODULE, *documents, launcher=launcher)
        environment = os.environ | {RUN_DIRECTORY_VARIABLE: name, "OMP_NUM_THREADS": "1"}
        started = time.perf_counter()
        with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as run:
            assert run.stderr is not None
            moments = [time.perf_counter() - started for line in run.stderr if FIRST_STEP in line]
        assert run.returncode == 0
        return moments[0]


if __name__ == "__main__":
    main()
