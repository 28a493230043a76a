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
from galvatron_operator.decide import Decision, Kind, SearchOutcome, is_ours
from galvatron_operator.manifests.metadata import Manifest
from galvatron_operator.metrics import OperatorMetrics
from galvatron_operator.planning import SearchProcesses
from galvatron_operator.reconcile import Cluster, ClusterError, JobKey, NotFound, Ports, Workers, reconcile
from galvatron_operator.settings import Settings
from galvatron_operator.workqueue import TryAgain, WorkQueue

log = logging.getLogger(__name__)

RESYNC_SECONDS = 300.0
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
        bodies: the newest GalvatronJobs, for metrics; decisions read them afresh.
        has_failed: whether work has ended although nobody asked for it.
    """

    settings: Settings
    cluster: Cluster
    workers: Workers
    metrics: OperatorMetrics
    bodies: dict[JobKey, Manifest] = field(default_factory=dict)
    has_failed: bool = False
    _queue: WorkQueue[JobKey] | None = None

    def remember(self, event_type: str | None, body: Manifest) -> None:
        """Refresh the cache with an event on a GalvatronJob, and look at the job."""
        key = JobKey(body["metadata"]["namespace"], body["metadata"]["name"])
        if event_type == "DELETED" or not is_ours(body):
            self.bodies.pop(key, None)
        else:
            self.metrics.job_changed(self.bodies.get(key), body)
            self.bodies[key] = body
        self.look_at(key)

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
        """
        searches = SearchProcesses(when_done=self._search_done)
        ports = Ports(self.cluster, self.workers, searches)
        self._queue = WorkQueue(lambda key: self._work(key, ports))

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

    async def check_cluster(self) -> None:
        """Refuse to start where jobs cannot exist.

        Raises:
            ClusterError: when the API server is away, or the CRD is not installed.
        """
        await self._list_jobs()

    async def _work(self, key: JobKey, ports: Ports) -> float | None:
        """Do one round; whatever goes wrong in it is logged and tried again later."""
        if self._queue is not None:
            self.metrics.queue_depth.set(self._queue.depth)
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
        return decision.requeue_after_seconds

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
            try:
                jobs = await self._list_jobs()
            except ClusterError as error:
                log.warning("resync failed", extra={"error": str(error)})
                continue
            for body in jobs:
                self.remember(None, body)

    async def _list_jobs(self) -> list[Manifest]:
        namespaces = self.settings.watch_namespaces or (None,)
        lists = [await self.cluster.list(Kind.GALVATRON_JOB, namespace=name, labels={}) for name in namespaces]
        return [body for found in lists for body in found]


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
    settings.peering.standalone = True
    # Neither CRDs nor namespaces are watched: that would take rights on the whole cluster.
    settings.scanning.disabled = True
    for group, version, plural in _WATCHED:
        settings.watching.label_selectors[group, version, plural] = names.managed_selector()


_WATCHED = (("batch", "v1", "jobs"), ("apps", "v1", "statefulsets"), ("", "v1", "pods"))
"""Kinds whose changes mean something for the job that owns them."""


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
            await operator.check_cluster()
        except NotFound as error:
            raise kopf.PermanentError(f"GalvatronJobs are not known here: {error}; install the CRD first") from error
        await work.enter_async_context(operator.running(when_ended=when_ended))

    @kopf.on.cleanup(registry=registry)
    async def stop(**_: Any) -> None:
        await work.aclose()

    # The same credentials as ``kube.connect`` finds.
    kopf.on.login(registry=registry)(kopf.login_via_client)

    @kopf.on.event(names.API_GROUP, names.PLURAL, registry=registry)
    async def job_changed(type: str | None, body: kopf.Body, **_: Any) -> None:  # noqa: A002 -- kopf's name
        operator.remember(type, dict(body))

    async def child_changed(body: kopf.Body, **_: Any) -> None:
        labels, namespace = body.metadata.labels, body.metadata.namespace
        job_name = labels.get(names.LABEL_JOB_NAME)
        if job_name is not None and namespace is not None:
            operator.look_at(JobKey(namespace, job_name))

    for group, version, plural in _WATCHED:
        kopf.on.event(group, version, plural, registry=registry)(child_changed)
