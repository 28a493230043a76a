"""The shell around ``decide``: look at everything, decide, carry it out. Its two sides are ports, with fakes in tests.

Nothing is remembered between two rounds except how searches ended, and those can be repeated.
"""

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple, Protocol

from galvatron_operator import names
from galvatron_operator.decide import (
    FORBIDDEN,
    OWNED_KINDS,
    POD_GROUPS,
    SCHEDULER_MISSING,
    Decision,
    Kind,
    ObjectRef,
    Observed,
    SearchOrder,
    SearchOutcome,
    decide,
    event_manifest,
    fixed_plan_to_look_up,
    hinder,
    is_ours,
    kind_of,
    pod_groups_to_look_up,
    profiles_to_look_up,
    reference,
    reject,
)
from galvatron_operator.manifests.gang import installation_of
from galvatron_operator.manifests.metadata import Manifest
from galvatron_operator.obstacles import unexplained
from galvatron_operator.settings import Settings
from galvatron_planner.errors import GalvatronError
from galvatron_planner.worker import WorkerState, WorkerStatus

log = logging.getLogger(__name__)


class ClusterError(GalvatronError):
    """A request to the cluster that was not fulfilled."""


class Unreachable(ClusterError):
    """Temporary: the API server is away, overloaded, or does not allow it yet."""


class Forbidden(ClusterError):
    """Temporary: a right is missing, or a quota is used up; both can be granted while a job waits."""


class NotInstalled(ClusterError):
    """Temporary: the cluster does not have a kind of another project that a job asks for; it can still be installed."""


class Conflict(ClusterError):
    """Temporary: the object has changed since it was read."""


class NotFound(ClusterError):
    """The object, its kind or its namespace does not exist."""


class Refused(ClusterError):
    """Permanent: the request itself is wrong."""


class NotLeading(ClusterError):
    """The request was not sent, because another operator may be acting by now."""


class JobKey(NamedTuple):
    """Which job: what the work queue holds."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


class Cluster(Protocol):
    """A Kubernetes API server, as far as it is used; every method raises :class:`ClusterError`."""

    async def get(self, ref: ObjectRef) -> Manifest | None:
        """Read one object; None when there is none."""

    async def list(self, kind: Kind, *, namespace: str | None, labels: Mapping[str, str]) -> tuple[Manifest, ...]:
        """Read every object of a kind that carries ``labels``, in one namespace or in all."""

    async def events(self, ref: ObjectRef) -> tuple[Manifest, ...]:
        """Read what has been said about one object, which has a uid."""

    async def apply(self, manifest: Manifest) -> Manifest:
        """Create or update an object, taking over the fields that it names, and return what came of it."""

    async def apply_status(self, manifest: Manifest) -> Manifest:
        """Write the status of an object that exists; a resource version in it must be the newest."""

    async def delete(self, ref: ObjectRef, *, grace_seconds: int | None = None) -> None:
        """Delete an object and, in the background, what it owns; it may be gone, or another have its name.

        Args:
            ref: the object.
            grace_seconds: of a pod, instead of its own; with 0 it goes although no kubelet has ended it.
        """


class Workers(Protocol):
    """The supervisors in pods."""

    async def status(self, address: str, port: int) -> WorkerStatus | None:
        """Ask how a supervised command is doing; None when nobody answers."""

    async def result(self, address: str, port: int) -> str | None:
        """Ask for the document that a command has made; None when there is none yet."""


class Searches(Protocol):
    """Searches for plans, which take seconds to minutes and go on beside everything else."""

    def start(self, key: JobKey, order: SearchOrder) -> None:
        """Search for a job, unless this very search is going on or has ended; the job's former search is dropped."""

    def outcome(self, key: JobKey) -> SearchOutcome | None:
        """Tell how the job's search ended; None while it goes on."""

    def forget(self, key: JobKey) -> None:
        """Drop the job's search and its outcome."""


@dataclass(frozen=True, slots=True)
class Ports:
    """Everything outside that a round touches."""

    cluster: Cluster
    workers: Workers
    searches: Searches


async def reconcile(key: JobKey, ports: Ports, *, settings: Settings, now: datetime) -> Decision:
    """Bring one job forward by one round.

    Raises:
        ClusterError: when the round has to be repeated.
    """
    body = await ports.cluster.get(ObjectRef(Kind.GALVATRON_JOB, key.namespace, key.name))
    if body is None:
        ports.searches.forget(key)
        return Decision()
    if not is_ours(body):
        return Decision()
    seen = await observe(key, body, ports, settings=settings)
    decision = decide(body, seen, now=now, settings=settings)
    try:
        await carry_out(key, body, seen, decision, ports, now=now)
    except Refused as error:
        # Nothing of ours is refused for what it is: what users wrote has found its way into it.
        log.warning("the API server refuses an object", extra={"job": str(key), "error": str(error)})
        rejection = reject(body, seen, error, now=now)
        await _write_status(ports.cluster, body, rejection)
        return rejection
    except Forbidden as error:
        await _say_hindered(key, ports.cluster, FORBIDDEN, error, now=now)
        raise
    except NotInstalled as error:
        await _say_hindered(key, ports.cluster, SCHEDULER_MISSING, error, now=now)
        raise
    return decision


