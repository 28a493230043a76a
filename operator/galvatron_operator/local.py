"""The whole line on one machine: profile -> plan -> train as local processes, from the YAML that a cluster takes.

It shares everything with cluster mode but who starts the processes. It shows nothing itself: a listener is told what
happens, and the command line draws it.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Protocol
from uuid import uuid4

from galvatron_operator import torchrun
from galvatron_operator.api import GalvatronJob, ProfilingPolicy, training_spec
from galvatron_operator.decide.keeping import profile_from_catalogue
from galvatron_operator.rundirectory import RunDirectory, keep, stored
from galvatron_operator.supervised import ask, free_port, supervise
from galvatron_operator.torchrun import Launch
from galvatron_planner.cluster import Cluster, DeviceKind
from galvatron_planner.errors import InvalidInput, NoFeasiblePlan
from galvatron_planner.plan import Plan
from galvatron_planner.problem import Algorithm, PlanningProblem
from galvatron_planner.profiles import Profile, ProfileRequest, ProfileSource
from galvatron_planner.search.fixed import price_fixed
from galvatron_planner.search.optimizer import search
from galvatron_planner.search.report import SearchReport
from galvatron_planner.search.request import covering, profile_request
from galvatron_planner.training import TrainingSpec
from galvatron_planner.units import format_bytes, format_seconds
from galvatron_planner.worker import Progress, WorkerStatus


class Listener(Protocol):
    """Who is told what happens."""

    def start(self, phase: str, detail: str) -> None:
        """A phase begins."""

    def progress(self, progress: Progress) -> None:
        """The phase has come this far."""

    def end(self, detail: str) -> None:
        """The phase is over, with this result."""


@dataclass(frozen=True, slots=True)
class Planned:
    """What the search answered."""

    plan: Plan
    report: SearchReport


@dataclass(frozen=True, slots=True)
class Trained:
    """What training came to.

    Attributes:
        first_loss: loss of the first step that this run was seen to make; absent when it made none.
        last: progress at the end; absent when the run had nothing left to do.
    """

    first_loss: float | None = None
    last: Progress | None = None


def local_cluster(job: GalvatronJob) -> Cluster:
    """All devices of the job on one node: this machine."""
    cluster = job.cluster
    return Cluster(
        num_nodes=1,
        devices_per_node=cluster.num_devices,
        device_kind=cluster.device_kind,
        device_memory_bytes=cluster.device_memory_bytes,
    )


def planned_cluster(job: GalvatronJob) -> Cluster:
    """The devices to plan for: this machine's, or with data sheets instead of measurements, the job's own nodes."""
    return job.cluster if _uses_data_sheets(job) else local_cluster(job)


def plan(
    job: GalvatronJob, directory: RunDirectory, *, port: int, listener: Listener, fixed: Plan | None = None
) -> Planned:
    """Profile, unless the directory or the catalogue holds the answer, and search, or price the plan that is given.

    Raises:
        InvalidInput: when the job needs a plan and none is given, or the plan is for something else.
        NoFeasiblePlan: when nothing fits the budget.
        WorkerFailed: when profiling failed.
    """
    if fixed is None and job.spec.search.algorithm is Algorithm.FIXED:
        raise InvalidInput(
            "spec.search.algorithm is Fixed, and there are no ConfigMaps here",
            remedy="bring the plan with `galvatron run --plan plan.json`",
        )
    asked = problem(job, directory, port=port, listener=listener, fixed=fixed)
    listener.start("plan", "searching strategies" if fixed is None else "pricing the plan that was given")
    try:
        solution = search(asked) if fixed is None else price_fixed(asked, fixed)
    except NoFeasiblePlan as error:
        told = error.problem + job.kept_free
        raise NoFeasiblePlan(told, changes=error.changes, needed_bytes=error.needed_bytes) from error
    keep(directory.plan, solution.plan.to_json())
    keep(directory.report, solution.report.to_json())
    estimate = solution.plan.estimate
    listener.end(
        f"{solution.plan.summary}: {format_seconds(estimate.step_seconds)}/step,"
        f" {format_bytes(estimate.peak_bytes)} per device"
    )
    return Planned(solution.plan, solution.report)


def problem(
    job: GalvatronJob, directory: RunDirectory, *, port: int, listener: Listener, fixed: Plan | None = None
) -> PlanningProblem:
    """Profile, unless the directory or the catalogue holds the answer, and pose what the job asks.

    What is measured is enough for a search, and for the plan that is given.

    Raises:
        WorkerFailed: when profiling failed.
    """
    cluster = planned_cluster(job)
    request = profile_request(
        job.model,
        cluster,
        precision=job.precision,
        batch=job.batch,
        limits=job.limits,
        runtime_version=version("galvatron-operator"),
    )
    request = request if fixed is None else covering(request, fixed)
    profile = _profile(job, request, directory, port=port, listener=listener)
    return job.problem(profile, cluster)


def inspect(job: GalvatronJob, directory: RunDirectory, *, data_root: Path | None, listener: Listener) -> None:
    """Look at devices, data, weights and training checkpoints, before anything is measured.

    Args:
        job: the job.
        directory: of the run.
        data_root: where paths of the job start; absent when it will not be trained, so that its files do not matter.
        listener: told what is done.

    Raises:
        InvalidInput: naming what training could not use.
    """
    arguments = torchrun.inspecting_arguments(local_cluster(job))
    if job.cluster.device_kind is DeviceKind.CPU or (data_root is None and _uses_data_sheets(job)):
        arguments = ()
    if data_root is not None and _reads_files(job, directory):
        keep(directory.training, _training(job, directory, data_root).to_json())
        keep(directory.model, job.model.model_dump_json())
        arguments += torchrun.reading_arguments(
            training_path=str(directory.training),
            model_path=str(directory.model),
            precision=job.precision,
            directory=str(directory.supervisor("train")),
        )
    if not arguments:
        # A process with torch takes seconds to start.
        return
    listener.start("check", "looking at devices, data, weights and training checkpoints")
    ask(torchrun.INSPECT_MODULE, arguments)
    listener.end("all of them can be used")


def _reads_files(job: GalvatronJob, directory: RunDirectory) -> bool:
    training = job.spec.training
    resumes = job.spec.checkpoint is not None and directory.checkpoints.is_dir()
    return training.dataset.source.is_files or training.initial_weights is not None or resumes


def _training(job: GalvatronJob, directory: RunDirectory, data_root: Path) -> TrainingSpec:
    return training_spec(
        job, checkpoint_directory=str(directory.checkpoints), data_root=str(data_root), weights_root=str(data_root)
    )


def train(
    job: GalvatronJob, chosen: Plan, directory: RunDirectory, *, data_root: Path, port: int, listener: Listener
) -> Trained:
    """Train under the plan, going on from the directory's newest training checkpoint.

    Raises:
        WorkerFailed: when training failed.
        KeyboardInterrupt: after an interrupted run has saved and stopped.
    """
    keep(directory.training, _training(job, directory, data_root).to_json())
    listener.start("train", f"starting {chosen.cluster.num_devices} processes")
    trained = Trained()

    def on_status(status: WorkerStatus) -> None:
        nonlocal trained
        progress = status.progress
        if progress is None or progress.loss is None:
            return
        listener.progress(progress)
        first = progress.loss if trained.first_loss is None else trained.first_loss
        trained = Trained(first_loss=first, last=progress)

    arguments = torchrun.training_arguments(plan_path=str(directory.plan), training_path=str(directory.training))
    run_ranks(job, "train", directory, arguments=arguments, port=port, on_status=on_status)
    last = trained.last
    listener.end("nothing left to do: trained before" if last is None else f"step {last.step}, loss {last.loss:.3f}")
    return trained


def _profile(
    job: GalvatronJob, request: ProfileRequest, directory: RunDirectory, *, port: int, listener: Listener
) -> Profile:
    if _uses_data_sheets(job):
        return _read_data_sheets(job, request, directory, listener)
    known = stored(directory.profile, Profile)
    cached = known is not None and known.request_digest == request.digest() and known.source is ProfileSource.MEASURED
    if known is not None and cached and job.spec.profiling.policy is ProfilingPolicy.IF_NOT_CACHED:
        listener.start("profile", "reading the measurements of an earlier run")
        listener.end(f"measured before on {known.device_name}, {directory.profile}")
        return known
    keep(directory.request, request.to_json())
    listener.start("profile", f"measuring {len(request.layers)} kinds of layers and the links between devices")

    def on_status(status: WorkerStatus) -> None:
        if status.progress is not None:
            listener.progress(status.progress)

    arguments = torchrun.measuring_arguments(request_path=str(directory.request), output_path=str(directory.profile))
    run_ranks(job, "profile", directory, arguments=arguments, port=port, on_status=on_status)
    profile = Profile.from_json(directory.profile.read_text())
    listener.end(f"measured on {profile.device_name}, durations to {profile.typical_uncertainty:.0%} (median)")
    return profile


def _uses_data_sheets(job: GalvatronJob) -> bool:
    return job.spec.profiling.policy is ProfilingPolicy.NEVER


def _read_data_sheets(
    job: GalvatronJob, request: ProfileRequest, directory: RunDirectory, listener: Listener
) -> Profile:
    """Work the profile out; training by the plan runs on whatever devices this machine has, at their own speed."""
    listener.start("profile", "reading data sheets; nothing is measured, also where this machine has other devices")
    profile = profile_from_catalogue(job, request)
    keep(directory.profile, profile.to_json())
    nodes = f"{request.num_nodes} x {request.devices_per_node}"
    listener.end(f"{profile.source.caveat}: {nodes} {profile.device_name}")
    return profile


def run_ranks(
    job: GalvatronJob,
    phase: str,
    directory: RunDirectory,
    *,
    arguments: tuple[str, ...],
    port: int,
    on_status: Callable[[WorkerStatus], None],
) -> None:
    """Run the processes of one phase on this machine to their end.

    Args:
        job: whose devices and variables they have.
        phase: ``train`` or ``profile``; names their files.
        directory: where their files are.
        arguments: of the phase's module.
        port: of status and metrics.
        on_status: called with every new status.

    Raises:
        WorkerFailed: when they failed.
        KeyboardInterrupt: after they have stopped.
    """
    launch = _launch(job, phase, directory, arguments=arguments, port=port)
    supervise(
        torchrun.supervisor_command(launch),
        environment=torchrun.environment(launch) | {item.name: item.value for item in job.spec.runtime.env},
        port=launch.supervisor_port,
        result=Path(launch.run_directory) / f"result-{launch.attempt}.json",
        log=directory.log(phase),
        on_status=on_status,
    )


def _launch(job: GalvatronJob, phase: str, directory: RunDirectory, *, arguments: tuple[str, ...], port: int) -> Launch:
    run_directory = directory.supervisor(phase)
    directory.clear(phase)
    return Launch(
        module=torchrun.TRAIN_MODULE if phase == "train" else torchrun.MEASURE_MODULE,
        arguments=arguments,
        cluster=local_cluster(job),
        node_rank="0",
        master_address=torchrun.LOOPBACK,
        master_port=free_port(),
        run_id=f"{job.name}-{uuid4().hex[:8]}",
        attempt=0,
        supervisor_port=port,
        supervisor_address=torchrun.LOOPBACK,
        run_directory=str(run_directory),
        when_finished=torchrun.WhenFinished.EXIT,
        python=sys.executable,
    )
