"""What other projects publish about gangs and queues: ``tests/cluster/schemas.sh`` fetches it, nothing is kept here."""

import re
import subprocess
from pathlib import Path
from typing import Any

import yaml

Schema = dict[str, Any]

SCRIPT = Path(__file__).parents[1] / "cluster" / "schemas.sh"
SCHEDULER_PLUGINS = Path("sigs.k8s.io/scheduler-plugins")
VOLCANO = Path("volcano.sh/apis/pkg/apis/scheduling/v1beta1")
KUEUE = Path("sigs.k8s.io/kueue/pkg/controller")

_AMOUNT: Schema = {"anyOf": [{"type": "integer"}, {"type": "string"}], "x-kubernetes-int-or-string": True}
_BUILT_IN: dict[str, Schema] = {
    "string": {"type": "string"},
    "int": {"type": "integer"},
    "int32": {"type": "integer", "format": "int32"},
    "v1.ConditionStatus": {"type": "string"},
    "metav1.Time": {"type": "string", "format": "date-time"},
    "v1.ResourceList": {"type": "object", "additionalProperties": _AMOUNT},
}


class Unavailable(Exception):
    """What other projects publish cannot be fetched here; the message says what to do."""


def fetch() -> Path:
    """Give the folder with what is published.

    Raises:
        Unavailable: when it cannot be had: ready-made binaries of the cluster need neither Go nor its module proxy.
    """
    done = subprocess.run(["bash", str(SCRIPT)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Unavailable(done.stderr)
    return Path(done.stdout.strip())


def coscheduling_crd(folder: Path) -> Schema:
    """The CRD of scheduler-plugins' PodGroup, as it is published."""
    text = (folder / SCHEDULER_PLUGINS / "config/crd/bases/scheduling.x-k8s.io_podgroups.yaml").read_text()
    crd: Schema = yaml.safe_load(text)
    return crd


def volcano_crd(folder: Path) -> Schema:
    """The CRD of Volcano's PodGroup, from the Go types that its own is generated from."""
    types = GoTypes((folder / VOLCANO / "types.go").read_text())
    parts = {"spec": types.schema("PodGroupSpec"), "status": types.schema("PodGroupStatus")}
    version = {
        "name": VOLCANO.name,
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": {"type": "object", "properties": parts}},
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "podgroups.scheduling.volcano.sh"},
        "spec": {
            "group": "scheduling.volcano.sh",
            "names": {"kind": "PodGroup", "listKind": "PodGroupList", "plural": "podgroups", "singular": "podgroup"},
            "scope": "Namespaced",
            "versions": [version],
        },
    }


class GoTypes:
    """Types of one Go file that are written with JSON names, as far as PodGroups need it.

    A class because types refer to each other.
    """

    _FIELD = re.compile(r'^\t\w+ +(?P<type>\S+) +`json:"(?P<name>\w+)')

    def __init__(self, text: str) -> None:
        self._structs = dict(re.findall(r"^type (\w+) struct \{\n(.*?)^\}", text, flags=re.MULTILINE | re.DOTALL))
        self._texts = set(re.findall(r"^type (\w+) string$", text, flags=re.MULTILINE))

    def schema(self, type_: str) -> Schema:
        """Write a type as a structural schema.

        Raises:
            KeyError: for a type of another file that is not known here.
        """
        name = type_.removeprefix("*")
        if name in self._structs:
            found = (self._FIELD.match(line) for line in self._structs[name].splitlines())
            return {"type": "object", "properties": {f["name"]: self.schema(f["type"]) for f in found if f}}
        if name.startswith("[]"):
            return {"type": "array", "items": self.schema(name[2:])}
        if name.startswith("map[string]"):
            return {"type": "object", "additionalProperties": self.schema(name.removeprefix("map[string]"))}
        return {"type": "string"} if name in self._texts else _BUILT_IN[name]
