"""A real API server takes every manifest of the chart, over all values that the tests know, without storing one."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from charts.golden import CASES
from charts.rendering import MONITORING, NAMESPACE, Manifest, render
from charts.test_chart import VALUES
from e2e.installation import require_cluster, standing_cluster
from e2e.kubectl import Kubectl

pytestmark = [pytest.mark.helm, pytest.mark.k8s]

EVERY_CASE = VALUES | CASES
MONITORING_CRDS = Path(__file__).parent / "monitoring"
NAMESPACES = (NAMESPACE, "team-a", "team-b")
UNSTORED = ("--server-side", "--dry-run=server", "--force-conflicts", "--validate=strict")
WARNED = "pod-security.kubernetes.io/warn"


@pytest.fixture(scope="module")
def kubectl() -> Iterator[Kubectl]:
    """A cluster with the chart's namespaces, which warn of pods that are not restricted, and the kinds of monitoring.

    What was not there before is gone afterwards.
    """
    require_cluster()
    cluster = Kubectl(standing_cluster(), NAMESPACE)
    crds = [f"crd/{path.stem}.monitoring.coreos.com" for path in MONITORING_CRDS.iterdir()]
    wanted = [*(f"namespace/{name}" for name in NAMESPACES), *crds]
    made = [each for each in wanted if cluster.run("get", each).returncode != 0]
    for name in NAMESPACES:
        namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
        cluster("apply", "--server-side", "--filename", "-", stdin=json.dumps(namespace))
    cluster("label", "namespace", *NAMESPACES, f"{WARNED}=restricted", "--overwrite")
    # Where the Prometheus Operator is at home its own CRDs are what counts.
    for crd in (crd for crd in crds if crd in made):
        cluster("apply", "--server-side", "--filename", str(MONITORING_CRDS / f"{crd[4:].partition('.')[0]}.yaml"))
    cluster("wait", "--for=condition=Established", *crds, "--timeout=30s")
    cluster("wait", "--for=create", "serviceaccount/default", "--timeout=30s")
    yield cluster
    cluster("label", "namespace", *NAMESPACES, f"{WARNED}-")
    if made:
        cluster("delete", *made, "--wait=true", "--timeout=120s")


@pytest.mark.parametrize("values", EVERY_CASE.values(), ids=EVERY_CASE.keys())
def test_a_real_api_server_takes_every_manifest(values: Manifest, kubectl: Kubectl) -> None:
    manifests = [with_an_account_that_exists(each) for each in render(values, apis=MONITORING, with_tests=True)]
    # kubectl takes objects of one namespace at a time when it is told a namespace.
    for namespace in {each["metadata"].get("namespace", NAMESPACE) for each in manifests}:
        items = [each for each in manifests if each["metadata"].get("namespace", NAMESPACE) == namespace]
        document = json.dumps({"apiVersion": "v1", "kind": "List", "items": items})
        result = Kubectl(kubectl.environment, namespace).run("apply", *UNSTORED, "--filename", "-", stdin=document)
        # Warnings, of pods that are not restricted among them, are as bad as errors.
        assert (result.returncode, result.stderr) == (0, "")
        assert len(result.stdout.splitlines()) == len(items)


def with_an_account_that_exists(manifest: Manifest) -> Manifest:
    """A pod is refused when its account is missing, and what is not stored is missing."""
    if manifest["kind"] != "Pod":
        return manifest
    return {**manifest, "spec": {**manifest["spec"], "serviceAccountName": "default"}}
