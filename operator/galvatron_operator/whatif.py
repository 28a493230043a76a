"""``galvatron plan`` with lists: what was typed becomes planning problems, and answers become files.

The planner answers (``galvatron_planner.whatif``); here is what touches texts of the command line and the disk.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryFile

from galvatron_operator.rundirectory import not_writable, replace_text
from galvatron_planner.analytic import analytic_profile
from galvatron_planner.catalogue import parse_cluster
from galvatron_planner.cluster import Cluster
from galvatron_planner.errors import InvalidInput
from galvatron_planner.model import Model, Precision
from galvatron_planner.presets import model_named
from galvatron_planner.problem import Algorithm, BatchRange, PlanningProblem, SearchLimits
from galvatron_planner.profiles import Profile, ProfileRequest, ProfileSource
from galvatron_planner.search.request import profile_request
from galvatron_planner.units import format_quantity, parse_bytes
from galvatron_planner.whatif import ALGORITHMS, Answer, as_chart, as_csv, as_markdown


@dataclass(frozen=True, slots=True)
class Lists:
    """What is asked about; an empty list leaves it as the problem has it.

    Attributes:
        memories: bytes of each device.
        device_counts: devices in all.
        algorithms: that answer.
    """

    memories: tuple[int, ...] = ()
    device_counts: tuple[int, ...] = ()
    algorithms: tuple[Algorithm, ...] = ()

    @classmethod
    def parse(cls, *, memory: Sequence[str], devices: Sequence[str], algorithm: Sequence[str]) -> "Lists":
        """Read repeated options, each of which may hold a list with commas.

        Raises:
            InvalidInput: naming the option.
        """
        return cls(
            memories=tuple(sorted({parse_bytes(one, where="--memory") for one in _items(memory)})),
            device_counts=tuple(sorted({_device_count(one) for one in _items(devices)})),
            algorithms=tuple(dict.fromkeys(_algorithm(one) for one in _items(algorithm))),
        )

    @property
    def is_empty(self) -> bool:
        """Tell whether nothing was listed."""
        return self == Lists()


@dataclass(frozen=True, slots=True)
class Question:
    """What is varied.

    Attributes:
        title: for people.
        problem: with its own devices and memory.
        make_profile: works a profile out from data sheets, for other numbers of devices.
    """

    title: str
    problem: PlanningProblem
    make_profile: Callable[[ProfileRequest], Profile]

    @property
    def source(self) -> str:
        """Say where the numbers come from."""
        profile = self.problem.profile
        return f"{profile.source.caveat or 'measured'}: {profile.device_name}"


def question(
    *,
    model: str,
    cluster: str,
    batch: str,
    precision: Precision,
    profile: Profile | None = None,
    sequence_parallel: bool = False,
) -> Question:
    """Ask without a job: about a model by name, on a cluster by description, with a profile or one from data sheets.

    A profile limits the search to the tensor degrees that it has; sequence parallelism must have been measured for it.

    Raises:
        InvalidInput: naming the option.
    """
    if not (model and cluster and batch):
        raise InvalidInput(
            "there is neither a job nor all of --model, --cluster and --batch",
            remedy="write galvatron plan job.yaml, or --model bert-huge-32 --cluster 8xrtx-titan --batch 8:128:8",
        )
    description, spec, sizes = parse_cluster(cluster), model_named(model), parse_batch(batch)
    devices, limits = description.cluster(), SearchLimits(sequence_parallel=sequence_parallel)
    if profile is not None:
        limits = limits.model_copy(update={"max_tensor_degree": profile.max_tensor_degree})

    def make_profile(request: ProfileRequest) -> Profile:
        return analytic_profile(request, description.device, description.links)

    known = profile or make_profile(_request(spec, devices, precision, sizes, limits))
    problem = PlanningProblem(
        model=spec, precision=precision, cluster=devices, batch=sizes, limits=limits, profile=known
    )
    return Question(f"{model} on {cluster}, batch {batch}, {precision}", problem, make_profile)


def problems(question: Question, lists: Lists) -> tuple[PlanningProblem, ...]:
    """Pose the problem for every listed number of devices and memory, both rising.

    Profiles from data sheets are made anew for other numbers of devices; measured ones hold for as many devices as they
    were measured on, and for fewer.

    Raises:
        InvalidInput: when more devices are listed than were measured.
    """
    base = question.problem
    memories = lists.memories or (base.cluster.device_memory_bytes,)
    posed = []
    for num_devices in lists.device_counts or (base.cluster.num_devices,):
        # One profile for all budgets: more memory must not change what else is known.
        cluster = resized(base.cluster, num_devices).model_copy(update={"device_memory_bytes": max(memories)})
        profile = _profile(question, cluster)
        for memory in memories:
            budget = cluster.model_copy(update={"device_memory_bytes": memory})
            posed.append(base.model_copy(update={"cluster": budget, "profile": profile}))
    return tuple(posed)


def resized(cluster: Cluster, num_devices: int) -> Cluster:
    """Take other devices of the same nodes: part of one, or several whole ones."""
    per_node = min(cluster.devices_per_node, num_devices)
    return cluster.model_copy(update={"num_nodes": num_devices // per_node, "devices_per_node": per_node})


def parse_batch(text: str) -> BatchRange:
    """Read ``64``, ``8:128`` or ``8:128:8`` (from, to, step).

    Raises:
        InvalidInput: when it is none of them.
    """
    parts = text.split(":")
    numbers = [int(part) for part in parts if part.isdecimal()]
    if len(numbers) != len(parts) or len(parts) > 3 or min(numbers) < 1 or numbers[0] > numbers[min(1, len(parts) - 1)]:
        raise InvalidInput(
            f"--batch is {text!r}", remedy="write one size, or MIN:MAX or MIN:MAX:STEP, for instance 8:128:8"
        )
    step = numbers[2] if len(numbers) == 3 else 1
    return BatchRange(minimum=numbers[0], maximum=numbers[min(1, len(numbers) - 1)], step=step)


@dataclass(frozen=True, slots=True)
class AnswerFiles:
    """What is written of a sweep, again after every answer, each file at once: what is there can be read.

    Attributes:
        path: of the folder.
    """

    path: Path

    def check(self) -> None:
        """Make the folder.

        Raises:
            DirectoryNotWritable: when it cannot be made or written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with TemporaryFile(dir=self.path):
                pass
        except OSError as error:
            raise not_writable(self.path, error, option="--output") from error

    def write(self, question: Question, answers: Sequence[Answer]) -> None:
        """Write tables and chart of all answers, and plan and report of the last."""
        heading = f"# {question.title}\n\nThroughput: {question.source}.\n\n![over memory](whatif.svg)\n\n"
        self._replace("whatif.csv", as_csv(answers))
        self._replace("whatif.md", heading + as_markdown(answers))
        self._replace("whatif.svg", as_chart(answers, title=question.title))
        last = answers[-1]
        if last.solution is not None:
            folder = f"plans/{last.num_devices}x{format_quantity(last.memory_bytes)}"
            self._replace(f"{folder}/plan.json", last.solution.plan.to_json())
            self._replace(f"{folder}/report.json", last.solution.report.to_json())

    def _replace(self, name: str, text: str) -> None:
        path = self.path / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_text(path, text)
        except OSError as error:
            raise not_writable(path, error, option="--output") from error


