"""Pods that somebody lets in as a whole: a scheduler of gangs, or Kueue with its quotas.

Kueue allows a StatefulSet of a queue to go from 0 to all pods and back, holds on to the quota of one that is at 0 for a
while, and takes a changed template for another gang. So a StatefulSet of a queue is used as it was made: attempts that
need a new pod, and back-offs, delete it.

Source: pkg/controller/jobs/statefulset of sigs.k8s.io/kueue 0.17.
"""

from collections.abc import Mapping
from typing import Any

from galvatron_operator import names
from galvatron_operator.api import ConditionType, GalvatronJob, JobStatus
from galvatron_operator.decide.observed import Kind, ObjectRef, Observed, kind_of
from galvatron_operator.decide.restarting import seconds_to_wait
from galvatron_operator.decide.situation import Situation
from galvatron_operator.failures import parse_time
from galvatron_operator.manifests import gang, training
from galvatron_operator.manifests.metadata import Manifest
from galvatron_operator.obstacles import Obstacle, is_looked_at, obstacle

UNSEEN_SECONDS = 30.0
"""After which a pod of which no scheduler has said a word is no longer just new."""


def pod_groups_of(job: GalvatronJob, status: JobStatus | None, children: tuple[Manifest, ...]) -> tuple[ObjectRef, ...]:
    """Name the PodGroups that matter now: those that pods wait with, or that go together with what holds pods."""
    scheduler = gang.scheduler_of(job)
    if scheduler is None:
        return ()
    ending = job.spec.suspend or (status is not None and status.is_finished)
    planned = status is not None and status.is_true(ConditionType.PLAN_READY)
    owners = {child["kind"] for child in children}
    wanted = []
    if Kind.JOB in owners or not (planned or ending):
        wanted.append(names.profilers_group(job.name))
    if (Kind.STATEFUL_SET in owners and ending) or (planned and not ending and not is_placed(status)):
        wanted.append(names.trainers_group(job.name))
    kind = kind_of({"apiVersion": scheduler.api_version, "kind": gang.POD_GROUP})
    return tuple(ObjectRef(kind, job.namespace, name) for name in wanted)


def is_placed(status: JobStatus | None) -> bool:
    """Tell whether the gang runs, so that its PodGroup has done its part."""
    return status is not None and status.is_true(ConditionType.PODS_READY)


def hindrance(situation: Situation, pods: tuple[Manifest, ...], *, group: str) -> Obstacle | None:
    """Tell what keeps pods from starting; where a scheduler of gangs has not placed them, with its own words.

    Args:
        situation: the job.
        pods: of one component.
        group: name of their PodGroup, if they are a gang.
    """
    found = obstacle(pods, situation.seen.events)
    scheduler = gang.scheduler_of(situation.job)
    if scheduler is None:
        return found
    if found is not None and found.reason == "Unschedulable":
        return Obstacle("WaitingForGang", found.message + _words_of_group(situation.seen, group))
    unseen = next((pod for pod in pods if _is_unseen(situation, pod)), None)
    if found is None and unseen is not None:
        name = gang.scheduler_name(situation.job)
        message = f"{unseen['metadata']['name']}: no scheduler named {name} has looked at it; check that one runs"
        return Obstacle("WaitingForGang", message)
    return found


def lacks_stateful_set(situation: Situation, *, num_kept: int, num_nodes: int) -> bool:
    """Tell whether a job of a queue has no StatefulSet for its attempt, and the former one, or its pods, have to go.

    Args:
        situation: the job, with the number of its attempt.
        num_kept: pods that take part in this attempt already, or will stay for it.
        num_nodes: pods that the attempt needs.
    """
    job, seen = situation.job, situation.seen
    existing = seen.stateful_sets(names.COMPONENT_TRAINER)
    if job.queue is None and not any(map(_queue_of, existing)):
        return False
    if seconds_to_wait(situation):
        return True
    if not existing:
        return bool(seen.pods(names.COMPONENT_TRAINER))
    whole = num_kept == num_nodes
    return not all(
        _queue_of(one) == job.queue
        and "deletionTimestamp" not in one["metadata"]
        and (whole or training.made_for(one) == situation.status.attempt)
        for one in existing
    )


def kept_template(situation: Situation, wanted: Manifest) -> Manifest:
    """Leave the template of a job of a queue as it is; which attempt its pods take part in is written on them."""
    for existing in situation.seen.stateful_sets(names.COMPONENT_TRAINER):
        if situation.job.queue is not None:
            return training.with_template_for(wanted, training.made_for(existing))
    return wanted


def _queue_of(stateful_set: Manifest) -> str | None:
    labels: Mapping[str, str] = stateful_set["metadata"].get("labels") or {}
    return labels.get(names.LABEL_QUEUE)


def _words_of_group(seen: Observed, group: str) -> str:
    """Say what the scheduler has written into the PodGroup."""
    for child in seen.children:
        if child["kind"] != gang.POD_GROUP or child["metadata"]["name"] != group:
            continue
        status: Mapping[str, Any] = child.get("status") or {}
        told = [one["message"] for one in status.get("conditions") or () if one.get("message")]
        # Of scheduler-plugins not the scheduler writes there, but a controller that may be absent.
        words = "; ".join((*filter(None, [status.get("phase")]), *told[-1:]))
        return f" (PodGroup {group}: {words})" if words else ""
    return ""


def _is_unseen(situation: Situation, pod: Manifest) -> bool:
    made = pod["metadata"].get("creationTimestamp")
    is_old = made is not None and situation.seconds_until(parse_time(made), plus_seconds=UNSEEN_SECONDS) <= 0
    return is_old and not is_looked_at(pod) and "deletionTimestamp" not in pod["metadata"]
