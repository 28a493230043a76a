"""The operator's process: settings from the environment, logs, metrics, then kopf until SIGTERM.

One replica at a time: there is no election (the Deployment's strategy is ``Recreate``).
"""

import asyncio
import json
import logging
import os
import sys
from datetime import UTC, datetime
from typing import Any

import kopf
from prometheus_client import CollectorRegistry, start_http_server

from galvatron_operator import kube
from galvatron_operator.handlers import Operator, configure, register
from galvatron_operator.metrics import JobCollector, OperatorMetrics
from galvatron_operator.settings import Settings
from galvatron_operator.workers import HttpWorkers
from galvatron_planner.errors import InvalidInput

METRICS_PORT = 9465
LIVENESS_ENDPOINT = "http://0.0.0.0:8080/healthz"

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


async def run(settings: Settings) -> int:
    """Run until SIGTERM or SIGINT, and return the exit code."""
    metrics_registry = CollectorRegistry()
    operator = Operator(settings, kube.connect(), HttpWorkers(), OperatorMetrics(metrics_registry))
    metrics_registry.register(JobCollector(lambda: tuple(operator.bodies.values())))
    server, thread = start_http_server(METRICS_PORT, registry=metrics_registry)
    registry, kopf_settings, stop = kopf.OperatorRegistry(), kopf.OperatorSettings(), asyncio.Event()
    configure(kopf_settings)
    register(registry, operator, when_ended=stop.set)
    try:
        await kopf.operator(
            registry=registry,
            settings=kopf_settings,
            clusterwide=not settings.watch_namespaces,
            namespaces=settings.watch_namespaces,
            liveness_endpoint=LIVENESS_ENDPOINT,
            stop_flag=stop,
        )
    finally:
        server.shutdown()
        thread.join()
    return 1 if operator.has_failed else 0


def main() -> int:
    """Start the operator and return its exit code."""
    try:
        settings = Settings.from_environment(os.environ)
    except InvalidInput as error:
        print(error, file=sys.stderr)  # noqa: T201 -- there is no log yet
        return 2
    output = logging.StreamHandler()
    output.setFormatter(JsonLines())
    logging.basicConfig(level=settings.log_level, handlers=[output])
    # They tell of every event and of every probe.
    for chatty in ("kopf.objects", "aiohttp.access"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    return asyncio.run(run(settings))


if __name__ == "__main__":
    sys.exit(main())
