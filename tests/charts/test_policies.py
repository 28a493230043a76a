"""Who may disturb, reach and place the operator, and what `helm test` may do."""

import json

import pytest

from charts.rendering import MONITORING, NAMESPACE, Manifest, of_kind, refusal, render, the_only
from galvatron_operator import names
from galvatron_operator.api import parse

pytestmark = pytest.mark.helm

SCRAPER = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}


def operator_labels(manifests: tuple[Manifest, ...]) -> Manifest:
    """Of the operator's pods."""
    labels: Manifest = the_only(manifests, "Deployment")["spec"]["template"]["metadata"]["labels"]
    return labels


def selected(selector: Manifest, labels: Manifest) -> bool:
    """Whether a selector of labels alone takes in a pod."""
    assert set(selector) == {"matchLabels"}
    return bool(selector["matchLabels"].items() <= labels.items())


def policies(values: Manifest) -> tuple[tuple[Manifest, ...], tuple[Manifest, ...]]:
    """Every manifest, and the NetworkPolicies among them."""
    manifests = render({"networkPolicy": values})
    return manifests, of_kind(manifests, "NetworkPolicy")


def test_the_budget_covers_the_operator_and_never_blocks_a_drain() -> None:
    manifests = render()
    spec = the_only(manifests, "PodDisruptionBudget")["spec"]
    assert selected(spec["selector"], operator_labels(manifests))
    # With one replica, 1 leaves none that must be there; minAvailable: 1 would hold the node for ever.
    assert spec["maxUnavailable"] == 1
    assert spec["unhealthyPodEvictionPolicy"] == "AlwaysAllow"
    assert not of_kind(render({"podDisruptionBudget": {"enabled": False}}), "PodDisruptionBudget")


def test_operators_spread_among_their_own_pods_unless_the_values_say_which() -> None:
    constraint = {"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway"}
    other = {"labelSelector": {"matchLabels": {"a": "b"}}}
    manifests = render({"topologySpreadConstraints": [constraint, constraint | other]})
    first, second = the_only(manifests, "Deployment")["spec"]["template"]["spec"]["topologySpreadConstraints"]
    assert selected(first["labelSelector"], operator_labels(manifests))
    assert second == constraint | other


def test_without_being_asked_for_there_is_no_network_policy() -> None:
    assert not of_kind(render(), "NetworkPolicy")


def test_the_operator_is_reached_for_its_metrics_only_and_by_whom_the_values_say() -> None:
    manifests, (policy,) = policies({"enabled": True, "metricsFrom": [SCRAPER]})
    assert selected(policy["spec"]["podSelector"], operator_labels(manifests))
    assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
    assert policy["spec"]["ingress"] == [{"ports": [{"port": "metrics", "protocol": "TCP"}], "from": [SCRAPER]}]
    _, (open_policy,) = policies({"enabled": True})
    assert "from" not in open_policy["spec"]["ingress"][0]


def test_the_operator_reaches_names_the_api_server_and_pods_of_jobs() -> None:
    _, (policy,) = policies({"enabled": True, "apiServerPorts": [6443]})
    to_names, to_api_server, to_jobs = policy["spec"]["egress"]
    assert {(port["port"], port["protocol"]) for port in to_names["ports"]} == {(53, "UDP"), (53, "TCP")}
    assert to_api_server == {"ports": [{"port": 6443, "protocol": "TCP"}]}
    (peer,) = to_jobs["to"]
    assert selected(peer["podSelector"], names.job_labels("any", uid="u", component=names.COMPONENT_TRAINER))
    assert selected(peer["podSelector"], names.job_labels("any", uid="u", component=names.COMPONENT_PROFILER))
    assert peer["namespaceSelector"] == {}


def test_an_operator_of_some_namespaces_reaches_pods_only_there() -> None:
    manifests = render({"watchNamespaces": ["team-a"], "networkPolicy": {"enabled": True}})
    peer = the_only(manifests, "NetworkPolicy")["spec"]["egress"][2]["to"][0]
    (within,) = peer["namespaceSelector"]["matchExpressions"]
    assert within == {"key": "kubernetes.io/metadata.name", "operator": "In", "values": ["team-a"]}


