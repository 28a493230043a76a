"""``spec.scheduling`` and ``spec.runtime.network``: who places pods, where, and what network they have."""

from collections.abc import Iterator
from enum import StrEnum

from pydantic import Field

from galvatron_operator.api.overlay import RESERVED_KEYS, PodOverlay, Texts
from galvatron_operator.api.values import LabelKey, ObjectName, ResourceName, Seconds, SpecValue


class TopologyMode(StrEnum):
    """What becomes of pods that find no place near the others."""

    PREFERRED = "Preferred"
    """They go elsewhere."""
    REQUIRED = "Required"
    """They wait."""


class Topology(SpecValue):
    """``spec.scheduling.topology``: pods go to nodes that agree in the label ``key``."""

    key: LabelKey
    mode: TopologyMode = TopologyMode.PREFERRED


class Network(SpecValue):
    """``spec.runtime.network``; the number of devices is that of each pod."""

    rdma_resource_name: ResourceName | None = None
    rdma_resource_count: int = Field(default=1, ge=1, le=64)
    annotations: Texts = Field(default_factory=dict, max_length=16)


class GangProvider(StrEnum):
    """Whose scheduler places all pods of a job or none."""

    NONE = "None"
    VOLCANO = "Volcano"
    COSCHEDULING = "Coscheduling"
    """The plugin of that name in kubernetes-sigs/scheduler-plugins."""


class GangScheduling(SpecValue):
    """``spec.scheduling.gang``; each of the other two fields belongs to one provider."""

    provider: GangProvider
    timeout_seconds: Seconds | None = None
    queue: ObjectName | None = None


def network_problems(
    network: Network, template: PodOverlay | None, *, gpu_resource: str
) -> Iterator[tuple[str, str, str]]:
    """Find what a network must not ask for, as (field below it, problem, remedy).

    Args:
        network: that the types allow.
        template: ``spec.runtime.template``, which may give the same things.
        gpu_resource: ``spec.budget.resourceName``.
    """
    name = network.rdma_resource_name
    overlay = PodOverlay() if template is None else template
    if name is not None:
        if "kubernetes.io/" in name or name.startswith("requests."):
            yield "rdmaResourceName", f"is {name}, no resource of a device plugin", "name one that nodes offer"
        if name == gpu_resource:
            yield "rdmaResourceName", f"is {name}, which spec.budget counts", "name the network's devices"
        amounts = (container.resources for container in overlay.spec.containers)
        if any(name in {**amount.requests, **amount.limits} for amount in amounts):
            yield "rdmaResourceName", f"is {name}, which spec.runtime.template has too", "state it in one of them"
    for key in network.annotations:
        if RESERVED_KEYS.match(key):
            yield "annotations", f"has {key}", "leave it out: the operator, or the pods' security, rests on it"
        if key in overlay.metadata.annotations:
            yield "annotations", f"has {key}, which spec.runtime.template has too", "state it in one of them"


def topology_problems(template: PodOverlay | None) -> Iterator[tuple[str, str, str]]:
    """Find what a topology cannot stand beside, as (field below it, problem, remedy)."""
    affinity = None if template is None else template.spec.affinity
    if affinity and "podAffinity" in affinity:
        remedy = "say by one of them which pods shall be near each other"
        yield "key", "is set beside podAffinity in spec.runtime.template", remedy


def gang_problems(gang: GangScheduling) -> Iterator[tuple[str, str, str]]:
    """Find what a gang's provider does not know, as (field below it, problem, remedy)."""
    for field, value, provider in (
        ("timeoutSeconds", gang.timeout_seconds, GangProvider.COSCHEDULING),
        ("queue", gang.queue, GangProvider.VOLCANO),
    ):
        if value is not None and gang.provider is not provider:
            problem = f"is given to provider {gang.provider}, which has no such setting"
            yield field, problem, f"leave it out, or set provider: {provider}"
