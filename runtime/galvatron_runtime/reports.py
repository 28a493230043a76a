"""What ranks leave in the run directory for their supervisor: how far they are, and why they failed.

Every rank replaces its own small file atomically; the supervisor reads them when it is asked. No socket, no thread, and
a rank that dies leaves its last word behind. This module is imported by the supervisor and knows nothing of torch.
"""

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from galvatron_planner.documents import Document, Value
from galvatron_planner.worker import ExitClass, Progress, WorkerFailure

RUN_DIRECTORY_VARIABLE = "GALVATRON_RUN_DIRECTORY"
ATTEMPT_VARIABLE = "GALVATRON_ATTEMPT"
_TRACE_REQUEST = "trace-request.json"
_TRACES = "traces"
MESSAGE_LIMIT = 2048
"""Characters of a failure's message, as in :class:`WorkerFailure`."""


DURATION_BOUNDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0)
"""Seconds: steps of tests take hundredths, training checkpoints of large models minutes."""


class Durations(Value):
    """How long something took in this attempt, each time: what a histogram of Prometheus is made of.

    Attributes:
        at_most: for each of ``DURATION_BOUNDS``, how often it took no longer.
        count: how often it happened.
        total_seconds: of all together.
    """

    at_most: tuple[NonNegativeInt, ...] = (0,) * len(DURATION_BOUNDS)
    count: NonNegativeInt = 0
    total_seconds: NonNegativeFloat = 0.0

    def with_one(self, seconds: float) -> "Durations":
        """Count one more."""
        at_most = tuple(count + (seconds <= bound) for count, bound in zip(self.at_most, DURATION_BOUNDS, strict=True))
        return Durations(at_most=at_most, count=self.count + 1, total_seconds=self.total_seconds + seconds)


class TrainingFigures(Value):
    """What a training rank knows beyond its progress; feeds the metrics.

    Attributes:
        stage: pipeline stage of the rank.
        device_name: as the device calls itself, for its peak speed.
        num_devices: devices of the whole job.
        steps: optimizer steps finished in this attempt.
        samples: samples of the whole job in those steps.
        tokens: tokens of the whole job in those steps.
        last_step_timestamp_seconds: seconds since the epoch at the end of the last step.
        gradient_norm: global norm before clipping; absent when nothing is clipped.
        bubble_ratio: waiting for other stages over computing and waiting, last step.
        busy_seconds: passes of this attempt on this device, with the collectives inside them.
        wait_seconds: waiting for other stages in this attempt.
        model_flops_per_sample: forward and backward of one sample through the whole model, recomputation not counted.
        peak_bytes: peak device memory of this rank since the training began.
        predicted_step_seconds: what the plan expects.
        predicted_peak_bytes: what the plan expects of this rank's stage.
        step_durations: of the steps of this attempt.
        checkpoint_durations: of the training checkpoints that were completed in this attempt.
    """

    stage: NonNegativeInt
    device_name: str
    num_devices: PositiveInt
    steps: NonNegativeInt
    samples: NonNegativeInt
    tokens: NonNegativeInt
    last_step_timestamp_seconds: NonNegativeFloat
    gradient_norm: float | None = None
    bubble_ratio: NonNegativeFloat
    busy_seconds: NonNegativeFloat
    wait_seconds: NonNegativeFloat
    model_flops_per_sample: NonNegativeInt
    peak_bytes: NonNegativeInt
    predicted_step_seconds: PositiveFloat
    predicted_peak_bytes: PositiveInt
    step_durations: Durations = Durations()
    checkpoint_durations: Durations = Durations()


class RankReport(Document):
    """The newest word of one rank; ``training`` is absent while measuring."""

    schema_tag: Literal["galvatron/rank-report/v1"] = Field(default="galvatron/rank-report/v1", alias="schema")
    attempt: NonNegativeInt
    rank: NonNegativeInt
    local_rank: NonNegativeInt
    progress: Progress
    training: TrainingFigures | None = None


class RankFailure(Document):
    """The last word of a rank that failed."""

    schema_tag: Literal["galvatron/rank-failure/v1"] = Field(default="galvatron/rank-failure/v1", alias="schema")
    failure: WorkerFailure


