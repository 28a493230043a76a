"""The operator's own Prometheus metrics: its work, and the state of every job it knows.

What jobs are is read from the cache of their objects at each scrape, so a job that is gone leaves no series behind.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from galvatron_operator.api import ConditionStatus, JobStatus, parse_status
from galvatron_planner.errors import InvalidInput
from galvatron_planner.units import parse_bytes

Body = Mapping[str, Any]

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
            try:
                status = parse_status(body)
            except InvalidInput:
                continue
            if status is not None:
                metadata = body["metadata"]
                job = (metadata["namespace"], metadata["name"])
                _add(families, job, status)
                budget = body["spec"]["budget"]["memoryPerGPU"]
                families["budget"].add_metric(job, parse_bytes(budget, where="spec.budget.memoryPerGPU"))
        yield from families.values()


def _families() -> dict[str, Any]:
    return {
        "info": InfoMetricFamily("galvatron_job", "A job and its plan.", labels=JOB_LABELS),
        "condition": GaugeMetricFamily(
            "galvatron_job_status_condition",
            "1 for the status that a condition has.",
            labels=(*JOB_LABELS, "type", "status"),
        ),
        "restarts": CounterMetricFamily(
            "galvatron_job_restarts", "Attempts of a job beyond the first.", labels=JOB_LABELS
        ),
        "step": GaugeMetricFamily(
            "galvatron_job_plan_predicted_step_seconds", "Step time that the plan promises.", labels=JOB_LABELS
        ),
        "memory": GaugeMetricFamily(
            "galvatron_job_plan_predicted_memory_bytes", "Peak device memory that the plan promises.", labels=JOB_LABELS
        ),
        "budget": GaugeMetricFamily(
            "galvatron_job_memory_budget_bytes", "What spec.budget.memoryPerGPU allows.", labels=JOB_LABELS
        ),
    }


def _add(families: Mapping[str, Any], job: tuple[str, str], status: JobStatus) -> None:
    plan = status.plan
    families["info"].add_metric(
        job, {"phase": status.phase, "plan": plan.summary if plan else "", "plan_hash": plan.hash if plan else ""}
    )
    for condition in status.conditions:
        for value in ConditionStatus:
            families["condition"].add_metric((*job, condition.type, value), float(condition.status is value))
    families["restarts"].add_metric(job, status.restarts.total)
    if plan is not None:
        peak_bytes = parse_bytes(plan.estimates.peak_memory_per_gpu, where="status.plan")
        families["step"].add_metric(job, plan.estimates.step_milliseconds / 1e3)
        families["memory"].add_metric(job, peak_bytes)
