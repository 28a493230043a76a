"""The operator's own Prometheus metrics: its work, and the state of every job it knows.

What jobs are is read from the cache of their objects at each scrape, so a job that is gone leaves no series behind.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from galvatron_operator.api import ConditionStatus, ConditionType, FailureReason, JobStatus, parse_status
from galvatron_operator.failures import parse_time
from galvatron_operator.reconcile import Conflict, NotFound, Refused, Unreachable
from galvatron_planner.errors import InvalidInput
from galvatron_planner.units import parse_bytes

Body = Mapping[str, Any]

LONG_SECONDS = (1, 3, 10, 30, 60, 120, 300, 600, 1800, 3600, 14400, 86400)
"""Bounds for what takes seconds in a test and hours in a full cluster."""
JOB_LABELS = ("namespace", "galvatronjob")
"""How metrics name a job; ``job`` belongs to Prometheus."""


class OperatorMetrics:
    """The metrics that are counted as things happen; made once, held by the process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.rounds = Counter(
            "galvatron_operator_reconcile_total", "Rounds over a job, by result.", ("result",), registry=registry
        )
        self.round_seconds = Histogram(
            "galvatron_operator_reconcile_duration_seconds",
            "Duration of a round over a job.",
            buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30),
            registry=registry,
        )
        self.queue_depth = Gauge(
            "galvatron_operator_queue_depth", "Jobs that are due and wait for a worker.", registry=registry
        )
        self.queue_wait_seconds = Histogram(
            "galvatron_operator_queue_wait_seconds",
            "Time for which a job was due before a worker took it.",
            buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100),
            registry=registry,
        )
        self.leader = Gauge(
            "galvatron_operator_leader",
            "1 for the operator that acts, 0 for one that stands by to take over.",
            registry=registry,
        )
        self.search_seconds = Histogram(
            "galvatron_search_duration_seconds",
            "Duration of a search for a plan, by algorithm and outcome.",
            ("algorithm", "outcome"),
            buckets=(0.1, 0.3, 1, 3, 10, 30, 100, 300, 900),
            registry=registry,
        )
        self.profile_requests = Counter(
            "galvatron_profile_cache_requests_total",
            "Profiles that jobs needed, by whether they were cached.",
            ("result",),
            registry=registry,
        )
        self.profile_seconds = Histogram(
            "galvatron_profile_duration_seconds",
            "Time in which a job measured its profile, from the wish for pods to the profile.",
            buckets=LONG_SECONDS,
            registry=registry,
        )
        self.queue_seconds = Histogram(
            "galvatron_queue_duration_seconds",
            "Time from the creation of a job to its first step; profile, search and suspensions included.",
            buckets=LONG_SECONDS,
            registry=registry,
        )
        # galvatron_operator_process_resident_memory_bytes and others of its kind, where there is /proc.
        ProcessCollector(namespace="galvatron_operator", registry=registry)
        # What is to be counted later shall be seen to rise from 0.
        for result in ("Success", "Bug", *(error.__name__ for error in (Conflict, NotFound, Refused, Unreachable))):
            self.rounds.labels(result)
        for result in ("hit", "miss"):
            self.profile_requests.labels(result)

    def job_changed(self, before: Body | None, after: Body) -> None:
        """Note how long that took which has ended between two versions of a job.

        An operator that starts in between does not see it, so the histograms are samples of jobs and no record.

        Args:
            before: None when the job was not known.
            after: its newest version.
        """
        old, new = (None if body is None else _readable_status(body) for body in (before, after))
        if old is None or new is None:
            return
        if old.first_step_time is None and new.first_step_time is not None:
            self.queue_seconds.observe(max(new.first_step_time.timestamp() - _created(after), 0.0))
        measuring, ready = (status.find(ConditionType.PROFILE_READY) for status in (old, new))
        if measuring is None or ready is None or measuring.reason != "Profiling":
            return
        if ready.status is ConditionStatus.TRUE:
            taken = ready.last_transition_time - measuring.last_transition_time
            self.profile_seconds.observe(max(taken.total_seconds(), 0.0))


class JobCollector(Collector):
    """Metrics of every job, made from the objects at each scrape."""

    def __init__(self, bodies: Callable[[], Iterable[Body]]) -> None:
        """Make the collector.

        Args:
            bodies: gives the GalvatronJobs as they are now.
        """
        self._bodies = bodies

    def collect(self) -> Iterator[Metric]:
        """Read every job; one whose status cannot be read has no metrics."""
        families = _families()
        for body in self._bodies():
            status = _readable_status(body)
            if status is not None:
                job = (body["metadata"]["namespace"], body["metadata"]["name"])
                _add_state(families, job, status)
                _add_times(families, job, status, created=_created(body))
                _add_devices(families, job, status, body["spec"]["budget"])
        yield from families.values()


