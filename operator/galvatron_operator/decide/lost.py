"""Pods that no kubelet ends: lost with their node, they keep their names, and so the next attempt from its start.

What a pod object says of its node is not enough to go by: the condition ``Ready`` is also false where a supervisor says
so, and only pods that nobody was deleting yet are marked when their node is evacuated.
"""

from collections.abc import Iterator
from datetime import datetime

from galvatron_operator.api import ForceDeleteLostPods
from galvatron_operator.decide.observed import ObjectRef, reference
from galvatron_operator.decide.situation import Situation
from galvatron_operator.failures import asked_to_end, is_on_lost_node, parse_time
from galvatron_operator.manifests.metadata import Manifest


def lost_pods(situation: Situation, component: str) -> tuple[Manifest, ...]:
    """Select pods that should have ended ``nodeLostTimeoutSeconds`` ago."""
    return tuple(pod for pod, seconds in _ending(situation, component) if seconds <= 0)


def seconds_until_lost(situation: Situation, component: str) -> float | None:
    """Tell when the next of the ending pods counts as lost, if it does not end before; None when none is ending."""
    return min((seconds for _, seconds in _ending(situation, component) if seconds > 0), default=None)


def _ending(situation: Situation, component: str) -> Iterator[tuple[Manifest, float]]:
    """Give every pod that is ending, and the seconds until it counts as lost."""
    timeout = situation.job.spec.failure_policy.node_lost_timeout_seconds
    for pod in situation.seen.pods(component):
        if "deletionTimestamp" in pod["metadata"]:
            is_heard = pod["metadata"]["name"] in situation.seen.reports
            yield pod, situation.seconds_until(_due(pod, is_heard=is_heard), plus_seconds=timeout)


def _due(pod: Manifest, *, is_heard: bool) -> datetime:
    """Tell when a pod should have ended.

    Kubernetes writes down when the grace period ends. But where a node was given up, and the pod says nothing either,
    no kubelet has begun that period.
    """
    if is_heard or not is_on_lost_node(pod):
        return parse_time(pod["metadata"]["deletionTimestamp"])
    return asked_to_end(pod)


def to_force(situation: Situation, lost: tuple[Manifest, ...]) -> tuple[ObjectRef, ...]:
    """Point at those lost pods that the job wants deleted without their kubelet."""
    forced = situation.job.spec.failure_policy.force_delete_lost_pods is ForceDeleteLostPods.AFTER_TIMEOUT
    return tuple(reference(pod) for pod in lost) if forced else ()


def lost_text(lost: tuple[Manifest, ...]) -> str:
    """Say which pods are lost, where, and what a person can do."""
    places = [f"{pod['metadata']['name']} on node {pod.get('spec', {}).get('nodeName', 'unknown')}" for pod in lost]
    more = f" and {len(places) - 3} more" if len(places) > 3 else ""
    return (
        f"no kubelet ends {', '.join(places[:3])}{more}; when the machine is off, delete its Node object or taint it"
        " node.kubernetes.io/out-of-service=nodeshutdown:NoExecute; jobs with"
        " spec.failurePolicy.forceDeleteLostPods: AfterTimeout need neither"
    )
