"""The command ``galvatron``: the whole product on files, without a cluster.

What is wrong is told in two lines, problem and remedy, with exit code 1; an interrupted run ends with 130.
"""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, NoReturn

import typer
import yaml
from rich.console import Console
from rich.markup import escape
from rich.progress import track

from galvatron_operator import convert, explaining, local, terminal, trials, whatif
from galvatron_operator.api import GalvatronJob, parse
from galvatron_operator.decide.keeping import profile_from_catalogue
from galvatron_operator.decide.profiling import request_of
from galvatron_operator.manifests.rendering import render_job
from galvatron_operator.rundirectory import RunDirectory, stored
from galvatron_operator.settings import Settings
from galvatron_operator.supervised import check_port, free_port
from galvatron_operator.trials import Effort
from galvatron_operator.whatif import AnswerFiles, Lists, Question
from galvatron_planner.errors import GalvatronError, InvalidInput
from galvatron_planner.explain import explain as explain_text
from galvatron_planner.families import layers
from galvatron_planner.model import Precision
from galvatron_planner.own import OwnModel
from galvatron_planner.plan import Plan
from galvatron_planner.problem import Algorithm
from galvatron_planner.regret import findings, legend
from galvatron_planner.sensitivity import effect
from galvatron_planner.units import format_bytes
from galvatron_planner.whatif import ALGORITHMS, Answer, answer, tables
from galvatron_planner.workload import num_parameters

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="State a Transformer and a GPU budget; get the plan."
)
app.add_typer(convert.app, name="convert")
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

PlanOption = Annotated[Path | None, typer.Option("--plan", help="A plan.json to take instead of searching one.")]


@app.command()
def run(
    job_file: JobFile,
    *,
    plan_file: PlanOption = None,
    directory: DirectoryOption = None,
    port: PortOption = None,
) -> None:
    """Profile, plan and train on this machine; again in the same directory: go on."""
    job = local.load(job_file)
    local.check_files(job, job_file.resolve().parent)
    fixed = None if plan_file is None else _plan_in(plan_file)
    files = _run_directory(job, directory)
    chosen_port = _port(job, port)
    view = terminal.PhaseView(console)
    with interruptible(), files.locked():
        console.print(f"{_describe(job)}\nfiles in {files.path}, metrics on http://127.0.0.1:{chosen_port}/metrics")
        with view.showing():
            planned = local.plan(job, files, port=chosen_port, listener=view, fixed=fixed)
            trained = local.train(
                job, planned.plan, files, data_root=job_file.resolve().parent, port=chosen_port, listener=view
            )
    console.print(terminal.plan_table(planned.plan))
    if trained.last is not None:
        console.print(terminal.outcome_table(planned.plan, trained.last, first_loss=trained.first_loss))
    console.print(terminal.baseline_table(planned.plan, planned.report))


