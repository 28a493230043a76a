"""What a cluster holds of our jobs, kept in memory and fed by watches, so that a thousand jobs cost no thousand lists.

Reads may be a little behind, as with every informer. That does no harm: a status is written for the version that was
read, or not at all, objects are applied, and whatever comes late makes the job be looked at again.
"""

import sys
from collections.abc import Mapping
from typing import Any

from galvatron_operator import names
from galvatron_operator.decide import OWNED_KINDS, Kind, ObjectRef, is_ours, kind_of
from galvatron_operator.manifests.metadata import Manifest
from galvatron_operator.reconcile import Cluster

Key = tuple[Kind, str, str]
"""Kind, namespace and name."""

REMEMBERED_ENDS = 10_000
"""Uids of objects that are gone: an answer to an older request must not bring them back."""
LONGEST_WORD = 64
"""Characters of a text that may occur in many objects, such as a label; documents occur once."""


_LISTED: tuple[tuple[Kind, dict[str, str]], ...] = (
    (Kind.GALVATRON_JOB, {}),
    *(
        (kind, {names.LABEL_MANAGED_BY: names.MANAGER, names.LABEL_COMPONENT: component})
        for kind in OWNED_KINDS
        # Not cached profiles, which belong to no job and are large.
        for component in (names.COMPONENT_TRAINER, names.COMPONENT_PROFILER, names.COMPONENT_PLACEHOLDER)
    ),
)


class CachedCluster:
    """The port ``Cluster`` in front of another: jobs and what they own come from memory, everything else from there.

    A class because rounds, watches and metrics share what it holds; all of it lives on one event loop.
    """

    def __init__(self, cluster: Cluster, *, namespaces: tuple[str, ...] = ()) -> None:
        """Make an empty cache; :meth:`fill` it before the first round.

        Args:
            cluster: the API server.
            namespaces: that are watched; empty for all.
        """
        self._cluster = cluster
        self._namespaces = namespaces or (None,)
        self._found: dict[Key, Manifest] = {}
        self._owned: dict[str, set[Key]] = {}
        self._gone: dict[str, None] = {}

    @property
    def jobs(self) -> tuple[Manifest, ...]:
        """Every GalvatronJob that the operator works on."""
        # A copy first: metrics ask from a thread of their own.
        return tuple(found for found in tuple(self._found.values()) if found["kind"] == names.KIND)

    def job(self, namespace: str, name: str) -> Manifest | None:
        """Look a GalvatronJob up."""
        return self._found.get((Kind.GALVATRON_JOB, namespace, name))

    async def fill(self) -> None:
        """Read everything anew: at the start, and now and then because watches can stall without a word.

        Raises:
            ClusterError: when it cannot be read.
        """
        before = tuple(self._found.values())
        listed: set[str] = set()
        for namespace in self._namespaces:
            for kind, labels in _LISTED:
                for manifest in await self._cluster.list(kind, namespace=namespace, labels=labels):
                    self.put(manifest)
                    listed.add(manifest["metadata"]["uid"])
        for manifest in before:
            if manifest["metadata"]["uid"] not in listed:
                self.drop(manifest)

    def put(self, manifest: Manifest) -> None:
        """Take in a version of an object of a job, unless a newer one is known, or that it is gone."""
        key, metadata = _key(manifest), manifest["metadata"]
        known = self._found.get(key)
        if not _belongs(manifest) or metadata["uid"] in self._gone or (known and _version(manifest) <= _version(known)):
            return
        self._found[key] = _compact(manifest)
        self._owned.setdefault(_owner(manifest), set()).add(key)

    def drop(self, manifest: Manifest) -> None:
        """Forget an object that is gone, but not another that has its name since."""
        key, uid = _key(manifest), manifest["metadata"]["uid"]
        self._gone[uid] = None
        if len(self._gone) > REMEMBERED_ENDS:
            del self._gone[next(iter(self._gone))]
        known = self._found.get(key)
        if known is None or known["metadata"]["uid"] != uid:
            return
        del self._found[key]
        owned = self._owned[_owner(known)]
        owned.remove(key)
        if not owned:
            del self._owned[_owner(known)]

    async def get(self, ref: ObjectRef) -> Manifest | None:
        """Read one object; None when there is none."""
        if ref.kind is Kind.GALVATRON_JOB:
            return self.job(ref.namespace, ref.name)
        return await self._cluster.get(ref)

    async def list(self, kind: Kind, *, namespace: str | None, labels: Mapping[str, str]) -> tuple[Manifest, ...]:
        """Read every object of a kind that carries ``labels``, in one namespace or in all."""
        if kind is Kind.GALVATRON_JOB and not labels:
            return tuple(job for job in self.jobs if namespace in (None, job["metadata"]["namespace"]))
        if kind not in OWNED_KINDS or set(labels) != {names.LABEL_JOB_UID}:
            return await self._cluster.list(kind, namespace=namespace, labels=labels)
        owned = sorted(self._owned.get(labels[names.LABEL_JOB_UID], ()))
        return tuple(self._found[key] for key in owned if key[0] is kind and namespace in (None, key[1]))

    async def events(self, ref: ObjectRef) -> tuple[Manifest, ...]:
        """Read what has been said about one object, which has a uid; events are not kept here."""
        return await self._cluster.events(ref)

    async def apply(self, manifest: Manifest) -> Manifest:
        """Create or update an object, taking over the fields that it names, and return what came of it."""
        return self._written(manifest, await self._cluster.apply(manifest))

    async def apply_status(self, manifest: Manifest) -> Manifest:
        """Write the status of an object that exists; a resource version in it must be the newest."""
        return self._written(manifest, await self._cluster.apply_status(manifest))

    async def delete(self, ref: ObjectRef, *, grace_seconds: int | None = None) -> None:
        """Delete an object and, in the background, what it owns; a watch tells when it is gone."""
        await self._cluster.delete(ref, grace_seconds=grace_seconds)

    def _written(self, wanted: Manifest, made: Manifest) -> Manifest:
        self.put({"apiVersion": wanted["apiVersion"], "kind": wanted["kind"], **made})
        return made


def _key(manifest: Manifest) -> Key:
    return kind_of(manifest), manifest["metadata"]["namespace"], manifest["metadata"]["name"]


def _belongs(manifest: Manifest) -> bool:
    """Whether it is a job that the operator works on, or belongs to one."""
    return is_ours(manifest) if manifest["kind"] == names.KIND else bool(_owner(manifest))


def _owner(manifest: Manifest) -> str:
    """Uid of the job that an object belongs to; empty for jobs themselves."""
    uid: str = (manifest["metadata"].get("labels") or {}).get(names.LABEL_JOB_UID, "")
    return uid


def _compact(manifest: Manifest) -> Manifest:
    """Copy what rounds read: not the managed fields, half of an object, and every word that objects share only once.

    Managed fields were 31 of the 63 KB of a pod, and 18 of the 39 of a job (2026-11-28, as Python objects).
    """
    metadata = {name: value for name, value in manifest["metadata"].items() if name != "managedFields"}
    shared: Manifest = _shared({**manifest, "metadata": metadata})
    return shared


def _shared(value: Any) -> Any:
    if isinstance(value, dict):
        return {sys.intern(name): _shared(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_shared(part) for part in value]
    return sys.intern(value) if isinstance(value, str) and len(value) <= LONGEST_WORD else value


def _version(manifest: Manifest) -> int:
    """Resource versions are numbers that grow: promised since Kubernetes 1.35 and true before (KEP-5504)."""
    return int(manifest["metadata"]["resourceVersion"])
