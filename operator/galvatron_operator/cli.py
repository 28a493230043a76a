"""The command ``galvatron``: the whole product on files, without a cluster. Here are its commands and their options.

What is wrong is told in two lines, problem and remedy, with exit code 1; an interrupted run ends with 130. What a
command does is imported when it is called, because help and mistyped options should be answered at once.
"""

import errno
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from galvatron_operator import convert
from galvatron_planner.errors import GalvatronError, InvalidInput

_OF_FILES = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM))
"""What a disk or its owner refuses, wherever it is written."""
ALGORITHM_NAMES = "Optimal, Galvatron, GalvatronBMW"

app = typer.Typer(no_args_is_help=True)
app.add_typer(convert.app, name="convert")

JobFile = Annotated[Path, typer.Argument(help="A GalvatronJob, as kubectl apply takes it.", metavar="JOB.YAML")]
DirectoryOption = Annotated[
    Path | None,
    typer.Option("--directory", help="Of profile, plan, report, logs, checkpoints. Default: galvatron-runs/JOB."),
]
PortOption = Annotated[
    int | None,
    typer.Option("--port", help="Of status and metrics on localhost; 0 for any. Default: the job's metricsPort."),
]
PlanOption = Annotated[Path | None, typer.Option("--plan", help="A plan.json to take instead of searching one.")]


def _tell_version(asked: bool) -> None:  # noqa: FBT001 -- as typer calls it
    from importlib.metadata import version

    if asked:
        typer.echo(f"galvatron {version('galvatron-operator')}")
        raise typer.Exit


@app.callback()
def about(
    *,
    told: Annotated[
        bool, typer.Option("--version", help="Say which version this is.", callback=_tell_version, is_eager=True)
    ] = False,
) -> None:
    """State a Transformer and a GPU budget; get the plan, and train under it."""


@app.command()
def run(
    job_file: JobFile,
    *,
    plan_file: PlanOption = None,
    directory: DirectoryOption = None,
    port: PortOption = None,
) -> None:
    """Profile, plan and train on this machine; again in the same directory: go on."""
    from galvatron_operator import commands

    commands.run(job_file, plan_file=plan_file, directory=directory, port=port)


@app.command()
def plan(  # noqa: PLR0913 -- the options of a command
    job_file: Annotated[Path | None, typer.Argument(help="A GalvatronJob.", metavar="[JOB.YAML]")] = None,
    *,
    model: Annotated[str, typer.Option(help="Instead of a job: a model by name, or a config.json.")] = "",
    cluster: Annotated[str, typer.Option(help="Instead of a job: devices, for instance 2x8xa100-80gb.")] = "",
    batch: Annotated[str, typer.Option(help="Instead of a job: global batch, N or MIN:MAX[:STEP].")] = "",
    precision: Annotated[str, typer.Option(help="Instead of a job: FP64, FP32 or BF16; BF16 if not given.")] = "",
    profile: Annotated[
        Path | None, typer.Option(help="Instead of data sheets: a profile.json, for instance of galvatron convert.")
    ] = None,
    sequence_parallel: Annotated[
        bool, typer.Option("--sequence-parallel", help="Instead of a job: also tp with sequence parallelism (sptp).")
    ] = False,
    memory: Annotated[list[str] | None, typer.Option(help="Of each device, for instance 8Gi,12Gi.")] = None,
    devices: Annotated[list[str] | None, typer.Option(help="In all, for instance 8,16.")] = None,
    algorithm: Annotated[list[str] | None, typer.Option(help=f"Of {ALGORITHM_NAMES}.")] = None,
    output: Annotated[Path | None, typer.Option(help="Where tables, chart and plans of all budgets go.")] = None,
    plan_file: PlanOption = None,
    directory: DirectoryOption = None,
    port: PortOption = None,
) -> None:
    """Profile, unless it was done before, and plan; do not train.

    With --memory, --devices or --algorithm, each several times or with commas: plan for every budget and compare.
    """
    from galvatron_operator import commands
    from galvatron_operator.whatif import Lists

    commands.plan(
        job_file,
        model=model,
        cluster=cluster,
        batch=batch,
        precision=precision,
        profile=profile,
        sequence_parallel=sequence_parallel,
        lists=Lists.parse(memory=memory or (), devices=devices or (), algorithm=algorithm or ()),
        output=output,
        plan_file=plan_file,
        directory=directory,
        port=port,
    )


