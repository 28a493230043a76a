"""What is seen of a job, and what is decided about it: the two sides of :func:`decide`, both plain values.

Observations are whole objects as the API server gave them, because a decision that rests on a summary of yesterday is
the bug that level-triggered control exists to avoid.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from galvatron_operator import names
from galvatron_operator.api import JobStatus
from galvatron_operator.manifests import gang
from galvatron_operator.manifests.metadata import Manifest
from galvatron_planner.documents import Digest
from galvatron_planner.plan import Plan
from galvatron_planner.problem import Algorithm, PlanningProblem
from galvatron_planner.worker import WorkerStatus


class Kind(StrEnum):
    """Every kind of object that the operator reads or writes."""

    GALVATRON_JOB = names.KIND
    CONFIG_MAP = "ConfigMap"
    SERVICE = "Service"
    JOB = "Job"
    STATEFUL_SET = "StatefulSet"
    POD = "Pod"
    EVENT = "Event"
    VOLCANO_POD_GROUP = f"{gang.POD_GROUP}.{gang.VOLCANO_GROUP}"
    COSCHEDULING_POD_GROUP = f"{gang.POD_GROUP}.{gang.COSCHEDULING_GROUP}"


def kind_of(manifest: Manifest) -> Kind:
    """Tell an object's kind; two projects call theirs PodGroup, so the group is part of it there."""
    kind = manifest["kind"]
    return Kind(f"{kind}.{manifest['apiVersion'].partition('/')[0]}" if kind == gang.POD_GROUP else kind)


POD_GROUPS = (Kind.VOLCANO_POD_GROUP, Kind.COSCHEDULING_POD_GROUP)
"""Kinds that many clusters do not have: neither listed nor watched, but looked up where a job asks for one."""
OWNED_KINDS = (Kind.CONFIG_MAP, Kind.SERVICE, Kind.JOB, Kind.STATEFUL_SET, Kind.POD)
"""Kinds that are listed to observe a job; each object carries the label with the job's uid."""


@dataclass(frozen=True, slots=True)
class ObjectRef:
    """One object; with ``uid`` only that very one, not another that has taken its name since."""

    kind: Kind
    namespace: str
    name: str
    uid: str | None = None


def reference(manifest: Manifest) -> ObjectRef:
    """Point at an object, by uid where it has one."""
    metadata = manifest["metadata"]
    return ObjectRef(kind_of(manifest), metadata["namespace"], metadata["name"], metadata.get("uid"))


class SearchProblem(StrEnum):
    """Why a search ended without a plan; the values are condition reasons."""

    NO_FEASIBLE_PLAN = "NoFeasiblePlan"
    INVALID_PLAN = "InvalidPlan"
    """The plan that the user has brought is for something else."""
    TIMED_OUT = "SearchTimedOut"
    FAILED = "SearchFailed"


@dataclass(frozen=True, slots=True)
class SearchOutcome:
    """How a search ended: with a plan, or with a problem.

    Attributes:
        digest: of the order that it answers.
        seconds: duration of the search.
        algorithm: how it was searched.
        plan: absent when there is a problem.
        report: why this plan, for people.
        problem: absent when there is a plan.
        message: what is wrong and what to do, with ``problem``.
    """

    digest: Digest
    seconds: float
    algorithm: Algorithm = Algorithm.OPTIMAL
    plan: Plan | None = None
    report: str = ""
    problem: SearchProblem | None = None
    message: str = ""


@dataclass(frozen=True, slots=True)
class SearchOrder:
    """Ask for a search; orders of one digest are one search.

    Attributes:
        problem: what to plan.
        timeout_seconds: after which the search fails.
        fixed_plan: what the user has brought instead of a search.
    """

    problem: PlanningProblem
    timeout_seconds: float
    fixed_plan: Plan | None = None

    @property
    def digest(self) -> Digest:
        """Identity of what is asked."""
        problem = self.problem.digest()
        return problem if self.fixed_plan is None else Digest(problem[:32] + self.fixed_plan.digest()[:32])


@dataclass(frozen=True, slots=True)
class Observed:
    """Everything that exists for a job.

    Attributes:
        children: objects with the job's uid, of ``OWNED_KINDS`` and of ``POD_GROUPS``.
        cached_profiles: ConfigMaps with a profile for the job's request, whoever measured it; the first are preferred.
        jobs: of the same namespace, where there is a cached profile: they tell what has run under which image.
        reports: what supervisors answer, by name of their pod; silent pods are absent.
        result: what the profiler of node 0 hands out, absent while it measures.
        search: how the job's newest search ended, absent while there is none.
        fixed_plan: ConfigMap that ``spec.search.fixedPlanRef`` names, as long as it is needed.
        events: of the cluster, about pods that wait and owners that lack pods.
    """

    children: tuple[Manifest, ...] = ()
    cached_profiles: tuple[Manifest, ...] = ()
    jobs: tuple[Manifest, ...] = ()
    reports: Mapping[str, WorkerStatus] = field(default_factory=dict)
    result: str | None = None
    search: SearchOutcome | None = None
    fixed_plan: Manifest | None = None
    events: tuple[Manifest, ...] = ()

    def of_kind(self, kind: Kind) -> tuple[Manifest, ...]:
        """Select children of one kind."""
        return tuple(child for child in self.children if kind_of(child) is kind)

    def pods(self, component: str) -> tuple[Manifest, ...]:
        """Select pods of one component (a value of ``names.COMPONENT_...``)."""
        return self.of_component(Kind.POD, component)

    def stateful_sets(self, component: str) -> tuple[Manifest, ...]:
        """Select StatefulSets of one component; there is at most one."""
        return self.of_component(Kind.STATEFUL_SET, component)

    def of_component(self, kind: Kind, component: str) -> tuple[Manifest, ...]:
        """Select children of one kind and component."""
        labelled = ((child, child["metadata"].get("labels", {})) for child in self.of_kind(kind))
        return tuple(child for child, labels in labelled if labels.get(names.LABEL_COMPONENT) == component)


@dataclass(frozen=True, slots=True)
class Event:
    """A line for ``kubectl describe``; everything in it is in ``status`` too."""

    reason: str
    message: str
    warning: bool


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do, in this order: write the status, share, apply, delete, search; all of it may be repeated.

    Attributes:
        status: absent when there is nothing to say.
        share: profiles for other namespaces, which nobody misses where they must not be written.
        apply: objects that shall exist.
        delete: objects that shall not.
        force_delete: pods that shall go although no kubelet has ended them.
        search: what to plan.
        requeue_after_seconds: when to look again though nothing changes; None for never.
        events: what changed, for people.
    """

    status: JobStatus | None = None
    share: tuple[Manifest, ...] = ()
    apply: tuple[Manifest, ...] = ()
    delete: tuple[ObjectRef, ...] = ()
    force_delete: tuple[ObjectRef, ...] = ()
    search: SearchOrder | None = None
    requeue_after_seconds: float | None = None
    events: tuple[Event, ...] = ()
