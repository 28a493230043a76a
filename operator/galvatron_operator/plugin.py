"""``kubectl galvatron``: explain, ask again and follow the jobs of a cluster, with the rights of whoever calls it."""

import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.live import Live

from galvatron_operator import cli, commands, terminal
from galvatron_operator.api import ConditionType, JobStatus, ProfilingPolicy, parse, parse_status
from galvatron_operator.decide.keeping import profile_from_catalogue
from galvatron_operator.kubectl import Kubectl
from galvatron_operator.manifests.metadata import Manifest
from galvatron_operator.names import PLAN_KEY, PROFILE_KEY, REPORT_KEY, pod, stateful_set
from galvatron_operator.rundirectory import RunDirectory
from galvatron_operator.whatif import AnswerFiles, Lists, Question
from galvatron_planner.errors import InvalidInput
from galvatron_planner.profiles import Profile
from galvatron_planner.search.request import profile_request
from galvatron_planner.whatif import ALGORITHMS

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Explain, ask again and follow the GalvatronJobs of a cluster."
)

JobName = Annotated[str, typer.Argument(help="Of a GalvatronJob in the cluster.", metavar="JOB")]
Namespace = Annotated[str, typer.Option("--namespace", "-n", help="Default: the context's.")]
Context = Annotated[str, typer.Option("--context", help="Of the kubeconfig. Default: the current one.")]

WATCH_SECONDS = 5.0


@app.command()
def explain(
    job: JobName,
    *,
    timeline: Annotated[Path | None, typer.Option(help="An HTML page to write: stages and memory over a step.")] = None,
    trace: Annotated[Path | None, typer.Option(help="A JSON trace of the step to write, for ui.perfetto.dev.")] = None,
    namespace: Namespace = "",
    context: Context = "",
) -> None:
    """Say why the plan of a job was chosen, what binds, and what other plans and budgets would give."""
    kubectl = Kubectl(namespace, context)
    with tempfile.TemporaryDirectory(prefix="galvatron-") as directory:
        files = RunDirectory(Path(directory))
        _fetch(kubectl, job, files)
        commands.explain(files.path, timeline=timeline, trace=trace)


@app.command()
def plan(  # noqa: PLR0913 -- the options of a command
    job: JobName,
    *,
    memory: Annotated[list[str] | None, typer.Option(help="Of each device, for instance 8Gi,12Gi.")] = None,
    devices: Annotated[list[str] | None, typer.Option(help="In all, for instance 8,16.")] = None,
    algorithm: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(ALGORITHMS)}.")] = None,
    output: Annotated[Path | None, typer.Option(help="Where tables, chart and plans of all budgets go.")] = None,
    namespace: Namespace = "",
    context: Context = "",
) -> None:
    """Ask what a job's own measurements say of other budgets, device counts and algorithms; nothing is started."""
    lists = Lists.parse(memory=memory or (), devices=devices or (), algorithm=algorithm or ())
    answers = None if output is None else AnswerFiles(output.resolve())
    if answers is not None:
        answers.check()
    kubectl = Kubectl(namespace, context)
    body = kubectl.job(job)
    known, profile = parse(body), _profile(kubectl, body)
    problem = known.problem(profile, known.cluster)
    commands.show_answers(Question(known.name, problem, partial(profile_from_catalogue, known)), lists, answers)


@app.command()
def top(
    *,
    everywhere: Annotated[bool, typer.Option("--all-namespaces", "-A", help="Of every namespace.")] = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Go on until Ctrl-C.")] = False,
    namespace: Namespace = "",
    context: Context = "",
) -> None:
    """Show how fast jobs train, against what was predicted, and how much memory they hold of what they may."""
    kubectl = Kubectl(namespace, context)
    if not watch:
        commands.console.print(terminal.top_table(kubectl.jobs(everywhere=everywhere)))
        return
    with commands.interruptible(), Live(console=commands.console, auto_refresh=False) as live:
        while True:
            live.update(terminal.top_table(kubectl.jobs(everywhere=everywhere)), refresh=True)
            time.sleep(WATCH_SECONDS)


@app.command()
def logs(
    job: JobName,
    *,
    tail: Annotated[int, typer.Option(help="Lines of the pod's log.", min=1)] = 100,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what is written.")] = False,
    namespace: Namespace = "",
    context: Context = "",
) -> None:
    """Show the newest failure of a job and the log of the pod it happened in, or of pod 0 if nothing has failed."""
    kubectl = Kubectl(namespace, context)
    failure = next(iter(_status(kubectl.job(job)).failures), None)
    if failure is not None:
        commands.console.print(terminal.failure_text(failure), markup=False, highlight=False, soft_wrap=True)
    name = failure.pod if failure is not None and failure.pod else pod(stateful_set(job), 0)
    options = ("--all-containers", "--tail", str(tail), *(("--follow",) if follow else ()))
    with commands.interruptible():
        for line in kubectl.lines("logs", name, *options):
            commands.console.print(terminal.log_line(line), markup=False, highlight=False, soft_wrap=True)


def main() -> None:
    """Run the plugin; errors of ours are told without a traceback."""
    cli.run_app(app)


def _fetch(kubectl: Kubectl, name: str, files: RunDirectory) -> None:
    """Write plan, report and profile of a job as a local run keeps them.

    Raises:
        InvalidInput: when the job has no plan yet.
    """
    body = kubectl.job(name)
    status = _status(body)
    if status.plan is None:
        raise InvalidInput(f"{name} has no plan yet: {_obstacle(status)}", remedy="wait until PlanReady is true")
    texts = kubectl.texts(status.plan.config_map_name)
    files.plan.write_text(texts[PLAN_KEY])
    files.report.write_text(texts[REPORT_KEY])
    files.profile.write_text(_profile(kubectl, body).to_json())


def _profile(kubectl: Kubectl, body: Manifest) -> Profile:
    """Read, or work out again, the profile that the job's plan rests on.

    Raises:
        InvalidInput: when there is none yet.
    """
    status, job = _status(body), parse(body)
    if job.spec.profiling.policy is ProfilingPolicy.NEVER:
        request = profile_request(
            job.model, job.cluster, precision=job.precision, batch=job.batch, limits=job.limits, runtime_version=""
        )
        return profile_from_catalogue(job, request)
    if status.profile is None or status.profile.config_map_name is None:
        raise InvalidInput(
            f"{job.name} has no profile yet: {_obstacle(status)}", remedy="wait until ProfileReady is true"
        )
    return Profile.from_json(kubectl.texts(status.profile.config_map_name)[PROFILE_KEY])


def _status(body: Manifest) -> JobStatus:
    """Read what the operator says.

    Raises:
        InvalidInput: when it has not said anything.
    """
    status = parse_status(body)
    if status is None:
        raise InvalidInput(
            f"no operator has looked at {body['metadata']['name']} yet",
            remedy="see that the operator runs and watches this namespace (helm status, its log)",
        )
    return status


def _obstacle(status: JobStatus) -> str:
    """The condition that is in the way, in its own words."""
    for type_ in (ConditionType.FAILED, ConditionType.PLAN_READY, ConditionType.PROFILE_READY):
        condition = status.find(type_)
        if condition is not None and condition.message:
            return f"{condition.reason}: {condition.message}"
    return status.phase


if __name__ == "__main__":
    main()
