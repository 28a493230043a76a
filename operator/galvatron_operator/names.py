"""Every name that more than one module must agree on: objects, labels, annotations, ports, paths in pods.

Object names are pure functions of the job's name and of a digest: creating twice makes one object, a changed input
makes a new one. A job's name has at most 40 characters, so every name below fits the 63 of a DNS label, also with the
ordinal of a pod and with ``controller-revision-hash`` behind it (a StatefulSet whose name is too long makes no pods).
"""

API_GROUP = "galvatron.io"
API_VERSION = f"{API_GROUP}/v1alpha1"
KIND = "GalvatronJob"
PLURAL = "galvatronjobs"

FIELD_MANAGER = "galvatron-operator"
"""Owner of the fields that the operator applies."""

MAX_JOB_NAME = 40

LABEL_JOB_NAME = f"{API_GROUP}/job-name"
LABEL_JOB_UID = f"{API_GROUP}/job-uid"
LABEL_PLAN_HASH = f"{API_GROUP}/plan-hash"
LABEL_COMPONENT = "app.kubernetes.io/component"
LABEL_MANAGED_BY = "app.kubernetes.io/managed-by"
MANAGER = "galvatron-operator"

COMPONENT_TRAINER = "trainer"
COMPONENT_PROFILER = "profiler"
COMPONENT_PLACEHOLDER = "placeholder"
"""The component of pods that only show, by running, that there is room for further trainers."""
COMPONENT_PROFILE = "profile"
"""The component of cached profiles, which belong to no single job."""

ANNOTATION_ATTEMPT = f"{API_GROUP}/attempt"
ANNOTATION_TEMPLATE = f"{API_GROUP}/template"
"""Digest of what a trainer was made from: tells whether it can stay for another attempt."""
ANNOTATION_REPROFILE = f"{API_GROUP}/reprofile"
"""Set by users on a job: a value that is new has it measured again."""
ANNOTATION_REPLAN = f"{API_GROUP}/replan"
"""Set by users on a job that trains: a value that is new has another plan searched."""
ANNOTATION_MEASURED_AT = f"{API_GROUP}/measured-at"
"""On a cached profile; its ConfigMap may be older, because a later measurement replaces what is in it."""
ANNOTATION_IMAGE_DIGESTS = f"{API_GROUP}/image-digests"
"""On a cached profile: what the pods ran that measured it, comma-separated."""
ANNOTATION_MEASURED_BY = f"{API_GROUP}/measured-by"
"""On a profile that namespaces share: namespace and name of the job that measured it."""
ANNOTATION_SHARED_FROM = f"{API_GROUP}/shared-from"
"""On a profile that was not measured in its namespace: the namespace that it was copied from."""
ANNOTATION_COMPLETION_INDEX = "batch.kubernetes.io/job-completion-index"
"""Set by Kubernetes on the pods of an Indexed Job."""
LABEL_POD_INDEX = "apps.kubernetes.io/pod-index"
"""Set by Kubernetes on the pods of a StatefulSet."""

KUEUE_GROUP = "kueue.x-k8s.io"
LABEL_QUEUE = f"{KUEUE_GROUP}/queue-name"
"""Set by users on a job: the LocalQueue of Kueue whose quota its pods take."""
LABEL_QUEUE_PRIORITY = f"{KUEUE_GROUP}/priority-class"
"""Set by users on a job: its WorkloadPriorityClass in that queue."""

RENDEZVOUS_PORT = 29500
"""Where torchrun's agents meet, on the pod of node 0."""
METRICS_PORT_NAME = "metrics"
"""Of the supervisor's port (``spec.observability.metricsPort``): status, result, probes and metrics."""

STATUS_PATH = "/v1/status"
RESULT_PATH = "/v1/result"

