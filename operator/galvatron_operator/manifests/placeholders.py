"""Pods that show by running that there is room for further trainers; they do nothing, and go before those come.

An operator without rights on nodes cannot ask whether one is back, and what it could not know of it (quotas, taints,
other jobs, a device plug-in that is not ready) decides too. So it asks by pods that are placed as trainers are.
"""

from galvatron_operator import names
from galvatron_operator.api import GalvatronJob
from galvatron_operator.manifests import gang
from galvatron_operator.manifests.metadata import Manifest, metadata

GRACE_PERIOD_SECONDS = 5
_WAIT_FOR_THE_END = (
    # The first process of a container gets no signal that it does not ask for.
    "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM]); signal.sigwait([signal.SIGTERM])"
)
_OF_A_CONTAINER = ("image", "imagePullPolicy", "resources", "securityContext")
_NOT_FOR_PLACEMENT = ("containers", "volumes", "terminationGracePeriodSeconds")


def stateful_set(job: GalvatronJob, trainers: Manifest, *, replicas: int) -> Manifest:
    """Ask for room for more trainers.

    Args:
        job: the job.
        trainers: the StatefulSet of the trainers, as we write it.
        replicas: how many nodes are missing.
    """
    name = names.placeholders(job.name, uid=job.metadata.uid)
    of_trainers = trainers["spec"]["template"]
    ours = names.job_labels(job.name, uid=job.metadata.uid, component=names.COMPONENT_PLACEHOLDER)
    # Each is placed by itself, where a scheduler of gangs places trainers together.
    of_a_gang = {names.LABEL_PLAN_HASH, *gang.marks(job, name)[0]}
    labels = {key: value for key, value in of_trainers["metadata"]["labels"].items() if key not in of_a_gang}
    return {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": metadata(job, name, names.COMPONENT_PLACEHOLDER, labels=job.queue_labels),
        "spec": {
            "serviceName": names.stateful_set(job.name),
            "replicas": replicas,
            "podManagementPolicy": "Parallel",
            "revisionHistoryLimit": 1,
            "selector": {"matchLabels": names.pod_selector(job.name, names.COMPONENT_PLACEHOLDER)},
            "template": {"metadata": {"labels": labels | ours}, "spec": _spec(job, of_trainers["spec"])},
        },
    }


def _spec(job: GalvatronJob, of_trainers: Manifest) -> Manifest:
    """Keep everything by which a node is chosen."""
    (container,) = of_trainers["containers"]
    kept = {key: value for key, value in of_trainers.items() if key not in _NOT_FOR_PLACEMENT}
    # Away from trainers too, as further trainers would be.
    spread = [
        constraint | {"labelSelector": {"matchLabels": {names.LABEL_JOB_NAME: job.name}}}
        for constraint in of_trainers["topologySpreadConstraints"]
    ]
    return kept | {
        "terminationGracePeriodSeconds": GRACE_PERIOD_SECONDS,
        "topologySpreadConstraints": spread,
        "containers": [
            {
                "name": names.COMPONENT_PLACEHOLDER,
                "command": ["python", "-c", _WAIT_FOR_THE_END],
                **{key: container[key] for key in _OF_A_CONTAINER if key in container},
            }
        ],
        # A claim may be bound to some nodes only.
        "volumes": [volume for volume in of_trainers["volumes"] if "persistentVolumeClaim" in volume],
    }
