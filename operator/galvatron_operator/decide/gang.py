"""The trainers of one attempt, seen as a whole: how far they are, what is wrong with them."""

import hashlib
from dataclasses import dataclass
from datetime import datetime, timedelta

from galvatron_operator import names
from galvatron_operator.api import ConditionType, FailureReason, JobStatus, ProgressStatus
from galvatron_operator.decide.observed import Observed
from galvatron_operator.decide.situation import attempt_of
from galvatron_operator.failures import Failure, cause, failure_of, may_still_save, parse_time, taken_away
from galvatron_operator.manifests.metadata import Manifest
from galvatron_operator.obstacles import has_node, obstacle, placed_since
from galvatron_planner.plan import Plan
from galvatron_planner.units import format_quantity
from galvatron_planner.worker import Progress, WorkerState, WorkerStatus

MEMBERS_CHARACTERS = 16
"""Of the digest of all pods' uids: 64 bits tell two gangs of one job apart, and 512 uids would fill the status."""
OWN_WORDS_SECONDS = 30.0
"""How much longer the operator waits for a step than the ranks do."""


@dataclass(frozen=True, slots=True)
class Gang:
    """One attempt's pods and what their supervisors say.

    Attributes:
        num_nodes: pods that belong to the gang.
        pods: those that exist, of this attempt only.
        reports: by pod name, of this attempt only.
    """

    num_nodes: int
    pods: tuple[Manifest, ...]
    reports: dict[str, WorkerStatus]

    @property
    def has_succeeded(self) -> bool:
        """Whether every supervisor reports success."""
        succeeded = {r.node_rank for r in self.reports.values() if r.state is WorkerState.SUCCEEDED}
        return len(succeeded) == self.num_nodes

    @property
    def num_ready(self) -> int:
        """Pods that are ready."""
        return sum(_is_ready(pod) for pod in self.pods)

    @property
    def runs_whole(self) -> bool:
        """Whether the containers of all pods run."""
        return sum(_started(pod) is not None for pod in self.pods) == self.num_nodes

    @property
    def members(self) -> str:
        """Digest of the pods' uids."""
        uids = sorted(pod["metadata"]["uid"] for pod in self.pods)
        return hashlib.sha256("\n".join(uids).encode()).hexdigest()[:MEMBERS_CHARACTERS]

    @property
    def silent(self) -> tuple[str, ...]:
        """Names of pods whose supervisors do not answer."""
        return tuple(name for pod in self.pods if (name := pod["metadata"]["name"]) not in self.reports)

    def report_of(self, pod: Manifest) -> WorkerStatus | None:
        """What the supervisor of a pod says."""
        return self.reports.get(pod["metadata"]["name"])

    @property
    def progress(self) -> Progress | None:
        """How far the gang has come: the pod that is furthest, with what only other pods know filled in."""
        told = [r.progress for _, r in sorted(self.reports.items()) if r.progress is not None]
        if not told:
            return None
        # Only the last pipeline stage knows the loss; memory is the fullest pod's.
        first = max(told, key=lambda progress: progress.step)
        loss = next((p.loss for p in told if p.loss is not None and p.step == first.step), first.loss)
        peaks = [p.peak_bytes for p in told if p.peak_bytes is not None]
        return first.model_copy(update={"loss": loss, "peak_bytes": max(peaks, default=None)})


def gang_of(seen: Observed, *, attempt: int, num_nodes: int) -> Gang:
    """Select the trainers of ``attempt``."""
    pods = tuple(pod for pod in seen.pods(names.COMPONENT_TRAINER) if attempt_of(pod) == attempt)
    own = {pod["metadata"]["name"] for pod in pods}
    reports = {name: report for name, report in seen.reports.items() if name in own and report.attempt == attempt}
    return Gang(num_nodes, pods, reports)


def stale_pods(seen: Observed, *, attempt: int) -> tuple[Manifest, ...]:
    """Select trainers of other attempts."""
    return tuple(pod for pod in seen.pods(names.COMPONENT_TRAINER) if attempt_of(pod) != attempt)


def gang_failure(gang: Gang, status: JobStatus, *, progress_deadline_seconds: int, now: datetime) -> Failure | None:
    """Tell why the gang cannot go on, or None when it can or when that may still have to show itself."""
    found = [failure for pod in gang.pods if (failure := failure_of(pod, gang.report_of(pod), now=now)) is not None]
    all_have_spoken = len(found) == gang.num_nodes
    if (lost := _lost_member(gang, status, now)) is not None:
        # With the others: its peers lose their connections to it, which is not what has happened.
        found.append(lost)
    if not found or _is_saving(gang, found, now):
        return _stalled(gang, status, progress_deadline_seconds, now)
    return cause(found, now=now, all_have_spoken=all_have_spoken)


