"""What the commands of ``galvatron`` do; ``cli.py`` declares them, and imports this when one is called.

What is wrong is raised, and told by the caller; an interrupted run ends with code 130.
"""

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import NoReturn

import typer
import yaml
from rich.console import Console
from rich.progress import track

from galvatron_operator import explaining, foreign, jobfiles, local, terminal, trials, whatif
from galvatron_operator.api import GalvatronJob, parse
from galvatron_operator.decide.keeping import profile_from_catalogue
from galvatron_operator.decide.profiling import request_of
from galvatron_operator.manifests.rendering import render_job
from galvatron_operator.rundirectory import RunDirectory, stored
from galvatron_operator.settings import Settings
from galvatron_operator.supervised import check_port, free_port
from galvatron_operator.trials import Effort
from galvatron_operator.whatif import AnswerFiles, Lists, Question
from galvatron_planner.errors import InvalidInput
from galvatron_planner.explain import explain as explain_text
from galvatron_planner.families import layers
from galvatron_planner.model import Precision
from galvatron_planner.own import OwnModel
from galvatron_planner.plan import Plan
from galvatron_planner.problem import Algorithm
from galvatron_planner.regret import findings, legend
from galvatron_planner.sensitivity import effect
from galvatron_planner.units import format_bytes
from galvatron_planner.whatif import Answer, answer, tables
from galvatron_planner.workload import num_parameters

console = Console()
GO_ON = "run the same command again to go on"
BEGIN_ANEW = "the job has no spec.checkpoint, so the same command trains from the beginning, without measuring again"


def run(job_file: Path, *, plan_file: Path | None, directory: Path | None, port: int | None) -> None:
    """Profile, plan and train on this machine; again in the same directory: go on."""
    job = jobfiles.load(job_file)
    root = job_file.resolve().parent
    jobfiles.check_files(job, root)
    jobfiles.check_memory(job)
    fixed = None if plan_file is None else _plan_in(plan_file)
    files = _run_directory(job, directory)
    chosen_port = _port(job, port)
    view = terminal.PhaseView(console)
    advice = GO_ON if job.spec.checkpoint is not None else BEGIN_ANEW
    with interruptible(advice), telling_what_ctrl_c_does(), files.locked(job.name):
        place = f"files in {files.path}, metrics on http://127.0.0.1:{chosen_port}/metrics"
        console.print(_describe(job), place, sep="\n", soft_wrap=True)
        with view.showing():
            local.inspect(job, files, data_root=root, listener=view)
            planned = local.plan(job, files, port=chosen_port, listener=view, fixed=fixed)
            trained = local.train(job, planned.plan, files, data_root=root, port=chosen_port, listener=view)
    console.print(terminal.plan_table(planned.plan))
    if trained.last is not None:
        console.print(terminal.outcome_table(planned.plan, trained.last, first_loss=trained.first_loss))
    console.print(terminal.baseline_table(planned.plan, planned.report))
    next_ = f"why this plan: galvatron explain {_short(files.path)}"
    if job.spec.checkpoint is not None:
        next_ += f"\nits weights: galvatron export {_short(files.path)} --output FOLDER"
    console.print(next_, markup=False, highlight=False, soft_wrap=True)


def _short(path: Path) -> str:
    """Write a path as one would type it here."""
    here = Path.cwd()
    return shlex.quote(str(path.relative_to(here) if path.is_relative_to(here) else path))


