"""A release that watches one namespace works there, with rights there, and nowhere else; its end holds nothing up."""

import re
from collections.abc import Iterator, Mapping

import pytest

from e2e.following import JOB_LABEL
from e2e.installation import OPERATOR_NAMESPACE, RELEASE, bring_up_to_date, fresh_namespace
from e2e.kubectl import Kubectl, Manifest, is_true, wait_until

pytestmark = [pytest.mark.k8s, pytest.mark.helm, pytest.mark.slow]

DEPLOYMENT = f"{RELEASE}-operator"
OPERATOR = "app.kubernetes.io/component=operator"
ACCOUNT = f"system:serviceaccount:{OPERATOR_NAMESPACE}:{DEPLOYMENT}"
NAME = "planned"


@pytest.fixture
def other(installed: Mapping[str, str]) -> Iterator[Kubectl]:
    """A namespace that the release does not watch."""
    with fresh_namespace(installed) as fresh:
        yield fresh


@pytest.fixture
def watched(installed: Mapping[str, str], other: Kubectl) -> Iterator[Kubectl]:  # noqa: ARG001 -- ends after this one
    """The only namespace that the release watches; afterwards it watches all again."""
    try:
        with fresh_namespace(installed) as fresh:
            bring_up_to_date(installed, f"watchNamespaces={{{fresh.namespace}}}")
            yield fresh
    finally:
        bring_up_to_date(installed)


def test_an_operator_of_one_namespace_works_there_alone_and_a_namespace_goes_without_it(
    watched: Kubectl, other: Kubectl, operator: Kubectl
) -> None:
    for namespace in (other, watched):
        namespace.apply(from_data_sheets())
    wait_until("the job is planned and its pods exist", 60, lambda: has_pods(watched))

    assert "status" not in (other.get("galvatronjob", NAME) or {})
    wait_until("the operator of all namespaces is gone", 60, lambda: len(operator.items("pods", OPERATOR)) == 1)
    said = operator("logs", "--selector", OPERATOR, "--tail=-1")
    assert "PlanFound" in said
    assert not re.search(r"forbidden|\b403\b", said, flags=re.IGNORECASE), said[-4000:]
    assert may(watched, "create", "statefulsets.apps")
    for verb, resource in (("list", "galvatronjobs"), ("create", "statefulsets.apps"), ("list", "pods")):
        assert not may(other, verb, resource)
        assert not may(other, verb, resource, "--all-namespaces")

    operator("scale", "deployment", DEPLOYMENT, "--replicas=0")
    operator("wait", "--for=delete", "pod", "--selector", OPERATOR, "--timeout=60s")
    watched("delete", "namespace", watched.namespace, "--wait=true", "--timeout=60s")


def from_data_sheets() -> Manifest:
    """A job that is planned without being measured, for GPUs that no node has: its pods wait."""
    return {
        "apiVersion": "galvatron.io/v1alpha1",
        "kind": "GalvatronJob",
        "metadata": {"name": NAME},
        "spec": {
            "model": {
                "family": "gpt",
                "hiddenSize": 64,
                "numLayers": 2,
                "numAttentionHeads": 4,
                "sequenceLength": 16,
            },
            "budget": {"gpus": 2, "gpusPerNode": 1, "memoryPerGPU": "4Gi"},
            "training": {"globalBatchSize": {"value": 8}, "steps": 10},
            "profiling": {"policy": "Never", "device": "a100-80gb"},
        },
    }


def has_pods(namespace: Kubectl) -> bool:
    """Whether the job has a plan, and the pods that follow from it."""
    planned = is_true(namespace.get("galvatronjob", NAME), "PlanReady")
    return planned and len(namespace.items("pods", f"{JOB_LABEL}={NAME}")) > 0


def may(namespace: Kubectl, verb: str, resource: str, *where: str) -> bool:
    """Ask the API server whether the operator's account has a right."""
    return namespace.run("auth", "can-i", verb, resource, f"--as={ACCOUNT}", *where).returncode == 0