async def observe(key: JobKey, body: Manifest, ports: Ports, *, settings: Settings) -> Observed:
    """Look at everything that exists for a job."""
    labels = {names.LABEL_JOB_UID: body["metadata"]["uid"]}
    lists = await asyncio.gather(
        *(ports.cluster.list(kind, namespace=key.namespace, labels=labels) for kind in OWNED_KINDS)
    )
    children = tuple(child for found in lists for child in found)
    groups = await asyncio.gather(*(ports.cluster.get(ref) for ref in pod_groups_to_look_up(body, children)))
    # One of somebody else's is none of ours; that its name is taken is told when ours is made.
    children += tuple(group for group in groups if group is not None and _has_label(group, labels))
    fixed = fixed_plan_to_look_up(body, children)
    fixed_plan = await ports.cluster.get(fixed) if fixed is not None else None
    places = profiles_to_look_up(body, children, settings=settings, fixed_plan=fixed_plan)
    cached = await _cached_profiles(key, places, ports.cluster)
    pods = [child for child in children if child["kind"] == Kind.POD and _has_supervisor(child)]
    answers = await asyncio.gather(*(ports.workers.status(*_address(pod)) for pod in pods))
    reports = {pod["metadata"]["name"]: answer for pod, answer in zip(pods, answers, strict=True) if answer is not None}
    return Observed(
        children=children,
        cached_profiles=cached,
        jobs=await ports.cluster.list(Kind.GALVATRON_JOB, namespace=key.namespace, labels={}) if cached else (),
        reports=reports,
        result=await _result(pods, reports, ports.workers),
        search=ports.searches.outcome(key),
        fixed_plan=fixed_plan,
        events=await _events(key, children, ports.cluster),
    )


async def carry_out(
    key: JobKey, body: Manifest, seen: Observed, decision: Decision, ports: Ports, *, now: datetime
) -> None:
    """Do what was decided, in an order in which every beginning of it is a state to go on from."""
    if decision.status is not None:
        await _write_status(ports.cluster, body, decision)
    for manifest in decision.share:
        await _share(key, manifest, body, ports.cluster)
    existing = {(ref.kind, ref.name): ref for ref in map(reference, seen.children)}
    wanted = [(m, existing.get((kind_of(m), m["metadata"]["name"]))) for m in decision.apply]
    await asyncio.gather(*(_check_name_is_free(m, body, ports.cluster) for m, found in wanted if found is None))
    for manifest, found in wanted:
        if found is not None:
            await _change(manifest, found, ports.cluster)
        else:
            await _make(manifest, ports.cluster)
    for ref in decision.delete:
        await ports.cluster.delete(ref)
    for ref in decision.force_delete:
        log.warning("a pod is deleted that no kubelet has ended", extra={"job": str(key), "pod": ref.name})
        await ports.cluster.delete(ref, grace_seconds=0)
    if decision.search is not None:
        ports.searches.start(key, decision.search)
    for event in decision.events:
        log.info(event.reason, extra={"job": str(key), "detail": event.message})
    await asyncio.gather(*(ports.cluster.apply(event_manifest(event, body, now=now)) for event in decision.events))


async def _write_status(cluster: Cluster, body: Manifest, decision: Decision) -> None:
    if decision.status is None:
        return
    metadata = body["metadata"]
    status = {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "metadata": {key: metadata[key] for key in ("name", "namespace", "uid", "resourceVersion")},
        "status": decision.status.dump(),
    }
    try:
        await cluster.apply_status(status)
    except Refused as error:
        # No user's fault: while releases change, the CRD may be older than the operator, and jobs must outlive that.
        raise Unreachable(error.problem, remedy="bring the CRD to the operator's version (helm upgrade)") from error


async def _change(manifest: Manifest, found: ObjectRef, cluster: Cluster) -> None:
    """Change an object of ours, or take it away where it cannot become what is wanted: the next round makes it anew.

    Operators of different versions may differ in fields that the API server does not let change. An object that is
    wrong in itself is refused when it is made, so this never hides one.

    Raises:
        Conflict: when the object has been taken away.
    """
    try:
        await cluster.apply(manifest)
    except Refused as error:
        log.warning("an object cannot be changed and is made anew", extra={"object": str(found), "error": str(error)})
        await cluster.delete(found)
        remedy = "look again when it is gone"
        raise Conflict(f"{found.kind} {found.namespace}/{found.name} is made anew: {error}", remedy=remedy) from error


