"""A GalvatronJob, checked, and its conversion to what the planner and the runtime understand."""

import json
import reprlib
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, Literal, Self, assert_never

from pydantic import AwareDatetime, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from galvatron_operator import names
from galvatron_operator.api.checks import check_name, check_spec, check_volumes
from galvatron_operator.api.models import model_of
from galvatron_operator.api.spec import (
    BinType,
    CheckpointMode,
    DatasetSource,
    PipelineSchedule,
    Resume,
    SecretReference,
    Spec,
)
from galvatron_operator.api.status import MAX_ANNOTATION
from galvatron_operator.api.values import FORMS, SpecValue
from galvatron_planner.cluster import Cluster, DeviceKind
from galvatron_planner.errors import InvalidInput
from galvatron_planner.model import Model, Precision
from galvatron_planner.problem import BatchRange, PlanningProblem, Schedule, SearchLimits
from galvatron_planner.profiles import Profile
from galvatron_planner.training import (
    AdamW,
    DataSource,
    ImageFolder,
    PythonDocs,
    SyntheticData,
    TextFiles,
    TokenFiles,
    TrainingCheckpoints,
    TrainingSpec,
)
from galvatron_planner.units import parse_bytes

PIPELINE_SCHEDULES = {Schedule.ONE_F_ONE_B: PipelineSchedule.ONE_F_ONE_B, Schedule.GPIPE: PipelineSchedule.GPIPE}
"""Schedules of the planner, as users write them."""
_SCHEDULES = {written: schedule for schedule, written in PIPELINE_SCHEDULES.items()}
_UNBOUNDED_DEGREE = 1 << 30
_WITHOUT_CLUSTER = "local"


class Metadata(SpecValue):
    """What the operator uses of ``metadata``; without a cluster, all but the name is made up."""

    model_config = ConfigDict(extra="ignore")

    name: str
    namespace: str = "default"
    uid: str = _WITHOUT_CLUSTER
    generation: int = 1
    creation_timestamp: AwareDatetime | None = None
    annotations: dict[str, str] | None = None
    labels: dict[str, str] | None = None