def test_pods_of_jobs_are_reached_by_each_other_the_operator_and_scrapers() -> None:
    manifests, found = policies({"jobs": {"namespaces": ["team-a", "team-b"]}, "metricsFrom": [SCRAPER]})
    assert [policy["metadata"]["namespace"] for policy in found] == ["team-a", "team-b"]
    spec, trainer = found[0]["spec"], names.job_labels("any", uid="u", component=names.COMPONENT_TRAINER)
    assert selected(spec["podSelector"], trainer)
    assert spec["policyTypes"] == ["Ingress"]
    from_jobs, from_operator, from_scrapers = spec["ingress"]
    assert "ports" not in from_jobs
    assert [selected(peer["podSelector"], trainer) for peer in from_jobs["from"]] == [True]
    (operator,) = from_operator["from"]
    assert selected(operator["podSelector"], operator_labels(manifests))
    assert selected(operator["namespaceSelector"], {"kubernetes.io/metadata.name": NAMESPACE})
    assert from_scrapers["from"] == [SCRAPER]
    for rule in (from_operator, from_scrapers):
        assert rule["ports"] == [{"port": names.METRICS_PORT_NAME, "protocol": "TCP"}]


def test_the_network_policies_take_real_selectors_only() -> None:
    assert "metricsFrom" in refusal({"networkPolicy": {"metricsFrom": [{"namespace": "monitoring"}]}})
    assert "topologySpreadConstraints" in refusal({"topologySpreadConstraints": [{"maxSkew": 1}]})


def hooks(values: Manifest | None = None) -> tuple[Manifest, ...]:
    """What `helm test` makes."""
    return tuple(
        manifest
        for manifest in render(values, apis=MONITORING, with_tests=True)
        if manifest["metadata"].get("annotations", {}).get("helm.sh/hook") == "test"
    )


def test_helm_test_leaves_nothing_and_is_no_operator() -> None:
    manifests = render()
    selectors = [the_only(manifests, "Deployment")["spec"]["selector"]["matchLabels"]]
    selectors += [the_only(manifests, "Service")["spec"]["selector"]]
    for hook in hooks():
        policy = hook["metadata"]["annotations"]["helm.sh/hook-delete-policy"]
        assert policy == "before-hook-creation,hook-succeeded"
        assert not any(selector.items() <= hook["metadata"]["labels"].items() for selector in selectors)


def test_helm_test_runs_restricted_and_may_only_make_jobs() -> None:
    made, manifests = hooks(), render()
    pod, operator = the_only(made, "Pod")["spec"], the_only(manifests, "Deployment")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["image"] == operator["containers"][0]["image"]
    assert container["securityContext"] == operator["containers"][0]["securityContext"]
    assert pod["securityContext"] == operator["securityContext"]
    (rule,) = the_only(made, "Role")["rules"]
    assert rule["resources"] == ["galvatronjobs"]
    assert rule["verbs"] == ["create", "get", "patch", "delete"]
    binding = the_only(made, "RoleBinding")
    assert binding["roleRef"]["name"] == the_only(made, "Role")["metadata"]["name"]
    assert binding["subjects"][0]["name"] == pod["serviceAccountName"]


@pytest.mark.parametrize(("watched", "within"), [([], NAMESPACE), (["team-a", "team-b"], "team-a")])
def test_the_job_of_helm_test_is_valid_small_and_where_the_operator_looks(watched: list[str], within: str) -> None:
    values = {"watchNamespaces": watched, "image": {"pullSecrets": [{"name": "registry"}]}}
    body = json.loads(the_only(hooks(values), "Pod")["spec"]["containers"][0]["args"][0])
    job = parse({**body, "metadata": {**body["metadata"], "uid": "u", "generation": 1}})
    assert body["metadata"]["namespace"] == within == the_only(hooks(values), "Role")["metadata"]["namespace"]
    assert job.spec.budget.gpus == 1
    assert job.spec.budget.resource_name == "cpu"
    assert body["spec"]["runtime"]["imagePullSecrets"] == [{"name": "registry"}]
