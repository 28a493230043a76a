"""Values for every field of the CRD: mostly allowed, often at a bound, sometimes beyond it or of another type."""

from random import Random
from typing import Any

from fuzzing.schema import Schema
from galvatron_planner.catalogue import DEVICES

_LONG = "x" * 5000
ODD_TEXTS = (
    "",
    " ",
    "a",
    "\n",
    "a\n",
    "\u00e9\u00df",
    "\u6a21\u578b",
    "\U0001f525",
    "a\u0000b",
    "{{ .x }}",
    "$(date)",
    _LONG,
)
"""What a text may be when nothing says what it is."""
_NAMES = ("a", "claim", "a.b", "a-b", "0", "a.-b", "a..b", "A", "-a", "a\n", "a/b", "a" * 253, "a" * 254)
_DECIMALS = (
    "0",
    "0.0",
    "1",
    "0.5",
    "3e-4",
    "1E+2",
    "1e-99",
    "1e99",
    "1e400",
    "9" * 32,
    "9" * 33,
    "-1",
    "NaN",
    "1.",
    ".5",
)
_AMOUNTS = (
    "0",
    "0Gi",
    "0.0001",
    "1",
    "64Mi",
    "4Gi",
    "1.5G",
    "900P",
    "9" * 30 + "Pi",
    "9" * 31 + "Pi",
    "1e9",
    "-1Gi",
    "4GB",
    "1Gi\n",
)
_PATHS = ("a", "a/b", "a.b/c-d", "..", "a/../b", "/a", "a//b", ".a", ".", "a" * 255, "a" * 256, "a/", "a b", "a\n")

BY_PATTERN: dict[str, tuple[str, ...]] = {
    r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[A-Za-z0-9]([-A-Za-z0-9._]*[A-Za-z0-9])?$": (
        *("galvatron.io/controller",) * 6, "kueue.x-k8s.io/multikueue", "a/b", "kueue", "a/", "a/b\n",
    ),
    r"^[A-Za-z_][A-Za-z0-9_.]*:[A-Za-z_][A-Za-z0-9_]*$": ("mine:layers", "a.b:c", "layers", "a..b:c", "a:b:c", "a:b\n"),
    r"^[0-9]+(\.[0-9]+)?(k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$": _AMOUNTS,
    r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$": (*_AMOUNTS, "100m", "0m"),
    r"^[0-9]+(\.[0-9]+)?([eE][-+]?[0-9]{1,2})?$": _DECIMALS,
    r"^(\.|[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*)$": _PATHS,
    r"^[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*$": _PATHS,
    r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$": _NAMES,
    r"^[-._a-zA-Z0-9]+$": ("plan.json", "a", ".", "..", "a/b", "", "a\n"),
    r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$": (*DEVICES, "nvlink4", "pcie4", "ethernet-25g", "a", "A", "a.b"),
    r"^([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$": (
        *("topology.kubernetes.io/zone", "rack", "a/b/c", "a..b/c", "a/", "/a", "-", "a" * 63, "a" * 64, "rack\n"),
    ),
    r"^[a-z0-9]([-a-z0-9.]{0,242}[a-z0-9])?/[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$": (
        *("rdma/hca", "nvidia.com/gpu", "requests.rdma/hca", "a.kubernetes.io/b", "rdma", "rdma/", "A/b", "rdma/hca\n"),
    ),
    r"^[A-Za-z_][A-Za-z0-9_]*$": ("A", "PATH", "RANK", "PET_X", "LOCAL_RANK", "_", "1A", "A-B", "A\n", "a" * 254),
}  # fmt: skip
"""Texts to try for every pattern of the CRD; some match it."""

_VOLUME = {"name": "code", "configMap": {"name": "code"}}
_MOUNT = {"name": "code", "mountPath": "/opt/code"}


def _pods(**fields: Any) -> dict[str, Any]:
    return {"spec": fields}


def _container(**fields: Any) -> dict[str, Any]:
    return _pods(containers=[{"name": "runtime", **fields}])


_SOURCES: tuple[Any, ...] = (None, [1], 1, ["a"], [{}])
_VARIABLE_SOURCES: tuple[Any, ...] = ({}, {"x": 1}, {"secretKeyRef": 1}, [])

