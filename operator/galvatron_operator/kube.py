"""The cluster for real: every kind of object through one client, server-side apply, errors as temporary or permanent.

The only module that imports ``kubernetes``. It needs no API discovery, because it knows the few kinds that the operator
handles: it starts without a request and needs no more rights than these kinds.
"""

import asyncio
import json
import re
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import urllib3.exceptions
from kubernetes import client, config
from kubernetes.dynamic import DynamicClient
from kubernetes.dynamic.exceptions import DynamicApiError

from galvatron_operator import names
from galvatron_operator.api import GangProvider
from galvatron_operator.decide import Kind, ObjectRef, kind_of
from galvatron_operator.lease import NOBODY, Lease
from galvatron_operator.manifests import gang
from galvatron_operator.manifests.metadata import Manifest
from galvatron_operator.reconcile import ClusterError, Conflict, Forbidden, NotFound, Refused, Unreachable

TIMEOUT_SECONDS = (5.0, 30.0)
"""To connect, and between two parts of an answer. A leader's last write is sent within the first of these, which is the
time between the end of its leadership and the next leader's beginning (``lease.Timing``)."""
LEASE_TIMEOUT_SECONDS = (2.0, 3.0)
"""The same for the Lease: shorter than a leadership, so that a renewal that hangs is tried again."""

_PATHS = {
    Kind.GALVATRON_JOB: (f"/apis/{names.API_VERSION}", names.PLURAL),
    Kind.CONFIG_MAP: ("/api/v1", "configmaps"),
    Kind.SERVICE: ("/api/v1", "services"),
    Kind.POD: ("/api/v1", "pods"),
    Kind.EVENT: ("/api/v1", "events"),
    Kind.JOB: ("/apis/batch/v1", "jobs"),
    Kind.STATEFUL_SET: ("/apis/apps/v1", "statefulsets"),
    Kind.VOLCANO_POD_GROUP: (f"/apis/{gang.SCHEDULERS[GangProvider.VOLCANO].api_version}", "podgroups"),
    Kind.COSCHEDULING_POD_GROUP: (f"/apis/{gang.SCHEDULERS[GangProvider.COSCHEDULING].api_version}", "podgroups"),
}

LIST_CHUNK = 500
"""Objects in one answer to a list."""
REQUESTS_AT_ONCE = 32
"""Connections that are kept: one for each worker of the queue, and more for rounds that ask several things at once."""

_PERMANENT = frozenset({400, 405, 413, 415, 422})
"""The request itself is wrong. 403 is not among them: rights and quotas can be granted while a job waits."""


_UNMERGEABLE = "failed to create typed patch object"
"""Server-side apply says so, with status 500, of unknown fields and of names that a list has twice."""
MAX_DEPTH = 10_000
"""Levels of JSON that the API server takes (encoding/json of Go)."""


def take_deep_objects() -> None:
    """Let this process read every object that the API server stores.

    The schema keeps unknown fields in ``spec.runtime.template``, at any depth. Python stops at 1,000 levels: one such
    job would end every list of all jobs. Reading, writing and copying need at most three calls a level.
    """
    sys.setrecursionlimit(4 * MAX_DEPTH)


class KubernetesCluster:
    """The port ``Cluster`` on a real API server; blocking calls run in threads."""

    def __init__(self, api_client: client.ApiClient, *, before_write: Callable[[], None] = lambda: None) -> None:
        """Make the port.

        Args:
            api_client: of the API server.
            before_write: is called right before a request that changes something is sent; may raise ``ClusterError``.
        """
        self._client = _dynamic(api_client)
        self._before_write = before_write

    async def get(self, ref: ObjectRef) -> Manifest | None:
        """Read one object; None when there is none."""
        try:
            return await self._request("get", ref.kind, ref.namespace, ref.name)
        except NotFound:
            return None

    async def list(self, kind: Kind, *, namespace: str | None, labels: Mapping[str, str]) -> tuple[Manifest, ...]:
        """Read every object of a kind that carries ``labels``, in one namespace or in all."""
        selector = ",".join(f"{key}={value}" for key, value in sorted(labels.items()))
        found: list[Manifest] = []
        rest: str | None = None
        while rest != "":
            answer = await self._request(
                "get", kind, namespace, label_selector=selector, limit=LIST_CHUNK, _continue=rest
            )
            # The items of a list come without these two.
            header = {"apiVersion": answer["apiVersion"], "kind": str(kind)}
            found.extend(header | item for item in answer["items"])
            rest = answer["metadata"].get("continue", "")
        return tuple(found)

    async def events(self, ref: ObjectRef) -> tuple[Manifest, ...]:
        """Read what has been said about one object, which has a uid."""
        selector = f"involvedObject.uid={ref.uid}"
        answer = await self._request("get", Kind.EVENT, ref.namespace, field_selector=selector)
        return tuple(answer["items"])

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
            kind_of(manifest),
            metadata["namespace"],
            metadata["name"] + subresource,
            body=_yaml(manifest),
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
            if method != "get":
                # In the thread, not before: requests may have to wait for one.
                self._before_write()
            return _send(self._client, method, path, _request_timeout=TIMEOUT_SECONDS, **parameters)

        return await asyncio.to_thread(call)