@app.command()
def plan(  # noqa: PLR0913 -- the options of a command
    job_file: Annotated[Path | None, typer.Argument(help="A GalvatronJob.", metavar="[JOB.YAML]")] = None,
    *,
    model: Annotated[str, typer.Option(help="Instead of a job: a model by name, or a config.json.")] = "",
    cluster: Annotated[str, typer.Option(help="Instead of a job: devices, for instance 2x8xa100-80gb.")] = "",
    batch: Annotated[str, typer.Option(help="Instead of a job: global batch, N or MIN:MAX[:STEP].")] = "",
    precision: Annotated[Precision | None, typer.Option(help="Instead of a job: number format, BF16 if not.")] = None,
    profile: Annotated[
        Path | None, typer.Option(help="Instead of data sheets: a profile.json, for instance of galvatron convert.")
    ] = None,
    sequence_parallel: Annotated[
        bool, typer.Option("--sequence-parallel", help="Instead of a job: also tp with sequence parallelism (sptp).")
    ] = False,
    memory: Annotated[list[str] | None, typer.Option(help="Of each device, for instance 8Gi,12Gi.")] = None,
    devices: Annotated[list[str] | None, typer.Option(help="In all, for instance 8,16.")] = None,
    algorithm: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(ALGORITHMS)}.")] = None,
    output: Annotated[Path | None, typer.Option(help="Where tables, chart and plans of all budgets go.")] = None,
    plan_file: PlanOption = None,
    directory: DirectoryOption = None,
    port: PortOption = None,
) -> None:
    """Profile, unless it was done before, and plan; do not train.

    With --memory, --devices or --algorithm, each several times or with commas: plan for every budget and compare.
    """
    lists = Lists.parse(memory=memory or (), devices=devices or (), algorithm=algorithm or ())
    answers = None if output is None else AnswerFiles(output.resolve())
    if answers is not None:
        answers.check()
    compares = job_file is None or answers is not None or not lists.is_empty
    fixed = None if plan_file is None else _plan_in(plan_file, compares=compares)
    if job_file is None:
        known = None if profile is None else convert.read_profile(profile)
        question = whatif.question(
            model=model,
            cluster=cluster,
            batch=batch,
            precision=precision or Precision.BF16,
            profile=known,
            sequence_parallel=sequence_parallel,
        )
        show_answers(question, lists, answers)
        return
    if model or cluster or batch or precision or profile or sequence_parallel:
        raise InvalidInput(
            "a job states model, cluster, batch, precision and sequence parallelism itself, and is measured",
            remedy="leave those options out, or the job",
        )
    job = local.load(job_file)
    files = _run_directory(job, directory)
    view = terminal.PhaseView(console)
    with interruptible(), files.locked(), view.showing():
        if answers is not None or not lists.is_empty:
            problem = local.problem(job, files, port=_port(job, port), listener=view)
            show_answers(Question(job.name, problem, partial(profile_from_catalogue, job)), lists, answers)
            return
        planned = local.plan(job, files, port=_port(job, port), listener=view, fixed=fixed)
    console.print(terminal.plan_table(planned.plan))
    console.print(terminal.baseline_table(planned.plan, planned.report))


@app.command(name="regret")
def measure_regret(  # noqa: PLR0913 -- the options of a command
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
    job, effort = local.load(job_file), Effort(num_plans=plans, rounds=rounds, steps=steps, seed=seed)
    local.check_files(job, job_file.resolve().parent)
    fixed = None if plan_file is None else _plan_in(plan_file)
    files, chosen_port = _run_directory(job, directory), _port(job, port)
    view = terminal.PhaseView(console)
    with interruptible(), files.locked(), view.showing():
        planned = local.plan(job, files, port=chosen_port, listener=view, fixed=fixed)
        problem = local.problem(job, files, port=chosen_port, listener=view, fixed=fixed)
        chosen = trials.candidates(problem, planned.plan, effort)
        place = trials.Track(job, files, data_root=job_file.resolve().parent, port=chosen_port)
        measured = trials.run_trials(place, chosen, effort=effort, listener=view)
    found, paths = trials.write(files, _describe(job), measured)
    console.print(terminal.trial_table(measured))
    said = (*legend(measured), f"regret: {found}", *findings(measured, found), *(f"wrote {path}" for path in paths))
    console.print(*said, sep="\n", markup=False, highlight=False, soft_wrap=True)


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
    run = explaining.planned(run_directory)
    for path in explaining.draw(run, timeline=timeline, trace=trace):
        console.print(f"wrote {path}", markup=False, highlight=False, soft_wrap=True)
    with interruptible():
        asked = run.other_budgets
        shown = track(asked, "searching", console=console, transient=True, disable=not console.is_terminal)
        effects = [effect(one) for one in shown]
    if console.is_terminal:
        terminal.show_explanation(console, run.plan, run.report, run.seen, effects)
    else:
        text = explain_text(run.plan, run.report, run.seen, effects)
        console.print(text, markup=False, highlight=False, soft_wrap=True)


@app.command()
def export(
    checkpoint: Annotated[Path, typer.Argument(help="Of a run, of checkpoints, or one of them.")],
    *,
    output: Annotated[Path, typer.Option(help="The directory to make.")],
    dtype: Annotated[str, typer.Option(help="Of the tensors: float32 or bfloat16.")] = "float32",
    file_gib: Annotated[float, typer.Option("--file-gib", help="About as large a file may be.", min=0.001)] = 5.0,
) -> None:
    """Write trained weights as Hugging Face's from_pretrained reads them."""
    options = ["--output", str(output), "--dtype", dtype, "--file-gib", str(file_gib)]
    _run_module("galvatron_runtime.export", [str(checkpoint), *options])


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
)
def prepare(context: typer.Context) -> None:
    """Turn texts into a file of token ids to train on."""
    _run_module("galvatron_runtime.prepare", context.args)