class GalvatronJob(SpecValue):
    """A job that exists is meant: ``checks.py`` has passed it.

    Raises:
        InvalidInput: with field and remedy, when a rule over several fields is broken.
    """

    api_version: Literal["galvatron.io/v1alpha1"]
    kind: Literal["GalvatronJob"]
    metadata: Metadata
    spec: Spec
    status: dict[str, Any] = Field(default_factory=dict, exclude=True, repr=False)

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_name(self.name)
        check_spec(self.spec)
        return self

    def check_for_cluster(self) -> None:
        """Refuse what only runs without a cluster.

        Raises:
            InvalidInput: naming the missing volume.
        """
        check_volumes(self.spec)

    def with_image_pull_secrets(self, secrets: tuple[str, ...]) -> Self:
        """Add secrets of the installation behind those that the job names itself."""
        runtime = self.spec.runtime
        own = tuple(secret.name for secret in runtime.image_pull_secrets)
        every = tuple(SecretReference(name=name) for name in dict.fromkeys((*own, *secrets)))
        spec = self.spec.model_copy(update={"runtime": runtime.model_copy(update={"image_pull_secrets": every})})
        return self.model_copy(update={"spec": spec})

    @property
    def name(self) -> str:
        """``metadata.name``."""
        return self.metadata.name

    @property
    def namespace(self) -> str:
        """``metadata.namespace``."""
        return self.metadata.namespace

    @property
    def reprofile(self) -> str | None:
        """What the user has written last to have the job measured again, cut to what ``status`` holds."""
        return self._asked(names.ANNOTATION_REPROFILE)

    @property
    def replan(self) -> str | None:
        """What the user has written last to have another plan searched, cut to what ``status`` holds."""
        return self._asked(names.ANNOTATION_REPLAN)

    def _asked(self, annotation: str) -> str | None:
        value = (self.metadata.annotations or {}).get(annotation)
        return None if value is None else value[:MAX_ANNOTATION]

    @property
    def queue(self) -> str | None:
        """The queue of Kueue that the job waits in, if any."""
        return (self.metadata.labels or {}).get(names.LABEL_QUEUE) or None

    @property
    def queue_labels(self) -> dict[str, str]:
        """What Kueue has to find on every object that makes pods."""
        labels = self.metadata.labels or {}
        known = (names.LABEL_QUEUE, names.LABEL_QUEUE_PRIORITY)
        return {key: labels[key] for key in known if labels.get(key)} if self.queue else {}

    @property
    def model(self) -> Model:
        """The model with every default filled in."""
        return model_of(self.spec.model)

    @property
    def precision(self) -> Precision:
        """Number format of the computation."""
        return Precision(self.spec.training.precision.value)

    @property
    def cluster(self) -> Cluster:
        """The devices of the job, each with the memory that plans may use."""
        budget = self.spec.budget
        memory_bytes = parse_bytes(budget.memory_per_gpu, where="spec.budget.memoryPerGPU")
        return Cluster(
            num_nodes=budget.num_nodes,
            devices_per_node=budget.gpus_per_node,
            device_kind=DeviceKind.CPU if budget.uses_cpu else DeviceKind.CUDA,
            device_memory_bytes=memory_bytes * (100 - budget.memory_reserve_percent) // 100,
        )

    @property
    def kept_free(self) -> str:
        """What a message about too little memory must add: how much the job itself keeps from plans; mostly nothing."""
        percent = self.spec.budget.memory_reserve_percent
        return f" ({percent} % of spec.budget.memoryPerGPU stay free: memoryReservePercent)" if percent else ""

    @property
    def batch(self) -> BatchRange:
        """Global batch sizes to search; a range without a step goes in multiples of its minimum."""
        batch = self.spec.training.global_batch_size
        if batch.value is not None:
            return BatchRange(minimum=batch.value, maximum=batch.value)
        assert batch.min is not None  # noqa: S101 -- checks.py has refused a batch with neither
        assert batch.max is not None  # noqa: S101
        return BatchRange(minimum=batch.min, maximum=batch.max, step=batch.step or batch.min)

    @property
    def limits(self) -> SearchLimits:
        """What the search may use."""
        search = self.spec.search
        return SearchLimits(
            excluded=tuple(sorted(search.excluded_dimensions)),
            max_tensor_degree=search.max_degrees.tensor or _UNBOUNDED_DEGREE,
            max_pipeline_degree=search.max_degrees.pipeline or _UNBOUNDED_DEGREE,
            schedule=_SCHEDULES[search.pipeline_schedule],
            algorithm=search.algorithm,
            sequence_parallel=search.sequence_parallelism,
        )

    def problem(self, profile: Profile, cluster: Cluster) -> PlanningProblem:
        """Pose what the job asks.

        Args:
            profile: what was measured for it.
            cluster: the devices to plan for.
        """
        return PlanningProblem(
            model=self.model,
            precision=self.precision,
            cluster=cluster,
            batch=self.batch,
            limits=self.limits,
            profile=profile,
        )


def parse(body: Mapping[str, Any]) -> GalvatronJob:
    """Read a GalvatronJob as YAML or the API gives it.

    Raises:
        InvalidInput: with the path of the field, for instance ``spec.budget.gpus``, and a remedy.
    """
    try:
        return GalvatronJob.model_validate_json(json.dumps(dict(body), default=str))
    except ValidationError as error:
        raise _refusal(error) from error


def training_spec(job: GalvatronJob, *, checkpoint_directory: str, data_root: str, weights_root: str) -> TrainingSpec:
    """Write document 4.

    Args:
        job: the job.
        checkpoint_directory: where ``spec.checkpoint.directory`` lies: the volume's mount, or a local directory.
        data_root: where ``spec.training.dataset.path`` lies: the volume's mount, or the folder of the YAML file.
        weights_root: the same of ``spec.training.initialWeights.path``.
    """
    training = job.spec.training
    optimizer = training.optimizer
    return TrainingSpec(
        steps=training.steps,
        optimizer=AdamW(
            learning_rate=float(optimizer.learning_rate),
            weight_decay=float(optimizer.weight_decay),
            warmup_steps=optimizer.warmup_steps,
        ),
        gradient_clip_norm=float(training.gradient_clip_norm),
        seed=training.seed,
        data=_data(job, data_root),
        initial_weights=None if training.initial_weights is None else f"{weights_root}/{training.initial_weights.path}",
        checkpoints=_checkpoints(job, checkpoint_directory),
        progress_deadline_seconds=job.spec.failure_policy.progress_deadline_seconds,
    )