RUN_DIRECTORY = "/run/galvatron"
DOCUMENTS_DIRECTORY = "/etc/galvatron"
ATTEMPT_DIRECTORY = "/etc/galvatron-attempt"
ATTEMPT_FILE = f"{ATTEMPT_DIRECTORY}/attempt"
"""The pod's annotation ``galvatron.io/attempt``; the kubelet rewrites it within a second of a change."""
DATA_DIRECTORY = "/data"
WEIGHTS_DIRECTORY = "/weights"
CHECKPOINT_DIRECTORY = "/checkpoints"
TERMINATION_LOG = "/dev/termination-log"
"""Kubernetes' default, which stays writable when the container's own files are not."""

REQUEST_KEY = "request.json"
PROFILE_KEY = "profile.json"
PLAN_KEY = "plan.json"
GALVATRON_PLAN_KEY = "galvatron.json"
"""The same plan for Hetu-Galvatron, where its format can hold it."""
REPORT_KEY = "report.json"
TRAINING_KEY = "training.json"
RESULT_FILE = "result.json"


def job_labels(job_name: str, *, uid: str, component: str) -> dict[str, str]:
    """Labels of everything that is made for one job."""
    return {
        "app.kubernetes.io/name": "galvatron",
        "app.kubernetes.io/instance": job_name,
        LABEL_COMPONENT: component,
        LABEL_MANAGED_BY: MANAGER,
        "app.kubernetes.io/part-of": "galvatron",
        LABEL_JOB_NAME: job_name,
        LABEL_JOB_UID: uid,
    }


def pod_selector(job_name: str, component: str) -> dict[str, str]:
    """Select a job's pods; only labels that never change, because selectors are immutable."""
    return {LABEL_JOB_NAME: job_name, LABEL_COMPONENT: component}


def owned_selector() -> str:
    """Label selector, as text, of every object that the operator makes for one job."""
    return f"{LABEL_MANAGED_BY}={MANAGER},{LABEL_JOB_UID}"


def request_config_map(job_name: str, request_digest: str) -> str:
    """Name of the ConfigMap that holds document 1."""
    return f"{job_name}-request-{request_digest[:8]}"


def profiling_job(job_name: str, request_digest: str) -> str:
    """Name of the Indexed Job that measures, and of its headless Service."""
    return f"{job_name}-profile-{request_digest[:8]}"


def profile_config_map(request_digest: str) -> str:
    """Name of the ConfigMap that caches document 2; without the job's name: jobs of one shape share it."""
    return f"gv-profile-{request_digest[:16]}"


def plan_hash(plan_digest: str) -> str:
    """The plan's digest as people see it."""
    return plan_digest[:8]


def plan_config_map(job_name: str, plan_digest: str) -> str:
    """Name of the ConfigMap that holds document 3."""
    return f"{job_name}-plan-{plan_hash(plan_digest)}"


def training_config_map(job_name: str, training_digest: str) -> str:
    """Name of the ConfigMap that holds document 4."""
    return f"{job_name}-training-{training_digest[:8]}"


def profilers_group(job_name: str) -> str:
    """Name of the PodGroup of the profilers; with a dot, so that it is no other job's name."""
    return f"{job_name}.profilers"


def trainers_group(job_name: str) -> str:
    """Name of the PodGroup of the trainers."""
    return job_name


def stateful_set(job_name: str) -> str:
    """Name of the StatefulSet of the trainers, and of its headless Service."""
    return job_name


def placeholders(job_name: str, *, uid: str) -> str:
    """Name of the StatefulSet of the placeholders; a part of the uid keeps it from the names of other jobs."""
    return f"{job_name}-spare-{uid[:5]}"


def pod(owner_name: str, node_rank: int) -> str:
    """Name of a trainer pod; for a profiling pod, its host name (its name has a random end)."""
    return f"{owner_name}-{node_rank}"


def pod_address(owner_name: str, node_rank: int) -> str:
    """DNS name of a pod of ours within its namespace: the headless Service bears the owner's name."""
    return f"{pod(owner_name, node_rank)}.{owner_name}"
