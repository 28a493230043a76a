"""What the operator relies on of an API server: one contract for the fake in memory and for the real thing."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import pytest
import yaml
from kubernetes import client

from controller.api_server import connected
from fakes.cluster import FakeCluster
from fakes.lease import FakeLeases
from fakes.operation import body
from galvatron_operator import names
from galvatron_operator.api import ConditionType, JobStatus
from galvatron_operator.cache import CachedCluster
from galvatron_operator.decide import Event, Kind, ObjectRef, event_manifest, kind_of, reference
from galvatron_operator.election import Leases
from galvatron_operator.kube import KubernetesCluster, KubernetesLease
from galvatron_operator.lease import NOBODY, Lease
from galvatron_operator.manifests.metadata import Manifest
from galvatron_operator.reconcile import Cluster, Conflict, NotFound, Refused

NOW = datetime(2026, 1, 1, tzinfo=UTC)
Answer = TypeVar("Answer")
CRD = Path(__file__).parents[2] / "crds" / "galvatronjobs.yaml"


@dataclass(frozen=True)
class Site:
    """A cluster and a namespace of it that is ours."""

    cluster: Cluster
    namespace: str
    leases: Leases

    def run(self, request: Coroutine[Any, Any, Answer]) -> Answer:
        return asyncio.run(request)

    def apply(self, manifest: Manifest) -> Manifest:
        return asyncio.run(self.cluster.apply(manifest))

    def get(self, manifest: Manifest) -> Manifest | None:
        metadata = manifest["metadata"]
        return asyncio.run(self.cluster.get(ObjectRef(kind_of(manifest), self.namespace, metadata["name"])))

    def config_map(self, name: str = "document", **fields: Any) -> Manifest:
        metadata = {"name": name, "namespace": self.namespace, "labels": {"of": "test"}}
        return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"a": "1"}} | fields

    def job(self) -> Manifest:
        wanted = body()
        wanted["metadata"]["namespace"] = self.namespace
        return wanted


@pytest.fixture(scope="module")
def real_site() -> Iterator[Site]:
    """The cluster that ``GALVATRON_KUBECONFIG`` or ``KUBECONFIG`` names, with the CRD installed."""
    api_client = connected()
    core = client.CoreV1Api(api_client)
    namespace = f"contract-{uuid4().hex[:8]}"
    core.create_namespace(client.V1Namespace(metadata=client.V1ObjectMeta(name=namespace)))
    with installed_crd(client.ApiextensionsV1Api(api_client)):
        leases = KubernetesLease(api_client, namespace=namespace, name="operator")
        yield Site(KubernetesCluster(api_client), namespace, leases)
        core.delete_namespace(namespace)


@contextmanager
def installed_crd(definitions: client.ApiextensionsV1Api) -> Iterator[None]:
    """Install the CRD where it is missing, and leave none behind: Helm takes over nothing that others made."""
    name = f"{names.PLURAL}.{names.API_GROUP}"
    if is_established(definitions, name):
        yield
        return
    definitions.create_custom_resource_definition(yaml.safe_load(CRD.read_text()))
    wait_until(lambda: is_established(definitions, name))
    yield
    definitions.delete_custom_resource_definition(name)
    wait_until(lambda: not exists(definitions, name))


def exists(definitions: client.ApiextensionsV1Api, name: str) -> bool:
    listed = definitions.list_custom_resource_definition().items
    return any(item.metadata is not None and item.metadata.name == name for item in listed)


def is_established(definitions: client.ApiextensionsV1Api, name: str) -> bool:
    if not exists(definitions, name):
        return False
    status = definitions.read_custom_resource_definition(name).status
    conditions = () if status is None else status.conditions or ()
    return any(found.type == "Established" and found.status == "True" for found in conditions)


def wait_until(claim: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not claim():
        assert time.monotonic() < deadline, "deadline"
        time.sleep(0.2)


@pytest.fixture(params=["fake", "cached", pytest.param("real", marks=pytest.mark.k8s)])
def site(request: pytest.FixtureRequest) -> Site:
    if request.param != "real":
        cluster = FakeCluster() if request.param == "fake" else CachedCluster(FakeCluster())
        return Site(cluster, "team", FakeLeases())
    real: Site = request.getfixturevalue("real_site")
    for kind in (Kind.CONFIG_MAP, Kind.GALVATRON_JOB):
        for found in asyncio.run(real.cluster.list(kind, namespace=real.namespace, labels={})):
            asyncio.run(real.cluster.delete(reference(found)))
    return real


def test_a_kind_that_nobody_has_installed_is_neither_made_nor_found(site: Site) -> None:
    metadata = {"name": "gang", "namespace": site.namespace}
    group = {"apiVersion": "scheduling.volcano.sh/v1beta1", "kind": "PodGroup", "metadata": metadata}
    with pytest.raises(NotFound):
        site.apply(group)
    assert site.get(group) is None
    asyncio.run(site.cluster.delete(reference(group)))


def test_what_is_applied_exists(site: Site) -> None:
    made = site.apply(site.config_map())
    found = site.get(site.config_map())
    assert found is not None
    assert found["data"] == {"a": "1"}
    assert found["metadata"]["uid"] == made["metadata"]["uid"]


def test_what_was_never_applied_does_not(site: Site) -> None:
    assert site.get(site.config_map("nothing")) is None


def test_applying_twice_changes_nothing(site: Site) -> None:
    first = site.apply(site.config_map())
    second = site.apply(site.config_map())
    assert first["metadata"]["resourceVersion"] == second["metadata"]["resourceVersion"]


def test_any_text_arrives_as_it_was_written(site: Site) -> None:
    text = 'GLHF! \U0001f3d6\ufe0f \x1b[31m\x7f\x85 \u2028 \ufeff \uffff \\ud83c "quoted"\n\t'
    assert site.apply(site.config_map(data={"a": text}))["data"]["a"] == text


def test_a_field_that_is_no_longer_named_goes(site: Site) -> None:
    site.apply(site.config_map(data={"a": "1", "b": "2"}))
    assert site.apply(site.config_map(data={"b": "3"}))["data"] == {"b": "3"}


def test_an_immutable_config_map_refuses_another_content(site: Site) -> None:
    site.apply(site.config_map(immutable=True))
    with pytest.raises(Refused):
        site.apply(site.config_map(immutable=True, data={"a": "2"}))


def test_what_is_applied_to_one_object_makes_no_other(site: Site) -> None:
    former = site.apply(site.config_map())
    named = {"name": former["metadata"]["name"], "namespace": site.namespace, "uid": former["metadata"]["uid"]}
    annotated = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": named | {"annotations": {"a": "1"}}}
    assert site.apply(annotated)["metadata"]["annotations"]["a"] == "1"
    site.run(site.cluster.delete(reference(former)))
    with pytest.raises(Conflict):
        site.apply(annotated)
    site.apply(site.config_map())
    with pytest.raises((Conflict, Refused)):
        site.apply(annotated)


def test_lists_select_by_every_label(site: Site) -> None:
    site.apply(
        site.config_map("one", metadata={"name": "one", "namespace": site.namespace, "labels": {"x": "1", "y": "1"}})
    )
    site.apply(
        site.config_map("two", metadata={"name": "two", "namespace": site.namespace, "labels": {"x": "1", "y": "2"}})
    )
    for namespace in (site.namespace, None):
        found = site.run(site.cluster.list(Kind.CONFIG_MAP, namespace=namespace, labels={"x": "1", "y": "2"}))
        assert [(item["kind"], item["metadata"]["name"]) for item in found] == [("ConfigMap", "two")]


def test_deleting_what_is_gone_is_done(site: Site) -> None:
    made = site.apply(site.config_map())
    site.run(site.cluster.delete(reference(made)))
    site.run(site.cluster.delete(reference(made)))
    assert site.get(made) is None


def test_deleting_by_uid_spares_another_object_of_the_name(site: Site) -> None:
    former = site.apply(site.config_map())
    site.run(site.cluster.delete(reference(former)))
    successor = site.apply(site.config_map())
    site.run(site.cluster.delete(reference(former)))
    found = site.get(successor)
    assert found is not None
    assert found["metadata"]["uid"] == successor["metadata"]["uid"]


def test_a_pod_that_no_kubelet_ends_goes_only_without_a_grace_period(site: Site) -> None:
    container = {"name": "idle", "image": "localhost/idle"}
    spec = {"nodeName": "gone", "terminationGracePeriodSeconds": 600, "containers": [container]}
    metadata = {"name": "idle", "namespace": site.namespace}
    made = site.apply({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
    site.run(site.cluster.delete(reference(made)))
    found = site.get(made)
    assert found is not None
    assert "deletionTimestamp" in found["metadata"]
    site.run(site.cluster.delete(reference(made), grace_seconds=0))
    assert site.get(made) is None


def test_events_are_those_of_one_object(site: Site) -> None:
    one, two = site.apply(site.config_map("one")), site.apply(site.config_map("two"))
    for made in (one, two):
        site.apply(event_manifest(Event("Refused", made["metadata"]["name"], warning=True), made, now=NOW))
    [found] = site.run(site.cluster.events(reference(one)))
    assert (found["reason"], found["message"]) == ("Refused", "one")


def status_of(made: Manifest, status: JobStatus) -> Manifest:
    kept = {key: made["metadata"][key] for key in ("name", "namespace", "uid", "resourceVersion")}
    return {"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": kept, "status": status.dump()}


def first_status() -> JobStatus:
    return JobStatus.first(generation=1, now=NOW)


def test_a_status_is_kept_and_leaves_the_generation(site: Site) -> None:
    made = site.apply(site.job())
    written = site.run(site.cluster.apply_status(status_of(made, first_status())))
    assert written["status"]["phase"] == "Pending"
    assert len(written["status"]["conditions"]) == len(ConditionType)
    assert written["metadata"]["generation"] == made["metadata"]["generation"] == 1


def test_a_field_that_leaves_the_status_is_gone(site: Site) -> None:
    made = site.apply(site.job())
    status = first_status()
    begun = status.model_copy(update={"start_time": status.conditions[0].last_transition_time})
    made = site.run(site.cluster.apply_status(status_of(made, begun)))
    assert "startTime" in made["status"]
    made = site.run(site.cluster.apply_status(status_of(made, status)))
    assert "startTime" not in made["status"]


def test_a_status_for_an_older_version_is_a_conflict(site: Site) -> None:
    made = site.apply(site.job())
    site.run(site.cluster.apply_status(status_of(made, first_status())))
    with pytest.raises(Conflict):
        site.run(site.cluster.apply_status(status_of(made, first_status().model_copy(update={"attempt": 1}))))


def test_a_status_for_a_job_that_is_gone_is_not_written(site: Site) -> None:
    made = site.apply(site.job())
    site.run(site.cluster.delete(reference(made)))
    with pytest.raises((NotFound, Conflict)):
        site.run(site.cluster.apply_status(status_of(made, first_status())))


def test_a_changed_specification_is_another_generation(site: Site) -> None:
    site.apply(site.job())
    suspended = site.job()
    suspended["spec"]["suspend"] = True
    assert site.apply(suspended)["metadata"]["generation"] == 2


def test_a_lease_is_made_renewed_and_given_back(site: Site) -> None:
    assert site.leases.read() is None
    made = site.leases.write(Lease("one", seconds=15))
    assert site.leases.read() == made
    renewed = site.leases.write(made)
    assert (renewed.holder, renewed.acquired) == ("one", made.acquired)
    assert renewed.version != made.version
    freed = site.leases.write(Lease(NOBODY, 15, acquired=made.acquired, version=renewed.version))
    assert freed.holder == NOBODY
    taken = site.leases.write(Lease("two", seconds=15, transitions=1, version=freed.version))
    assert (taken.holder, taken.seconds, taken.transitions) == ("two", 15, 1)
    # Whoever looked before that, or has seen no lease at all, is too late.
    for late in (Lease("three", 15, version=freed.version), Lease("three", 15)):
        with pytest.raises(Conflict):
            site.leases.write(late)
    assert site.leases.read() == taken
