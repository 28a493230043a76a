"""A Prometheus that follows the chart's monitors has what the chart's dashboard asks for."""

import pytest

from charts.queries import Query, queries
from e2e.following import MeasuredRun
from e2e.installation import OPERATOR_NAMESPACE
from e2e.kubectl import Kubectl

pytestmark = [pytest.mark.k8s, pytest.mark.slow]

ABSENT_ON_CPUS = {"Model FLOPs utilization": "the peak speed of a CPU is in no table"}
"""Panels that stay empty in this test, and why."""


@pytest.mark.parametrize("query", queries(), ids=lambda query: f"{query.panel}: {query.expression}")
def test_a_query_of_the_dashboard_returns_data(query: Query, measured_run: MeasuredRun, kubectl: Kubectl) -> None:
    variables = {"namespace": kubectl.namespace, "galvatronjob": measured_run.name, "__rate_interval": "2m"}
    samples = measured_run.metrics.at(query.with_variables(variables), measured_run.last_step_time())
    assert bool(samples) == (query.panel not in ABSENT_ON_CPUS)


def test_both_training_pods_and_the_operator_were_scraped(measured_run: MeasuredRun, kubectl: Kubectl) -> None:
    up = measured_run.metrics.at("up == 1", measured_run.last_step_time())
    scraped = {(sample.labels["namespace"], sample.labels["pod"]) for sample in up}
    assert {(kubectl.namespace, f"{measured_run.name}-{ordinal}") for ordinal in (0, 1)} <= scraped
    assert OPERATOR_NAMESPACE in {namespace for namespace, _ in scraped}
