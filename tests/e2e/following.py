"""Follows one job from ``kubectl apply`` to its end and keeps what was seen on the way."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from e2e.kubectl import POLL_SECONDS, Kubectl, Manifest, condition, is_true
from e2e.prometheus import Prometheus, Sample

JOB_LABEL = "galvatron.io/job-name"
COMPONENT_LABEL = "app.kubernetes.io/component"
OF_ANY_JOB = "app.kubernetes.io/managed-by=galvatron-operator"
KINDS_OF_CHILDREN = "pods,jobs,statefulsets,services,configmaps"


@dataclass(slots=True)
class Observation:
    """What was seen of a job; pods and phases pass, so they are written down while they are there.

    Attributes:
        started: seconds since the epoch at which the job was applied.
        job: the newest object.
        phases: every ``status.phase``, in the order of first appearance.
        nodes: nodes on which pods of a component (``profiler``, ``trainer``) have run.
    """

    started: float = field(default_factory=time.time)
    job: Manifest = field(default_factory=dict)
    phases: list[str] = field(default_factory=list)
    nodes: dict[str, set[str]] = field(default_factory=dict)

    def look(self, kubectl: Kubectl, name: str) -> None:
        """Write down what is to be seen now."""
        items = kubectl.items("galvatronjobs,pods")
        self.job = next((item for item in items if is_job(item, name)), {})
        phase = self.job.get("status", {}).get("phase")
        if phase and phase not in self.phases:
            self.phases.append(phase)
        for labels, node in (pod_place(item) for item in items if item["kind"] == "Pod"):
            if labels.get(JOB_LABEL) == name and node:
                self.nodes.setdefault(labels[COMPONENT_LABEL], set()).add(node)


def is_job(item: Manifest, name: str) -> bool:
    """Tell whether an object is the GalvatronJob of this name."""
    return bool(item["kind"] == "GalvatronJob" and item["metadata"]["name"] == name)


def pod_place(pod: Manifest) -> tuple[Manifest, str | None]:
    """Labels of a pod, and its node if it has one."""
    return pod["metadata"].get("labels", {}), pod["spec"].get("nodeName")


@dataclass(frozen=True, slots=True)
class MeasuredRun:
    """A complete run, and the Prometheus that scraped it."""

    observation: Observation
    metrics: Prometheus

    @property
    def job(self) -> Manifest:
        """The object at its end."""
        return self.observation.job

    @property
    def name(self) -> str:
        """Of the job."""
        return str(self.job["metadata"]["name"])

    def losses(self) -> tuple[Sample, ...]:
        """What was scraped of the loss, by time."""
        return self.metrics.series(
            f'galvatron_train_loss{{galvatronjob="{self.name}"}}', since=self.observation.started
        )

    def last_step_time(self) -> float:
        """When the last loss was scraped: every series of the run is there at that moment."""
        return self.losses()[-1].time


def follow(
    kubectl: Kubectl, name: str, *, until: Callable[[Manifest], bool], seconds: float, seen: Observation | None = None
) -> Observation:
    """Watch a job until something holds of it.

    Raises:
        AssertionError: when it does not hold in time, or when the job fails first.
    """
    seen = seen or Observation()
    deadline = time.monotonic() + seconds
    while True:
        seen.look(kubectl, name)
        if seen.job and until(seen.job):
            return seen
        failed = condition(seen.job, "Failed")
        assert failed.get("status") != "True", f"{name} failed: {failed}"
        assert time.monotonic() < deadline, f"{name} is in phases {seen.phases} after {seconds:.0f} s"
        time.sleep(POLL_SECONDS)


def is_complete(job: Manifest) -> bool:
    """Tell whether a job has reached its good end."""
    return is_true(job, "Complete")


def children(kubectl: Kubectl, name: str) -> tuple[str, ...]:
    """Everything in the namespace that was made for one job, as ``Kind/name``."""
    return tuple(
        f"{item['kind']}/{item['metadata']['name']}" for item in kubectl.items(KINDS_OF_CHILDREN, f"{JOB_LABEL}={name}")
    )
