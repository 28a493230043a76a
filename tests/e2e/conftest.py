"""The fixtures that all tests of this folder share: one cluster, one release, one training run that several look at."""

import tempfile
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path

import pytest
import yaml

from charts.rendering import MONITORING, of_kind, render
from e2e import diagnosis
from e2e.faulty_jobs import FaultyJobs, Space
from e2e.following import MeasuredRun, follow, is_complete
from e2e.installation import OPERATOR_NAMESPACE, RELEASE, cluster, fresh_namespace, release, require_cluster
from e2e.kubectl import Kubectl, Manifest
from e2e.prometheus import Prometheus, prometheus

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "gpt-2-node-cpu.yaml"
KUBECTL = pytest.StashKey[Kubectl]()
DIAGNOSES = 3
"""How many failures of a session show the state of the cluster."""


@pytest.fixture(scope="session")
def installed() -> Iterator[Mapping[str, str]]:
    """The environment that selects a cluster in which our operator runs."""
    require_cluster()
    with cluster() as environment, release(environment):
        yield environment


@pytest.fixture(scope="session")
def kubectl(installed: Mapping[str, str], request: pytest.FixtureRequest) -> Iterator[Kubectl]:
    """A namespace of this session's own."""
    with fresh_namespace(installed) as fresh:
        request.session.stash[KUBECTL] = fresh
        yield fresh


@pytest.fixture(scope="session")
def space(installed: Mapping[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Space]:
    """A namespace with code that fails on request, and a volume; jobs in it are measured once."""
    with fresh_namespace(installed) as fresh:
        jobs = FaultyJobs(fresh, tmp_path_factory.mktemp("code"))
        try:
            yield fresh, jobs
        finally:
            jobs.remove()


@pytest.fixture(scope="session")
def operator(installed: Mapping[str, str]) -> Kubectl:
    """The operator's namespace."""
    return Kubectl(installed, OPERATOR_NAMESPACE)


@pytest.fixture(scope="session")
def example() -> Manifest:
    """The job of the README: two pods of two processes, real text."""
    document: Manifest = yaml.safe_load(EXAMPLE.read_text())
    return document


@pytest.fixture(scope="session")
def metrics(installed: Mapping[str, str]) -> Iterator[Prometheus]:
    """A Prometheus that scrapes what the chart's monitors name."""
    enabled = {"metrics": {"podMonitor": {"enabled": True}, "serviceMonitor": {"enabled": True}}}
    manifests = render(enabled, apis=MONITORING)
    monitors = of_kind(manifests, "PodMonitor") + of_kind(manifests, "ServiceMonitor")
    with (
        tempfile.TemporaryDirectory(prefix=f"{RELEASE}-prometheus-") as directory,
        prometheus(monitors, kubeconfig=installed["KUBECONFIG"], directory=Path(directory)) as client,
    ):
        yield client


@pytest.fixture(scope="session")
def measured_run(kubectl: Kubectl, example: Manifest, metrics: Prometheus) -> MeasuredRun:
    """The example, applied to an empty namespace and followed to its end."""
    kubectl("apply", "--filename", str(EXAMPLE))
    seen = follow(kubectl, example["metadata"]["name"], until=is_complete, seconds=420)
    return MeasuredRun(seen, metrics)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Let a failure show what the cluster looks like at that moment."""
    report = yield
    kubectl = item.session.stash.get(KUBECTL, None)
    # A run that fails lets every test fail that looks at it; the first few show all there is to see.
    if report.failed and call.when != "teardown" and kubectl and item.session.testsfailed < DIAGNOSES:
        report.sections.extend(diagnosis.sections(kubectl))
    return report
