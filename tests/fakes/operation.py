"""An operator that can be run round by round in a fake world, and stopped in the middle of any of them."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fakes.world import InstantSearches, Script, World, all_goes_well
from galvatron_operator import names
from galvatron_operator.api import Condition, ConditionType, JobStatus, parse_status
from galvatron_operator.decide import Decision, Kind, ObjectRef
from galvatron_operator.manifests.metadata import Manifest
from galvatron_operator.reconcile import ClusterError, JobKey, Ports, Searches, reconcile
from galvatron_operator.settings import Settings

SETTINGS = Settings(runtime_image="localhost/galvatron-runtime:test")
KEY = JobKey("team", "small")
MANY_STEPS = 200


class Stopped(Exception):
    """The operator was stopped."""


def body(**spec: Any) -> Manifest:
    """A GalvatronJob of two nodes with two CPU processes each; ``spec`` replaces whole fields of the specification."""
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "metadata": {"name": KEY.name, "namespace": KEY.namespace},
        "spec": {
            "model": {
                "family": "gpt",
                "hiddenSize": 32,
                "numLayers": 2,
                "numAttentionHeads": 4,
                "sequenceLength": 16,
                "vocabularySize": 67,
            },
            "budget": {"gpus": 4, "gpusPerNode": 2, "resourceName": "cpu", "memoryPerGPU": "4Gi"},
            "training": {"globalBatchSize": {"value": 8}, "steps": 100, "precision": "FP32"},
        }
        | spec,
    }


class StoppingCluster:
    """A cluster that stops its operator after some writes."""

    def __init__(self, cluster: Any, writes: int) -> None:
        self._cluster = cluster
        self._left = writes

    async def get(self, ref: ObjectRef) -> Manifest | None:
        found: Manifest | None = await self._cluster.get(ref)
        return found

    async def list(self, kind: Kind, *, namespace: str | None, labels: Mapping[str, str]) -> tuple[Manifest, ...]:
        found: tuple[Manifest, ...] = await self._cluster.list(kind, namespace=namespace, labels=labels)
        return found

    async def events(self, ref: ObjectRef) -> tuple[Manifest, ...]:
        found: tuple[Manifest, ...] = await self._cluster.events(ref)
        return found

    async def apply(self, manifest: Manifest) -> Manifest:
        self._count()
        made: Manifest = await self._cluster.apply(manifest)
        return made

    async def apply_status(self, manifest: Manifest) -> Manifest:
        self._count()
        made: Manifest = await self._cluster.apply_status(manifest)
        return made

    async def delete(self, ref: ObjectRef, *, grace_seconds: int | None = None) -> None:
        self._count()
        await self._cluster.delete(ref, grace_seconds=grace_seconds)

    def _count(self) -> None:
        if self._left == 0:
            raise Stopped
        self._left -= 1


@dataclass(slots=True)
class Operation:
    """One job in one world, and the operator that works on it."""

    world: World
    searches: Searches = field(default_factory=InstantSearches)
    settings: Settings = SETTINGS
    key: JobKey = KEY
    decision: Decision = field(default_factory=Decision)

    def create(self, job: Manifest) -> None:
        """Create the job, as its user."""
        asyncio.run(self.world.cluster.apply(job))

    def edit(self, **spec: Any) -> None:
        """Change fields of the job's specification, as its user."""
        job = self.job
        job["spec"] |= spec
        job["metadata"]["generation"] += 1

    def round(self, *, writes: int | None = None) -> None:
        """Reconcile once; with ``writes`` the operator stops after so many and forgets everything."""
        cluster: Any = self.world.cluster if writes is None else StoppingCluster(self.world.cluster, writes)
        ports = Ports(cluster, self.world, self.searches)
        try:
            self.decision = asyncio.run(reconcile(self.key, ports, settings=self.settings, now=self.world.now))
        except Stopped:
            self.searches.forget(self.key)
        except ClusterError:
            """The work queue would repeat the round."""

    def rounds(self, number: int) -> None:
        """Let time pass and reconcile, several times."""
        for _ in range(number):
            self.world.step()
            self.round()

    def until(self, condition: ConditionType) -> None:
        """Let time pass and reconcile until a condition is true."""
        for _ in range(MANY_STEPS):
            if self.status is not None and self.status.is_true(condition):
                return
            self.rounds(1)
        raise AssertionError(f"{condition} did not become true; the status is {self.status}")

    def until_finished(self) -> JobStatus:
        """Let time pass and reconcile until the job has ended and has given everything back."""
        for _ in range(MANY_STEPS):
            self.rounds(1)
            if self.status is not None and self.status.is_finished:
                self.rounds(3)
                return self.status
        raise AssertionError(f"the job did not end; the status is {self.status}")

    @property
    def job(self) -> Manifest:
        """The job's object."""
        return self.world.cluster.objects[Kind.GALVATRON_JOB, self.key.namespace, self.key.name]

    @property
    def status(self) -> JobStatus | None:
        """What the operator says of the job."""
        return parse_status(self.job)

    def all_of(self, kind: Kind) -> list[Manifest]:
        """Every object of a kind."""
        return [found for (of_kind, _, _), found in sorted(self.world.cluster.objects.items()) if of_kind is kind]


def known(operation: Operation) -> JobStatus:
    """What the operator says of a job of which it has said something."""
    assert operation.status is not None
    return operation.status


def reason(status: JobStatus | None, type_: ConditionType) -> str:
    """The reason of a condition."""
    return _condition(status, type_).reason


def message(status: JobStatus | None, type_: ConditionType) -> str:
    """The message of a condition."""
    return _condition(status, type_).message


def _condition(status: JobStatus | None, type_: ConditionType) -> Condition:
    condition = status.find(type_) if status is not None else None
    assert condition is not None
    return condition


def plans_while_stopped(operation: Operation, *, writes: int) -> dict[int, set[str]]:
    """Let an operator be stopped after so many writes of every round; tell under which plans each attempt trains."""
    trained: dict[int, set[str]] = {}
    for _ in range(12):
        operation.round(writes=writes)
        operation.world.step()
        for pod in operation.all_of(Kind.POD):
            attempt = int(pod["metadata"]["annotations"][names.ANNOTATION_ATTEMPT])
            trained.setdefault(attempt, set()).add(pod["metadata"]["labels"][names.LABEL_PLAN_HASH])
    return trained


def begin(script: Script = all_goes_well, **spec: object) -> Operation:
    """Create a job with changes to its specification, in a world of its own."""
    operation = Operation(World(script))
    operation.create(body(**spec))
    return operation
