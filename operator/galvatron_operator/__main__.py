"""The operator's process: settings from the environment, logs, metrics, probes, the election, then kopf until SIGTERM.

A replica that stands by serves metrics and probes, and does nothing else.
"""

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import kopf
from prometheus_client import CollectorRegistry, start_http_server

from galvatron_operator import kube, probes
from galvatron_operator.election import Election
from galvatron_operator.handlers import Operator, configure, register
from galvatron_operator.metrics import JobCollector, OperatorMetrics
from galvatron_operator.settings import Settings
from galvatron_operator.workers import HttpWorkers
from galvatron_planner.errors import InvalidInput

METRICS_PORT = 9465
PROBES_PORT = 8080
LOOK_SECONDS = 0.1
"""Between two looks of a replica that stands by."""

log = logging.getLogger(__name__)


class JsonLines(logging.Formatter):
    """One JSON object a line: the phrase, and the fields that came with it."""

    _USUAL = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "settings", "k8s_skip"}

    def format(self, record: logging.LogRecord) -> str:
        """Write one record."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {name: value for name, value in vars(record).items() if name not in self._USUAL}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


async def run(settings: Settings, election: Election | None) -> int:
    """Run until SIGTERM or SIGINT, and return the exit code."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        # kopf puts its own in place of these when it starts.
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    # Every request waits in a thread; by itself a pod of one core gets five.
    executor = ThreadPoolExecutor(kube.REQUESTS_AT_ONCE, thread_name_prefix="requests")
    asyncio.get_running_loop().set_default_executor(executor)
    metrics_registry = CollectorRegistry()
    metrics = OperatorMetrics(metrics_registry)
    metrics.leader.set_function(lambda: float(election is None or election.leads()))
    cluster = kube.KubernetesCluster(kube.connect(), before_write=election.check if election else lambda: None)
    operator = Operator(settings, cluster, HttpWorkers(), metrics)
    metrics_registry.register(JobCollector(lambda: operator.cache.jobs))
    server, thread = start_http_server(METRICS_PORT, registry=metrics_registry)
    try:
        async with probes.serving(lambda: check_health(operator, election), port=PROBES_PORT):
            if await is_chosen(election, stop):
                await operate(operator, stop)
    finally:
        server.shutdown()
        thread.join()
    return 1 if operator.has_failed else 0


async def is_chosen(election: Election | None, stop: asyncio.Event) -> bool:
    """Stand by until this process leads, or shall stop first."""
    while election is not None and not election.leads() and not stop.is_set():
        await asyncio.sleep(LOOK_SECONDS)
    return not stop.is_set()


async def operate(operator: Operator, stop: asyncio.Event) -> None:
    """Work on jobs until the end."""
    registry, kopf_settings = kopf.OperatorRegistry(), kopf.OperatorSettings()
    configure(kopf_settings)
    register(registry, operator, when_ended=stop.set)
    namespaces = operator.settings.watch_namespaces
    await kopf.operator(
        registry=registry,
        settings=kopf_settings,
        clusterwide=not namespaces,
        namespaces=namespaces,
        stop_flag=stop,
    )


def check_health(operator: Operator, election: Election | None) -> str:
    """Say what this process does.

    Raises:
        RuntimeError: when it is not well.
    """
    if election is not None:
        election.check_heartbeat()
        if not election.leads():
            return "stands by"
    operator.check_heartbeat()
    return "works"


@contextlib.contextmanager
def taking_part(settings: Settings) -> Iterator[Election | None]:
    """Take part in the election as long as the context is open; None where there is no election."""
    candidacy = settings.candidacy
    if candidacy is None:
        yield None
        return
    leases = kube.KubernetesLease(kube.connect(), namespace=candidacy.namespace, name=candidacy.lease_name)
    # A container that starts again in the same pod is another candidate.
    election = Election(leases, f"{candidacy.pod_name}_{uuid4().hex[:8]}", when_lost=end_at_once)
    election.start()
    try:
        yield election
    finally:
        election.leave()


def end_at_once() -> None:
    """End the process without any last work: another operator may be acting by now."""
    log.error("the lease is lost, this operator ends at once")
    os._exit(1)


def main() -> int:
    """Start the operator and return its exit code."""
    try:
        settings = Settings.from_environment(os.environ)
    except InvalidInput as error:
        print(error, file=sys.stderr)  # noqa: T201 -- there is no log yet
        return 2
    kube.take_deep_objects()
    output = logging.StreamHandler()
    output.setFormatter(JsonLines())
    logging.basicConfig(level=settings.log_level, handlers=[output])
    # They tell of every event and of every probe.
    for chatty in ("kopf.objects", "aiohttp.access"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    with taking_part(settings) as election:
        # When it returns, all threads with requests have ended, and the Lease may go to the next.
        return asyncio.run(run(settings, election))


if __name__ == "__main__":
    sys.exit(main())
