"""The training of a job: documents 3 and 4, a headless Service, and the StatefulSet of the trainers."""

import hashlib
import json
from contextlib import suppress
from pathlib import PurePosixPath

from galvatron_operator import names
from galvatron_operator.api import GalvatronJob
from galvatron_operator.manifests import gang
from galvatron_operator.manifests.metadata import Manifest, document_config_map, headless_service, metadata
from galvatron_operator.manifests.pods import NODE_RANK, Mount, NodePod, documents_mount, pod_template
from galvatron_operator.torchrun import LOOPBACK, TRAIN_MODULE, Launch, WhenFinished, training_arguments
from galvatron_planner.errors import InexpressiblePlan
from galvatron_planner.interop.plans import to_galvatron
from galvatron_planner.plan import Plan
from galvatron_planner.training import TrainingSpec
from galvatron_planner.worker import ATTEMPT_PLACEHOLDER

SUPERVISOR_SECONDS = 20
"""Part of the grace period that is left to torchrun and the supervisor when the ranks have ended."""


def plan_config_map(job: GalvatronJob, plan: Plan, *, report: str) -> Manifest:
    """Document 3, beside it the search's report as JSON, and the plan for Hetu-Galvatron where that can hold it."""
    name = names.plan_config_map(job.name, plan.digest())
    data = {names.PLAN_KEY: plan.to_json(), names.REPORT_KEY: report}
    with suppress(InexpressiblePlan):
        data[names.GALVATRON_PLAN_KEY] = to_galvatron(plan).to_json()
    return document_config_map(job, name, names.COMPONENT_TRAINER, data)


def training_config_map(job: GalvatronJob, training: TrainingSpec) -> Manifest:
    """Document 4."""
    name = names.training_config_map(job.name, training.digest())
    return document_config_map(job, name, names.COMPONENT_TRAINER, {names.TRAINING_KEY: training.to_json()})


def service(job: GalvatronJob) -> Manifest:
    """DNS names of the trainers."""
    return headless_service(job, names.stateful_set(job.name), names.COMPONENT_TRAINER)


def pod_groups(job: GalvatronJob, plan: Plan) -> tuple[Manifest, ...]:
    """The PodGroup of the trainers, where the job is scheduled as a gang."""
    group = names.trainers_group(job.name)
    return gang.pod_groups(job, group, names.COMPONENT_TRAINER, num_pods=plan.cluster.num_nodes)


def stateful_set(
    job: GalvatronJob, plan: Plan, training: TrainingSpec, *, attempt: int, image: str, replicas: int
) -> Manifest:
    """The trainers, as of one attempt.

    Args:
        job: the job.
        plan: document 3, whose ConfigMap exists.
        training: document 4, whose ConfigMap exists.
        attempt: number of the attempt that a new pod begins with; pods that stay for a later one are annotated anew.
        image: of the runtime.
        replicas: the plan's nodes, or 0 to stop them.
    """
    name = names.stateful_set(job.name)
    plan_label = {names.LABEL_PLAN_HASH: names.plan_hash(plan.digest())}
    attempt_annotation = {names.ANNOTATION_ATTEMPT: str(attempt)}
    pod = NodePod(
        component=names.COMPONENT_TRAINER,
        image=image,
        launch=training_launch(job, plan),
        node_rank_field=f"metadata.labels['{names.LABEL_POD_INDEX}']",
        group=names.trainers_group(job.name),
        mounts=_mounts(job, plan, training),
        grace_period_seconds=job.spec.lifecycle.termination_grace_period_seconds,
        labels=plan_label,
        annotations=attempt_annotation,
    )
    template = pod_template(job, pod)
    template["metadata"]["annotations"][names.ANNOTATION_TEMPLATE] = _digest(template["spec"])
    return {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": metadata(
            job,
            name,
            names.COMPONENT_TRAINER,
            labels=plan_label | job.queue_labels,
            annotations=attempt_annotation,
        ),
        "spec": {
            "serviceName": name,
            "replicas": replicas,
            # One by one would wait for ranks that wait for the next pod.
            "podManagementPolicy": "Parallel",
            # A gang changes as a whole, or not at all: the operator deletes its pods.
            "updateStrategy": {"type": "OnDelete"},
            "revisionHistoryLimit": 1,
            "selector": {"matchLabels": names.pod_selector(job.name, names.COMPONENT_TRAINER)},
            "template": template,
        },
    }


def made_for(stateful_set: Manifest) -> int:
    """Tell with which attempt new pods of a StatefulSet begin."""
    annotations = stateful_set["spec"]["template"]["metadata"].get("annotations") or {}
    return int(annotations.get(names.ANNOTATION_ATTEMPT, 0))


