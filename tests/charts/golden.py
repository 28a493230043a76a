"""Renderings of the chart as text, so that a review sees what a change of a template does to a cluster.

``make goldens`` writes them anew. Copies of other files (the CRD, the dashboards) are left out: they have tests.
"""

from collections.abc import Iterator
from pathlib import Path

import yaml

from charts.rendering import MONITORING, Manifest, render

DIRECTORY = Path(__file__).parent / "golden"
COPIES = ("CustomResourceDefinition", "ConfigMap")
MONITORS = {kind: {"enabled": True} for kind in ("serviceMonitor", "podMonitor", "prometheusRule")}

CASES: dict[str, Manifest] = {
    "default": {},
    "namespaced": {
        "watchNamespaces": ["team-a", "team-b"],
        "profileCache": {"namespace": "galvatron-system", "contributors": ["team-a"]},
    },
    "everything": {
        "image": {
            "registry": "registry.example.com/ml",
            "digest": "sha256:" + "0" * 64,
            "pullSecrets": [{"name": "ml"}],
        },
        "runtime": {"defaults": {"imagePullSecrets": [{"name": "ml"}, {"name": "mirror"}]}},
        "commonLabels": {"team": "ml"},
        "podAnnotations": {"example.com/a": "b"},
        "priorityClassName": "system-cluster-critical",
        "nodeSelector": {"pool": "system"},
        "tolerations": [{"key": "system", "operator": "Exists"}],
        "topologySpreadConstraints": [
            {"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway"}
        ],
        "networkPolicy": {
            "enabled": True,
            "metricsFrom": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}],
            "jobs": {"namespaces": ["team-a"]},
        },
        "metrics": MONITORS,
    },
}


def text(case: str) -> str:
    """Every manifest of a case, sorted by kind, namespace and name."""
    manifests = render(CASES[case], apis=MONITORING, with_tests=True)
    return yaml.safe_dump_all(sorted(_own(manifests), key=_place), width=120, sort_keys=True)


def write() -> None:
    """Replace the files by what the chart renders now."""
    DIRECTORY.mkdir(exist_ok=True)
    for case in CASES:
        (DIRECTORY / f"{case}.yaml").write_text(text(case))


def _own(manifests: tuple[Manifest, ...]) -> Iterator[Manifest]:
    return (manifest for manifest in manifests if manifest["kind"] not in COPIES)


def _place(manifest: Manifest) -> tuple[str, str, str]:
    metadata = manifest["metadata"]
    return manifest["kind"], metadata.get("namespace", ""), metadata["name"]


if __name__ == "__main__":
    write()
