"""What a real API server makes of the CRD, which it must understand as ``parse`` does, and of our objects."""

import json
import os
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from controller.bodies import SMALLEST, WRONG, Body, Changes, job, job_body
from controller.objects import children
from galvatron_operator.api import parse

pytestmark = pytest.mark.k8s

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "tests" / "cluster" / "cluster.sh"
GROUP = "schema-test.galvatron.io"
"""Not the real one: the CRD of an installed chart is left alone."""


@pytest.fixture(scope="module")
def environment() -> Mapping[str, str]:
    stands = subprocess.run(["bash", str(SCRIPT), "status"], capture_output=True, check=False).returncode == 0
    if not stands and not os.environ.get("GALVATRON_KUBECONFIG"):
        if os.environ.get("GALVATRON_REQUIRE_CLUSTER"):
            pytest.fail("the test cluster is down")
        pytest.skip("the test cluster is down; start it with `make cluster`")
    lines = ["bash", "-c", f'eval "$(bash {SCRIPT} env)" && printf "%s\\n" "$KUBECONFIG" "$PATH"']
    kubeconfig, path = subprocess.run(lines, capture_output=True, text=True, check=True).stdout.splitlines()
    return {**os.environ, "KUBECONFIG": kubeconfig, "PATH": path}


@pytest.fixture(scope="module")
def served(environment: Mapping[str, str]) -> Iterator[Mapping[str, str]]:
    crd = yaml.safe_load((ROOT / "crds" / "galvatronjobs.yaml").read_text())
    crd["metadata"]["name"] = f"galvatronjobs.{GROUP}"
    crd["spec"]["group"] = GROUP
    crd["spec"]["names"].pop("shortNames")
    crd["spec"]["names"].pop("categories")
    applied = kubectl(environment, "apply", "--server-side", "--filename", "-", document=crd)
    assert applied.returncode == 0, applied.stderr
    wait_until_served(environment)
    yield environment
    kubectl(environment, "delete", "crd", crd["metadata"]["name"], "--wait=false")


def wait_until_served(environment: Mapping[str, str]) -> None:
    """Wait for an answer: ``kubectl wait`` fails on a CRD without conditions, and Established comes too early."""
    deadline = time.monotonic() + 30
    while (result := create(environment, job_body())).returncode != 0:
        assert time.monotonic() < deadline, result.stderr
        time.sleep(0.5)