def with_template_for(stateful_set: Manifest, attempt: int) -> Manifest:
    """Have new pods of a StatefulSet begin with another attempt than its own."""
    template = stateful_set["spec"]["template"]
    annotations = template["metadata"]["annotations"] | {names.ANNOTATION_ATTEMPT: str(attempt)}
    changed = template | {"metadata": template["metadata"] | {"annotations": annotations}}
    return stateful_set | {"spec": stateful_set["spec"] | {"template": changed}}


def attempt_of_pod(pod: Manifest, attempt: int) -> Manifest:
    """Name the attempt that an existing trainer takes part in from now on; nothing else of the pod is touched."""
    # The uid keeps it from another pod that has taken the name.
    kept = {key: pod["metadata"][key] for key in ("name", "namespace", "uid")}
    annotations = {names.ANNOTATION_ATTEMPT: str(attempt)}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": kept | {"annotations": annotations}}


def training_launch(job: GalvatronJob, plan: Plan) -> Launch:
    """What a trainer pod runs."""
    several = plan.cluster.num_nodes > 1
    return Launch(
        module=TRAIN_MODULE,
        arguments=training_arguments(
            plan_path=f"{names.DOCUMENTS_DIRECTORY}/{names.PLAN_KEY}",
            training_path=f"{names.DOCUMENTS_DIRECTORY}/{names.TRAINING_KEY}",
        ),
        cluster=plan.cluster,
        node_rank=NODE_RANK,
        master_address=names.pod_address(names.stateful_set(job.name), 0) if several else LOOPBACK,
        master_port=names.RENDEZVOUS_PORT,
        run_id=f"{job.metadata.uid}-{ATTEMPT_PLACEHOLDER}",
        attempt=PurePosixPath(names.ATTEMPT_FILE),
        supervisor_port=job.spec.observability.metrics_port,
        run_directory=names.RUN_DIRECTORY,
        when_finished=WhenFinished.PARK,
        shutdown_timeout_seconds=job.spec.lifecycle.termination_grace_period_seconds - SUPERVISOR_SECONDS,
        termination_log=names.TERMINATION_LOG,
    )


def _digest(template: Manifest) -> str:
    return hashlib.sha256(json.dumps(template, sort_keys=True).encode()).hexdigest()[:16]


def _mounts(job: GalvatronJob, plan: Plan, training: TrainingSpec) -> tuple[Mount, ...]:
    documents = documents_mount(
        (names.plan_config_map(job.name, plan.digest()), names.PLAN_KEY),
        (names.training_config_map(job.name, training.digest()), names.TRAINING_KEY),
    )
    return (documents, _attempt_mount(), *_data_mounts(job), *_weights_mounts(job), *_checkpoint_mounts(job))


def _attempt_mount() -> Mount:
    """Show the pod its own annotation: how the operator tells it that another attempt has begun."""
    field = {"fieldPath": f"metadata.annotations['{names.ANNOTATION_ATTEMPT}']"}
    items = [{"path": PurePosixPath(names.ATTEMPT_FILE).name, "fieldRef": field}]
    return Mount("attempt", names.ATTEMPT_DIRECTORY, {"downwardAPI": {"items": items}}, read_only=True)


def _data_mounts(job: GalvatronJob) -> tuple[Mount, ...]:
    volume = job.spec.training.dataset.volume
    if volume is None:
        return ()
    source = (
        {"configMap": {"name": volume.config_map_name}}
        if volume.config_map_name is not None
        else {"persistentVolumeClaim": {"claimName": volume.claim_name, "readOnly": True}}
    )
    return (Mount("data", names.DATA_DIRECTORY, source, read_only=True),)


def _weights_mounts(job: GalvatronJob) -> tuple[Mount, ...]:
    weights = job.spec.training.initial_weights
    if weights is None or weights.volume is None:
        return ()
    source = {"persistentVolumeClaim": {"claimName": weights.volume.claim_name, "readOnly": True}}
    return (Mount("weights", names.WEIGHTS_DIRECTORY, source, read_only=True),)


def _checkpoint_mounts(job: GalvatronJob) -> tuple[Mount, ...]:
    checkpoint = job.spec.checkpoint
    if checkpoint is None or checkpoint.volume is None:
        return ()
    source = {"persistentVolumeClaim": {"claimName": checkpoint.volume.claim_name}}
    return (Mount("checkpoints", names.CHECKPOINT_DIRECTORY, source),)
