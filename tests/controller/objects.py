"""Every Kubernetes object that a job can lead to."""

import builders
from galvatron_operator import names
from galvatron_operator.api import GalvatronJob, training_spec
from galvatron_operator.manifests import placeholders, profiling, training
from galvatron_operator.manifests.metadata import Manifest
from galvatron_planner import families
from galvatron_planner.plan import Plan
from galvatron_planner.profiles import ProfileRequest
from galvatron_planner.training import TrainingSpec

IMAGE = "registry.example.com/galvatron-runtime:1"
PLAN: Plan = builders.plan("dp4 tp2-dp2 tp4 dp4", on=builders.cluster(4, num_nodes=2))


def request(of: GalvatronJob) -> ProfileRequest:
    return ProfileRequest(
        layers=tuple(dict.fromkeys(families.layers(of.model))),
        precision=of.precision,
        micro_batch_sizes=(1, 2),
        tensor_degrees=(1,),
        groups=(),
        payload_bytes=(1024,),
        num_nodes=of.cluster.num_nodes,
        devices_per_node=of.cluster.devices_per_node,
        device_kind=of.cluster.device_kind,
        runtime_version=IMAGE,
    )


def specification(of: GalvatronJob) -> TrainingSpec:
    return training_spec(
        of,
        checkpoint_directory=names.CHECKPOINT_DIRECTORY,
        data_root=names.DATA_DIRECTORY,
        weights_root=names.WEIGHTS_DIRECTORY,
    )


def trainers(of: GalvatronJob, *, attempt: int = 1, replicas: int = 2) -> Manifest:
    return training.stateful_set(of, PLAN, specification(of), attempt=attempt, image=IMAGE, replicas=replicas)


def profilers(of: GalvatronJob) -> Manifest:
    return profiling.indexed_job(of, request(of), attempt=0, image=IMAGE)


def children(of: GalvatronJob) -> tuple[Manifest, ...]:
    asked = request(of)
    return (
        profiling.request_config_map(of, asked),
        profiling.service(of, asked),
        profilers(of),
        training.plan_config_map(of, PLAN, report="{}"),
        training.training_config_map(of, specification(of)),
        training.service(of),
        trainers(of),
        placeholders.stateful_set(of, trainers(of), replicas=1),
    )