class TraceRequest(Document):
    """What ranks are asked to record.

    Attributes:
        number: tells requests apart.
        steps: how many.
    """

    schema_tag: Literal["galvatron/trace-request/v1"] = Field(default="galvatron/trace-request/v1", alias="schema")
    number: NonNegativeInt
    steps: PositiveInt


def trace_request(directory: Path) -> TraceRequest | None:
    """Read what the ranks of a pod are asked to record, if anything."""
    try:
        return TraceRequest.from_json((directory / _TRACE_REQUEST).read_text())
    except FileNotFoundError:
        return None


def request_trace(directory: Path, request: TraceRequest) -> None:
    """Ask the ranks of a pod to record; what they recorded before goes."""
    for path in trace_files(directory):
        path.unlink()
    write_atomically(directory / _TRACE_REQUEST, request.to_json())


def withdraw_trace_request(directory: Path) -> None:
    """Ask no longer."""
    (directory / _TRACE_REQUEST).unlink(missing_ok=True)


def trace_file(directory: Path, rank: int) -> Path:
    """Where a rank's trace lies."""
    return directory / _TRACES / f"rank-{rank:05d}.json"


def trace_files(directory: Path) -> tuple[Path, ...]:
    """List the traces of a pod's ranks, by rank."""
    return tuple(sorted((directory / _TRACES).glob("rank-*.json")))


def run_directory() -> Path | None:
    """The directory of this run, or None for a command that was started without a supervisor."""
    text = os.environ.get(RUN_DIRECTORY_VARIABLE)
    return Path(text) if text else None


def attempt() -> int:
    """The attempt of the job that this process belongs to; 0 without a supervisor."""
    return _number(ATTEMPT_VARIABLE)


def report_progress(activity: str, *, step: int, total_steps: int) -> None:
    """Say how far a command other than training has come, for instance ``measuring layers``, 3 of 12.

    Without a supervisor nobody listens, and nothing is written.
    """
    report(Progress(activity=activity, step=step, total_steps=total_steps))


def report(progress: Progress, training: TrainingFigures | None = None) -> None:
    """Replace this rank's report."""
    directory = run_directory()
    if directory is None:
        return
    document = RankReport(
        attempt=attempt(),
        rank=_number("RANK"),
        local_rank=_number("LOCAL_RANK"),
        progress=progress,
        training=training,
    )
    write_atomically(_reports(directory) / f"rank-{document.rank:05d}.json", document.to_json())


def report_failure(reason: ExitClass, message: str, *, exit_code: int, peak_bytes: int | None = None) -> None:
    """Leave this rank's last word; of a long message the end is kept, where tracebacks say what happened."""
    directory = run_directory()
    if directory is None:
        return
    rank = _number("RANK")
    failure = WorkerFailure(
        reason=reason,
        message=shorten(message),
        rank=rank,
        exit_code=exit_code,
        time=time.time(),
        peak_bytes=peak_bytes,
    )
    write_atomically(_reports(directory) / f"failure-{rank:05d}.json", RankFailure(failure=failure).to_json())


def shorten(message: str) -> str:
    """Keep the end of a message that is longer than a failure may carry."""
    return message if len(message) <= MESSAGE_LIMIT else "..." + message[3 - MESSAGE_LIMIT :]


def read_reports(directory: Path) -> tuple[RankReport, ...]:
    """Collect the newest report of every rank of this pod, by rank."""
    return tuple(RankReport.from_json(text) for text in _texts(directory, "rank-*.json"))


def read_failures(directory: Path) -> tuple[WorkerFailure, ...]:
    """Collect the last words of the ranks that failed, by rank."""
    return tuple(RankFailure.from_json(text).failure for text in _texts(directory, "failure-*.json"))


def clear_reports(directory: Path) -> None:
    """Forget what an earlier attempt reported."""
    shutil.rmtree(_reports(directory), ignore_errors=True)
    _reports(directory).mkdir(parents=True)


def write_atomically(path: Path, text: str) -> None:
    """Write a file that other processes see either complete or not at all; makes its directory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    temporary.replace(path)


def _number(variable: str) -> int:
    return int(os.environ.get(variable, "0"))


def _texts(directory: Path, pattern: str) -> Iterator[str]:
    for path in sorted(_reports(directory).glob(pattern)):
        # Another thread may ask while the reports of an attempt that is over are cleared.
        with suppress(FileNotFoundError):
            yield path.read_text()


def _reports(directory: Path) -> Path:
    return directory / "reports"