def _profile(question: Question, cluster: Cluster) -> Profile:
    base = question.problem
    if base.profile.source is ProfileSource.ANALYTIC:
        return question.make_profile(_request(base.model, cluster, base.precision, base.batch, base.limits))
    if cluster.num_devices > base.cluster.num_devices:
        raise InvalidInput(
            f"--devices {cluster.num_devices}: the profile was measured on {base.cluster.num_devices} devices",
            remedy="plan a job with more devices, or plan from data sheets with --model and --cluster",
        )
    return base.profile


def _request(
    model: Model, cluster: Cluster, precision: Precision, batch: BatchRange, limits: SearchLimits
) -> ProfileRequest:
    return profile_request(
        model, cluster, precision=precision, batch=batch, limits=limits, runtime_version=version("galvatron-operator")
    )


def _items(values: Sequence[str]) -> Iterator[str]:
    return (item.strip() for value in values for item in value.split(","))


def _device_count(text: str) -> int:
    count = int(text) if text.isdecimal() else 0
    if count < 1 or count & (count - 1):
        raise InvalidInput(f"--devices is {text!r}", remedy="write powers of two, for instance 8,16")
    return count


def _algorithm(text: str) -> Algorithm:
    for algorithm in ALGORITHMS:
        if algorithm.lower() == text.lower():
            return algorithm
    raise InvalidInput(f"no algorithm is called {text!r}", remedy=f"use {', '.join(ALGORITHMS)}")
