"""``spec.runtime.template``: what users add to the pods, and nothing that would take away what holds them together.

The fields are those of a pod template, and only those that are named here: what is left out (host namespaces, service
accounts, security contexts, commands, images) cannot be asked for, today or with a later Kubernetes.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from galvatron_operator import names
from galvatron_operator.api.values import ObjectName, Quantity, SpecValue

MAIN_CONTAINER = "runtime"
"""Name of the one container in an overlay: pods of trainers and of profilers name theirs differently."""
MAX_BYTES = 65_536
"""Of an overlay as JSON."""
OUR_VOLUMES = frozenset({"run", "temporary", "shared-memory", "documents", "attempt", "data", "weights", "checkpoints"})
OUR_PATHS = (
    *(names.RUN_DIRECTORY, names.DOCUMENTS_DIRECTORY, names.ATTEMPT_DIRECTORY),
    *(names.DATA_DIRECTORY, names.WEIGHTS_DIRECTORY, names.CHECKPOINT_DIRECTORY),
    *("/dev", "/proc", "/sys", "/tmp"),  # noqa: S108 -- in a pod of its own
    # What runs: the image's Python and what it needs. /var/run is a link to /run, where the run directory is.
    *("/opt/venv", "/usr", "/bin", "/sbin", "/lib", "/lib64", "/run", "/var/run"),
)
"""Where nothing may be mounted, nor above."""
RESERVED_ENVIRONMENT = re.compile(r"^((PET|MASTER|GALVATRON|TORCHELASTIC)_.*|((LOCAL|GROUP|ROLE)_)?(RANK|WORLD_SIZE))$")
"""Variables that torchrun and the supervisor set; the CRD has the same pattern."""
RESERVED_KEYS = re.compile(r"^(galvatron\.io|app\.kubernetes\.io|.*\b(apparmor|seccomp)\b.*)/")
"""Keys of labels and annotations: ours, and those that once weakened the security of pods."""
_VARIABLE_SOURCES = ("secretKeyRef", "configMapKeyRef", "fieldRef", "resourceFieldRef")

JsonObject = dict[str, Any]
Text = Annotated[str, StringConstraints(max_length=4096)]
Texts = dict[str, Text]
PodVolumeName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)]


class OverlayMetadata(SpecValue):
    """``metadata`` of the pods."""

    labels: dict[str, Annotated[str, StringConstraints(max_length=63)]] = Field(default_factory=dict, max_length=64)
    annotations: Texts = Field(default_factory=dict, max_length=64)


class OverlayVariable(SpecValue):
    """One variable with a value or a source."""

    name: str = Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=253)
    value: Text | None = None
    value_from: JsonObject | None = None


class OverlayMount(SpecValue):
    """Where a volume of the overlay lies in the container."""

    name: PodVolumeName
    mount_path: str = Field(pattern=r"^/[^:]*$", max_length=1024)
    sub_path: str | None = Field(default=None, max_length=1024)
    read_only: bool = False


class OverlayResources(SpecValue):
    """Resources that other fields do not have, such as network devices."""

    requests: dict[str, Quantity] = Field(default_factory=dict, max_length=16)
    limits: dict[str, Quantity] = Field(default_factory=dict, max_length=16)


class OverlayContainer(SpecValue):
    """What is added to the container that trains or measures."""

    name: Literal["runtime"]
    env: tuple[OverlayVariable, ...] = Field(default=(), max_length=128)
    volume_mounts: tuple[OverlayMount, ...] = Field(default=(), max_length=32)
    resources: OverlayResources = OverlayResources()


class OverlaySource(SpecValue):
    """One part of a projected volume: no tokens and no certificates of service accounts."""

    config_map: JsonObject | None = None
    secret: JsonObject | None = None
    downward_api: JsonObject | None = Field(default=None, alias="downwardAPI")
    cluster_trust_bundle: JsonObject | None = None


class OverlayProjection(SpecValue):
    """Several sources in one directory."""

    sources: tuple[OverlaySource, ...] = Field(default=(), max_length=32)
    default_mode: int | None = Field(default=None, ge=0, le=0o777)


class OverlayVolume(SpecValue):
    """A volume of one of the kinds that Pod Security "restricted" allows."""

    name: PodVolumeName
    config_map: JsonObject | None = None
    secret: JsonObject | None = None
    empty_dir: JsonObject | None = None
    persistent_volume_claim: JsonObject | None = None
    projected: OverlayProjection | None = None
    downward_api: JsonObject | None = Field(default=None, alias="downwardAPI")
    csi: JsonObject | None = None
    ephemeral: JsonObject | None = None


class OverlaySpec(SpecValue):
    """``spec`` of the pods."""

    affinity: JsonObject | None = None
    scheduler_name: ObjectName | None = None
    runtime_class_name: ObjectName | None = None
    volumes: tuple[OverlayVolume, ...] = Field(default=(), max_length=32)
    containers: tuple[OverlayContainer, ...] = Field(default=(), max_length=1)


class PodOverlay(SpecValue):
    """``spec.runtime.template``."""

    metadata: OverlayMetadata = OverlayMetadata()
    spec: OverlaySpec = OverlaySpec()


def problems(
    overlay: PodOverlay, *, taken_variables: frozenset[str], gpu_resource: str
) -> Iterator[tuple[str, str, str]]:
    """Find what an overlay must not ask for, as (field below the overlay, problem, remedy).

    Args:
        overlay: that the types allow.
        taken_variables: names in ``spec.runtime.env``.
        gpu_resource: ``spec.budget.resourceName``.
    """
    if len(overlay.model_dump_json().encode()) > MAX_BYTES:
        yield "", f"is larger than {MAX_BYTES // 1024} KiB", "put large texts in ConfigMaps"
    for part, keys in (("labels", overlay.metadata.labels), ("annotations", overlay.metadata.annotations)):
        for key in keys:
            if RESERVED_KEYS.match(key):
                yield f"metadata.{part}", f"has {key}", "leave it out: the operator, or the pods' security, rests on it"
    yield from _twice("spec.volumes", [volume.name for volume in overlay.spec.volumes])
    for volume in overlay.spec.volumes:
        yield from _volume(volume)
    for container in overlay.spec.containers:
        yield from _variables(container, taken_variables)
        yield from _mounts(container, {volume.name for volume in overlay.spec.volumes})
        yield from _resources(container.resources, gpu_resource)


def _twice(field: str, keys: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    # The API server cannot merge such lists, and answers as if it were broken itself.
    for key in sorted({key for key in keys if keys.count(key) > 1}):
        yield field, f"has {key} twice", "write it once"


def _volume(volume: OverlayVolume) -> Iterator[tuple[str, str, str]]:
    where = f"spec.volumes[{volume.name}]"
    if volume.name in OUR_VOLUMES:
        yield where, "has the name of a volume of ours", f"take a name other than {', '.join(sorted(OUR_VOLUMES))}"
    sources = volume.model_dump(exclude={"name"}, exclude_none=True)
    if len(sources) != 1:
        yield where, f"has {len(sources)} sources", "give it exactly one, for instance configMap"


def _variables(container: OverlayContainer, taken: frozenset[str]) -> Iterator[tuple[str, str, str]]:
    seen = set(taken)
    for variable in container.env:
        where = f"spec.containers[{MAIN_CONTAINER}].env[{variable.name}]"
        if RESERVED_ENVIRONMENT.match(variable.name):
            yield where, "is set by the launcher itself", "leave it out"
        if variable.name in seen:
            yield where, "is given twice", "give it here or in spec.runtime.env, once"
        seen.add(variable.name)
        known = variable.value_from is None or (
            len(variable.value_from) == 1 and next(iter(variable.value_from)) in _VARIABLE_SOURCES
        )
        if (variable.value is not None and variable.value_from is not None) or not known:
            yield (
                where,
                "needs a value or one source",
                f"give it value, or valueFrom with {', '.join(_VARIABLE_SOURCES)}",
            )


def _mounts(container: OverlayContainer, volumes: set[str]) -> Iterator[tuple[str, str, str]]:
    field = f"spec.containers[{MAIN_CONTAINER}].volumeMounts"
    yield from _twice(field, [str(_place(mount)) for mount in container.volume_mounts])
    for mount in container.volume_mounts:
        where = f"{field}[{mount.mount_path}]"
        if mount.name not in volumes:
            yield where, f"mounts {mount.name}, which is no volume of the template", "name it in spec.volumes beside it"
        path = _place(mount)
        for ours in map(PurePosixPath, OUR_PATHS):
            if ".." in path.parts or path.is_relative_to(ours) or ours.is_relative_to(path):
                yield where, f"hides {ours}, which is ours", "mount it elsewhere, for instance at /opt/code"
                break


def _place(mount: OverlayMount) -> PurePosixPath:
    # POSIX leaves to systems what two slashes at the beginning mean, so that pathlib keeps them.
    return PurePosixPath("/" + mount.mount_path.lstrip("/"))


def _resources(resources: OverlayResources, gpu_resource: str) -> Iterator[tuple[str, str, str]]:
    remedies = {"cpu": "spec.runtime.resources", "memory": "spec.runtime.resources", gpu_resource: "spec.budget"}
    for name in sorted({*resources.requests, *resources.limits} & remedies.keys()):
        where = f"spec.containers[{MAIN_CONTAINER}].resources"
        yield where, f"has {name}", f"state it in {remedies[name]}"
