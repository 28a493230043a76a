"""What `helm install` makes of the chart, over the values that people set."""

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from charts.rendering import (
    CHART,
    MONITORING,
    NAMESPACE,
    ROOT,
    Manifest,
    helm,
    of_kind,
    refusal,
    render,
    the_only,
)

pytestmark = pytest.mark.helm

VALUES: dict[str, Manifest] = {
    "defaults": {},
    "namespaced": {"watchNamespaces": ["team-a", "team-b"]},
    "monitored": {
        "metrics": {kind: {"enabled": True} for kind in ("serviceMonitor", "podMonitor", "prometheusRule")},
        "networkPolicy": {"enabled": True, "jobs": {"namespaces": ["team-a"]}},
    },
    "bare": {
        "crds": {"enabled": False},
        "rbac": {"create": False, "aggregateRoles": False},
        "serviceAccount": {"create": False, "name": "given"},
        "grafana": {"dashboards": {"enabled": False}},
        "podDisruptionBudget": {"enabled": False},
    },
    "placed": {
        "nodeSelector": {"pool": "system"},
        "tolerations": [{"key": "system", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
        "priorityClassName": "system-cluster-critical",
        "topologySpreadConstraints": [
            {"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway"}
        ],
        "podAnnotations": {"a": "b"},
        "extraEnv": [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}],
        "commonLabels": {"team": "ml"},
    },
    "sharing": {"profileCache": {"namespace": NAMESPACE, "contributors": ["team-a"]}},
    "available": {"replicaCount": 2},
    "alone": {"leaderElection": {"enabled": False}},
    "pulled": {
        "image": {
            "registry": "registry.example.com:5000/ml",
            "digest": "sha256:" + "0" * 64,
            "pullPolicy": "Always",
            "pullSecrets": [{"name": "registry"}],
        }
    },
}
EVERY_CASE = pytest.mark.parametrize("values", VALUES.values(), ids=VALUES.keys())


def pod(manifests: tuple[Manifest, ...]) -> Manifest:
    """The operator's pod, as its Deployment describes it."""
    spec: Manifest = the_only(manifests, "Deployment")["spec"]["template"]["spec"]
    return spec


def container(manifests: tuple[Manifest, ...]) -> Manifest:
    """The operator's only container."""
    (only,) = pod(manifests)["containers"]
    return dict(only)


def environment(manifests: tuple[Manifest, ...]) -> dict[str, str]:
    """The operator's variables."""
    return {entry["name"]: entry["value"] for entry in container(manifests)["env"] if "value" in entry}


@EVERY_CASE
def test_helm_lint_finds_nothing(values: Manifest) -> None:
    result = helm("lint", str(CHART), "--strict", values={**values, "metrics": {}})
    assert result.returncode == 0, result.stdout


@EVERY_CASE
def test_every_object_is_named_labelled_and_placed(values: Manifest) -> None:
    for manifest in render(values, apis=MONITORING, with_tests=True):
        metadata = manifest["metadata"]
        assert len(metadata["name"]) <= 63
        assert metadata["labels"]["app.kubernetes.io/managed-by"] == "Helm"
        assert ("namespace" in metadata) == (not manifest["kind"].startswith(("Cluster", "CustomResource")))


@EVERY_CASE
def test_no_object_is_rendered_twice(values: Manifest) -> None:
    manifests = render(values, apis=MONITORING, with_tests=True)
    keys = [(m["kind"], m["metadata"].get("namespace"), m["metadata"]["name"]) for m in manifests]
    assert len(keys) == len(set(keys))


@EVERY_CASE
def test_the_operator_runs_restricted(values: Manifest) -> None:
    manifests = render(values, apis=MONITORING)
    assert pod(manifests)["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": 65532,
        "runAsGroup": 65532,
        "fsGroup": 65532,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert container(manifests)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod(manifests))
    assert all("hostPath" not in volume for volume in pod(manifests)["volumes"])


def test_an_elected_operator_is_replaced_by_one_that_already_stands_by() -> None:
    manifests = render()
    spec = the_only(manifests, "Deployment")["spec"]
    assert spec["strategy"] == {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
    variables = {entry["name"]: entry.get("valueFrom") for entry in container(manifests)["env"]}
    assert environment(manifests)["GALVATRON_LEADER_ELECTION"] == "true"
    assert variables["POD_NAME"] == {"fieldRef": {"fieldPath": "metadata.name"}}
    assert variables["POD_NAMESPACE"] == {"fieldRef": {"fieldPath": "metadata.namespace"}}


def test_without_an_election_there_are_never_two_operators_at_a_time() -> None:
    manifests = render({"leaderElection": {"enabled": False}})
    spec = the_only(manifests, "Deployment")["spec"]
    assert spec["replicas"] == 1
    assert spec["strategy"] == {"type": "Recreate"}
    assert environment(manifests)["GALVATRON_LEADER_ELECTION"] == "false"
    assert not of_kind(manifests, "Role")
    assert "replicaCount is 2" in refusal({"replicaCount": 2, "leaderElection": {"enabled": False}})


@pytest.mark.parametrize("name", ["defaults", "namespaced"])
def test_the_operator_may_write_its_own_lease_and_no_other(name: str) -> None:
    manifests = render(VALUES[name])
    roles = [role for role in of_kind(manifests, "Role") if role["metadata"]["namespace"] == NAMESPACE]
    lease = environment(manifests)["GALVATRON_LEASE_NAME"]
    assert [role["rules"] for role in roles] == [
        [
            {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["create"]},
            {
                "apiGroups": ["coordination.k8s.io"],
                "resources": ["leases"],
                "resourceNames": [lease],
                "verbs": ["get", "patch"],
            },
        ]
    ]


def test_replicas_keep_away_from_each_others_nodes() -> None:
    manifests = render({"replicaCount": 2})
    deployment = the_only(manifests, "Deployment")["spec"]
    assert deployment["replicas"] == 2
    (constraint,) = pod(manifests)["topologySpreadConstraints"]
    assert constraint["labelSelector"] == deployment["selector"]
    assert constraint["whenUnsatisfiable"] == "ScheduleAnyway"


def test_ports_have_the_names_that_probes_and_services_use() -> None:
    manifests = render()
    ports = {port["name"] for port in container(manifests)["ports"]}
    probes = {container(manifests)[f"{kind}Probe"]["httpGet"]["port"] for kind in ("startup", "liveness", "readiness")}
    assert probes | {port["targetPort"] for port in the_only(manifests, "Service")["spec"]["ports"]} <= ports


def test_the_service_selects_the_operator() -> None:
    manifests = render()
    labels = the_only(manifests, "Deployment")["spec"]["template"]["metadata"]["labels"]
    selector = the_only(manifests, "Service")["spec"]["selector"]
    assert selector.items() <= labels.items()
    assert selector == the_only(manifests, "Deployment")["spec"]["selector"]["matchLabels"]


def test_upgrades_keep_the_immutable_selector() -> None:
    changed = render({"commonLabels": {"team": "ml"}, "image": {"tag": "9.9.9"}})
    assert the_only(changed, "Deployment")["spec"]["selector"] == the_only(render(), "Deployment")["spec"]["selector"]


@pytest.mark.parametrize(
    ("values", "operator", "runtime"),
    [
        ({}, "localhost/galvatron-operator:0.1.0", "localhost/galvatron-runtime:0.1.0"),
        ({"image": {"registry": ""}}, "galvatron-operator:0.1.0", "galvatron-runtime:0.1.0"),
        (
            {"image": {"registry": "r.example.com/ml", "tag": "1.2"}},
            "r.example.com/ml/galvatron-operator:1.2",
            "r.example.com/ml/galvatron-runtime:0.1.0",
        ),
        (
            {"image": {"tag": "1.2", "digest": "sha256:" + "a" * 64}, "runtime": {"image": "r.example.com/own:3"}},
            "localhost/galvatron-operator@sha256:" + "a" * 64,
            "r.example.com/own:3",
        ),
    ],
)
def test_images_come_from_where_the_values_say(values: Manifest, operator: str, runtime: str) -> None:
    manifests = render(values)
    assert container(manifests)["image"] == operator
    assert environment(manifests)["GALVATRON_RUNTIME_IMAGE"] == runtime


def test_the_operator_may_do_what_it_does_and_no_more() -> None:
    role = next(r for r in of_kind(render(), "ClusterRole") if r["metadata"]["name"] == "galvatron-operator")
    granted = {
        (group, resource, verb)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    assert not any("*" in right for right in granted)
    assert not {resource for _, resource, _ in granted} & {"secrets", "pods/log", "pods/exec", "nodes", "roles"}
    assert ("", "pods", "create") not in granted
    assert {verb for _, resource, verb in granted if resource == "events"} == {"create", "list", "patch"}
    assert ("", "pods", "patch") in granted  # the annotation with the attempt


def test_with_namespaces_the_operator_has_rights_only_there() -> None:
    manifests = render(VALUES["namespaced"])
    namespaces = [role["metadata"]["namespace"] for role in of_kind(manifests, "Role")]
    assert sorted(namespaces) == [NAMESPACE, "team-a", "team-b"]
    assert not of_kind(manifests, "ClusterRoleBinding")
    assert environment(manifests)["GALVATRON_WATCH_NAMESPACES"] == "team-a,team-b"


def test_secrets_for_the_images_of_all_jobs_are_told_to_the_operator() -> None:
    secrets = [{"name": "ml"}, {"name": "mirror"}]
    variables = environment(render({"runtime": {"defaults": {"imagePullSecrets": secrets}}}))
    assert variables["GALVATRON_IMAGE_PULL_SECRETS"] == "ml,mirror"
    assert "GALVATRON_IMAGE_PULL_SECRETS" not in environment(render())


def test_profiles_are_shared_where_the_values_say() -> None:
    variables = environment(render(VALUES["sharing"]))
    assert variables["GALVATRON_PROFILE_CACHE_NAMESPACE"] == NAMESPACE
    assert variables["GALVATRON_PROFILE_CACHE_CONTRIBUTORS"] == "team-a"
    assert "GALVATRON_PROFILE_CACHE_NAMESPACE" not in environment(render())


@pytest.mark.parametrize(("namespace", "granted"), [("profiles", ["get", "create", "patch"]), ("team-a", None)])
def test_for_shared_profiles_the_operator_gets_the_rights_that_it_lacks(
    namespace: str, granted: list[str] | None
) -> None:
    manifests = render(VALUES["namespaced"] | {"profileCache": {"namespace": namespace}})
    added = [role for role in of_kind(manifests, "Role") if role["metadata"]["name"].endswith("-profiles")]
    rules = [] if granted is None else [[{"apiGroups": [""], "resources": ["configmaps"], "verbs": granted}]]
    assert [role["rules"] for role in added] == rules
    bindings = [one for one in of_kind(manifests, "RoleBinding") if one["roleRef"]["name"].endswith("-profiles")]
    assert [one["metadata"]["namespace"] for one in (*added, *bindings)] == [namespace] * 2 * len(rules)


@pytest.mark.parametrize("name", ["defaults", "namespaced"])
def test_bindings_bind_the_operators_account_to_roles_that_exist(name: str) -> None:
    manifests = render(VALUES[name])
    account = the_only(manifests, "ServiceAccount")["metadata"]["name"]
    roles = {(r["kind"], r["metadata"]["name"]) for r in manifests if r["kind"].endswith("Role")}
    bindings = of_kind(manifests, "ClusterRoleBinding") + of_kind(manifests, "RoleBinding")
    for binding in bindings:
        assert (binding["roleRef"]["kind"], binding["roleRef"]["name"]) in roles
        assert binding["subjects"] == [{"kind": "ServiceAccount", "name": account, "namespace": NAMESPACE}]
    assert pod(manifests)["serviceAccountName"] == account


def test_the_clusters_own_roles_learn_about_jobs() -> None:
    labels = [set(role["metadata"]["labels"]) for role in of_kind(render(), "ClusterRole")]
    for wanted in ("view", "edit", "admin"):
        assert any(f"rbac.authorization.k8s.io/aggregate-to-{wanted}" in found for found in labels)


def test_the_charts_crd_is_the_projects() -> None:
    own = ROOT / "crds" / "galvatronjobs.yaml"
    assert (CHART / "files" / "galvatronjobs.yaml").read_text() == own.read_text(), "run `make chart`"


def test_the_crd_is_rendered_whole_and_survives_an_uninstall() -> None:
    rendered = the_only(render(), "CustomResourceDefinition")
    assert rendered["spec"] == yaml.safe_load((ROOT / "crds" / "galvatronjobs.yaml").read_text())["spec"]
    assert rendered["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"


def test_the_chart_installs_the_packages_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert f'\nversion = "{chart["appVersion"]}"\n' in (ROOT / "pyproject.toml").read_text()


@pytest.mark.parametrize("monitor", ["serviceMonitor", "podMonitor", "prometheusRule"])
def test_a_monitor_without_the_prometheus_operator_is_refused_with_a_remedy(monitor: str) -> None:
    said = refusal({"metrics": {monitor: {"enabled": True}}})
    assert "install the Prometheus Operator" in said
    assert f"metrics.{monitor}.enabled=false" in said


def test_the_service_monitor_selects_the_metrics_service() -> None:
    manifests = render(VALUES["monitored"], apis=MONITORING)
    service = the_only(manifests, "Service")
    monitor = the_only(manifests, "ServiceMonitor")["spec"]
    assert monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert monitor["endpoints"][0]["port"] in {port["name"] for port in service["spec"]["ports"]}


def test_monitors_carry_the_labels_that_a_prometheus_selects_by() -> None:
    labels = {"release": "kube-prometheus-stack"}
    values = {"metrics": {kind: {"enabled": True, "labels": labels} for kind in ("serviceMonitor", "podMonitor")}}
    manifests = render(values, apis=MONITORING)
    for kind in ("ServiceMonitor", "PodMonitor"):
        assert labels.items() <= the_only(manifests, kind)["metadata"]["labels"].items()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("replicaCount", -1),
        ("replicaCount", "two"),
        ("leaderElection", {"enabled": "yes"}),
        ("image", {"repo": "x"}),
        ("image", {"pullPolicy": "Sometimes"}),
        ("image", {"digest": "latest"}),
        ("watchNamespaces", "team-a"),
        ("watchNamespaces", ["Team_A"]),
        ("runtime", {"defaults": {"imagePullSecrets": ["ml"]}}),
        ("runtime", {"defaults": {"image": "x"}}),
        ("profileCache", {"namespace": "Profiles"}),
        ("profileCache", {"contributors": "team-a"}),
        ("crds", {"enabled": "yes"}),
        ("extraEnv", {"A": "b"}),
        ("extraEnv", [{"value": "nameless"}]),
        ("tolerations", {}),
        ("metrics", {"podMonitor": {"interval": 15}}),
        ("metrics", {"prometheusRule": {"stalledSeconds": "10m"}}),
        ("metrics", {"prometheusRule": {"runbookURL": "docs/alerts.md"}}),
        ("podDisruptionBudget", {"minAvailable": 1}),
        ("networkPolicy", {"apiServerPorts": ["https"]}),
        ("grafana", {"dashboards": {"enabled": 1}}),
        ("serviceAccount", {"create": False, "name": ""}),
    ],
)
def test_nonsense_is_refused_by_name(path: str, value: Any) -> None:
    assert path in refusal({path: value})


def test_every_value_is_documented() -> None:
    lines = (CHART / "values.yaml").read_text().splitlines()
    documented_indent: int | None = None
    for previous, line in pairwise(lines):
        if not line or line.lstrip().startswith("#"):
            continue
        indent = len(line) - len(line.lstrip())
        if documented_indent is not None and indent > documented_indent:
            continue
        documented_indent = indent if previous.lstrip().startswith("# -- ") else None
        assert documented_indent is not None or line.endswith(":"), line


def test_the_schema_knows_exactly_the_values_that_there_are() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert set(schema["properties"]) == {*values, "global"}
    assert schema["additionalProperties"] is False


@pytest.mark.parametrize("path", sorted(CHART.glob("templates/**/*.yaml")), ids=lambda path: path.name)
def test_every_value_that_templates_read_exists(path: Path) -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    for keys in re.findall(r"\.Values\.([A-Za-z.]+)", path.read_text()):
        found = values
        for key in keys.split("."):
            assert key in found, f"{path.name} reads {keys}"
            found = found[key]
