"""What makes pods a gang for a scheduler that places all of them or none: a PodGroup, and a mark on every pod.

Source: the API types and schedulers of volcano.sh/apis 1.13 and sigs.k8s.io/scheduler-plugins 0.34.
"""

from dataclasses import dataclass

from galvatron_operator.api import GalvatronJob, GangProvider
from galvatron_operator.manifests.metadata import Manifest, metadata

POD_GROUP = "PodGroup"
"""The kind, of both providers; they differ in its group."""
VOLCANO_GROUP = "scheduling.volcano.sh"
COSCHEDULING_GROUP = "scheduling.x-k8s.io"


@dataclass(frozen=True, slots=True)
class Scheduler:
    """How a scheduler wants to be told of a gang.

    Attributes:
        name: that its own installation gives it, unless somebody changes that.
        api_version: of its PodGroup.
        labels: keys under which a pod names its PodGroup.
        annotations: keys under which a pod names its PodGroup.
        installation: what has to be installed.
    """

    name: str
    api_version: str
    labels: tuple[str, ...]
    annotations: tuple[str, ...]
    installation: str


SCHEDULERS = {
    GangProvider.VOLCANO: Scheduler(
        name="volcano",
        api_version=f"{VOLCANO_GROUP}/v1beta1",
        labels=(),
        annotations=("scheduling.k8s.io/group-name",),
        installation="Volcano",
    ),
    GangProvider.COSCHEDULING: Scheduler(
        name="scheduler-plugins-scheduler",
        api_version=f"{COSCHEDULING_GROUP}/v1alpha1",
        labels=(f"{COSCHEDULING_GROUP}/pod-group",),
        annotations=(),
        installation="the scheduler of kubernetes-sigs/scheduler-plugins, with its plugin Coscheduling enabled",
    ),
}


def scheduler_of(job: GalvatronJob) -> Scheduler | None:
    """Give the scheduler that shall place the job's pods; None for the cluster's own way."""
    gang = job.spec.scheduling.gang
    return None if gang is None else SCHEDULERS.get(gang.provider)


def scheduler_name(job: GalvatronJob) -> str | None:
    """Give the name by which the pods ask for it: the user's, where an installation has another than the usual one."""
    template, scheduler = job.spec.runtime.template, scheduler_of(job)
    own = template.spec.scheduler_name if template is not None else None
    return own or (scheduler.name if scheduler is not None else None)


def installation_of(pod_group: Manifest) -> str:
    """Tell what brings the kind of a PodGroup to a cluster."""
    return next(one.installation for one in SCHEDULERS.values() if one.api_version == pod_group["apiVersion"])


def marks(job: GalvatronJob, group: str) -> tuple[dict[str, str], dict[str, str]]:
    """Give labels and annotations that put a pod into the PodGroup ``group``; none without a gang."""
    scheduler = scheduler_of(job)
    if scheduler is None:
        return {}, {}
    return dict.fromkeys(scheduler.labels, group), dict.fromkeys(scheduler.annotations, group)


def pod_groups(job: GalvatronJob, group: str, component: str, *, num_pods: int) -> tuple[Manifest, ...]:
    """Build the PodGroup of ``num_pods`` pods that need one another; none without a gang.

    It asks for no minimum of resources: what pods request is on the pods.
    """
    scheduler, gang = scheduler_of(job), job.spec.scheduling.gang
    if scheduler is None or gang is None:
        return ()
    spec: Manifest = {"minMember": num_pods}
    if gang.timeout_seconds is not None:
        spec["scheduleTimeoutSeconds"] = gang.timeout_seconds
    if gang.queue is not None:
        spec["queue"] = gang.queue
    priority = job.spec.scheduling.priority_class_name
    if gang.provider is GangProvider.VOLCANO and priority is not None:
        # Volcano orders gangs by this one; Coscheduling by that of the pods.
        spec["priorityClassName"] = priority
    return (
        {
            "apiVersion": scheduler.api_version,
            "kind": POD_GROUP,
            "metadata": metadata(job, group, component),
            "spec": spec,
        },
    )