class KubernetesLease:
    """The port ``Leases`` on a real API server: one Lease of ``coordination.k8s.io``."""

    def __init__(self, api_client: client.ApiClient, *, namespace: str, name: str) -> None:
        self._client = _dynamic(api_client)
        self._path = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
        self._name = name

    def read(self) -> Lease | None:
        """Read the Lease; None when there is none."""
        try:
            return _lease(self._send("get", f"{self._path}/{self._name}"))
        except NotFound:
            return None

    def write(self, lease: Lease) -> Lease:
        """Replace the version that ``lease`` names, or create the Lease; ``Conflict`` when another was faster."""
        body = _lease_manifest(lease, self._name, now=datetime.now(UTC))
        if not lease.version:
            return _lease(self._send("post", self._path, body=body))
        # A merge, so that labels that others have put on the Lease stay.
        content_type = "application/merge-patch+json"
        return _lease(self._send("patch", f"{self._path}/{self._name}", body=body, content_type=content_type))

    def _send(self, method: str, path: str, **parameters: Any) -> Manifest:
        return _send(self._client, method, path, _request_timeout=LEASE_TIMEOUT_SECONDS, **parameters)


def connect() -> client.ApiClient:
    """Connect as the pod's service account, or else by ``KUBECONFIG`` or ``~/.kube/config``."""
    configuration = client.Configuration()
    try:
        config.load_incluster_config(configuration)  # type: ignore[no-untyped-call]  # the client has no types
    except config.ConfigException:
        config.load_kube_config(client_configuration=configuration)  # type: ignore[no-untyped-call]  # the client has no types
    # The work queue repeats rounds; urllib3 would send a write again when this process may not lead any more.
    configuration.retries = False
    configuration.connection_pool_maxsize = REQUESTS_AT_ONCE
    return client.ApiClient(configuration)


def _dynamic(api_client: client.ApiClient) -> DynamicClient:
    # Without a discoverer: it would read every API group at start, and keep them in a shared temporary file.
    return DynamicClient(api_client, discoverer=lambda *_: None)  # type: ignore[no-untyped-call]  # the client has no types


def _send(dynamic: DynamicClient, method: str, path: str, **parameters: Any) -> Manifest:
    """Send one request and wait for its answer."""
    try:
        content: Manifest = json.loads(dynamic.request(method, path, serialize=False, **parameters).data)
    except DynamicApiError as error:
        raise _translate(error, f"{method} {path}") from error
    except urllib3.exceptions.HTTPError as error:
        raise Unreachable(f"{method} {path}: {error}", remedy="check the connection to the API server") from error
    return content


def _lease(manifest: Manifest) -> Lease:
    spec = manifest.get("spec", {})
    return Lease(
        holder=spec.get("holderIdentity") or NOBODY,
        seconds=float(spec.get("leaseDurationSeconds") or 0),
        transitions=spec.get("leaseTransitions") or 0,
        acquired=spec.get("acquireTime") or "",
        version=manifest["metadata"]["resourceVersion"],
    )


def _lease_manifest(lease: Lease, name: str, *, now: datetime) -> Manifest:
    """Write a Lease; its times are for people, nobody counts by them."""
    time = now.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    return {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": name} | ({"resourceVersion": lease.version} if lease.version else {}),
        "spec": {
            "holderIdentity": lease.holder or None,
            "leaseDurationSeconds": int(lease.seconds),
            "leaseTransitions": lease.transitions,
            "acquireTime": lease.acquired or time,
            "renewTime": time,
        },
    }


_UNPRINTABLE = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")
"""What YAML does not take in a text as it is, or takes for the end of a line."""


def _yaml(manifest: Manifest) -> bytes:
    """Write JSON that is YAML too: without surrogate pairs, JSON's escapes for emoji (gloo's errors end in one)."""
    text = json.dumps(manifest, ensure_ascii=False)
    return _UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", text).encode(errors="replace")


def _translate(error: DynamicApiError, request: str) -> ClusterError:
    """Say what an answer of the API server means for whoever asked."""
    problem = f"{request}: {error.status} {_message(error)}"
    if error.status == 404:
        return NotFound(problem, remedy="create it, or ignore that it is gone")
    if error.status == 409:
        return Conflict(problem, remedy="read the object again and repeat")
    if error.status in _PERMANENT or _UNMERGEABLE in problem:
        return Refused(problem, remedy="correct the fields that the message names")
    if error.status == 403:
        return Forbidden(problem, remedy="grant the operator this right, or raise the quota that the message names")
    return Unreachable(problem, remedy="wait for the API server to recover")


def _message(error: DynamicApiError) -> str:
    try:
        return str(json.loads(error.body or "")["message"])
    except (TypeError, ValueError, KeyError):
        return str(error.reason)
