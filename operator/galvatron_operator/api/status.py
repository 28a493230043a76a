"""``status`` of a GalvatronJob: what the operator says, and the conditions that others wait for.

Conditions are the contract; ``phase`` is for people. Numbers are whole, in the units of their names, because Kubernetes
objects hold no floats.
"""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, Self

from pydantic import AfterValidator, AwareDatetime, ConfigDict, Field, PlainSerializer, ValidationError
from pydantic.alias_generators import to_camel

from galvatron_planner.documents import Value, first_problem
from galvatron_planner.errors import InvalidInput

MAX_MESSAGE = 1024
"""Characters of a condition's message; longer ones are cut."""
MAX_LAYER_GROUPS = 64
"""Groups of layers in ``status.plan.layerGroups``; the plan's ConfigMap has all."""
MAX_ANNOTATION = 253
"""Characters of the annotations ``galvatron.io/reprofile`` and ``galvatron.io/replan`` that count."""
MAX_FAILURES = 10
"""Records kept in ``status.failures``, newest first."""


def _whole_seconds(time: datetime) -> datetime:
    return time.astimezone(UTC).replace(microsecond=0)


def rfc3339(time: datetime) -> str:
    """Write a moment in UTC as objects hold it, in whole seconds."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ")


Time = Annotated[
    AwareDatetime, AfterValidator(_whole_seconds), PlainSerializer(rfc3339, return_type=str, when_used="json")
]
"""A moment in UTC, in whole seconds: what an object can hold, so that reading back gives an equal value."""


class StatusValue(Value):
    """A frozen part of ``status``; fields of other versions are ignored, absent ones are not written."""

    model_config = ConfigDict(alias_generator=to_camel, extra="ignore", validate_by_name=True, validate_by_alias=True)


class Phase(StrEnum):
    """Where a job stands, for people and the printer column."""

    PENDING = "Pending"
    PROFILING = "Profiling"
    SEARCHING = "Searching"
    STARTING = "Starting"
    TRAINING = "Training"
    RESTARTING = "Restarting"
    SUSPENDED = "Suspended"
    COMPLETE = "Complete"
    FAILED = "Failed"


class ConditionType(StrEnum):
    """Everything that is observed about a job, in the order in which it becomes true."""

    ACCEPTED = "Accepted"
    PROFILE_READY = "ProfileReady"
    PLAN_READY = "PlanReady"
    SUSPENDED = "Suspended"
    PODS_READY = "PodsReady"
    TRAINING = "Training"
    COMPLETE = "Complete"
    FAILED = "Failed"


class ConditionStatus(StrEnum):
    """As in metav1."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