def plan(  # noqa: PLR0913 -- the options of a command
    job_file: Path | None,
    *,
    model: str,
    cluster: str,
    batch: str,
    precision: str,
    profile: Path | None,
    sequence_parallel: bool,
    lists: Lists,
    output: Path | None,
    plan_file: Path | None,
    directory: Path | None,
    port: int | None,
) -> None:
    """Profile, unless it was done before, and plan; do not train."""
    answers = None if output is None else AnswerFiles(output.resolve())
    if answers is not None:
        answers.check()
    compares = job_file is None or answers is not None or not lists.is_empty
    fixed = None if plan_file is None else _plan_in(plan_file, compares=compares)
    if job_file is None:
        known = None if profile is None else foreign.read_profile(profile)
        question = whatif.question(
            model=model,
            cluster=cluster,
            batch=batch,
            precision=Precision.named(precision or Precision.BF16),
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
    job = jobfiles.load(job_file)
    jobfiles.check_memory(job)
    files = _run_directory(job, directory)
    view = terminal.PhaseView(console)
    with interruptible(), telling_what_ctrl_c_does(), files.locked(job.name), view.showing():
        local.inspect(job, files, data_root=None, listener=view)
        if answers is not None or not lists.is_empty:
            problem = local.problem(job, files, port=_port(job, port), listener=view)
            show_answers(Question(job.name, problem, partial(profile_from_catalogue, job)), lists, answers)
            return
        planned = local.plan(job, files, port=_port(job, port), listener=view, fixed=fixed)
    console.print(terminal.plan_table(planned.plan))
    console.print(terminal.baseline_table(planned.plan, planned.report))


def regret(job_file: Path, effort: Effort, *, plan_file: Path | None, directory: Path | None, port: int | None) -> None:
    """Run the chosen plan and others in turns, and say how much faster the fastest of them is."""
    job = jobfiles.load(job_file)
    root = job_file.resolve().parent
    jobfiles.check_files(job, root)
    jobfiles.check_memory(job)
    fixed = None if plan_file is None else _plan_in(plan_file)
    files, chosen_port = _run_directory(job, directory), _port(job, port)
    view = terminal.PhaseView(console)
    with interruptible(), telling_what_ctrl_c_does(), files.locked(job.name), view.showing():
        local.inspect(job, files, data_root=root, listener=view)
        planned = local.plan(job, files, port=chosen_port, listener=view, fixed=fixed)
        problem = local.problem(job, files, port=chosen_port, listener=view, fixed=fixed)
        chosen = trials.candidates(problem, planned.plan, effort)
        place = trials.Track(job, files, data_root=root, port=chosen_port)
        measured = trials.run_trials(place, chosen, effort=effort, listener=view)
    found, paths = trials.write(files, _describe(job), measured)
    console.print(terminal.trial_table(measured))
    said = (*legend(measured), f"regret: {found}", *findings(measured, found), *(f"wrote {path}" for path in paths))
    console.print(*said, sep="\n", markup=False, highlight=False, soft_wrap=True)


def explain(run_directory: Path, *, timeline: Path | None, trace: Path | None) -> None:
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


def validate(job_file: Path) -> None:
    """Check a GalvatronJob and say what it asks for."""
    job = jobfiles.load(job_file)
    console.print(f"[green]valid[/green] {_describe(job)}", soft_wrap=True)


def describe(job_file: Path) -> None:
    """Print a GalvatronJob with the layers of its own model filled in, as a cluster takes it."""
    body = jobfiles.load_body(job_file)
    parse(body)
    sys.stdout.write(yaml.dump(body, Dumper=_ReadableDumper, sort_keys=False, default_flow_style=None, width=120))


def render(job_file: Path, *, image: str, plan_file: Path | None) -> None:
    """Print the manifests that the operator would create."""
    job = jobfiles.load(job_file)
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


@contextmanager
def interruptible(advice: str = GO_ON) -> Iterator[None]:
    """End with a word and code 130 on Ctrl-C, after the processes have stopped."""
    try:
        yield
    except KeyboardInterrupt:
        Console(stderr=True).print(f"interrupted; {advice}", soft_wrap=True)
        raise typer.Exit(130) from None


@contextmanager
def telling_what_ctrl_c_does() -> Iterator[None]:
    """Answer Ctrl-C at once inside the block: processes take their time to save and stop.

    SIGTERM, with which batch systems end what they started, does the same.
    """
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    # One started in the background ignores SIGINT: there Ctrl-C is for somebody else.
    taken = {number: handler for number, handler in usual.items() if signal.getsignal(number) == handler}

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        # A handler may come in the middle of another write, which streams of Python refuse.
        os.write(2, b"\nstopping, after a last training checkpoint if the job keeps any (Ctrl-C again: at once)\n")
        restore()
        raise KeyboardInterrupt

    def restore() -> None:
        for number, handler in taken.items():
            signal.signal(number, handler)

    for number in taken:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        restore()


def run_module(module: str, arguments: Sequence[str]) -> NoReturn:
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
    parameters = f"{count / 1e6:,.1f} M" if count >= 100_000 else f"{count:,}"
    batch = job.batch
    sizes = str(batch.minimum) if batch.minimum == batch.maximum else f"{batch.minimum} to {batch.maximum}"
    named = model.function if isinstance(model, OwnModel) else model.family
    blocks = "layers" if isinstance(model, OwnModel) else "blocks"
    samples = f"images of {model.image_size}" if model.image_size else f"{model.sequence_length} tokens"
    return (
        f"{job.name}: {named} with {parameters} parameters, {model.num_layers} {blocks},"
        f" global batch {sizes} x {samples},"
        f" {cluster.num_devices} x {cluster.device_kind} with {format_bytes(cluster.device_memory_bytes)} each"
    )
