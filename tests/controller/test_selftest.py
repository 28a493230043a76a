"""What ``helm test`` concludes from the end of its job."""

import asyncio

from fakes.cluster import FakeCluster
from galvatron_operator.decide import Kind, ObjectRef
from galvatron_operator.manifests.metadata import Manifest
from galvatron_operator.selftest import problem_of

JOB = {
    "apiVersion": "galvatron.io/v1alpha1",
    "kind": "GalvatronJob",
    "metadata": {"name": "helm-test", "namespace": "ml"},
    "spec": {},
}


class Ending(FakeCluster):
    """A cluster in which every job is found at its end."""

    def __init__(self, condition: str | None) -> None:
        super().__init__()
        self.condition = condition

    async def get(self, ref: ObjectRef) -> Manifest | None:
        found = await super().get(ref)
        if found is None or self.condition is None:
            return found
        time = "2026-01-01T00:00:00Z"
        ended = {"type": self.condition, "status": "True", "reason": "Because", "message": "of a test"}
        return found | {"status": {"conditions": [ended | {"lastTransitionTime": time, "observedGeneration": 1}]}}


def try_on(cluster: FakeCluster) -> str | None:
    return asyncio.run(problem_of(cluster, JOB, timeout_seconds=0.02, poll_seconds=0.01))


def test_a_job_that_completes_proves_the_installation() -> None:
    assert try_on(Ending("Complete")) is None


def test_a_job_that_fails_says_why() -> None:
    assert "Failed=True Because: of a test" in (try_on(Ending("Failed")) or "")


def test_a_job_that_nobody_looks_at_is_a_problem() -> None:
    assert "no operator looks at it" in (try_on(Ending(None)) or "")


def test_nothing_is_left_whatever_comes_of_it() -> None:
    for condition in ("Complete", "Failed", None):
        cluster = Ending(condition)
        try_on(cluster)
        assert not cluster.objects


def test_the_job_of_an_earlier_test_is_not_taken_for_this_one() -> None:
    cluster = Ending("Complete")
    earlier = asyncio.run(cluster.apply(JOB))
    assert try_on(cluster) is None
    assert list(cluster.objects) == [(Kind.GALVATRON_JOB, "ml", earlier["metadata"]["name"])]
