"""kopf wiring: what happens in the cluster puts a job's key into the queue. Nothing else happens in a handler.

Only low-level event handlers: they leave neither finalizers nor annotations behind, so an operator that is uninstalled
blocks nothing. What they miss, a slow full resync finds.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import kopf

from galvatron_operator import names
from galvatron_operator.cache import CachedCluster
from galvatron_operator.decide import Decision, SearchOutcome
from galvatron_operator.manifests.metadata import Manifest
from galvatron_operator.metrics import OperatorMetrics
from galvatron_operator.planning import SearchProcesses
from galvatron_operator.reconcile import Cluster, ClusterError, JobKey, NotFound, Ports, Workers, reconcile
from galvatron_operator.settings import Settings
from galvatron_operator.workqueue import TryAgain, WorkQueue

log = logging.getLogger(__name__)

RESYNC_SECONDS = 300.0
START_AGAIN_SECONDS = 2.0
"""Between two attempts to read the cluster at the start."""
LONGEST_ROUND_SECONDS = 300.0
"""A round that takes longer hangs: every request in it has a timeout of its own."""


@dataclass(slots=True)
class Operator:
    """One running operator.

    A class because queue, searches and cache live as long as the process, and handlers, probe and metrics share them.

    Attributes:
        settings: of the installation.
        cluster: the API server.
        workers: the supervisors in pods.
        metrics: what is counted.
        cache: what the API server holds of jobs, kept up to date by watches; rounds read it.
        has_failed: whether work has ended although nobody asked for it.
    """

    settings: Settings
    cluster: Cluster
    workers: Workers
    metrics: OperatorMetrics
    cache: CachedCluster = field(init=False)
    has_failed: bool = False
    _progress: dict[JobKey, str] = field(default_factory=dict)
    _counted: dict[tuple[str, str], Manifest] = field(default_factory=dict)
    _queue: WorkQueue[JobKey] | None = None

    def __post_init__(self) -> None:
        self.cache = CachedCluster(self.cluster, namespaces=self.settings.watch_namespaces)

    def remember(self, event_type: str | None, manifest: Manifest) -> None:
        """Take in an event on a GalvatronJob or on what belongs to one, and look at the job."""
        if event_type == "DELETED":
            self.cache.drop(manifest)
        else:
            self.cache.put(manifest)
        self._job_seen(_key(manifest), look=not self._is_own_progress(manifest))

    def look_at(self, key: JobKey) -> None:
        """Have a job reconciled soon."""
        if self._queue is not None:
            self._queue.add(key)

    def check_heartbeat(self) -> None:
        """Tell whether work goes on.

        Raises:
            RuntimeError: when the queue has ended or hangs.
        """
        stuck_seconds = self._queue.stuck_seconds() if self._queue is not None else None
        if stuck_seconds is None:
            raise RuntimeError("the work queue does not run")
        if stuck_seconds > LONGEST_ROUND_SECONDS:
            raise RuntimeError(f"a round has been going on for {stuck_seconds:.0f} s")

    @contextlib.asynccontextmanager
    async def running(self, *, when_ended: Callable[[], None]) -> AsyncIterator[None]:
        """Work on jobs as long as the context is open.

        Args:
            when_ended: is called when work ends before that, which it should not.

        Raises:
            ClusterError: when the API server is away, or the CRD is not installed.
        """
        searches = SearchProcesses(when_done=self._search_done)
        ports = Ports(self.cache, self.workers, searches)
        await self.cache.fill()
        queue = WorkQueue[JobKey](lambda key: self._work(key, ports), waited=self.metrics.queue_wait_seconds.observe)
        self.metrics.queue_depth.set_function(lambda: float(queue.depth))
        self._queue = queue

        def report(task: asyncio.Task[None]) -> None:
            if not task.cancelled():
                log.error("work has ended", exc_info=task.exception())
                self.has_failed = True
                when_ended()

        tasks = [asyncio.create_task(self._queue.run()), asyncio.create_task(self._resync())]
        for task in tasks:
            task.add_done_callback(report)
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await searches.stop()

    async def _work(self, key: JobKey, ports: Ports) -> float | None:
        """Do one round; whatever goes wrong in it is logged and tried again later."""
        try:
            with self.metrics.round_seconds.time():
                decision = await reconcile(key, ports, settings=self.settings, now=datetime.now(UTC))
        except ClusterError as error:
            self.metrics.rounds.labels(type(error).__name__).inc()
            raise TryAgain(str(error)) from error
        except Exception as error:
            log.exception("a round failed", extra={"job": str(key)})
            self.metrics.rounds.labels("Bug").inc()
            raise TryAgain(repr(error)) from error
        self.metrics.rounds.labels("Success").inc()
        self._count_profiles(decision)
        self._note_progress(key, decision)
        return decision.requeue_after_seconds

    def _note_progress(self, key: JobKey, decision: Decision) -> None:
        """Remember the version by which a round has written how far a job is, and nothing else."""
        acted = decision.apply or decision.delete or decision.force_delete or decision.search or decision.events
        job = self.cache.job(*key)
        if decision.status is not None and not acted and decision.requeue_after_seconds and job is not None:
            self._progress[key] = job["metadata"]["resourceVersion"]

    def _is_own_progress(self, manifest: Manifest) -> bool:
        """Tell whether an event is the echo of such a version: most events of a large fleet are."""
        if manifest["kind"] != names.KIND:
            return False
        version = self._progress.pop(JobKey(*_key(manifest)), None)
        return version is not None and version == str(manifest["metadata"]["resourceVersion"])

    def _count_profiles(self, decision: Decision) -> None:
        for event in decision.events:
            if event.reason in ("CacheHit", "Profiled"):
                self.metrics.profile_requests.labels("hit" if event.reason == "CacheHit" else "miss").inc()

    def _search_done(self, key: JobKey, outcome: SearchOutcome) -> None:
        result = "PlanFound" if outcome.problem is None else outcome.problem.value
        self.metrics.search_seconds.labels(outcome.algorithm, result).observe(outcome.seconds)
        self.look_at(key)

    async def _resync(self) -> None:
        while True:
            await asyncio.sleep(RESYNC_SECONDS)
            before = {_key(body) for body in self.cache.jobs}
            try:
                await self.cache.fill()
            except ClusterError as error:
                log.warning("resync failed", extra={"error": str(error)})
                continue
            for key in before | {_key(body) for body in self.cache.jobs}:
                self._job_seen(key)

    def _job_seen(self, key: tuple[str, str], *, look: bool = True) -> None:
        """Count what has changed of a job since it was last counted, and look at it."""
        before, body = self._counted.pop(key, None), self.cache.job(*key)
        if body is not None:
            if body is not before:
                self.metrics.job_changed(before, body)
            self._counted[key] = body
        if look:
            self.look_at(JobKey(*key))


def _key(manifest: Manifest) -> tuple[str, str]:
    """Namespace and name of the job that an object is, or belongs to."""
    metadata = manifest["metadata"]
    name = metadata["name"] if manifest["kind"] == names.KIND else metadata["labels"].get(names.LABEL_JOB_NAME, "")
    return metadata["namespace"], name


def configure(settings: kopf.OperatorSettings) -> None:
    """Set kopf up as a watcher that writes nothing.

    Source of the numbers: design notes on silent watch stalls (kopf issues 585, 614, 957, 1120).
    """
    settings.watching.server_timeout = 600
    settings.watching.connect_timeout = 10
    settings.watching.chunk_size = 500
    settings.networking.request_timeout = 60
    settings.networking.connect_timeout = 10
    settings.posting.enabled = False
    # What handlers of changes would need, at the price of two copies of every object that changes.
    settings.persistence.diffbase_storage = NoDifferences()
    settings.persistence.progress_storage = kopf.StatusProgressStorage()
    settings.peering.standalone = True
    # Neither CRDs nor namespaces are watched: that would take rights on the whole cluster.
    settings.scanning.disabled = True
    for group, version, plural in _WATCHED:
        settings.watching.label_selectors[group, version, plural] = names.owned_selector()


class NoDifferences(kopf.DiffBaseStorage):
    """Keeps no former state of objects, and compares nothing: there are handlers of events only."""

    def build(self, **_: Any) -> kopf.BodyEssence:
        """Say that an object is like any other."""
        return kopf.BodyEssence({})

    def fetch(self, **_: Any) -> kopf.BodyEssence | None:
        """Find no former state."""
        return None

    def store(self, **_: Any) -> None:
        """Write nothing."""


_WATCHED = (
    ("batch", "v1", "jobs"),
    ("apps", "v1", "statefulsets"),
    ("", "v1", "pods"),
    ("", "v1", "services"),
    ("", "v1", "configmaps"),
)
"""Kinds whose objects belong to jobs: group, version and plural of each."""


def register(registry: kopf.OperatorRegistry, operator: Operator, *, when_ended: Callable[[], None]) -> None:
    """Connect the operator with kopf.

    Args:
        registry: where handlers are put.
        operator: what they call.
        when_ended: is called when work ends although nobody asked for it.
    """
    work = contextlib.AsyncExitStack()

    @kopf.on.startup(registry=registry)
    async def start(**_: Any) -> None:
        try:
            await work.enter_async_context(operator.running(when_ended=when_ended))
        except NotFound as error:
            raise kopf.PermanentError(f"GalvatronJobs are not known here: {error}; install the CRD first") from error
        except ClusterError as error:
            # For instance 429 while storage for a new CRD is made ready.
            raise kopf.TemporaryError(str(error), delay=START_AGAIN_SECONDS) from error

    @kopf.on.cleanup(registry=registry)
    async def stop(**_: Any) -> None:
        await work.aclose()

    # The same credentials as ``kube.connect`` finds.
    kopf.on.login(registry=registry)(kopf.login_via_client)

    async def changed(type: str | None, body: kopf.Body, **_: Any) -> None:  # noqa: A002 -- kopf's name
        operator.remember(type, dict(body))

    for group, version, plural in (*_WATCHED, (*names.API_VERSION.split("/"), names.PLURAL)):
        kopf.on.event(group, version, plural, registry=registry)(changed)
