"""The measurement of a job: document 1, an Indexed Job with its headless Service, and the cache of document 2."""

from datetime import datetime

from galvatron_operator import names
from galvatron_operator.api import GalvatronJob
from galvatron_operator.api.status import rfc3339
from galvatron_operator.manifests import gang
from galvatron_operator.manifests.metadata import Manifest, document_config_map, headless_service, metadata
from galvatron_operator.manifests.pods import NODE_RANK, NodePod, documents_mount, pod_template
from galvatron_operator.torchrun import LOOPBACK, MEASURE_MODULE, Launch, WhenFinished, measuring_arguments
from galvatron_planner.profiles import Profile, ProfileRequest

SHUTDOWN_SECONDS = 5
GRACE_PERIOD_SECONDS = 20
"""Nothing of a measurement is worth saving when its pods are stopped."""


def request_config_map(job: GalvatronJob, request: ProfileRequest) -> Manifest:
    """Document 1."""
    name = names.request_config_map(job.name, request.digest())
    return document_config_map(job, name, names.COMPONENT_PROFILER, {names.REQUEST_KEY: request.to_json()})


def service(job: GalvatronJob, request: ProfileRequest) -> Manifest:
    """DNS names of the profilers."""
    return headless_service(job, names.profiling_job(job.name, request.digest()), names.COMPONENT_PROFILER)


def pod_groups(job: GalvatronJob, request: ProfileRequest) -> tuple[Manifest, ...]:
    """The PodGroup of the profilers, where the job is scheduled as a gang."""
    return gang.pod_groups(job, names.profilers_group(job.name), names.COMPONENT_PROFILER, num_pods=request.num_nodes)


def indexed_job(job: GalvatronJob, request: ProfileRequest, *, attempt: int, image: str) -> Manifest:
    """The pods that measure, one a node, on as many nodes as will train.

    The attempt is written on the Job alone: its pods end with it, and never go on under another one.

    The result is asked of index 0, whose supervisor parks; then the Job is deleted. It has no deadline of its own: that
    would go on while nobody asks, and end a pod that waits with the result.
    """
    name = names.profiling_job(job.name, request.digest())
    pod = NodePod(
        component=names.COMPONENT_PROFILER,
        image=image,
        launch=profiling_launch(job, request),
        node_rank_field=f"metadata.annotations['{names.ANNOTATION_COMPLETION_INDEX}']",
        group=names.profilers_group(job.name),
        mounts=(documents_mount((names.request_config_map(job.name, request.digest()), names.REQUEST_KEY)),),
        grace_period_seconds=GRACE_PERIOD_SECONDS,
    )
    template = pod_template(job, pod)
    template["spec"] |= {"restartPolicy": "Never", "subdomain": name}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata(
            job,
            name,
            names.COMPONENT_PROFILER,
            labels=job.queue_labels,
            annotations={names.ANNOTATION_ATTEMPT: str(attempt)},
        ),
        "spec": {
            "completions": request.num_nodes,
            "parallelism": request.num_nodes,
            "completionMode": "Indexed",
            # A single new pod cannot join the others, which wait for the old one: a lost pod ends the Job.
            "backoffLimit": 0,
            "template": template,
        },
    }


def profiling_launch(job: GalvatronJob, request: ProfileRequest) -> Launch:
    """What a profiling pod runs."""
    owner = names.profiling_job(job.name, request.digest())
    return Launch(
        module=MEASURE_MODULE,
        arguments=measuring_arguments(
            request_path=f"{names.DOCUMENTS_DIRECTORY}/{names.REQUEST_KEY}",
            output_path=f"{names.RUN_DIRECTORY}/{names.RESULT_FILE}",
        ),
        cluster=job.cluster,
        node_rank=NODE_RANK,
        master_address=names.pod_address(owner, 0) if request.num_nodes > 1 else LOOPBACK,
        master_port=names.RENDEZVOUS_PORT,
        run_id=f"{job.metadata.uid}-profile",
        attempt=0,
        supervisor_port=job.spec.observability.metrics_port,
        run_directory=names.RUN_DIRECTORY,
        when_finished=WhenFinished.PARK,
        shutdown_timeout_seconds=SHUTDOWN_SECONDS,
        termination_log=names.TERMINATION_LOG,
    )


def profile_config_map(
    namespace: str,
    profile: Profile,
    *,
    measured: datetime,
    image_digests: tuple[str, ...] = (),
    measured_by: str = "",
    shared_from: str = "",
) -> Manifest:
    """The cache of document 2: owned by no job, so that the next job of the same shape finds it.

    Args:
        namespace: of the jobs that may use it.
        profile: what was measured.
        measured: when, in UTC.
        image_digests: of the images that measured.
        measured_by: namespace and name of a job, for those who look after a cache that namespaces share.
        shared_from: the namespace of such a cache, where this is a copy out of it.
    """
    annotations = {
        names.ANNOTATION_MEASURED_AT: rfc3339(measured),
        names.ANNOTATION_IMAGE_DIGESTS: ",".join(image_digests),
        names.ANNOTATION_MEASURED_BY: measured_by,
        names.ANNOTATION_SHARED_FROM: shared_from,
    }
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": names.profile_config_map(profile.request_digest),
            "namespace": namespace,
            "labels": {
                "app.kubernetes.io/name": "galvatron",
                "app.kubernetes.io/part-of": "galvatron",
                names.LABEL_COMPONENT: names.COMPONENT_PROFILE,
                names.LABEL_MANAGED_BY: names.MANAGER,
            },
            "annotations": {name: value for name, value in annotations.items() if value},
        },
        "data": {names.PROFILE_KEY: profile.to_json()},
    }