@app.command()
def validate(job_file: JobFile) -> None:
    """Check a GalvatronJob and say what it asks for."""
    job = local.load(job_file)
    console.print(f"[green]valid[/green] {_describe(job)}")


@app.command()
def describe(job_file: JobFile) -> None:
    """Print a GalvatronJob with the layers of its own model filled in, as a cluster takes it."""
    body = local.load_body(job_file)
    parse(body)
    sys.stdout.write(yaml.dump(body, Dumper=_ReadableDumper, sort_keys=False, default_flow_style=None, width=120))


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
    chosen = None if plan_file is None else stored(plan_file, Plan)
    request = request_of(job, Settings(runtime_image=image), chosen)
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
    """Run the command."""
    run_app(app)


def run_app(commands: typer.Typer) -> None:
    """Run a command line; errors of ours are told without a traceback."""
    try:
        commands()
    except GalvatronError as error:
        errors = Console(stderr=True)
        errors.print(f"[bold red]error:[/bold red] {escape(error.problem)}", highlight=False, soft_wrap=True)
        errors.print(f"[bold]what to do:[/bold] {escape(error.remedy)}", highlight=False, soft_wrap=True)
        sys.exit(1)


@contextmanager
def interruptible() -> Iterator[None]:
    """End with a word and code 130 on Ctrl-C, after the processes have stopped."""
    try:
        yield
    except KeyboardInterrupt:
        Console(stderr=True).print("interrupted; run the same command again to go on")
        raise typer.Exit(130) from None


def _run_module(module: str, arguments: Sequence[str]) -> NoReturn:
    """Let a command of the runtime do it, and end as it ends."""
    with interruptible():
        done = subprocess.run([sys.executable, "-m", module, *arguments], check=False)  # noqa: S603 -- ours
    raise typer.Exit(done.returncode)


def show_answers(question: Question, lists: Lists, files: AnswerFiles | None) -> None:
    """Plan for every budget, writing as it goes, and show what came of it, also of what was interrupted."""
    problems = whatif.problems(question, lists)
    algorithms = lists.algorithms or (Algorithm.OPTIMAL,)
    answers: list[Answer] = []
    try:
        for problem in track(problems, "planning", console=console, transient=True, disable=not console.is_terminal):
            answers.append(answer(problem, algorithms))
            if files is not None:
                files.write(question, answers)
    except KeyboardInterrupt:
        Console(stderr=True).print(f"interrupted after {len(answers)} of {len(problems)} budgets")
        raise typer.Exit(130) from None
    finally:
        console.print(f"{question.title}; {question.source}", highlight=False, soft_wrap=True)
        for table in tables(answers):
            console.print(terminal.whatif_table(table))
        for one in answers:
            console.print(f"{one.budget}: {one.advice}", highlight=False, markup=False, soft_wrap=True)


def _plan_in(path: Path, *, compares: bool = False) -> Plan:
    if compares:
        raise InvalidInput(
            "--plan is for one job on its own devices",
            remedy="name the job, and leave out --memory, --devices, --algorithm and --output",
        )
    found = stored(path, Plan)
    if found is None:
        raise InvalidInput(f"there is no file {path}", remedy="name a plan.json, as a run directory holds it")
    return found


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
    named = model.function if isinstance(model, OwnModel) else model.family
    blocks = "layers" if isinstance(model, OwnModel) else "blocks"
    samples = f"images of {model.image_size}" if model.image_size else f"{model.sequence_length} tokens"
    return (
        f"{job.name}: {named} with {count / 1e6:,.1f} M parameters, {model.num_layers} {blocks},"
        f" global batch {sizes} x {samples},"
        f" {cluster.num_devices} x {cluster.device_kind} with {format_bytes(cluster.device_memory_bytes)} each"
    )


if __name__ == "__main__":
    main()