class Condition(StatusValue):
    """metav1.Condition."""

    type: ConditionType
    status: ConditionStatus
    reason: str = Field(pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$", max_length=128)
    message: str = ""
    last_transition_time: Time
    observed_generation: int


FIRST_REASONS: dict[ConditionType, tuple[ConditionStatus, str]] = {
    ConditionType.ACCEPTED: (ConditionStatus.UNKNOWN, "NotChecked"),
    ConditionType.PROFILE_READY: (ConditionStatus.UNKNOWN, "NotStarted"),
    ConditionType.PLAN_READY: (ConditionStatus.UNKNOWN, "NotStarted"),
    ConditionType.SUSPENDED: (ConditionStatus.FALSE, "NotSuspended"),
    ConditionType.PODS_READY: (ConditionStatus.UNKNOWN, "NotCreated"),
    ConditionType.TRAINING: (ConditionStatus.UNKNOWN, "NotStarted"),
    ConditionType.COMPLETE: (ConditionStatus.UNKNOWN, "InProgress"),
    ConditionType.FAILED: (ConditionStatus.FALSE, "NoFailure"),
}
"""Status and reason of every condition on the first visit: no type is ever absent."""


class RestartCount(StatusValue):
    """How often the gang was started again for one reason."""

    reason: str
    count: int


def count_one_more(counts: tuple[RestartCount, ...], reason: str) -> tuple[RestartCount, ...]:
    """Count another restart for one reason; sorted by reason."""
    numbers = {each.reason: each.count for each in counts}
    numbers[reason] = numbers.get(reason, 0) + 1
    return tuple(RestartCount(reason=name, count=n) for name, n in sorted(numbers.items()))


class Restarts(StatusValue):
    """How often the gang was started again, and what that cost."""

    total: int = 0
    counted_towards_max: int = 0
    without_progress: int = 0
    furthest_step: int = 0
    not_before: Time | None = None
    lost_steps: int = 0
    by_reason: tuple[RestartCount, ...] = ()

    def with_one(self, reason: str, *, counts: bool, lost_steps: int) -> Self:
        """Count one more, towards ``failurePolicy.maxRestarts`` if it ``counts``, and the steps to be made again."""
        return self.model_copy(
            update={
                "total": self.total + 1,
                "counted_towards_max": self.counted_towards_max + counts,
                "lost_steps": self.lost_steps + lost_steps,
                "by_reason": count_one_more(self.by_reason, reason),
            }
        )


class ProfileOrigin(StrEnum):
    """Where a job's profile is from."""

    MEASURED = "Measured"
    """By this job."""
    CACHE = "Cache"
    SHARED_CACHE = "SharedCache"
    """Measured in another namespace."""
    ANALYTIC = "Analytic"


class ProfileStatus(StatusValue):
    """Which profile the plan rests on."""

    config_map_name: str | None = None
    source: ProfileOrigin
    digest: str
    profile_time: Time | None = None
    image_digests: tuple[str, ...] = ()


class ProfilingStatus(StatusValue):
    """How measuring goes; the profile that came of it is in :class:`ProfileStatus`."""

    attempt: int = 0
    retries: tuple[RestartCount, ...] = ()
    reprofile: str | None = Field(default=None, max_length=MAX_ANNOTATION)


class Estimates(StatusValue):
    """What the plan is expected to do."""

    step_milliseconds: int
    tokens_per_second: int
    peak_memory_per_gpu: str = Field(alias="peakMemoryPerGPU")
    bubble_percent: int
    gpu_hours: str | None = None
    cost: str | None = None


class PipelineStatus(StatusValue):
    """How the plan cuts the model into stages."""

    degree: int
    division: tuple[int, ...]
    schedule: str


class LayerGroup(StatusValue):
    """Layers that follow each other and have one strategy."""

    layers: str
    strategy: str


class PlanStatus(StatusValue):
    """The plan of this job."""

    hash: str
    config_map_name: str
    gpus: int
    global_batch_size: int
    micro_batches: int
    summary: str
    pipeline: PipelineStatus | None = None
    layer_groups: tuple[LayerGroup, ...] = ()
    estimates: Estimates
    search_milliseconds: int


class Replan(StatusValue):
    """Why the plan was made anew, and with how much memory."""

    count: int
    memory_per_gpu: str = Field(alias="memoryPerGPU")
    reason: str
    attempt: int


class Rescale(StatusValue):
    """For how many nodes the job is planned since that number changed last, and why."""

    nodes: int
    reason: str = Field(max_length=128)
    message: str = Field(default="", max_length=MAX_MESSAGE)
    attempt: int
    global_batch_size: int
    least_nodes: int = 1
    not_before: Time


class ReplanRequest(StatusValue):
    """What came of the newest value of the annotation ``galvatron.io/replan``."""

    value: str = Field(max_length=MAX_ANNOTATION)
    result: str = Field(max_length=128)
    message: str = Field(default="", max_length=MAX_MESSAGE)


class ProgressStatus(StatusValue):
    """How far training has come, and how far from the prediction."""

    step: int
    total_steps: int
    percent: int
    estimated_remaining_seconds: int | None = None
    tokens_per_second: int | None = None
    step_milliseconds: int | None = None
    peak_memory_per_gpu: str | None = Field(default=None, alias="peakMemoryPerGPU")
    prediction_error_percent: int | None = None
    loss: str | None = None
    last_checkpoint_step: int = 0
    last_update_time: Time


class Nodes(StatusValue):
    """Pods wanted and ready."""

    desired: int = 0
    ready: int = 0
    members: str | None = None


class FailureRecord(StatusValue):
    """One failed attempt."""

    attempt: int
    time: Time
    reason: str
    message: str = Field(default="", max_length=2048)
    pod: str | None = None
    node: str | None = None
    rank: int | None = None
    exit_code: int | None = None
    step: int | None = None


class JobStatus(StatusValue):
    """``status``; every method returns a new value."""

    observed_generation: int = 0
    phase: str = Phase.PENDING.value
    start_time: Time | None = None
    first_step_time: Time | None = None
    completion_time: Time | None = None
    attempt: int = 0
    restarts: Restarts = Restarts()
    profiling: ProfilingStatus = ProfilingStatus()
    profile: ProfileStatus | None = None
    plan: PlanStatus | None = None
    replan: Replan | None = None
    rescale: Rescale | None = None
    replan_request: ReplanRequest | None = None
    image: str | None = None
    image_digests: tuple[str, ...] = ()
    image_time: Time | None = None
    progress: ProgressStatus | None = None
    nodes: Nodes = Nodes()
    failures: tuple[FailureRecord, ...] = ()
    conditions: tuple[Condition, ...] = ()

    @classmethod
    def first(cls, *, generation: int, now: datetime) -> Self:
        """The status of a job that was never seen before: every condition is set."""
        return cls(observed_generation=generation).with_missing_conditions(generation=generation, now=now)

    def with_missing_conditions(self, *, generation: int, now: datetime) -> Self:
        """Set the conditions that are absent, for instance those that a newer operator knows."""
        status = self
        for type_, (value, reason) in FIRST_REASONS.items():
            if status.find(type_) is None:
                status = status.with_condition(type_, value, reason, generation=generation, now=now)
        return status

    def with_condition(
        self,
        type_: ConditionType,
        status: ConditionStatus,
        reason: str,
        message: str = "",
        *,
        generation: int,
        now: datetime,
    ) -> Self:
        """Set one condition; its transition time moves only when its status does.

        Args:
            type_: which condition.
            status: True, False or Unknown.
            reason: in CamelCase.
            message: problem and remedy; cut after 1,024 characters.
            generation: the spec that was looked at.
            now: time of a transition.
        """
        before = self.find(type_)
        since = before.last_transition_time if before is not None and before.status is status else now
        condition = Condition(
            type=type_,
            status=status,
            reason=reason,
            message=message if len(message) <= MAX_MESSAGE else message[: MAX_MESSAGE - 3] + "...",
            last_transition_time=since,
            observed_generation=generation,
        )
        others = {c.type: c for c in self.conditions} | {type_: condition}
        return self.model_copy(update={"conditions": tuple(others[t] for t in ConditionType if t in others)})

    def with_failure(self, failure: FailureRecord) -> Self:
        """Put a failure before the others and forget the eldest."""
        return self.model_copy(update={"failures": (failure, *self.failures)[:MAX_FAILURES]})

    def find(self, type_: ConditionType) -> Condition | None:
        """Look up a condition."""
        return next((condition for condition in self.conditions if condition.type is type_), None)

    def is_true(self, type_: ConditionType) -> bool:
        """Tell whether a condition is True."""
        condition = self.find(type_)
        return condition is not None and condition.status is ConditionStatus.TRUE

    @property
    def is_finished(self) -> bool:
        """Whether the job has reached its final state."""
        return self.is_true(ConditionType.COMPLETE) or self.is_true(ConditionType.FAILED)

    @property
    def furthest_step(self) -> int:
        """The most steps that an attempt has finished; a new attempt begins at its training checkpoint, or at 0."""
        return max(self.restarts.furthest_step, self.progress.step if self.progress is not None else 0)

    def dump(self) -> dict[str, Any]:
        """Write as the API holds it: camelCase, no nulls."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


def parse_status(body: Mapping[str, Any]) -> JobStatus | None:
    """Read the ``status`` of an object; None when it was never written.

    Conditions of types that this version does not know are left out.

    Raises:
        InvalidInput: when somebody else wrote it.
    """
    written = dict(body.get("status") or {})
    if not written:
        return None
    known = set(ConditionType)
    written["conditions"] = [c for c in written.get("conditions", ()) if c.get("type") in known]
    try:
        return JobStatus.model_validate_json(json.dumps(written))
    except ValidationError as error:
        raise InvalidInput(
            f"status cannot be read: {first_problem(error)}",
            remedy="leave status to the operator: delete the job and create it again",
        ) from error
