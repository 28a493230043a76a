"""The operator as a process of this machine, with the rights that the chart gives it, and how it is measured."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from prometheus_client.parser import text_string_to_metric_families

from charts.rendering import NAMESPACE, RELEASE, render
from e2e import audit
from e2e.kubectl import Kubectl

ACCOUNT = f"{RELEASE}-operator"
METRICS = "http://127.0.0.1:9465/metrics"
PROBE = "http://127.0.0.1:8080/healthz"
PAGE_KIB = os.sysconf("SC_PAGE_SIZE") // 1024
TICKS = os.sysconf("SC_CLK_TCK")
RIGHTS = ("CustomResourceDefinition", "ServiceAccount", "Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding")


def bring_rights(kubectl: Kubectl, watched: str) -> None:
    """Apply the chart's CRD and the operator's account with its rights in one namespace; no operator."""
    wanted = [one for one in render({"watchNamespaces": [watched]}) if one["kind"] in RIGHTS]
    kubectl.run("create", "namespace", NAMESPACE)
    for manifest in wanted:
        within = Kubectl(kubectl.environment, manifest["metadata"].get("namespace", NAMESPACE))
        within("apply", "--server-side", "--force-conflicts", "--filename", "-", stdin=json.dumps(manifest))
    kubectl("wait", "--for=condition=Established", "crd/galvatronjobs.galvatron.io", "--timeout=30s")


def kubeconfig_of_the_operator(environment: Mapping[str, str], folder: Path) -> Path:
    """Write a kubeconfig with a token of the operator's account."""
    system = Kubectl(environment, NAMESPACE)
    config = yaml.safe_load(Path(environment["KUBECONFIG"]).read_text())
    config["users"][0]["user"] = {"token": system("create", "token", ACCOUNT, "--duration=4h").strip()}
    path = folder / "kubeconfig"
    path.write_text(yaml.safe_dump(config))
    path.chmod(0o600)
    return path


@dataclass(frozen=True, slots=True)
class Sample:
    """What was seen of the operator's process at one moment.

    Attributes:
        time: seconds since the epoch.
        resident_mib: its memory.
        cpu_seconds: of all its threads since its start, without search processes.
    """

    time: float
    resident_mib: float
    cpu_seconds: float


@dataclass(frozen=True, slots=True)
class Operated:
    """A running operator.

    Attributes:
        process: of it.
        start_seconds: from its start until its probe said that it works.
    """

    process: "subprocess.Popen[bytes]"
    start_seconds: float

    def sample(self) -> Sample:
        """Look at the process."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(") ")[2].split()
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return Sample(time.time(), pages * PAGE_KIB / 1024, (int(fields[11]) + int(fields[12])) / TICKS)


@asynccontextmanager
async def operating(kubeconfig: Path, *, watched: str, log: Path) -> AsyncIterator[Operated]:
    """Run the operator until the context closes, as the chart's Deployment does."""
    environment = os.environ | {
        "KUBECONFIG": str(kubeconfig),
        "GALVATRON_RUNTIME_IMAGE": "localhost/played:1",
        "GALVATRON_WATCH_NAMESPACES": watched,
        "GALVATRON_LEADER_ELECTION": "true",
        "GALVATRON_LEASE_NAME": ACCOUNT,
        "POD_NAME": "benchmark",
        "POD_NAMESPACE": NAMESPACE,
    }
    command = [sys.executable, "-m", "galvatron_operator"]
    with log.open("ab") as output:
        started = time.monotonic()
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
    try:
        while await asyncio.to_thread(_get, PROBE) != "works":
            assert process.poll() is None, log.read_text()[-4000:]
            assert time.monotonic() - started < 60, "the operator does not work"
            await asyncio.sleep(0.02)
        yield Operated(process, time.monotonic() - started)
    finally:
        process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(process.wait, 60)


@dataclass(frozen=True, slots=True)
class Scrape:
    """The operator's metrics at one moment.

    Attributes:
        values: of every series, by name and sorted labels.
        seconds: that the operator took to tell them.
    """

    values: Mapping[tuple[str, tuple[tuple[str, str], ...]], float]
    seconds: float

    def total(self, name: str, **labels: str) -> float:
        """Sum of all series of a name that carry these labels."""
        wanted = set(labels.items())
        return sum(value for (of, own), value in self.values.items() if of == name and wanted <= set(own))

    def bounds(self, name: str) -> dict[float, float]:
        """How many observations of a histogram were at most as large as each bound."""
        found: dict[float, float] = {}
        for (of, own), value in self.values.items():
            if of == f"{name}_bucket":
                bound = float(dict(own)["le"])
                found[bound] = found.get(bound, 0.0) + value
        return found


def scrape() -> Scrape:
    """Read the operator's metrics as Prometheus does."""
    started = time.monotonic()
    text = _get(METRICS)
    seconds = time.monotonic() - started
    # What is said of every job is long, and reading it would take the time of the pods that this process plays.
    own = "\n".join(line for line in text.splitlines() if "galvatron_operator_" in line)
    families = text_string_to_metric_families(own)
    samples = (sample for family in families for sample in family.samples)
    return Scrape({(s.name, tuple(sorted(s.labels.items()))): s.value for s in samples}, seconds)


def quantile(before: Scrape, after: Scrape, name: str, share: float) -> float:
    """A quantile of what a histogram took in between two scrapes, linear within a bucket as Prometheus has it.

    In the last bucket, which has no end, it is the bucket's lower bound.
    """
    then = before.bounds(name)
    counts = sorted((bound, count - then.get(bound, 0.0)) for bound, count in after.bounds(name).items())
    wanted = share * counts[-1][1]
    low, below = 0.0, 0.0
    for bound, count in counts:
        if count >= wanted and count > below:
            return low if bound == float("inf") else low + (bound - low) * (wanted - below) / (count - below)
        low, below = bound, count
    return low


def requests(*, since: float, until: float) -> Counter[str]:
    """How many requests of each verb the API server got from the operator."""
    return Counter(one.verb for one in audit.requests(since=since) if one.time < until)


def _get(address: str) -> str:
    try:
        with urllib.request.urlopen(address, timeout=30) as answer:  # noqa: S310 -- of this machine
            text: Any = answer.read()
    except OSError:
        return ""
    return str(text.decode())
