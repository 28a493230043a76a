"""What keeps pods from starting is told in the job's conditions, also where only events of the cluster know it."""

from collections.abc import Iterator, Mapping

import pytest

from e2e.installation import fresh_namespace
from e2e.kubectl import Kubectl, Manifest, condition, is_true, wait_until
from e2e.test_refusals import changed

pytestmark = [pytest.mark.k8s, pytest.mark.slow]

DATA_SHEETS = {"policy": "Never", "device": "cpu-core"}
"""Without profilers a job is at its trainers within seconds."""

IN_QUOTA: Mapping[str, tuple[Mapping[str, object], str, str, str]] = {
    "trainers": ({"spec.profiling": DATA_SHEETS}, "PodsReady", "QuotaExceeded", "exceeded quota: none"),
    "profilers": ({}, "ProfileReady", "Profiling", "QuotaExceeded: Job"),
}
"""Job -> changes of the example, and the condition, the reason and a part of the message that are expected."""

ELSEWHERE: Mapping[str, tuple[Mapping[str, object], str, str, str]] = {
    "claim": (
        {"spec.profiling": DATA_SHEETS, "spec.checkpoint": {"volume": {"claimName": "absent"}, "periodSteps": 50}},
        *("PodsReady", "VolumeError", 'persistentvolumeclaim "absent" not found'),
    ),
    "mount": (
        {
            "spec.profiling": DATA_SHEETS,
            "spec.training.dataset": {"source": "Text", "path": ".", "volume": {"configMapName": "absent"}},
        },
        *("PodsReady", "VolumeError", 'configmap "absent" not found'),
    ),
    "image": (
        {"spec.profiling": DATA_SHEETS, "spec.runtime": {"image": "localhost/absent:1", "imagePullPolicy": "Never"}},
        *("PodsReady", "ImagePullError", "localhost/absent:1"),
    ),
    # Devices that no node has, and a label that none has.
    "network": (
        {"spec.profiling": DATA_SHEETS, "spec.runtime": {"network": {"rdmaResourceName": "rdma/hca"}}},
        *("PodsReady", "Unschedulable", "Insufficient rdma/hca"),
    ),
    "topology": (
        {
            "spec.profiling": DATA_SHEETS,
            "spec.scheduling": {"topology": {"key": "example.com/rack", "mode": "Required"}},
        },
        *("PodsReady", "Unschedulable", "pod affinity"),
    ),
    "priority": (
        {"spec.profiling": DATA_SHEETS, "spec.scheduling": {"priorityClassName": "absent"}},
        *("PodsReady", "PodsRefused", "spec.scheduling.priorityClassName"),
    ),
}
"""As ``IN_QUOTA``, where there is no quota."""


@pytest.fixture(scope="module")
def of_another_manager(installed: Mapping[str, str], example: Manifest) -> Iterator[tuple[Kubectl, str]]:
    """A job of somebody else."""
    with fresh_namespace(installed) as namespace:
        foreign = changed(changed(example, "spec.managedBy", "example.com/dispatcher"), "metadata", {"name": "foreign"})
        namespace.apply(foreign)
        yield namespace, "foreign"


@pytest.fixture(scope="module")
def in_quota(installed: Mapping[str, str], example: Manifest) -> Iterator[Kubectl]:
    """A namespace without room for a pod."""
    with fresh_namespace(installed) as namespace:
        quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "none"}}
        namespace.apply({**quota, "spec": {"hard": {"pods": "0"}}})
        wait_until(
            "the quota is counted",
            30,
            lambda: (namespace.get("resourcequota", "none") or {}).get("status", {}).get("hard"),
        )
        begin(namespace, example, IN_QUOTA)
        yield namespace


@pytest.fixture(scope="module")
def elsewhere(installed: Mapping[str, str], example: Manifest) -> Iterator[Kubectl]:
    """A namespace with room."""
    with fresh_namespace(installed) as namespace:
        begin(namespace, example, ELSEWHERE)
        yield namespace


def begin(
    namespace: Kubectl, example: Manifest, cases: Mapping[str, tuple[Mapping[str, object], str, str, str]]
) -> None:
    """Create all jobs at once: each waits for what does not come."""
    for name, (changes, *_) in cases.items():
        job = {**example, "metadata": {"name": name}}
        for path, value in changes.items():
            job = changed(job, path, value)
        namespace.apply(job)


def told(namespace: Kubectl, name: str, type_: str, *, reason: str, message: str) -> Manifest:
    """The condition of a job once it says what is expected."""

    def look() -> Manifest | None:
        found = condition(namespace.get("galvatronjob", name), type_)
        return found if found.get("reason") == reason and message in found.get("message", "") else None

    return wait_until(f"{type_} of {name} says {reason}: {message}", 90, look)


@pytest.mark.parametrize("name", IN_QUOTA)
def test_a_quota_without_room_is_named(in_quota: Kubectl, name: str) -> None:
    _, type_, reason, message = IN_QUOTA[name]
    found = told(in_quota, name, type_, reason=reason, message=message)
    assert "raise the ResourceQuota" in found["message"]


@pytest.mark.parametrize("name", ELSEWHERE)
def test_what_a_pod_lacks_is_named(elsewhere: Kubectl, name: str) -> None:
    _, type_, reason, message = ELSEWHERE[name]
    told(elsewhere, name, type_, reason=reason, message=message)


def test_a_job_of_another_manager_is_left_alone(of_another_manager: tuple[Kubectl, str], example: Manifest) -> None:
    namespace, name = of_another_manager
    # The operator has worked on a job that came later.
    namespace.apply(changed(changed(example, "spec.execution", "Plan"), "spec.profiling", DATA_SHEETS))
    ours = example["metadata"]["name"]
    wait_until("ours is planned", 90, lambda: is_true(namespace.get("galvatronjob", ours), "Complete"))
    job = namespace.get("galvatronjob", name)
    assert job is not None
    assert "status" not in job
    assert namespace.items("jobs,statefulsets,configmaps,services", f"galvatron.io/job-name={name}") == ()
