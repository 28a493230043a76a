"""PodGroups, labels and annotations of ours against what Volcano, scheduler-plugins and Kueue publish."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import yaml
from kubernetes import client

from controller import published
from controller.api_server import connected
from controller.test_cluster import exists, installed_crd, is_established, wait_until
from fakes.operation import SETTINGS, body
from fakes.world import InstantSearches, World
from galvatron_operator import names
from galvatron_operator.api import ConditionType, GangProvider, JobStatus, parse, parse_status
from galvatron_operator.decide import POD_GROUPS, Kind, ObjectRef
from galvatron_operator.kube import KubernetesCluster
from galvatron_operator.manifests import gang
from galvatron_operator.manifests.metadata import Manifest
from galvatron_operator.obstacles import KUEUE_GATES
from galvatron_operator.reconcile import ClusterError, JobKey, Ports, reconcile

pytestmark = pytest.mark.k8s

KINDS = {
    GangProvider.VOLCANO: Kind.VOLCANO_POD_GROUP,
    GangProvider.COSCHEDULING: Kind.COSCHEDULING_POD_GROUP,
}
CRDS: dict[GangProvider, Callable[[Path], Manifest]] = {
    GangProvider.VOLCANO: published.volcano_crd,
    GangProvider.COSCHEDULING: published.coscheduling_crd,
}
WHOLE: dict[GangProvider, Manifest] = {
    GangProvider.VOLCANO: {"queue": "team-a"},
    GangProvider.COSCHEDULING: {"timeoutSeconds": 90},
}
"""Everything that the job of a provider can say."""


@dataclass(frozen=True)
class Place:
    """A namespace of a real cluster, and an operator that is run there round by round."""

    namespace: str
    cluster: KubernetesCluster
    definitions: client.ApiextensionsV1Api
    searches: InstantSearches

    def create(self, provider: GangProvider) -> None:
        wanted = body(scheduling={"gang": {"provider": provider.value, **WHOLE[provider]}, "priorityClassName": "high"})
        wanted["metadata"] = {"name": provider.lower(), "namespace": self.namespace}
        asyncio.run(self.cluster.apply(wanted))

    def round(self, provider: GangProvider) -> JobStatus | None:
        """Reconcile once, as the work queue does, and give the status that came of it."""
        ports = Ports(self.cluster, World(), self.searches)
        key = JobKey(self.namespace, provider.lower())
        try:
            asyncio.run(reconcile(key, ports, settings=SETTINGS, now=datetime.now(UTC)))
        except ClusterError:
            """The work queue would repeat the round."""
        found = self.get(Kind.GALVATRON_JOB, key.name)
        assert found is not None
        return parse_status(found)

    def get(self, kind: Kind, name: str) -> Manifest | None:
        return asyncio.run(self.cluster.get(ObjectRef(kind, self.namespace, name)))


@pytest.fixture(scope="module")
def folder() -> Path:
    try:
        return published.fetch()
    except published.Unavailable as error:
        pytest.skip(f"LEFT OUT: {error}")


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    api_client = connected()
    core, definitions = client.CoreV1Api(api_client), client.ApiextensionsV1Api(api_client)
    namespace = f"gangs-{uuid4().hex[:8]}"
    core.create_namespace(client.V1Namespace(metadata=client.V1ObjectMeta(name=namespace)))
    with installed_crd(definitions):
        yield Place(namespace, KubernetesCluster(api_client), definitions, InstantSearches())
        core.delete_namespace(namespace)


@contextmanager
def installed(definitions: client.ApiextensionsV1Api, crd: Any) -> Iterator[None]:
    """Install a CRD, and leave none behind."""
    name = crd["metadata"]["name"]
    definitions.create_custom_resource_definition(crd)
    try:
        wait_until(lambda: is_established(definitions, name))
        yield
    finally:
        definitions.delete_custom_resource_definition(name)
        wait_until(lambda: not exists(definitions, name))


@pytest.mark.parametrize("provider", KINDS)
def test_a_job_waits_for_the_kind_that_its_provider_publishes_and_uses_it(
    provider: GangProvider, folder: Path, place: Place
) -> None:
    crd, name = CRDS[provider](folder), f"{provider.lower()}.profilers"
    assert not exists(place.definitions, crd["metadata"]["name"]), "a cluster without gang schedulers is needed here"
    place.create(provider)
    status = place.round(provider)
    assert status is not None
    condition = status.find(ConditionType.PROFILE_READY)
    assert condition is not None
    assert condition.reason == "GangSchedulerMissing"
    assert place.get(KINDS[provider], name) is None
    with installed(place.definitions, crd):
        wait_until(lambda: place.round(provider) is not None and place.get(KINDS[provider], name) is not None)
        made = place.get(KINDS[provider], name)
        assert made is not None
        (wanted,) = wanted_groups(place, provider)
        # Nothing that was written is unknown to the schema: the API server would have taken it out.
        assert made["spec"].items() >= wanted["spec"].items()
        assert made["metadata"]["ownerReferences"][0]["kind"] == names.KIND
        place.round(provider)
        assert place.get(KINDS[provider], name) == made, "a second round writes nothing"
        suspend(place, provider)
        wait_until(lambda: place.round(provider) is not None and place.get(KINDS[provider], name) is None)


def wanted_groups(place: Place, provider: GangProvider) -> tuple[Manifest, ...]:
    found = place.get(Kind.GALVATRON_JOB, provider.lower())
    assert found is not None
    job = parse(found)
    return gang.pod_groups(job, names.profilers_group(job.name), names.COMPONENT_PROFILER, num_pods=2)


def suspend(place: Place, provider: GangProvider) -> None:
    found = place.get(Kind.GALVATRON_JOB, provider.lower())
    assert found is not None
    spec = found["spec"] | {"suspend": True}
    metadata = {"name": provider.lower(), "namespace": place.namespace}
    asyncio.run(
        place.cluster.apply({"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": metadata, "spec": spec})
    )


@pytest.mark.parametrize("provider", KINDS)
def test_the_kinds_are_those_that_are_published(provider: GangProvider, folder: Path) -> None:
    spec: dict[str, Any] = CRDS[provider](folder)["spec"]
    scheduler = gang.SCHEDULERS[provider]
    assert f"{spec['group']}/{spec['versions'][0]['name']}" == scheduler.api_version
    assert f"{spec['names']['kind']}.{spec['group']}" == KINDS[provider]
    assert spec["names"]["plural"] == "podgroups"
    assert set(KINDS.values()) == set(POD_GROUPS)


def test_the_marks_on_pods_are_those_that_are_published(folder: Path) -> None:
    volcano, coscheduling = gang.SCHEDULERS[GangProvider.VOLCANO], gang.SCHEDULERS[GangProvider.COSCHEDULING]
    labels = (folder / published.VOLCANO / "labels.go").read_text()
    assert f'KubeGroupNameAnnotationKey = "{volcano.annotations[0]}"' in labels
    types = (folder / published.SCHEDULER_PLUGINS / "apis/scheduling/v1alpha1/types.go").read_text()
    assert 'PodGroupLabel = scheduling.GroupName + "/pod-group"' in types
    assert coscheduling.labels == (f"{gang.COSCHEDULING_GROUP}/pod-group",)
    values = folder / published.SCHEDULER_PLUGINS / "manifests/install/charts/as-a-second-scheduler/values.yaml"
    assert yaml.safe_load(values.read_text())["scheduler"]["name"] == coscheduling.name


def test_the_names_of_kueue_are_those_that_are_published(folder: Path) -> None:
    constants = (folder / published.KUEUE / "constants/constants.go").read_text()
    assert f'QueueLabel = "{names.LABEL_QUEUE}"' in constants
    assert f'WorkloadPriorityClassLabel = "{names.LABEL_QUEUE_PRIORITY}"' in constants
    gates = (folder / published.KUEUE / "jobs/pod/constants/constants.go").read_text()
    assert f'SchedulingGateName = "{KUEUE_GATES}' in gates
