"""The cluster for real: every kind of object through one client, server-side apply, errors as temporary or permanent.

The only module that imports ``kubernetes``. It needs no API discovery, because it knows the few kinds that the operator
handles: it starts without a request and needs no more rights than these kinds.
"""

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import urllib3.exceptions
from kubernetes import client, config
from kubernetes.dynamic import DynamicClient
from kubernetes.dynamic.exceptions import DynamicApiError

from galvatron_operator import names
from galvatron_operator.decide import Kind, ObjectRef
from galvatron_operator.manifests.metadata import Manifest
from galvatron_operator.reconcile import ClusterError, Conflict, NotFound, Refused, Unreachable

TIMEOUT_SECONDS = (5.0, 30.0)
"""To connect, and between two parts of an answer."""

_PATHS = {
    Kind.GALVATRON_JOB: (f"/apis/{names.API_VERSION}", names.PLURAL),
    Kind.CONFIG_MAP: ("/api/v1", "configmaps"),
    Kind.SERVICE: ("/api/v1", "services"),
    Kind.POD: ("/api/v1", "pods"),
    Kind.EVENT: ("/api/v1", "events"),
    Kind.JOB: ("/apis/batch/v1", "jobs"),
    Kind.STATEFUL_SET: ("/apis/apps/v1", "statefulsets"),
}

_PERMANENT = frozenset({400, 405, 413, 415, 422})
"""The request itself is wrong. 403 is not among them: rights and quotas can be granted while a job waits."""


class KubernetesCluster:
    """The port ``Cluster`` on a real API server; blocking calls run in threads."""

    def __init__(self, api_client: client.ApiClient) -> None:
        # Without a discoverer: it would read every API group at start, and keep them in a shared temporary file.
        self._client = DynamicClient(api_client, discoverer=lambda *_: None)  # type: ignore[no-untyped-call]  # the client has no types

    async def get(self, ref: ObjectRef) -> Manifest | None:
        """Read one object; None when there is none."""
        try:
            return await self._request("get", ref.kind, ref.namespace, ref.name)
        except NotFound:
            return None

    async def list(self, kind: Kind, *, namespace: str | None, labels: Mapping[str, str]) -> tuple[Manifest, ...]:
        """Read every object of a kind that carries ``labels``, in one namespace or in all."""
        selector = ",".join(f"{key}={value}" for key, value in sorted(labels.items()))
        answer = await self._request("get", kind, namespace, label_selector=selector)
        # The items of a list come without these two.
        header = {"apiVersion": answer["apiVersion"], "kind": str(kind)}
        return tuple(header | item for item in answer["items"])

    async def apply(self, manifest: Manifest) -> Manifest:
        """Create or update an object, taking over the fields that it names, and return what came of it."""
        return await self._apply(manifest)

    async def apply_status(self, manifest: Manifest) -> Manifest:
        """Write the status of an object that exists; a resource version in it must be the newest."""
        return await self._apply(manifest, subresource="/status")

    async def delete(self, ref: ObjectRef, *, grace_seconds: int | None = None) -> None:
        """Delete an object and, in the background, what it owns; it may be gone, or another have its name."""
        options: Manifest = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"}
        if grace_seconds is not None:
            options["gracePeriodSeconds"] = grace_seconds
        if ref.uid is not None:
            options["preconditions"] = {"uid": ref.uid}
        try:
            await self._request("delete", ref.kind, ref.namespace, ref.name, body=options)
        except NotFound:
            return
        except Conflict:
            if ref.uid is None:
                raise

    async def _apply(self, manifest: Manifest, *, subresource: str = "") -> Manifest:
        metadata = manifest["metadata"]
        return await self._request(
            "patch",
            Kind(manifest["kind"]),
            metadata["namespace"],
            metadata["name"] + subresource,
            body=manifest,
            content_type="application/apply-patch+yaml",
            field_manager=names.FIELD_MANAGER,
            force_conflicts=True,
        )

    async def _request(
        self, method: str, kind: Kind, namespace: str | None, name: str | None = None, **parameters: Any
    ) -> Manifest:
        root, plural = _PATHS[kind]
        scope = f"/namespaces/{namespace}" if namespace is not None else ""
        path = f"{root}{scope}/{plural}" + (f"/{name}" if name else "")

        def call() -> Manifest:
            answer = self._client.request(method, path, serialize=False, _request_timeout=TIMEOUT_SECONDS, **parameters)
            content: Manifest = json.loads(answer.data)
            return content

        try:
            return await asyncio.to_thread(call)
        except DynamicApiError as error:
            raise _translate(error, f"{method} {path}") from error
        except urllib3.exceptions.HTTPError as error:
            raise Unreachable(f"{method} {path}: {error}", remedy="check the connection to the API server") from error


def connect() -> KubernetesCluster:
    """Connect as the pod's service account, or else by ``KUBECONFIG`` or ``~/.kube/config``."""
    try:
        config.load_incluster_config()  # type: ignore[no-untyped-call]  # the client has no types
    except config.ConfigException:
        config.load_kube_config()  # type: ignore[no-untyped-call]  # the client has no types
    return KubernetesCluster(client.ApiClient())


def _translate(error: DynamicApiError, request: str) -> ClusterError:
    """Say what an answer of the API server means for whoever asked."""
    problem = f"{request}: {error.status} {_message(error)}"
    if error.status == 404:
        return NotFound(problem, remedy="create it, or ignore that it is gone")
    if error.status == 409:
        return Conflict(problem, remedy="read the object again and repeat")
    if error.status in _PERMANENT:
        return Refused(problem, remedy="correct the fields that the message names")
    if error.status == 403:
        return Unreachable(problem, remedy="grant the operator this right, or raise the quota that the message names")
    return Unreachable(problem, remedy="wait for the API server to recover")


def _message(error: DynamicApiError) -> str:
    try:
        return str(json.loads(error.body or "")["message"])
    except (TypeError, ValueError, KeyError):
        return str(error.reason)
