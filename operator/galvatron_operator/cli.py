"""The command ``galvatron``: the whole product on files, without a cluster.

What is wrong is told in two lines, problem and remedy, with exit code 1; an interrupted run ends with 130.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
import yaml
from rich.console import Console
from rich.markup import escape

from galvatron_operator import local, terminal
from galvatron_operator.api import GalvatronJob
from galvatron_operator.decide.profiling import request_of
from galvatron_operator.manifests.rendering import render_job
from galvatron_operator.rundirectory import RunDirectory, stored
from galvatron_operator.settings import Settings
from galvatron_operator.supervised import check_port, free_port
from galvatron_planner.errors import GalvatronError, InvalidInput
from galvatron_planner.explain import explain as explain_text
from galvatron_planner.families import layers
from galvatron_planner.plan import Plan
from galvatron_planner.search.report import SearchReport
from galvatron_planner.units import format_bytes
from galvatron_planner.workload import num_parameters

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="State a Transformer and a GPU budget; get the plan."
)
console = Console()

JobFile = Annotated[Path, typer.Argument(help="A GalvatronJob, as kubectl apply takes it.", metavar="JOB.YAML")]
DirectoryOption = Annotated[
    Path | None,
    typer.Option("--directory", help="Where profile, plan, report, logs and checkpoints are kept."),
]
PortOption = Annotated[
    int | None,
    typer.Option(
        "--port", help="Of status and metrics on localhost; 0 for any. Default: spec.observability.metricsPort."
    ),
]


@app.command()
def run(job_file: JobFile, *, directory: DirectoryOption = None, port: PortOption = None) -> None:
    """Profile, plan and train on this machine; again in the same directory: go on."""
    job = local.load(job_file)
    files = _run_directory(job, directory)
    chosen_port = _port(job, port)
    view = terminal.PhaseView(console)
    with _interruptible(), files.locked():
        console.print(f"{_describe(job)}\nfiles in {files.path}, metrics on http://127.0.0.1:{chosen_port}/metrics")
        with view.showing():
            planned = local.plan(job, files, port=chosen_port, listener=view)
            trained = local.train(
                job, planned.plan, files, data_root=job_file.resolve().parent, port=chosen_port, listener=view
            )
    console.print(terminal.plan_table(planned.plan))
    if trained.last is not None:
        console.print(terminal.outcome_table(planned.plan, trained.last, first_loss=trained.first_loss))
    console.print(terminal.baseline_table(planned.plan, planned.report))


@app.command()
def plan(job_file: JobFile, *, directory: DirectoryOption = None, port: PortOption = None) -> None:
    """Profile, unless it was done before, and plan; do not train."""
    job = local.load(job_file)
    files = _run_directory(job, directory)
    view = terminal.PhaseView(console)
    with _interruptible(), files.locked(), view.showing():
        planned = local.plan(job, files, port=_port(job, port), listener=view)
    console.print(terminal.plan_table(planned.plan))
    console.print(terminal.baseline_table(planned.plan, planned.report))


@app.command()
def explain(run_directory: Annotated[Path, typer.Argument(help="Of `galvatron run` or `galvatron plan`.")]) -> None:
    """Say why the plan of a run was chosen and what the others would cost."""
    files = RunDirectory(run_directory)
    chosen, report = stored(files.plan, Plan), stored(files.report, SearchReport)
    if chosen is None or report is None:
        raise InvalidInput(
            f"{run_directory} holds no plan", remedy="make one with `galvatron plan job.yaml --directory ...`"
        )
    console.print(explain_text(chosen, report), markup=False, highlight=False, soft_wrap=True)


@app.command()
def validate(job_file: JobFile) -> None:
    """Check a GalvatronJob and say what it asks for."""
    job = local.load(job_file)
    console.print(f"[green]valid[/green] {_describe(job)}")


@app.command()
def render(
    job_file: JobFile,
    *,
    image: Annotated[str, typer.Option(help="Runtime image of a job that names none.")] = "galvatron-runtime:0.1.0",
    plan_file: Annotated[
        Path | None, typer.Option("--plan", help="A plan.json: also render what trains under it.")
    ] = None,
) -> None:
    """Print the manifests that the operator would create."""
    job = local.load(job_file)
    job.check_for_cluster()
    request = request_of(job, Settings(runtime_image=image))
    chosen = None if plan_file is None else stored(plan_file, Plan)
    sys.stdout.write(
        yaml.dump_all(render_job(job, request, image=image, plan=chosen), Dumper=_ReadableDumper, sort_keys=False)
    )


class _ReadableDumper(yaml.SafeDumper):
    """Writes documents inside manifests line by line."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_ReadableDumper.add_representer(str, _represent_text)


def main() -> None:
    """Run the command; errors of ours are told without a traceback."""
    try:
        app()
    except GalvatronError as error:
        errors = Console(stderr=True)
        errors.print(f"[bold red]error:[/bold red] {escape(error.problem)}", highlight=False, soft_wrap=True)
        errors.print(f"[bold]what to do:[/bold] {escape(error.remedy)}", highlight=False, soft_wrap=True)
        sys.exit(1)


@contextmanager
def _interruptible() -> Iterator[None]:
    """End with a word and code 130 on Ctrl-C, after the processes have stopped."""
    try:
        yield
    except KeyboardInterrupt:
        Console(stderr=True).print("interrupted; run the same command again to go on")
        raise typer.Exit(130) from None


def _run_directory(job: GalvatronJob, directory: Path | None) -> RunDirectory:
    return RunDirectory((directory or Path("galvatron-runs") / job.name).resolve())


def _port(job: GalvatronJob, port: int | None) -> int:
    chosen = job.spec.observability.metrics_port if port is None else port
    if chosen == 0:
        return free_port()
    check_port(chosen)
    return chosen


def _describe(job: GalvatronJob) -> str:
    model, cluster = job.model, job.cluster
    count = sum(num_parameters(layer) for layer in layers(model))
    batch = job.batch
    sizes = str(batch.minimum) if batch.minimum == batch.maximum else f"{batch.minimum} to {batch.maximum}"
    return (
        f"{job.name}: {model.family} with {count / 1e6:,.1f} M parameters, {model.num_layers} blocks,"
        f" global batch {sizes} x {model.sequence_length} tokens,"
        f" {cluster.num_devices} x {cluster.device_kind} with {format_bytes(cluster.device_memory_bytes)} each"
    )


if __name__ == "__main__":
    main()
