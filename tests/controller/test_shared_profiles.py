"""Profiles for other namespaces, and profiles of images that a tag no longer names."""

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from fakes.operation import SETTINGS, Operation, begin, body, message, reason
from fakes.world import World, all_goes_well, fails_with
from galvatron_operator import names
from galvatron_operator.api import ConditionType, JobStatus
from galvatron_operator.decide import Kind, ObjectRef
from galvatron_operator.manifests.metadata import Manifest
from galvatron_operator.reconcile import Forbidden, JobKey, Ports, reconcile
from galvatron_operator.settings import ProfileCache, Settings
from galvatron_planner.profiles import Profile
from galvatron_planner.worker import ExitClass

SHARING = replace(SETTINGS, profile_cache=ProfileCache("galvatron-system"))
OTHER = "sha256:" + "1" * 64


def profiles(world: World) -> dict[str, Manifest]:
    return {
        namespace: found
        for (kind, namespace, _), found in world.cluster.objects.items()
        if kind is Kind.CONFIG_MAP and names.PROFILE_KEY in found["data"]
    }


def run(world: World, namespace: str, *, name: str = "small", settings: Settings = SHARING, **spec: Any) -> Operation:
    operation = Operation(world, settings=settings, key=JobKey(namespace, name))
    job = body(**spec)
    job["metadata"] |= {"namespace": namespace, "name": name}
    operation.create(job)
    operation.rounds(1)
    return operation


def source(operation: Operation) -> str:
    status = operation.until_finished()
    assert status.phase == "Complete"
    assert status.profile is not None
    return status.profile.source


def profile_message(status: JobStatus | None) -> str:
    return message(status, ConditionType.PROFILE_READY)


def test_another_namespace_uses_what_was_measured_in_the_first() -> None:
    world = World()
    assert source(run(world, "team-a")) == "Measured"
    world.now += timedelta(days=2)
    second = run(world, "team-b")
    assert reason(second.status, ConditionType.PROFILE_READY) == "CacheHit"
    assert "shared by namespace galvatron-system" in profile_message(second.status)
    assert source(second) == "SharedCache"
    found = profiles(world)
    times = {one["metadata"]["annotations"][names.ANNOTATION_MEASURED_AT] for one in found.values()}
    assert (set(found), len(times)) == ({"team-a", "team-b", "galvatron-system"}, 1)
    # Who looks after the cache learns where a profile is from, other tenants do not.
    measured_by = {
        namespace: names.ANNOTATION_MEASURED_BY in one["metadata"]["annotations"] for namespace, one in found.items()
    }
    assert measured_by == {"team-a": False, "team-b": False, "galvatron-system": True}


def test_a_copy_says_where_it_is_from_when_the_shared_one_is_gone() -> None:
    world = World()
    source(run(world, "team-a"))
    source(run(world, "team-b"))
    shared = profiles(world)["galvatron-system"]["metadata"]["name"]
    world.cluster.remove((Kind.CONFIG_MAP, "galvatron-system", shared))
    assert source(run(world, "team-b", name="again")) == "SharedCache"


@pytest.mark.parametrize(
    ("cache", "expected"),
    [
        (None, "Measured"),
        (ProfileCache("galvatron-system", contributors=("team-c",)), "Measured"),
        (ProfileCache("galvatron-system", contributors=("team-a",)), "SharedCache"),
        (ProfileCache("team-a"), "SharedCache"),
        (ProfileCache("team-b"), "Cache"),
    ],
)
def test_the_installation_says_who_measures_for_whom(cache: ProfileCache | None, expected: str) -> None:
    world, settings = World(), replace(SETTINGS, profile_cache=cache)
    source(run(world, "team-a", settings=settings))
    assert source(run(world, "team-b", settings=settings)) == expected


def test_what_a_namespace_has_measured_itself_counts_more_than_what_others_share() -> None:
    world = World()
    source(run(world, "team-b", settings=SETTINGS))
    own = profiles(world)["team-b"]["metadata"]["annotations"]
    source(run(world, "team-a"))
    assert source(run(world, "team-b", name="again")) == "Cache"
    assert profiles(world)["team-b"]["metadata"]["annotations"] == own


