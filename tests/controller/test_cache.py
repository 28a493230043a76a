"""Reads from memory: what is newer stays, what is gone does not come back, and jobs live well with late news."""

import asyncio
import copy
import json
from collections import deque
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as generate

from fakes.cluster import FakeCluster
from fakes.operation import KEY, SETTINGS, Operation, body
from fakes.world import Act, Scene, World, all_goes_well
from galvatron_operator import names
from galvatron_operator.api import ConditionType
from galvatron_operator.cache import CachedCluster
from galvatron_operator.decide import Kind, ObjectRef
from galvatron_operator.manifests.metadata import Manifest
from galvatron_operator.reconcile import ClusterError, Ports, reconcile

LABELS = names.job_labels("small", uid="job", component=names.COMPONENT_TRAINER)


def pod(version: int, *, uid: str = "a") -> Manifest:
    metadata = {"namespace": "team", "name": "small-0", "uid": uid, "resourceVersion": str(version), "labels": LABELS}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata}


def versions(cache: CachedCluster) -> list[str]:
    found = asyncio.run(cache.list(Kind.POD, namespace="team", labels={names.LABEL_JOB_UID: "job"}))
    return [one["metadata"]["resourceVersion"] for one in found]


def test_what_comes_late_does_not_replace_what_is_newer() -> None:
    cache = CachedCluster(FakeCluster())
    for version in (9, 10, 8):
        cache.put(pod(version))
    assert versions(cache) == ["10"]


def test_what_is_gone_does_not_come_back_but_a_successor_of_its_name_does() -> None:
    cache = CachedCluster(FakeCluster())
    cache.put(pod(1))
    cache.drop(pod(2))
    cache.put(pod(1))
    assert versions(cache) == []
    cache.put(pod(3, uid="b"))
    cache.drop(pod(2))
    assert versions(cache) == ["3"]


def test_what_nobody_reads_is_not_kept_and_what_objects_share_is_kept_once() -> None:
    cache = CachedCluster(FakeCluster())
    for number in (1, 2):
        # As they come from the API server, each with words of its own.
        made = json.loads(json.dumps(pod(number, uid=f"uid-{number}")))
        made["metadata"] |= {"name": f"small-{number}", "managedFields": [{"manager": "kubelet"}]}
        cache.put(made)
    first, second = asyncio.run(cache.list(Kind.POD, namespace="team", labels={names.LABEL_JOB_UID: "job"}))
    assert "managedFields" not in first["metadata"]
    assert first["metadata"]["labels"] == LABELS
    # A change of either would not be seen by the other: only the words are the same.
    assert first["metadata"]["labels"] is not second["metadata"]["labels"]
    words = [(name, one["metadata"]["labels"][name]) for one in (first, second) for name in LABELS]
    assert len({id(word) for pair in words for word in pair}) == len({word for pair in words for word in pair})


def test_filling_finds_what_watches_have_missed() -> None:
    cluster = FakeCluster()
    cache = CachedCluster(cluster)
    made = asyncio.run(cluster.apply(body()))
    owned = {"name": "document", "namespace": KEY.namespace, "labels": LABELS}
    asyncio.run(cluster.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": owned, "data": {}}))
    cache.put(pod(1))
    asyncio.run(cache.fill())
    assert [job["metadata"]["uid"] for job in cache.jobs] == [made["metadata"]["uid"]]
    assert versions(cache) == []
    labels = {names.LABEL_JOB_UID: "job"}
    assert len(asyncio.run(cache.list(Kind.CONFIG_MAP, namespace=None, labels=labels))) == 1


def test_a_profile_that_jobs_share_is_read_where_it_lies() -> None:
    cluster = FakeCluster()
    shared = {"name": "gv-profile-1", "namespace": "team", "labels": {names.LABEL_MANAGED_BY: names.MANAGER}}
    cache = CachedCluster(cluster)
    asyncio.run(cache.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": shared, "data": {"a": "1"}}))
    cluster.objects[Kind.CONFIG_MAP, "team", "gv-profile-1"]["data"] = {"a": "2"}
    found = asyncio.run(cache.get(ObjectRef(Kind.CONFIG_MAP, "team", "gv-profile-1")))
    assert found is not None
    assert found["data"] == {"a": "2"}


def test_jobs_of_a_namespace_are_read_from_memory() -> None:
    cluster = FakeCluster()
    cache = CachedCluster(cluster)
    made = asyncio.run(cache.apply(body()))
    cluster.remove((Kind.GALVATRON_JOB, KEY.namespace, KEY.name))
    jobs = [asyncio.run(cache.list(Kind.GALVATRON_JOB, namespace=of, labels={})) for of in (KEY.namespace, "other")]
    assert [[job["metadata"]["uid"] for job in found] for found in jobs] == [[made["metadata"]["uid"]], []]


class Watch:
    """Tells a cache what has changed in a fake cluster, later or sooner."""

    def __init__(self, world: World, cache: CachedCluster) -> None:
        self._world, self._cache = world, cache
        self._known: dict[Any, Manifest] = {}
        self._news: deque[tuple[bool, Manifest]] = deque()

    def look(self) -> None:
        """Write down what has changed since the last look."""
        objects = self._world.cluster.objects
        for key, known in tuple(self._known.items()):
            if key not in objects or objects[key]["metadata"]["uid"] != known["metadata"]["uid"]:
                self._news.append((False, self._known.pop(key)))
        for key, found in objects.items():
            if found != self._known.get(key):
                if key[0] is Kind.POD:
                    # The fake world changes pods without counting their versions.
                    self._world.cluster._version += 1
                    found["metadata"]["resourceVersion"] = str(self._world.cluster._version)
                self._known[key] = copy.deepcopy(found)
                self._news.append((True, self._known[key]))

    def tell(self, number: int) -> None:
        """Hand on so much of it, in its order."""
        for _ in range(min(number, len(self._news))):
            exists, manifest = self._news.popleft()
            (self._cache.put if exists else self._cache.drop)(copy.deepcopy(manifest))


def fails_once(scene: Scene) -> Act:
    lost = scene.component == names.COMPONENT_TRAINER and scene.attempt == 1 and scene.age >= 2 and scene.node_rank == 1
    ended = {"state": {"terminated": {"reason": "OOMKilled", "exitCode": 137}}}
    return Act(state=None, pod_status={"containerStatuses": [ended]}) if lost else all_goes_well(scene)


@settings(max_examples=15, deadline=None)
@given(heard=generate.lists(generate.integers(min_value=0, max_value=6), max_size=25))
def test_a_job_whose_operator_hears_everything_late_comes_to_the_same_end(heard: list[int]) -> None:
    operation = Operation(World(fails_once))
    operation.create(body())
    world, cache = operation.world, CachedCluster(operation.world.cluster)
    watch, ports = Watch(world, cache), Ports(cache, world, operation.searches)
    for number in (*heard, *(1000 for _ in range(30))):
        world.step()
        watch.look()
        watch.tell(number)
        try:
            asyncio.run(reconcile(KEY, ports, settings=SETTINGS, now=world.now))
        except ClusterError:
            """The work queue would repeat the round."""
    assert operation.status is not None
    assert operation.status.is_true(ConditionType.COMPLETE)
    assert operation.status.attempt == 2
    for kind in (Kind.POD, Kind.STATEFUL_SET, Kind.JOB, Kind.SERVICE):
        assert operation.all_of(kind) == []
