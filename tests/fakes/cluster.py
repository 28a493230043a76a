"""A Kubernetes API server in memory, as far as the operator relies on one; it passes the real one's contract tests.

It honours what level-triggered control rests on: uids, generations, resource versions and their conflicts, server-side
apply of one field manager (fields that are no longer named go), immutability, label selectors, and the garbage
collector. Controllers are somebody else's: ``fakes.world``.
"""

import copy
from collections.abc import Mapping
from typing import Any
from uuid import uuid4

from galvatron_operator.decide import POD_GROUPS, Kind, ObjectRef, kind_of
from galvatron_operator.manifests.metadata import Manifest
from galvatron_operator.reconcile import Conflict, NotFound, Refused

Key = tuple[Kind, str, str]

_IMMUTABLE: dict[Kind, tuple[tuple[str, ...], ...]] = {
    Kind.JOB: (("spec", "template"), ("spec", "completions"), ("spec", "completionMode")),
    Kind.STATEFUL_SET: (("spec", "selector"), ("spec", "serviceName"), ("spec", "podManagementPolicy")),
    Kind.SERVICE: (("spec", "clusterIP"),),
}


class FakeCluster:
    """The port ``Cluster`` in memory; ``objects`` is open to tests that play users and controllers.

    ``installed`` are the kinds of other projects that it has; like a new cluster, none at first.
    """

    def __init__(self) -> None:
        self.installed: set[Kind] = set()
        self.objects: dict[Key, Manifest] = {}
        self._applied: dict[tuple[Key, str], Manifest] = {}
        self._version = 0
        self.now = "2026-01-01T00:00:00Z"

    async def get(self, ref: ObjectRef) -> Manifest | None:
        found = self.objects.get((ref.kind, ref.namespace, ref.name))
        return copy.deepcopy(found)

    async def list(self, kind: Kind, *, namespace: str | None, labels: Mapping[str, str]) -> tuple[Manifest, ...]:
        return tuple(
            copy.deepcopy(found)
            for (of_kind, within, _), found in sorted(self.objects.items())
            if of_kind is kind and namespace in (None, within) and self._has(found, labels)
        )

    async def events(self, ref: ObjectRef) -> tuple[Manifest, ...]:
        found = await self.list(Kind.EVENT, namespace=ref.namespace, labels={})
        return tuple(event for event in found if event["involvedObject"]["uid"] == ref.uid)

    async def apply(self, manifest: Manifest) -> Manifest:
        key = _key(manifest)
        if key[0] in POD_GROUPS and key[0] not in self.installed:
            raise NotFound(f"{key[0]} is not served", remedy="install it")
        existing = self.objects.get(key)
        _check_uid(key, existing, manifest)
        merged = self._merge(key, "", existing or {}, manifest)
        if existing is None:
            merged["metadata"] |= {"uid": str(uuid4()), "generation": 1, "creationTimestamp": self.now}
        else:
            _check_immutable(key, existing, merged)
        self._applied[key, ""] = copy.deepcopy(manifest)
        return self._store(key, existing, merged)

    async def apply_status(self, manifest: Manifest) -> Manifest:
        key = _key(manifest)
        existing = self.objects.get(key)
        if existing is None:
            raise NotFound(f"{key} does not exist", remedy="create it")
        for field in ("uid", "resourceVersion"):
            wanted = manifest["metadata"].get(field)
            if wanted is not None and wanted != existing["metadata"][field]:
                raise Conflict(f"{key}: {field} is {existing['metadata'][field]}", remedy="read it again")
        status = {"status": manifest["status"]}
        merged = self._merge(key, "status", existing, status)
        self._applied[key, "status"] = copy.deepcopy(status)
        return self._store(key, existing, merged)

    async def delete(self, ref: ObjectRef, *, grace_seconds: int | None = None) -> None:
        key = (ref.kind, ref.namespace, ref.name)
        existing = self.objects.get(key)
        if existing is None or ref.uid not in (None, existing["metadata"]["uid"]):
            return
        if ref.kind is Kind.POD and grace_seconds != 0:
            # The kubelet ends it, in its own time.
            existing["metadata"].setdefault("deletionTimestamp", self.now)
            return
        self.remove(key)

    def remove(self, key: Key) -> None:
        """Take an object away without ceremony."""
        self.objects.pop(key, None)
        self._applied = {applied: fields for applied, fields in self._applied.items() if applied[0] != key}

    def collect_garbage(self) -> None:
        """End objects whose owner is gone: pods gracefully, everything else at once."""
        uids = {found["metadata"]["uid"] for found in self.objects.values()}
        for key, found in tuple(self.objects.items()):
            owners = found["metadata"].get("ownerReferences", [])
            if owners and not any(owner["uid"] in uids for owner in owners):
                if key[0] is Kind.POD:
                    found["metadata"].setdefault("deletionTimestamp", self.now)
                else:
                    self.remove(key)

    def _merge(self, key: Key, subresource: str, existing: Manifest, wanted: Manifest) -> Manifest:
        before = self._applied.get((key, subresource), {})
        merged: Manifest = _applied(copy.deepcopy(existing), before, wanted)
        return merged

    def _store(self, key: Key, before: Manifest | None, after: Manifest) -> Manifest:
        if after != before:
            self._version += 1
            after["metadata"]["resourceVersion"] = str(self._version)
            if before is not None and before.get("spec") != after.get("spec"):
                after["metadata"]["generation"] += 1
            self.objects[key] = after
        return copy.deepcopy(self.objects[key])

    @staticmethod
    def _has(found: Manifest, labels: Mapping[str, str]) -> bool:
        own = found["metadata"].get("labels") or {}
        return all(own.get(name) == value for name, value in labels.items())


def _check_uid(key: Key, existing: Manifest | None, wanted: Manifest) -> None:
    uid = wanted["metadata"].get("uid")
    if uid is not None and existing is None:
        raise Conflict(f"{key}: no object has the uid {uid}", remedy="read again what exists")
    if uid is not None and existing is not None and uid != existing["metadata"]["uid"]:
        raise Refused(f"{key}: metadata.uid is immutable", remedy="read again what exists")


def _check_immutable(key: Key, before: Manifest, after: Manifest) -> None:
    paths = _IMMUTABLE.get(key[0], ())
    if before.get("immutable"):
        paths = (*paths, ("data",))
    for path in paths:
        if _at(before, path) != _at(after, path):
            raise Refused(f"{key}: {'.'.join(path)} is immutable", remedy="make another object")


def _key(manifest: Manifest) -> Key:
    return kind_of(manifest), manifest["metadata"]["namespace"], manifest["metadata"]["name"]


def _applied(existing: Any, before: Any, wanted: Any) -> Any:
    """Apply server-side: fields that the manager named before and names no more go, others' fields stay."""
    if not isinstance(wanted, dict) or not isinstance(existing, dict):
        return copy.deepcopy(wanted)
    former = before if isinstance(before, dict) else {}
    kept = {name: value for name, value in existing.items() if name in wanted or name not in former}
    return kept | {name: _applied(existing.get(name), former.get(name), value) for name, value in wanted.items()}


def _at(manifest: Manifest, path: tuple[str, ...]) -> Any:
    found: Any = manifest
    for part in path:
        found = (found or {}).get(part)
    return found