def test_a_shared_profile_replaces_one_that_is_too_old() -> None:
    world = World()
    source(run(world, "team-b", settings=SETTINGS))
    world.now += timedelta(days=31)
    source(run(world, "team-a"))
    assert source(run(world, "team-b", name="again")) == "SharedCache"


def test_what_users_write_into_their_own_cache_reaches_nobody_else() -> None:
    world = World()
    source(run(world, "team-a"))
    measured = profiles(world)["galvatron-system"]["data"]
    forged = profiles(world)["team-a"]
    profile = Profile.from_json(forged["data"][names.PROFILE_KEY]).model_copy(update={"step_overhead_seconds": 9.0})
    forged["data"] = {names.PROFILE_KEY: profile.to_json()}
    assert source(run(world, "team-a", name="again")) == "Cache"
    assert profiles(world)["galvatron-system"]["data"] == measured
    assert source(run(world, "team-b")) == "SharedCache"
    assert profiles(world)["team-b"]["data"] == measured


@pytest.mark.parametrize("policy", ["Always", "Never"])
def test_a_job_that_is_to_measure_or_not_at_all_takes_nothing_from_others(policy: str) -> None:
    world = World()
    source(run(world, "team-a"))
    device = {"device": "cpu-core"} if policy == "Never" else {}
    taken = source(run(world, "team-b", profiling={"policy": policy, **device}))
    assert taken == {"Always": "Measured", "Never": "Analytic"}[policy]


class ForeignNamespace:
    """A cluster in which the operator has no rights in one namespace."""

    def __init__(self, cluster: Any, namespace: str) -> None:
        self._cluster, self._namespace = cluster, namespace

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cluster, name)

    async def get(self, ref: ObjectRef) -> Manifest | None:
        self._check(ref.namespace)
        found: Manifest | None = await self._cluster.get(ref)
        return found

    async def apply(self, manifest: Manifest) -> Manifest:
        self._check(manifest["metadata"]["namespace"])
        made: Manifest = await self._cluster.apply(manifest)
        return made

    def _check(self, namespace: str) -> None:
        if namespace == self._namespace:
            raise Forbidden(f"nothing is allowed in {namespace}", remedy="grant it")


def test_a_cache_that_may_not_be_used_keeps_no_job_from_its_work() -> None:
    operation = begin()
    operation.settings = SHARING
    ports = Ports(ForeignNamespace(operation.world.cluster, "galvatron-system"), operation.world, operation.searches)
    for _ in range(20):
        operation.world.step()
        asyncio.run(reconcile(operation.key, ports, settings=SHARING, now=operation.world.now))
    assert operation.status is not None
    assert (operation.status.phase, set(profiles(operation.world))) == ("Complete", {"team"})


@pytest.mark.parametrize("writes", range(7))
def test_an_operator_that_is_stopped_in_every_round_shares_what_is_measured(writes: int) -> None:
    operation = begin()
    operation.settings = SHARING
    for _ in range(30):
        operation.round(writes=writes)
        operation.world.step()
    assert operation.until_finished().phase == "Complete"
    assert set(profiles(operation.world)) == {"team", "galvatron-system"}
    assert source(run(operation.world, "team-b")) == "SharedCache"


def test_a_tag_that_was_moved_has_the_next_job_measured_again_once() -> None:
    world = World()
    source(run(world, "team", name="first", settings=SETTINGS))
    world.image_digest = OTHER
    second = run(world, "team", name="second", settings=SETTINGS)
    assert source(second) == "Cache"
    assert second.status is not None
    assert second.status.image_digests == (OTHER,)
    assert "with another image than the trainers run" in profile_message(second.status)
    assert source(run(world, "team", name="third", settings=SETTINGS)) == "Measured"
    fourth = run(world, "team", name="fourth", settings=SETTINGS)
    assert source(fourth) == "Cache"
    assert fourth.status is not None
    assert fourth.status.profile is not None
    assert fourth.status.profile.image_digests == (OTHER,)
    assert "another image" not in profile_message(fourth.status)