async def _make(manifest: Manifest, cluster: Cluster) -> None:
    """Make an object.

    Raises:
        NotInstalled: when the cluster does not know its kind.
    """
    try:
        await cluster.apply(manifest)
    except NotFound as error:
        kind = kind_of(manifest)
        if kind not in POD_GROUPS:
            raise
        installation = installation_of(manifest)
        raise NotInstalled(
            f"this cluster has no {manifest['kind']} of {manifest['apiVersion']}, which spec.scheduling.gang.provider"
            " asks for",
            remedy=f"install {installation}; or create the job with another provider",
        ) from error


def _has_label(manifest: Manifest, labels: Mapping[str, str]) -> bool:
    return labels.items() <= (manifest["metadata"].get("labels") or {}).items()


async def _say_hindered(key: JobKey, cluster: Cluster, reason: str, error: ClusterError, *, now: datetime) -> None:
    """Put into the status what keeps an object from being written, on top of the status that this round has written."""
    body = await cluster.get(ObjectRef(Kind.GALVATRON_JOB, key.namespace, key.name))
    if body is not None:
        await _write_status(cluster, body, hinder(body, reason, error, now=now))


async def _cached_profiles(key: JobKey, places: tuple[ObjectRef, ...], cluster: Cluster) -> tuple[Manifest, ...]:
    """Read the profiles that there are; those of other namespaces only where that is allowed."""
    found = []
    for place in places:
        try:
            found.append(await cluster.get(place))
        except Forbidden as error:
            if place.namespace == key.namespace:
                raise
            log.warning("profiles that namespaces share cannot be read", extra={"job": str(key), "error": str(error)})
    return tuple(profile for profile in found if profile is not None)


async def _share(key: JobKey, manifest: Manifest, body: Manifest, cluster: Cluster) -> None:
    """Give a profile to other namespaces, if that is possible."""
    try:
        await _check_name_is_free(manifest, body, cluster)
        await cluster.apply(manifest)
    except (Forbidden, NotFound, Refused) as error:
        log.warning("a profile cannot be shared", extra={"job": str(key), "error": str(error)})


async def _events(key: JobKey, children: tuple[Manifest, ...], cluster: Cluster) -> tuple[Manifest, ...]:
    """Ask why pods are missing or wait; without the answer a job goes on all the same."""
    refs = [reference(child) for child in unexplained(children)]
    try:
        found = await asyncio.gather(*(cluster.events(ref) for ref in refs))
    except ClusterError as error:
        log.warning("events cannot be read", extra={"job": str(key), "error": str(error)})
        return ()
    return tuple(event for events in found for event in events)


async def _check_name_is_free(manifest: Manifest, body: Manifest, cluster: Cluster) -> None:
    """Refuse to take over what somebody else has made under a name of ours.

    Raises:
        Refused: when it belongs to somebody else.
        Conflict: when it belongs to a former job of this name, and is about to go.
    """
    metadata = manifest["metadata"]
    kind = kind_of(manifest)
    existing = await cluster.get(ObjectRef(kind, metadata["namespace"], metadata["name"]))
    if existing is None:
        return
    where = f"{kind} {metadata['namespace']}/{metadata['name']}"
    owners = [owner for owner in existing["metadata"].get("ownerReferences", ()) if owner.get("controller")]
    if not metadata.get("ownerReferences"):
        # Shared between jobs, such as a cached profile.
        ours = existing["metadata"].get("labels", {}).get(names.LABEL_MANAGED_BY) == names.MANAGER and not owners
    else:
        ours = any(owner.get("uid") == body["metadata"]["uid"] for owner in owners)
    if ours:
        return
    if any(owner.get("kind") == names.KIND and owner.get("name") == body["metadata"]["name"] for owner in owners):
        raise Conflict(f"{where} still belongs to a former job of this name", remedy="wait until it is gone")
    raise Refused(f"{where} exists and is not ours", remedy="delete or rename it, or give the job another name")


def _has_supervisor(pod: Manifest) -> bool:
    """Tell whether somebody may answer in a pod."""
    is_placeholder = pod["metadata"].get("labels", {}).get(names.LABEL_COMPONENT) == names.COMPONENT_PLACEHOLDER
    return bool(pod.get("status", {}).get("podIP")) and not is_placeholder


async def _result(pods: list[Manifest], reports: Mapping[str, WorkerStatus], workers: Workers) -> str | None:
    """Ask the profiler of node 0 for its document, once it has one."""
    for pod in pods:
        report = reports.get(pod["metadata"]["name"])
        profiles = pod["metadata"].get("labels", {}).get(names.LABEL_COMPONENT) == names.COMPONENT_PROFILER
        if profiles and report is not None and report.node_rank == 0 and report.state is WorkerState.SUCCEEDED:
            return await workers.result(*_address(pod))
    return None


def _address(pod: Manifest) -> tuple[str, int]:
    """Where a pod's supervisor answers, from the pod itself: jobs choose the port."""
    ports: list[Mapping[str, Any]] = pod["spec"]["containers"][0].get("ports", [])
    port = next((port["containerPort"] for port in ports if port.get("name") == names.METRICS_PORT_NAME), 0)
    return pod["status"]["podIP"], port
