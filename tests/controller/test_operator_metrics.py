"""The operator's metrics: what jobs are is read from their objects, so nothing outlives them."""

from datetime import UTC, datetime

from prometheus_client import CollectorRegistry, generate_latest

from fakes.operation import KEY, body
from galvatron_operator.api import ConditionStatus, ConditionType, Estimates, JobStatus, PlanStatus, Restarts
from galvatron_operator.metrics import JobCollector, OperatorMetrics

NOW = datetime(2026, 1, 1, tzinfo=UTC)
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


def exposed(*statuses: JobStatus) -> str:
    registry = CollectorRegistry()
    bodies = [body() | {"status": status.dump()} for status in statuses]
    registry.register(JobCollector(lambda: bodies))
    return generate_latest(registry).decode()


def test_a_job_shows_its_plan_and_its_conditions() -> None:
    status = JobStatus.first(generation=1, now=NOW).with_condition(
        ConditionType.TRAINING, ConditionStatus.TRUE, "Progressing", generation=1, now=NOW
    )
    text = exposed(status.model_copy(update={"plan": PLAN, "restarts": Restarts(total=2)}))
    job = f'galvatronjob="{KEY.name}",namespace="{KEY.namespace}"'
    assert f'galvatron_job_status_condition{{{job},status="True",type="Training"}} 1.0' in text
    assert f'galvatron_job_status_condition{{{job},status="False",type="Training"}} 0.0' in text
    assert f"galvatron_job_restarts_total{{{job}}} 2.0" in text
    assert f"galvatron_job_plan_predicted_step_seconds{{{job}}} 0.25" in text
    assert f"galvatron_job_plan_predicted_memory_bytes{{{job}}} 6.7108864e+07" in text
    assert 'plan_hash="5b1e77c2"' in text


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