@app.command()
def regret(  # noqa: PLR0913 -- the options of a command
    job_file: JobFile,
    *,
    plans: Annotated[int, typer.Option(help="Different plans to run, the chosen one among them.", min=2)] = 8,
    rounds: Annotated[int, typer.Option(help="Times that each is run, in turns.", min=1)] = 3,
    steps: Annotated[int, typer.Option(help="Of every run; the median counts.", min=3)] = 12,
    seed: Annotated[int, typer.Option(help="Of random plans, and of the order.", min=0)] = 0,
    plan_file: PlanOption = None,
    directory: DirectoryOption = None,
    port: PortOption = None,
) -> None:
    """Run the chosen plan and others in turns, and say how much faster the fastest of them is."""
    from galvatron_operator import commands
    from galvatron_operator.trials import Effort

    effort = Effort(num_plans=plans, rounds=rounds, steps=steps, seed=seed)
    commands.regret(job_file, effort, plan_file=plan_file, directory=directory, port=port)


@app.command()
def explain(
    run_directory: Annotated[Path, typer.Argument(help="Of `galvatron run` or `galvatron plan`.")],
    *,
    timeline: Annotated[
        Path | None, typer.Option(help="An HTML page to write: stages and their memory over one step.")
    ] = None,
    trace: Annotated[Path | None, typer.Option(help="A JSON trace of the step to write, for ui.perfetto.dev.")] = None,
) -> None:
    """Say why the plan of a run was chosen, what binds, and what other plans and budgets would give."""
    from galvatron_operator import commands

    commands.explain(run_directory, timeline=timeline, trace=trace)


@app.command()
def export(
    checkpoint: Annotated[Path, typer.Argument(help="Of a run, of checkpoints, or one of them.")],
    *,
    output: Annotated[Path, typer.Option(help="The directory to make.")],
    dtype: Annotated[str, typer.Option(help="Of the tensors: float32 or bfloat16.")] = "float32",
    file_gib: Annotated[float, typer.Option("--file-gib", help="About as large a file may be.", min=0.001)] = 5.0,
) -> None:
    """Write trained weights as Hugging Face's from_pretrained reads them."""
    from galvatron_operator import commands

    options = ["--output", str(output), "--dtype", dtype, "--file-gib", str(file_gib)]
    commands.run_module("galvatron_runtime.export", [str(checkpoint), *options])


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
)
def prepare(context: typer.Context) -> None:
    """Turn texts into a file of token ids to train on."""
    from galvatron_operator import commands

    commands.run_module("galvatron_runtime.prepare", context.args)


@app.command()
def validate(job_file: JobFile) -> None:
    """Check a GalvatronJob and say what it asks for."""
    from galvatron_operator import commands

    commands.validate(job_file)


@app.command()
def describe(job_file: JobFile) -> None:
    """Print a GalvatronJob with the layers of its own model filled in, as a cluster takes it."""
    from galvatron_operator import commands

    commands.describe(job_file)


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
    from galvatron_operator import commands

    commands.render(job_file, image=image, plan_file=plan_file)


def main() -> None:
    """Run the command."""
    run_app(app)


def run_app(commands: typer.Typer) -> None:
    """Run a command line; errors of ours are told without a traceback."""
    try:
        commands()
    except GalvatronError as error:
        refuse(error)
    except OSError as error:
        if error.errno not in _OF_FILES:
            raise
        problem = f"cannot write {error.filename or 'a file'}: {error.strerror}"
        refuse(InvalidInput(problem, remedy="make room for it, or choose another folder that can be written"))


def refuse(error: GalvatronError) -> NoReturn:
    """Tell problem and remedy, and end."""
    from rich.console import Console
    from rich.markup import escape

    errors = Console(stderr=True)
    errors.print(f"[bold red]error:[/bold red] {escape(error.problem)}", highlight=False, soft_wrap=True)
    errors.print(f"[bold]what to do:[/bold] {escape(error.remedy)}", highlight=False, soft_wrap=True)
    sys.exit(1)


if __name__ == "__main__":
    main()
