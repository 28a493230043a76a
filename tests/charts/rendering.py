"""Runs Helm on our chart and hands out what it makes of it."""

import json
import os
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

import pytest
import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "galvatron-operator"
RELEASE = "galvatron"
NAMESPACE = "galvatron-system"

Manifest = dict[str, Any]

MONITORING = tuple(f"monitoring.coreos.com/v1/{kind}" for kind in ("ServiceMonitor", "PodMonitor", "PrometheusRule"))
"""What a cluster with the Prometheus Operator has."""


def without(reason: str) -> NoReturn:
    """Leave a test out for want of a program; where everything has to be tested, that is a failure."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


@cache
def helm_binary() -> str:
    """Find Helm on the path or where the test cluster's scripts put it; without it there is nothing to test here."""
    built = os.environ.get("GALVATRON_CLUSTER_CACHE", str(ROOT / ".cache" / "cluster"))
    if found := shutil.which("helm") or shutil.which("helm", path=f"{built}/bin"):
        return found
    without("no helm: put one on the path, or run `make cluster`")


def helm(*arguments: str, values: Manifest | None = None) -> subprocess.CompletedProcess[str]:
    """Run ``helm <verb> <arguments> --values <values>``; JSON is YAML."""
    return subprocess.run(
        [helm_binary(), *arguments, "--kube-version", "1.34.0", "--values", "-"],
        input=json.dumps(values or {}),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def template(
    values: Manifest | None = None, *, apis: tuple[str, ...] = (), with_tests: bool = False
) -> subprocess.CompletedProcess[str]:
    """Render the chart as ``helm install`` would on a cluster that has these APIs beside Kubernetes' own."""
    flags = [flag for api in apis for flag in ("--api-versions", api)] + ([] if with_tests else ["--skip-tests"])
    return helm("template", RELEASE, str(CHART), "--namespace", NAMESPACE, *flags, values=values)


def render(
    values: Manifest | None = None, *, apis: tuple[str, ...] = (), with_tests: bool = False
) -> tuple[Manifest, ...]:
    """Every manifest of the chart under these values; those of ``helm test`` are made when it runs, and not before."""
    result = template(values, apis=apis, with_tests=with_tests)
    assert result.returncode == 0, result.stderr
    return tuple(document for document in yaml.safe_load_all(result.stdout) if document)


def refusal(values: Manifest, *, apis: tuple[str, ...] = ()) -> str:
    """What Helm says when it refuses these values."""
    result = template(values, apis=apis)
    assert result.returncode != 0, "these values were accepted"
    return result.stderr


def of_kind(manifests: tuple[Manifest, ...], kind: str) -> tuple[Manifest, ...]:
    """Those of one kind."""
    return tuple(manifest for manifest in manifests if manifest["kind"] == kind)


def the_only(manifests: tuple[Manifest, ...], kind: str) -> Manifest:
    """The one of a kind of which there must be one."""
    (manifest,) = of_kind(manifests, kind)
    return manifest


def dashboards() -> dict[str, Manifest]:
    """The dashboards in the chart, by file name."""
    return {path.name: json.loads(path.read_text()) for path in sorted((CHART / "dashboards").glob("*.json"))}