def test_a_moved_tag_is_also_seen_where_the_profile_is_shared() -> None:
    world = World()
    source(run(world, "team-a"))
    world.image_digest = OTHER
    assert source(run(world, "team-b")) == "SharedCache"
    assert source(run(world, "team-b", name="again")) == "Measured"
    # What was measured anew is for all.
    assert source(run(world, "team-c")) == "SharedCache"
    assert profiles(world)["team-c"]["metadata"]["annotations"][names.ANNOTATION_IMAGE_DIGESTS] == OTHER


def test_a_job_that_is_planned_anew_under_a_moved_tag_is_measured_again() -> None:
    world = World()
    source(run(world, "team", name="first", settings=SETTINGS))
    world.image_digest = OTHER
    world.script = fails_with(ExitClass.OUT_OF_DEVICE_MEMORY, on_attempts=range(1, 2))
    assert source(run(world, "team", name="second", settings=SETTINGS)) == "Measured"


@pytest.mark.parametrize(
    ("image", "annotations", "expected"),
    [
        ("registry/runtime:1", {}, "Measured"),
        (f"registry/runtime@{OTHER}", {}, "Cache"),
        ("registry/runtime:1", {names.ANNOTATION_IMAGE_DIGESTS: ""}, "Cache"),
        ("registry/runtime:1", {names.ANNOTATION_IMAGE_DIGESTS: "x" * 500}, "Cache"),
        ("registry/runtime:1", {names.ANNOTATION_IMAGE_DIGESTS: f"sha256:{'0' * 64},{OTHER}"}, "Cache"),
        ("registry/runtime:1", {names.ANNOTATION_MEASURED_AT: "2027-01-01T00:00:00Z"}, "Cache"),
    ],
    ids=["a tag", "a digest", "unknown what measured", "no digests", "both have measured", "measured since"],
)
def test_a_profile_is_doubted_when_its_tag_has_run_as_another_image_since(
    image: str, annotations: dict[str, str], expected: str
) -> None:
    world, runtime = World(), {"runtime": {"image": image}}
    source(run(world, "team", name="first", settings=SETTINGS, **runtime))
    world.image_digest = OTHER
    source(run(world, "team", name="second", settings=SETTINGS, **runtime))
    profiles(world)["team"]["metadata"]["annotations"] |= annotations
    assert source(run(world, "team", name="third", settings=SETTINGS, **runtime)) == expected


@pytest.mark.parametrize(
    "changes",
    [
        {"runtime": {"env": [{"name": "NCCL_P2P_DISABLE", "value": "1"}]}},
        {"runtime": {"tolerations": [{"key": "slow", "operator": "Exists"}]}},
        {"runtime": {"network": {"rdmaResourceName": "rdma/hca"}}},
        {"runtime": {"network": {"annotations": {"k8s.v1.cni.cncf.io/networks": "ib0"}}}},
        {"scheduling": {"topology": {"key": "rack"}}},
        {"scheduling": {"topology": {"key": "rack", "mode": "Required"}}},
    ],
    ids=str,
)
def test_jobs_that_may_be_measured_otherwise_share_no_profile(changes: Manifest) -> None:
    world = World()
    source(run(world, "team", name="first", settings=SETTINGS))
    source(run(world, "team", name="near", settings=SETTINGS, scheduling={"topology": {"key": "zone"}}))
    assert source(run(world, "team", name="second", settings=SETTINGS, **changes)) == "Measured"
    assert source(run(world, "team", name="third", settings=SETTINGS, **changes)) == "Cache"


def test_what_nodes_run_is_told_of_all_of_them() -> None:
    world = World(all_goes_well)
    operation = run(world, "team", settings=SETTINGS)
    operation.until(ConditionType.PLAN_READY)
    while not [pod for pod in world.pods() if pod["metadata"]["labels"][names.LABEL_COMPONENT] == "trainer"]:
        operation.rounds(1)
    [first, _] = world.pods()
    first["status"]["containerStatuses"][0]["imageID"] = f"docker-pullable://registry/runtime@{OTHER}"
    first["status"]["containerStatuses"].append({"name": "mesh", "imageID": "mesh@sha256:" + "2" * 64})
    operation.rounds(1)
    assert operation.status is not None
    assert operation.status.image_digests == ("sha256:" + "0" * 64, OTHER)
