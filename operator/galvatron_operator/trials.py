"""``galvatron regret``: run the chosen plan and others on this machine, in turns, and see how good the choice was."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

from galvatron_operator import torchrun
from galvatron_operator.api import GalvatronJob, training_spec
from galvatron_operator.local import Listener, run_ranks
from galvatron_operator.rundirectory import RunDirectory, keep
from galvatron_operator.supervised import WorkerFailed
from galvatron_planner.plan import Plan
from galvatron_planner.problem import PlanningProblem
from galvatron_planner.regret import Regret, Trial, as_chart, as_csv, as_markdown, regret
from galvatron_planner.search.rivals import rivals
from galvatron_planner.worker import Progress, WorkerStatus

CHOSEN = "chosen"


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is measured.

    Attributes:
        num_plans: different plans, the chosen one among them.
        rounds: times that each of them is run.
        steps: of every run; the median counts.
        seed: of random plans and of the order of runs.
    """

    num_plans: int = 8
    rounds: int = 3
    steps: int = 12
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Track:
    """Where plans are run.

    Attributes:
        job: what is trained.
        directory: of the run; trials lie in a folder of it.
        data_root: where the dataset's path starts.
        port: of status and metrics.
    """

    job: GalvatronJob
    directory: RunDirectory
    data_root: Path
    port: int


def candidates(problem: PlanningProblem, chosen: Plan, effort: Effort) -> tuple[Trial, ...]:
    """List what to run: the chosen plan first."""
    # One more, because the chosen plan usually is among them.
    others = (
        one
        for one in rivals(problem, num_plans=effort.num_plans + 1, seed=effort.seed)
        if (one.plan.stages, one.plan.num_micro_batches) != (chosen.stages, chosen.num_micro_batches)
    )
    trials = [Trial(CHOSEN, chosen, (), ()), *(Trial(one.name, one.plan, (), ()) for one in others)]
    return tuple(trials[: effort.num_plans])


def run_trials(track: Track, trials: Sequence[Trial], *, effort: Effort, listener: Listener) -> tuple[Trial, ...]:
    """Run every plan once a round, in another order each time; one that fails is not run again.

    Raises:
        WorkerFailed: when the chosen plan, the first, fails.
        KeyboardInterrupt: after the running plan has stopped.
    """
    results, random = list(trials), Random(effort.seed)  # noqa: S311 -- no secret
    total = len(trials) * effort.rounds
    listener.start("regret", f"{len(trials)} plans, {effort.rounds} rounds of {effort.steps} steps each")
    done = 0
    for _ in range(effort.rounds):
        for index in random.sample(range(len(results)), len(results)):
            trial = results[index]
            listener.progress(Progress(activity=f"{trial.name}: {trial.plan.summary}", step=done, total_steps=total))
            if not trial.failure:
                results[index] = _run_once(track, trial, steps=effort.steps)
            done += 1
    listener.end(f"{total} runs")
    return tuple(results)


def write(directory: RunDirectory, title: str, trials: Sequence[Trial]) -> tuple[Regret, tuple[Path, ...]]:
    """Write what was found as Markdown, CSV and SVG into the run directory."""
    found = regret(trials)
    texts = {
        "regret.md": as_markdown(title, trials, found),
        "regret.csv": as_csv(trials),
        "regret.svg": as_chart(title, trials),
    }
    paths = tuple(directory.path / name for name in texts)
    for path, text in zip(paths, texts.values(), strict=True):
        keep(path, text)
    return found, paths


def _run_once(track: Track, trial: Trial, *, steps: int) -> Trial:
    last: Progress | None = None

    def on_status(status: WorkerStatus) -> None:
        nonlocal last
        last = status.progress or last

    place = RunDirectory(track.directory.path / "trial")
    place.path.mkdir(exist_ok=True)
    training = training_spec(
        track.job, checkpoint_directory="", data_root=str(track.data_root), weights_root=str(track.data_root)
    )
    keep(place.plan, trial.plan.to_json())
    keep(place.training, training.model_copy(update={"steps": steps, "checkpoints": None}).to_json())
    arguments = torchrun.training_arguments(plan_path=str(place.plan), training_path=str(place.training))
    try:
        run_ranks(track.job, "train", place, arguments=arguments, port=track.port, on_status=on_status)
    except WorkerFailed as error:
        if trial.name == CHOSEN:
            raise
        return replace(trial, step_seconds=(), peak_bytes=(), failure=error.problem)
    if last is None or last.step_seconds is None or last.peak_bytes is None:
        return replace(trial, step_seconds=(), peak_bytes=(), failure="reported no step")
    return replace(
        trial,
        step_seconds=(*trial.step_seconds, last.step_seconds),
        peak_bytes=(*trial.peak_bytes, last.peak_bytes),
    )
