"""Kueue in memory, as far as jobs meet it: what its webhook refuses, what it holds back, and what it takes away.

Source: pkg/controller/jobs/{statefulset,job,pod} of sigs.k8s.io/kueue 0.17.
"""

from dataclasses import dataclass, field

from fakes.cluster import FakeCluster, Key
from fakes.world import World
from galvatron_operator import names
from galvatron_operator.decide import Kind, kind_of
from galvatron_operator.manifests.metadata import Manifest
from galvatron_operator.reconcile import Forbidden

GATE = "kueue.x-k8s.io/admission"


class KueueCluster(FakeCluster):
    """An API server that asks Kueue's webhook about StatefulSets; it keeps what was refused."""

    def __init__(self) -> None:
        super().__init__()
        self.refused: list[str] = []

    async def apply(self, manifest: Manifest) -> Manifest:
        metadata = manifest["metadata"]
        before = self.objects.get((kind_of(manifest), metadata["namespace"], metadata["name"]))
        if before is not None and manifest["kind"] == Kind.STATEFUL_SET and _queue(before):
            self._validate(before, manifest)
        return await super().apply(manifest)

    def _validate(self, before: Manifest, after: Manifest) -> None:
        problems = [
            field
            for field, old, new in (
                ("metadata.labels", _queue(before), _queue(after)),
                ("spec.template", before["spec"]["template"], after["spec"]["template"]),
                ("spec.replicas", before["spec"]["replicas"], after["spec"]["replicas"]),
            )
            if old != new
        ]
        if problems:
            self.refused += problems
            raise Forbidden(f"admission webhook denied the request: {problems} is immutable", remedy="leave it alone")


@dataclass(slots=True)
class QueueingWorld(World):
    """A world with Kueue in it.

    Attributes:
        cluster: with Kueue's webhook.
        quota: whether there is room for gangs that are not let in yet.
        admitted: uids of StatefulSets and Jobs that have been let in.
    """

    cluster: KueueCluster = field(default_factory=KueueCluster)
    quota: bool = True
    admitted: set[str] = field(default_factory=set)

    def step(self) -> None:
        for (kind, _, _), owner in tuple(self.cluster.objects.items()):
            if kind in (Kind.STATEFUL_SET, Kind.JOB) and _queue(owner):
                self._decide(owner)
        World.step(self)
        for key in self._held_back():
            self._gate(self.cluster.objects[key])

    def evict(self) -> None:
        """Take the quota back, and with it all pods of whatever was let in."""
        self.quota = False
        for pod in self.pods():
            if pod["metadata"]["ownerReferences"][0]["uid"] in self.admitted:
                pod["metadata"].setdefault("deletionTimestamp", self.cluster.now)
        self.admitted.clear()

    def _decide(self, owner: Manifest) -> None:
        uid = owner["metadata"]["uid"]
        if self.quota and uid not in self.admitted:
            self.admitted.add(uid)
            # Whatever was gated begins only now.
            for pod in self.pods():
                if pod["metadata"]["ownerReferences"][0]["uid"] == uid and _gated(pod):
                    self.cluster.remove((Kind.POD, pod["metadata"]["namespace"], pod["metadata"]["name"]))
        if owner["kind"] == Kind.JOB:
            owner["spec"]["suspend"] = uid not in self.admitted

    def _run_job(self, owner: Manifest) -> None:
        if not owner["spec"].get("suspend"):
            World._run_job(self, owner)

    def _held_back(self) -> list[Key]:
        queued = {
            owner["metadata"]["uid"]
            for (kind, _, _), owner in self.cluster.objects.items()
            if kind is Kind.STATEFUL_SET and _queue(owner)
        }
        return [
            (Kind.POD, pod["metadata"]["namespace"], pod["metadata"]["name"])
            for pod in self.pods()
            if pod["metadata"]["ownerReferences"][0]["uid"] in queued - self.admitted
        ]

    def _gate(self, pod: Manifest) -> None:
        pod["metadata"]["labels"][names.LABEL_QUEUE] = "gpus"
        pod["spec"]["schedulingGates"] = [{"name": GATE}]
        pod["spec"].pop("nodeName", None)
        gated = {"type": "PodScheduled", "status": "False", "reason": "SchedulingGated"}
        pod["status"] = {"phase": "Pending", "conditions": [gated]}


def _gated(pod: Manifest) -> bool:
    return bool(pod["spec"].get("schedulingGates"))


def _queue(manifest: Manifest) -> str | None:
    queue: str | None = (manifest["metadata"].get("labels") or {}).get(names.LABEL_QUEUE)
    return queue
