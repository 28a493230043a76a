"""A real Prometheus on this machine that scrapes the cluster as the chart's monitors say.

There is no Prometheus Operator in the test cluster, so this module does its part: it turns the chart's PodMonitor and
ServiceMonitor into Prometheus' own configuration. What the chart gets wrong there, the tests see.
"""

import json
import shutil
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from e2e.discovery import META, PORT_NAME, discovery
from e2e.kubectl import Manifest, wait_until

SCRAPE_SECONDS = 1
"""Between two scrapes: runs in the tests take seconds, not days."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One value of one series."""

    labels: dict[str, str]
    time: float
    value: float


@dataclass(frozen=True, slots=True)
class Prometheus:
    """Asks a running Prometheus.

    Attributes:
        address: ``http://127.0.0.1:<port>``.
    """

    address: str

    def at(self, query: str, seconds: float) -> tuple[Sample, ...]:
        """Evaluate a query at one time (seconds since the epoch)."""
        result = self._ask("query", query=query, time=str(seconds))
        return tuple(Sample(one["metric"], one["value"][0], float(one["value"][1])) for one in result)

    def over(self, query: str, *, since: float, until: float, step_seconds: float) -> tuple[Sample, ...]:
        """Evaluate a query again and again, as a panel does; every value of every series, in no order."""
        found = self._ask("query_range", query=query, start=str(since), end=str(until), step=str(step_seconds))
        return tuple(Sample(one["metric"], at, float(value)) for one in found for at, value in one["values"])

    def series(self, selector: str, *, since: float) -> tuple[Sample, ...]:
        """Every raw sample of the selected series from ``since`` until now, by time."""
        span = int(time.time() - since) + 1
        result = self._ask("query", query=f"{selector}[{span}s]", time=str(time.time()))
        samples = (Sample(one["metric"], at, float(value)) for one in result for at, value in one["values"])
        return tuple(sorted(samples, key=lambda sample: sample.time))

    def targets(self) -> tuple[Manifest, ...]:
        """What is scraped now."""
        with urllib.request.urlopen(f"{self.address}/api/v1/targets?state=active", timeout=10) as answer:  # noqa: S310
            return tuple(json.load(answer)["data"]["activeTargets"])

    def _ask(self, what: str, **parameters: str) -> list[Any]:
        url = f"{self.address}/api/v1/{what}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=30) as answer:  # noqa: S310 - our own http address
            result: list[Any] = json.load(answer)["data"]["result"]
        return result


@contextmanager
def prometheus(monitors: tuple[Manifest, ...], *, kubeconfig: str, directory: Path) -> Iterator[Prometheus]:
    """Run Prometheus on a free port until the caller is done."""
    binary = shutil.which("prometheus")
    if not binary:
        pytest.fail("no prometheus: install Debian's package of that name")
    configuration, log = directory / "prometheus.yaml", directory / "prometheus.log"
    client = Prometheus(f"http://127.0.0.1:{_free_port()}")
    arguments = [f"--config.file={configuration}", f"--storage.tsdb.path={directory / 'data'}"]
    listen = f"--web.listen-address={client.address.removeprefix('http://')}"
    with discovery(monitors, kubeconfig=kubeconfig) as discovered_at, log.open("w") as output:
        configuration.write_text(yaml.safe_dump(_configuration(monitors, discovered_at)))
        process = subprocess.Popen([binary, *arguments, listen], stderr=output)
        try:
            wait_until("Prometheus is ready", 60, lambda: _is_ready(client.address) or _has_ended(process, log))
            yield client
        finally:
            process.terminate()
            process.wait(timeout=30)


def _configuration(monitors: tuple[Manifest, ...], discovered_at: str) -> Manifest:
    return {
        "global": {"scrape_interval": f"{SCRAPE_SECONDS}s", "scrape_timeout": f"{SCRAPE_SECONDS}s"},
        "scrape_configs": [_scraping(monitor, f"{discovered_at}/{i}") for i, monitor in enumerate(monitors)],
    }


def _scraping(monitor: Manifest, url: str) -> Manifest:
    """Say in Prometheus' words what a monitor says of its one endpoint: which port, which labels."""
    (endpoint,) = monitor["spec"]["podMetricsEndpoints" if monitor["kind"] == "PodMonitor" else "endpoints"]
    return {
        "job_name": f"{monitor['kind']}/{monitor['metadata']['name']}",
        "honor_labels": endpoint.get("honorLabels", False),
        "http_sd_configs": [{"url": url, "refresh_interval": f"{SCRAPE_SECONDS}s"}],
        "relabel_configs": [
            {"source_labels": [PORT_NAME], "regex": endpoint["port"], "action": "keep"},
            {"source_labels": [f"{META}_namespace"], "target_label": "namespace"},
            {"source_labels": [f"{META}_pod_name"], "target_label": "pod"},
            *(_relabelling(rule) for rule in endpoint.get("relabelings", [])),
        ],
    }


def _relabelling(rule: Manifest) -> Manifest:
    names = {"sourceLabels": "source_labels", "targetLabel": "target_label"}
    return {names.get(key, key): value for key, value in rule.items()}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _has_ended(process: subprocess.Popen[bytes], log: Path) -> bool:
    """Fail with what it said last; there is nothing to wait for."""
    assert process.poll() is None, f"Prometheus has ended:\n{log.read_text()[-2000:]}"
    return False


def _is_ready(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/-/ready", timeout=2) as answer:  # noqa: S310 - our own http address
            return bool(answer.status == 200)
    except OSError:
        return False
