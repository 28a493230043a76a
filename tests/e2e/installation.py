"""A cluster with our images and our chart in it: the one that stands, or a new one."""

import os
import platform
import shutil
import subprocess
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from e2e.kubectl import Kubectl

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "galvatron-operator"
SCRIPT = ROOT / "tests" / "cluster" / "cluster.sh"
RELEASE = "galvatron"
OPERATOR_NAMESPACE = "galvatron-system"


def gap() -> str | None:
    """Say why this machine cannot carry the cluster, or None when it can."""
    if os.environ.get("GALVATRON_KUBECONFIG"):
        return None
    if platform.system() != "Linux":
        return "this is not Linux"
    if os.geteuid() != 0:
        return "making a cluster needs root"
    if not shutil.which("apt-get"):
        return "making a cluster needs Debian's packages"
    return None


def require_cluster() -> None:
    """Skip with one reason where no cluster can be; fail where one was promised."""
    reason = gap()
    if reason is None:
        return
    if os.environ.get("CI") == "true" or os.environ.get("GALVATRON_REQUIRE_CLUSTER"):
        pytest.fail(f"the cluster's tests must run here, but {reason}")
    pytest.skip(f"{reason}; or point GALVATRON_KUBECONFIG to a cluster that has the images")


@contextmanager
def cluster() -> Iterator[Mapping[str, str]]:
    """Yield the environment that selects a cluster with our images; a cluster that was made here goes with it."""
    stood = bool(os.environ.get("GALVATRON_KUBECONFIG")) or script("status", check=False).returncode == 0
    try:
        if not stood:
            script("up")
        script("images")
        yield _environment()
    finally:
        if not stood and not os.environ.get("GALVATRON_KEEP_CLUSTER"):
            script("down")


def standing_cluster() -> Mapping[str, str]:
    """The environment that selects the cluster that stands; skip where none does, fail where one was promised."""
    if not os.environ.get("GALVATRON_KUBECONFIG") and script("status", check=False).returncode != 0:
        reason = "the test cluster is down; start it with `make cluster`"
        (pytest.fail if os.environ.get("GALVATRON_REQUIRE_CLUSTER") else pytest.skip)(reason)
    return _environment()


@contextmanager
def release(environment: Mapping[str, str]) -> Iterator[None]:
    """Install the chart as the README says; a release that stood before is brought up to date, and stays."""
    stood = helm(environment, "status", RELEASE, check=False).returncode == 0
    bring_up_to_date(environment)
    try:
        yield
    finally:
        if not stood and not os.environ.get("GALVATRON_KEEP_CLUSTER"):
            helm(environment, "uninstall", RELEASE, "--wait")


def bring_up_to_date(environment: Mapping[str, str], *values: str) -> None:
    """Install this chart with some values, or upgrade the release to them, and wait for the operator."""
    helm(
        environment,
        *("upgrade", RELEASE, str(CHART), "--install", "--create-namespace", "--wait", "--timeout", "3m"),
        # A rebuilt image has the same tag: without a change in the pod's template the old one would run on.
        *("--set-string", f"podAnnotations.galvatron\\.io/tested={uuid.uuid4().hex}"),
        *(argument for value in values for argument in ("--set-string", value)),
    )


@contextmanager
def fresh_namespace(environment: Mapping[str, str]) -> Iterator[Kubectl]:
    """Yield a namespace of its own, with no profile in its cache."""
    kubectl = Kubectl(environment, namespace=f"e2e-{uuid.uuid4().hex[:8]}")
    kubectl("create", "namespace", kubectl.namespace)
    try:
        yield kubectl
    finally:
        gone = ("--ignore-not-found", "--wait=true", "--timeout=120s")
        kubectl("delete", "namespace", kubectl.namespace, *gone)


def script(*verb: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run ``cluster.sh``, which leaves a cluster of the user's own alone."""
    command = ["bash", str(SCRIPT), *verb]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1800)
    assert not check or result.returncode == 0, f"cluster.sh {' '.join(verb)}:\n{result.stderr[-4000:]}"
    return result


def _environment() -> Mapping[str, str]:
    lines = ["bash", "-c", f'eval "$(bash {SCRIPT} env)" && printf "%s\\n" "$KUBECONFIG" "$PATH"']
    kubeconfig, path = subprocess.run(lines, capture_output=True, text=True, check=True).stdout.splitlines()
    return {**os.environ, "KUBECONFIG": kubeconfig, "PATH": path}


def helm(environment: Mapping[str, str], *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run Helm in the operator's namespace."""
    result = subprocess.run(
        ["helm", "--namespace", OPERATOR_NAMESPACE, *arguments],
        env=dict(environment),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert not check or result.returncode == 0, f"helm {' '.join(arguments)}:\n{result.stderr[-4000:]}"
    return result
