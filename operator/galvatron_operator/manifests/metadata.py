"""What all objects of a job have in common: names, labels, and the job as their owner."""

from typing import Any

from galvatron_operator import names
from galvatron_operator.api import GalvatronJob

Manifest = dict[str, Any]
"""One Kubernetes object, as the API takes it."""


def metadata(
    job: GalvatronJob,
    name: str,
    component: str,
    *,
    labels: dict[str, str] | None = None,
    annotations: dict[str, str] | None = None,
) -> Manifest:
    """Metadata of an object that belongs to the job and goes with it."""
    meta: Manifest = {
        "name": name,
        "namespace": job.namespace,
        "labels": names.job_labels(job.name, uid=job.metadata.uid, component=component) | (labels or {}),
        "ownerReferences": [owner_reference(job)],
    }
    return meta | {"annotations": annotations} if annotations else meta


def owner_reference(job: GalvatronJob) -> Manifest:
    """The job as controlling owner: the garbage collector removes children, with or without an operator."""
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "name": job.name,
        "uid": job.metadata.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }


def document_config_map(job: GalvatronJob, name: str, component: str, data: dict[str, str]) -> Manifest:
    """A ConfigMap that is named by the digest of its content, and therefore never changes."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata(job, name, component),
        "immutable": True,
        "data": data,
    }


def headless_service(job: GalvatronJob, name: str, component: str) -> Manifest:
    """DNS names for a job's pods, published before they are ready: they meet in order to become ready."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(job, name, component),
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": names.pod_selector(job.name, component),
            "ports": [
                {
                    "name": names.METRICS_PORT_NAME,
                    "port": job.spec.observability.metrics_port,
                    "targetPort": names.METRICS_PORT_NAME,
                    "protocol": "TCP",
                },
            ],
        },
    }