def kubectl(
    environment: Mapping[str, str], *arguments: str, document: Body | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["kubectl", *arguments],
        env=dict(environment),
        input=None if document is None else json.dumps(document),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def create(environment: Mapping[str, str], body: Body) -> subprocess.CompletedProcess[str]:
    """Create a job without storing it."""
    document = {
        **body,
        "apiVersion": f"{GROUP}/v1alpha1",
        "metadata": {"name": body["metadata"]["name"], "namespace": "default"},
    }
    arguments = ("create", "--dry-run=server", "--output=json", "--filename", "-")
    return kubectl(environment, *arguments, document=document)


@pytest.mark.parametrize("case", WRONG)
def test_the_api_server_refuses_what_cannot_be_meant(served: Mapping[str, str], case: str) -> None:
    _, changes = WRONG[case]
    result = create(served, job_body(changes))
    assert result.returncode != 0, result.stdout
    assert "invalid" in result.stderr.lower() or "unknown field" in result.stderr


@pytest.mark.parametrize(
    "path",
    [p for p in sorted((ROOT / "docs" / "examples").glob("*.yaml")) if p.stem != "quickstart"],
    ids=lambda path: path.stem,
)
def test_the_api_server_takes_every_example_for_a_cluster(served: Mapping[str, str], path: Path) -> None:
    result = create(served, yaml.safe_load(path.read_text()))
    assert result.returncode == 0, result.stderr


def test_the_api_server_keeps_a_template_as_it_is_written(served: Mapping[str, str]) -> None:
    # What is not allowed has to arrive as well: the operator says so, and a field that is dropped says nothing.
    written = {**TEMPLATE, "spec": {**TEMPLATE["spec"], "hostNetwork": True}}
    result = create(served, job_body({"spec.runtime.template": written}))
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["spec"]["runtime"]["template"] == written


def test_the_api_server_and_parse_fill_in_the_same_defaults(served: Mapping[str, str]) -> None:
    stored = json.loads(create(served, job_body()).stdout)
    ours = parse(SMALLEST).spec
    # Nothing is left for parse to fill in: the API server has written every default, and the same one.
    written = parse({**SMALLEST, "spec": stored["spec"]}).spec
    assert written == ours
    assert stored["spec"].keys() == ours.model_dump(mode="json", by_alias=True, exclude_none=True).keys()


@pytest.mark.parametrize(
    ("path", "value", "allowed"),
    [
        ("spec.suspend", True, True),
        ("spec.lifecycle", {"activeDeadlineSeconds": 60}, True),
        ("spec.observability", {"statusPeriodSeconds": 60}, True),
        ("spec.observability", {"metricsPort": 9465}, False),
        ("spec.managedBy", "kueue.x-k8s.io/multikueue", False),
        ("spec.scheduling", {"priorityClassName": "high"}, False),
        ("spec.runtime.template", {"spec": {"schedulerName": "other"}}, False),
        ("spec.budget.gpus", 8, False),
        ("spec.training.steps", 11, False),
        ("spec.checkpoint", {"volume": {"claimName": "c"}, "periodSteps": 1}, False),
    ],
)
def test_a_job_may_be_suspended_but_not_become_another(
    served: Mapping[str, str], path: str, value: Any, *, allowed: bool
) -> None:
    document = {**job_body(), "apiVersion": f"{GROUP}/v1alpha1"}
    document["metadata"] = {"name": f"changed-{path.rpartition('.')[2].lower()}", "namespace": "default"}
    changed = {**job_body({path: value}), "apiVersion": document["apiVersion"], "metadata": document["metadata"]}
    kubectl(served, "apply", "--filename", "-", document=document)
    try:
        result = kubectl(served, "apply", "--dry-run=server", "--filename", "-", document=changed)
        assert (result.returncode == 0) is allowed, result.stderr
    finally:
        kubectl(served, "delete", f"galvatronjobs.{GROUP}", document["metadata"]["name"], "--namespace", "default")


TEMPLATE: Body = {
    "metadata": {"labels": {"team": "vision"}, "annotations": {"k8s.v1.cni.cncf.io/networks": "ib0"}},
    "spec": {
        "affinity": {
            "podAntiAffinity": {
                "preferredDuringSchedulingIgnoredDuringExecution": [
                    {"weight": 1, "podAffinityTerm": {"topologyKey": "kubernetes.io/hostname", "labelSelector": {}}}
                ]
            }
        },
        "schedulerName": "default-scheduler",
        "volumes": [
            {"name": "code", "configMap": {"name": "models", "optional": True}},
            {"name": "key", "secret": {"secretName": "key"}},
            {"name": "cache", "emptyDir": {"sizeLimit": "1Gi"}},
            {"name": "more", "persistentVolumeClaim": {"claimName": "more"}},
            {"name": "both", "projected": {"sources": [{"configMap": {"name": "models"}}], "defaultMode": 0o440}},
            {"name": "pod", "downwardAPI": {"items": [{"path": "name", "fieldRef": {"fieldPath": "metadata.name"}}]}},
            {"name": "driver", "csi": {"driver": "inline.example.com"}},
            {
                "name": "scratch",
                "ephemeral": {
                    "volumeClaimTemplate": {
                        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
                    }
                },
            },
        ],
        "containers": [
            {
                "name": "runtime",
                "env": [
                    {"name": "PYTHONPATH", "value": "/opt/code"},
                    {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "key", "key": "token"}}},
                ],
                "volumeMounts": [
                    {"name": "code", "mountPath": "/opt/code", "readOnly": True},
                    {"name": "more", "mountPath": "/mnt/more", "subPath": "a"},
                ],
                "resources": {"limits": {"example.com/rdma": 1}},
            }
        ],
    },
}
"""Every field and every kind of volume that users may add."""
ON_GPUS: Changes = {"spec.scheduling": {"topology": {"key": "example.com/rack"}}}
ON_CPU_WITH_EVERYTHING: Changes = {
    "spec.budget.resourceName": "cpu",
    "spec.training.dataset": {
        "source": "Tokens",
        "path": ".",
        "binType": "UInt32",
        "volume": {"configMapName": "corpus"},
    },
    "spec.checkpoint": {"volume": {"claimName": "shared"}, "periodSteps": 5},
    "spec.runtime": {
        "env": [{"name": "A", "value": "b"}],
        "imagePullSecrets": [{"name": "registry"}],
        "sharedMemory": {"sizeLimit": "64Mi"},
        "nodeSelector": {"kubernetes.io/os": "linux"},
        "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}, "limits": {"memory": "1Gi"}},
        "tolerations": [{"key": "a", "operator": "Exists"}],
        "template": TEMPLATE,
        "network": {"rdmaResourceName": "rdma/hca", "rdmaResourceCount": 8, "annotations": {"example.com/net": "ib1"}},
    },
    "spec.scheduling": {"topology": {"key": "topology.kubernetes.io/zone", "mode": "Required"}},
}


@pytest.fixture(scope="module")
def restricted(environment: Mapping[str, str]) -> Iterator[str]:
    """A namespace that takes only pods of the restricted level."""
    name = "restricted-objects"
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
    assert kubectl(environment, "apply", "--filename", "-", document=namespace).returncode == 0
    yield name
    kubectl(environment, "delete", "namespace", name, "--wait=false")


@pytest.mark.parametrize("changes", [ON_GPUS, ON_CPU_WITH_EVERYTHING], ids=["gpus", "cpu"])
def test_the_api_server_takes_every_object_in_a_restricted_namespace(
    environment: Mapping[str, str], restricted: str, changes: Changes
) -> None:
    made = children(job({**changes, "metadata.namespace": restricted}))
    pods = [pod_of(child) for child in made if child["kind"] in ("Job", "StatefulSet")]
    assert len(pods) == 3
    for document in (*made, *pods):
        arguments = ("apply", "--server-side", "--dry-run=server", "--validate=strict", "--filename", "-")
        result = kubectl(environment, *arguments, document=document)
        assert result.returncode == 0, result.stderr
        assert "Warning" not in result.stderr


def pod_of(owner: Body) -> Body:
    """The pod that a controller would make, without what only controllers may set."""
    template = owner["spec"]["template"]
    meta = {**template["metadata"], "name": "pod", "namespace": owner["metadata"]["namespace"]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": template["spec"]}