OVERLAYS: tuple[Any, ...] = (
    {},
    {"metadata": {"labels": {"team": "a"}, "annotations": {"a": "\u6a21"}}},
    {"metadata": {"labels": {"galvatron.io/job": "mine"}}},
    {"metadata": {"labels": {"not a label!": "?"}, "name": "x"}},
    _pods(volumes=[_VOLUME], containers=[{"name": "runtime", "volumeMounts": [_MOUNT]}]),
    _pods(volumes=[_VOLUME, _VOLUME]),
    _pods(volumes=[{"name": "run", "emptyDir": {}}]),
    _pods(volumes=[{"name": "host", "hostPath": {"path": "/"}}]),
    _pods(volumes=[{"name": "none"}]),
    *(_pods(volumes=[{"name": "token", "projected": {"sources": sources}}]) for sources in _SOURCES),
    _pods(volumes=[{"name": "token", "projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}}]),
    _pods(affinity={"nodeAffinity": 3}, schedulerName="mine", runtimeClassName="gvisor"),
    *(_pods(**{field: True}) for field in ("hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace")),
    _pods(serviceAccountName="admin", securityContext={"runAsUser": 0}),
    _pods(initContainers=[{"name": "i", "image": "x"}]),
    _pods(containers=[{"name": "runtime"}, {"name": "side", "image": "x"}]),
    _pods(containers=[{"name": "side"}]),
    _container(image="x", command=["sh"]),
    _container(securityContext={"privileged": True}),
    _container(env=[{"name": "A", "value": "1"}, {"name": "B", "valueFrom": {"fieldRef": {"fieldPath": "x"}}}]),
    _container(env=[{"name": "RANK", "value": "0"}]),
    *(_container(env=[{"name": "A", "valueFrom": source}]) for source in _VARIABLE_SOURCES),
    _container(volumeMounts=[{"name": "none", "mountPath": "/opt/x"}]),
    _container(resources={"limits": {"rdma/hca": 1}, "requests": {"cpu": "1"}}),
    _container(resources={"limits": {"rdma/hca": "1"}}),
    _container(env=[{"name": f"A{number}", "value": _LONG[:4000]} for number in range(32)]),
    {"metadata": {"annotations": {f"a{number}": "b" for number in range(200)}}},
    {"spec": _LONG * 4},
    {"spec": {"containers": [_LONG] * 10, "volumes": [[]] * 1000}},
)
"""Templates of pods: a few that are allowed, and what users and attackers try."""


def a_value(random: Random, schema: Schema) -> Any:
    """Draw a value for a field, mostly one that its schema allows."""
    if schema.get("x-kubernetes-preserve-unknown-fields"):
        return random.choice(OVERLAYS)
    if schema.get("x-kubernetes-int-or-string"):
        return random.choice((*BY_PATTERN[schema["pattern"]], 0, 1, 4, -1))
    if "enum" in schema:
        return random.choice(schema["enum"])
    match schema["type"]:
        case "boolean":
            return random.random() < 0.5
        case "integer":
            return _a_number(random, schema)
        case "string":
            return _a_text(random, schema)
        case "array":
            return [a_value(random, schema["items"]) for _ in range(random.choice((0, 1, 1, 2, 3)))]
        case _:
            return _an_object(random, schema)


def a_wrong_value(random: Random, schema: Schema) -> Any:
    """Draw a value that its schema probably refuses: of another type, beyond a bound, or far too large."""
    wrong: list[Any] = [None, True, 0, -1, 1.5, "4", "", _LONG, [], {}, [[]], {"a": {}}, 2**31, 2**63, "\U0001f525"]
    if "maximum" in schema:
        wrong += [schema["maximum"] + 1, schema["minimum"] - 1, float(schema["maximum"])]
    if "maxLength" in schema:
        wrong.append("a" * (schema["maxLength"] + 1))
    if "maxItems" in schema and "items" in schema:
        wrong.append([a_value(random, schema["items"])] * (schema["maxItems"] + 1))
    if "maxProperties" in schema:
        wrong.append({f"a{number}": "b" for number in range(schema["maxProperties"] + 1)})
    return random.choice(wrong)


def _a_number(random: Random, schema: Schema) -> int:
    lowest, highest = schema["minimum"], schema["maximum"]
    small = [size for size in (1, 2, 3, 4, 8, 16, 32, 64, 128) if lowest <= size <= highest] or [lowest]
    return int(
        random.choice((random.choice(small), random.choice(small), lowest, schema.get("default", lowest), highest))
    )


def _a_text(random: Random, schema: Schema) -> str:
    if "pattern" in schema:
        return random.choice(BY_PATTERN[schema["pattern"]])
    longest = schema["maxLength"]
    return random.choice((*ODD_TEXTS, "a" * longest, "\U0001f525" * longest))


def _an_object(random: Random, schema: Schema) -> dict[str, Any]:
    if "additionalProperties" in schema:
        keys = random.sample(("a", "kubernetes.io/os", "Not A Label", ""), k=random.choice((0, 1, 2)))
        return {key: a_value(random, schema["additionalProperties"]) for key in keys}
    required = schema.get("required", ())
    chosen = [name for name in schema["properties"] if name in required or random.random() < 0.3]
    return {name: a_value(random, schema["properties"][name]) for name in chosen}