def _data(job: GalvatronJob, data_root: str) -> DataSource:
    dataset = job.spec.training.dataset
    match dataset.source:
        case DatasetSource.SYNTHETIC:
            return SyntheticData()
        case DatasetSource.PYTHON_DOCS:
            return PythonDocs()
        case DatasetSource.TEXT:
            path, tokenizer = f"{data_root}/{dataset.path}", dataset.tokenizer
            if tokenizer is None:
                return TextFiles(path=path)
            return TextFiles(
                path=path,
                tokenizer=f"{data_root}/{tokenizer.path}",
                field=tokenizer.field,
                end_token=tokenizer.end_token,
            )
        case DatasetSource.TOKENS:
            wide = dataset.bin_type is BinType.UINT32
            return TokenFiles(path=f"{data_root}/{dataset.path}", bin_type="uint32" if wide else "uint16")
        case DatasetSource.IMAGES:
            return ImageFolder(path=f"{data_root}/{dataset.path}")
        case _:
            assert_never(dataset.source)


def _checkpoints(job: GalvatronJob, root: str) -> TrainingCheckpoints | None:
    checkpoint = job.spec.checkpoint
    if checkpoint is None:
        return None
    return TrainingCheckpoints(
        directory=f"{root}/{checkpoint.directory or job.name}",
        period_steps=checkpoint.period_steps,
        keep_last=checkpoint.keep_last,
        resume=checkpoint.resume is Resume.LATEST,
        # Two local runs of one file are two owners.
        owner="" if job.metadata.uid == _WITHOUT_CLUSTER else job.metadata.uid,
        in_background=_saves_in_background(checkpoint.mode, job.cluster.device_kind),
    )


def _saves_in_background(mode: CheckpointMode, device_kind: DeviceKind) -> bool:
    match mode:
        case CheckpointMode.AUTO:
            # On CPU the copy would count as much as the states themselves.
            return device_kind is DeviceKind.CUDA
        case CheckpointMode.ASYNC:
            return True
        case CheckpointMode.SYNC:
            return False
        case _:
            assert_never(mode)


def _refusal(error: ValidationError) -> InvalidInput:
    """Say what pydantic found, with the path of the field as users write it; a misspelt field before a missing one."""
    details = error.errors(include_url=False)
    detail = next((found for found in details if found["type"] == "extra_forbidden"), details[0])
    location = detail["loc"]
    path = field_path(location)
    match detail["type"]:
        case "missing":
            return InvalidInput(f"{path} is missing", remedy="add it")
        case "extra_forbidden":
            return InvalidInput(f"{path} is no field of a GalvatronJob", remedy=_spelling(location))
        case "string_type" if type(detail["input"]) in (int, float):
            return InvalidInput(
                f"{path} is a number, and should be a text", remedy=f'write "{detail["input"]}", with the quotes'
            )
        case _:
            return InvalidInput(
                f"{path} is {reprlib.repr(detail['input'])}: {_wanted(detail)}",
                remedy=f"correct it; docs/reference.md or kubectl explain gvj.{path} says what it takes",
            )


def _wanted(detail: ErrorDetails) -> str:
    form = FORMS.get(str(detail.get("ctx", {}).get("pattern")))
    return detail["msg"] if form is None else f"it should be {form}"


def field_path(location: tuple[int | str, ...]) -> str:
    """Write a pydantic location as people write fields: ``spec.runtime.env[0].name``."""
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return "".join(parts).removeprefix(".") or "the object"


def _spelling(location: tuple[int | str, ...]) -> str:
    known = _fields_at(location[:-1])
    close = get_close_matches(str(location[-1]), known, n=1)
    return f"write {close[0]}" if close else f"remove it; known here: {', '.join(known)}"


def _fields_at(location: tuple[int | str, ...]) -> list[str]:
    """List the fields of the model at a location, as users write them."""
    schema: dict[str, Any] = GalvatronJob.model_json_schema(by_alias=True)
    node = schema
    for part in location:
        node = _resolve(node, schema)
        node = node.get("items", {}) if isinstance(part, int) else node.get("properties", {}).get(part, {})
    return list(_resolve(node, schema).get("properties", {}))


def _resolve(node: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    choices = node.get("anyOf", [node])
    chosen = next((choice for choice in choices if "$ref" in choice), node)
    name = str(chosen.get("$ref", "")).rpartition("/")[2]
    return dict(schema["$defs"][name]) if name else node