def _readable_status(body: Body) -> JobStatus | None:
    """Read a job's status; None when there is none, or none that we can read."""
    try:
        return parse_status(body)
    except InvalidInput:
        return None


def _created(body: Body) -> float:
    return parse_time(body["metadata"]["creationTimestamp"]).timestamp()


def _gauge(name: str, help_text: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"galvatron_job_{name}", help_text, labels=(*JOB_LABELS, *labels))


def _families() -> dict[str, Any]:
    return {
        "info": InfoMetricFamily("galvatron_job", "A job and its plan.", labels=JOB_LABELS),
        "condition": _gauge("status_condition", "1 for the status that a condition has.", "type", "status"),
        "transition": _gauge(
            "status_condition_transition_timestamp_seconds", "Unix time since when a condition has its status.", "type"
        ),
        "created": _gauge("created_timestamp_seconds", "Unix time at which the job was created."),
        "start": _gauge("start_timestamp_seconds", "Unix time at which work on the job began, or began again."),
        "first_step": _gauge("first_step_timestamp_seconds", "Unix time at which a first step was seen."),
        "completion": _gauge("completion_timestamp_seconds", "Unix time at which the job became Complete or Failed."),
        "restarts": CounterMetricFamily(
            "galvatron_job_restarts",
            "Attempts of a job beyond the first, by the reason of the failure.",
            labels=(*JOB_LABELS, "reason"),
        ),
        "lost": CounterMetricFamily(
            "galvatron_job_lost_steps",
            "Steps that had to be made again because they came after the newest training checkpoint.",
            labels=JOB_LABELS,
        ),
        "gpus_requested": _gauge("gpus_requested", "GPUs that pods of the job hold or wait for."),
        "gpus_used": _gauge("gpus_used", "GPUs of training pods in which steps advance."),
        "step": _gauge("plan_predicted_step_seconds", "Step time that the plan promises."),
        "memory": _gauge("plan_predicted_memory_bytes", "Peak device memory that the plan promises."),
        "budget": _gauge("memory_budget_bytes", "What spec.budget.memoryPerGPU allows."),
    }


def _add_state(families: Mapping[str, Any], job: tuple[str, str], status: JobStatus) -> None:
    plan = status.plan
    families["info"].add_metric(
        job, {"phase": status.phase, "plan": plan.summary if plan else "", "plan_hash": plan.hash if plan else ""}
    )
    for condition in status.conditions:
        for value in ConditionStatus:
            families["condition"].add_metric((*job, condition.type, value), float(condition.status is value))
    # Every reason from the start: what appears with 1 has not risen, as Prometheus sees it.
    counts = dict.fromkeys(FailureReason, 0) | {each.reason: each.count for each in status.restarts.by_reason}
    for reason, count in counts.items():
        families["restarts"].add_metric((*job, reason), count)
    families["lost"].add_metric(job, status.restarts.lost_steps)
    if plan is not None:
        peak_bytes = parse_bytes(plan.estimates.peak_memory_per_gpu, where="status.plan")
        families["step"].add_metric(job, plan.estimates.step_milliseconds / 1e3)
        families["memory"].add_metric(job, peak_bytes)


def _add_times(families: Mapping[str, Any], job: tuple[str, str], status: JobStatus, *, created: float) -> None:
    families["created"].add_metric(job, created)
    for condition in status.conditions:
        families["transition"].add_metric((*job, condition.type), condition.last_transition_time.timestamp())
    times: dict[str, datetime | None] = {
        "start": status.start_time,
        "first_step": status.first_step_time,
        "completion": status.completion_time,
    }
    for name, time in times.items():
        if time is not None:
            families[name].add_metric(job, time.timestamp())


def _add_devices(families: Mapping[str, Any], job: tuple[str, str], status: JobStatus, budget: Body) -> None:
    families["budget"].add_metric(job, parse_bytes(budget["memoryPerGPU"], where="spec.budget.memoryPerGPU"))
    requested, used = _gpus(status, int(budget["gpus"]))
    families["gpus_requested"].add_metric(job, requested)
    families["gpus_used"].add_metric(job, used)


def _gpus(status: JobStatus, budget_gpus: int) -> tuple[int, int]:
    """GPUs that the job's pods ask for, and those of them that work."""
    profile = status.find(ConditionType.PROFILE_READY)
    if status.plan is None and not status.is_finished and profile is not None and profile.reason == "Profiling":
        # Profilers take what the budget allows; how many are ready is not in the status.
        return budget_gpus, 0
    pods = status.find(ConditionType.PODS_READY)
    waits = pods is not None and pods.reason == "BackOff"
    if status.plan is None or status.nodes.desired == 0 or waits:
        return 0, 0
    ready = 0 if status.is_finished else status.nodes.ready
    return status.plan.gpus, status.plan.gpus * ready // status.nodes.desired
