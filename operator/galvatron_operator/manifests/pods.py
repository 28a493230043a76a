"""The pod that trainers and profilers share: one container whose first process is the supervisor.

Pods satisfy the Pod Security level "restricted" and carry no API credentials: the operator asks them, they ask nobody.
"""

from dataclasses import dataclass, field
from typing import assert_never

from galvatron_operator import names
from galvatron_operator.api import GalvatronJob
from galvatron_operator.api.placing import Topology, TopologyMode
from galvatron_operator.api.values import SpecValue
from galvatron_operator.manifests import gang
from galvatron_operator.manifests.metadata import Manifest
from galvatron_operator.manifests.overlay import overlaid
from galvatron_operator.torchrun import Launch, environment, supervisor_command

USER_ID = 65532
"""Of the processes in our images, and of the files that they write to volumes."""
NODE_RANK_VARIABLE = "GALVATRON_NODE_RANK"
NODE_RANK = f"$({NODE_RANK_VARIABLE})"
"""A pod's ordinal in a command; the kubelet puts it in."""
MOST_WEIGHT = 100
"""Of a preference for nodes, in Kubernetes."""
LOST_NODE_SECONDS = 30
"""How long a pod outlives contact with its node: the rest of the gang hangs meanwhile."""


@dataclass(frozen=True, slots=True)
class Mount:
    """A volume and where it lies in the container.

    Attributes:
        name: of the volume.
        path: in the container.
        source: of the volume, for instance ``{"emptyDir": {}}``.
        read_only: whether processes may only read it.
    """

    name: str
    path: str
    source: Manifest
    read_only: bool = False


@dataclass(frozen=True, slots=True)
class NodePod:
    """What distinguishes a trainer from a profiler.

    Attributes:
        component: trainer or profiler.
        image: of the runtime.
        launch: what the pod runs.
        node_rank_field: path of the downward-API field that holds the pod's ordinal.
        group: name of the PodGroup that it belongs to, where the job is scheduled as a gang.
        mounts: volumes beside those that every pod has.
        grace_period_seconds: from SIGTERM to SIGKILL.
        labels: in addition to the job's.
        annotations: of the pod.
    """

    component: str
    image: str
    launch: Launch
    node_rank_field: str
    group: str
    mounts: tuple[Mount, ...]
    grace_period_seconds: int
    labels: Manifest = field(default_factory=dict)
    annotations: Manifest = field(default_factory=dict)


def pod_template(job: GalvatronJob, pod: NodePod) -> Manifest:
    """Build the template of one node's pod."""
    runtime = job.spec.runtime
    mounts = (*_scratch_mounts(runtime.shared_memory.size_limit), *pod.mounts)
    spec: Manifest = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": pod.grace_period_seconds,
        "securityContext": _pod_security(),
        "tolerations": [*_lost_node_tolerations(), *(_as_written(t) for t in runtime.tolerations)],
        "topologySpreadConstraints": [_spread(job, pod.component)],
        "containers": [_container(job, pod, mounts)],
        "volumes": [{"name": mount.name, **mount.source} for mount in mounts],
    }
    if runtime.node_selector:
        spec["nodeSelector"] = dict(runtime.node_selector)
    if job.spec.scheduling.topology is not None:
        spec["affinity"] = _near_each_other(job, pod.component, job.spec.scheduling.topology)
    if job.spec.scheduling.priority_class_name is not None:
        spec["priorityClassName"] = job.spec.scheduling.priority_class_name
    if (scheduler := gang.scheduler_name(job)) is not None:
        spec["schedulerName"] = scheduler
    if runtime.image_pull_secrets:
        spec["imagePullSecrets"] = [{"name": secret.name} for secret in runtime.image_pull_secrets]
    marked, noted = gang.marks(job, pod.group)
    labels = names.job_labels(job.name, uid=job.metadata.uid, component=pod.component) | pod.labels | marked
    of_network = {} if runtime.network is None else runtime.network.annotations
    template = {"metadata": {"labels": labels, "annotations": {**of_network, **pod.annotations, **noted}}, "spec": spec}
    return overlaid(template, runtime.template)


def documents_mount(*sources: tuple[str, str]) -> Mount:
    """Mount one key each of several ConfigMaps in one directory.

    Args:
        sources: pairs of a ConfigMap's name and the key, which is also the file's name.
    """
    projections = [
        {"configMap": {"name": config_map, "items": [{"key": key, "path": key}]}} for config_map, key in sources
    ]
    return Mount("documents", names.DOCUMENTS_DIRECTORY, {"projected": {"sources": projections}}, read_only=True)