def first_sign(gang: Gang, *, now: datetime) -> Failure | None:
    """Tell which pod is taken away first, while the ranks may still save their work; None when none is."""
    taken = (
        taken_away(pod, gang.report_of(pod), now=now)
        for pod in gang.pods
        if may_still_save(pod, gang.report_of(pod), now=now)
    )
    return min((failure for failure in taken if failure is not None), key=lambda failure: failure.time, default=None)


def progress_status(progress: Progress, plan: Plan, *, before: ProgressStatus | None, now: datetime) -> ProgressStatus:
    """Write progress for people; its time moves with its step, so that a stall shows."""
    seconds = progress.step_seconds
    expected = plan.estimate.step_seconds
    moved = before is None or before.step != progress.step
    return ProgressStatus(
        step=progress.step,
        total_steps=progress.total_steps,
        percent=100 * progress.step // max(progress.total_steps, 1),
        estimated_remaining_seconds=_optional_round(seconds, progress.total_steps - progress.step),
        tokens_per_second=_optional_round(progress.tokens_per_second, 1),
        step_milliseconds=_optional_round(seconds, 1e3),
        peak_memory_per_gpu=format_quantity(progress.peak_bytes) if progress.peak_bytes is not None else None,
        prediction_error_percent=round(100 * (seconds - expected) / expected) if seconds else None,
        loss=f"{progress.loss:.4f}" if progress.loss is not None else None,
        last_checkpoint_step=progress.last_checkpoint_step,
        last_update_time=now if moved or before is None else before.last_update_time,
    )


_TAKEN = frozenset({FailureReason.EVICTED, FailureReason.PREEMPTED, FailureReason.POD_LOST})
"""Failures that leave the ranks of all pods time to save their work together."""


def _is_saving(gang: Gang, found: list[Failure], now: datetime) -> bool:
    """Tell whether nothing has gone wrong but that pods are taken away, in one of which ranks still work.

    Another attempt would end those of the other pods at once, and with them what all save together.
    """
    if any(failure.reason not in _TAKEN for failure in found):
        return False
    return any(may_still_save(pod, gang.report_of(pod), now=now) for pod in gang.pods)


def _lost_member(gang: Gang, status: JobStatus, now: datetime) -> Failure | None:
    """Find a pod that is gone, or came new, since all ran together: ranks that have met take in nobody."""
    known = status.nodes.members
    num_absent = gang.num_nodes - len(gang.pods)
    if num_absent > 0:
        met = known is not None or status.is_true(ConditionType.TRAINING)
        message = f"{num_absent} of {gang.num_nodes} pods are gone"
        return Failure(FailureReason.POD_LOST, message, now) if met else None
    if known in (None, gang.members):
        return None
    # The digest does not tell which one, but the last that came is new for certain.
    newest = max(gang.pods, key=lambda pod: parse_time(pod["metadata"]["creationTimestamp"]))
    name, node = newest["metadata"]["name"], newest.get("spec", {}).get("nodeName")
    return Failure(FailureReason.POD_LOST, "a new pod has taken the place of a trainer", now, pod=name, node=node)


def _stalled(gang: Gang, status: JobStatus, deadline_seconds: int, now: datetime) -> Failure | None:
    progress = status.progress
    started = [time for pod in gang.pods if (time := _started(pod)) is not None]
    placed = [time for pod in gang.pods if (time := placed_since(pod)) is not None]
    if not gang.runs_whole and status.furthest_step == 0:
        # A first start may take long, and ``startDeadlineSeconds`` bounds it.
        return None
    if gang.pods and not any(map(has_node, gang.pods)):
        # In a queue, or not placed by a scheduler of gangs: nothing is held that others wait for.
        return None
    moved = progress.last_update_time if progress is not None else None
    since = max(moment for moment in (*started, *placed, moved, status.restarts.not_before) if moment is not None)
    # The ranks themselves give up at the deadline, and can say where they stand.
    if now - since <= timedelta(seconds=deadline_seconds + OWN_WORDS_SECONDS):
        return None
    silent = f"; no answer from {', '.join(gang.silent)}" if gang.silent else ""
    if gang.runs_whole:
        return Failure(FailureReason.STALLED, f"no step was finished for {deadline_seconds} s{silent}", now)
    found = obstacle(gang.pods)
    why = f" ({found.reason}: {found.message})" if found is not None else silent
    message = f"only {len(started)} of {gang.num_nodes} pods run after {deadline_seconds} s{why}"
    return Failure(FailureReason.GANG_INCOMPLETE, message, now)


def _started(pod: Manifest) -> datetime | None:
    """Tell since when the pod's container runs."""
    for container in pod.get("status", {}).get("containerStatuses", ()):
        running = container.get("state", {}).get("running")
        if running is not None and "startedAt" in running:
            return parse_time(running["startedAt"])
    return None


def _is_ready(pod: Manifest) -> bool:
    conditions = pod.get("status", {}).get("conditions", ())
    return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)


def _optional_round(number: float | None, factor: float) -> int | None:
    return round(number * factor) if number is not None else None
