"""The operator's metrics: what jobs are is read from their objects, so nothing outlives them."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from fakes.operation import KEY, body
from galvatron_operator.api import ConditionStatus, ConditionType, Estimates, JobStatus, Nodes, PlanStatus, Restarts
from galvatron_operator.manifests.metadata import Manifest
from galvatron_operator.metrics import JobCollector, OperatorMetrics

NOW = datetime(2026, 1, 1, tzinfo=UTC)
CREATED = "2026-01-01T00:00:00Z"
PLAN = PlanStatus(
    hash="5b1e77c2",
    config_map_name="small-plan-5b1e77c2",
    gpus=4,
    global_batch_size=8,
    micro_batches=1,
    summary="pp1 m1: dp4 x4",
    estimates=Estimates(step_milliseconds=250, tokens_per_second=1, peak_memory_per_gpu="64Mi", bubble_percent=0),
    search_milliseconds=1,
)
HALF = Nodes(desired=2, ready=1)
JOB = f'galvatronjob="{KEY.name}",namespace="{KEY.namespace}"'


def with_status(status: JobStatus) -> Manifest:
    """The job, created at ``NOW``."""
    written = body()
    return written | {"metadata": written["metadata"] | {"creationTimestamp": CREATED}, "status": status.dump()}


def said(type_: ConditionType, value: ConditionStatus, reason: str, *, seconds: int, **fields: Any) -> JobStatus:
    """A status in which one condition has been set ``seconds`` after ``NOW``."""
    status = JobStatus.first(generation=1, now=NOW).model_copy(update=fields)
    return status.with_condition(type_, value, reason, generation=1, now=NOW + timedelta(seconds=seconds))


def exposed(*statuses: JobStatus) -> str:
    registry = CollectorRegistry()
    bodies = [with_status(status) for status in statuses]
    registry.register(JobCollector(lambda: bodies))
    return generate_latest(registry).decode()


def test_a_job_shows_its_plan_and_its_conditions() -> None:
    status = JobStatus.first(generation=1, now=NOW).with_condition(
        ConditionType.TRAINING, ConditionStatus.TRUE, "Progressing", generation=1, now=NOW
    )
    text = exposed(status.model_copy(update={"plan": PLAN}))
    assert f'galvatron_job_status_condition{{{JOB},status="True",type="Training"}} 1.0' in text
    assert f'galvatron_job_status_condition{{{JOB},status="False",type="Training"}} 0.0' in text
    assert f"galvatron_job_plan_predicted_step_seconds{{{JOB}}} 0.25" in text
    assert f"galvatron_job_plan_predicted_memory_bytes{{{JOB}}} 6.7108864e+07" in text
    assert 'plan_hash="5b1e77c2"' in text


def test_restarts_are_counted_by_reason_from_zero() -> None:
    restarts = Restarts()
    for _ in range(12):
        # More than status.failures keeps.
        restarts = restarts.with_one("PodLost", counts=False, lost_steps=5)
    text = exposed(JobStatus.first(generation=1, now=NOW).model_copy(update={"restarts": restarts}))
    assert f'galvatron_job_restarts_total{{{JOB},reason="PodLost"}} 12.0' in text
    assert f'galvatron_job_restarts_total{{{JOB},reason="NodeLost"}} 0.0' in text
    assert f"galvatron_job_lost_steps_total{{{JOB}}} 60.0" in text


def test_the_timeline_of_a_job_is_in_unix_time() -> None:
    status = said(ConditionType.PLAN_READY, ConditionStatus.TRUE, "PlanFound", seconds=40, start_time=NOW)
    text = exposed(status.model_copy(update={"first_step_time": NOW + timedelta(seconds=90)}))
    began = NOW.timestamp()
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    values = {(sample.name, sample.labels.get("type", "")): sample.value for sample in samples}
    assert values["galvatron_job_created_timestamp_seconds", ""] == began
    assert values["galvatron_job_start_timestamp_seconds", ""] == began
    assert values["galvatron_job_first_step_timestamp_seconds", ""] == began + 90
    assert ("galvatron_job_completion_timestamp_seconds", "") not in values
    assert values["galvatron_job_status_condition_transition_timestamp_seconds", "PlanReady"] == began + 40


@pytest.mark.parametrize(
    ("status", "requested", "used"),
    [
        (said(ConditionType.ACCEPTED, ConditionStatus.TRUE, "Valid", seconds=0), 0, 0),
        (said(ConditionType.PROFILE_READY, ConditionStatus.FALSE, "Profiling", seconds=0), 4, 0),
        (said(ConditionType.PODS_READY, ConditionStatus.FALSE, "Starting", seconds=0, plan=PLAN, nodes=HALF), 4, 2),
        (said(ConditionType.PODS_READY, ConditionStatus.FALSE, "BackOff", seconds=0, plan=PLAN, nodes=HALF), 0, 0),
        # Kept for their logs: nobody else can have those GPUs, and nothing is done with them.
        (said(ConditionType.COMPLETE, ConditionStatus.TRUE, "Finished", seconds=0, plan=PLAN, nodes=HALF), 4, 0),
        (said(ConditionType.SUSPENDED, ConditionStatus.TRUE, "UserRequested", seconds=0, plan=PLAN), 0, 0),
    ],
    ids=["accepted", "measuring", "half ready", "backing off", "kept", "suspended"],
)
def test_gpus_are_requested_by_pods_and_used_by_steps(status: JobStatus, requested: int, used: int) -> None:
    text = exposed(status)
    assert f"galvatron_job_gpus_requested{{{JOB}}} {requested}.0" in text
    assert f"galvatron_job_gpus_used{{{JOB}}} {used}.0" in text


def test_what_ends_between_two_versions_of_a_job_is_timed() -> None:
    registry = CollectorRegistry()
    metrics = OperatorMetrics(registry)
    measuring = said(ConditionType.PROFILE_READY, ConditionStatus.FALSE, "Profiling", seconds=10)
    measured = said(ConditionType.PROFILE_READY, ConditionStatus.TRUE, "Profiled", seconds=52)
    stepping = measured.model_copy(update={"first_step_time": NOW + timedelta(seconds=75)})
    known = None
    for version in map(with_status, (measuring, measured, stepping, stepping)):
        metrics.job_changed(known, version)
        known = version
    for name, seconds in (("galvatron_profile_duration_seconds", 42), ("galvatron_queue_duration_seconds", 75)):
        assert registry.get_sample_value(f"{name}_count") == 1
        assert registry.get_sample_value(f"{name}_sum") == seconds


def test_a_job_that_trains_already_when_the_operator_starts_is_not_timed() -> None:
    registry = CollectorRegistry()
    stepping = JobStatus.first(generation=1, now=NOW).model_copy(update={"first_step_time": NOW})
    OperatorMetrics(registry).job_changed(None, with_status(stepping))
    assert registry.get_sample_value("galvatron_queue_duration_seconds_count") == 0


def test_a_job_that_is_gone_leaves_no_series() -> None:
    assert KEY.name not in exposed()


def test_a_job_without_a_status_has_no_series() -> None:
    registry = CollectorRegistry()
    registry.register(JobCollector(lambda: [body()]))
    assert KEY.name not in generate_latest(registry).decode()


def test_every_metric_of_the_operator_bears_our_name() -> None:
    registry = CollectorRegistry()
    OperatorMetrics(registry)
    assert all(family.name.startswith("galvatron_") for family in registry.collect())
