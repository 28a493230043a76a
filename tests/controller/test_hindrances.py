"""What a job says of pods and objects that are never made, how often it says something, and when it says nothing."""

import copy

import pytest

from fakes.cluster import FakeCluster
from fakes.operation import KEY, Operation, begin, body, reason
from fakes.world import Act, Script, World, all_goes_well
from galvatron_operator.api import ConditionType
from galvatron_operator.decide import Kind, ObjectRef
from galvatron_operator.manifests.metadata import Manifest
from galvatron_operator.reconcile import Forbidden


def test_a_job_of_another_manager_is_left_alone() -> None:
    operation = begin(managedBy="example.com/dispatcher")
    before = copy.deepcopy(operation.world.cluster.objects)
    for _ in range(3):
        operation.round(writes=0)
    operation.edit(suspend=True)
    operation.round(writes=0)
    operation.edit(suspend=False)
    assert operation.status is None
    assert operation.world.cluster.objects.keys() == before.keys()


def test_progress_alone_is_written_no_more_often_than_asked() -> None:
    hundred_steps: Script = lambda scene: Act(step=min(scene.age, 100)) if scene.attempt else all_goes_well(scene)  # noqa: E731

    def writes(**observability: int) -> int:
        operation = begin(hundred_steps, observability=observability)
        operation.until(ConditionType.TRAINING)
        operation.rounds(2)
        versions = {operation.job["metadata"]["resourceVersion"]}
        for _ in range(18):
            operation.rounds(1)
            versions.add(operation.job["metadata"]["resourceVersion"])
        return len(versions) - 1

    # A round every 10 s.
    assert writes(statusPeriodSeconds=10) == 18
    assert writes() == 9
    assert writes(statusPeriodSeconds=60) == 3


def test_another_change_is_written_with_the_progress_at_once() -> None:
    operation = begin(observability={"statusPeriodSeconds": 3600})
    status = operation.until_finished()
    assert status.progress is not None
    assert status.progress.step == 100


class ForbiddingCluster(FakeCluster):
    """An API server that refuses some kinds for a while."""

    def __init__(self, *kinds: Kind) -> None:
        super().__init__()
        self.forbidden = set(kinds)

    async def apply(self, manifest: Manifest) -> Manifest:
        if manifest["kind"] in self.forbidden:
            raise Forbidden("exceeded quota: team", remedy="raise the quota")
        return await super().apply(manifest)


@pytest.mark.parametrize(
    ("kind", "waits"),
    [(Kind.JOB, ConditionType.PROFILE_READY), (Kind.STATEFUL_SET, ConditionType.PODS_READY)],
)
def test_an_object_that_must_not_be_written_is_told_until_it_may(kind: Kind, waits: ConditionType) -> None:
    cluster = ForbiddingCluster(kind)
    operation = Operation(World(cluster=cluster))
    operation.create(body())
    operation.rounds(20)
    assert reason(operation.status, waits) == "Forbidden"
    told = operation.status.find(waits) if operation.status else None
    assert told is not None
    assert told.message == "exceeded quota: team; raise the quota"
    version = operation.job["metadata"]["resourceVersion"]
    operation.rounds(3)
    assert operation.job["metadata"]["resourceVersion"] == version
    cluster.forbidden.clear()
    assert operation.until_finished().phase == "Complete"


def refused_by_quota(operation: Operation, kind: Kind) -> None:
    [owner] = operation.all_of(kind)
    event = {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": "refused", "namespace": KEY.namespace},
        "involvedObject": {"kind": str(kind), "name": owner["metadata"]["name"], "uid": owner["metadata"]["uid"]},
        "reason": "FailedCreate",
        "message": "exceeded quota: team",
        "lastTimestamp": operation.world.cluster.now,
    }
    operation.create(event)


@pytest.mark.parametrize(
    ("kind", "waits", "condition_reason"),
    [
        (Kind.JOB, ConditionType.PROFILE_READY, "Profiling"),
        (Kind.STATEFUL_SET, ConditionType.PODS_READY, "QuotaExceeded"),
    ],
)
def test_pods_that_are_never_made_are_explained_by_the_events_of_their_owner(
    kind: Kind, waits: ConditionType, condition_reason: str
) -> None:
    operation = begin()
    while not operation.all_of(kind):
        operation.rounds(1)
    refused_by_quota(operation, kind)
    operation.round()
    told = operation.status.find(waits) if operation.status else None
    assert told is not None
    assert told.reason == condition_reason
    assert "QuotaExceeded" in told.message or told.reason == "QuotaExceeded"
    assert "exceeded quota: team; raise the ResourceQuota" in told.message
    assert operation.until_finished().phase == "Complete"


class MuteCluster(FakeCluster):
    """An API server whose events must not be read."""

    async def events(self, ref: ObjectRef) -> tuple[Manifest, ...]:
        raise Forbidden(f"events of {ref} cannot be listed", remedy="grant it")


def test_a_job_goes_on_where_events_cannot_be_read() -> None:
    operation = Operation(World(cluster=MuteCluster()))
    operation.create(body())
    assert operation.until_finished().phase == "Complete"
