"""Prediction against measurement: a profile of this machine, then plans priced with it and trained for some steps.

    cd tests && python -m benchmarks.accuracy [--steps N] [--repeats N] [--profile FILE]

The plans use every dimension alone and in combination, and the one that the search chooses. Runs of a repeat go through
all plans before the next repeat starts, so that a busy machine disturbs all plans alike; between the profile and a run
it still shows in the ratios.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp, log
from pathlib import Path

import builders
from galvatron_operator.supervised import free_port
from galvatron_operator.torchrun import (
    LOOPBACK,
    MEASURE_MODULE,
    TRAIN_MODULE,
    Launch,
    WhenFinished,
    environment,
    measuring_arguments,
    torchrun_command,
    training_arguments,
)
from galvatron_planner.cost.step import BatchSplit, estimate
from galvatron_planner.model import ModelSpec, Precision
from galvatron_planner.plan import Plan
from galvatron_planner.problem import BatchRange, PlanningProblem, SearchLimits
from galvatron_planner.profiles import Profile
from galvatron_planner.search.optimizer import search
from galvatron_planner.search.request import profile_request
from galvatron_planner.training import AdamW, SyntheticData, TrainingSpec
from galvatron_planner.units import GIB, MIB, format_bytes, format_seconds
from galvatron_runtime.reports import RUN_DIRECTORY_VARIABLE, read_reports

# The model of docs/examples/quickstart.yaml.
MODEL = builders.model(
    hidden_size=320, num_layers=6, num_heads=8, feed_forward_size=1280, sequence_length=128, vocabulary_size=256
)
CLUSTER = builders.cluster(4, device_memory_bytes=4 * GIB)
BATCH = BatchRange(minimum=16, maximum=16)
TIGHT_MEMORY_BYTES = 60 * MIB
"""Memory of the example, in which no single dimension is best."""


@dataclass(frozen=True, slots=True)
class Case:
    """A plan by the strategies of its stages and its number of micro-batches."""

    stages: tuple[str, ...]
    num_micro_batches: int = 1


def blocks(strategy: str, *, ends: str | None = None) -> str:
    """The layers of the whole model: a strategy for its blocks, and perhaps another for embedding and head."""
    return " ".join([ends or strategy, *[strategy] * MODEL.num_layers, ends or strategy])


CASES: Mapping[str, Case] = {
    "data parallel": Case((blocks("dp4"),)),
    "sharded gradients": Case((blocks("gsdp4"),), 2),
    "sharded data parallel": Case((blocks("fsdp4"),)),
    "tensor parallel": Case((blocks("tp4"),)),
    "checkpointing": Case((blocks("dp4-ckpt", ends="dp4"),)),
    "sharded, checkpointing, 2 micro-batches": Case((blocks("fsdp4-ckpt", ends="fsdp4"),), 2),
    "tensor and data parallel": Case((blocks("tp2-dp2"),), 2),
    "tensor parallel and sharded gradients": Case((blocks("tp2-gsdp2"),), 2),
    "tensor and sharded data parallel": Case((blocks("tp2-fsdp2"),), 2),
    "changing layouts": Case((blocks("tp4", ends="fsdp4"),)),
    "pipeline of 2, data parallel": Case(("dp2 " * 4, "dp2 " * 4), 4),
    "pipeline of 4": Case(("single " * 2,) * 4, 8),
}


def main() -> None:
    """Measure, predict, train, and print the ratios."""
    options = parse_options()
    with tempfile.TemporaryDirectory(prefix="galvatron-accuracy-") as folder:
        profile = Profile.from_json(options.profile.read_text()) if options.profile else measure(Path(folder))
        plans = predicted_plans(MODEL, profile)
        runs: dict[str, list[Run]] = {name: [] for name in plans}
        for _ in range(options.repeats):
            for name, plan in plans.items():
                print(f"training: {name}", file=sys.stderr, flush=True)
                runs[name].append(train(plan, steps=options.steps))
    print(f"{profile.device_name}, {os.cpu_count()} cores, torch {profile.torch_version}; ", end="")
    print(f"{options.repeats} runs of {options.steps} steps of each plan\n")
    print_table(plans, runs)


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Compare predicted with measured steps.")
    parser.add_argument("--steps", type=int, default=8, help="steps of each run")
    parser.add_argument("--repeats", type=int, default=2, help="runs of each plan")
    parser.add_argument("--profile", type=Path, help="a profile that was measured before")
    return parser.parse_args()


def measure(folder: Path) -> Profile:
    """Profile this machine for the model."""
    asked = profile_request(
        MODEL, CLUSTER, precision=Precision.FP32, batch=BATCH, limits=SearchLimits(), runtime_version="benchmark"
    )
    request, output = folder / "request.json", folder / "profile.json"
    request.write_text(asked.to_json())
    run(MEASURE_MODULE, measuring_arguments(request_path=str(request), output_path=str(output)), folder)
    return Profile.from_json(output.read_text())


def predicted_plans(spec: ModelSpec, profile: Profile) -> dict[str, Plan]:
    """Price every case, and add what the search chooses with little memory."""
    problem = builders.problem(spec, CLUSTER, batch=BATCH, measured=profile)
    plans = {name: predicted_plan(case, problem) for name, case in CASES.items()}
    tight = CLUSTER.model_copy(update={"device_memory_bytes": TIGHT_MEMORY_BYTES})
    chosen = search(problem.model_copy(update={"cluster": tight})).plan
    return plans | {f"chosen for {format_bytes(TIGHT_MEMORY_BYTES)}": chosen}


def predicted_plan(case: Case, problem: PlanningProblem) -> Plan:
    """Price one plan."""
    split = BatchSplit(BATCH.maximum, case.num_micro_batches)
    plan = builders.plan(
        *case.stages,
        spec=problem.model,
        on=problem.cluster,
        global_batch_size=split.global_batch_size,
        num_micro_batches=split.num_micro_batches,
    )
    priced = estimate(problem, tuple(stage.layers for stage in plan.stages), split)
    return plan.model_copy(update={"estimate": priced})


@dataclass(frozen=True, slots=True)
class Run:
    """What one training run took: seconds of the median step, and bytes of the fullest device."""

    step_seconds: float
    peak_bytes: int


def train(plan: Plan, *, steps: int) -> Run:
    """Train under a plan in a new folder."""
    training = TrainingSpec(
        steps=steps, optimizer=AdamW(learning_rate=1e-3), gradient_clip_norm=1.0, seed=0, data=SyntheticData()
    )
    with tempfile.TemporaryDirectory(prefix="galvatron-accuracy-") as name:
        folder = Path(name)
        (folder / "plan.json").write_text(plan.to_json())
        (folder / "training.json").write_text(training.to_json())
        paths = {"plan_path": str(folder / "plan.json"), "training_path": str(folder / "training.json")}
        run(TRAIN_MODULE, training_arguments(**paths), folder)
        progress = [report.progress for report in read_reports(folder)]
    return Run(
        step_seconds=statistics.median(p.step_seconds for p in progress if p.step_seconds),
        peak_bytes=max(p.peak_bytes for p in progress if p.peak_bytes),
    )


def run(module: str, arguments: tuple[str, ...], folder: Path) -> None:
    """Start the ranks as the product does, and wait for them."""
    launch = Launch(
        module=module,
        arguments=arguments,
        cluster=CLUSTER,
        node_rank="0",
        master_address=LOOPBACK,
        master_port=free_port(),
        run_id="accuracy",
        attempt=0,
        supervisor_port=0,
        run_directory=str(folder),
        when_finished=WhenFinished.EXIT,
        python=sys.executable,
    )
    variables = os.environ | environment(launch) | {RUN_DIRECTORY_VARIABLE: str(folder)}
    with (folder / "log").open("w") as output:
        code = subprocess.run(torchrun_command(launch), env=variables, stderr=output, check=False).returncode
    if code:
        sys.exit(f"{module} failed with exit code {code}:\n{(folder / 'log').read_text()[-4000:]}")


def print_table(plans: Mapping[str, Plan], runs: Mapping[str, Sequence[Run]]) -> None:
    """Print a row per plan, and over all plans the middle and the spread of measured / predicted."""
    print("| plan | step, predicted | measured / predicted | peak memory, predicted | measured / predicted |")
    print("|---|---|---|---|---|")
    times, peaks = [], []
    for name, plan in plans.items():
        seconds = [one.step_seconds / plan.estimate.step_seconds for one in runs[name]]
        memory = [one.peak_bytes / plan.estimate.peak_bytes for one in runs[name]]
        times.append(statistics.median(seconds))
        peaks.append(statistics.median(memory))
        step, peak = format_seconds(plan.estimate.step_seconds), format_bytes(plan.estimate.peak_bytes)
        print(f"| {name} (`{plan.summary}`) | {step} | {listed(seconds)} | {peak} | {listed(memory)} |")
    print(f"\nstep time: {spread(times)}\npeak memory: {spread(peaks)}")


def listed(ratios: Sequence[float]) -> str:
    """Write the ratios of the repeats."""
    return ", ".join(f"{ratio:.2f}" for ratio in ratios)


def spread(ratios: Sequence[float]) -> str:
    """Summarise ratios of several plans."""
    middle = exp(statistics.fmean(log(ratio) for ratio in ratios))
    return f"measured / predicted {middle:.2f} (geometric mean), {min(ratios):.2f} to {max(ratios):.2f}"


if __name__ == "__main__":
    main()
