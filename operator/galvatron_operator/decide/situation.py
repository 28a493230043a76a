"""One job at one moment, as every step of a decision sees it, and the ways in which steps speak."""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from galvatron_operator import names
from galvatron_operator.api import ConditionStatus, ConditionType, FailureRecord, GalvatronJob, JobStatus, Nodes
from galvatron_operator.decide.observed import Decision, Kind, ObjectRef, Observed, reference
from galvatron_operator.failures import Failure
from galvatron_operator.manifests.metadata import Manifest
from galvatron_operator.settings import Settings

POLL_SECONDS = 10.0
"""Between two looks at a job whose pods work; pods that change announce themselves earlier."""
AT_ONCE_SECONDS = 0.0
LONGEST_NOTE = 512
"""Characters of a failure's message in a condition; ``status.failures`` has the whole."""

TRUE, FALSE, UNKNOWN = ConditionStatus.TRUE, ConditionStatus.FALSE, ConditionStatus.UNKNOWN


@dataclass(frozen=True, slots=True)
class Situation:
    """A job, what is seen of it, what has been said of it so far, and the time.

    Steps return new situations: ``status`` grows from condition to condition, everything else stays.
    """

    job: GalvatronJob
    seen: Observed
    status: JobStatus
    now: datetime
    settings: Settings

    def say(self, type_: ConditionType, status: ConditionStatus, reason: str, message: str = "") -> "Situation":
        """Set a condition."""
        said = self.status.with_condition(
            type_, status, reason, message, generation=self.job.metadata.generation, now=self.now
        )
        return replace(self, status=said)

    def with_status(self, **changes: Any) -> "Situation":
        """Set fields of the status."""
        return replace(self, status=self.status.model_copy(update=changes))

    def decide(self, *, after_seconds: float | None = None, **actions: Any) -> Decision:
        """Turn what has been said into a decision with ``actions``, the fields of :class:`Decision`."""
        return Decision(status=self.status, requeue_after_seconds=after_seconds, **actions)

    @property
    def image(self) -> str:
        """Image of pods that begin now."""
        return self.job.spec.runtime.image or self.settings.runtime_image

    def seconds_until(self, moment: datetime | None, *, plus_seconds: float = 0.0) -> float:
        """Tell how far off ``moment`` plus some seconds is; not above 0 when it has passed or is unknown."""
        return (moment + timedelta(seconds=plus_seconds) - self.now).total_seconds() if moment else 0.0


def fail(situation: Situation, reason: str, message: str) -> Decision:
    """End the job; what it still holds is released the next time round, when the status is safely written."""
    failed = (
        situation.say(ConditionType.FAILED, TRUE, reason, message)
        .say(ConditionType.COMPLETE, FALSE, "DidNotComplete", message)
        .with_status(completion_time=situation.now)
    )
    return failed.decide(after_seconds=AT_ONCE_SECONDS)


def complete(situation: Situation, reason: str, message: str) -> Decision:
    """End the job well; see :func:`fail` for what it still holds."""
    completed = situation.say(ConditionType.COMPLETE, TRUE, reason, message).with_status(completion_time=situation.now)
    return completed.decide(after_seconds=AT_ONCE_SECONDS)


def next_attempt(situation: Situation) -> Situation:
    """Begin another attempt although none has failed: it does not count, and does not wait."""
    status = situation.status
    restarts = status.restarts.model_copy(update={"not_before": situation.now, "furthest_step": status.furthest_step})
    return situation.with_status(attempt=status.attempt + 1, restarts=restarts, nodes=Nodes())


def begin(situation: Situation, reason: str, message: str) -> Decision:
    """Say why there are no steps before those of an attempt that was just numbered, and go on with it at once."""
    said = situation.say(ConditionType.TRAINING, FALSE, reason, message)
    return said.say(ConditionType.PODS_READY, FALSE, "Starting", message).decide(after_seconds=AT_ONCE_SECONDS)


def record(situation: Situation, failure: Failure) -> FailureRecord:
    """Write a failure down for ``status.failures``."""
    progress = situation.status.progress
    return FailureRecord(
        attempt=situation.status.attempt,
        time=failure.time,
        reason=failure.reason,
        message=failure.message,
        pod=failure.pod,
        node=failure.node,
        rank=failure.rank,
        exit_code=failure.exit_code,
        step=progress.step if progress is not None else None,
    )


def brief(message: str) -> str:
    """Shorten a failure's message for a condition; what a traceback comes to stands at its end."""
    if len(message) <= LONGEST_NOTE:
        return message
    return f"...{message[-LONGEST_NOTE:]}" if message.startswith("Traceback") else f"{message[:LONGEST_NOTE]}..."


def missing(seen: Observed, *wanted: Manifest) -> tuple[Manifest, ...]:
    """Select the wanted objects that do not exist yet, or differ in a field that we set."""
    existing = {_identity(child): child for child in seen.children}
    return tuple(manifest for manifest in wanted if not _covers(existing.get(_identity(manifest)), manifest))


def references(manifests: tuple[Manifest, ...]) -> tuple[ObjectRef, ...]:
    """Point at those objects that are not being deleted already."""
    return tuple(reference(m) for m in manifests if "deletionTimestamp" not in m["metadata"])


def job_reference(job: GalvatronJob) -> ObjectRef:
    """Point at the job itself."""
    return ObjectRef(Kind.GALVATRON_JOB, job.namespace, job.name, job.metadata.uid)


def attempt_of(manifest: Manifest) -> int:
    """Read the attempt that an object belongs to; 0 for none."""
    annotations = manifest["metadata"].get("annotations") or {}
    return int(annotations.get(names.ANNOTATION_ATTEMPT, 0))


def _identity(manifest: Manifest) -> tuple[str, str]:
    return manifest["kind"], manifest["metadata"]["name"]


def _covers(existing: Any, wanted: Any) -> bool:
    """Tell whether ``existing`` has everything that is wanted.

    A value that the API server writes differently (``1000m`` as ``1``) counts as missing: applying it once more changes
    nothing.
    """
    if isinstance(wanted, dict):
        return isinstance(existing, dict) and all(_covers(existing.get(key), value) for key, value in wanted.items())
    if isinstance(wanted, list):
        return (
            isinstance(existing, list)
            and len(existing) == len(wanted)
            and all(_covers(have, want) for have, want in zip(existing, wanted, strict=True))
        )
    return bool(existing == wanted)
