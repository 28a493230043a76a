"""What a pod (or a local process) says about itself: the document that supervisors serve and the operator reads.

It lives here because operator and runtime meet only in documents of this package; the planner itself has no use for it.
"""

from enum import StrEnum
from typing import Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt

from galvatron_planner.documents import Document, Value

ATTEMPT_PLACEHOLDER = "{attempt}"
"""Stands for the attempt's number in a supervised command, which is written before there are further attempts."""


class WorkerState(StrEnum):
    """Where a supervised command stands; the last two are final for the attempt."""

    WAITING = "Waiting"
    """The first node cannot be found yet, or is still in another attempt."""
    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


class ExitClass(StrEnum):
    """Why a command failed, as far as its own processes and their supervisor can tell."""

    USER_ERROR = "UserError"
    DATA_ERROR = "DataError"
    BAD_PLAN = "BadPlan"
    OUT_OF_DEVICE_MEMORY = "CudaOutOfMemory"
    OUT_OF_HOST_MEMORY = "HostOutOfMemory"
    """The kernel killed a process of the command, which then could say nothing."""
    COMMUNICATION = "CommunicationError"
    PREEMPTED = "Preempted"
    STALLED = "Stalled"
    UNKNOWN = "Unknown"


class Progress(Value):
    """How far a command has come.

    Attributes:
        activity: what is going on, for people: ``training``, ``measuring layers``.
        step: finished steps (or measurements), of ``total_steps``.
        total_steps: all of them.
        loss: mean cross entropy per token of the last step; absent while measuring.
        step_seconds: median over recent steps.
        samples_per_second: global throughput over recent steps.
        tokens_per_second: global throughput over recent steps.
        peak_bytes: peak device memory on the fullest device of this pod.
        last_checkpoint_step: step of the newest complete training checkpoint, 0 for none.
    """

    activity: str
    step: NonNegativeInt
    total_steps: NonNegativeInt
    loss: float | None = None
    step_seconds: NonNegativeFloat | None = None
    samples_per_second: NonNegativeFloat | None = None
    tokens_per_second: NonNegativeFloat | None = None
    peak_bytes: NonNegativeInt | None = None
    last_checkpoint_step: NonNegativeInt = 0


class WorkerFailure(Value):
    """Why a command failed.

    Attributes:
        reason: class of the first failure in this pod.
        message: problem and remedy, or the end of the traceback; at most 2,048 characters.
        rank: global rank that failed first, absent when it is not known.
        exit_code: of that rank, or of the supervised command when no rank said anything; 137 when the kernel killed it.
        time: seconds since the epoch at which it happened; the earliest failure of a job is its cause.
        peak_bytes: peak device memory of this rank as plans count it, absent when nobody has read it.
    """

    reason: ExitClass
    message: str = Field(max_length=2048)
    rank: NonNegativeInt | None = None
    exit_code: int
    time: NonNegativeFloat
    peak_bytes: NonNegativeInt | None = None


class WorkerStatus(Document):
    """One pod's answer to ``GET /v1/status``.

    Attributes:
        attempt: the fence: answers of another attempt are ignored.
        node_rank: ordinal of the pod.
        state: of the supervised command.
        progress: absent until the command has said something.
        failure: present exactly when the state is ``Failed``.
    """

    schema_tag: Literal["galvatron/worker-status/v1"] = Field(default="galvatron/worker-status/v1", alias="schema")
    attempt: NonNegativeInt
    node_rank: NonNegativeInt
    state: WorkerState
    progress: Progress | None = None
    failure: WorkerFailure | None = None