def _scratch_mounts(shared_memory: str | None) -> tuple[Mount, ...]:
    limit = {} if shared_memory is None else {"sizeLimit": shared_memory}
    return (
        Mount("run", names.RUN_DIRECTORY, {"emptyDir": {}}),
        Mount("temporary", "/tmp", {"emptyDir": {}}),  # noqa: S108 -- the image's HOME, in a pod of its own
        # 64 MiB, what containers get by themselves, is too small for the rings of NCCL and gloo.
        Mount("shared-memory", "/dev/shm", {"emptyDir": {"medium": "Memory"} | limit}),  # noqa: S108
    )


def _pod_security() -> Manifest:
    return {
        "runAsNonRoot": True,
        "runAsUser": USER_ID,
        "runAsGroup": USER_ID,
        "fsGroup": USER_ID,
        # A checkpoint volume may hold many files; changing the owner of each at every start takes minutes.
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def _container_security() -> Manifest:
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def _lost_node_tolerations() -> list[Manifest]:
    return [
        {
            "key": f"node.kubernetes.io/{condition}",
            "operator": "Exists",
            "effect": "NoExecute",
            "tolerationSeconds": LOST_NODE_SECONDS,
        }
        for condition in ("not-ready", "unreachable")
    ]


def _spread(job: GalvatronJob, component: str) -> Manifest:
    return {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        # Two pods on one machine train correctly, only the measured links between them are faster; a job that waits
        # forever for a further machine would be worse. Profilers spread alike, so they see the same links.
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": names.pod_selector(job.name, component)},
    }


def _near_each_other(job: GalvatronJob, component: str, topology: Topology) -> Manifest:
    """Draw the pods of one gang to nodes with one value of a label; the first of them goes where it likes."""
    term = {
        "topologyKey": topology.key,
        "labelSelector": {"matchLabels": names.pod_selector(job.name, component)},
    }
    match topology.mode:
        case TopologyMode.REQUIRED:
            return {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}
        case TopologyMode.PREFERRED:
            weighed = {"weight": MOST_WEIGHT, "podAffinityTerm": term}
            return {"podAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [weighed]}}
        case _:
            assert_never(topology.mode)


def _container(job: GalvatronJob, pod: NodePod, mounts: tuple[Mount, ...]) -> Manifest:
    return {
        "name": pod.component,
        "image": pod.image,
        "imagePullPolicy": job.spec.runtime.image_pull_policy.value,
        "command": list(supervisor_command(pod.launch)),
        "env": _environment(job, pod),
        "ports": [
            {"name": names.METRICS_PORT_NAME, "containerPort": pod.launch.supervisor_port, "protocol": "TCP"},
        ],
        "startupProbe": _probe("/livez", period_seconds=2, failure_threshold=60),
        "livenessProbe": _probe("/livez", period_seconds=20, failure_threshold=3),
        # How the operator learns of a failed command: the pod changes, and with it what the operator watches.
        "readinessProbe": _probe("/readyz", period_seconds=2, failure_threshold=1),
        "resources": _resources(job),
        "securityContext": _container_security(),
        "volumeMounts": [
            {"name": mount.name, "mountPath": mount.path} | ({"readOnly": True} if mount.read_only else {})
            for mount in mounts
        ],
    }


def _probe(path: str, *, period_seconds: int, failure_threshold: int) -> Manifest:
    return {
        "httpGet": {"path": path, "port": names.METRICS_PORT_NAME},
        "periodSeconds": period_seconds,
        "failureThreshold": failure_threshold,
        # Ranks on a CPU take every core; the supervisor answers late, not never.
        "timeoutSeconds": 10,
    }


def _environment(job: GalvatronJob, pod: NodePod) -> list[Manifest]:
    variables = environment(pod.launch) | {variable.name: variable.value for variable in job.spec.runtime.env}
    node_rank = {"name": NODE_RANK_VARIABLE, "valueFrom": {"fieldRef": {"fieldPath": pod.node_rank_field}}}
    return [node_rank, *({"name": name, "value": value} for name, value in variables.items())]


def _resources(job: GalvatronJob) -> Manifest:
    budget, resources, network = job.spec.budget, job.spec.runtime.resources, job.spec.runtime.network
    devices = {} if budget.uses_cpu else {budget.resource_name: str(budget.gpus_per_node)}
    if network is not None and network.rdma_resource_name is not None:
        devices[network.rdma_resource_name] = str(network.rdma_resource_count)
    requests = _as_written(resources.requests) | devices
    limits = _as_written(resources.limits) | devices
    return {kind: amounts for kind, amounts in (("requests", requests), ("limits", limits)) if amounts}


def _as_written(part: SpecValue) -> Manifest:
    return part.model_dump(mode="json", by_alias=True, exclude_none=True)
