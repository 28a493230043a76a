"""Predictions against measurements: random plans that fit, of several families and sizes, priced and trained.

    cd tests && python -m benchmarks.accuracy [--plans N] [--rounds N] [--steps N] [--only TITLE ...] [--output FOLDER]

Every setting is profiled first, as a job would be; then its plans are trained in turns, each for some steps with
synthetic data, as ``galvatron regret`` does. The folder gets every round of every plan (CSV) and a scatter plot (SVG)
for each setting.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from math import exp, log
from pathlib import Path
from statistics import fmean
from typing import Any

from galvatron_operator import local, trials
from galvatron_operator.api import GalvatronJob, parse
from galvatron_operator.rundirectory import RunDirectory
from galvatron_operator.supervised import free_port
from galvatron_operator.trials import Effort
from galvatron_planner.regret import Errors, Trial, as_chart, as_csv, regret
from galvatron_planner.search.rivals import rivals
from galvatron_planner.worker import Progress


@dataclass(frozen=True, slots=True)
class Setting:
    """A small job; memory is such that some plans do not fit."""

    title: str
    model: Mapping[str, Any]
    num_devices: int
    memory: str
    batch: int
    sequence_parallelism: bool = False

    def job(self) -> GalvatronJob:
        """Write it as its user would."""
        return parse(
            {
                "apiVersion": "galvatron.io/v1alpha1",
                "kind": "GalvatronJob",
                "metadata": {"name": self.title},
                "spec": {
                    "model": dict(self.model),
                    "budget": {
                        "gpus": self.num_devices,
                        "gpusPerNode": 1,
                        "resourceName": "cpu",
                        "memoryPerGPU": self.memory,
                    },
                    "training": {"globalBatchSize": {"value": self.batch}, "steps": 1, "precision": "FP32"},
                    "search": {"sequenceParallelism": self.sequence_parallelism},
                },
            }
        )


def decoder(family: str, *, hidden_size: int, num_layers: int, **more: int) -> dict[str, Any]:
    """A decoder with heads of 40 and a short sequence."""
    shape = {"family": family, "hiddenSize": hidden_size, "numLayers": num_layers, "sequenceLength": 128}
    return shape | {"numAttentionHeads": 8, "vocabularySize": 256} | more


T5 = {"numDecoderLayers": 4, "decoderSequenceLength": 64}
SWIN = {
    "family": "swin", "hiddenSize": 64, "depths": [2, 4], "numAttentionHeads": 4, "vocabularySize": 100,
    "imageSize": 64, "patchSize": 4, "windowSize": 4,
}  # fmt: skip
SETTINGS = (
    Setting("gpt-2-devices", decoder("gpt", hidden_size=320, num_layers=6), 2, "160Mi", 8),
    Setting("gpt-4-devices", decoder("gpt", hidden_size=320, num_layers=6), 4, "120Mi", 16),
    Setting(
        "gpt-4-devices-sptp", decoder("gpt", hidden_size=320, num_layers=6), 4, "120Mi", 16, sequence_parallelism=True
    ),
    Setting("llama-4-devices", decoder("llama", hidden_size=256, num_layers=8, numKeyValueHeads=4), 4, "120Mi", 16),
    Setting("bert-4-devices", decoder("bert", hidden_size=256, num_layers=6), 4, "96Mi", 16),
    Setting("t5-4-devices", decoder("t5", hidden_size=192, num_layers=4, **T5), 4, "96Mi", 16),
    Setting("swin-4-devices", SWIN, 4, "96Mi", 16),
    Setting("gpt-8-devices", decoder("gpt", hidden_size=256, num_layers=8), 8, "96Mi", 16),
)


class Lines:
    """Tells on standard error what happens."""

    def start(self, phase: str, detail: str) -> None:
        """A phase begins."""
        print(f"  {phase}: {detail}", file=sys.stderr, flush=True)

    def progress(self, progress: Progress) -> None:
        """Tell of every trial."""
        if ":" in progress.activity:
            print(f"    {progress.step}/{progress.total_steps} {progress.activity}", file=sys.stderr, flush=True)

    def end(self, detail: str) -> None:
        """The phase is over."""


def main() -> None:
    """Measure every setting and print a row for each, and one for all."""
    options = parse_options()
    settings = [one for one in SETTINGS if not options.only or one.title in options.only]
    options.output.mkdir(parents=True, exist_ok=True)
    each = -(-options.plans // len(settings))
    print(f"python -m benchmarks.accuracy {' '.join(sys.argv[1:])}  ({date.today().isoformat()}, ", end="")  # noqa: DTZ011
    print(f"{os.cpu_count()} cores); medians of {options.rounds} rounds of {options.steps} steps\n")
    print("| setting | plans | time: measured / predicted | time error | memory error | Kendall's tau |")
    print("|---|---|---|---|---|---|")
    everything: list[Trial] = []
    for setting in settings:
        print(setting.title, file=sys.stderr, flush=True)
        effort = Effort(num_plans=each, rounds=options.rounds, steps=options.steps)
        found = [one for one in measured(setting, effort) if one.step_seconds]
        (options.output / f"{setting.title}.csv").write_text(as_csv(found))
        (options.output / f"{setting.title}.svg").write_text(as_chart(setting.title, found))
        print_row(setting.title, found, tau=f"{regret(found).rank_correlation or 0:.2f}")
        everything += found
    print_row("all", everything, tau="")


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Compare predicted with measured steps.")
    parser.add_argument("--plans", type=int, default=200, help="in all")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--only", nargs="*", help="settings by title")
    parser.add_argument("--output", type=Path, default=Path("../.build/accuracy"))
    return parser.parse_args()


def measured(setting: Setting, effort: Effort) -> tuple[Trial, ...]:
    """Profile, draw plans, and run them."""
    job, port = setting.job(), free_port()
    with tempfile.TemporaryDirectory(prefix="galvatron-accuracy-") as name:
        directory = RunDirectory(Path(name))
        problem = local.problem(job, directory, port=port, listener=Lines())
        plans = rivals(problem, num_plans=effort.num_plans, seed=effort.seed)
        place = trials.Track(job, directory, data_root=directory.path, port=port)
        return trials.run_trials(
            place, [Trial(one.name, one.plan, (), ()) for one in plans], effort=effort, listener=Lines()
        )


def print_row(title: str, found: list[Trial], *, tau: str) -> None:
    """Print errors of step time and peak memory."""
    times, peaks = [one.time_ratio for one in found], [one.memory_ratio for one in found]
    middle = exp(fmean(log(ratio) for ratio in times))
    print(f"| {title} | {len(found)} | {middle:.2f} | {Errors.of(times)} | {Errors.of(peaks)} | {tau} |", flush=True)


if __name__ == "__main__":
    main()
